"""Regression of a level on the one below."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from forwardsr.learn.regression import Regression, regress


def inputs(n: int, q: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.relu(torch.randn(2, n, q, generator=generator) - 0.8)


def outputs(f: Tensor, v: Tensor, b: Tensor) -> Tensor:
    return torch.relu(f @ v.mT - b[:, None, :])


def fit(f: Tensor, y: Tensor, threshold: float = 1e-5, noise: float = 0.0) -> Regression:
    k, _, q = f.shape
    return regress(f, y, torch.full((k, y.shape[2]), threshold), torch.full((k, q), noise))


def test_exact_where_the_model_holds() -> None:
    generator = torch.Generator().manual_seed(1)
    v, b = torch.rand(2, 3, 5, generator=generator), 0.3 + 0.3 * torch.rand(2, 3, generator=generator)
    f = inputs(3000, 5)
    found = fit(f, outputs(f, v, b))
    assert float((found.V - v).abs().max()) < 1e-5
    assert float((found.b - b).abs().max()) < 1e-5
    assert float(found.residual.max()) < 1e-5
    assert float(found.disagreement.max()) == 0


def test_an_input_that_forbids_the_output_is_found_from_silent_samples() -> None:
    f = inputs(4000, 3)
    f[..., 2] = (f[..., 2] > 0) * (1 + f[..., 2])
    v, b = torch.tensor([[[1.0, 0.5, -5.0]]]).expand(2, 1, 3), torch.full((2, 1), 0.2)
    y = outputs(f, v, b)
    assert not bool(((y > 0)[..., 0] & (f[..., 2] > 0)).any())  # never together
    found = fit(f, y)
    assert float((found.V[:, :, :2] - v[:, :, :2]).abs().max()) < 0.02
    assert float(found.disagreement.max()) < 0.02
    assert bool((found.rounds > 0).any())


def test_noise_of_the_inputs_does_not_bias() -> None:
    generator = torch.Generator().manual_seed(2)
    sigma = 0.15
    f = inputs(60_000, 3)
    f = (f > 0) * (1 + f)  # noise never silences an input
    v, b = torch.tensor([[[1.0, 0.7, 0.4]]]).expand(2, 1, 3), torch.full((2, 1), 0.1)
    y = outputs(f, v, b)
    noisy = torch.where(f > 0, f + sigma * torch.randn(f.shape, generator=generator), torch.zeros(()))
    plain, corrected = (fit(noisy, y, threshold=0.01, noise=x) for x in (0.0, sigma))
    assert float((corrected.V - v).abs().max()) < 0.2 * float((plain.V - v).abs().max())


def test_an_input_never_seen_gets_no_weight() -> None:
    f = inputs(2000, 3)
    f[:, :, 1] = 0
    found = fit(f, outputs(f, torch.ones(2, 2, 3), torch.full((2, 2), 0.4)))
    assert bool(found.unseen[:, :, 1].all())
    assert bool((found.V[:, :, 1] == 0).all())
    assert float(found.residual.max()) == pytest.approx(0, abs=1e-5)
