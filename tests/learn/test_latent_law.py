"""The latent law: series against integrals, estimators against the Cramér-Rao bound."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal, norm
from torch import Tensor

from forwardsr.learn.latent_law import (
    both_below,
    coefficients,
    fit_neuron,
    fit_pairs,
    hazard,
    invert_mehler,
    match_moments,
    mehler,
    mehler_slope,
    neuron_errors,
    pair_bound,
)

D = torch.float64
NODES = np.polynomial.legendre.leggauss(200)


def tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=D)


def moments(t: float, sigma: float) -> tuple[float, float, float]:
    """Pr[s > 0] and the means of s and s^2 over active s = sigma (g - t)_+."""
    p = norm.sf(t)
    first = sigma * (norm.pdf(t) / p - t)
    second = sigma**2 * ((1 + t * t) - t * norm.pdf(t) / p)
    return p, first, second


@pytest.mark.parametrize(("t", "sigma"), [(1.4, 2.0), (-0.5, 0.3), (2.5, 1.0)])
def test_exact_moments_give_back_the_neuron(t: float, sigma: float) -> None:
    p, first, second = moments(t, sigma)
    for found_t, found_sigma in (
        fit_neuron(tensor(p), tensor(first), tensor(second)),
        match_moments(tensor(p), tensor(p * first)),
    ):
        assert float(found_t) == pytest.approx(t, abs=1e-9)
        assert float(found_sigma) == pytest.approx(sigma, rel=1e-9)


def integral(f: int, t1: float, g: int, t2: float, rho: float) -> float:
    """E[f(g_1) g(g_2)] by quadrature: outer over g_1, the inner conditional mean in closed form."""

    def conditional(kind: int, t: float, mean: np.ndarray, sd: float) -> np.ndarray:
        u = (t - mean) / sd
        tail, ramp = norm.sf(u), sd * norm.pdf(u) + (mean - t) * norm.sf(u)
        if kind == 0:
            return tail
        if kind == 1:
            return ramp
        return ramp + t * tail - norm.pdf(t) / norm.cdf(t) * (1 - tail)

    def value(kind: int, t: float, x: np.ndarray) -> np.ndarray:
        active = x > t
        silent = -norm.pdf(t) / norm.cdf(t)
        return [active * 1.0, np.where(active, x - t, 0.0), np.where(active, x, silent)][kind]

    total = 0.0
    nodes, weights = NODES
    for low, high in ((-9.0, t1), (t1, 9.0)):
        x = (high - low) / 2 * nodes + (high + low) / 2
        inner = conditional(g, t2, rho * x, math.sqrt(1 - rho * rho))
        total += float((weights * (high - low) / 2 * norm.pdf(x) * value(f, t1, x) * inner).sum())
    return total


@pytest.mark.parametrize("rho", [-0.6, 0.3, 0.8])
def test_mehler_is_the_integral(rho: float) -> None:
    t = tensor(1.3, 1.7)
    series = coefficients(t)
    for f, g in ((0, 0), (1, 1), (2, 2), (0, 1), (2, 0)):
        a, b = series[f][:, :1], series[g][:, 1:]
        value = mehler(a, b, tensor(rho))
        assert float(value) == pytest.approx(integral(f, 1.3, g, 1.7, rho), abs=1e-9)
        slope = (mehler(a, b, tensor(rho + 1e-5)) - mehler(a, b, tensor(rho - 1e-5))) / 2e-5
        assert float(mehler_slope(a, b, tensor(rho))) == pytest.approx(float(slope), rel=1e-6)
    assert float(invert_mehler(a, b, value)) == pytest.approx(rho, abs=1e-9)


def test_price_theorem_joins_ramp_and_step() -> None:
    # d/drho E[(g - t)_+ (g' - t')_+] = Pr[g > t, g' > t']: the slope that D5's Newton step uses.
    t, rho = tensor(1.2, 0.7), tensor(0.45)
    step, ramp, _ = coefficients(t)
    assert float(mehler_slope(ramp[:, :1], ramp[:, 1:], rho)) == pytest.approx(
        float(mehler(step[:, :1], step[:, 1:], rho)), abs=1e-10
    )


@pytest.mark.parametrize("rho", [-0.9, -0.3, 0.0, 0.5, 0.95])
def test_bivariate_probability(rho: float) -> None:
    expected = multivariate_normal.cdf([1.1, -0.4], cov=[[1, rho], [rho, 1]], abseps=1e-10, releps=1e-10)
    assert float(both_below(tensor(1.1), tensor(-0.4), tensor(rho))) == pytest.approx(float(expected), abs=1e-8)


def test_bounds_without_correlation_are_those_of_one_neuron() -> None:
    t1, t2 = tensor(1.4), tensor(0.6)
    bound = pair_bound(t1, t2, tensor(0.0))[0]
    for at, t in ((0, t1), (2, t2)):
        error_t, error_sigma = neuron_errors(t)
        assert float(bound[at, at].sqrt()) == pytest.approx(float(error_t), rel=1e-8)
        assert float(bound[at + 1, at + 1].sqrt()) == pytest.approx(float(error_sigma), rel=1e-8)

    def energy(t: Tensor) -> float:  # of the posterior mean h, whose product is the score at rho = 0
        p = norm.sf(float(t))
        return float(p + t * norm.pdf(float(t)) + (1 - p) * hazard(t) ** 2)

    assert float(bound[4, 4]) == pytest.approx(1 / (energy(t1) * energy(t2)), rel=1e-8)


def simulate(rho: float, trials: int = 50, n: int = 30_000) -> tuple[Tensor, Tensor, Tensor]:
    """Errors of the pair estimator and of matching E[h h'] of posterior means, and the bound, at t = (1.3, 1.5)."""
    generator = torch.Generator().manual_seed(7)
    t = tensor(1.3, 1.5)
    g = torch.randn(2, trials, n, generator=generator, dtype=D)
    g[1] = rho * g[0] + math.sqrt(1 - rho * rho) * g[1]
    x = (g - t[:, None, None]).clamp_min(0)
    on = x > 0
    rate = on.double().mean(2)
    fit_t, sigma = fit_neuron(rate, x.sum(2) / on.sum(2), x.square().sum(2) / on.sum(2))
    x = x / sigma[..., None]
    latent = x + fit_t[..., None]

    def cell(mask: Tensor, *values: Tensor) -> Tensor:
        return torch.stack([(v * mask).mean(1) for v in values], -1)

    one = torch.ones_like(x[0])
    both, first, second = on[0] & on[1], on[0] & ~on[1], on[1] & ~on[0]
    sums = {
        "11": cell(both, one, latent[0] * latent[1], latent[0] ** 2 + latent[1] ** 2),
        "10": cell(first, one, x[0], x[0] ** 2),
        "01": cell(second, one, x[1], x[1] ** 2),
        "00": (~on[0] & ~on[1]).double().mean(1),
    }
    found, information = fit_pairs(fit_t[0], fit_t[1], sums)
    h = torch.where(on, latent, -hazard(fit_t)[..., None].expand_as(latent))
    _, _, mean = coefficients(fit_t.flatten())
    matched = invert_mehler(mean[:, :trials], mean[:, trials:], (h[0] * h[1]).mean(1))
    bound = (pair_bound(t[:1], t[1:], tensor(rho))[0, 4, 4] / n).sqrt()
    assert float((information * n).rsqrt().mean() / bound) == pytest.approx(
        1.0, abs=0.15
    )  # it takes the neurons as known
    return found - rho, matched - rho, bound


@pytest.mark.parametrize("rho", [-0.5, 0.02, 0.7])
def test_pairs_reach_the_bound(rho: float) -> None:
    error, matched, bound = simulate(rho)
    # 50 trials: the r.m.s. is known to 10 %.
    assert 0.75 < float(error.square().mean().sqrt() / bound) < 1.25
    assert float(error.norm() / matched.norm()) < 1.03


def test_one_neuron_reaches_the_bound_where_two_moments_do_not() -> None:
    t, n, trials = -1.0, 20_000, 100
    g = torch.randn(trials, n, generator=torch.Generator().manual_seed(3), dtype=D)
    x = (g - t).clamp_min(0)
    on = x > 0
    _, sigma = fit_neuron(on.double().mean(1), x.sum(1) / on.sum(1), x.square().sum(1) / on.sum(1))
    _, plain = match_moments(on.double().mean(1), x.mean(1))
    bound = float(neuron_errors(tensor(t))[1]) / math.sqrt(n)
    best, other = (float((s - 1).square().mean().sqrt()) / bound for s in (sigma, plain))
    assert 0.8 < best < 1.2
    assert other > 1.08 * best
