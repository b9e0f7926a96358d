"""The closed-form learner's equations, each against samples of a network that is known."""

from __future__ import annotations

import pytest
import torch

from forwardsr.learn.closed_form import cross_talk_moments, exact_mass, fit_two_moments, sampled_mass, solve_output
from forwardsr.model.plant import PlantConfig, plant


def test_two_equations_give_norm_and_threshold() -> None:
    t, sigma, b = torch.tensor([1.3, 0.4]).double(), torch.tensor([2.0, 0.7]).double(), 0.15

    def ramp(u: torch.Tensor) -> torch.Tensor:
        return torch.exp(-u.square() / 2) / (2 * torch.pi) ** 0.5 - u * torch.special.ndtr(-u)

    u, found_t, found_sigma = fit_two_moments(torch.special.ndtr(-(t + b / sigma)), sigma * ramp(t + 2 * b / sigma), b)
    assert torch.allclose(found_t, t)
    assert torch.allclose(found_sigma, sigma)
    assert torch.allclose(u, t + b / sigma)


def test_mass_by_series_is_mass_by_samples() -> None:
    target = plant(PlantConfig(patches=(2,), channels=(5,), d=8, p=(0.1, 0.2), within=0.5)).map(dtype=torch.float64)
    v = target.V[0].flatten(0, 1)
    sigma = v.norm(dim=1)
    unit = v / sigma[:, None]
    exact = exact_mass(target.b[0].flatten() / sigma, sigma, unit @ unit.T, 0.1, 2)
    sampled = sampled_mass(target, target.W[0], 0.1, 200_000, 0)
    # A mean of at most 0.1 with spread 0.5 over 200,000 samples.
    assert float((exact - sampled).abs().max()) < 5e-3
    eye = torch.eye(5, dtype=torch.bool)
    assert float(exact[:, eye].min()) > float(exact[:, ~eye].max())


def test_cross_talk_is_what_orthonormal_columns_do_not_have() -> None:
    target = plant(PlantConfig(patches=(2,), channels=(5,), d=8, p=(0.1, 0.2)))
    rows, bias = target.V[0].flatten(0, 1).double(), target.b[0].flatten().double()
    assert all(float(x.abs().max()) < 1e-4 for x in cross_talk_moments(target.W[0], rows, bias, 0.1, 0.15, 0))
    skew = target.W[0] + 0.1 * target.W[0].roll(1, 2)
    rate, mean, pairs, mass = cross_talk_moments(skew, rows, bias, 0.1, 0.15, 0)
    assert min(float(x.abs().max()) for x in (rate, mean, pairs, mass)) > 1e-3


def test_output_layer_solves_its_equation() -> None:
    generator = torch.Generator().manual_seed(0)
    W = torch.linalg.qr(torch.randn(3, 7, 4, generator=generator, dtype=torch.float64))[0]
    mass = torch.eye(4, dtype=torch.float64) * 0.2 + 0.02 * torch.rand(
        3, 4, 4, generator=generator, dtype=torch.float64
    )
    assert torch.allclose(solve_output(mass, mass @ W.mT, torch.zeros(3, 7, 4)), W)


def test_a_dead_channel_keeps_its_column() -> None:
    W = torch.linalg.qr(torch.randn(1, 7, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64))[0]
    mass = torch.diag(torch.tensor([0.2, 0.1, 0.0], dtype=torch.float64))[None]
    found = solve_output(mass, mass @ W.mT, W)
    assert torch.allclose(found, W)
    assert float(found.norm(dim=1).min()) == pytest.approx(1)
