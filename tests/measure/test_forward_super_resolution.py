"""Forward super-resolution: maps that are linear, maps that are not, and pooling whose error is known."""

import json
import math

import pytest
import torch

from forwardsr.data.pyramid import Pyramid, pool
from forwardsr.measure.forward_super_resolution import (
    ForwardSuperResolution,
    forward_super_resolution,
    linear_errors,
    pooling_errors,
)
from forwardsr.model.deconv_generator import DeconvGenerator
from forwardsr.model.patch_generator import PatchGenerator
from forwardsr.model.plant import PlantConfig, plant
from forwardsr.model.pooled_generator import PooledGenerator


def test_X_is_linear_in_its_own_layer_and_not_below() -> None:
    target = plant(
        PlantConfig(patches=(4, 16), parents=2, mixing=0.3, channels=(6,), d=12, calibration=4000, p=(0.2, 0.3))
    )
    found = linear_errors(target, 600)
    for level in (0, 1):
        assert found[level, False][0] < 1e-5
        assert found[level, True][0] > 0.1


def test_where_no_unit_is_ever_cut_off_the_layer_below_does_as_well() -> None:
    g = torch.Generator().manual_seed(0)
    W = [torch.randn(k, 12, 5, generator=g) for k in (2, 4)]
    V = [torch.randn(2, 5, 7, generator=g), torch.randn(4, 1, 5, 5, generator=g)]
    b = [torch.full((2, 5), -100.0), torch.full((4, 5), -1000.0)]
    target = PatchGenerator(W, V, b, [None, torch.tensor([[0], [0], [1], [1]])])
    for error, _ in linear_errors(target, 300).values():
        assert error < 1e-3


def test_a_deconvolutional_network() -> None:
    model = DeconvGenerator((8, 16), width=6, latent=5, generator=torch.Generator().manual_seed(0)).eval()
    found = linear_errors(model, 300)
    assert found[0, False][0] < 1e-5
    assert found[1, False][0] < 1e-5
    assert found[0, True][0] > 0.1
    assert found[1, True][0] > 0.05
    # All pre-activations positive: the window of 5 x 5 is all that a layer sees of the one below.
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("norm.bias"):
                weight.fill_(30.0)
    for error, _ in linear_errors(model, 300).values():
        assert error < 1e-3


def test_pooling_errors_by_hand() -> None:
    g = torch.Generator().manual_seed(0)
    images = torch.randn(400, 3, 16, 16, generator=g)
    exact = pool(images, (4, 8, 16))
    assert [e for e, _ in pooling_errors(exact)] == pytest.approx([0, 0], abs=1e-6)
    # The 8 px level has variance 1/4; noise of variance 1/16 on it is half its deviation, up to the noise's own part.
    noisy = Pyramid([exact[1] + 0.25 * torch.randn(400, 3, 8, 8, generator=g), exact[2]])
    error, deviation = pooling_errors(noisy)[0]
    assert error == pytest.approx(math.sqrt(1 / 16 / (1 / 4 + 1 / 16)), abs=4 * deviation + 1e-3)
    assert deviation < 0.02
    shuffled, _ = pooling_errors(exact, shuffled=True)[0]
    assert shuffled == pytest.approx(math.sqrt(2), abs=0.03)
    with pytest.raises(ValueError, match="do not pool"):
        pooling_errors(Pyramid([torch.zeros(2, 1, 5, 5), torch.zeros(2, 1, 8, 8)]))


class Images:
    """A source of pooled noise."""

    name = "images"
    shapes: tuple[tuple[int, ...], ...] = ((3, 8, 8), (3, 16, 16))

    def draw(self, n: int, generator: torch.Generator, levels: int | None = None) -> Pyramid:
        return pool(torch.randn(n, 3, 16, 16, generator=generator), (8, 16))


def test_the_whole_and_generators_that_pool() -> None:
    model = PooledGenerator((8, 16), width=6, latent=5, generator=torch.Generator().manual_seed(0)).eval()
    result = forward_super_resolution(model, Images(), 120)
    assert isinstance(result, ForwardSuperResolution)
    first, last = result.steps
    assert (first.pooled, first.real) == (None, None)
    assert last.pooled == pytest.approx(0, abs=1e-5)
    assert last.real == pytest.approx(0, abs=1e-6)
    assert last.shuffled == pytest.approx(math.sqrt(2), abs=0.2)
    assert result.table().row_count == 2
    assert json.loads(json.dumps(result.to_json()))["steps"][1]["level"] == 2


def test_patches_that_make_no_images_are_measured_without_pooling() -> None:
    result = forward_super_resolution(plant(PlantConfig(patches=(2, 4), graph="random", channels=(5,), d=7)), None, 90)
    assert [s.pooled for s in result.steps] == [None, None]
    assert result.steps[1].from_own < 1e-4
