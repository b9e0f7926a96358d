"""The sliced Wasserstein distance: against hand-derived values, invariances, and the same number computed another way."""

from __future__ import annotations

import io
import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from scipy import stats
from torch import Tensor

from forwardsr.data.pyramid import Pyramid, pool
from forwardsr.data.scale import double
from forwardsr.errors import UserError
from forwardsr.measure import _swd
from forwardsr.measure.distance import Distance, Reference, Sampling

FEW = Sampling(patches=4, groups=2, directions=8)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(n: int, side: int, channels: int = 3, seed: int = 0) -> Tensor:
    """Smooth random images in [-1, 1], so that all bands hold something."""
    coarse = torch.rand(n, channels, 2, 2, generator=rng(seed)) * 1.6 - 0.8
    fine = torch.rand(n, channels, side, side, generator=rng(seed + 1)) * 0.4 - 0.2
    return torch.nn.functional.interpolate(coarse, side, mode="bilinear") + fine


def pyramid(n: int, sides: list[int], channels: int = 3, seed: int = 0) -> Pyramid:
    return pool(images(n, sides[-1], channels, seed), sides)


def pixels(values: Tensor) -> Pyramid:
    """Grey images of a single pixel: there all directions are +1 or -1, and the distance is that of the values."""
    return Pyramid([values.reshape(-1, 1, 1, 1)])


# The 1-Wasserstein distance of sorted samples


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ([0.0, 1.0], [2.0, 3.0], 2.0),
        ([0.0], [0.0, 1.0], 0.5),
        ([0.0, 0.0, 3.0], [1.0, 1.0], 4 / 3),  # 1 over two thirds of the mass, 2 over one third
        ([-1.0, 1.0], [-1.0, 1.0], 0.0),
        ([0.0, 1.0, 2.0, 3.0], [0.0, 3.0], 0.5),
    ],
)
def test_wasserstein_by_hand(a: list[float], b: list[float], expected: float) -> None:
    assert _swd.wasserstein(torch.tensor(a), torch.tensor(b)).item() == pytest.approx(expected)


@given(m=st.integers(1, 12), k=st.integers(1, 12), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_wasserstein_agrees_with_scipy(m: int, k: int, seed: int) -> None:
    a = torch.randn(m, generator=rng(seed), dtype=torch.float64).sort().values
    b = torch.randn(k, generator=rng(seed + 100), dtype=torch.float64).sort().values
    expected = stats.wasserstein_distance(a.numpy(), b.numpy())
    assert _swd.wasserstein(a, b).item() == pytest.approx(expected, abs=1e-12)
    assert _swd.wasserstein(b, a).item() == pytest.approx(expected, abs=1e-12)


def test_wasserstein_of_uniform_and_exponential_quantiles() -> None:
    """W1(U[0, 1], Exp(1)) is the integral of -log(1 - u) - u over [0, 1], 1/2."""
    u = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    assert _swd.wasserstein(u, -torch.log1p(-u)).item() == pytest.approx(0.5, abs=1e-4)


# Laplacian bands and patches


@pytest.mark.parametrize("side", [1, 4, 7, 9, 12, 24, 28, 48, 64])
def test_bands_sum_back_to_the_image(side: int) -> None:
    x = images(3, side).double()
    bands = _swd.laplacian(x)
    assert [b.shape[-1] for b in bands] == _swd.band_sides(side)
    total = bands[0]
    for detail in bands[1:]:
        total = double(total) + detail
    torch.testing.assert_close(total, x)


def test_band_sides_stop_where_a_patch_no_longer_fits() -> None:
    assert _swd.band_sides(64) == [8, 16, 32, 64]
    assert _swd.band_sides(48) == [12, 24, 48]
    assert _swd.band_sides(28) == [7, 14, 28]
    assert _swd.band_sides(9) == [9]
    assert _swd.band_sides(4) == [4]


def test_a_constant_is_in_the_low_pass_band_alone() -> None:
    low, *details = _swd.laplacian(torch.full((1, 1, 64, 64), 0.7, dtype=torch.float64))
    torch.testing.assert_close(low, torch.full_like(low, 0.7))
    assert max(d.abs().max().item() for d in details) < 1e-14


def test_patches_are_slices_of_the_band() -> None:
    band = images(2, 10)
    found = _swd.patches(band, torch.tensor([0, 6])).reshape(2, 2, 3, 7, 7)  # 4 x 4 places: (0, 0) and (1, 2)
    assert torch.equal(found[:, 0], band[:, :, 0:7, 0:7])
    assert torch.equal(found[:, 1], band[:, :, 1:8, 2:9])


def test_patches_of_a_band_smaller_than_a_patch_are_the_band() -> None:
    band = images(5, 4)
    assert torch.equal(_swd.patches(band, torch.tensor([0])), band)


def test_projections_agree_with_standardising_first() -> None:
    x = (
        torch.randn(50, 3, 7, 7, generator=rng(), dtype=torch.float64) * torch.tensor([1.0, 0.1, 5.0])[:, None, None]
        + 2
    )
    theta = torch.randn(6, 3, 7, 7, generator=rng(1), dtype=torch.float64)
    z = torch.stack([(x[:, c] - x[:, c].mean()) / x[:, c].std(correction=0) for c in range(3)], 1)
    expected = torch.stack([torch.einsum("rcij,mcij->rm", theta, y).sort(-1).values for y in (x, z)])
    torch.testing.assert_close(_swd.project(x, theta), expected)


# The distance


def test_equal_sets_are_at_distance_zero_in_any_order() -> None:
    real = pyramid(24, [8, 16, 32])
    reference = Reference(real, pyramid(24, [8, 16, 32], seed=9), sampling=FEW)
    shuffle = torch.randperm(24, generator=rng(3))
    for same in (real, Pyramid([x[shuffle] for x in real])):
        found = reference.compare(same)
        assert max(*found.raw, *found.standardised) < 1e-3
        assert found.score() == 0
    assert min(found.floor_raw) > 1


def test_the_order_of_images_does_not_matter() -> None:
    reference = Reference(pyramid(24, [8, 16]), pyramid(24, [8, 16], seed=9), sampling=FEW)
    other = pyramid(20, [8, 16], seed=5)
    a, b = reference.compare(other), reference.compare(Pyramid([x.flip(0) for x in other]))
    assert a.raw == pytest.approx(b.raw)
    assert a.standardised == pytest.approx(b.standardised)


def test_a_shift_of_one_pixel_images_is_seen_by_raw_alone_and_exactly() -> None:
    """One grey pixel: W1 of a shift by t is |t|, so the raw distance is 1,000 |t|, and the standardised one 0."""
    values = torch.rand(100, generator=rng()) - 0.5
    found = Reference(pixels(values), pixels(values), sampling=FEW).compare(pixels(values + 0.3))
    assert found.raw == pytest.approx((300,), rel=1e-5)
    assert found.standardised == pytest.approx((0,), abs=0.01)


def test_contrast_of_one_pixel_images_is_seen_by_raw_alone_and_exactly() -> None:
    """Half at -1 and half at +1 against half at -1/2 and half at +1/2: everything moves by 1/2."""
    values = torch.tensor([-1.0, 1.0]).repeat(50)
    found = Reference(pixels(values), pixels(values), sampling=FEW).compare(pixels(values / 2))
    assert found.raw == pytest.approx((500,), rel=1e-5)
    assert found.standardised == pytest.approx((0,), abs=0.01)


def test_a_colour_shift_moves_the_low_pass_band_of_every_level_by_the_sum_of_the_directions() -> None:
    """Shifting channel c by t_c shifts the projection on theta by sum_c t_c sum_ij theta_cij, for all patches alike."""
    real = pyramid(16, [8, 16, 32])
    shift = torch.tensor([0.2, 0.0, -0.1])
    reference = Reference(real, real, sampling=FEW)
    found = reference.compare(Pyramid([x + shift[:, None, None] for x in real]))
    for level, probes in enumerate(reference._probes):
        theta = torch.cat(probes[0].directions)
        expected = 1e3 * torch.einsum("rcij,c->r", theta, shift).abs().mean().item()
        low, *details = found.bands_raw[level]
        assert low == pytest.approx(expected, rel=1e-4)
        assert details == pytest.approx([0.0] * level, abs=1e-3)
        assert found.raw[level] == pytest.approx(expected / (level + 1), rel=1e-3)
    assert found.standardised == pytest.approx((0, 0, 0), abs=0.01)


def test_standardised_is_blind_to_every_channels_contrast_and_offset() -> None:
    real = pyramid(16, [8, 16])
    scale, shift = torch.tensor([0.5, 0.9, 0.2])[:, None, None], torch.tensor([0.1, -0.3, 0.0])[:, None, None]
    found = Reference(real, real, sampling=FEW).compare(Pyramid([x * scale + shift for x in real]))
    assert found.standardised == pytest.approx((0, 0), abs=0.05)
    assert min(found.raw) > 20


def test_float32_agrees_with_float64() -> None:
    real, other = pyramid(16, [8, 16, 32]), pyramid(16, [8, 16, 32], seed=5)
    single = Reference(real, other, sampling=FEW).compare(other)
    double = Reference(real.map(dtype=torch.float64), other.map(dtype=torch.float64), sampling=FEW).compare(
        other.map(dtype=torch.float64)
    )
    assert single.raw == pytest.approx(double.raw, rel=1e-4)
    assert single.standardised == pytest.approx(double.standardised, rel=1e-4)


def test_the_floor_falls_as_one_over_root_n() -> None:
    def floor(n: int) -> float:
        values = torch.randn(24, 2, n, generator=rng(n))
        zero = pixels(torch.zeros(2))
        return sum(Reference(pixels(a), pixels(b), sampling=FEW).compare(zero).floor_raw[0] for a, b in values)

    assert floor(64) / floor(1024) == pytest.approx(4, rel=0.25)


def test_a_collapse_to_few_images_is_far_above_the_floor() -> None:
    sides = [8, 16]
    real, other, fresh = (pyramid(256, sides, seed=s) for s in (0, 10, 20))
    reference = Reference(real, other, sampling=FEW)
    few = Pyramid([x[:4].repeat(64, 1, 1, 1) for x in fresh])
    assert reference.compare(few).score() > math.log(2) > reference.compare(fresh).score() + 0.3


@pytest.mark.parametrize(("sides", "channels"), [([1], 1), ([4, 8], 1), ([8, 16], 3), ([12, 24, 48], 3), ([5], 2)])
def test_constant_images_give_finite_numbers(sides: list[int], channels: int) -> None:
    constant = pool(torch.full((4, channels, sides[-1], sides[-1]), 0.3), sides)
    varied = pyramid(4, sides, channels)
    for real, generated in ((constant, varied), (varied, constant), (constant, constant)):
        found = Reference(real, real, sampling=FEW).compare(generated)
        numbers = (*found.raw, *found.standardised, *found.floor_raw, *found.diversity, *found.spacing)
        assert all(map(math.isfinite, (*numbers, found.score())))
    assert found.score() == 0


def test_numbers_of_images_may_differ() -> None:
    """Every image twice is the same empirical distribution."""
    real = pyramid(12, [8, 16])
    found = Reference(real, real, sampling=FEW).compare(Pyramid([x.repeat(2, 1, 1, 1) for x in real]))
    assert max(*found.raw, *found.standardised) < 0.01
    assert (found.n, found.n_real) == (24, 12)


def test_patch_form_is_folded() -> None:
    real, other = pyramid(8, [12, 24]), pyramid(8, [12, 24], seed=5)
    image, patch = Reference(real, other, sampling=FEW), Reference(real.unfold(6), other.unfold(6), sampling=FEW)
    assert image.compare(other) == patch.compare(other.unfold(6))


def test_not_a_number_is_infinitely_bad_and_valid_json() -> None:
    real = pyramid(6, [8])
    found = Reference(real, real, sampling=FEW).compare(Pyramid([torch.full_like(x, math.nan) for x in real]))
    assert found.score() == math.inf
    assert json.loads(json.dumps(found.to_json(), allow_nan=False))["raw"] == [None]
    found.table()


def test_other_shapes_are_refused() -> None:
    real = pyramid(6, [8, 16])
    with pytest.raises(ValueError, match="do not compare"):
        Reference(real, real, sampling=FEW).compare(real[:1])


# The score and the table


def distance(**changes: object) -> Distance:
    values = dict(
        sides=(8,), standardised=(40.0,), raw=(9.0,), floor_standardised=(10.0,), floor_raw=(1.0,), diversity=(0.5,),
        real_diversity=(0.2,), spacing=(0.1,), real_spacing=(0.2,), bands_standardised=((40.0,),), bands_raw=((9.0,),),
        n=10, n_real=10,
    )  # fmt: skip
    return Distance(**(values | changes))  # type: ignore[arg-type]


def test_score_is_the_log_of_the_geometric_mean_of_the_ratios() -> None:
    assert distance().score() == pytest.approx(math.log(6))  # ratios 4 and 9
    assert distance(raw=(0.5,)).score() == pytest.approx(math.log(2))  # below the floor counts as at it


def test_table_shows_the_real_vs_real_row() -> None:
    console = Console(width=120, file=io.StringIO())
    console.print(distance().table())
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert text.count("real vs real") == 2
    assert "40.00" in text
    assert "8 px" in text


# Sources


class Numbers:
    """A finite source whose sample i is one grey pixel of value i; remembers what was taken."""

    name, shapes = "numbers", ((1, 1, 1),)

    def __init__(self, size: int) -> None:
        self.size, self.taken = size, list[Tensor]()

    def __len__(self) -> int:
        return self.size

    def take(self, index: Tensor, levels: int | None = None) -> Pyramid:
        self.taken.append(index)
        return pixels(index.float())

    def draw(self, n: int, generator: torch.Generator, levels: int | None = None) -> Pyramid:
        return self.take(torch.randint(self.size, (n,), generator=generator))


@pytest.mark.parametrize(("size", "n", "expected"), [(40, 10, 10), (13, 10, 6)])
def test_a_finite_source_gives_disjoint_draws_or_halves(size: int, n: int, expected: int) -> None:
    source = Numbers(size)
    reference = Reference.from_source(source, n, sampling=FEW)
    taken = torch.cat(source.taken)
    assert reference.n == expected
    assert len(taken.unique()) == len(taken) == 2 * expected


def test_a_streamed_source_is_drawn_twice_and_a_seed_repeats_it() -> None:
    class Normal:
        name, shapes = "normal", ((1, 1, 1),)

        def draw(self, n: int, generator: torch.Generator, levels: int | None = None) -> Pyramid:
            return pixels(torch.randn(n, generator=generator))

    first, again, other = (
        Reference.from_source(Normal(), 20, seed, sampling=FEW).compare(pixels(torch.zeros(20))) for seed in (1, 1, 2)
    )
    assert first == again
    assert first.floor_raw[0] > 0
    assert first.raw != other.raw


def test_a_source_too_small_is_refused_by_name() -> None:
    with pytest.raises(UserError, match=r"numbers: .* give more"):
        Reference.from_source(Numbers(3), 10)
