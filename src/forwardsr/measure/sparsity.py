r"""Sparsity: how often a channel is active (paper, Assumption 2.2 and Figure 3, left).

For level l, position j and channel p, :math:`\Pr_z[[S_{l,j}]_p > 0]`, strictly positive: exact zeros of a ReLU are inactive, and so
are the negative values of a leaky one. The paper's ``S_{l,j}`` are the channels *at one patch j*; of a deconvolutional network a
patch is a spatial position of the hidden layer, and nothing is pooled over positions: the distribution shown is over (j, p).

Assumption 2.2 asks for ``k_l << m_l`` and ``Pr <= poly(k_l) / m_l``, where ``|S_{l,j}|_0 <= k_l`` with high probability. Here k_l is
the least k with ``Pr[|S_{l,j}|_0 > k] <= 1e-3`` at the worst position, and poly is the identity, as in
:mod:`forwardsr.measure.assumptions`.

Samples are independent, positions and channels of one sample are not: with ``s_{ij} = |S_{l,j}|_0`` in sample i, the average over all
subsets of k channels of the probability that all are active is the mean over i of :math:`\overline{\binom{s_{ij}}{k} / \binom mk}`
(the bar: over positions), so its error is the standard error of that mean, with k = 1 here and 2, 3 in :mod:`correlation`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int64
from rich.table import Table
from torch import Tensor

from forwardsr.measure.coactivation import LevelCounts, patch_form
from forwardsr.measure.draws import BATCH, hidden_batches, plus_minus
from forwardsr.model.protocol import LayeredGenerator

Z95 = 1.959964
WHP = 1e-3  # "with high probability" is 1 - WHP, as in the audit of the assumptions
POSITIONS = (
    64  # looked at in a level, evenly spaced: exact triples at all 1,024 of a 32 x 32 layer add time and nothing else
)
SAMPLES = 4096  # any one probability to 0.016 at worst (95 %)
CHANNELS = 96  # of which pairs and triples are counted, evenly spaced where a level has more: triples grow as m^3
COUNTED = 4  # batches counted at a time: products of longer matrices, so three times as fast
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
BINS = 40

Kind = Literal["single", "pair", "triple"]
KINDS: tuple[Kind, ...] = ("single", "pair", "triple")


@dataclass(frozen=True)
class LevelActivity:
    """How often single channels, pairs and triples of a level are active, at each position looked at.

    ``single``, ``pair``, ``triple`` are probabilities, float64, the latter two over all p < q (< r) of ``channels`` (all m channels,
    or :data:`CHANNELS` of them), in lexicographic order.
    ``means[k - 1]`` is the mean over all subsets of k channels and all positions, and its standard error. ``k`` is the
    1 - 1e-3 quantile of ``|S|_0`` at the worst position, ``n`` counts samples, ``positions_in_all`` the level's positions.
    """

    level: int
    m: int
    n: int
    positions_in_all: int
    channels: Int64[Tensor, " counted"]
    single: Float[Tensor, "positions m"]
    pair: Float[Tensor, "positions pairs"]
    triple: Float[Tensor, "positions triples"]
    means: tuple[tuple[float, float], ...]
    k: int

    def independent(self, kind: Kind) -> Tensor:
        """The probabilities if channels were independent, of the shape of the ones named."""
        if kind == "single":
            return self.single
        index = torch.combinations(torch.arange(len(self.channels)), KINDS.index(kind) + 1)
        return self.single[:, self.channels][:, index].prod(-1) if len(index) else self.single[:, :0]

    def asked(self, kind: Kind) -> float:
        """What Assumption 2.2 asks for: k/m; epsilon_1 = 2 k / m^2; epsilon_2 = m^-2.01 (constants as in the audit)."""
        return {"single": self.k / self.m, "pair": 2 * self.k / self.m**2, "triple": self.m**-2.01}[kind]

    def summary(self, kind: Kind) -> dict[str, Any]:
        """Mean and standard error, quantiles, extremes and histogram over positions and subsets of channels."""
        values: Tensor = getattr(self, kind).flatten()
        mean, error = self.means[KINDS.index(kind)]
        if not len(values):
            return {"mean": mean, "standard_error": error, "asked": self.asked(kind)}
        top = max(float(values.max()), 1e-9)
        return {
            "mean": mean,
            "standard_error": error,
            "quantiles": dict(zip(map(str, QUANTILES), quantiles(values))),
            "min": float(values.min()),
            "max": float(values.max()),
            "never": int((values == 0).sum()),
            "histogram": {"top": top, "counts": torch.histc(values, BINS, 0.0, top).long().tolist()},
            "asked": self.asked(kind),
        }


def quantiles(values: Float[Tensor, " n"]) -> list[float]:
    """:data:`QUANTILES` of the values."""
    return torch.quantile(values, torch.tensor(QUANTILES, dtype=values.dtype)).tolist()


class _Counter:
    """The counts of one level: single channels and their number over all channels, pairs and triples over some."""

    def __init__(self, S: Float[Tensor, "positions n m"]) -> None:
        positions, _, m = S.shape
        self.n = 0
        self.active = torch.zeros(positions, m, dtype=torch.float64)
        self.sizes = torch.zeros(positions, m + 1, dtype=torch.float64)
        self.channels = torch.linspace(0, m - 1, min(m, CHANNELS)).round().long()
        self.joint = LevelCounts(positions, len(self.channels), ())
        self.shares = torch.zeros(2, 3, dtype=torch.float64)

    def add(self, S: Float[Tensor, "positions n m"]) -> None:
        S = S.cpu()
        positions, n, m = S.shape
        self.n += n
        A = S > 0
        size = A.sum(2)
        self.active += A.sum(1)
        bins = (size + torch.arange(positions)[:, None] * (m + 1)).flatten()
        self.sizes += torch.bincount(bins, minlength=positions * (m + 1)).view(positions, -1)
        some = S if len(self.channels) == m else S[:, :, self.channels]
        self.joint.add(some)
        counted = size if some is S else (some > 0).sum(2)
        shares = torch.stack(
            [
                _share(s.double(), k, c)
                for s, k, c in ((size, 1, m), (counted, 2, some.shape[2]), (counted, 3, some.shape[2]))
            ],
            1,
        )
        self.shares += torch.stack([shares.sum(0), shares.square().sum(0)])

    def finish(self, level: int, size: int) -> LevelActivity:
        mean = self.shares[0] / self.n
        error = ((self.shares[1] / self.n - mean**2).clamp(min=0) / max(self.n - 1, 1)).sqrt()
        beyond = self.sizes.sum(1, keepdim=True) - self.sizes.cumsum(1)
        first, second = torch.triu_indices(len(self.channels), len(self.channels), 1)
        return LevelActivity(
            level=level,
            m=self.active.shape[1],
            n=self.n,
            positions_in_all=size,
            channels=self.channels,
            single=self.active / self.n,
            pair=self.joint.pair[:, first, second] / self.n,
            triple=self.joint.triple / self.n,
            means=tuple(zip(mean.tolist(), error.tolist())),
            k=int((beyond / self.n > WHP).sum(1).max()),
        )


def _share(active: Float[Tensor, "positions n"], k: int, m: int) -> Float[Tensor, " n"]:
    """For each sample, the share of all subsets of k of m channels that is active, averaged over positions."""
    subsets = active
    for i in range(1, k):
        subsets = subsets * (active - i) / (i + 1)
    return subsets.mean(0) / max(math.comb(m, k), 1)


def activity(
    generator: LayeredGenerator, n: int = SAMPLES, seed: int = 0, positions: int = POSITIONS, batch: int = BATCH
) -> tuple[LevelActivity, ...]:
    """Count activations of every level on ``n`` samples, streamed; all pairs and triples of at most :data:`CHANNELS` channels.

    At most ``positions`` evenly spaced positions of a level are looked at. All randomness comes from ``seed``.
    """
    counters: list[_Counter] = []
    sizes: list[int] = []
    waiting: list[list[Tensor]] = []
    for start, hidden in zip(range(0, n, batch), hidden_batches(generator, n, seed, batch)):
        waiting.append([patch_form(S, positions) for S in hidden])
        if len(waiting) < COUNTED and start + batch < n:
            continue
        layers = [torch.cat(parts, 1) for parts in zip(*waiting)]
        waiting.clear()
        if not counters:
            counters = [_Counter(S) for S in layers]
            sizes = [S.shape[1] if S.ndim == 3 else S.shape[2] * S.shape[3] for S in hidden]
        for counter, S in zip(counters, layers, strict=True):
            counter.add(S)
    return tuple(counter.finish(l, size) for l, (counter, size) in enumerate(zip(counters, sizes), start=1))


@dataclass(frozen=True)
class Sparsity:
    """``Pr[S_p > 0]`` of every level, of the generator and, where known, at its initialisation."""

    trained: tuple[LevelActivity, ...]
    initial: tuple[LevelActivity, ...] | None = None

    def table(self) -> Table:
        """A row a level and moment."""
        first = self.trained[0]
        table = Table(
            title=f"Sparsity: Pr[S_p > 0] over positions and channels ({first.n:,} samples)", title_justify="left"
        )
        table.add_column("level")
        table.add_column("")
        for heading in ("mean, 95 % CI", "5 % to 95 %", "largest", "never", "k of m", "asked: Pr <= k/m"):
            table.add_column(heading, justify="right")
        for name, a in moments_in_time(self.trained, self.initial):
            found = a.summary("single")
            q = found["quantiles"]
            table.add_row(
                str(a.level), name, plus_minus(found["mean"], Z95 * found["standard_error"]),
                f"{q['0.05']:.3f} to {q['0.95']:.3f}", f"{found['max']:.3f}", str(found["never"]),
                f"{a.k} of {a.m}", f"{a.asked('single'):.3f}", end_section=name == "trained",
            )  # fmt: skip
        table.caption = (
            f"k: |S|_0 is larger in at most {WHP:.1%} of samples; Assumption 2.2 asks for k << m. "
            f"{_looked_at(self.trained)}"
        )
        return table

    def to_json(self) -> dict[str, Any]:
        """By moment and level: k, m and the summary of ``single``."""
        return in_time(self.trained, self.initial, ("single",))


def moments_in_time(
    trained: Sequence[LevelActivity], initial: Sequence[LevelActivity] | None
) -> list[tuple[str, LevelActivity]]:
    """By level, initialisation first."""
    return [
        (name, levels[l])
        for l in range(len(trained))
        for name, levels in (("initial", initial), ("trained", trained))
        if levels is not None
    ]


def in_time(
    trained: Sequence[LevelActivity], initial: Sequence[LevelActivity] | None, kinds: Sequence[Kind]
) -> dict[str, Any]:
    """Values for JSON: ``{"trained": [level, ...], "initial": [...]}``, the latter where known."""

    def values(levels: Sequence[LevelActivity]) -> list[dict[str, Any]]:
        return [
            {"level": a.level, "m": a.m, "k": a.k, "n": a.n, "positions": len(a.single)}
            | {kind: a.summary(kind) for kind in kinds}
            for a in levels
        ]

    return {"trained": values(trained)} | ({} if initial is None else {"initial": values(initial)})


def _looked_at(levels: Sequence[LevelActivity]) -> str:
    return "Positions: " + ", ".join(f"{len(a.single)} of {a.positions_in_all}" for a in levels) + "."


def sparsity(
    generator: LayeredGenerator, initial: LayeredGenerator | None = None, n: int = SAMPLES, seed: int = 0
) -> Sparsity:
    """Measure sparsity on ``n`` samples, of ``initial`` (the network before training) as well where given."""
    return Sparsity(activity(generator, n, seed), None if initial is None else activity(initial, n, seed))
