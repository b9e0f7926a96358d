"""MS-SSIM of pairs: hand-derived values, and what it has to see."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.metrics import structural_similarity

from forwardsr.measure.diversity import WEIGHTS, diversity, ms_ssim, spacing


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("side", [1, 2, 4, 8, 12, 24, 64])
def test_equal_images_have_similarity_one(side: int) -> None:
    x = torch.rand(3, 3, side, side, generator=rng(side)) * 2 - 1
    torch.testing.assert_close(ms_ssim(x, x), torch.ones(3))
    assert diversity(x[:1].repeat(6, 1, 1, 1), rng()) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(("side", "scales"), [(8, 1), (16, 2), (64, 4)])
def test_constant_images_differ_in_luminance_alone(side: int, scales: int) -> None:
    """sigma = 0, so s = 1, and l = (2ab + C1) / (a^2 + b^2 + C1) counts at the coarsest scale with its share of the weights."""
    a, b = 0.5, 0.25
    x = torch.full((1, 1, side, side), a, dtype=torch.float64)
    luminance = (2 * a * b + 0.02**2) / (a * a + b * b + 0.02**2)
    weight = WEIGHTS[scales - 1] / math.fsum(WEIGHTS[:scales])
    assert ms_ssim(x, torch.full_like(x, b)).item() == pytest.approx(luminance**weight)


def test_one_scale_is_the_structural_similarity_of_the_literature() -> None:
    """At 11 px there is one scale and one place for the window; scikit-image's value at the middle pixel is that place's."""
    x, y = torch.rand(2, 11, 11, generator=rng(), dtype=torch.float64) * 2 - 1
    mixed = (0.7 * x + 0.3 * y).clamp(-1, 1)
    _, everywhere = structural_similarity(
        x.numpy(),
        mixed.numpy(),
        data_range=2,
        gaussian_weights=True,
        use_sample_covariance=False,
        full=True,
        truncate=3.4,
    )
    assert ms_ssim(x[None, None], mixed[None, None]).item() == pytest.approx(everywhere[5, 5], rel=1e-6)


@given(side=st.sampled_from([1, 3, 8, 14, 28]), seed=st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_symmetric_and_bounded(side: int, seed: int) -> None:
    x, y = torch.rand(2, 4, 3, side, side, generator=rng(seed)) * 2 - 1
    found = ms_ssim(x, y)
    torch.testing.assert_close(found, ms_ssim(y, x))
    assert found.isfinite().all()
    assert (found.abs() <= 1 + 1e-5).all()


def test_varied_images_are_more_diverse_than_variants_of_one() -> None:
    varied = torch.rand(40, 3, 16, 16, generator=rng()) * 2 - 1
    variants = varied[:1] + 0.05 * torch.randn(40, 3, 16, 16, generator=rng(1))
    assert diversity(varied, rng()) < 0.3 < 0.9 < diversity(variants, rng())


def test_one_image_has_no_pair() -> None:
    with pytest.raises(ValueError, match="two images"):
        diversity(torch.zeros(1, 3, 8, 8), rng())
    with pytest.raises(ValueError, match="two images"):
        spacing(torch.zeros(1, 3, 8, 8))


def test_spacing_is_the_mean_distance_to_the_nearest_other() -> None:
    """On a line at 0, 1, 3: nearest are 1, 1 and 2 away."""
    x = torch.tensor([0.0, 1.0, 3.0])[:, None, None, None] * torch.ones(3, 8, 8)
    assert spacing(x) == pytest.approx(4 / 3)
    assert spacing(torch.nn.functional.interpolate(x, 64)) == pytest.approx(
        4 / 3
    )  # a constant is its own low-pass band


def test_spacing_sees_a_collapse_to_many_images_that_similarity_does_not() -> None:
    varied = torch.rand(60, 3, 8, 8, generator=rng()) * 2 - 1
    copies = varied[:30].repeat(2, 1, 1, 1)
    assert spacing(copies) == 0 < 0.5 < spacing(varied)
    assert diversity(copies, rng()) == pytest.approx(diversity(varied, rng()), abs=0.1)
