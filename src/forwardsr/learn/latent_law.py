r"""The law of the first hidden layer from samples of it: as accurate as the data allow (paper, §4.2; Lemmas C.6, C.10).

A first-layer neuron is a censored Gaussian, :math:`s_i = (\sigma_i (g_i - t_i))_+` with :math:`g_i \sim N(0, 1)`,
:math:`\sigma_i = \|V_i\|` and :math:`t_i = b_i / \sigma_i`; two of them have :math:`E[g_i g_j] = \rho_{ij} =
\langle V_i, V_j\rangle / \sigma_i \sigma_j`. Everything is estimated from sums that one pass over the data collects,

.. math:: n_{ij} = \#\{s_i > 0, s_j > 0\}, \quad \sum s_i 1_j, \quad \sum s_i s_j, \quad \sum s_i^2 1_j \qquad (1_j = 1[s_j > 0]),

that is, one matrix product of the features (1, s) with (1, s, s^2):

* **one neuron** (the task of D4): the maximum-likelihood :math:`(t, \sigma)` of a censored Gaussian, from the activation
  probability and the first two moments of the active values. It reaches the Cramér-Rao bound; matching the probability and the
  mean alone (:func:`match_moments`, which is what D4 does) does not;
* **two neurons** (the task of D5): the likelihood's score in :math:`\rho`, which is a sum over four cells. Both active: exact in
  the sums above. Neither: :math:`n_{00}\, \varphi_2 / \Phi_2`. One active: the score :math:`\psi(g) = \partial_\rho \log
  \Phi((t_j - \rho g)/\sqrt{1 - \rho^2})` is replaced by its least-squares quadratic under the model's own density in that cell,
  which keeps the equation unbiased and loses under 0.01 % of the information. (Matching E[h h'] of the posterior means
  h = E[g | s], the score at rho = 0, is as good up to rho = 0.7, 7 % worse in error at 0.85, and knows its own error less well.)

The Mehler series :math:`E[f(g) f'(g')] = \sum_k c_k(f)\, c_k(f')\, \rho^k` for thresholded functions serves the moment-matching
learner and the tests. All tensors are float64.
"""

from __future__ import annotations

import functools
import math

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

RHO_MAX = 0.995  # correlations are sought in [-RHO_MAX, RHO_MAX]: Assumption 2.3 keeps |rho| away from 1
_NODES = 32  # Gauss-Legendre nodes: 1e-12 for the integrands here
_REACH = 7.0  # a standard Gaussian beyond it has probability 1e-12
_PAIRS = 2**15  # pairs worked on at once


def _phi(x: Tensor) -> Tensor:
    return torch.exp(-x.square() / 2) / math.sqrt(2 * math.pi)


@functools.cache
def _legendre(nodes: int = _NODES) -> tuple[Tensor, Tensor]:
    x, w = np.polynomial.legendre.leggauss(nodes)
    return torch.from_numpy((x + 1) / 2), torch.from_numpy(w / 2)


def hazard(t: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
    """``phi(t) / Phi(t)``, without underflow for very negative t."""
    return torch.exp(-t.square() / 2 - math.log(math.sqrt(2 * math.pi)) - torch.special.log_ndtr(t))


# ---------------------------------------------------------------------------------------------------------- one neuron


def fit_neuron(
    p: Float[Tensor, "*s"], first: Float[Tensor, "*s"], second: Float[Tensor, "*s"]
) -> tuple[Float[Tensor, "*s"], Float[Tensor, "*s"]]:
    r"""Maximum-likelihood ``(t, sigma)`` of ``s = (sigma (g - t))_+``.

    ``p``: the activation probability, in (0, 1); ``first``, ``second``: the mean of s and of s^2 over active samples. The
    likelihood equations are :math:`\overline{g}_{active} = \frac{1-p}{p} \varphi(t)/\Phi(t)` and
    :math:`\overline{s^2}/\sigma^2 + t \overline{s}/\sigma = 1` with :math:`g = s/\sigma + t`; the second gives sigma, the first
    is then decreasing in t and solved by bisection.
    """
    low, high = torch.full_like(p, -_REACH), torch.full_like(p, _REACH)

    def inverse_sigma(t: Tensor) -> Tensor:
        return 2 / (t * first + (t.square() * first.square() + 4 * second).sqrt())

    for _ in range(60):
        t = (low + high) / 2
        above = (1 - p) / p * hazard(t) > first * inverse_sigma(t) + t
        low, high = torch.where(above, t, low), torch.where(above, high, t)
    return (low + high) / 2, 1 / inverse_sigma((low + high) / 2)


def match_moments(p: Float[Tensor, "*s"], mean: Float[Tensor, "*s"]) -> tuple[Float[Tensor, "*s"], Float[Tensor, "*s"]]:
    """``(t, sigma)`` with activation probability ``p`` and mean ``E[s] = mean``: D4's two equations in two unknowns (C.2)."""
    t = -torch.special.ndtri(p)
    return t, mean / (_phi(t) - t * p)


def neuron_errors(t: Float[Tensor, "*s"]) -> tuple[Float[Tensor, "*s"], Float[Tensor, "*s"]]:
    """Cramér-Rao bounds of one sample: the standard deviations of ``t`` and of ``log sigma`` (divide by sqrt(n))."""
    z = hazard(t)
    p = torch.special.ndtr(-t)
    mean, square = _phi(t) / p, 1 + t * _phi(t) / p  # of g over active samples
    tt = p + (1 - p) * z * (z + t)
    ts = -p * (mean - t)
    ss = p * (2 * square - 3 * t * mean + t.square())
    det = tt * ss - ts.square()
    return (ss / det).sqrt(), (tt / det).sqrt()


# ---------------------------------------------------------------------------------------------------------- Mehler series


def hermite(t: Float[Tensor, "*s"], terms: int) -> Float[Tensor, "k *s"]:
    """Orthonormal Hermite polynomials ``He_k(t) / sqrt(k!)``, k = 0 .. terms-1."""
    out = [torch.ones_like(t), t]
    for k in range(1, terms - 1):
        out.append((t * out[-1] - math.sqrt(k) * out[-2]) / math.sqrt(k + 1))
    return torch.stack(out[:terms])


def coefficients(
    t: Float[Tensor, "*s"], terms: int = 200
) -> tuple[Float[Tensor, "k *s"], Float[Tensor, "k *s"], Float[Tensor, "k *s"]]:
    r"""Hermite coefficients of ``1[g > t]``, ``(g - t)_+`` and the posterior mean ``E[g | (g - t)_+]``, each ``(terms, ...)``.

    From :math:`\int_t^\infty He_k \varphi = He_{k-1}(t) \varphi(t)` and the same once more for the ramp.
    """
    he, density = hermite(t, terms), _phi(t)
    root = torch.arange(terms, dtype=t.dtype).sqrt().reshape(-1, *[1] * t.ndim)
    step, ramp = torch.empty_like(he), torch.empty_like(he)
    step[0] = torch.special.ndtr(-t)
    step[1:] = density * he[:-1] / root[1:]
    ramp[0] = density - t * step[0]
    ramp[1:] = step[:-1] / root[1:]
    mean = ramp + (t + hazard(t)) * step  # g 1[g>t] - hazard 1[g<=t]
    mean[0] = 0.0
    return step, ramp, mean


def mehler(c: Float[Tensor, "k n"], other: Float[Tensor, "k n"], rho: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """``sum_k c_k other_k rho^k`` by Horner's rule: E[f(g) f'(g')] of functions with these coefficients."""
    total = torch.zeros_like(rho)
    for a, b in zip(c.flip(0), other.flip(0), strict=True):
        total = total * rho + a * b
    return total


def mehler_slope(c: Float[Tensor, "k n"], other: Float[Tensor, "k n"], rho: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """The derivative of :func:`mehler` in rho."""
    k = torch.arange(len(c), dtype=rho.dtype)[1:, None]
    return mehler(c[1:] * k, other[1:], rho)


def invert_mehler(
    c: Float[Tensor, "k n"], other: Float[Tensor, "k n"], value: Float[Tensor, " n"]
) -> Float[Tensor, " n"]:
    """The rho in [-RHO_MAX, RHO_MAX] at which the series of two increasing functions takes ``value`` (it increases in rho)."""
    low, high = torch.full_like(value, -RHO_MAX), torch.full_like(value, RHO_MAX)
    for _ in range(45):
        rho = (low + high) / 2
        below = mehler(c, other, rho) < value
        low, high = torch.where(below, rho, low), torch.where(below, high, rho)
    return (low + high) / 2


# ---------------------------------------------------------------------------------------------------------- two neurons


def both_below(t1: Float[Tensor, " n"], t2: Float[Tensor, " n"], rho: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """``Pr[g_1 <= t1, g_2 <= t2]``: Plackett's integral of the bivariate density over rho, in the angle asin(rho)."""
    x, w = _legendre()
    angle = torch.asin(rho)[..., None] * x
    a, b = t1[..., None], t2[..., None]
    inside = torch.exp(-(a.square() + b.square() - 2 * a * b * angle.sin()) / (2 * angle.cos().square()))
    return torch.special.ndtr(t1) * torch.special.ndtr(t2) + torch.asin(rho) * (inside @ w) / (2 * math.pi)


def half_active(t1: Tensor, t2: Tensor, rho: Tensor) -> tuple[Tensor, Tensor]:
    """Where only neuron 1 is active: the quadratic ``a_0 + a_1 x + a_2 x^2`` (x = g - t1) nearest its score, and its information."""
    nodes, weights = _legendre()
    low = t1.clamp_min(-_REACH)
    g = low[..., None] + (_REACH - low)[..., None] * nodes
    x, w = g - t1[..., None], (_REACH - low)[..., None] * weights * _phi(g)
    r = (1 - rho.square()).sqrt()[..., None]
    u = (t2[..., None] - rho[..., None] * g) / r
    powers = torch.stack([torch.ones_like(x), x, x.square()], -1)
    gram = (powers * (w * torch.special.ndtr(u))[..., None]).mT @ powers
    target = (powers.mT @ (w * _phi(u) * (rho[..., None] * t2[..., None] - g) / r**3)[..., None])[..., 0]
    gram = gram + 1e-13 * torch.eye(3, dtype=g.dtype)
    a = torch.linalg.solve(gram, target)
    return a, (a * target).sum(-1)


def _score(t1: Tensor, t2: Tensor, rho: Tensor, sums: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """The score in rho of one pair per element, a sample on average, and its information."""
    r2 = 1 - rho.square()
    density = torch.exp(-(t1.square() + t2.square() - 2 * rho * t1 * t2) / (2 * r2)) / (2 * math.pi * r2.sqrt())
    neither = both_below(t1, t2, rho).clamp_min(1e-300)
    first, info_first = half_active(t1, t2, rho)
    second, info_second = half_active(t2, t1, rho)
    score = sums["00"] * density / neither
    score = score + (first * sums["10"]).sum(-1) + (second * sums["01"]).sum(-1)
    product, squares = sums["11"][..., 1], sums["11"][..., 2]
    score = score + sums["11"][..., 0] * rho / r2 + (product * (1 + rho.square()) - rho * squares) / r2.square()
    return score, density.square() / neither + info_first + info_second + _both_active_information(t1, t2, rho)


def _both_active_information(t1: Tensor, t2: Tensor, rho: Tensor) -> Tensor:
    nodes, weights = _legendre(16)
    low1, low2 = t1.clamp_min(-_REACH), t2.clamp_min(-_REACH)
    g1 = (low1[..., None] + (_REACH - low1)[..., None] * nodes)[..., :, None]
    g2 = (low2[..., None] + (_REACH - low2)[..., None] * nodes)[..., None, :]
    w = ((_REACH - low1) * (_REACH - low2))[..., None, None] * weights[:, None] * weights
    r2, rho = (1 - rho.square())[..., None, None], rho[..., None, None]
    quadratic = g1.square() - 2 * rho * g1 * g2 + g2.square()
    score = rho / r2 + (g1 * g2 * (1 + rho.square()) - rho * (g1.square() + g2.square())) / r2.square()
    return (w * torch.exp(-quadratic / (2 * r2)) / (2 * math.pi * r2.sqrt()) * score.square()).sum((-1, -2))


def fit_pairs(
    t1: Float[Tensor, " n"], t2: Float[Tensor, " n"], sums: dict[str, Tensor], steps: int = 30
) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """Correlation and its information a sample, for n pairs of neurons with known thresholds, by Fisher scoring from 0.

    ``sums``, per sample: ``"11"`` ``(n, 3)``, over samples in which both are active, of 1, g_1 g_2 and g_1^2 + g_2^2; ``"10"``
    and ``"01"`` ``(n, 3)``, where only one is active, of 1, x, x^2 with x = g - t of the active one; ``"00"`` ``(n,)``.
    """
    rho = torch.zeros_like(t1)
    info = torch.ones_like(t1)
    for start in range(0, len(t1), _PAIRS):
        part = slice(start, start + _PAIRS)
        a, b, r = t1[part], t2[part], rho[part]
        own = {key: value[part] for key, value in sums.items()}
        for _ in range(steps):
            score, i = _score(a, b, r, own)
            new = (r + (score / i.clamp_min(1e-12)).clamp(-0.2, 0.2)).clamp(-RHO_MAX, RHO_MAX)
            done = bool((new - r).abs().max() < 1e-10)
            r = new
            if done:
                break
        rho[part], info[part] = r, i
    return rho, info


def pair_bound(t1: Float[Tensor, " n"], t2: Float[Tensor, " n"], rho: Float[Tensor, " n"]) -> Float[Tensor, "n 5 5"]:
    """The Cramér-Rao bound of one sample of a pair: covariance of estimates of ``(t_1, log sigma_1, t_2, log sigma_2, rho)``.

    The Fisher information summed over the four cells by quadrature (the pair alone; other neurons could only add).
    """
    nodes, weights = _legendre(24)
    total = torch.zeros(len(t1), 5, 5, dtype=t1.dtype)
    for start in range(0, len(t1), 2048):
        a, b, r = t1[start : start + 2048], t2[start : start + 2048], rho[start : start + 2048]
        info = _half_information(a, b, r, flip=False) + _half_information(b, a, r, flip=True)
        root = (1 - r.square()).sqrt()
        neither = both_below(a, b, r)
        density = torch.exp(-(a.square() + b.square() - 2 * r * a * b) / (2 * root.square())) / (2 * math.pi * root)
        zero = torch.zeros_like(a)
        u, v = torch.special.ndtr((b - r * a) / root), torch.special.ndtr((a - r * b) / root)
        gradient = torch.stack([_phi(a) * u, zero, _phi(b) * v, zero, density], -1)
        info += gradient[:, :, None] * gradient[:, None, :] / neither[:, None, None]
        low1, low2 = a.clamp_min(-_REACH)[:, None], b.clamp_min(-_REACH)[:, None]
        g1 = (low1 + (_REACH - low1) * nodes)[:, :, None].expand(-1, -1, len(nodes)).flatten(1)
        g2 = (low2 + (_REACH - low2) * nodes)[:, None, :].expand(-1, len(nodes), -1).flatten(1)
        c, r2 = r[:, None], root.square()[:, None]
        w = (_REACH - low1) * (_REACH - low2) * (weights[:, None] * weights).flatten()
        w = w * torch.exp(-(g1.square() - 2 * c * g1 * g2 + g2.square()) / (2 * r2)) / (2 * math.pi * r2.sqrt())
        d1, d2 = (g1 - c * g2) / r2, (g2 - c * g1) / r2
        last = c / r2 + (g1 * g2 * (1 + c.square()) - c * (g1.square() + g2.square())) / r2.square()
        score = torch.stack([-d1, d1 * (g1 - a[:, None]) - 1, -d2, d2 * (g2 - b[:, None]) - 1, last], -1)
        total[start : start + 2048] = info + (score * w[..., None]).mT @ score
    return torch.linalg.inv(total)


def _half_information(t1: Tensor, t2: Tensor, rho: Tensor, flip: bool) -> Tensor:
    """The cell in which neuron 1 alone is active: its part of the information, parameters reordered where ``flip``."""
    nodes, weights = _legendre()
    low = t1.clamp_min(-_REACH)[:, None]
    g = low + (_REACH - low) * nodes
    root, r = (1 - rho.square()).sqrt()[:, None], rho[:, None]
    u = (t2[:, None] - r * g) / root
    w, z = (_REACH - low) * weights * _phi(g) * torch.special.ndtr(u), hazard(u)
    pull = g + r / root * z
    own = [-pull, (g - t1[:, None]) * pull - 1]
    other = [z / root, torch.zeros_like(z)]
    last = z * (r * t2[:, None] - g) / root**3
    score = torch.stack([*(other + own if flip else own + other), last], -1)
    return (score * w[..., None]).mT @ score
