"""Warm starts find the columns of W from samples alone, whatever their order, and say which they did not find."""

from statistics import NormalDist

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from forwardsr.errors import UserError
from forwardsr.learn.cumulants import average_alone, contract, third_moment
from forwardsr.learn.warm_start import cumulant_warm_start, missing_features


def sparse_patches(n: int, k: int, m: int, d: int, p: float, rho: float = 0.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    """x (n, k, d) and W (k, d, m): thresholded Gaussians with random correlations of about rho within a patch."""
    generator = torch.Generator().manual_seed(seed)
    w = torch.linalg.qr(torch.randn(k, d, m, generator=generator))[0]
    mix = torch.eye(m) + rho / m**0.5 * torch.randn(k, m, m, generator=generator)
    g = torch.einsum("kij,nkj->nki", mix / mix.norm(dim=2, keepdim=True), torch.randn(n, k, m, generator=generator))
    s = (g - NormalDist().inv_cdf(1 - p)).clamp_min(0) * (1 + torch.rand(k, m, generator=generator))
    return torch.einsum("kdm,nkm->nkd", w, s), w


def column_errors(found: Tensor, truth: Tensor) -> Tensor:
    """||W*_p - W_P(p)|| under the best permutation P of each patch (Lemma A.1)."""
    errors = []
    for a, b in zip(found, truth):
        rows, columns = linear_sum_assignment(-(b.T @ a).numpy())
        errors.append((b[:, rows] - a[:, columns]).norm(dim=0))
    return torch.stack(errors)


def test_third_moment_is_the_triple_product() -> None:
    y = torch.randn(2, 3, 5000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    moment = third_moment(y)
    torch.testing.assert_close(moment, torch.einsum("kan,kbn,kcn->kabc", y, y, y) / 5000)
    a = torch.randn(2, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(contract(moment, a), torch.einsum("kabc,kar,kbr->kcr", moment, a, a))


@pytest.mark.parametrize("rho", [0.0, 0.5])
def test_cumulants_find_every_feature_once(rho: float) -> None:
    x, w = sparse_patches(20000, 6, 12, 20, 0.08, rho)
    found = cumulant_warm_start(x, 12, torch.Generator().manual_seed(0))
    assert column_errors(found, w).max() < 0.08
    torch.testing.assert_close(found.norm(dim=1), torch.ones(6, 12))
    assert not missing_features(x, found).any()


def test_noise_is_tolerated() -> None:
    x, w = sparse_patches(20000, 4, 8, 20, 0.08)
    x = x + 0.1 * x.square().mean().sqrt() * torch.randn(x.shape, generator=torch.Generator().manual_seed(3))
    found = cumulant_warm_start(x, 8, torch.Generator().manual_seed(0))
    assert column_errors(found, w).max() < 0.08


def test_the_start_turns_with_the_data() -> None:
    x, _ = sparse_patches(5000, 2, 6, 10, 0.1)
    turn = torch.linalg.qr(torch.randn(10, 10, generator=torch.Generator().manual_seed(5)))[0]
    one = cumulant_warm_start(x, 6, torch.Generator().manual_seed(0))
    other = cumulant_warm_start(x @ turn.T, 6, torch.Generator().manual_seed(0))
    assert column_errors(other, turn @ one).max() < 1e-3


def test_a_dead_channel_is_reported_and_spoils_no_other() -> None:
    x, w = sparse_patches(20000, 3, 8, 12, 0.1)
    x[:, 1] -= torch.einsum("nd,d,e->ne", x[:, 1], w[1, :, 4], w[1, :, 4])
    found = cumulant_warm_start(x, 8, torch.Generator().manual_seed(0))
    missing = missing_features(x, found)
    assert missing.sum(1).tolist() == [0, 1, 0]
    assert (column_errors(found, w) < 0.08).sum(1).tolist() == [8, 7, 8]


def test_a_repeated_or_mixed_feature_is_missing() -> None:
    x, w = sparse_patches(5000, 1, 6, 10, 0.1)
    repeated, mixed = w.clone(), w.clone()
    repeated[0, :, 3] = w[0, :, 2]
    mixed[0, :, 0], mixed[0, :, 1] = (w[0, :, 0] + w[0, :, 1]) / 2**0.5, (w[0, :, 0] - w[0, :, 1]) / 2**0.5
    assert not missing_features(x, w).any()
    assert missing_features(x, repeated)[0, 3]
    assert missing_features(x, mixed)[0, 1]


def test_averaging_single_active_samples_is_exact_without_noise() -> None:
    x, w = sparse_patches(20000, 1, 6, 6, 0.05)
    start = w + 0.1 * torch.randn(w.shape, generator=torch.Generator().manual_seed(2)) / 6**0.5
    y = x.permute(1, 2, 0)
    coarse = average_alone(y, start / start.norm(dim=1, keepdim=True), (0.9, 0.97), 20)
    fine = average_alone(y, coarse, (0.999, 0.99999), 20)
    assert (fine - w).norm(dim=1).max() < (coarse - w).norm(dim=1).max() / 10


def test_bad_input_gives_one_line() -> None:
    generator = torch.Generator().manual_seed(0)
    with pytest.raises(UserError, match="at most 4 channels"):
        cumulant_warm_start(torch.zeros(1000, 2, 4), 5, generator)
    with pytest.raises(UserError, match="needs 60"):
        cumulant_warm_start(torch.zeros(30, 2, 4), 3, generator)
    with pytest.raises(UserError, match="NaN"):
        cumulant_warm_start(torch.full((100, 2, 4), float("nan")), 3, generator)
