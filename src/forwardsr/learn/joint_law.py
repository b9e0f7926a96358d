r"""The first hidden layer's law from all neurons together: one Newton step of the joint likelihood, put right by simulation.

Pairs of neurons (:mod:`.latent_law`) do not know all that a sample tells: their errors' variance is about 1.45 times the bound of the
joint likelihood at the standard target. So from their estimate R the law makes one step, by the scores and the information of
:mod:`.joint_score`, to where

.. math:: J\, (\theta - \theta_R) = \overline{\psi}_{data} - \overline{\psi}_{sim} + \kappa J\, (\hat\theta_{pairs}(sim) - \theta_R) .

**Bias.** The scores are approximate: at a million samples their mean is ten standard errors off (that of full expectation propagation
three). The law that they are taken at is known, so their mean there is simulated, and that mean's error is in large part that of the
simulated samples' pairwise estimate, which is known.

**Estimate.** As in :mod:`.gram`: unit rows that minimise the quadratic plus the barrier, and plus what the pairs of a block,
channels of one patch or of the same two, say together of the size of its correlations (empirical Bayes, Efron and Morris 1973):
:math:`\rho \sim N(0, \tau^2)`, with :math:`\tau^2` the block's mean of :math:`\hat\rho^2 - se^2` and one standard error more.
Channels of one patch of the standard target are independent, which so is found.

=========  =======  =================================================================================================
setting    default  reason
=========  =======  =================================================================================================
SIMULATED  3        samples for one of the data: their noise adds 0.29 / 3 to the error's variance
CONTROL    0.7      kappa: 1 / 1.45; leaves 0.29 of the variance of the simulated mean (1 leaves 0.44)
INFORMED   400,000  samples for J, 84 for each of its 4752 rows: within about 1 % of what any number would give
BARRIER    1.0      between 0.6 and 2 the 95th percentile of three targets moves by 2 % at most
MOST       128      neurons: the standard target's 96, and little more, is what it was tried with
=========  =======  =================================================================================================
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import torch
from jaxtyping import Float
from scipy.optimize import minimize
from torch import Tensor

from forwardsr.learn.joint_score import Information, Law, coordinates, law_of, mean_score, score_sums

SIMULATED = 3
CONTROL = 0.7
INFORMED = 400_000
BARRIER = 1.0
MOST = 128
_SIMULATE = 2**17  # samples drawn at once

Pairs = Callable[[Tensor, int], tuple[Tensor, Tensor, Tensor]]
"""From the sums of :func:`products` and their count: ``(t, sigma, rho)`` as the learner estimates them."""


def products(s: Float[Tensor, "n p"]) -> Float[Tensor, "p2 p3"]:
    """The products of (1, s) with (1, s, s^2) over samples of ``s = (g - t)_+``, float64."""
    total = torch.zeros(2 * s.shape[1], 3 * s.shape[1], dtype=torch.float64)
    for part in s.split(2**13):
        both = torch.cat([(part > 0).to(s.dtype), part, part.square()], 1)
        total += both[:, : total.shape[0]].T @ both
    return total


def simulated(
    law: Law, n: int, pairs: Pairs, generator: torch.Generator
) -> tuple[Float[Tensor, " q"], Float[Tensor, " q"]]:
    """The mean score of ``n`` samples of the law itself, and where their pairwise estimate lies."""
    one, total, sums = law.single(), None, torch.zeros(2 * law.p, 3 * law.p, dtype=torch.float64)
    for start in range(0, n, _SIMULATE):
        g = torch.randn(min(_SIMULATE, n - start), law.p, generator=generator) @ one.root.T
        found = score_sums(one, g)
        total = found if total is None else total + found
        sums += products(g.sub_(one.t).relu_())
    assert total is not None
    t, sigma, rho = pairs(sums, n)
    return mean_score(law, total), coordinates(law, rho * sigma[:, None] * sigma, law.t - sigma * t)


def block_weights(rho: Float[Tensor, "p p"], se: Float[Tensor, "p p"], channels: int) -> Float[Tensor, "p p"]:
    """``1 / tau^2`` of every pair, from its block's estimates; zero on the diagonal."""
    p = len(rho)
    i, j = torch.triu_indices(p, p, 1)
    block = i // channels * p + j // channels
    noise = se[i, j].square()
    excess = rho[i, j].square() - noise
    size = (torch.bincount(block, excess) / torch.bincount(block)).clamp_min(0)
    spread = (2 / torch.bincount(block, (noise + size[block]) ** -2)).sqrt()
    weights = torch.zeros_like(rho)
    weights[i, j] = weights[j, i] = 1 / (size + spread)[block]
    return weights


def nearest(
    law: Law,
    J: Information,
    score: Float[Tensor, " q"],
    n: int,
    weights: Float[Tensor, "p p"],
    barrier: float = BARRIER,
    iterations: int = 200,
) -> Float[Tensor, "p p"]:
    """Unit rows that minimise minus the log-likelihood's quadratic, mu at its best, plus the barrier and the blocks' prior."""
    p = law.p
    i, j = np.triu_indices(p)
    P, g = len(i), score.numpy()
    root, w, eye = law.root.numpy(), weights.numpy(), np.eye(p)
    # Sigma = root Y Y^T root^T, and unknowns are in units of the objective's curvature: 70 evaluations instead of 800.
    curvature = n * J.curvature().numpy()
    unit = (curvature + np.diag(curvature.diagonal()) + 2 * barrier + (root**2).T @ w @ root**2) ** -0.5
    unit_mu = curvature.diagonal() ** -0.25 / n**0.25

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        Y = eye + flat[: p * p].reshape(p, p) * unit
        x = np.concatenate([(Y @ Y.T - eye)[i, j], flat[p * p :] * unit_mu])
        pull = (J @ torch.from_numpy(x)).numpy()
        V = root @ Y
        S = V @ V.T
        value = n * (x @ pull / 2 - g @ x) - 2 * barrier * np.linalg.slogdet(Y)[1] + (w * S * S).sum() / 4
        slope = np.zeros((p, p))
        slope[i, j] = n * (pull - g)[:P]
        gradient = (slope + slope.T + root.T @ (w * S) @ root) @ Y - 2 * barrier * np.linalg.inv(Y).T
        return float(value), np.concatenate([(gradient * unit).ravel(), n * (pull - g)[P:] * unit_mu])

    options = {"maxiter": iterations, "maxcor": 20, "ftol": 1e-7, "gtol": 1e-2}
    found = minimize(objective, np.zeros(p * p + p), jac=True, method="L-BFGS-B", options=options).x
    v = law.root @ torch.from_numpy(eye + found[: p * p].reshape(p, p) * unit)
    return v / v.norm(dim=1, keepdim=True)


def refine(
    rows: Float[Tensor, "p r"],
    t: Float[Tensor, " p"],
    samples: Iterable[Float[Tensor, "c p"]],
    rho: Float[Tensor, "p p"],
    se: Float[Tensor, "p p"],
    channels: int,
    pairs: Pairs,
    generator: torch.Generator,
) -> Float[Tensor, "p p"]:
    """Unit rows of V_1 from ``rows``, those of :func:`forwardsr.learn.gram.near_correlation`, regular, and thresholds ``t``.

    ``samples``: what neurons exceed their thresholds by over their sigma, and zero, ``(g - t)_+``, float32, without noise;
    ``rho`` and ``se``: the pairs' estimates, which ``channels`` of a patch after another are the rows and columns of.
    """
    law = law_of(rows, t)
    one, total = law.single(), None
    for s in samples:
        found = score_sums(one, torch.where(s > 0, s + one.t, one.t - 1))
        total = found if total is None else total + found
    assert total is not None
    expected, moved = simulated(law, SIMULATED * total.n, pairs, generator)
    J = Information(law, torch.randn(INFORMED, law.p, generator=generator) @ one.root.T)
    score = mean_score(law, total) - expected + CONTROL * (J @ moved)
    return nearest(law, J, score, total.n, block_weights(rho, se, channels))
