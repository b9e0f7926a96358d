"""The discriminators compute what the paper writes, and their inner maxima are the closed forms (B.2), (C.2), (C.13)."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from forwardsr.model.activations import Activation
from forwardsr.model.discriminators import (
    D1,
    D2,
    D4,
    D5,
    barrier,
    barrier_curvature,
    barrier_slope,
    beside,
    coordinates,
    log_simplex,
    negative_entropy,
    pair_weights,
)

K, M, D, N = 2, 3, 5, 40


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def features(k: int = K, seed: int = 1) -> Tensor:
    return torch.linalg.qr(rand(k, D, M, seed=seed))[0]


def test_d1_is_the_sum_over_channels() -> None:
    w, y, v = features(), rand(N, K, D), rand(K, M, D, seed=2)
    d1 = D1(w, 0.2)
    n, j = 7, 1
    s = w[j].T @ y[n, j]
    expected = sum((s[r] > 0.2) * (y[n, j] @ v[j, r]) for r in range(M))
    torch.testing.assert_close(d1(y, v)[n, j], expected)
    torch.testing.assert_close(d1(y, v).mean(0), (d1.moment(y) * v).sum((1, 2)))


@settings(deadline=None, max_examples=20)
@given(st.floats(0.2, 3.0), st.integers(0, 1000))
def test_d1_inner_maximum_is_b2(c: float, seed: int) -> None:
    d1 = D1(features(), 0.2, c)
    gap = rand(K, M, D, seed=seed)
    best = d1.best(gap)
    value = (gap * best).sum((1, 2)) - d1.penalty(best)
    torch.testing.assert_close(value.log(), d1.log_best_value(gap))
    torch.testing.assert_close(gap, d1.penalty_gradient(best))
    near = best + 0.1 * rand(K, M, D, seed=seed + 1)
    assert (value > (gap * near).sum((1, 2)) - d1.penalty(near)).all()


def test_d1_at_the_papers_exponent_is_a_maximum_without_overflow() -> None:
    d1 = D1(features(), 0.2, 0.001)
    gap = 1e-2 * rand(K, M, D)
    assert torch.isfinite(d1.log_best_value(gap)).all()
    scaled = (d1.log_best_value(gap) / 1001).exp() / (d1.log_best_value(gap * 2) / 1001).exp()
    torch.testing.assert_close(scaled, torch.full((K,), 0.5, dtype=torch.float64))
    assert not d1.penalty_gradient(torch.zeros(K, M, D, dtype=torch.float64)).any()


def test_d4_thresholds_are_2b_and_b() -> None:
    w = torch.eye(D, M, dtype=torch.float64).expand(1, D, M).contiguous()
    d4 = D4(w, b=0.5, zeta=0.0, kappa=3.0)
    y = torch.zeros(3, 1, D, dtype=torch.float64)
    y[:, 0, 0] = torch.tensor([0.4, 0.7, 1.7])
    vw = torch.tensor([2.0, -1.0], dtype=torch.float64)[:, None, None].expand(2, 1, M)
    # o_k(2) = 6 weighs (s - 1)_+, o_k(-1) = -1 weighs 1[s > 0.5]
    torch.testing.assert_close(d4(y, vw)[:, 0, 0], torch.tensor([0.0, -1.0, 6 * 0.7 - 1], dtype=torch.float64))


def test_d4_inner_maximum_is_c2() -> None:
    d4 = D4(features(), 0.1, kappa=2.0)
    gap = rand(2, K, M)
    best = d4.best(gap)
    value = (gap * d4.output(best) - best.square()).sum(0)
    torch.testing.assert_close(value, d4.best_value(gap))
    # The generator's shortfall (gap > 0) weighs kappa^2 times as much as its excess (Remark 4.1).
    torch.testing.assert_close(d4.best_value(gap.abs()), 4 * d4.best_value(-gap.abs()))
    grid = torch.linspace(-5, 5, 2001, dtype=torch.float64)[:, None, None, None]
    objective = gap * torch.where(grid > 0, 2 * grid, grid) - grid.square()
    assert (objective.amax(0).sum(0) <= value + 1e-12).all()


def test_d4_slopes_are_derivatives() -> None:
    d4 = D4(features(), 0.1, zeta=0.3)
    s = rand(N, K, M).requires_grad_()
    for i in range(2):
        (slope,) = torch.autograd.grad(d4.features(s)[i].sum(), s)
        torch.testing.assert_close(slope, d4.slopes(s)[i])


def test_d5_is_the_sum_over_ordered_pairs() -> None:
    w, y = features(), rand(N, K, D)
    weights = pair_weights(torch.ones(K * M, K * M), M, 2.0, 0.5).double()
    d5 = D5(w, 0.1, weights, zeta=0.0)
    u = log_simplex(rand(2, K * M, K * M)).exp()
    s = (torch.einsum("nkd,kdm->nkm", y, w) - 0.1).clamp_min(0).reshape(N, -1)
    expected = torch.zeros(N, dtype=torch.float64)
    for a in range(K * M):
        for b in range(K * M):
            if a != b:
                c = 2.0 if a // M == b // M else 0.5
                expected += c * (u[0, a, b] - u[1, a, b]) * s[:, a] * s[:, b]
    torch.testing.assert_close(d5(y, u), expected)
    torch.testing.assert_close(d5(y, u).mean(), (d5.signed(u) * d5.moment(coordinates(y, w))).sum())


def test_d5_inner_maximum_is_c13() -> None:
    q = K * M
    d5 = D5(features(), 0.1, pair_weights(torch.ones(q, q), M, 2.0, 0.5).double())
    gap = rand(q, q)
    gap = gap + gap.T
    best = d5.best_log(gap)
    value = (d5.signed(best.exp()) * gap).sum() - negative_entropy(best)
    torch.testing.assert_close(value, d5.best_value(gap))
    torch.testing.assert_close(best.exp().sum(), torch.tensor(1.0, dtype=torch.float64))
    other = log_simplex(best + 0.3 * rand(2, q, q, seed=5))
    assert value > (d5.signed(other.exp()) * gap).sum() - negative_entropy(other)
    # Uniform where moments agree: the logarithm of the number of signed ordered pairs.
    assert float(d5.best_value(torch.zeros(q, q, dtype=torch.float64))) == pytest.approx(math.log(2 * q * (q - 1)))


def test_barrier_rises_near_parallel_rows_and_has_its_slope() -> None:
    rho = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    assert barrier(rho) < 1e-15
    rho[0, 1] = rho[1, 0] = -0.98
    assert float(barrier(rho)) == pytest.approx(2.0)
    # Nothing where a target's correlations end (Fact C.11), a wall where Assumption 2.3 ends.
    rho[0, 1] = rho[1, 0] = 0.9
    assert float(barrier_slope(rho).abs().max()) < 1e-7
    rho = rand(4, 4).requires_grad_()
    (slope,) = torch.autograd.grad(barrier(rho, 3.0, 0.1), rho, create_graph=True)
    torch.testing.assert_close(slope, barrier_slope(rho, 3.0, 0.1))
    (curvature,) = torch.autograd.grad(slope.sum(), rho)
    torch.testing.assert_close(curvature, barrier_curvature(rho.detach(), 3.0, 0.1))


def test_pairs_are_heard_above_their_noise_alike() -> None:
    """Independent pairs of all frequencies: the weighted moment has one standard deviation; silent pairs have a floor."""
    p = torch.tensor([0.5, 0.1, 0.02], dtype=torch.float64)
    active = (torch.rand(100000, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) < p).double()
    weights = pair_weights(torch.outer(p, p), 3, within=1.0)
    products = active[:, :, None] * active[:, None, :]
    spread = (products.std(0) * weights)[~torch.eye(3, dtype=torch.bool)]
    torch.testing.assert_close(spread, torch.ones(6, dtype=torch.float64), rtol=0.05, atol=0.0)
    silent = pair_weights(torch.zeros(4, 4), 2, 3.0, 1.0, least=0.01)
    torch.testing.assert_close(silent[0], torch.tensor([0.0, 30.0, 10.0, 10.0]))


def test_d2_vanishes_on_the_true_map_within_its_tolerance() -> None:
    """X_l = W ReLU(V S - b) passes at (V, b), fails elsewhere; parents are read in the order of the graph."""
    parents = torch.tensor([[1, 0], [0, 2], [2, 1]])
    w_below, w = features(3, seed=3), features(3, seed=4)
    v, beta = rand(3, M, 2 * M, seed=5), rand(3, M, seed=6).abs()
    below = rand(N, 3, M, seed=7).clamp_min(0)
    pre = torch.stack([torch.cat([below[:, i] for i in parents[j]], 1) @ v[j].T - beta[j] for j in range(3)], 1)
    y = torch.einsum("kdm,nkm->nkd", w, pre.clamp_min(0))
    y_below = torch.einsum("kdm,nkm->nkd", w_below, below)
    exact = D2(w, w_below, parents, b=0.0, zeta=0.0)
    assert exact(y, y_below, v, beta).max() < 1e-12
    assert (exact(y, y_below, 1.1 * v, beta).mean((0, 2)) > 1e-2).all()
    torch.testing.assert_close(beside(below, parents)[1], torch.cat([below[:, 0], below[:, 2]], 1))
    tolerant = D2(w, w_below, parents, b=0.5, zeta=0.0)
    off = D2(w, w_below, parents, b=0.0, zeta=0.0)(y, y_below, v, beta + 0.3)
    assert off.max() > 0.29
    assert tolerant(y, y_below, v, beta + 0.3).max() == 0


def test_smoothing_shares_one_zeta() -> None:
    d2 = D2(features(), features(), torch.tensor([[0], [1]]), 0.1, 0.2)
    assert d2.leaky == Activation("leaky", 0.2)
    assert d2.abs.b == 0.1
    assert d2.abs.zeta == 0.2
