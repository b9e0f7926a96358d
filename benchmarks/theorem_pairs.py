r"""What is left in the pairs: the first layer's law from the same pairwise estimates, their covariances all taken into account.

The learner's Gram matrix is the one nearest to the pairwise correlations in the metric of their standard errors
(:mod:`forwardsr.learn.gram`). The best metric has their covariances, too: a p (p - 1) / 2 square matrix. To first order an
estimate is its mean plus its influence function's mean over the samples, and for the pair (i, j)

.. math:: \psi_{ij} = \frac{\partial_\rho \ell_{ij} - \sum_k I_{\rho k} L_k}{I_{\rho\rho}},

with l the pair's likelihood, I its information, and L the influence of the four marginal numbers (t and log sigma of both
neurons, each estimated alone). The learner's equations are linear in the products of (1, s) with (1, s, s^2), so psi is a
quadratic form in them; its covariance is taken over samples drawn from the *learned* law. Inverted, it is the metric in which
the same objective, with the same barrier, is minimised again.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from forwardsr.data.planted import PlantedSource
from forwardsr.learn.efficient import feature_stage, first_hidden_stage
from forwardsr.learn.gram import BARRIER
from forwardsr.learn.latent_law import both_below, half_active, hazard, pair_bound
from forwardsr.learn.stream import Stream
from forwardsr.measure.certificate import certify, match
from forwardsr.model.patch_generator import PatchGenerator
from forwardsr.model.plant import PlantConfig, plant
from theorem_trial import Line

DRAWN = 40_000  # samples that the covariance is taken over: nine for each of its rows
CHUNK = 4000  # of them at once


def pairs(targets: Sequence[int] = range(10), samples: int = 1_000_000) -> list[Line]:
    """A line a target: Theorem 5.1's error with the learner's metric and with that of all covariances."""
    lines = []
    for seed in targets:
        target = plant(PlantConfig(seed=seed))
        stream, m = Stream(PlantedSource(target), seed), target.channels[0]
        state, _, _ = feature_stage(stream, 0, m, 40_000, seed, 1)
        found, _, _ = first_hidden_stage(stream, state, samples, None, 2)
        v = found["V1"].double().flatten(0, 1)
        sigma, t = v.norm(dim=1), found["b1"].double().flatten() / v.norm(dim=1)
        rows = v / sigma[:, None]
        covariance, mean = influences(rows, t, seed)
        again = nearest(found["rho1"], torch.linalg.inv(covariance) * samples, rows)
        line: Line = {"what": f"seed {seed}", "samples": samples, "mean influence": mean}
        for name, unit in (("", rows), (", all covariances", again)):
            total = certify(_learned(target, state, found, unit * sigma[:, None]), target, 10_000, seed).total
            line |= {f"median %{name}": 100 * total.quantile(0.5), f"95th %{name}": 100 * total.quantile(0.95)}
        print(", ".join(f"{k} {x:.4g}" if isinstance(x, float) else f"{k} {x}" for k, x in line.items()), flush=True)
        lines.append(line)
    return lines


def _learned(target: PatchGenerator, state: dict[str, Tensor], found: dict[str, Tensor], v: Tensor) -> PatchGenerator:
    """``target`` with the learned first layer, its channels in the target's order."""
    order, _ = match(state["W1"].double(), target.W[0].double())
    v1 = v.view(*order.shape, -1).gather(1, order[:, :, None].expand(*order.shape, v.shape[1])).float()
    V, b = [v1, *target.V[1:]], [found["b1"].gather(1, order), *target.b[1:]]
    return PatchGenerator(target.W, V, b, target.parents, target.activation)


def influences(rows: Tensor, t: Tensor, seed: int) -> tuple[Tensor, float]:
    """Covariance of the influence functions of all pairs' correlations, ``(P, P)``, and their mean in standard errors, r.m.s.,
    which is 1 where they are right.
    """
    i, j = torch.triu_indices(len(t), len(t), 1)
    a, b, rho = t[i], t[j], (rows @ rows.T)[i, j]
    r2 = 1 - rho.square()
    information = torch.linalg.inv(pair_bound(a, b, rho))
    only_i, only_j = half_active(a, b, rho)[0], half_active(b, a, rho)[0]
    density = torch.exp(-(a.square() + b.square() - 2 * rho * a * b) / (2 * r2)) / (2 * torch.pi * r2.sqrt())
    neither = density / both_below(a, b, rho)
    k, q = (
        (1 + rho.square()) / r2.square(),
        rho / r2.square(),
    )  # both active: rho / r2 + k g g' - q (g^2 + g'^2), g = x + t
    both = {
        "11": rho / r2 + k * a * b - q * (a.square() + b.square()) - only_i[:, 0] - only_j[:, 0] + neither,
        "x1": k * b - 2 * q * a - only_i[:, 1],
        "1x": k * a - 2 * q * b - only_j[:, 1],
        "xx": k,
        "s1": -q - only_i[:, 2],
        "1s": -q - only_j[:, 2],
    }
    own_i, own_j = _marginal(t)[i], _marginal(t)[j]  # (P, 2, 4): influence of (t, log sigma) in 1[active], x, x^2 and 1
    shift_i = (information[:, 4, None, :2] @ own_i)[:, 0]
    shift_j = (information[:, 4, None, 2:4] @ own_j)[:, 0]
    alone_i, alone_j = only_i - shift_i[:, :3], only_j - shift_j[:, :3]
    alone_i[:, 0] -= neither
    alone_j[:, 0] -= neither
    constant = neither - shift_i[:, 3] - shift_j[:, 3]
    scale = information[:, 4, 4]
    both = {name: (c / scale).float() for name, c in both.items()}
    alone_i, alone_j = (alone_i / scale[:, None]).float(), (alone_j / scale[:, None]).float()
    constant = (constant / scale).float()

    generator = torch.Generator().manual_seed(seed)
    total, mean = torch.zeros(len(i), len(i)), torch.zeros(len(i), dtype=torch.float64)
    for _ in range(DRAWN // CHUNK):
        x = (torch.randn(CHUNK, rows.shape[1], generator=generator) @ rows.float().T - t.float()).relu()
        one, square = (x > 0).float(), x.square()
        u, v, w = one[:, j], x[:, j], square[:, j]
        psi = one[:, i] * (u * both["11"] + v * both["1x"] + w * both["1s"] + alone_i[:, 0])
        psi += x[:, i] * (u * both["x1"] + v * both["xx"] + alone_i[:, 1])
        psi += square[:, i] * (u * both["s1"] + alone_i[:, 2])
        psi += u * alone_j[:, 0] + v * alone_j[:, 1] + w * alone_j[:, 2] + constant
        total.addmm_(psi.T, psi)
        mean += psi.sum(0).double()
    covariance = total.double() / DRAWN
    mean /= DRAWN
    return covariance, float((mean.square() / covariance.diagonal() * DRAWN).mean().sqrt())


def _marginal(t: Tensor) -> Tensor:
    """Of every neuron alone: the influence of (t, log sigma), linear in 1[active], x, x^2 and 1, ``(p, 2, 4)``."""
    one, zero, z = torch.ones_like(t), torch.zeros_like(t), hazard(t)
    score = torch.stack([torch.stack([-z - t, -one, zero, z], -1), torch.stack([-one, t, one, zero], -1)], 1)
    return pair_bound(t, t, zero)[:, :2, :2] @ score


def nearest(rho: Tensor, metric: Tensor, start: Tensor) -> Tensor:
    """Unit rows V that minimise ``e^T metric e / 2 - BARRIER log det V^T V``, e the errors of all pairs of ``V V^T``."""
    p = len(rho)
    i, j = np.triu_indices(p, 1)
    H, wanted = metric.numpy(), rho.numpy()[i, j]
    scale = float(H.diagonal().max())

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        raw = flat.reshape(p, -1)
        length = np.linalg.norm(raw, axis=1, keepdims=True)
        v = raw / length
        e = (v @ v.T)[i, j] - wanted
        pull, inner, slope = H @ e, v.T @ v, np.zeros((p, p))
        slope[i, j] = pull
        gradient = (slope + slope.T) @ v - 2 * BARRIER * np.linalg.solve(inner, v.T).T
        gradient -= v * (gradient * v).sum(1, keepdims=True)
        value = e @ pull / 2 - BARRIER * np.linalg.slogdet(inner)[1]
        return value / scale, (gradient / length).ravel() / scale

    options = {"maxiter": 600, "maxcor": 20, "ftol": 1e-13, "gtol": 1e-10}
    found = minimize(objective, start.numpy().ravel(), jac=True, method="L-BFGS-B", options=options).x
    v = torch.from_numpy(found.reshape(p, -1))
    return v / v.norm(dim=1, keepdim=True)
