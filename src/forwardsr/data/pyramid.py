r"""Pyramids: one batch of data at all resolutions, coarse first (paper, §2.1).

A pyramid is :math:`(X_1, \dots, X_L)`, in one of two forms:

* patch form: ``X_l`` of shape ``(n, d_l, d)``, ``d_l`` patches of ``d`` numbers each;
* image form: ``X_l`` of shape ``(n, c, h_l, w_l)``.

``fold`` and ``unfold`` go between them: an image is a square grid, in row-major order, of patches of ``p x p`` pixels, and a
patch is laid out as ``(c, p, p)`` flattened, so ``d = c p^2``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import overload

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


def unfold(images: Float[Tensor, "n c h w"], patch: int) -> Float[Tensor, "n k d"]:
    """Cut images into a row-major grid of ``patch x patch`` patches, each flattened as ``(c, patch, patch)``.

    Raises ``ValueError`` where the sides are not multiples of ``patch``.
    """
    n, c, h, w = images.shape
    if h % patch or w % patch:
        raise ValueError(f"an image of {h} x {w} pixels is not a grid of {patch} x {patch} patches")
    grid = images.reshape(n, c, h // patch, patch, w // patch, patch)
    return grid.permute(0, 2, 4, 1, 3, 5).reshape(n, (h // patch) * (w // patch), c * patch * patch)


def fold(patches: Float[Tensor, "n k d"], channels: int) -> Float[Tensor, "n c h w"]:
    """Lay patches out as a square image: the inverse of :func:`unfold`.

    Raises ``ValueError`` where the number of patches is no square, or ``d`` is not ``channels`` times a square.
    """
    n, k, d = patches.shape
    side, patch = math.isqrt(k), math.isqrt(d // channels)
    if side * side != k or channels * patch * patch != d:
        raise ValueError(f"{k} patches of {d} numbers do not fold into a square image of {channels} channels")
    grid = patches.reshape(n, side, side, channels, patch, patch)
    return grid.permute(0, 3, 1, 4, 2, 5).reshape(n, channels, side * patch, side * patch)


def pool(images: Float[Tensor, "n c h w"], sides: Sequence[int]) -> Pyramid:
    """Average-pool images down to every side in ``sides`` (coarse first): the paper's resolution reduction (Fig. 1).

    ``sides[-1]`` must be the images' own side and every other must divide it; ``ValueError`` otherwise.
    """
    side = images.shape[-1]
    if images.shape[-2] != side or sides[-1] != side or any(side % s for s in sides):
        raise ValueError(f"images of {tuple(images.shape[-2:])} pixels do not pool to sides {list(sides)}")
    levels = [images]
    for s in sides[-2::-1]:
        finer = levels[-1] if levels[-1].shape[-1] % s == 0 else images  # a quarter of the numbers, where levels double
        levels.append(F.avg_pool2d(finer, finer.shape[-1] // s))
    return Pyramid(levels[::-1])


class Pyramid(Sequence[Tensor]):
    """A batch at all resolutions, coarse first. Indexing gives a level, iteration goes from coarse to fine."""

    __slots__ = ("levels",)

    def __init__(self, levels: Sequence[Tensor]) -> None:
        """``levels``: all of patch form ``(n, d_l, d)`` or all of image form ``(n, c, h_l, w_l)``, with one ``n``."""
        if not levels:
            raise ValueError("a pyramid needs at least one level")
        if {x.ndim for x in levels} not in ({3}, {4}) or len({x.shape[0] for x in levels}) != 1:
            raise ValueError(
                "levels must all be (n, d_l, d) or all (n, c, h_l, w_l) with one n, "
                f"not {[tuple(x.shape) for x in levels]}"
            )
        self.levels = tuple(levels)

    @overload
    def __getitem__(self, index: int) -> Tensor: ...
    @overload
    def __getitem__(self, index: slice) -> Pyramid: ...
    def __getitem__(self, index: int | slice) -> Tensor | Pyramid:
        return Pyramid(self.levels[index]) if isinstance(index, slice) else self.levels[index]

    def __len__(self) -> int:
        return len(self.levels)

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.levels)

    def __repr__(self) -> str:
        return f"Pyramid({[tuple(x.shape) for x in self.levels]})"

    @property
    def n(self) -> int:
        """Number of samples in the batch."""
        return self.levels[0].shape[0]

    @property
    def is_image(self) -> bool:
        """True in image form, false in patch form."""
        return self.levels[0].ndim == 4

    def fold(self, channels: int = 3) -> Pyramid:
        """The image form (itself where it is one)."""
        return self if self.is_image else Pyramid([fold(x, channels) for x in self.levels])

    def unfold(self, patch: int = 6) -> Pyramid:
        """The patch form (itself where it is one)."""
        return Pyramid([unfold(x, patch) for x in self.levels]) if self.is_image else self

    def map(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Pyramid:
        """Every level on another device or in another dtype."""
        return Pyramid([x.to(device=device, dtype=dtype) for x in self.levels])

    @staticmethod
    def cat(pyramids: Sequence[Pyramid]) -> Pyramid:
        """Join batches along the samples."""
        return Pyramid([torch.cat(levels) for levels in zip(*pyramids, strict=True)])
