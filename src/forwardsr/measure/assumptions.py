r"""The audit of Assumptions 2.2 and 2.3: every quantity they bound, estimated from samples, with confidence intervals.

The assumptions are asymptotic; each ``poly(.)`` is a number here (:class:`AuditSettings`). For level l let
``k_l`` be the least k with ``Pr[|S_lj|_0 > k] <= whp`` for every patch, but at least log m. With m = m_l, the worst patch and
channels are held to:

====================  =============================================================  ==========================
row                   quantity                                                       bound
====================  =============================================================  ==========================
probability           Pr[S_p != 0]                                                   k / m
mean                  E[S_p]                                                         >= 1 / (k^2 m)
sup                   |S|_inf, its 1 - whp quantile                                  k^2
sparsity              |S|_0, its 1 - whp quantile                                    m / 2 (k_l << m_l)
pairs (epsilon_1)     Pr[S_p > 0, S_q > 0]                                           2 k / m^2
triples (epsilon_2)   Pr[S_p, S_q, S_r > 0]                                          m^-2.01
anti-concentration    Pr[S_p <= delta | S_p > 0] / delta                             k
anti-concentration 2  Pr[S_p <= delta | S_p > 0, S_q > 0] / delta                    k
non-degeneracy        sigma_min(mu), mu_pq = E[1[S_p > 0] S_q]                       >= m^-1.15
pair range (l = 1)    Pr[S_p, S_q > 0] / min(Pr[S_p > 0], Pr[S_q > 0]), all patches  in [5e-4, 0.9]
orthonormal           max |W^T W - I| (§2.1)                                         1e-4
====================  =============================================================  ==========================

A row **passes** where the whole confidence interval of every entry keeps the bound, **fails** where one is beyond it, and is
**unresolved** otherwise: more samples decide. Intervals are simultaneous over a row's entries (Bonferroni): Wilson's for
probabilities, normal for means, Student's over groups of samples for sigma_min (linearised at its singular vectors).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch
from rich.table import Table
from scipy.stats import norm, t
from torch import Tensor

from forwardsr.measure.coactivation import SUP_EDGES, LevelCounts, kept_patches, patch_form
from forwardsr.measure.draws import example_weight
from forwardsr.measure.intervals import both_active, wilson
from forwardsr.model.patch_generator import PatchGenerator
from forwardsr.model.protocol import LayeredGenerator

Status = Literal["pass", "fail", "unresolved"]


@dataclass(frozen=True)
class AuditSettings:
    """The numbers that stand for the assumptions' asymptotics; every ``poly(k)`` is ``factor * k ** power``."""

    whp: float = 1e-3
    """'With high probability' is 1 - whp: what 1e5 samples can see."""
    confidence: float = 0.95
    """Of every row as a whole."""
    probability_power: float = 1.0
    """Pr <= k^power / m: k active channels spread evenly."""
    mean_power: float = 2.0
    """E >= 1 / (k^power m): one k for the probability, one for the size while active."""
    sup_power: float = 2.0
    """|S|_inf <= k^power: a Gaussian tail of mean 1 stays far below."""
    sparsity: float = 0.5
    """k_l <= sparsity * m_l stands for k_l << m_l."""
    pair_factor: float = 2.0
    """epsilon_1 = factor * k / m^2: at m = 24, p = 0.1 independence reaches 0.4 of it, a correlation of 0.5 breaks it."""
    triple_power: float = 2.01
    """epsilon_2 = m^-power, the paper's own number."""
    concentration_power: float = 1.0
    """Density at zero, given activity, <= k^power; a thresholded Gaussian of mean 1 has about 0.9."""
    deltas: tuple[float, ...] = (0.05, 0.1, 0.2)
    """The delta at which it is measured, in the units of S; smaller ones are seen too rarely."""
    sigma_power: float = 1.15
    """sigma_min(mu) >= m^-power, the paper's own number."""
    pair_floor: float = 5e-4
    """Below it (at p = 0.08 a correlation of -0.65) a million samples hold some 40 joint activations, or fewer."""
    pair_ceiling: float = 0.9
    """Above it two neurons are one."""
    orthonormal: float = 1e-4
    """float32 keeps 1e-6."""
    max_patches: int = 256
    """Patches of a level looked at, evenly spaced, where it has more."""


@dataclass(frozen=True)
class AuditRow:
    """One quantity at one level: its worst entry ``value`` in ``[low, high]``, held to ``bound`` from the side ``sign``."""

    level: int
    name: str
    value: float
    low: float
    high: float
    sign: Literal["<=", ">="]
    bound: float
    status: Status
    where: str


@dataclass(frozen=True)
class LevelSummary:
    """What the samples imply at one level: k_l, epsilon_1, epsilon_2 (largest frequencies seen) and sigma_min(mu)."""

    level: int
    m: int
    k: int
    epsilon_1: float
    epsilon_2: float
    sigma_min: float


@dataclass(frozen=True)
class AssumptionAudit:
    """Rows and summaries of all levels, from ``n`` samples."""

    n: int
    rows: tuple[AuditRow, ...]
    levels: tuple[LevelSummary, ...]
    settings: AuditSettings = field(default_factory=AuditSettings)

    @property
    def holds(self) -> bool:
        """Every row passes."""
        return all(row.status == "pass" for row in self.rows)

    def failed(self, status: Status = "fail") -> set[tuple[int, str]]:
        """``(level, row name)`` of the rows with this status."""
        return {(row.level, row.name) for row in self.rows if row.status == status}

    def table(self) -> Table:
        """The audit as a table for a terminal."""
        table = Table(title=f"Assumptions 2.2 and 2.3 on {self.n:,} samples")
        for heading in ("level", "quantity", "worst", "interval", "bound", "", "where"):
            table.add_column(heading)
        colour = {"pass": "green", "fail": "bold red", "unresolved": "yellow"}
        for summary in self.levels:
            for r in (r for r in self.rows if r.level == summary.level):
                mark = f"[{colour[r.status]}]{r.status}[/]"
                interval = f"{r.low:.3g} .. {r.high:.3g}"
                table.add_row(
                    str(r.level), r.name, f"{r.value:.3g}", interval, f"{r.sign} {r.bound:.3g}", mark, r.where
                )
            implied = (
                f"k = {summary.k}, m = {summary.m}, eps1 = {summary.epsilon_1:.2g}, eps2 = {summary.epsilon_2:.2g}"
            )
            table.add_row("", "implied", implied, end_section=True)
        return table

    def to_json(self) -> dict[str, Any]:
        """The audit as values that JSON can hold: ``n``, ``holds``, ``rows``, ``levels``, ``settings``."""
        return asdict(self) | {"holds": self.holds}


@torch.no_grad()
def audit(
    generator: LayeredGenerator,
    n: int = 300_000,
    seed: int = 0,
    settings: AuditSettings | None = None,
    chunk: int = 1024,
) -> AssumptionAudit:
    """Hold a generator's hidden layers, of either form, to Assumptions 2.2 and 2.3, on ``n`` samples streamed by ``chunk``.

    All randomness comes from ``seed``. Level 1 of a :class:`PatchGenerator` with plain ReLU is Gaussian before its threshold,
    so its pair range is computed exactly instead of sampled (else over at most 4096 neurons).
    """
    settings = settings or AuditSettings()
    random = torch.Generator().manual_seed(seed)
    like = example_weight(generator)
    counts: list[LevelCounts] = []
    kept: list[list[int]] = []
    across: Tensor | None = None
    for start in range(0, n, chunk):
        z = torch.randn(min(chunk, n - start), generator.latent_dim, generator=random).to(like)
        hidden = generator.hidden(z)
        layers = [patch_form(S, settings.max_patches) for S in hidden]
        kept = kept or [
            kept_patches(S.shape[1] if S.ndim == 3 else S[0, 0].numel(), settings.max_patches) for S in hidden
        ]
        counts = counts or [LevelCounts(len(S), S.shape[2], settings.deltas) for S in layers]
        for level, S in zip(counts, layers, strict=True):
            level.add(S)
        A = (layers[0][: max(1, 4096 // layers[0].shape[2])] > 0).float().transpose(0, 1).flatten(1)
        across = A.T @ A if across is None else across + A.T @ A
    assert across is not None
    rows: list[AuditRow] = []
    levels: list[LevelSummary] = []
    for l, level in enumerate(counts, start=1):
        judged = _Judge(l, level, settings, kept[l - 1])
        rows += judged.rows()
        levels.append(judged.summary())
        if l == 1:
            rows += _pair_range(generator, across.cpu().double(), settings, level.active.shape[1], kept[0])
        if isinstance(generator, PatchGenerator):
            W = generator.W[l - 1].double()
            error = (W.mT @ W - torch.eye(W.shape[2], dtype=W.dtype, device=W.device)).abs().cpu()
            rows.append(_row(l, "orthonormal", (error, error, error), "<=", settings.orthonormal))
    return AssumptionAudit(n, tuple(rows), tuple(levels), settings)


Place = Callable[[list[int]], str]


def _place(at: list[int]) -> str:
    return f"patch {at[0]}" + (f", channels {at[1:]}" if at[1:] else "")


def _row(
    level: int,
    name: str,
    entries: tuple[Tensor, Tensor, Tensor],
    sign: Literal["<=", ">="],
    bound: float,
    place: Place = _place,
) -> AuditRow:
    """Judge every entry, given as (value, low, high), against one bound; report the worst, named by its index."""
    value, low, high = entries
    at_most = sign == "<="
    beyond, within = (
        ((low > bound).any(), (high <= bound).all()) if at_most else ((high < bound).any(), (low >= bound).all())
    )
    status: Status = "fail" if beyond else "pass" if within else "unresolved"
    at = value.argmax() if at_most else value.argmin()
    where = place([int(i) for i in torch.unravel_index(at, value.shape)])
    worst, lowest, highest = (float(x.flatten()[at]) for x in entries)
    return AuditRow(level, name, worst, lowest, highest, sign, bound, status, where)


class _Judge:
    """The rows of one level, whose counts are of the patches ``kept``."""

    def __init__(self, level: int, counts: LevelCounts, settings: AuditSettings, kept: list[int]) -> None:
        self.level, self.c, self.s, self.kept = level, counts, settings, kept
        self.m = counts.active.shape[1]
        tail = counts.l0.flip(1).cumsum(1).flip(1)  # how often |S|_0 >= k
        beyond = torch.cat([tail[:, 1:], torch.zeros(len(tail), 1, dtype=tail.dtype)], 1)
        self.beyond_k = beyond  # how often |S|_0 > k
        self.k = max(int(((beyond / counts.n) > settings.whp).sum(1).max()), math.ceil(math.log(self.m)))
        self.mu = counts.mu.sum(0) / counts.n
        off = ~torch.eye(self.m, dtype=torch.bool)
        self.pair = counts.pair * off

    def summary(self) -> LevelSummary:
        triple = float(self.c.triple.max()) / self.c.n if self.c.triple.numel() else 0.0
        sigma = float(torch.linalg.svdvals(self.mu).min())
        return LevelSummary(self.level, self.m, self.k, float(self.pair.max()) / self.c.n, triple, sigma)

    def _place(self, at: list[int]) -> str:
        return _place([self.kept[at[0]], *at[1:]])

    def _z(self, entries: int) -> float:
        return float(norm.isf((1 - self.s.confidence) / (2 * max(entries, 1))))

    def _frequency(
        self,
        name: str,
        count: Tensor,
        n: Tensor | int,
        bound: float,
        scale: Tensor | float = 1.0,
        place: Place | None = None,
    ) -> AuditRow:
        low, high = wilson(count, n, self._z(count.numel()))
        value = count / torch.as_tensor(n, dtype=torch.float64).clamp(min=1)
        return _row(self.level, name, (value / scale, low / scale, high / scale), "<=", bound, place or self._place)

    def rows(self) -> list[AuditRow]:
        c, s, k, m = self.c, self.s, self.k, self.m
        mean = c.total / c.n
        half = self._z(mean.numel()) * ((c.square / c.n - mean**2).clamp(min=0) / c.n).sqrt()
        rows = [
            self._frequency("probability", c.active, c.n, k**s.probability_power / m),
            _row(self.level, "mean", (mean, mean - half, mean + half), ">=", 1 / (k**s.mean_power * m), self._place),
            self._quantile(
                "sup", _beyond(c.sup), lambda q: float(SUP_EDGES[min(q, len(SUP_EDGES) - 1)]), k**s.sup_power
            ),
            self._quantile("sparsity", self.beyond_k, float, s.sparsity * m),
            self._sigma(),
        ]
        deltas, density = c.deltas.double()[:, None, None], k**s.concentration_power
        given = c.active.expand_as(c.small)
        rows.append(self._frequency("anti-concentration", c.small, given, density, deltas, self._at_delta(None)))
        if m >= 2:
            off = ~torch.eye(m, dtype=torch.bool)
            small, given = c.small_pair[:, :, off], self.pair[:, off].expand(len(c.deltas), -1, -1)
            place = self._at_delta(off.nonzero())
            rows.append(self._frequency("anti-concentration 2", small, given, density, deltas, place))
            rows.append(self._frequency("pairs", self.pair, c.n, s.pair_factor * k / m**2))
        if m >= 3:
            place = lambda at: self._place([at[0], *c.index[at[1]].tolist()])  # noqa: E731
            rows.append(self._frequency("triples", c.triple, c.n, m**-s.triple_power, place=place))
        return rows

    def _at_delta(self, pairs: Tensor | None) -> Place:
        def place(at: list[int]) -> str:
            delta, patch, entry = at
            channels = [entry] if pairs is None else pairs[entry].tolist()
            return f"{self._place([patch, *channels])}, delta {float(self.c.deltas[delta]):.3g}"

        return place

    def _quantile(self, name: str, beyond: Tensor, number: Callable[[int], float], bound: float) -> AuditRow:
        """The 1 - whp quantile of a histogram, in the units of ``number(bin)``; its interval inverts Wilson's."""
        low, high = wilson(beyond, self.c.n, self._z(len(beyond)))
        bins = [(x > self.s.whp).sum(1) for x in (beyond / self.c.n, low, high)]
        value, lowest, highest = (torch.tensor([number(int(i)) for i in x], dtype=torch.float64) for x in bins)
        return _row(self.level, name, (value, lowest, highest), "<=", bound, self._place)

    def _sigma(self) -> AuditRow:
        U, sigma, Vh = torch.linalg.svd(self.mu)
        seen = self.c.mu_n > 0
        groups = self.c.mu[seen] / self.c.mu_n[seen, None, None, None]
        values = torch.einsum("jp,gjpq,jq->gj", U[:, :, -1], groups, Vh[:, -1])
        width = float(t.isf((1 - self.s.confidence) / (2 * len(sigma)), max(len(values) - 1, 1))) / math.sqrt(
            len(values)
        )
        half = values.std(0) * width if len(values) > 1 else torch.full_like(sigma[:, -1], math.inf)
        least = sigma[:, -1]
        entries = (least, least - half, least + half)
        return _row(self.level, "non-degeneracy", entries, ">=", self.m**-self.s.sigma_power, self._place)


def _beyond(histogram: Tensor) -> Tensor:
    """How often a value falls in a later bin."""
    return histogram.sum(1, keepdim=True) - histogram.cumsum(1)


def _pair_range(
    generator: LayeredGenerator, joint: Tensor, settings: AuditSettings, m: int, kept: list[int]
) -> list[AuditRow]:
    """Both sides of the last condition of Assumption 2.3, over all pairs of neurons of level 1; ``joint`` is of the patches
    ``kept``.
    """
    exact = isinstance(generator, PatchGenerator) and generator.activation.zeta == 0
    if isinstance(generator, PatchGenerator) and exact:
        V, b = generator.V[0].flatten(0, 1).double().cpu(), generator.b[0].flatten().double().cpu()
        norms = V.norm(dim=1)
        first, second = torch.triu_indices(len(b), len(b), 1)
        rho = ((V @ V.T) / torch.outer(norms, norms))[first, second].clamp(-0.999, 0.999)
        threshold = b / norms
        higher = torch.maximum(threshold[first], threshold[second])
        blocks = zip(threshold[first].split(2**17), threshold[second].split(2**17), rho.split(2**17), strict=True)
        value = torch.cat([both_active(*block) for block in blocks]) / torch.special.ndtr(-higher)
        entries = (value, value, value)
    else:
        n = joint.diagonal()
        first, second = torch.triu_indices(len(n), len(n), 1)
        both, given = joint[first, second], torch.minimum(n[first], n[second])
        low, high = wilson(both, given, float(norm.isf((1 - settings.confidence) / (2 * max(len(both), 1)))))
        entries = (both / given.clamp(min=1), low, high)
    if not len(first):
        return []

    def place(at: list[int]) -> str:
        (j, r), (i, q) = divmod(int(first[at[0]]), m), divmod(int(second[at[0]]), m)
        if not exact:
            j, i = kept[j], kept[i]
        return f"patch {j} channel {r}, patch {i} channel {q}" + (" (exact)" if exact else "")

    return [
        _row(1, "pair floor", entries, ">=", settings.pair_floor, place),
        _row(1, "pair ceiling", entries, "<=", settings.pair_ceiling, place),
    ]
