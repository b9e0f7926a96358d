"""The self-certificate: silent on a perfect network, and each discriminator sees what it is for."""

from __future__ import annotations

import json

import pytest
import torch

from forwardsr.data.planted import PlantedSource
from forwardsr.errors import UserError
from forwardsr.measure.self_certificate import SelfCertificate, self_certificate
from forwardsr.model.patch_generator import PatchGenerator
from forwardsr.model.plant import PlantConfig, plant

SMALL = PlantConfig(patches=(4, 16), channels=(5,), d=9, p=(0.1, 0.2))


@pytest.fixture(scope="module")
def target() -> PatchGenerator:
    return plant(SMALL)


def copy(target: PatchGenerator) -> PatchGenerator:
    learned = target.map()
    learned.W, learned.V, learned.b = ([t.clone() for t in x] for x in (learned.W, learned.V, learned.b))
    return learned


def seen(result: SelfCertificate) -> set[tuple[str, int]]:
    return {(f.discriminator, f.level) for f in result.families if f.distinguishable}


def test_a_perfect_network_passes(target: PatchGenerator) -> None:
    result = self_certificate(target, PlantedSource(target), 10_000)
    assert not result.distinguishable
    for family in result.families:
        if family.discriminator != "D2":
            assert family.mean_square == pytest.approx(1.0, abs=0.35)
            assert family.moments > 0


def test_each_discriminator_sees_its_own(target: PatchGenerator) -> None:
    source = PlantedSource(target)
    bias = copy(target)
    bias.b[0][1, 2] *= 0.8
    assert ("D4", 1) in seen(self_certificate(bias, source, 10_000))

    independent = copy(target)
    rows = independent.V[0].flatten(0, 1)
    independent.V[0] = torch.diag(rows.norm(dim=1)).view(4, 5, 20)
    found = seen(self_certificate(independent, source, 10_000))
    assert ("D5", 1) in found
    assert ("D4", 1) not in found

    feature = copy(target)
    feature.W[1][3, :, 0] = (feature.W[1][3, :, 0] + 0.3 * feature.W[1][3, :, 1]) / 1.09**0.5
    assert ("D1", 2) in seen(self_certificate(feature, source, 10_000))

    above = copy(target)
    above.V[1][3, :, 0] *= 1.5
    assert ("D2", 2) in seen(self_certificate(above, source, 10_000))


def test_tables_and_json(target: PatchGenerator) -> None:
    result = self_certificate(target, PlantedSource(target), 2000)
    assert result.table().row_count == len(result.families)
    assert json.loads(json.dumps(result.to_json()))["n"] == 2000


def test_other_sizes_are_refused(target: PatchGenerator) -> None:
    other = plant(PlantConfig(patches=(4,), channels=(5,), d=9, p=(0.1, 0.2)))
    with pytest.raises(UserError, match="patches"):
        self_certificate(target, PlantedSource(other), 100)
