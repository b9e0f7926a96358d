r"""Novelty: are drawn images new, or copies of what was learned from?

For each of n drawn images its nearest training image, in the root mean square of pixels at one resolution. The yardstick is
the same for n real images, each against all others:

.. math:: \mathrm{ratio} = \mathrm{median}_i \min_j \|G(z_i) - X_j\| \;/\; \mathrm{median}_i \min_{j \ne i} \|X_i - X_j\| .

About 1 or above: new images as far from the training set as its images are from each other. Near 0: copies. Mirrored training
images count as well, since learners may mirror.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int64
from rich.table import Table
from torch import Tensor

from forwardsr.data.source import FiniteSource

SIDE = 32  # of the resolution compared at: finer pixels say more about noise than about content
CHUNK = 1024


@dataclass(frozen=True)
class Novelty:
    """``drawn (n,)`` and ``real (n,)``: distances to the nearest training image; ``nearest (n,)`` its index; ``side`` compared
    at."""

    drawn: Float[Tensor, " n"]
    real: Float[Tensor, " n"]
    nearest: Int64[Tensor, " n"]
    side: int

    @property
    def ratio(self) -> float:
        """The median distance of drawn images over that of real ones."""
        return float(self.drawn.median() / self.real.median().clamp_min(1e-12))

    @property
    def copies(self) -> float:
        """The share of drawn images nearer to a training image than half the real images' first percentile."""
        return float((self.drawn < 0.5 * self.real.quantile(0.01)).float().mean())

    def table(self) -> Table:
        """The result as a table for a terminal."""
        table = Table(title=f"Nearest training image, root mean square of pixels at {self.side} px")
        for heading in ("", "5 %", "median", "95 %", "copies"):
            table.add_column(heading)
        for name, values, copies in (
            ("drawn", self.drawn, f"{self.copies:.1%}"),
            ("real, of the others", self.real, ""),
        ):
            cells = [f"{float(values.quantile(q)):.3f}" for q in (0.05, 0.5, 0.95)]
            table.add_row(name, *cells, copies)
        return table

    def to_json(self) -> dict[str, Any]:
        """Plain numbers, for other programs."""
        quantiles = {
            name: [float(values.quantile(q)) for q in (0.05, 0.5, 0.95)]
            for name, values in (("drawn", self.drawn), ("real", self.real))
        }
        return {"side": self.side, "ratio": self.ratio, "copies": self.copies, "n": len(self.drawn)} | quantiles


def novelty(drawn: list[Tensor], source: FiniteSource, seed: int = 0) -> Novelty:
    """Compare a drawn pyramid (image form) with all of ``source``; streams over it.

    The level compared at is the finest of at most :data:`SIDE` px. As many real images as drawn ones give the yardstick.
    """
    level = max([l for l, x in enumerate(drawn) if x.shape[-1] <= SIDE], default=0)
    x = drawn[level].flatten(1)
    size = len(source)
    pick = torch.randperm(size, generator=torch.Generator().manual_seed(seed))[: len(x)]
    probes = torch.cat([x, source.take(pick, level + 1)[level].flatten(1)])
    best = torch.full((len(probes),), float("inf"))
    where = torch.zeros(len(probes), dtype=torch.int64)
    for start in range(0, size, CHUNK):
        index = torch.arange(start, min(start + CHUNK, size))
        images = source.take(index, level + 1)[level]
        for mirrored in (images, images.flip(-1)):
            gap = torch.cdist(probes, mirrored.flatten(1))
            gap[len(x) :][pick[:, None] == index] = float("inf")  # itself (and its mirror image) says nothing
            value, at = gap.min(1)
            closer = value < best
            best = torch.where(closer, value, best)
            where = torch.where(closer, index[at], where)
    best = best / x.shape[1] ** 0.5
    return Novelty(best[: len(x)], best[len(x) :], where[: len(x)], drawn[level].shape[-1])
