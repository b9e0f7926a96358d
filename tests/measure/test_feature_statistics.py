"""Features: exact Gabors are found exactly; colours, edges and overlaps whose values are known by hand."""

import json
import math

import pytest
import torch

from forwardsr.measure import features as module
from forwardsr.measure import gabor
from forwardsr.measure.features import critic_filters, describe, features, orientation, output_features, overlap
from forwardsr.measure.gabor import fit_gabors
from forwardsr.model.critic import Critic
from forwardsr.model.deconv_generator import DeconvGenerator
from forwardsr.model.plant import PlantConfig, plant
from forwardsr.model.pooled_generator import PooledGenerator


@pytest.fixture(autouse=True)
def _few_random_filters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RANDOM", 64)


def bank(n: int, side: int = 6, channels: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """``n`` exact Gabor filters, and their parameters."""
    g = torch.Generator().manual_seed(0)
    low = torch.tensor([-1.5, -1.5, 0.0, 0.08, math.log(1.0), math.log(1.0)])
    high = torch.tensor([1.5, 1.5, math.pi, 0.35, math.log(2.5), math.log(2.5)])
    shape = (low + (high - low) * torch.rand(n, 6, generator=g)).double()
    phase = 2 * math.pi * torch.rand(n, 1, generator=g).double()
    colour = torch.randn(n, channels, generator=g).double()
    q = torch.cat([shape, phase, colour], 1)
    return gabor._fit(q, side).view(n, channels, side, side), q


def test_exact_gabors_are_found_exactly() -> None:
    filters, q = bank(40)
    fit = fit_gabors(filters)
    assert fit.r2.min() > 1 - 1e-6
    turned = (fit.angle - q[:, 2]).abs()
    assert torch.minimum(turned, math.pi - turned).max() < 1e-3
    assert (fit.frequency - q[:, 3]).abs().max() < 1e-3


def test_a_bank_of_exact_gabors_in_grey_too() -> None:
    filters, _ = bank(10, channels=1)
    assert fit_gabors(filters).r2.min() > 1 - 1e-6


def test_r2_is_bounded_below_by_the_noise_and_above_by_it() -> None:
    # |w|^2 = 1 of Gabor and 1 of noise orthogonal to it in expectation: r^2 is about a half, and no less.
    filters, _ = bank(20)
    g = torch.Generator().manual_seed(1)
    noise = torch.randn(filters.shape, generator=g, dtype=torch.float64)
    unit = [x / x.flatten(1).norm(dim=1)[:, None, None, None] for x in (filters, noise)]
    r2 = fit_gabors(unit[0] + unit[1]).r2
    assert 0.45 < r2.mean() < 0.65


def test_invariances() -> None:
    filters, _ = bank(8)
    noisy = filters + 0.3 * torch.randn(filters.shape, generator=torch.Generator().manual_seed(2))
    fit = fit_gabors(noisy)
    torch.testing.assert_close(fit_gabors(-7 * noisy).r2, fit.r2, atol=1e-5, rtol=0)
    turned = fit_gabors(noisy.rot90(1, (2, 3)))
    torch.testing.assert_close(turned.r2, fit.r2, atol=5e-3, rtol=0)
    angle = (turned.angle - fit.angle).abs()
    assert (angle - math.pi / 2).abs().median() < 1e-2
    # permuting colours changes nothing
    torch.testing.assert_close(fit_gabors(noisy.flip(1)).r2, fit.r2, atol=1e-5, rtol=0)


def test_normal_equations_against_automatic_derivatives() -> None:
    _, q = bank(3)
    residual = torch.randn(3, 3, 36, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    H, right = gabor._normal_equations(q, residual, 6)
    for i in range(3):
        J = torch.autograd.functional.jacobian(lambda p: gabor._fit(p[None], 6)[0].flatten(), q[i])
        torch.testing.assert_close(H[i], J.T @ J, rtol=1e-6, atol=1e-8)
        torch.testing.assert_close(right[i], J.T @ residual[i].flatten(), rtol=1e-6, atol=1e-8)


def test_colours_and_flatness_by_hand() -> None:
    wave = torch.tensor([1.0, -1.0]).repeat(3).expand(6, 6)
    grey, chroma, plain = (
        wave.expand(3, 6, 6),
        torch.stack([wave, -wave, 0 * wave]),
        torch.tensor([0.7, 0.2, -0.1])[:, None, None].expand(3, 6, 6),
    )
    found = describe(1, "generator", torch.stack([grey, chroma, plain]), 0.3, 0.5)
    by_flat = found.flat.argsort()
    assert found.flat[by_flat].tolist() == pytest.approx([0, 0, 1], abs=1e-6)
    assert sorted(found.saturation.tolist())[0] == pytest.approx(0, abs=1e-6)
    assert sorted(found.saturation.tolist())[2] == pytest.approx(1, abs=1e-6)
    # plain: 1 - (sum c)^2 / (3 |c|^2) = 1 - 0.64 / 1.62
    assert found.saturation[by_flat[2]] == pytest.approx(1 - 0.64 / 1.62, abs=1e-6)
    assert found.edge[by_flat].tolist() == [
        True,
        True,
        False,
    ]  # a plain colour is no edge, however well a Gabor fits it
    # a wave of period 2 over pixels is at Nyquist's frequency, across columns
    assert found.frequency[by_flat[0]] == pytest.approx(0.5, abs=1e-3)


def test_waves_are_oriented_and_blobs_are_not() -> None:
    at = torch.arange(6.0) - 2.5
    blob = torch.exp(-(at[:, None] ** 2 + at**2) / 4).expand(3, 6, 6)
    wave = torch.cos(at[:, None] + 0.7 * at).expand(3, 6, 6)
    checks = torch.stack([torch.cos(2 * at).expand(6, 6), torch.cos(2 * at)[:, None].expand(6, 6), torch.zeros(6, 6)])
    found = orientation(torch.stack([blob, wave, checks, torch.zeros(3, 6, 6)]))
    assert found.tolist() == pytest.approx([0, 1, 0, 0], abs=2e-2)


def test_random_filters_are_no_edges() -> None:
    model = DeconvGenerator((8, 16), width=64, latent=4, generator=torch.Generator().manual_seed(5))
    result = features(model, seed=1)
    share = torch.cat([s.edge for s in result.sets]).double().mean()
    assert share < 0.05  # at most one in twenty passes either test
    # isotropic noise: 1/36 of its energy is flat, two thirds no grey, and cosines of sqrt(2 / (pi d))
    for s in result.sets:
        assert float(s.flat.mean()) == pytest.approx(1 / 36, abs=0.01)
        assert float(s.saturation.mean()) == pytest.approx(2 / 3, abs=0.03)
        assert s.coherence == pytest.approx(math.sqrt(2 / (math.pi * 108)), rel=0.05)


def test_overlap_of_a_set_with_itself_and_of_strangers() -> None:
    g = torch.Generator().manual_seed(0)
    a, b = torch.randn(64, 3, 6, 6, generator=g), torch.randn(64, 3, 6, 6, generator=g)
    itself = overlap(1, a, -3 * a[torch.randperm(64, generator=g)], g)
    assert itself.best == pytest.approx(1)
    assert itself.white < 0.35
    strangers = overlap(1, a, b, g)
    assert abs(strangers.best - strangers.white) < 4 * strangers.error
    # A common low-pass look is no agreement of single filters: the second baseline sees through it.
    smooth = torch.nn.functional.avg_pool2d(torch.randn(128, 3, 12, 12, generator=g), 7, stride=1)
    low = overlap(1, smooth[:64], smooth[64:], g)
    assert low.best > low.white + 0.1
    assert abs(low.best - low.same_spectrum) < 0.05


def test_output_features_are_the_columns_of_W() -> None:
    target = plant(PlantConfig(patches=(4, 16), channels=(5,), d=12, calibration=1000, shared=True))
    found = output_features(target)
    assert found[2].shape == (5, 3, 2, 2)
    torch.testing.assert_close(found[2][3].flatten(), target.W[1][0, :, 3])
    own = output_features(plant(PlantConfig(patches=(4, 16), channels=(5,), d=12, calibration=1000)))
    assert [len(f) for f in own.values()] == [20, 80]
    with pytest.raises(ValueError, match="no pictures"):
        output_features(plant(PlantConfig(patches=(2,), channels=(5,), d=7)))
    pooled = PooledGenerator((8, 16, 32), width=6, latent=4)
    assert list(output_features(pooled)) == [3]


def test_a_dead_filter_and_json() -> None:
    assert fit_gabors(torch.zeros(2, 3, 6, 6)).r2.tolist() == [0, 0]
    model = DeconvGenerator((8, 16), width=4, latent=4, generator=torch.Generator().manual_seed(5))
    critic = Critic((8, 16), width=8, generator=torch.Generator().manual_seed(6))
    assert critic_filters(critic)[2].shape == (8, 3, 6, 6)
    result = features(model, critic)
    assert [(s.level, s.owner) for s in result.sets] == [
        (1, "generator"), (1, "critic"), (2, "generator"), (2, "critic"),
    ]  # fmt: skip
    assert result.table().row_count == 4
    assert len(json.loads(json.dumps(result.to_json()))["sets"][1]["r2"]) == 8
