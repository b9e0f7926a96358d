r"""What all neurons of the first layer together could tell of its law: the limit of Theorem 5.1's error at so many samples.

The learner fits correlations pair by pair (:mod:`forwardsr.learn.latent_law`) and stands at the Cramér-Rao bound of pairs. The
likelihood of a whole sample knows more: with :math:`h \sim N(\mu, \Sigma)` in the p neurons' pre-activations and :math:`s = h_+`
observed, its score is, in coordinates in which :math:`\Sigma = I`,

.. math:: \tfrac12\, (E[h h^\top \mid s] - I), \qquad E[h \mid s],

and the covariance of the score over samples is the Fisher information of :math:`(\Sigma, \mu)`, all :math:`p(p+3)/2` unknowns. The
posterior is that of a Gaussian whose active coordinates are known and whose others are below a threshold; its moments are taken
by expectation propagation (Minka 2001; two sweeps, each with the exact p x p solve), which for so weak a truncation is exact to a
few thousandths: ``slope`` is the regression of the complete data's score, whose conditional mean is the true score, on the
approximate one, and would be 1.

An efficient estimator's score at the truth is N(0, information / n). Such scores are drawn, the estimate is found as the learner
finds it (unit rows, the same barrier), and the generator with this first layer and all else true is held to Theorem 5.1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from forwardsr.learn.gram import BARRIER
from forwardsr.learn.joint_score import Law, law_of
from forwardsr.learn.latent_law import hazard
from forwardsr.measure.certificate import certify
from forwardsr.model.patch_generator import PatchGenerator
from forwardsr.model.plant import PlantConfig, plant
from theorem_trial import Line

CHUNK = 2000  # samples whose p x p covariances are held at once
FLOOR = 1e-4  # added to the truth's correlations, whose least eigenvalues are smaller than float32 resolves


def limit(
    targets: Sequence[int] = range(10), samples: int = 1_000_000, scored: int = 60_000, draws: int = 3
) -> list[Line]:
    """A line a target: median and 95th percentile (mean over ``draws``) of an efficient estimator at ``samples``."""
    lines = []
    for seed in targets:
        target = plant(PlantConfig(seed=seed))
        information, slope, bias = fisher_information(target, scored, seed)
        quantiles = []
        for draw in range(draws):
            learned = _learned(target, _estimate(information, target, samples, draw))
            total = certify(learned, target, 10_000, seed).total
            quantiles.append([100 * total.quantile(0.5), 100 * total.quantile(0.95)])
        median, tail = np.mean(quantiles, 0)
        line = {"what": f"seed {seed}", "samples": samples, "slope": slope, "bias": bias, "median %": median, "95th %": tail,
                "95th % least": min(q[1] for q in quantiles), "95th % largest": max(q[1] for q in quantiles)}  # fmt: skip
        print(", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in line.items()), flush=True)
        lines.append(line)
    return lines


def _law(target: PatchGenerator) -> Law:
    """Of level 1, its least eigenvalues raised."""
    v = target.V[0].double().flatten(0, 1)
    norm = v.norm(dim=1)
    correlation = (v @ v.T) / norm[:, None] / norm + FLOOR * torch.eye(len(v), dtype=torch.float64)
    values, axes = torch.linalg.eigh(correlation / (1 + FLOOR))
    return law_of(axes * values.sqrt(), target.b[0].double().flatten() / norm)


def fisher_information(target: PatchGenerator, n: int, seed: int) -> tuple[Tensor, float, float]:
    """The information ``(P, P)`` of a sample, in whitened coordinates; the slope; the mean score in its standard errors, r.m.s."""
    law = _law(target)
    p = law.p
    sites = law.precision, law.shift, law.m0, law.C0
    i, j = torch.triu_indices(p, p)
    half = torch.where(i == j, 0.5, 1.0)
    total = torch.zeros(len(i) + p, len(i) + p, dtype=torch.float64)
    mean, square, cross = (torch.zeros(len(i) + p, dtype=torch.float64) for _ in range(3))
    generator = torch.Generator().manual_seed(seed)
    Tf, rootf, tf = law.whiten.float(), law.root.float(), law.t.float()
    for _ in range(n // CHUNK):
        z = torch.randn(CHUNK, p, generator=generator)
        g = z @ rootf.T
        m, C = posterior(g, g > tf, tf, *(x.float() for x in sites))
        w = Tf @ (m[:, :, None] * m[:, None, :] + C) @ Tf.T
        score = torch.cat([(w - torch.eye(p))[:, i, j] * half, m @ Tf.T], 1)
        complete = torch.cat([(z[:, i] * z[:, j] - (i == j).float()) * half, z], 1)
        total += (score.T @ score).double()
        mean += score.sum(0).double()
        square += score.square().sum(0).double()
        cross += (score * complete).sum(0).double()
    mean, square = mean / n, square / n
    information = total / n - torch.outer(mean, mean)
    return information, float((cross / n / square).median()), float((mean.square() / square * n).mean().sqrt())


def _moments_below(mean: Tensor, variance: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of a Gaussian given that it is below ``t``."""
    sd = variance.sqrt()
    u = (t - mean) / sd
    h = hazard(u)
    return mean - sd * h, variance * (1 - h * (h + u)).clamp_min(1e-4)


def _site(mean: Tensor, variance: Tensor, precision: Tensor, shift: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """The Gaussian factor that stands for "below t": from the marginal, of which the present factor is a part."""
    cavity = 1 / (1 / variance - precision).clamp_min(1e-3)
    centre = cavity * (mean / variance - shift)
    tilted_mean, tilted = _moments_below(centre, cavity, t)
    return 1 / tilted - 1 / cavity, tilted_mean / tilted - centre / cavity


def posterior(
    g: Tensor, active: Tensor, t: Tensor, precision: Tensor, shift: Tensor, m0: Tensor, C0: Tensor, sweeps: int = 2
) -> tuple[Tensor, Tensor]:
    """Mean ``(n, p)`` and covariance ``(n, p, p)`` of h: the active of ``g`` known, the others below ``t``."""
    n, p = g.shape
    C, m = torch.empty(n, p, p, dtype=g.dtype), torch.empty_like(g)
    counts = active.sum(1)
    for a in counts.unique().tolist():  # samples with as many active neurons in one call
        rows = (counts == a).nonzero()[:, 0]
        at = active[rows].nonzero()[:, 1].view(len(rows), a)
        of = C0[at.flatten()].view(len(rows), a, p)
        known = of.gather(2, at[:, None, :].expand(-1, a, -1)) + 1e-6 * torch.eye(a)
        gap = (g[rows].gather(1, at) - m0[at])[..., None]
        both = torch.linalg.solve_triangular(torch.linalg.cholesky(known), torch.cat([of, gap], 2), upper=False)
        m[rows] = m0 + (both[..., p:].mT @ both[..., :p])[:, 0]
        C[rows] = C0 - both[..., :p].mT @ both[..., :p]
    silent = (~active).to(g.dtype)
    start, own, tilt = m, precision * silent, shift * silent
    base, base_tilt, given = own, tilt, C
    for _ in range(sweeps):
        new, moved = _site(m, C.diagonal(dim1=1, dim2=2).clamp_min(1e-6), own, tilt, t)
        own, tilt = own + 0.9 * (new * silent - own), tilt + 0.9 * (moved * silent - tilt)
        more, pull = own - base, tilt - base_tilt
        C = torch.linalg.solve(torch.eye(p, dtype=g.dtype) + given * more[:, None, :], given)
        m = start + (C @ (pull - more * start)[..., None])[..., 0]
    return m, C


def _estimate(information: Tensor, target: PatchGenerator, samples: int, draw: int) -> Tensor:
    """Unit rows of V_1 that an efficient estimator finds: the likelihood's quadratic about the truth, at a drawn score."""
    p = target.V[0].shape[0] * target.V[0].shape[1]
    root = _law(target).root
    i, j = np.triu_indices(p)
    values, axes = torch.linalg.eigh(information)
    generator = torch.Generator().manual_seed(draw)
    noise = torch.randn(len(values), generator=generator, dtype=torch.float64)
    score = (axes * values.clamp_min(1e-9).sqrt()) @ noise / math.sqrt(samples)
    P = len(i)
    of_mean = torch.linalg.solve(information[P:, P:], torch.cat([information[P:, :P], score[P:, None]], 1))
    H = (information[:P, :P] - information[:P, P:] @ of_mean[:, :P]).numpy()  # the means at their best
    g = (score[:P] - information[:P, P:] @ of_mean[:, P]).numpy()

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        Y = np.eye(p) + flat.reshape(p, p)
        x = (Y @ Y.T - np.eye(p))[i, j]
        pull = H @ x
        value = samples * (x @ pull / 2 - g @ x) - 2 * BARRIER * np.linalg.slogdet(Y)[1]
        slope = np.zeros((p, p))
        slope[i, j] = samples * (pull - g)
        gradient = (slope + slope.T) @ Y - 2 * BARRIER * np.linalg.inv(Y).T
        return value / samples, gradient.ravel() / samples

    options = {"maxiter": 800, "maxcor": 30, "ftol": 1e-15, "gtol": 1e-10}
    found = minimize(objective, np.zeros(p * p), jac=True, method="L-BFGS-B", options=options).x
    v = root @ torch.from_numpy(np.eye(p) + found.reshape(p, p))
    return v / v.norm(dim=1, keepdim=True)


def _learned(target: PatchGenerator, rows: Tensor) -> PatchGenerator:
    """``target`` with these directions in its first layer, norms and all else true."""
    V1 = target.V[0]
    V = (rows * V1.double().flatten(0, 1).norm(dim=1, keepdim=True)).view(*V1.shape[:2], -1)
    return PatchGenerator(target.W, [V.to(V1.dtype), *target.V[1:]], target.b, target.parents, target.activation)
