"""A patch-form source shown as images, so that the image learners train on planted targets and arrays."""

from __future__ import annotations

from typing import cast

import torch
from jaxtyping import Int64
from torch import Tensor

from forwardsr.data.pyramid import Pyramid
from forwardsr.data.source import FiniteSource, Source
from forwardsr.errors import UserError

# The scale is read off this many samples, at this quantile of |x|: robust to a rare large value, which is not clipped either.
_SAMPLES = 256
_QUANTILE = 0.999


class FoldedSource:
    """``source`` with every level folded into a square image and divided by one number, ``scale``: float32, not clipped.

    The scale (by default such that nearly all values lie in [-1, 1]) is common to all levels, so a pyramid stays what it
    was up to that factor. Of a finite source this is a finite source. Raises ``UserError`` where the patches make no square.
    """

    def __new__(cls, source: Source, channels: int = 3, scale: float | None = None) -> FoldedSource:
        return super().__new__(_FiniteFoldedSource if isinstance(source, FiniteSource) else cls)

    def __init__(self, source: Source, channels: int = 3, scale: float | None = None) -> None:
        self.source, self.channels, self.name = source, channels, source.name
        self.notes: list[str] = list(getattr(source, "notes", []))
        try:
            probe = source.draw(_SAMPLES, torch.Generator().manual_seed(0))
            folded = probe.fold(channels)
        except ValueError as error:
            raise UserError(f"{source.name}: cannot be shown as images: {error}") from error
        self.shapes: tuple[tuple[int, ...], ...] = tuple(tuple(x.shape[1:]) for x in folded)
        self.scale = _quantile(probe) if scale is None else scale

    def draw(self, n: int, generator: torch.Generator, levels: int | None = None) -> Pyramid:
        """``n`` samples of ``source``, as images."""
        return self._show(self.source.draw(n, generator, levels))

    def _show(self, pyramid: Pyramid) -> Pyramid:
        return Pyramid([x.to(torch.float32) / self.scale for x in pyramid.fold(self.channels)])


class _FiniteFoldedSource(FoldedSource):
    def __len__(self) -> int:
        return len(cast(FiniteSource, self.source))

    def take(self, index: Int64[Tensor, " n"], levels: int | None = None) -> Pyramid:
        return self._show(cast(FiniteSource, self.source).take(index, levels))


def _quantile(pyramid: Pyramid) -> float:
    values = torch.cat([x.abs().flatten() for x in pyramid])
    # kthvalue, because torch.quantile refuses more than 16 million numbers.
    return float(values.kthvalue(max(1, round(_QUANTILE * len(values)))).values) or 1.0
