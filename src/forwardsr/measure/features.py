r"""Features: what the output layer W_l paints and what the critic's first layer W^D looks for (paper, Figures 2 and 5).

Each filter is a picture of c colour channels and p x p pixels. Said of it:

* ``r2``: how well one Gabor function of one colour explains it (:mod:`gabor`), with its ``angle`` and ``frequency``;
* ``flat``: the share of its energy in its mean over pixels, of each channel: 1 for a plain colour;
* ``saturation``: the share of its energy that is no grey (orthogonal to (1, 1, 1) in colour): 0 for a grey filter, 2/3 for noise;
* ``oriented``: how much it changes in one direction only: with g the gradients, :math:`J = \sum g g^T` over pixels and channels, and
  lambda its eigenvalues, :math:`(\lambda_1 - \lambda_2) / (\lambda_1 + \lambda_2)`; 1 for a wave, 0 for a blob;
* ``edge``: ``r2`` and ``oriented`` above the 95 % quantiles of random filters (independent Gaussian pixels), ``flat`` below 1/2.

*Overlap* of the two sets at one level: for each feature of the generator the largest |cosine| with a filter of the critic, on
average; against random filters in the critic's place, white (independent pixels) and with the critic's own second moment (random
mixtures of its filters). The latter is what a common low-pass look explains; only what exceeds it says that single filters agree.
Coherence, the mean |cosine| between different features of one set, says how nearly orthogonal they are (noise: sqrt(2 / pi d)).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

from forwardsr.measure.draws import plus_minus
from forwardsr.measure.gabor import fit_gabors
from forwardsr.model.critic import Critic
from forwardsr.model.deconv_generator import DeconvGenerator
from forwardsr.model.innovation_generator import InnovationGenerator
from forwardsr.model.patch_generator import PatchGenerator
from forwardsr.model.pooled_generator import PooledGenerator
from forwardsr.model.protocol import LayeredGenerator

RANDOM = 256  # random filters that r2 is held against
MOST = 512  # filters of a level looked at, evenly spaced, where patches have features of their own
DRAWS = 16  # random sets that the overlap is held against
Z95 = 1.96


@dataclass(frozen=True)
class LevelFeatures:
    """The filters of one owner ("generator" or "critic") at one level, best Gabor first, and what is said of each."""

    level: int
    owner: str
    filters: Float[Tensor, "n c p p"]
    r2: Float[Tensor, " n"]
    angle: Float[Tensor, " n"]
    frequency: Float[Tensor, " n"]
    oriented: Float[Tensor, " n"]
    flat: Float[Tensor, " n"]
    saturation: Float[Tensor, " n"]
    edge: Bool[Tensor, " n"]
    coherence: float

    def to_json(self) -> dict[str, Any]:
        """One list of numbers per quantity, in the order of ``filters`` (which are left out)."""
        lists = {
            name: [round(float(v), 4) for v in getattr(self, name)]
            for name in ("r2", "angle", "frequency", "oriented", "flat", "saturation")
        }
        return {
            "level": self.level,
            "owner": self.owner,
            "coherence": self.coherence,
            "edge": self.edge.tolist(),
            **lists,
        }


@dataclass(frozen=True)
class Overlap:
    """Mean over the generator's features of the largest |cosine| with the critic's filters; its standard error; the baselines."""

    level: int
    best: float
    error: float
    white: float
    same_spectrum: float


@dataclass(frozen=True)
class Features:
    """All sets of filters. ``random_*``: the 5, 50 and 95 % quantiles over random filters of the same shape."""

    sets: tuple[LevelFeatures, ...]
    overlaps: tuple[Overlap, ...]
    random_r2: tuple[float, float, float]
    random_oriented: tuple[float, float, float]

    def table(self) -> Table:
        """A row a set of filters."""
        table = Table(title="Features: how edge-like, how coloured", title_justify="left")
        table.add_column("level")
        table.add_column("of")
        for heading in (
            "filters",
            "edges",
            "Gabor r²",
            "oriented",
            "flat",
            "saturation",
            "edges' cycles/px",
            "coherence",
        ):
            table.add_column(heading, justify="right")
        table.add_column("best match, critic")
        overlaps = {o.level: o for o in self.overlaps}
        for s in self.sets:
            o = overlaps.get(s.level) if s.owner == "generator" else None
            match = "" if o is None else (
                f"{plus_minus(o.best, Z95 * o.error)} (random {o.white:.2f}, same spectrum {o.same_spectrum:.2f})"
            )  # fmt: skip
            table.add_row(
                str(s.level), s.owner, str(len(s.filters)), f"{float(s.edge.double().mean()):.0%}",
                *(f"{float(getattr(s, q).median()):.2f}" for q in ("r2", "oriented", "flat", "saturation")),
                f"{float(s.frequency[s.edge].median()):.2f}" if s.edge.any() else "-", f"{s.coherence:.2f}", match,
            )  # fmt: skip
        r2, oriented = self.random_r2, self.random_oriented
        table.caption = (
            f"Medians. Random filters: Gabor r² {r2[1]:.2f} (5 to 95 %: {r2[0]:.2f} to {r2[2]:.2f}), "
            f"oriented {oriented[1]:.2f} ({oriented[0]:.2f} to {oriented[2]:.2f})."
        )
        return table

    def to_json(self) -> dict[str, Any]:
        """Everything but the filters themselves."""
        return {
            "sets": [s.to_json() for s in self.sets],
            "overlaps": [vars(o) for o in self.overlaps],
            "random_r2": list(self.random_r2),
            "random_oriented": list(self.random_oriented),
        }


def output_features(generator: LayeredGenerator) -> dict[int, Float[Tensor, "n c p p"]]:
    """By level, the features that the generator paints with: the columns of W_l as pictures, at most :data:`MOST` of them.

    Raises ``ValueError`` where patches are no pictures (d is neither 3 p^2 nor p^2), or the generator has no such layer.
    """
    if isinstance(generator, DeconvGenerator):
        weights = dict(generator.named_parameters())
        found = {
            l: weights[f"outputs.{l - 1}.weight"].detach().cpu().float() for l in range(1, len(generator.sides) + 1)
        }
        # Below its last level a pooled generator's outputs are random and render nothing.
        last = len(generator.sides)
        return {last: found[last]} if isinstance(generator, PooledGenerator) else found
    if not isinstance(generator, PatchGenerator):
        raise ValueError(f"{type(generator).__name__} has no output layer of known form")
    pictures = {}
    for l in range(1, len(generator.W) + 1):
        # Neurons of a network with innovations come in pairs of one feature and its negative.
        W = generator.features(l - 1) if isinstance(generator, InnovationGenerator) else generator.W[l - 1]
        d = W.shape[1]
        side = next((p for c in (3, 1) if c * (p := math.isqrt(d // c)) ** 2 == d), None)
        if side is None:
            raise ValueError(f"patches of {d} numbers are no pictures of 3 or 1 channels")
        columns = W[:1] if W.stride(0) == 0 else W
        flat = columns.mT.reshape(-1, d // side**2, side, side).cpu().float()
        pictures[l] = flat[torch.linspace(0, len(flat) - 1, min(MOST, len(flat))).long()]
    return pictures


def critic_filters(critic: Critic) -> dict[int, Float[Tensor, "n c p p"]]:
    """By level, the filters of the critic's first layer (Figure 5's W^D)."""
    weights = dict(critic.named_parameters())
    return {l: weights[f"first.{l - 1}.weight"].detach().cpu().float() for l in range(1, len(critic.sides) + 1)}


def orientation(filters: Float[Tensor, "n c p p"]) -> Float[Tensor, " n"]:
    """How one-directional the gradients of each filter are, in [0, 1]; 0 where it has none."""
    w = filters.double()
    right, down = w.diff(dim=3), w.diff(dim=2)
    x, y = (right[:, :, 1:] + right[:, :, :-1]) / 2, (down[..., 1:] + down[..., :-1]) / 2
    xx, yy, xy = ((a * b).sum((1, 2, 3)) for a, b in ((x, x), (y, y), (x, y)))
    return ((xx - yy).square() + 4 * xy.square()).sqrt() / (xx + yy).clamp(min=1e-30)


def describe(
    level: int, owner: str, filters: Float[Tensor, "n c p p"], r2_above: float, oriented_above: float
) -> LevelFeatures:
    """What is said of a set of filters; the last two are what random filters seldom exceed."""
    w = filters.double()
    energy = w.square().sum((1, 2, 3)).clamp(min=1e-30)
    pixels = w.shape[-1] ** 2
    flat = w.mean((2, 3)).square().sum(1) * pixels / energy
    saturation = 1 - w.mean(1).square().sum((1, 2)) * w.shape[1] / energy
    oriented = orientation(filters)
    fit = fit_gabors(filters)
    order = fit.r2.argsort(descending=True)
    unit = F.normalize(w.flatten(1), dim=1)
    cosines = (unit @ unit.T).abs()
    n = len(w)
    coherence = float((cosines.sum() - cosines.diagonal().sum()) / max(n * (n - 1), 1))
    edge = (fit.r2 > r2_above) & (oriented > oriented_above) & (flat < 0.5)
    return LevelFeatures(
        level, owner, filters[order], fit.r2[order], fit.angle[order], fit.frequency[order], oriented[order],
        flat[order], saturation.clamp(0, 1)[order], edge[order], coherence,
    )  # fmt: skip


def overlap(
    level: int, ours: Float[Tensor, "n c p p"], theirs: Float[Tensor, "k c p p"], generator: torch.Generator
) -> Overlap:
    """How well the best of ``theirs`` matches each of ``ours``, and what random filters in their place would give."""
    a, b = F.normalize(ours.double().flatten(1), dim=1), theirs.double().flatten(1)

    def best(others: Float[Tensor, "*sets k d"]) -> Float[Tensor, "*sets n"]:
        return (a @ F.normalize(others, dim=-1).mT).abs().amax(-1)

    k, d = b.shape
    found = best(b)
    white = torch.randn(DRAWS, k, d, generator=generator, dtype=torch.float64)
    mixed = torch.randn(DRAWS, k, k, generator=generator, dtype=torch.float64) @ b
    error = float(found.std()) / math.sqrt(len(found)) if len(found) > 1 else math.inf
    return Overlap(level, float(found.mean()), error, float(best(white).mean()), float(best(mixed).mean()))


def features(generator: LayeredGenerator, critic: Critic | None = None, seed: int = 0) -> Features:
    """Describe the generator's output features and, where given, the critic's filters. ``seed``: of the random baselines.

    Raises ``ValueError`` as :func:`output_features` does.
    """
    random = torch.Generator().manual_seed(seed)
    ours = output_features(generator)
    theirs = {} if critic is None else critic_filters(critic)
    shape = next(iter(ours.values())).shape[1:]
    noise = torch.randn(RANDOM, *shape, generator=random)
    r2, oriented = (_quantiles(q) for q in (fit_gabors(noise).r2, orientation(noise)))
    sets, overlaps = [], []
    for level, filters in ours.items():
        sets.append(describe(level, "generator", filters, r2[2], oriented[2]))
        if level in theirs:
            sets.append(describe(level, "critic", theirs[level], r2[2], oriented[2]))
            overlaps.append(overlap(level, filters, theirs[level], random))
    return Features(tuple(sets), tuple(overlaps), r2, oriented)


def _quantiles(values: Float[Tensor, " n"]) -> tuple[float, float, float]:
    low, median, high = torch.quantile(values, torch.tensor([0.05, 0.5, 0.95], dtype=values.dtype)).tolist()
    return low, median, high
