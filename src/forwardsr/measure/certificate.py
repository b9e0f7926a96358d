r"""The certificate: a learned network held against its planted target, lemma by lemma and by Theorem 5.1 (paper, §5).

A network is known up to the order of its channels and a rotation of its latent. So first, patch by patch, the permutation that
matches columns of W (assignment on their cosines), carried through V and b; then

.. math:: U = \arg\min_{U U^\top = I} \|V_1 - V_1^* U\|_F = A B^\top, \qquad {V_1^*}^\top V_1 = A \Sigma B^\top,

an m_0 x m_0' matrix with orthonormal rows, so that Uz is standard Gaussian. (Where m_0' < m_0, V_1 is first given zero columns.)
The rows of the table are then the left sides of

=======  ================================================================================================
A.1      columns of the warm start of W, where it is given
B.2      columns of W
C.6      one neuron's law: norm of V_1, bias, probability and mean (closed forms of the Gaussian), relative
C.10     inner products of rows of V_1, within a patch and across; and in units of the Cramér-Rao bound
C.18     ``V_1 - V_1* U``, a row, relative to the row
D.10     V_l and b_l, l > 1, relative to each channel's weights (no U: V_l acts on S_(l-1))
D.2      ``|S_l(z) - S_l*(Uz)|`` over fresh z, a channel, relative to the r.m.s. of the level's active channels
5.1      ``||G*(Uz) - G(z)||`` over fresh z, per level and for all levels together
=======  ================================================================================================

Everything is computed in float64, so what is left is the learner's error.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int64
from rich.table import Table
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from forwardsr.errors import UserError
from forwardsr.learn.gram import with_columns
from forwardsr.learn.latent_law import pair_bound
from forwardsr.model.patch_generator import PatchGenerator

_CHUNK = 1024  # z at once, at most
_NUMBERS = 2**24  # of all levels at once: 128 MiB in float64
UNMATCHED = 0.5  # cosine below which a column is nobody's
_POINTS = 100  # of a curve in the JSON


@dataclass(frozen=True)
class Row:
    """One error: its r.m.s. and its largest value, over the entries named by ``quantity``; ``where`` the largest is."""

    lemma: str
    level: int
    quantity: str
    rms: float
    worst: float
    where: str


@dataclass(frozen=True)
class Curve:
    """Theorem 5.1 at one level (``None``: all together): the error of every fresh z, ascending, absolute and over ``||G*||``.

    ``relative`` leaves out the z for which G* is zero at that level. ``scale``: r.m.s. of ``||G*||``.
    """

    level: int | None
    absolute: Float[Tensor, " n"]
    relative: Float[Tensor, " k"]
    scale: float

    def probability(self, epsilon: float, relative: bool = True) -> float:
        """``Pr[error <= epsilon]``."""
        errors = self.relative if relative else self.absolute
        return float((errors <= epsilon).double().mean()) if len(errors) else 1.0

    def quantile(self, probability: float, relative: bool = True) -> float:
        """The error that this share of z keeps to."""
        errors = self.relative if relative else self.absolute
        return float(errors.quantile(probability)) if len(errors) else 0.0


@dataclass(frozen=True)
class Certificate:
    """All errors of a learned network. ``unmatched``: (level, patch, channel) of target columns that nothing stands for.

    ``learned``: the learned network in the target's order of channels; ``U`` ``(m_0, m_0')``; both float64.
    """

    n: int
    rows: tuple[Row, ...]
    curves: tuple[Curve, ...]
    unmatched: tuple[tuple[int, int, int], ...]
    learned: PatchGenerator
    U: Tensor

    @property
    def total(self) -> Curve:
        """Theorem 5.1 as it stands, all levels together."""
        return self.curves[-1]

    def find(self, lemma: str, level: int, quantity: str) -> Row:
        """The row of that name. Raises ``KeyError``."""
        for row in self.rows:
            if (row.lemma, row.level, row.quantity) == (lemma, level, quantity):
                return row
        raise KeyError((lemma, level, quantity))

    def table(self) -> Table:
        """The certificate as a table for a terminal."""
        table = Table(title=f"Certificate, on {self.n:,} fresh z")
        for heading in ("lemma", "level", "error", "r.m.s.", "worst", "where"):
            table.add_column(heading)
        for row in self.rows:
            table.add_row(row.lemma, str(row.level), row.quantity, f"{row.rms:.3g}", f"{row.worst:.3g}", row.where)
        table.add_section()
        for curve in self.curves:
            which = "all" if curve.level is None else str(curve.level)
            name = "|G*(Uz) - G(z)| / |G*|"
            percent = f"median {100 * curve.quantile(0.5):.3g} %, 95th percentile {100 * curve.quantile(0.95):.3g} %"
            rms = float(curve.absolute.square().mean().sqrt()) / max(curve.scale, 1e-30)
            table.add_row("5.1", which, name, f"{rms:.3g}", f"{curve.quantile(1.0):.3g}", percent)
        for level, j, r in self.unmatched:
            table.add_row("", str(level), "unmatched", "", "", f"patch {j}, channel {r}")
        return table

    def to_json(self) -> dict[str, Any]:
        """Plain values: ``n``, ``rows``, ``unmatched`` and ``curves``, with the errors at 0, 1, ... 100 % of z."""
        points = torch.linspace(0, 1, _POINTS + 1, dtype=torch.float64)

        def quantiles(errors: Tensor) -> list[float]:
            return errors.quantile(points).tolist() if len(errors) else [0.0] * len(points)

        curves = [
            {
                "level": curve.level,
                "scale": curve.scale,
                "probability": points.tolist(),
                "absolute": quantiles(curve.absolute),
                "relative": quantiles(curve.relative),
            }
            for curve in self.curves
        ]
        rows = [vars(row) for row in self.rows]
        return {"n": self.n, "rows": rows, "curves": curves, "unmatched": [list(u) for u in self.unmatched]}


@torch.no_grad()
def certify(
    learned: PatchGenerator,
    target: PatchGenerator,
    n: int = 10_000,
    seed: int = 0,
    warm: Mapping[str, Tensor] | None = None,
    samples: int | None = None,
) -> Certificate:
    """Hold ``learned`` against ``target`` on ``n`` fresh z.

    ``warm``: a learning's state, whose ``W{l}.warm`` are held to Lemma A.1. ``samples``: how many samples the latent law was
    learned from, where the state does not say (``samples1``: finite data may hold fewer than were asked for); with it the Gram
    matrix's errors are also given in units of their Cramér-Rao bound. ``seed`` makes the z.

    Raises ``UserError`` where the two differ in sizes or graph.
    """
    _check(learned, target)
    if warm is not None and "samples1" in warm:
        samples = int(warm["samples1"])
    learned, target = (g.map("cpu", torch.float64) for g in (learned, target))
    orders, cosines = zip(*(match(w, w_star) for w, w_star in zip(learned.W, target.W, strict=True)))
    aligned = reorder(learned, list(orders), target.latent_dim)
    U = rotation(aligned.V[0], target.V[0])
    unmatched = [
        (l, int(j), int(r)) for l, cosine in enumerate(cosines, start=1) for j, r in (cosine < UNMATCHED).nonzero()
    ]
    rows = [*_features(aligned, target, warm), *_first(aligned, target, U, samples), *_higher(aligned, target)]
    hidden, curves = _fresh(aligned, target, U, n, seed)
    return Certificate(n, (*rows, *hidden), curves, tuple(unmatched), aligned, U)


def _check(learned: PatchGenerator, target: PatchGenerator) -> None:
    if learned.shapes != target.shapes or learned.channels != target.channels:
        raise UserError(
            f"--target: its patches {target.shapes} and channels {target.channels} are not those of the run, "
            f"{learned.shapes} and {learned.channels}; give the target that the run learned"
        )
    for l, (a, b) in enumerate(zip(learned.parents, target.parents, strict=True), start=1):
        if a is not None and b is not None and not torch.equal(a, b):
            raise UserError(
                f"--target: its graph of level {l} is not that of the run; give the target that the run learned"
            )


def match(
    w: Float[Tensor, "k d m"], w_star: Float[Tensor, "k d m"]
) -> tuple[Int64[Tensor, "k m"], Float[Tensor, "k m"]]:
    """Of every patch, the learned column that stands for each true one, and the cosine between them."""
    unit, unit_star = (x / x.norm(dim=1, keepdim=True).clamp_min(1e-30) for x in (w, w_star))
    cosine = unit_star.mT @ unit
    order = torch.stack([torch.from_numpy(linear_sum_assignment(-c.numpy())[1]) for c in cosine])
    return order, cosine.gather(2, order[:, :, None])[:, :, 0]


def reorder(g: PatchGenerator, orders: list[Tensor], latent_dim: int = 0) -> PatchGenerator:
    """The same function with channel ``orders[l][j, r]`` of every patch in place r, and at least ``latent_dim`` latents."""
    W, V, b = [], [], []
    for l, (w, v, bias, order, graph) in enumerate(zip(g.W, g.V, g.b, orders, g.parents, strict=True)):
        W.append(w.gather(2, order[:, None, :].expand_as(w)))
        b.append(bias.gather(1, order))
        if l == 0:
            rows = v.gather(1, order[:, :, None].expand_as(v)).flatten(0, 1)
            V.append(with_columns(rows, max(latent_dim, rows.shape[1])).view(*order.shape, -1))
        else:
            assert graph is not None
            rows = v.gather(2, order[:, None, :, None].expand_as(v))
            V.append(rows.gather(3, orders[l - 1][graph][:, :, None, :].expand_as(rows)))
    return PatchGenerator(W, V, b, g.parents, g.activation)


def rotation(v: Float[Tensor, "k m q"], v_star: Float[Tensor, "k m m0"]) -> Float[Tensor, "m0 q"]:
    """The U with orthonormal rows nearest to ``V_1 = V_1* U``; ``q >= m0``."""
    a, _, bh = torch.linalg.svd(v_star.flatten(0, 1).mT @ v.flatten(0, 1), full_matrices=False)
    return a @ bh


def _row(lemma: str, level: int, quantity: str, errors: Tensor) -> Row:
    """``errors``: any shape whose first two dimensions are patch and channel."""
    if errors.numel() == 0:
        return Row(lemma, level, quantity, 0.0, 0.0, "")
    at = torch.unravel_index(errors.argmax(), errors.shape)
    where = ", ".join(f"{axis} {int(i)}" for axis, i in zip(("patch", "channel"), at))
    return Row(lemma, level, quantity, float(errors.square().mean().sqrt()), float(errors.max()), where)


def _features(learned: PatchGenerator, target: PatchGenerator, warm: Mapping[str, Tensor] | None) -> list[Row]:
    rows = []
    for l, (w, w_star) in enumerate(zip(learned.W, target.W, strict=True), start=1):
        if warm is not None and f"W{l}.warm" in warm:
            start = warm[f"W{l}.warm"].double()
            order, _ = match(start, w_star)
            start = start.gather(2, order[:, None, :].expand_as(start))
            rows.append(_row("A.1", l, "columns of the warm start", (start - w_star).norm(dim=1)))
        rows.append(_row("B.2", l, "columns of W", (w - w_star).norm(dim=1)))
    return rows


def _first(learned: PatchGenerator, target: PatchGenerator, U: Tensor, samples: int | None) -> list[Row]:
    v, v_star = learned.V[0], target.V[0]
    k, m, _ = v_star.shape
    alpha, alpha_star = v.norm(dim=2), v_star.norm(dim=2)
    b, b_star = learned.b[0], target.b[0]
    law, law_star = _neuron_law(alpha, b), _neuron_law(alpha_star, b_star)
    rows = [
        _row("C.6", 1, "norms of V_1, relative", (alpha / alpha_star - 1).abs()),
        _row("C.6", 1, "biases, relative", (b - b_star).abs() / torch.maximum(b_star.abs(), alpha_star)),
        _row("C.6", 1, "Pr[S > 0], relative", (law[0] / law_star[0] - 1).abs()),
        _row("C.6", 1, "E[S], relative", (law[1] / law_star[1] - 1).abs()),
    ]
    flat, flat_star = v.flatten(0, 1), v_star.flatten(0, 1)
    error = (flat @ flat.mT - flat_star @ flat_star.mT).abs()
    scale = alpha_star.flatten()[:, None] * alpha_star.flatten()
    patch = torch.arange(k * m) // m
    same, other = torch.triu(patch[:, None] == patch, 1), torch.triu(patch[:, None] != patch, 1)
    relative = error / scale
    for name, which in (("within a patch", same), ("across patches", other)):
        masked = torch.where(which, relative, torch.nan)
        rows.append(_pairs("C.10", f"<V, V'> {name}, relative to norms", masked, m))
    if samples is not None and k * m > 1:
        bound = gram_bound(target) / math.sqrt(samples)
        rows.append(
            _pairs("C.10", "<V, V'>, in Cramér-Rao bounds", torch.where(same | other, error / bound, torch.nan), m)
        )
    rows.append(_row("C.18", 1, "rows of V_1 - V_1* U, relative", (v - v_star @ U).norm(dim=2) / alpha_star))
    return rows


def _pairs(lemma: str, quantity: str, errors: Tensor, m: int) -> Row:
    known = errors[~errors.isnan()]
    if not len(known):
        return Row(lemma, 1, quantity, 0.0, 0.0, "")
    i, j = (int(x) for x in torch.unravel_index(errors.nan_to_num(-1.0).argmax(), errors.shape))
    where = f"patch {i // m}, channel {i % m} and patch {j // m}, channel {j % m}"
    return Row(lemma, 1, quantity, float(known.square().mean().sqrt()), float(known.max()), where)


def _neuron_law(alpha: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """``Pr[S > 0]`` and ``E[S]`` of ``S = (alpha g - b)_+``."""
    t = b / alpha
    p = torch.special.ndtr(-t)
    return p, alpha * (torch.exp(-t.square() / 2) / math.sqrt(2 * math.pi) - t * p)


def gram_bound(target: PatchGenerator) -> Float[Tensor, "p p"]:
    """The Cramér-Rao bound of one sample on every inner product of two rows of V_1, from the pair alone (infinite diagonal).

    Marginals are unknown too: the delta method on ``sigma sigma' rho``. It is the bound of pairs: all neurons together could
    tell a little more.
    """
    v = target.V[0].double().flatten(0, 1)
    sigma, p = v.norm(dim=1), len(v)
    t = target.b[0].double().flatten() / sigma
    i, j = torch.triu_indices(p, p, 1)
    scale = sigma[i] * sigma[j]
    rho = ((v @ v.mT)[i, j] / scale).clamp(-0.999, 0.999)
    slope = torch.stack([torch.zeros_like(rho), scale * rho, torch.zeros_like(rho), scale * rho, scale], -1)
    bound = (slope[:, None, :] @ pair_bound(t[i], t[j], rho) @ slope[:, :, None])[:, 0, 0].clamp_min(0).sqrt()
    full = torch.full((p, p), torch.inf, dtype=torch.float64)
    full[i, j] = full[j, i] = bound
    return full


def _higher(learned: PatchGenerator, target: PatchGenerator) -> list[Row]:
    rows = []
    for l in range(1, len(learned.W)):
        v, v_star, b, b_star = learned.V[l], target.V[l], learned.b[l], target.b[l]
        size = v_star.square().sum((1, 3)).sqrt().clamp_min(1e-30)
        rows.append(_row("D.10", l + 1, "V, relative", (v - v_star).square().sum((1, 3)).sqrt() / size))
        rows.append(_row("D.10", l + 1, "b, relative to V", (b - b_star).abs() / size))
    return rows


def _fresh(
    learned: PatchGenerator, target: PatchGenerator, U: Tensor, n: int, seed: int
) -> tuple[list[Row], tuple[Curve, ...]]:
    generator = torch.Generator().manual_seed(seed)
    levels = len(learned.W)
    square: list[list[Tensor]] = [[] for _ in range(levels)]
    size: list[list[Tensor]] = [[] for _ in range(levels)]
    gaps = [torch.zeros(b.shape, dtype=torch.float64) for b in learned.b]
    active, count = [torch.zeros(2, dtype=torch.float64) for _ in range(levels)], 0
    chunk = max(1, min(_CHUNK, _NUMBERS // sum(k * d for k, d in learned.shapes)))
    for start in range(0, n, chunk):
        z = learned.latents(min(chunk, n - start), generator)
        mine, theirs = learned.hidden(z), target.hidden(z @ U.mT)
        count += len(z)
        for l, (s, s_star) in enumerate(zip(mine, theirs, strict=True)):
            gaps[l] += (s - s_star).square().sum(0)
            active[l] += torch.stack([s_star.square().sum(), (s_star > 0).sum().double()])
        for l, (x, x_star) in enumerate(zip(learned.render(mine), target.render(theirs), strict=True)):
            square[l].append((x - x_star).square().sum((1, 2)))
            size[l].append(x_star.square().sum((1, 2)))
    rows = []
    for l in range(levels):
        unit = (active[l][0] / active[l][1].clamp_min(1)).sqrt().clamp_min(1e-30)
        rate = active[l][1] / (count * gaps[l].numel())
        error = (gaps[l] / count / rate.clamp_min(1e-30)).sqrt() / unit
        rows.append(_row("D.2" if l else "C.18", l + 1, "S - S*(Uz), relative to active channels", error))
    squares, sizes = [torch.cat(x) for x in square], [torch.cat(x) for x in size]
    curves = [_curve(l + 1, squares[l], sizes[l]) for l in range(levels)]
    curves.append(_curve(None, torch.stack(squares).sum(0), torch.stack(sizes).sum(0)))
    return rows, tuple(curves)


def _curve(level: int | None, square: Tensor, size: Tensor) -> Curve:
    error, norm = square.sqrt(), size.sqrt()
    relative = (error / norm)[norm > 0]
    return Curve(level, error.sort().values, relative.sort().values, float(size.mean().sqrt()))
