"""The efficient learner's W: exact without noise, near the bound with it, and honest where there is none."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from forwardsr.data.planted import PlantedSource
from forwardsr.data.pyramid import Pyramid
from forwardsr.errors import UserError
from forwardsr.learn import efficient
from forwardsr.learn.features import FEW, audit, learn_features, refine
from forwardsr.learn.hyperplanes import hyperplane_start
from forwardsr.learn.stream import Stream
from forwardsr.measure.certificate import match
from forwardsr.model.plant import PlantConfig, plant

SMALL = PlantConfig(patches=(4,), channels=(6,), d=10, p=(0.1, 0.15))


class Fixed:
    """A source that draws whatever a function makes of a generator."""

    name = "fixed"

    def __init__(self, make: object, shapes: tuple[tuple[int, ...], ...]) -> None:
        self.make, self.shapes = make, shapes

    def draw(self, n: int, generator: torch.Generator, levels: int | None = None) -> Pyramid:
        return Pyramid([self.make(n, generator)])  # type: ignore[operator]


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def error(w: Tensor, w_star: Tensor) -> float:
    order, _ = match(w.double(), w_star.double())
    return float((w.gather(2, order[:, None].expand_as(w)) - w_star).norm(dim=1).max())


def sparse(n: int, k: int, m: int, p: float, generator: torch.Generator) -> Tensor:
    """Independent channels, active with probability p and exponential while active: ``(k, m, n)``."""
    on = torch.rand(k, m, n, generator=generator) < p
    return on * torch.rand(k, m, n, generator=generator).log().neg()


def test_exact_without_noise() -> None:
    target = plant(SMALL)
    found = learn_features(Stream(PlantedSource(target), 0), 0, 6, 10_000, rng(), 1)
    assert error(found.W, target.W[0]) < 2e-6
    assert error(found.warm, target.W[0]) > 1e-4  # so it was refinement that did it
    assert not bool(found.bad.any())
    assert bool((found.noise == 0).all())


def test_a_channel_a_thousand_times_weaker_is_found() -> None:
    # Its cross-talk is weak too: slabs as wide as a strong channel's hold samples of others that drown it (error 0.07).
    mixing = torch.linalg.qr(torch.randn(2, 9, 5, generator=rng(3)))[0]
    scale = torch.tensor([1e-3, 1.0, 1.0, 1.0, 1.0])[:, None]
    source = Fixed(lambda n, g: (mixing @ (scale * sparse(n, 2, 5, 0.1, g))).permute(2, 0, 1), ((2, 9),))
    found = learn_features(Stream(source, 0), 0, 5, 10_000, rng(), 1)
    assert error(found.W, mixing) < 2e-4  # rounding, 1e-7, over 1e-3
    assert not bool(found.bad.any())


def test_columns_need_not_be_orthonormal() -> None:
    mixing = torch.linalg.qr(torch.randn(2, 9, 5, generator=rng(3)))[0]
    mixing[:, :, 0] = 0.8 * mixing[:, :, 0] + 0.6 * mixing[:, :, 1]
    source = Fixed(lambda n, g: (mixing @ sparse(n, 2, 5, 0.2, g)).permute(2, 0, 1), ((2, 9),))
    found = learn_features(Stream(source, 0), 0, 5, 10_000, rng(), 1)
    assert error(found.W, mixing) < 2e-6


@pytest.mark.parametrize("n", [20_000, 200_000])  # the latter begins with the subspace and the columns of a few of them
def test_noise_is_estimated_and_the_error_is_near_its_bound(n: int) -> None:
    target = plant(SMALL)
    source = PlantedSource(target, noise=0.1)
    found = learn_features(Stream(source, 0), 0, 6, n, rng(), 1)
    sigma = 0.1 * source.rms[0]
    assert float(found.noise.mean()) == pytest.approx(sigma, rel=0.02)
    s = target.hidden(target.latents(n, rng(2)))[0]
    # Known s would leave W, a regression, with variance sigma^2 / (n E[s^2]) a number, d numbers a column.
    bound = sigma * (10 / (n * s.square().mean())) ** 0.5
    assert error(found.W, target.W[0]) < 3 * float(bound)


def test_refinement_does_not_depend_on_where_it_starts() -> None:
    s = sparse(5000, 1, 4, 0.2, rng(1))
    u, _, vh = torch.linalg.svd(torch.eye(4) + 0.1 * torch.randn(1, 4, 4, generator=rng(2)))
    wrong = u @ vh
    refined = refine(s, wrong, torch.zeros(1))
    assert error(refined, torch.eye(4, dtype=torch.float64)[None]) < 1e-6


def test_audit_rejects_mixtures_repeats_and_silence() -> None:
    s = sparse(4000, 1, 4, 0.2, rng(1))
    clean = torch.eye(4, dtype=torch.float64)[None]
    assert not bool(audit(s, clean, torch.zeros(1)).any())
    mixed = clean.clone()
    mixed[0, :2, :2] = torch.tensor([[1.0, -1.0], [1.0, 1.0]]) / 2**0.5
    # The difference is negative half the time; the sum is never silent while the difference speaks.
    assert audit(s, mixed, torch.zeros(1))[0].tolist() == [True, True, False, False]
    s[:, 3] = 0
    assert bool(audit(s, clean, torch.zeros(1))[0, 3])


def test_hyperplanes_find_channels_that_fire_together_and_faint_ones() -> None:
    s = sparse(10_000, 1, 6, 0.1, rng(1))
    together = torch.rand(10_000, generator=rng(2)) < 0.7
    s[0, 1] = torch.where(together, s[0, 0] * torch.rand(10_000, generator=rng(3)), s[0, 1])
    s[0, 5] *= 0.05
    found = hyperplane_start(s[0], 0.0, rng(4))
    assert error(found[None], torch.eye(6, dtype=torch.float64)[None]) < 1e-4
    # Half of the rows known: the other half is found all the same.
    again = hyperplane_start(s[0], 0.0, rng(5), torch.eye(6, dtype=torch.float64)[:3])
    assert error(again[None], torch.eye(6, dtype=torch.float64)[None]) < 1e-4


def test_strongly_dependent_channels_are_repaired() -> None:
    mixing = torch.linalg.qr(torch.randn(1, 9, 5, generator=rng(3)))[0]

    def make(n: int, g: torch.Generator) -> Tensor:
        s = sparse(n, 1, 5, 0.1, g)
        s[0, 1] = torch.where(torch.rand(n, generator=g) < 0.8, 0.5 * s[0, 0] + 0.1 * (s[0, 0] > 0), s[0, 1])
        return (mixing @ s).permute(2, 0, 1)

    found = learn_features(Stream(Fixed(make, ((1, 9),)), 0), 0, 5, 10_000, rng(), 1)
    assert not bool(found.bad.any())
    assert error(found.W, mixing) < 1e-4


@pytest.mark.parametrize(
    ("make", "m", "n", "message"),
    [
        (lambda n, g: torch.zeros(n, 1, 6), 3, 4000, "zero"),
        (lambda n, g: torch.full((n, 1, 6), float("nan")), 3, 4000, "NaN"),
        (lambda n, g: torch.randn(n, 1, 6, generator=g), 7, 4000, "too few for 7 channels"),
        (lambda n, g: torch.randn(n, 1, 6, generator=g), 3, 100, "150 are needed"),
        (lambda n, g: torch.randn(n, 1, 1, generator=g) * torch.ones(6), 3, 4000, "dead"),
    ],
)
def test_bad_input_is_named(make: object, m: int, n: int, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        learn_features(Stream(Fixed(make, ((1, 6),)), 0), 0, m, n, rng(), 1)
    assert "\n" not in str(caught.value)


def test_patches_learned_in_groups_are_those_learned_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    target = plant(PlantConfig(patches=(2, 8), channels=(6,), d=12, p=(0.1, 0.15)))
    stream = Stream(PlantedSource(target), 0)
    whole, _, _ = efficient.feature_stage(stream, 1, 6, 20_000, 0, 1)
    monkeypatch.setattr(efficient, "HELD", 3 * FEW * 12)
    parts, metrics, notes = efficient.feature_stage(stream, 1, 6, 20_000, 0, 1)
    assert metrics["bad"] == 0
    assert notes == []
    assert whole["W2"].shape == target.W[1].shape
    torch.testing.assert_close(parts["W2"], whole["W2"], atol=2e-6, rtol=0)


def test_a_dead_patch_is_named_by_its_number_among_all(monkeypatch: pytest.MonkeyPatch) -> None:
    target = plant(PlantConfig(patches=(2, 8), channels=(6,), d=12, p=(0.1, 0.15)))
    target.W[1][5] = 0
    monkeypatch.setattr(efficient, "HELD", 3 * FEW * 12)
    with pytest.raises(UserError, match="patch 5 shows 0 directions"):
        efficient.feature_stage(Stream(PlantedSource(target), 0), 1, 6, 20_000, 0, 1)


def test_noisy_samples_in_order_are_learned_as_well_as_shuffled_ones() -> None:
    """Four channels are nearly always active in the first tenth of the samples: what is read there says little of the rest."""
    generator = torch.Generator().manual_seed(0)
    m, n, noise = 24, 200_000, 0.03
    w = torch.linalg.qr(torch.randn(m, m, generator=generator)).Q
    p = torch.full((m, n), 0.3)
    p[:4, : n // 10] = 0.95
    s = torch.randn(m, n, generator=generator).abs() * (torch.rand(m, n, generator=generator) < p)
    y = (w @ s + noise * torch.randn(m, n, generator=generator))[None]
    start = (w + 0.02 * torch.randn(m, m, generator=generator))[None].double()
    found = [
        refine(x, start / start.norm(dim=1, keepdim=True), torch.tensor([noise]))[0].float()
        for x in (y, y[:, :, torch.randperm(n, generator=generator)])
    ]
    ordered, shuffled = ((columns - w).norm(dim=0).max() for columns in found)
    assert float(ordered) <= 1.2 * float(shuffled) < 0.01
