"""The latent law of level 1 against its Cramér-Rao bound: pairs by simulation, then whole Gram matrices of planted targets.

**Pairs.** Two neurons s_i = (g_i - t_i)_+ of equal activation probability p and correlation rho; n samples, many trials.
Each trial is estimated as the learner does it (each neuron alone, then their correlation), and the r.m.s. errors of threshold
(bias over norm), log norm and correlation are held against the bound of the pair, all five parameters unknown. A neuron's own
estimates are, but for a small rest, linear in the sums that they are made from, with a variance that is known exactly: only the
rest is left to the simulation, and these two ratios are known ten times better than *spread* says, which is that of the
correlation's. Where fewer than 20 samples of n have both active, the bound, which is asymptotic, says little; these cells carry
no goal and are listed.

**The whole Gram matrix.** Level 1 of planted targets (4 patches of 24 channels), learned from n samples: errors of all pairs'
<V, V'> over their bounds, as estimated pair by pair and after `forwardsr.learn.gram`, which uses that a Gram matrix has no
negative eigenvalue. Pairs are split by how many samples are expected to have both active. Where the latent is short (m_0), the
learner is told so, and the matrix has that rank.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from cases.record import Record
from forwardsr.data.planted import PlantedSource
from forwardsr.learn.efficient import feature_stage, first_hidden_stage
from forwardsr.learn.latent_law import both_below, fit_neuron, fit_pairs, hazard, pair_bound
from forwardsr.learn.stream import Stream
from forwardsr.measure.certificate import gram_bound, match
from forwardsr.model.patch_generator import PatchGenerator
from forwardsr.model.plant import PlantConfig, plant

TITLE = "The latent law against its Cramér-Rao bound"
LIMIT = "Cramér-Rao bound"
GOAL = 1.05
FEW = 20.0  # samples with both active, expected: below it a pair's likelihood is far from quadratic
SEEN = "with both active"
SHARP = 0.02  # a cell whose ratio is known less well than this has no goal of its own, only its part in that of all
PROBABILITIES = (0.02, 0.05, 0.1, 0.2, 0.3)
CORRELATIONS = (-0.5, -0.2, 0.0, 0.3, 0.6, 0.9)
_BLOCK = 2**20  # pairs of samples drawn at once: they stay near the processor


def run(full: bool) -> Iterator[Record]:
    """Pairs, then whole matrices."""
    plan = [(100_000, 2500), (1_000_000, 150), (10_000_000, 8)] if full else [(100_000, 200)]
    for n, trials in plan:
        cells = []
        for p in PROBABILITIES if full else PROBABILITIES[::2]:
            for rho in CORRELATIONS if full else (-0.5, 0.3, 0.9):
                cells.append(pair(p, rho, n, trials))
                yield cells[-1]
        yield pooled(cells)
    for name, config in TARGETS.items():
        for n in (100_000, 1_000_000) if full else (100_000,):
            yield from whole(name, config, n)


def pair(p: float, rho: float, n: int, trials: int) -> Record:
    """One cell: ratios of r.m.s. errors to the bound; ``spread`` is the standard error of such a ratio."""
    t = -torch.special.ndtri(torch.tensor([p], dtype=torch.float64))
    generator = torch.Generator().manual_seed(round(1e6 * p) + round(1e3 * (rho + 1)))
    sums = torch.stack([_sums(float(t), rho, n, generator) for _ in range(trials)], -1)
    thresholds, sigma, found = estimate(sums)
    truth = torch.tensor([rho], dtype=torch.float64)
    bound = (pair_bound(t, t, truth)[0].diagonal() / n).sqrt()
    bias, norm = neuron_rms(thresholds - t, sigma.log(), t, sums, n) / bound[:2]
    error = (found - rho).square().mean().sqrt()
    ratio = {"bias": float(bias), "norm": float(norm), "correlation": float(error / bound[4])}
    both = n * float(1 - 2 * torch.special.ndtr(t) + both_below(t, t, truth))
    noise = 1 / math.sqrt(2 * trials)
    goal = dict.fromkeys(ratio, GOAL) if both >= FEW and noise < SHARP else {}
    setting = f"p = {p:g}, correlation {rho:g}" + ("" if both >= FEW else f" ({both:.2g} {SEEN})")
    return Record("latent", setting, LIMIT, "", n, float(error), None, noise, trials, ratio, goal)


def neuron_rms(bias: Tensor, norm: Tensor, t: Tensor, sums: Tensor, n: int) -> Tensor:
    """R.m.s. errors ``(2,)`` of threshold and log norm, from those of many trials ``(2, trials)``.

    The mean square is that of the linear part (the inverse information times the score at the truth), which is known, plus
    the simulated difference from it.
    """
    rate, mean, square = (torch.stack([sums[i, 2 * k + i] for i in range(2)]) for k in range(3))
    score = torch.stack([(1 - rate) * hazard(t) - mean - t * rate, square + t * mean - rate])
    covariance = pair_bound(t, t, torch.zeros_like(t))[0][:2, :2]
    linear = torch.einsum("ab,bij->aij", covariance, score)
    rest = (torch.stack([bias, norm]).square() - linear.square()).mean((1, 2))
    return (covariance.diagonal() / n + rest).sqrt()


def pooled(cells: list[Record]) -> Record:
    """The r.m.s. of the ratios over the cells in which enough samples have both active."""
    own = [cell for cell in cells if SEEN not in cell.setting]
    ratio = {name: math.sqrt(sum(c.ratio[name] ** 2 for c in own) / len(own)) for name in own[0].ratio}
    noise = 1 / math.sqrt(2 * sum(c.rounds for c in own))
    setting, goal = f"all {len(own)} cells with enough", dict.fromkeys(ratio, GOAL)
    return Record("latent", setting, LIMIT, "", own[0].n, None, None, noise, own[0].rounds, ratio, goal)


def _sums(t: float, rho: float, n: int, generator: torch.Generator) -> Tensor:
    """Products of (1, s) with (1, s, s^2) over both neurons, a sample on average: ``(4, 6)``, float64."""
    total = torch.zeros(4, 6, dtype=torch.float64)
    for start in range(0, n, _BLOCK):
        count = min(_BLOCK, n - start)
        g = torch.randn(2, count, generator=generator)
        g[1].mul_(math.sqrt(1 - rho * rho)).add_(g[0], alpha=rho)
        s = g.sub_(t).clamp_min_(0)
        all_three = torch.cat([(s > 0).float(), s, s * s])
        total += all_three[:4] @ all_three.T
    return total / n


def estimate(sums: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Thresholds ``(2, n)``, norms ``(2, n)`` and correlations ``(n,)`` of n pairs, from :func:`_sums` ``(4, 6, n)``."""
    rate, mean, square = (torch.stack([sums[i, 2 * k + i] for i in range(2)]) for k in range(3))
    t, sigma = fit_neuron(rate, mean / rate, square / rate)
    mean, square = mean / sigma, square / sigma.square()
    both = sums[0, 1]
    x = torch.stack([sums[1, 2], sums[0, 3]]) / sigma  # over samples in which both are active
    xx = torch.stack([sums[1, 4], sums[0, 5]]) / sigma.square()
    product = sums[2, 3] / (sigma[0] * sigma[1]) + t[1] * x[0] + t[0] * x[1] + t[0] * t[1] * both
    squares = (xx + 2 * t * x + t.square() * both).sum(0)
    cells = {
        "11": torch.stack([both, product, squares], -1),
        "10": torch.stack([rate[0] - both, mean[0] - x[0], square[0] - xx[0]], -1),
        "01": torch.stack([rate[1] - both, mean[1] - x[1], square[1] - xx[1]], -1),
        "00": 1 - rate[0] - rate[1] + both,
    }
    return t, sigma, fit_pairs(t[0], t[1], cells)[0]


TARGETS = {
    "standard target": PlantConfig(patches=(4,)),
    "p = 0.02 to 0.025": PlantConfig(patches=(4,), p=(0.02, 0.025)),
    "p = 0.01 to 0.012": PlantConfig(patches=(4,), p=(0.01, 0.012)),
    "m_0 = 48": PlantConfig(patches=(4,), latent=48),
    "one pair at -0.9": PlantConfig(patches=(4,), violate="identifiability", amount=0.9),
}


def whole(name: str, config: PlantConfig, n: int) -> Iterator[Record]:
    """A target's Gram matrix: pairs with enough double activations, and those with few."""
    target = plant(config)
    stream, m = Stream(PlantedSource(target), 1), target.channels[0]
    state, _, _ = feature_stage(stream, 0, m, 40_000, 0, 1)
    found, _, _ = first_hidden_stage(stream, state, n, config.latent, 2)
    order, _ = match(state["W1"].double(), target.W[0].double())
    index = (order + m * torch.arange(len(order))[:, None]).flatten()
    v, v_star = found["V1"].double().flatten(0, 1)[index], target.V[0].double().flatten(0, 1)
    truth, gram, norm = v_star @ v_star.T, v @ v.T, v.norm(dim=1)
    alone = found["rho1"][index][:, index] * norm[:, None] * norm
    bound = gram_bound(target) / math.sqrt(n)
    i, j = torch.triu_indices(len(v), len(v), 1)
    few = n * _both_active(target)[i, j] < FEW
    for what, which in ((f"at least {FEW:g} with both active", ~few), (f"fewer than {FEW:g}", few)):
        count = int(which.sum())
        if not count:
            continue
        pairs = (i[which], j[which])
        ratio = {
            "pair by pair": _rms((alone - truth)[pairs] / bound[pairs]),
            "whole matrix": _rms((gram - truth)[pairs] / bound[pairs]),
        }
        goal = {"whole matrix": GOAL} if name == "standard target" and which is not few else {}
        error = _rms((gram - truth)[pairs] / (v_star.norm(dim=1)[pairs[0]] * v_star.norm(dim=1)[pairs[1]]))
        setting = f"{name}: {count} pairs, {what}"
        yield Record("latent", setting, LIMIT, "", n, error, None, 1 / math.sqrt(2 * count), 1, ratio, goal)


def _both_active(target: PatchGenerator) -> Tensor:
    """The probability that both of a pair are active, ``(p, p)``."""
    v = target.V[0].double().flatten(0, 1)
    norm = v.norm(dim=1)
    t = target.b[0].double().flatten() / norm
    rho = ((v @ v.T) / (norm[:, None] * norm)).clamp(-0.999, 0.999)
    one, other = t[:, None].expand_as(rho), t.expand_as(rho)
    below = both_below(one.flatten(), other.flatten(), rho.flatten()).view_as(rho)
    return 1 - torch.special.ndtr(one) - torch.special.ndtr(other) + below


def _rms(x: Tensor) -> float:
    return float(x.square().mean().sqrt())
