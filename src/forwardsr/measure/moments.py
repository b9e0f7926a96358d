r"""Moments: does the generator match the moments of patches, and from when on (paper, Figure 6).

For a patch of d numbers and order r, the centred moments over distinct numbers are

.. math:: M^r_{i_1 < \dots < i_r} = E \prod_{s \le r} (x_{i_s} - E x_{i_s}), \qquad r = 2, 3, 4, \qquad M^1_i = E x_i

(centred, the first would vanish: its mean itself is compared). Measured is the mean over all index sets of the squared difference

.. math:: D_r = \binom{d}{r}^{-1} \sum_{i_1 < \dots < i_r} \bigl( M^r(\text{generator}) - M^r(\text{data}) \bigr)^2 .

**All index sets, without listing one.** The sum of products over index sets is an elementary symmetric polynomial, so for x, x'
independent from the generator and y, y' from the data

.. math:: \binom{d}{r} D_r = E\, e_r(x \circ x') - 2\, E\, e_r(x \circ y) + E\, e_r(y \circ y'),

a maximum mean discrepancy with the ANOVA kernel :math:`e_r`, which Newton's identities give from the power sums
:math:`p_k = \sum_i (x_i y_i)^k`, that is from the Gram matrices of elementwise powers. For d = 108 these are exactly all
5,359,095 moments of order 4. Leaving out x = x' makes the estimate *unbiased*: it may be negative, and is 0 on average where the
moments agree. Centres are means of further samples (and the data's of further data), so that centring brings no bias of first order.

Errors are by the jackknife over :data:`GROUPS` groups of samples. The *floor* is the same estimate of data against other data, with
two of its standard errors: below it the generator cannot be told from the data by these moments and so many samples.

Patches are 6 x 6 pixels on an even grid, which overlap where the side is no multiple of 6 (at 8 px: 4 patches, at 2 px from
each other); patch-form levels are taken in their own patches. ``relative`` is ``D_r / mean (M^r of the data)^2``: 1 for a generator
whose moments are 0. ``to_initial`` is ``D_r / D_r(initialisation)``, the y-axis of Figure 6.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from rich.table import Table
from torch import Tensor

from forwardsr.data.pyramid import Pyramid
from forwardsr.data.source import FiniteSource, Source
from forwardsr.errors import UserError
from forwardsr.measure.draws import plus_minus, pyramid_batches
from forwardsr.model.protocol import LayeredGenerator

ORDERS = 4
PATCH = 6
SAMPLES = 1024
PATCHES = 36  # of a level, on an even grid
GROUPS = 16  # of the jackknife
Z95 = 1.96
_ROWS = 256  # of a Gram matrix at a time: what fits the cache is three times as fast


def patches_of(x: Tensor, side: int = PATCH, limit: int = PATCHES) -> Float[Tensor, "patches n d"]:
    """The patches of one level, patches first: its own in patch form, else ``side x side`` windows on an even grid.

    At most ``limit`` of them, evenly spaced; a grid of as few rows as cover the image where that is fewer.
    """
    if x.ndim == 3:
        kept = torch.linspace(0, x.shape[1] - 1, min(limit, x.shape[1])).round().long()
        return x.transpose(0, 1)[kept]
    height = x.shape[-1]
    side = min(side, height)
    rows = min(math.isqrt(limit), -(-height // side))
    starts = torch.linspace(0, height - side, rows).round().long().tolist()
    return torch.stack([x[..., i : i + side, j : j + side].flatten(1) for i in starts for j in starts])


def elementary(p1: Tensor, p2: Tensor, p3: Tensor, p4: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Newton's identities: the elementary symmetric polynomials ``e_1 .. e_4`` from the power sums ``p_1 .. p_4``."""
    e2 = torch.addcmul(p2, p1, p1, value=-1).mul_(-1 / 2)
    e3 = torch.addcmul(p3, p1, e2 - p2).mul_(1 / 3)
    e4 = torch.addcmul(p4, p1, p3 + e3, value=-1).addcmul_(e2, p2).mul_(-1 / 4)
    return p1, e2, e3, e4


@dataclass(frozen=True)
class Side:
    """One side of the comparison at one level: samples as they are, and about the mean of further samples."""

    raw: Float[Tensor, "patches n d"]
    centred: Float[Tensor, "patches n d"]

    @staticmethod
    def of(x: Float[Tensor, "patches n d"], mean: Float[Tensor, "patches d"]) -> Side:
        return Side(x, x - mean[:, None])


def _kernel_means(a: Side, b: Side, same: bool) -> Float[Tensor, "r g g"]:
    """Sums of e_r over pairs of samples, by group of the first and of the second, averaged over patches and index sets; float64.

    ``same``: both sides are the same samples, whose pairs with themselves are left out.
    """
    patches, n, d = a.raw.shape
    g = min(GROUPS, n)  # n is a multiple of it: see RealMoments.from_source
    size = n // g
    sums = [side.raw.double().view(patches, g, size, d).sum(2).transpose(0, 1).flatten(1) for side in (a, b)]
    total = torch.zeros(ORDERS, g, g, dtype=torch.float64)
    total[0] = sums[0] @ sums[1].T
    if same:
        total[0].diagonal().sub_(a.raw.double().square().view(patches, g, -1).sum((0, 2)))
    for x, y in zip(a.centred, b.centred):
        powers = [y.pow(k).T for k in range(1, ORDERS + 1)]
        for first in range(0, n, rows := size * max(1, _ROWS // size)):
            part = x[first : first + rows]
            e = elementary(*(part.pow(k) @ power for k, power in enumerate(powers, start=1)))
            for r in range(1, ORDERS):
                if same:
                    e[r].diagonal(first).zero_()
                block = e[r].view(-1, size, g, size).sum(3).sum(1, dtype=torch.float64)
                total[r, first // size : first // size + len(block)] += block
    subsets = torch.tensor([math.comb(d, r) for r in range(1, ORDERS + 1)], dtype=torch.float64).clamp(min=1)
    return total / patches / subsets[:, None, None]


def _mean_without(sums: Tensor, per_group: int, same: bool) -> tuple[Tensor, Tensor]:
    """The mean over pairs of samples, of all groups ``(r,)`` and without each group ``(g, r)``."""
    g = sums.shape[-1]
    whole = sums.sum((-2, -1))
    without = (whole[:, None] - sums.sum(-1) - sums.sum(-2) + sums.diagonal(dim1=-2, dim2=-1)).T

    def pairs(n: int) -> int:
        return n * (n - 1) if same else n * n

    return whole / max(pairs(g * per_group), 1), without / max(pairs((g - 1) * per_group), 1)


@dataclass(frozen=True)
class _Estimate:
    """A number per order, and its values with each group of samples left out."""

    value: Float[Tensor, " r"]
    without: Float[Tensor, "g r"]

    def error(self) -> Tensor:
        """Standard error, by the jackknife."""
        g = len(self.without)
        return ((g - 1) / g * (self.without - self.without.mean(0)).square().sum(0)).sqrt()

    def over(self, other: _Estimate) -> _Estimate:
        return _Estimate(self.value / other.value, self.without / other.without)


@dataclass(frozen=True)
class MomentRow:
    """One level and snapshot; tuples run over the orders 1 to 4. ``error`` and ``*_error`` are standard errors.

    ``difference`` is D_r in the units of the images to the power 2 r; ``relative`` and ``to_initial`` as in the module's text,
    the latter ``None`` where no initialisation is known.
    """

    level: int
    images: int | None
    difference: tuple[float, ...]
    error: tuple[float, ...]
    relative: tuple[float, ...]
    relative_error: tuple[float, ...]
    to_initial: tuple[float, ...] | None
    to_initial_error: tuple[float, ...] | None


@dataclass(frozen=True)
class Moments:
    """Squared differences of moments by level and snapshot (coarse first, then in time) and their floors.

    ``floor[level]`` and ``floor_to_initial[level]`` (orders 1 to 4) are in the units of ``relative`` and ``to_initial``: data against
    other data, with two standard errors. ``n`` samples a side, ``sides`` of the levels' patches: ``(patches, d)``.
    """

    rows: tuple[MomentRow, ...]
    floor: tuple[tuple[float, ...], ...]
    floor_to_initial: tuple[tuple[float, ...], ...] | None
    n: int
    sides: tuple[tuple[int, int], ...]

    def levels(self) -> list[list[MomentRow]]:
        """The rows of each level, in time."""
        found: dict[int, list[MomentRow]] = {}
        for row in self.rows:
            found.setdefault(row.level, []).append(row)
        return list(found.values())

    def table(self) -> Table:
        """A row a level and snapshot; relative to initialisation where it is known, else to the data's moments."""
        initial = self.floor_to_initial is not None
        against = "that at initialisation (Figure 6)" if initial else "the data's own squared moments"
        table = Table(
            title=f"Squared difference of patch moments, over {against} ({self.n:,} samples a side)",
            title_justify="left",
        )
        table.add_column("level")
        table.add_column("images seen", justify="right")
        for order in range(1, ORDERS + 1):
            table.add_column(f"order {order}", justify="right")
        floors = self.floor_to_initial or self.floor
        for rows, floor in zip(self.levels(), floors, strict=True):
            for row in rows:
                values = (row.relative, row.relative_error)
                if row.to_initial is not None and row.to_initial_error is not None:
                    values = (row.to_initial, row.to_initial_error)
                when = "-" if row.images is None else f"{row.images:,}"
                table.add_row(str(row.level), when, *(plus_minus(v, Z95 * e) for v, e in zip(*values)))
            table.add_row("", "floor", *(f"{f:.2g}" for f in floor), style="dim", end_section=True)
        table.caption = "Patches: " + ", ".join(f"{k} of {d} numbers" for k, d in self.sides) + ". "
        table.caption += "Below the floor the data cannot be told from other data."
        return table

    def to_json(self) -> dict[str, Any]:
        """Everything, as values that JSON can hold."""
        return {
            "n": self.n,
            "patches": [list(side) for side in self.sides],
            "floor": [list(f) for f in self.floor],
            "floor_to_initial": None if self.floor_to_initial is None else [list(f) for f in self.floor_to_initial],
            "rows": [
                {key: list(v) if isinstance(v, tuple) else v for key, v in vars(row).items()} for row in self.rows
            ],
        }


class RealMoments:
    """The data's side, computed once: its samples, their centres, and their kernel means with themselves and with other data."""

    def __init__(self, real: Pyramid, other: Pyramid) -> None:
        """``real`` and ``other``: disjoint draws of n each, n a multiple of :data:`GROUPS` (or below it)."""
        self.n = real.n
        self.per_group = real.n // min(GROUPS, real.n)
        self.levels: list[Side] = []
        self.own: list[_Estimate] = []
        self.floor: list[Tensor] = []
        for x, y in zip(real, other):
            a, b = patches_of(x), patches_of(y)
            side, opposite = Side.of(a, b.mean(1)), Side.of(b, a.mean(1))
            self.levels.append(side)
            self.own.append(self._mean(side, side))
            apart = self._difference(side, self.own[-1], opposite)
            self.floor.append(apart.value.abs() + 2 * apart.error())

    def _mean(self, a: Side, b: Side) -> _Estimate:
        same = a is b
        return _Estimate(*_mean_without(_kernel_means(a, b, same), self.per_group, same))

    def _difference(self, real: Side, own: _Estimate, other: Side) -> _Estimate:
        mixed, theirs = self._mean(real, other), self._mean(other, other)
        return _Estimate(own.value - 2 * mixed.value + theirs.value, own.without - 2 * mixed.without + theirs.without)

    def differences(self, generator: LayeredGenerator, seed: int) -> list[_Estimate]:
        """D_r of every level, against fresh samples: n, and as many again for their centres."""
        drawn = Pyramid.cat(list(pyramid_batches(generator, 2 * self.n, seed)))
        found = []
        for real, own, x in zip(self.levels, self.own, drawn, strict=True):
            if (patches := patches_of(x).to(real.raw)).shape[-1] != real.raw.shape[-1]:
                raise ValueError(f"generated patches of {patches.shape[-1]} numbers, real ones of {real.raw.shape[-1]}")
            side = Side.of(patches[:, : self.n], patches[:, self.n :].mean(1))
            found.append(self._difference(real, own, side))
        return found

    @staticmethod
    def from_source(source: Source, n: int = SAMPLES, seed: int = 0) -> RealMoments:
        """Two disjoint draws; a finite source of fewer than 2 n is cut in halves. ``UserError`` where there are fewer than 8."""
        generator = torch.Generator().manual_seed(seed)
        if isinstance(source, FiniteSource):
            n = min(n, len(source) // 2)
        if n < 4:
            raise UserError(f"{source.name}: moments need 8 samples at least (4 against 4); give more")
        n -= n % GROUPS if n >= GROUPS else 0
        if isinstance(source, FiniteSource):
            order = torch.randperm(len(source), generator=generator)
            return RealMoments(source.take(order[:n]), source.take(order[n : 2 * n]))
        return RealMoments(source.draw(n, generator), source.draw(n, generator))


def moments(
    snapshots: Sequence[tuple[int | None, LayeredGenerator]], real: RealMoments, seed: int = 0, initial: bool = False
) -> Moments:
    """Hold generators, in the order of training, against the data; ``initial``: the first of them is the initialisation.

    Each entry is the number of images seen and the generator; all get the same latents. Costs about 1.5 GFLOP a patch and
    snapshot at n = 1,024.
    """
    rows: list[MomentRow] = []
    first: list[_Estimate] = []
    for images, generator in snapshots:
        found = real.differences(generator, seed)
        first = first or found
        for l, estimate in enumerate(found):
            relative = estimate.over(real.own[l])
            ratio = estimate.over(first[l])
            rows.append(
                MomentRow(
                    l + 1,
                    images,
                    _numbers(estimate.value),
                    _numbers(estimate.error()),
                    _numbers(relative.value),
                    _numbers(relative.error()),
                    _numbers(ratio.value) if initial else None,
                    _numbers(ratio.error()) if initial else None,
                )
            )
    rows.sort(key=lambda row: row.level)
    return Moments(
        tuple(rows),
        tuple(_numbers(f / own.value) for f, own in zip(real.floor, real.own)),
        tuple(_numbers(f / start.value) for f, start in zip(real.floor, first)) if initial else None,
        real.n,
        tuple((side.raw.shape[0], side.raw.shape[2]) for side in real.levels),
    )


def _numbers(values: Tensor) -> tuple[float, ...]:
    return tuple(float(v) for v in values)
