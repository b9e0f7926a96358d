"""Locality: networks whose reach is known, levels that are exact local maps of each other, and levels that are not."""

import json
import math

import pytest
import torch
from torch.nn import functional as F

from forwardsr.data.pyramid import Pyramid, pool
from forwardsr.measure import locality as module
from forwardsr.measure.locality import Locality, locality, next_layer, responses
from forwardsr.measure.neighbourhood import Prediction, join, predictions, split, steps
from forwardsr.model.deconv_generator import DeconvGenerator
from forwardsr.model.innovation_generator import InnovationGenerator
from forwardsr.model.plant import PlantConfig, plant
from forwardsr.model.pooled_generator import PooledGenerator


def test_a_quad_tree_moves_its_own_block_and_nothing_else() -> None:
    target = plant(PlantConfig(patches=(4, 16), channels=(6,), d=108, calibration=1000, p=(0.3, 0.4)))
    (found,) = responses(target, 64)
    # Patch j of level 1 has four children of 6 x 6: a block of 12 x 12 around it, whose corner is 5.5 px off both ways.
    assert found.side == 24
    assert found.reach == pytest.approx(5.5 * math.sqrt(2), rel=1e-9)
    assert found.radius[2] <= found.reach
    assert found.radius[0] < found.radius[1] < found.even[1]
    assert found.profile[0] == 0
    assert found.profile[8] == pytest.approx(1)
    assert list(found.profile) == sorted(found.profile)


def test_two_deconvolutions_reach_eight_pixels() -> None:
    model = DeconvGenerator((8, 16, 32), width=8, latent=6, generator=torch.Generator().manual_seed(0)).eval()
    for found in responses(model, 32):
        # 6 x 6 of stride 2 twice: 16 px, the farthest pixel 7.5 off both ways.
        assert found.reach == pytest.approx(7.5 * math.sqrt(2))
        assert found.radius[1] < 9
    pooled = PooledGenerator((8, 16, 32), width=8, latent=6, generator=torch.Generator().manual_seed(0)).eval()
    first, last = responses(pooled, 32)
    assert last.reach == pytest.approx(7.5 * math.sqrt(2))
    # Three deconvolutions to 32 px reach 16 + 2 + ... px of it, and half as many of the level pooled from it.
    assert first.reach > 7.5


def test_next_layer_is_the_networks_own() -> None:
    z = torch.randn(5, 6, generator=torch.Generator().manual_seed(1))
    model = DeconvGenerator((8, 16, 32), width=4, latent=6, generator=torch.Generator().manual_seed(0)).eval()
    with torch.no_grad():
        hidden = model.hidden(z)
        for level in (1, 2):
            torch.testing.assert_close(next_layer(model, level, hidden[level - 1]), hidden[level])
    target = plant(
        PlantConfig(patches=(4, 16, 16), parents=2, mixing=0.3, graph="random", channels=(5,), d=8, calibration=1000)
    )
    z = torch.randn(5, target.latent_dim, generator=torch.Generator().manual_seed(2))
    hidden = target.hidden(z)
    for level in (1, 2):
        torch.testing.assert_close(next_layer(target, level, hidden[level - 1]), hidden[level])


def test_a_network_with_innovations_keeps_them() -> None:
    g = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=g)

    ring = torch.tensor([[0, 1], [1, 2], [2, 3], [3, 4]])
    model = InnovationGenerator(
        [draw(1, 12, 3), draw(4, 12, 3)], [draw(1, 3, 2), draw(4, 1, 3, 3)], [draw(1, 3), draw(4, 3)],
        [None, torch.zeros(4, 1, dtype=torch.int64)], [draw(1, 12), draw(4, 12)], [None, draw(1, 2, 3, 2)], [None, ring], 3,
    )  # fmt: skip
    z = draw(5, model.latent_dim)
    hidden = model.hidden(z)
    torch.testing.assert_close(next_layer(model, 1, hidden[0], z), hidden[1])
    z[:, 2:] = 0
    torch.testing.assert_close(next_layer(model, 1, hidden[0]), model.hidden(z)[1])
    (found,) = responses(model, 20)
    assert found.reach == pytest.approx(1.5 * math.sqrt(2))  # one patch over all 4 x 4 pixels


def test_radii_by_hand() -> None:
    distance = torch.tensor([0.0, 1.0, 2.0, 3.0], dtype=torch.float64)
    energy = torch.tensor([[50.0, 40.0, 9.0, 1.0], [0.0, 0.0, 0.0, 5.0], [0.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
    found = module._radius(energy, distance)
    assert found[0].tolist() == [0, 1, 2]
    assert found[1].tolist() == [3, 3, 3]
    assert found[2].isnan().all()


def predicted(low: torch.Tensor, high: torch.Tensor) -> dict[int | None, Prediction]:
    return {p.radius: p for p in predictions("real", join([steps(Pyramid([low, high]))]))}


def enlarge(x: torch.Tensor) -> torch.Tensor:
    return F.interpolate(x, scale_factor=2, mode="nearest")


def test_a_map_of_radius_one_is_found_at_radius_one() -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(700, 1, 12, 12, generator=g)
    filtered = F.conv2d(x, torch.randn(4, 1, 3, 3, generator=g), padding=1)
    y = enlarge(x) + F.pixel_shuffle(filtered, 2)  # every 2 x 2 block from the 3 x 3 pixels around its own
    found = predicted(x, y)
    assert found[0].detail < 0.9
    assert found[1].r2 > 1 - 1e-6
    assert found[1].detail > 1 - 1e-6
    assert found[2].detail > 1 - 1e-4
    assert found[None].detail > 1 - 1e-2
    assert (found[0].pixels, found[2].pixels, found[None].pixels) == (3, 7, 12)


def test_enlarging_adds_no_detail_and_noise_none_that_is_foretold() -> None:
    g = torch.Generator().manual_seed(1)
    x = torch.randn(700, 1, 8, 8, generator=g)
    noise = 0.5 * torch.randn(700, 1, 16, 16, generator=g)
    found = predicted(x, enlarge(x) + noise)
    # 1 of signal, 1/4 of noise: R^2 = 1 / 1.25, and 0 of the noise.
    assert found[0].r2 == pytest.approx(0.8, abs=0.03)
    for p in found.values():
        assert 0.7 < p.r2 < 0.82
        assert p.detail < 0.02
    assert abs(found[0].detail) < 5 * found[0].detail_error + 0.03


def test_what_depends_on_the_whole_image_is_not_seen_in_a_window() -> None:
    g = torch.Generator().manual_seed(2)
    x = torch.randn(1400, 1, 12, 12, generator=g)
    y = enlarge(x) + 4 * x.mean((2, 3), keepdim=True)
    found = predicted(x, y)
    # The window of n pixels knows n / 144 of the variance of the mean.
    for radius, n in ((0, 9), (1, 25), (2, 49)):
        assert found[radius].detail == pytest.approx(n / 144, abs=0.08)
    assert found[None].detail > 0.99


def test_windows_at_the_border_and_few_samples() -> None:
    assert split(3584) == (2048, 512, 1024)
    images = torch.randn(14, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    found = list(predictions("real", join([steps(pool(images, (4, 8, 16)))])))
    assert {(p.level, p.radius) for p in found} == {(1, 0), (1, None), (2, 0), (2, 1), (2, 2), (2, None)}
    assert all(math.isfinite(p.detail) for p in found)
    with pytest.raises(ValueError, match="double"):
        steps(Pyramid([torch.zeros(2, 1, 4, 4), torch.zeros(2, 1, 12, 12)]))


def test_table_json_and_patches_that_are_no_images() -> None:
    target = plant(PlantConfig(patches=(4, 16), channels=(6,), d=12, calibration=1000))
    result = locality(target, None, n=70, exchanged=16)
    assert isinstance(result, Locality)
    assert result.table().row_count == 1
    found = json.loads(json.dumps(result.to_json()))
    assert found["responses"][0]["side"] == 8
    assert {p["of"] for p in found["predictions"]} == {"generated"}
    with pytest.raises(ValueError, match="images"):
        locality(plant(PlantConfig(patches=(2, 4), graph="random", channels=(5,), d=7)), None, n=70)
