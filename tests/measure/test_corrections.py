"""Corrections: rotations, scalings and moves of one weight, whose size, angle and place are known."""

import copy
import json
import math

import pytest
import torch

from forwardsr.data.planted import PlantedSource
from forwardsr.measure.corrections import Corrections, changes, corrections, layers_of
from forwardsr.model.deconv_generator import DeconvGenerator
from forwardsr.model.plant import PlantConfig, plant


@pytest.fixture
def before() -> DeconvGenerator:
    return DeconvGenerator((8, 16), width=6, latent=5, generator=torch.Generator().manual_seed(0)).eval()


def test_layers_have_a_row_a_neuron(before: DeconvGenerator) -> None:
    found = {x.name: x for x in layers_of(before)}
    assert {name: tuple(x.weights.shape) for name, x in found.items()} == {
        "V1": (6, 16 * 5), "W1": (6, 3 * 36), "V2": (6, 6 * 36), "W2": (6, 3 * 36),
    }  # fmt: skip
    assert [x.side for x in found.values()] == [4, 6, 6, 6]


def test_a_rotation_of_every_neuron(before: DeconvGenerator) -> None:
    after, angle = copy.deepcopy(before), 0.3
    with torch.no_grad():
        for a, b in zip(after.outputs.parameters(), before.outputs.parameters()):
            if a.ndim == 4:
                v = b.flatten(1)
                u = torch.randn(v.shape, generator=torch.Generator().manual_seed(1))
                u = u - (u * v).sum(1, keepdim=True) / v.square().sum(1, keepdim=True) * v
                u = u / u.norm(dim=1, keepdim=True) * v.norm(dim=1, keepdim=True)
                a.copy_((math.cos(angle) * v + math.sin(angle) * u).view_as(a))
    found = {c.name: c for c in changes(before, after)}
    for name in ("W1", "W2"):
        torch.testing.assert_close(found[name].angle, torch.full((6,), math.degrees(angle)).double(), rtol=1e-5, atol=0)
        torch.testing.assert_close(
            found[name].size, torch.full((6,), 2 * math.sin(angle / 2)).double(), rtol=1e-5, atol=0
        )
    for name in ("V1", "V2"):
        assert found[name].size.max() == 0
        assert found[name].angle.max() == 0


def test_a_longer_neuron_has_not_turned(before: DeconvGenerator) -> None:
    after = copy.deepcopy(before)
    with torch.no_grad():
        for weight in after.parameters():
            weight.mul_(1.5)
    for change in changes(before, after):
        torch.testing.assert_close(change.size, torch.full_like(change.size, 0.5), rtol=1e-6, atol=0)
        assert change.angle.max() < 1e-4


def test_places(before: DeconvGenerator) -> None:
    after = copy.deepcopy(before)
    weights = dict(after.named_parameters())
    with torch.no_grad():
        weights["outputs.1.weight"][2, 1, 3, 4] += 1
        weights["layers.1.V.weight"][:, 5, 0, 1] += 1  # of neuron 5, from every channel below
        weights["layers.0.V.weight"][(2 * 4 + 3) * 6 + 1] += 1  # neuron 1 at row 2, column 3 of the 4 x 4 layer
    found = {c.name: c for c in changes(before, after)}
    for name, neuron, place in (("W2", 2, (3, 4)), ("V2", 5, (0, 1)), ("V1", 1, (2, 3))):
        assert found[name].size.nonzero().flatten().tolist() == [neuron], name
        assert found[name].place[place] == pytest.approx(1)
        assert float(found[name].place.sum()) == pytest.approx(1)


def test_the_gain_the_learning_and_json(before: DeconvGenerator) -> None:
    start = DeconvGenerator((8, 16), width=6, latent=5, generator=torch.Generator().manual_seed(9)).eval()
    result = corrections(before, before, start)
    assert isinstance(result, Corrections)
    assert result.before is None
    assert result.learning is not None
    assert float(result.learning[0].angle.median()) == pytest.approx(90, abs=15)  # strangers are orthogonal
    assert len(result.pictures) == 2
    assert result.table().row_count == 4
    json.dumps(result.to_json())
    with pytest.raises(ValueError, match="sizes"):
        changes(before, DeconvGenerator((8, 16), width=7, latent=5))


def test_patch_networks_and_their_distance() -> None:
    config = {"patches": (4, 16), "channels": (5,), "d": 12, "calibration": 1000}
    a, b = plant(PlantConfig(**config)), plant(PlantConfig(**config, seed=1))
    found = changes(a, b)
    assert [(c.name, len(c.size)) for c in found] == [("V1", 20), ("W1", 20), ("V2", 80), ("W2", 80)]
    # W's columns have length 1, so a size and an angle say the same.
    torch.testing.assert_close(found[1].size, 2 * torch.sin(found[1].angle.deg2rad() / 2), rtol=1e-4, atol=1e-5)
    result = corrections(a, b, source=PlantedSource(b), n=64)
    assert result.before is not None
    assert result.after is not None
    assert result.after.raw[0] < result.before.raw[0]
