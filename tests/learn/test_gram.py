"""The Gram matrix near noisy pairwise correlations."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from forwardsr.learn.gram import near_correlation, with_columns


def correlations(p: int, latent: int, seed: int = 0) -> Tensor:
    v = torch.randn(p, latent, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    v = v / v.norm(dim=1, keepdim=True)
    return v @ v.T


def test_a_gram_matrix_known_well_is_kept() -> None:
    rho = correlations(12, 20)
    v = near_correlation(rho, torch.full_like(rho, 1e-6))
    assert float((v @ v.T - rho).abs().max()) < 1e-5


def test_an_impossible_matrix_becomes_possible_and_little_else() -> None:
    rho = correlations(12, 4)
    noise = 0.01 * torch.randn(12, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    noisy = (rho + torch.triu(noise, 1) + torch.triu(noise, 1).T).fill_diagonal_(1.0)
    assert float(torch.linalg.eigvalsh(noisy)[0]) < 0
    v = near_correlation(noisy, torch.full_like(rho, 0.01))
    near = v @ v.T
    assert torch.allclose(near.diagonal(), torch.ones(12, dtype=torch.float64))
    assert float(torch.linalg.eigvalsh(near)[0]) > -1e-12
    assert float((near - rho).norm()) < float((noisy - rho).norm())


def test_a_known_rank_lowers_the_error() -> None:
    rho = correlations(30, 5)
    noise = 0.01 * torch.randn(30, 30, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    noisy = (rho + torch.triu(noise, 1) + torch.triu(noise, 1).T).fill_diagonal_(1.0)
    v = near_correlation(noisy, torch.full_like(rho, 0.01), rank=5)
    assert v.shape == (30, 5)
    assert float((v @ v.T - rho).norm()) < 0.7 * float((noisy - rho).norm())


def test_others_hold_a_pair_that_nothing_is_known_of() -> None:
    rho = correlations(10, 3, seed=4)
    se = torch.full_like(rho, 1e-3)
    blind = rho.clone()
    blind[0, 1] = blind[1, 0] = 0.0
    se[0, 1] = se[1, 0] = float("inf")
    v = near_correlation(blind, se, rank=3)
    assert float((v @ v.T - rho)[0, 1].abs()) == pytest.approx(0.0, abs=0.01)


def test_zero_columns_change_nothing() -> None:
    v = torch.randn(4, 3, dtype=torch.float64)
    assert torch.allclose(with_columns(v, 7) @ with_columns(v, 7).T, v @ v.T, rtol=1e-14)
