"""Which patches of the level below a patch is wired to, and which innovations it shares with its neighbours.

The paper's graph P_{l,j} is a tree. On photographs a patch that saw its own parent alone would leave a seam at every parent's
border, so it sees the nearest 2 x 2 of the level below: its parent, and the neighbours on the side of the quadrant it is in. Patches
that are alike up to translation (same quadrant, same distance from the border) are of one *kind* and may share their weights.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor

KINDS = 16
_NUMBERS = 2**21  # of windows that are gathered at once: they should stay near the processor


def window(grid: int) -> tuple[Int64[Tensor, "k p"], Int64[Tensor, " k"]]:
    """Parents ``(4 grid^2, |P|)`` of a level whose coarser one is ``grid x grid`` patches, and kinds in ``0..15``.

    ``|P|`` is 4, or 1 where the coarser level is one patch.
    """
    r = torch.arange(2 * grid)
    start = ((r - 1) // 2).clamp(0, max(grid - 2, 0))
    kind = torch.where(r == 0, 0, torch.where(r == 2 * grid - 1, 3, 2 - (r % 2 == 0).long()))
    reach = torch.arange(min(2, grid))
    y = (start[:, None] + reach)[:, None, :, None]
    x = (start[:, None] + reach)[None, :, None, :]
    parents = (y * grid + x).reshape(4 * grid * grid, -1)
    return parents, (4 * kind[:, None] + kind[None, :]).reshape(-1)


def ring(grid: int) -> Int64[Tensor, "k 9"]:
    """The 3 x 3 innovations around each of ``grid x grid`` patches, in a grid one wider on every side."""
    r, step = torch.arange(grid), torch.arange(3)
    y = (r[:, None] + step)[:, None, :, None]
    x = (r[:, None] + step)[None, :, None, :]
    return (y * (grid + 2) + x).reshape(grid * grid, 9)


def gather(patches: Tensor, index: Tensor) -> Tensor:
    """``(k, n, d)`` patches and ``(j, p)`` indices to ``(j, n, p d)``: each patch's window as one vector."""
    return torch.cat([patches.index_select(0, parent) for parent in index.unbind(1)], 2)


def through(
    patches: Float[Tensor, "k n d"], index: Int64[Tensor, "j p"], weights: Float[Tensor, "j i r"]
) -> Float[Tensor, "j n r"]:
    """Each patch's window times its weights, ``i = p d``: ``gather(patches, index) @ weights``, some patches at a time."""
    n, (j, inputs, outputs) = patches.shape[1], weights.shape
    found = patches.new_empty(j, n, outputs)
    step = max(1, _NUMBERS // max(1, n * inputs))
    for i in range(0, j, step):
        torch.bmm(gather(patches, index[i : i + step]), weights[i : i + step], out=found[i : i + step])
    return found
