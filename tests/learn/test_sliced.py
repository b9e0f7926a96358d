"""Level 1's descent in the sliced Wasserstein distance."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from forwardsr.data.pyramid import fold, unfold
from forwardsr.learn import sliced
from forwardsr.learn.copula import FirstLevel, learn_first_level


def pictures(n: int, seed: int = 0) -> Tensor:
    """``(n, 4, 16)``: grey 8 x 8 pictures of which one half, left or right, is flat: no law of pairs says so."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(n, 1, 8, 8, generator=generator)
    left = torch.rand(n, 1, 1, generator=generator) < 0.5
    columns = torch.arange(8) < 4
    return unfold(image * torch.where(columns == left, 1.0, 0.0)[:, None], 4)


def apart(level: FirstLevel, x: Tensor) -> list[float]:
    """The three distances of fresh samples, in views that no descent has seen."""
    generator = torch.Generator().manual_seed(7)
    views = sliced._Views(x.permute(1, 2, 0), level, 1, 4000)
    views.turn(300, generator)
    _, drawn = sliced.render(level, torch.randn(4000, level.V.shape[2], generator=generator))
    return [float(distance) for distance in views.distances(drawn.mT)]


def test_what_no_pair_says_is_learned() -> None:
    x = pictures(6000)
    start = learn_first_level(x, torch.Generator().manual_seed(0))
    found = sliced.descend(x, start, torch.Generator().manual_seed(1), 1)
    before, after = apart(start, x), apart(found, x)
    assert after[0] < 0.85 * before[0]
    assert after[1] < 0.85 * before[1]
    assert after[2] < 0.85 * before[2]


def test_how_loud_the_finest_is_is_learned_from_energies_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Smooth pictures of 12 px with much speckle or little: windows and features are mostly of what is smooth."""
    g = torch.Generator().manual_seed(0)
    smooth = torch.nn.functional.interpolate(torch.randn(4000, 1, 4, 4, generator=g), size=12, mode="bilinear")
    loud = torch.where(torch.rand(4000, 1, 1, 1, generator=g) < 0.5, 0.05, 0.4)
    x = unfold(smooth + loud * torch.randn(4000, 1, 12, 12, generator=g), 4)
    start = learn_first_level(x, torch.Generator().manual_seed(0))
    found = []
    for weight in (sliced.ENERGY, 0.0):
        monkeypatch.setattr(sliced, "ENERGY", weight)
        found.append(apart(sliced.descend(x, start, torch.Generator().manual_seed(1), 1, 100), x))
    heard, unheard = found
    assert heard[2] < 0.93 * unheard[2]
    assert heard[0] < 1.1 * unheard[0]


def test_the_sizes_of_features_are_still_read_off_the_hidden_layer() -> None:
    x = pictures(3000)
    start = learn_first_level(x, torch.Generator().manual_seed(0))
    found = sliced.descend(x, start, torch.Generator().manual_seed(1), 1, steps=60)
    s, drawn = sliced.render(found, torch.randn(2000, found.V.shape[2], generator=torch.Generator().manual_seed(2)))
    size = ((drawn - found.mean[:, None]) @ found.basis).abs()
    assert float((s @ found.contrast - size).square().mean() / size.var()) < 0.2  # of the variance
    assert float((s @ start.contrast - size).square().mean()) > float((s @ found.contrast - size).square().mean())


def test_same_seed_same_network() -> None:
    x = pictures(1500)
    first, again = (sliced.learn_first_level_sliced(x, torch.Generator().manual_seed(3), 1) for _ in range(2))
    for name in ("W", "V", "b", "mean", "contrast"):
        assert torch.equal(getattr(first, name), getattr(again, name))


def test_the_distance_of_rows_and_its_gradient_are_those_of_a_sort() -> None:
    generator = torch.Generator().manual_seed(0)
    x, quantiles = torch.randn(5, 300, generator=generator), torch.randn(5, 300, generator=generator).sort(1).values
    unit = torch.rand(5, generator=generator) + 0.5
    found = []
    for apart_by in (
        lambda v: sliced._apart(v, quantiles, unit),
        lambda v: ((v.sort(1).values - quantiles).abs().mean(1) / unit).mean(),
    ):
        v = x.clone().requires_grad_()
        distance = 3 * apart_by(v)
        distance.backward()
        found.append((distance.detach(), v.grad))
    (ours, slope), (theirs, other) = found
    torch.testing.assert_close(ours, theirs, rtol=1e-2, atol=0.0)
    # Ties of the first 16 bits are in any order: their slopes may be exchanged, few of them are not equal.
    assert float(torch.isclose(slope, other).float().mean()) > 0.97
    torch.testing.assert_close(slope.sum(1), other.sum(1), rtol=0.1, atol=1e-2)


def test_steps_are_adam_s() -> None:
    generator = torch.Generator().manual_seed(0)
    ours, theirs = (torch.randn(4, 3, generator=generator).requires_grad_() for _ in range(2))
    theirs.data.copy_(ours)
    mine, torch_s = sliced._Adam(ours, 0.1), torch.optim.Adam([theirs], lr=0.05, betas=sliced.MOMENTUM)
    for _ in range(5):
        slope = torch.randn(4, 3, generator=generator)
        ours.grad, theirs.grad = slope.clone(), slope.clone()
        mine.step(0.5)
        torch_s.step()
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("channels", [1, 3])
def test_windows_are_squares_of_the_image_and_not_of_its_patches(channels: int) -> None:
    x = torch.randn(40, 4, 16 * channels, generator=torch.Generator().manual_seed(0))
    level = FirstLevel(*[torch.zeros(4, 1, 1)] * 2, torch.zeros(4, 1), torch.zeros(4, 16 * channels),
                       torch.eye(16 * channels).expand(4, -1, -1), torch.zeros(4, 1, 1))  # fmt: skip
    views = sliced._Views(x.permute(1, 2, 0), level, channels, 40)
    views.turn(200, torch.Generator().manual_seed(1))
    weights = fold(views.theta[:104].reshape(104, 4, -1), channels)  # those of the picture itself
    assert "squares" in kinds(weights)
    on = (weights != 0).any(1)
    assert set(on.any(2).sum(1).tolist()) == {2, 3, 4, 6, 8}
    straddles = on[:, :, 3] & on[:, :, 4]  # the border between two patches
    assert bool(straddles.any())
    centred = weights.sum((2, 3)).abs().amax(1) < 1e-4
    assert not bool(centred.any())


def kinds(weights: Tensor) -> set[str]:
    """What all of the weights ``(n, c, s, s)`` are: exact squares, and without a sum in any colour."""
    on = (weights != 0).any(1)
    height, width = on.any(2).sum(1), on.any(1).sum(1)
    squares = torch.equal(height, width) and torch.equal(on.sum((1, 2)), height * width)
    contrasts = float(weights.sum((2, 3)).abs().max()) < 1e-4
    return {name for name, true in (("squares", squares), ("contrasts", contrasts)) if true}


def test_a_quarter_of_the_directions_are_of_coarser_bands_and_a_quarter_of_the_next_level_s_finest() -> None:
    """Their shares, and their spectra: white, smooth, and without what is smooth."""
    weights = sliced.directions(1000, 3, 12, torch.Generator().manual_seed(0))
    plain, coarse, fine = weights.split([520, 240, 240])
    assert [kinds(part) for part in (plain, coarse, fine)] == [{"squares"}, set(), {"contrasts"}]

    def rough(part: Tensor) -> float:
        """The share of squares that is in differences of neighbours: a half of white weights."""
        steps = part.diff(dim=3).square().mean() / 4 + part.diff(dim=2).square().mean() / 4
        return float(steps / part.square().mean())

    assert rough(coarse) < 0.3 * rough(plain)
    ramp = torch.linspace(-1, 1, 12).expand(3, 12, 12).flatten()
    share = [
        float((part.flatten(1) @ ramp).square().mean() / part.flatten(1).square().sum(1).mean())
        for part in (coarse, fine)
    ]
    assert share[1] < 0.1 * share[0]


def test_more_samples_than_are_sorted_and_fewer_than_take_all_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sliced, "REAL", 500)
    turned: list[Tensor] = []
    turn = sliced._Views.turn
    monkeypatch.setattr(
        sliced._Views, "turn", lambda self, *rest: (turned.append(self.real[0, 0]), turn(self, *rest))[1]
    )
    x = pictures(1500)
    x = x[x[:, 0, 0].argsort()]  # as from folders
    start = learn_first_level(x, torch.Generator().manual_seed(0))
    found = sliced.descend(x, replace(start), torch.Generator().manual_seed(1), 1)
    assert {len(first) for first in turned} == {500}
    assert float(turned[0][:250].mean()) == pytest.approx(float(turned[0][250:].mean()), abs=0.3)
    assert float(turned[0].std()) == pytest.approx(float(x[:, 0, 0].std()), rel=0.1)
    assert len(turned) == -(-max(sliced.FEWEST_STEPS, 1500 // sliced.A_STEP) // sliced.REUSED)
    assert not found.V.requires_grad


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.03)])
def test_the_network_s_gradient_is_autograd_s(dtype: torch.dtype, tolerance: float) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = (100, 5), (3, 7, 4), (3, 4, 5), (3, 6, 7), (3, 7)
    z, *weights = (torch.randn(s, generator=generator) for s in shapes)
    ours, theirs = ([t.clone().requires_grad_() for t in weights] for _ in range(2))
    x = sliced._Patches.apply(z, *ours, dtype)  # type: ignore[no-untyped-call]
    C, R, W, b = theirs
    both = torch.cat([z, -z])
    expected = torch.einsum("kdm,kmn->kdn", W, (torch.einsum("kml,nl->kmn", C @ R, both) - b[..., None]).relu())
    weight = torch.rand(x.shape, generator=generator)
    for drawn in (x, expected):
        (drawn * weight).sum().backward()
    assert x.dtype == torch.float32
    assert float(((x - expected).norm() / expected.norm()).detach()) < tolerance
    for a, e in zip(ours, theirs):
        assert float((a.grad - e.grad).norm() / e.grad.norm()) < tolerance


def test_half_the_precision_is_enough_for_the_descent() -> None:
    x = pictures(3000)
    start = learn_first_level(x, torch.Generator().manual_seed(0))
    found = [
        sliced.descend(x, start, torch.Generator().manual_seed(1), 1, 60, precision)
        for precision in ("float32", "bfloat16")
    ]
    assert not torch.equal(found[0].V, found[1].V)
    for full, half in zip(*(apart(level, x) for level in found)):
        assert half == pytest.approx(full, rel=0.1)


@pytest.mark.parametrize("channels", [1, 3])
def test_energies_are_those_of_blocks_about_their_means(channels: int) -> None:
    """Of the pictures, and not of what is left of their mean."""
    image = torch.randn(300, channels, 8, 8, generator=torch.Generator().manual_seed(0))
    image += 3 * torch.randn(channels, 8, 8, generator=torch.Generator().manual_seed(1))  # a mean with contrast
    x = unfold(image, 4)
    views = sliced._Views(x.permute(1, 2, 0), learn_first_level(x, torch.Generator().manual_seed(0)), channels, 100)
    drawn = x.permute(1, 2, 0).clone().requires_grad_()
    energy = views._energy(drawn)
    assert energy.shape == (49, 300)
    pixels = image.clone().requires_grad_()
    about = []
    for y in range(7):
        for column in range(7):
            inside = pixels[:, :, y : y + 2, column : column + 2].flatten(2)
            about.append((inside - inside.mean(2, keepdim=True)).square().sum((1, 2)) / (3 * channels))
    torch.testing.assert_close(energy, torch.stack(about), rtol=1e-4, atol=1e-4)
    weight = torch.rand(49, 300, generator=torch.Generator().manual_seed(2))
    (energy * weight).sum().backward()
    (torch.stack(about) * weight).sum().backward()
    assert drawn.grad is not None
    assert pixels.grad is not None
    torch.testing.assert_close(drawn.grad.permute(2, 0, 1), unfold(pixels.grad, 4), rtol=1e-4, atol=1e-4)


def test_quantiles_of_the_real_are_between_its_values() -> None:
    x = torch.tensor([[3.0, 0.0, 2.0, 1.0], [30.0, 0.0, 20.0, 10.0]])
    torch.testing.assert_close(sliced._quantiles(x, 2), torch.tensor([[0.5, 2.5], [5.0, 25.0]]))
    torch.testing.assert_close(sliced._quantiles(x, 4)[0], torch.arange(4.0))
    torch.testing.assert_close(sliced._quantiles(x, 8)[0], torch.tensor([0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3]))


def test_other_real_samples_are_looked_at_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sliced, "SEEN", 300)
    x = pictures(1500)
    level = learn_first_level(x, torch.Generator().manual_seed(0))
    views = sliced._Views(x.permute(1, 2, 0), level, 1, 100)
    seen: list[Tensor] = []
    look = views._signed
    monkeypatch.setattr(views, "_signed", lambda x: (seen.append(x), look(x))[1])
    generator = torch.Generator().manual_seed(1)
    for _ in range(2):
        views.turn(4, generator)
    assert seen[0].shape[2] == seen[1].shape[2] == 300
    assert not torch.equal(seen[0], seen[1])
