"""The deconvolutional generator: shapes, linearity of the output, recalibration, determinism."""

import pytest
import torch
from torch import nn

from forwardsr.learn.joint import calibrate
from forwardsr.model.critic import Critic
from forwardsr.model.deconv_generator import DeconvGenerator, pyramid_sides
from forwardsr.model.protocol import LayeredGenerator


def small(sides: tuple[int, ...] = (8, 16, 32), seed: int = 0) -> DeconvGenerator:
    return DeconvGenerator(sides, width=8, latent=5, generator=torch.Generator().manual_seed(seed))


def test_figure_1_sizes() -> None:
    model = DeconvGenerator((8, 16, 32, 64))
    hidden = model.hidden(torch.randn(2, 128, generator=torch.Generator().manual_seed(0)))
    assert [tuple(s.shape) for s in hidden] == [(2, 64, side, side) for side in (4, 8, 16, 32)]
    assert [tuple(x.shape) for x in model.render(hidden)] == [(2, 3, side, side) for side in (8, 16, 32, 64)]
    assert [tuple(w.weight.shape) for w in model.outputs] == [(64, 3, 6, 6)] * 4
    assert [tuple(w.weight.shape) for w in Critic((8, 16, 32, 64)).first] == [(64, 3, 6, 6)] * 4
    assert isinstance(model, LayeredGenerator)


@pytest.mark.parametrize("base", [8, 12])
def test_any_even_base_side(base: int) -> None:
    sides = pyramid_sides(4 * base, base)
    model = small(sides)
    assert [x.shape[-1] for x in model.sample(2, torch.Generator().manual_seed(0))] == [base, 2 * base, 4 * base]


@pytest.mark.parametrize(("resolution", "base"), [(60, 8), (8, 16), (15, 15), (0, 8), (2, 2)])
def test_sides_that_do_not_double_are_refused(resolution: int, base: int) -> None:
    with pytest.raises(ValueError, match="power of two"):
        pyramid_sides(resolution, base)


def test_an_image_is_a_linear_function_of_its_hidden_layer() -> None:
    model = small().double().eval()
    hidden = model.hidden(torch.randn(2, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))
    other = [s.flip(0) for s in hidden]
    mixed = model.render([0.3 * a + 0.7 * b for a, b in zip(hidden, other)])
    for x, a, b in zip(mixed, model.render(hidden), model.render(other)):
        torch.testing.assert_close(x, 0.3 * a + 0.7 * b, rtol=1e-5, atol=1e-6)


def test_hidden_layers_are_not_negative_and_half_active_at_initialisation() -> None:
    for s in small().hidden(torch.randn(64, 5, generator=torch.Generator().manual_seed(1))):
        assert s.min() == 0
        assert 0.3 < (s > 0).float().mean() < 0.7


def test_recalibration_makes_evaluation_agree_with_a_large_training_batch() -> None:
    model = small()
    calibrate(model, range(len(model.layers)), seed=3, n=4096)
    assert not model.training
    model.train()
    z = torch.randn(4096, 5, generator=torch.Generator().manual_seed(4))
    in_training = model.hidden(z)[-1]
    in_evaluation = model.eval().hidden(z)[-1]
    assert (in_training - in_evaluation).norm() / in_training.norm() < 0.05
    assert all(m.momentum == 0.1 for m in model.modules() if isinstance(m, nn.BatchNorm2d))


def test_samples_depend_on_the_generator_alone() -> None:
    model = small().eval()
    first = model.sample(7, torch.Generator().manual_seed(5), batch=3)
    again = model.sample(7, torch.Generator().manual_seed(5), batch=7)
    for a, b in zip(first, again):
        torch.testing.assert_close(a, b)
    assert len(model.sample(2, torch.Generator().manual_seed(5), levels=1)) == 1


def test_innovations_move_their_own_level_and_finer_ones_and_their_own_place() -> None:
    model = DeconvGenerator((8, 16, 32), width=8, latent=5, innovations=3, generator=torch.Generator().manual_seed(0))
    model.eval()
    assert model.innovation_shapes == [(3, 6, 6), (3, 10, 10)]
    assert model.latent_dim == 5 + 3 * 36 + 3 * 100
    z = torch.randn(1, model.latent_dim, generator=torch.Generator().manual_seed(1)).repeat(2, 1)
    _, (second, third) = model.parts(z)
    assert second is not None
    assert third is not None
    third[1, :, 0, 9] += 1.0  # a corner outside the picture
    hidden = model.hidden(z)
    torch.testing.assert_close(hidden[1][0], hidden[1][1])
    # 16 x 16: a place has 2 x 2 of its own, of which 6 x 6 reach two around. Two pictures of a batch may differ in the last bit.
    moved = ((hidden[2][0] - hidden[2][1]).abs() > 1e-5).any(0)
    assert moved[:2, 14:].any()
    assert not moved[2:].any()
    assert not moved[:, :14].any()
    assert len(model.hidden(z, 2)) == 2
    second[1] += 1.0
    coarse, finer = model.hidden(z)[:2]
    assert float((finer[0] - finer[1]).detach().abs().max()) > 0.1
    torch.testing.assert_close(coarse[0], coarse[1])


def test_without_z_a_layer_is_what_the_one_below_determines() -> None:
    model = DeconvGenerator(
        (8, 16), width=8, latent=5, innovations=3, generator=torch.Generator().manual_seed(0)
    ).eval()
    s = torch.rand(2, 8, 4, 4)
    torch.testing.assert_close(model.layers[1](s), model.layers[1](s, torch.zeros(2, 3, 6, 6)))


def test_long_latents_are_drawn_in_blocks_whatever_the_batch() -> None:
    model = DeconvGenerator(
        (8, 16), width=4, latent=5, innovations=1, generator=torch.Generator().manual_seed(0)
    ).eval()
    for a, b in zip(*(model.sample(300, torch.Generator().manual_seed(5), batch=k) for k in (100, 256))):
        torch.testing.assert_close(a, b)


def test_a_hidden_layer_is_the_formula() -> None:
    model = DeconvGenerator(
        (8, 16), width=8, latent=5, innovations=3, generator=torch.Generator().manual_seed(0)
    ).eval()
    layer = model.layers[1]
    rng = torch.Generator().manual_seed(1)
    s, z = torch.rand(2, 8, 4, 4, generator=rng), torch.randn(2, 3, 6, 6, generator=rng)
    up = torch.nn.functional.conv_transpose2d
    pre = up(s, layer.V.weight, stride=2, padding=2) + up(z, layer.U.weight, stride=2, padding=4)
    torch.testing.assert_close(layer(s, z), torch.relu(layer.norm(pre)))
