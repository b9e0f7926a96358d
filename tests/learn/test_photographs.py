"""``minmax`` on photographs: each law against what it was learned from, on synthetic images where the truth is known."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from forwardsr.data.pyramid import Pyramid, pool, unfold
from forwardsr.errors import UserError
from forwardsr.learn import copula, innovations, photographs, upsampling
from forwardsr.learn.copula import FACTORS, factors, learn_first_level, shrunk_correlation
from forwardsr.learn.even import even_pairs
from forwardsr.learn.first_level_gan import learn_first_level_adversarially
from forwardsr.learn.innovations import (
    TYPICAL,
    details,
    latent_correlation,
    learn_innovations,
    mean_square,
)
from forwardsr.learn.photographs import learn_photographs
from forwardsr.learn.sliced import render
from forwardsr.learn.stream import Stream
from forwardsr.learn.upsampling import Moments, Upsampling, learn_upsampling
from forwardsr.learn.windows import gather, window
from forwardsr.learning_photographs import patch_side
from forwardsr.measure.novelty import novelty


class Blobs:
    """Finite source: smooth random images of 8 and 16 px, with speckle where they are far from grey."""

    name = "blobs"

    def __init__(self, n: int = 1500, sides: tuple[int, ...] = (8, 16), seed: int = 0, channels: int = 3) -> None:
        g = torch.Generator().manual_seed(seed)
        coarse = torch.randn(n, channels, 4, 4, generator=g)
        images = torch.nn.functional.interpolate(coarse, size=sides[-1], mode="bilinear")
        speckle = torch.randn(n, channels, sides[-1], sides[-1], generator=g)
        images = 0.5 * images + 0.3 * images.abs() * speckle
        self.pyramid = pool(images, sides)
        self.shapes = tuple(tuple(x.shape[1:]) for x in self.pyramid)

    def __len__(self) -> int:
        return self.pyramid.n

    def take(self, index: torch.Tensor, levels: int | None = None) -> Pyramid:
        return Pyramid([x[index] for x in self.pyramid[:levels]])

    def draw(self, n: int, generator: torch.Generator, levels: int | None = None) -> Pyramid:
        return self.take(torch.randint(len(self), (n,), generator=generator), levels)


def test_two_moments_of_an_innovation_are_those_of_draws() -> None:
    M = torch.tensor([-2.0, -0.7, 0.0, 0.4, 1.5])
    g = torch.randn(400_000, 1, generator=torch.Generator().manual_seed(0))
    y = (M + g).relu() - (M - g).relu()
    torch.testing.assert_close(mean_square(M), y.square().mean(0), rtol=0.02, atol=1e-3)


def test_latent_correlations_undo_the_threshold() -> None:
    M = TYPICAL
    g, h = torch.randn(2, 400_000, generator=torch.Generator().manual_seed(5))
    rho = torch.tensor(0.6)
    y, v = ((M + x).relu() - (M - x).relu() for x in (g, rho * g + (1 - rho**2).sqrt() * h))
    measured = torch.corrcoef(torch.stack([y, v]))[0, 1]
    assert measured < 0.55
    assert float(latent_correlation(measured)) == pytest.approx(0.6, abs=0.02)
    assert float(latent_correlation(-measured)) == pytest.approx(-0.6, abs=0.02)


def test_a_level_keeps_its_law_where_drawn_contrasts_are_not_like_real_ones() -> None:
    g = torch.Generator().manual_seed(0)
    parents, kinds = window(2)
    contrast, other = (torch.randn(4, 4000, 5, generator=g).abs() for _ in range(2))
    D = details(3, 4, torch.eye(3))
    size = 0.2 + gather(contrast, parents) @ torch.rand(16, 20, 36, generator=g) / 20
    residual = size * torch.randn(16, 4000, 36, generator=g) @ D.T

    def law(drawn: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """M ``(j, n, q)`` in drawn samples, and E y^2 there over that of the residuals."""
        own = learn_innovations(
            residual, residual, contrast, drawn, lambda at, some: torch.zeros(len(at), 4000, 48)[:, some], parents, kinds, 3, 4,
            torch.Generator().manual_seed(1),
        )  # fmt: skip
        M = gather(drawn, parents) @ own.slope - own.offset[:, None]
        power = (own.scale.square() * mean_square(M.clamp(-6, 6)).mean(1)).sum(1)
        return M, power / (residual @ own.D).square().mean(1).sum(1)

    for drawn in (other, 2 * other + 0.5):
        M, power = law(drawn)
        wanted, _ = law(contrast)
        torch.testing.assert_close(power, torch.ones(16), atol=0.01, rtol=0)
        assert float((M.mean(1) - wanted.mean(1)).abs().max()) < 0.02
        torch.testing.assert_close(M.std(1), wanted.std(1), rtol=0.1, atol=0)


def test_details_vanish_under_pooling_and_are_orthonormal() -> None:
    D = details(3, 4, torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(0)))[0])
    assert D.shape == (48, 36)
    torch.testing.assert_close(D.T @ D, torch.eye(36))
    pooled = torch.nn.functional.avg_pool2d(D.T.reshape(36, 3, 4, 4), 2)
    torch.testing.assert_close(pooled, torch.zeros_like(pooled), atol=1e-6, rtol=0)


def test_level_one_has_the_marginals_and_correlations_of_its_data() -> None:
    x = unfold(Blobs(4000).pyramid[0], 4)
    first = learn_first_level(x, torch.Generator().manual_seed(0))
    k, m, m_0 = first.V.shape
    # A signed Gaussian of its own for each feature, and what all share.
    torch.testing.assert_close(first.V[:, :, :-FACTORS].norm(dim=2), torch.ones(k, m))
    z = torch.randn(20_000, m_0, generator=torch.Generator().manual_seed(1))
    S = (z @ first.V.reshape(k * m, -1).T - first.b.reshape(-1)).relu().view(-1, k, m)
    drawn = torch.einsum("nkm,kdm->nkd", S, first.W) + first.mean
    assert float((drawn.mean(0) - x.mean(0)).abs().max()) < 0.03
    real, ours = torch.cov(x.flatten(1).T), torch.cov(drawn.flatten(1).T)
    assert float((real - ours).norm() / real.norm()) < 0.1
    q = torch.tensor([0.02, 0.25, 0.5, 0.75, 0.98])
    values = [((t - first.mean).transpose(0, 1) @ first.basis)[0, :, :4].quantile(q, dim=0) for t in (x, drawn)]
    assert float((values[0] - values[1]).abs().max()) < 0.1
    # The contrasts of drawn samples are |a|.
    shown = S.transpose(0, 1) @ first.contrast
    truth = ((drawn - first.mean).transpose(0, 1) @ first.basis).abs()
    assert float((shown - truth).square().mean() / truth.var()) < 0.02


def test_some_pictures_have_contrast_everywhere_and_some_nowhere() -> None:
    g = torch.Generator().manual_seed(0)
    signed = torch.randn(4000, 4, 12, generator=g)
    x = (
        torch.exp(0.6 * torch.randn(4000, 1, 1, generator=g))
        * signed
        @ torch.linalg.qr(torch.randn(12, 12, generator=g))[0]
    )

    def spread(patches: torch.Tensor) -> float:
        return float(patches.square().mean((1, 2)).log().std())

    first = learn_first_level(x, torch.Generator().manual_seed(0))
    k, m, m_0 = first.V.shape
    z = torch.randn(4000, m_0, generator=g)
    S = (z @ first.V.reshape(k * m, -1).T - first.b.reshape(-1)).relu().view(-1, k, m)
    drawn = torch.einsum("nkm,kdm->nkd", S, first.W) + first.mean
    # The deviation of an image's log energy: as in the data; with signed correlations alone it would be 0.3.
    assert spread(x) == pytest.approx(1.2, abs=0.1)
    assert spread(drawn) == pytest.approx(spread(x), rel=0.25)


def test_few_samples_shrink_correlations_and_many_do_not() -> None:
    g = torch.Generator().manual_seed(0)
    mix = torch.randn(20, 20, generator=g) / 20**0.5 + 0.5
    few, many = (torch.randn(n, 20, generator=g) @ mix for n in (15, 20_000))
    truth = mix.T @ mix
    scale = truth.diagonal().rsqrt()
    truth = (truth * scale * scale[:, None]).double()
    unit = [(x - x.mean(0)) / x.std(0) for x in (few, many)]
    assert float(torch.linalg.eigvalsh(shrunk_correlation(unit[0]))[0]) > 1e-3  # 15 samples alone give rank 15
    torch.testing.assert_close(shrunk_correlation(unit[1]), truth, atol=0.03, rtol=0)


def upsampled(chunks: list[tuple[Tensor, Tensor]], parents: Tensor, kinds: Tensor) -> Upsampling:
    moments = Moments(parents, *(x[:, :50].mean(1) for x in chunks[0]))
    for x, y in chunks:
        moments.add(x, y)
    return learn_upsampling(moments, kinds)


def test_upsampling_finds_a_linear_map_and_shares_it_where_all_patches_agree() -> None:
    g = torch.Generator().manual_seed(0)
    parents, kinds = window(2)
    x = torch.randn(4, 600, 5, generator=g)
    own = torch.randn(16, 20, 5, generator=g)
    shared = torch.randn(16, 20, 5, generator=g)[kinds]
    for B, expect_sharing in ((own, False), (shared, True)):
        y = gather(x, parents) @ B + 1.0 + 0.05 * torch.randn(16, 600, 5, generator=g)
        up = upsampled([(x[:, :250], y[:, :250]), (x[:, 250:], y[:, 250:])], parents, kinds)
        # On a 4 x 4 grid every patch is of a kind of its own, so shared and own solutions coincide.
        assert float((up.B - B).norm() / B.norm()) < 0.02, expect_sharing
        torch.testing.assert_close(up.mean, y.mean(1), atol=1e-4, rtol=0)
        assert up.errors[up.sharing] < 0.004


def test_errors_do_not_depend_on_the_provisional_means() -> None:
    g = torch.Generator().manual_seed(0)
    parents, kinds = window(2)
    x, y = torch.randn(4, 600, 5, generator=g) + 0.5, torch.randn(16, 600, 5, generator=g) + 1.0
    found = []
    for shift in (0.0, 2.0):
        moments = Moments(parents, x.mean(1) - shift, y.mean(1) + shift)
        moments.add(x, y)
        found.append(learn_upsampling(moments, kinds))
    assert found[1].errors == pytest.approx(found[0].errors, rel=1e-3)
    assert found[1].variance == pytest.approx(found[0].variance, rel=1e-3)


def test_sharing_is_chosen_on_held_out_samples() -> None:
    g = torch.Generator().manual_seed(0)
    parents, kinds = window(4)  # inner kinds have several patches
    x = torch.randn(16, 300, 4, generator=g)
    B = torch.randn(16, 16, 4, generator=g)[kinds]
    noisy = gather(x, parents) @ B + 2.0 * torch.randn(64, 300, 4, generator=g)
    shared = upsampled([(x, noisy)], parents, kinds)
    assert shared.sharing >= 1.0
    apart = gather(x, parents) @ torch.randn(64, 16, 4, generator=g)
    own = upsampled([(x, apart)], parents, kinds)
    assert own.sharing <= 1e-2
    assert own.errors[own.sharing] < 0.2 * own.errors[float("inf")]


def test_few_samples_ask_for_a_larger_ridge(monkeypatch: pytest.MonkeyPatch) -> None:
    g = torch.Generator().manual_seed(0)
    parents, kinds = window(2)
    scale = torch.linspace(0.1, 2, 20)
    x, fresh = (torch.randn(4, n, 20, generator=g) * scale for n in (160, 4000))
    B = torch.randn(16, 80, 20, generator=g)
    y = gather(x, parents) @ B + 15.0 * torch.randn(16, 160, 20, generator=g)

    def off() -> float:
        up = upsampled([(x, y)], parents, kinds)
        found = gather(fresh - up.below[:, None], parents) @ up.B + up.mean[:, None]
        return float((found - gather(fresh, parents) @ B).square().mean())

    chosen = off()
    monkeypatch.setattr(upsampling, "RIDGES", (1e-3,))
    assert chosen < 0.8 * off()


def test_a_learned_network_draws_like_its_images_and_pools_exactly() -> None:
    source = Blobs(2500)
    stages = []
    model = learn_photographs(
        Stream(source, 0, 4), 3, 0, on_stage=lambda record, state: stages.append((record, dict(state)))
    )
    drawn = model.sample(2500, torch.Generator().manual_seed(0))
    for real, ours in zip(source.pyramid, drawn):
        assert ours.shape[1:] == real.shape[1:]
        assert float(ours.std() / real.std()) == pytest.approx(1.0, abs=0.1)

    # Speckle is where images are far from grey, in the drawn ones too.
    def rough(images: torch.Tensor) -> torch.Tensor:
        coarse = torch.nn.functional.avg_pool2d(images, 2)
        fine = (images - torch.nn.functional.interpolate(coarse, scale_factor=2)).abs()
        return torch.corrcoef(torch.stack([torch.nn.functional.avg_pool2d(fine, 2).flatten(), coarse.abs().flatten()]))[
            0, 1
        ]

    assert float(rough(source.pyramid[-1])) > 0.3
    assert float(rough(drawn[-1])) > 0.15  # 0 where innovations know nothing of the coarser level
    z = model.latents(2000, torch.Generator().manual_seed(0))
    still = z.clone()
    still[:, model.V[0].shape[-1] :] = 0
    new = (model.render(model.hidden(z))[1] - model.render(model.hidden(still))[1]).abs()
    contrast = torch.nn.functional.interpolate(model.render(model.hidden(z))[0].abs(), scale_factor=2)
    assert float(torch.corrcoef(torch.stack([new.flatten(), contrast.flatten()]))[0, 1]) > 0.1
    pooled = torch.nn.functional.avg_pool2d(drawn[1], 2)
    assert float((pooled - drawn[0]).square().mean() / drawn[0].var()) < 0.01
    # From the state after level 1 the same network follows, bit for bit.
    first_state = stages[0][1]
    again = learn_photographs(Stream(source, 0, 4), 3, 0, resume=first_state)
    for a, b in zip(model.tensors().values(), again.tensors().values()):
        assert torch.equal(a, b)


def test_a_law_is_chosen_with_what_drawn_pictures_predict(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the second level, what the network's own coarse pictures predict there: like what real ones do, and less their mean."""
    source = Blobs(2500)
    source.pyramid = Pyramid([x + 0.7 for x in source.pyramid])
    state: dict[str, torch.Tensor] = {}
    seen: list[torch.Tensor] = []

    def law(real: torch.Tensor, expected: Callable[..., torch.Tensor], *_: object) -> tuple[float, float]:
        seen.extend([real, torch.cat([expected(torch.arange(j, j + 4), slice(0, 2000)) for j in range(0, 16, 4)])])
        return -5.6, 5.0

    monkeypatch.setattr(innovations, "choose_law", law)
    model = learn_photographs(Stream(source, 0, 4), 3, 0, on_stage=lambda _, now: state.update(now))
    real, expected = seen
    coarse = unfold(source.pyramid[0], 4).transpose(0, 1)
    truth = gather(coarse - state["below2."][:, None], state["parents2"]) @ state["B2."]
    assert expected.shape == (16, 2000, 48)
    assert float(expected.mean(1).abs().max()) < 0.1 * float(truth.std())
    assert float(real.mean(1).abs().max()) < 0.1 * float(truth.std())
    torch.testing.assert_close(expected.std(1), truth.std(1), rtol=0.15, atol=0.005)
    # And the network that follows draws them: its own pictures without innovations are these.
    z = model.latents(2000, torch.Generator().manual_seed(0))
    z[:, model.V[0].shape[-1] :] = 0
    still = unfold(model.render(model.hidden(z))[1], 4).transpose(0, 1)
    torch.testing.assert_close(still.mean(1), state["mean2"], atol=0.1 * float(truth.std()), rtol=0)
    torch.testing.assert_close(still.std(1), truth.std(1), rtol=0.2, atol=0.01)


def test_without_innovation_pictures_are_smooth() -> None:
    model = learn_photographs(Stream(Blobs(600), 0, 4), 3, 0, innovation=0.0)
    z = model.latents(2, torch.Generator().manual_seed(0))
    other = z.clone()
    other[:, model.V[0].shape[-1] :] += 1.0
    torch.testing.assert_close(model.render(model.hidden(z))[1], model.render(model.hidden(other))[1])


def test_grey_images_and_too_few() -> None:
    model = learn_photographs(Stream(Blobs(300, channels=1), 0, 4), 1, 0)
    assert model.sample(2, torch.Generator().manual_seed(0))[1].shape == (2, 1, 16, 16)
    with pytest.raises(UserError, match="at least 50"):
        learn_photographs(Stream(Blobs(30), 0, 4), 3, 0)
    with pytest.raises(UserError, match="double"):
        learn_photographs(Stream(Blobs(100, sides=(4, 16)), 0, 4), 3, 0)


def test_novelty_tells_copies_from_new_images() -> None:
    source = Blobs(800)
    copies = [x[:40].flip(-1) for x in source.pyramid]
    assert novelty(copies, source).copies == 1.0
    assert novelty(copies, source).nearest.tolist() == list(range(40))
    fresh = novelty(list(Blobs(40, seed=9).pyramid), source)
    assert fresh.copies == 0.0
    assert fresh.ratio == pytest.approx(1.0, abs=0.15)


def test_the_game_moves_level_one_and_keeps_its_form() -> None:
    x = unfold(Blobs(400).pyramid[0], 4)
    start = learn_first_level(x, torch.Generator().manual_seed(0))
    found = learn_first_level_adversarially(x, torch.Generator().manual_seed(0), 3, images=640)
    for name in ("W", "V", "b", "mean"):
        ours, theirs = getattr(found, name), getattr(start, name)
        assert ours.shape == theirs.shape
        assert not ours.requires_grad
        assert 0 < float((ours - theirs).norm() / theirs.norm().clamp_min(1.0)) < 0.2
    # Ten steps from the closed form the features' sizes are still read off the hidden layer.
    z = torch.randn(500, found.V.shape[2], generator=torch.Generator().manual_seed(1))
    k, m, _ = found.V.shape
    s = (z @ found.V.reshape(k * m, -1).T - found.b.reshape(-1)).relu().view(-1, k, m).transpose(0, 1)
    size = ((s @ found.W.mT) @ found.basis).abs()
    assert float((s @ found.contrast - size).square().mean() / size.var()) < 0.05


def test_what_level_1_s_rows_are_made_of() -> None:
    """A patch's features and the loudness, whatever the picture's number of latents."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(3000, 4, 4, generator=g) * torch.randn(3000, 1, 1, generator=g).exp()  # loud or faint as a whole
    start = learn_first_level(x, torch.Generator().manual_seed(1))
    C, R = factors(start.V)
    assert R.shape == (4, 4 + FACTORS, start.V.shape[2])
    torch.testing.assert_close(C @ R, start.V)
    assert float(C[..., -FACTORS:].square().sum()) > 1  # loadings


def test_signed_features_have_so_many_latents_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    g = torch.Generator().manual_seed(0)
    x = (torch.randn(4000, 5, generator=g) @ torch.randn(5, 16, generator=g)).view(4000, 4, 4)
    x += 0.05 * torch.randn(x.shape, generator=g)
    monkeypatch.setattr(copula, "LATENTS", 8)
    level = learn_first_level(x, torch.Generator().manual_seed(1))
    assert level.V.shape[2] == 8 + FACTORS
    z = torch.randn(20_000, 8 + FACTORS, generator=g)
    drawn = (render(level, z)[1].transpose(0, 1)).flatten(1)
    ours, theirs = torch.corrcoef(drawn.T), torch.corrcoef(x.flatten(1).T)
    assert float((ours - theirs).abs().max()) < 0.15


def test_the_finest_level_is_learned_from_all_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    source = Blobs(400)
    source.pyramid = Pyramid([torch.cat([x[:200] * 0, x[200:] * 0 + 1]) for x in source.pyramid])  # two folders
    monkeypatch.setattr(photographs, "SAMPLE_NUMBERS", 16 * 100)
    coarse, fine = photographs._sample(Stream(source, 0, 4), 2, 0)
    assert (coarse.shape[1], fine.shape[1]) == (400, 100)
    assert 0.35 < float(fine.mean()) < 0.65
    assert torch.equal(coarse[0, :100, 0], fine[0, :, 0])  # the same images


@pytest.mark.parametrize(("side", "patch"), [(4, 2), (6, 3), (8, 4), (12, 4), (16, 4)])
def test_patches_are_of_four_pixels_where_the_coarsest_level_holds_more_than_one(side: int, patch: int) -> None:
    assert patch_side(Blobs(4, sides=(side, 2 * side)), None) == patch


def test_samples_that_a_level_is_fitted_to_are_the_network_s() -> None:
    """Drawn level by level through the factors of V_l and W_l, and by the network from the same latents."""
    states: list[photographs.State] = []
    model = learn_photographs(
        Stream(Blobs(300, sides=(8, 16, 32)), 0, 4),
        3,
        on_stage=lambda record, state: states.append(dict(state)),
        level1="copula",
        innovation=0.7,
    )
    state, n = states[-1], 9
    random = torch.Generator().manual_seed(0)
    z = [even_pairs(n, model.V[0].shape[-1], torch.Generator().manual_seed(0))]
    drawn = photographs._first_drawn(state, [n, n], random)
    for l in range(3):
        if l:
            k, q = model.innovations[l - 1]
            z.append(torch.randn(k, n, q, generator=torch.Generator().manual_seed(l)).transpose(0, 1).flatten(1))
            drawn = photographs._drawn(state, l, n, *drawn, torch.Generator().manual_seed(l))
        rest = torch.zeros(n, model.latent_dim - sum(part.shape[1] for part in z))
        hidden = model.hidden(torch.cat([*z, rest], 1))[l].transpose(0, 1)
        torch.testing.assert_close(drawn[0], hidden @ model.W[l].mT + model.mean[l][:, None], rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(drawn[1], hidden @ state[f"contrast{l + 1}."], rtol=1e-3, atol=1e-3)


def test_levels_that_are_learned_already_are_drawn_again_when_learning_goes_on() -> None:
    source, states = Blobs(300, sides=(8, 16, 32)), []
    whole = learn_photographs(
        Stream(source, 0, 4), 3, on_stage=lambda _, state: states.append(dict(state)), level1="copula"
    ).tensors()
    for state in states[:2]:
        again = learn_photographs(Stream(source, 0, 4), 3, resume=state, level1="copula").tensors()
        assert all(torch.equal(tensor, again[name]) for name, tensor in whole.items())


def test_the_first_samples_are_even_for_every_level(monkeypatch: pytest.MonkeyPatch) -> None:
    state: photographs.State = {}
    learn_photographs(Stream(Blobs(300), 0, 4), 3, on_stage=lambda _, now: state.update(now), level1="copula")
    asked: list[int] = []
    monkeypatch.setattr(photographs, "even_pairs", lambda n, m, g: (asked.append(n), even_pairs(n, m, g))[1])
    patches, contrast = photographs._first_drawn(state, [400, 400, 100], torch.Generator().manual_seed(0))
    assert asked == [100, 300]
    assert patches.shape[1] == contrast.shape[1] == 400
