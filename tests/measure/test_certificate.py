"""Certificates of networks whose errors are known."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor

from forwardsr.errors import UserError
from forwardsr.measure.certificate import certify, gram_bound, match, reorder, rotation
from forwardsr.model.patch_generator import PatchGenerator
from forwardsr.model.plant import PlantConfig, plant

SMALL = PlantConfig(patches=(4, 16), channels=(5,), d=9, p=(0.1, 0.2))


@pytest.fixture(scope="module")
def target() -> PatchGenerator:
    return plant(SMALL).map(dtype=torch.float64)


def disguise(g: PatchGenerator, latent: int) -> tuple[PatchGenerator, list[Tensor]]:
    """The same distribution with its channels shuffled in every patch and its latent rotated into ``latent`` dimensions."""
    generator = torch.Generator().manual_seed(1)
    orders = [torch.stack([torch.randperm(w.shape[2], generator=generator) for _ in w]) for w in g.W]
    shuffled = reorder(g, orders)
    q = torch.linalg.qr(torch.randn(latent, latent, generator=generator, dtype=torch.float64))[0]
    shuffled.V[0] = shuffled.V[0] @ q[: g.latent_dim]
    return shuffled, orders


def test_order_and_rotation_do_not_count(target: PatchGenerator) -> None:
    learned, _ = disguise(target, target.latent_dim + 7)
    certificate = certify(learned, target, 500, warm={"W1.warm": learned.W[0]}, samples=1000)
    assert max(row.worst for row in certificate.rows) < 1e-6
    assert certificate.total.quantile(1.0) < 1e-6
    assert not certificate.unmatched
    assert {row.lemma for row in certificate.rows} == {"A.1", "B.2", "C.6", "C.10", "C.18", "D.2", "D.10"}
    U = certificate.U
    assert U.shape == (target.latent_dim, target.latent_dim + 7)
    assert torch.allclose(U @ U.T, torch.eye(len(U), dtype=torch.float64))


def test_the_state_knows_how_many_samples_there_were(target: PatchGenerator) -> None:
    # Finite data of 1000 samples, a million asked for: the bound is that of 1000.
    learned = target.map()
    learned.V = [v * 1.01 for v in learned.V]
    name = "<V, V'>, in Cramér-Rao bounds"
    few = certify(learned, target, 100, samples=1000).find("C.10", 1, name)
    many = certify(learned, target, 100, samples=1_000_000).find("C.10", 1, name)
    told = certify(learned, target, 100, warm={"samples1": torch.tensor(1000)}, samples=1_000_000).find("C.10", 1, name)
    assert told.rms == few.rms == pytest.approx(many.rms / 1000**0.5)


def test_reordering_is_the_same_function(target: PatchGenerator) -> None:
    orders = [torch.stack([torch.randperm(5) for _ in w]) for w in target.W]
    z = target.latents(50, torch.Generator().manual_seed(2))
    shuffled = reorder(target, orders)
    for x, y in zip(target.render(target.hidden(z)), shuffled.render(shuffled.hidden(z)), strict=True):
        assert torch.allclose(x, y)


def test_each_error_shows_in_its_own_row(target: PatchGenerator) -> None:
    def errors(change: str) -> dict[tuple[str, int, str], float]:
        learned = target.map()
        learned.W, learned.V, learned.b = ([t.clone() for t in x] for x in (learned.W, learned.V, learned.b))
        if change == "W":
            learned.W[1][2, :, 3] *= 1.01
        elif change == "norm":
            learned.V[0][1, 2] *= 1.03
        elif change == "b1":
            learned.b[0][1, 2] *= 1.02
        elif change == "V2":
            learned.V[1][7, :, 1] *= 1.05
        found = certify(learned, target, 200)
        return {(r.lemma, r.level, r.quantity): r.worst for r in found.rows if r.worst > 1e-9}

    w = errors("W")
    assert set(w) == {("B.2", 2, "columns of W")}
    assert w["B.2", 2, "columns of W"] == pytest.approx(0.01)
    assert errors("norm")["C.6", 1, "norms of V_1, relative"] == pytest.approx(0.03)
    b1 = errors("b1")
    assert b1["C.6", 1, "biases, relative"] == pytest.approx(0.02, rel=0.2)  # of the norm, where that is more
    assert ("C.6", 1, "norms of V_1, relative") not in b1
    v2 = errors("V2")
    assert v2["D.10", 2, "V, relative"] == pytest.approx(0.05)
    assert not [key for key in v2 if key[1] == 1]


def test_theorem_counts_what_differs(target: PatchGenerator) -> None:
    learned = target.map()
    learned.W = [0.9 * w for w in learned.W]
    curve = certify(learned, target, 300).total
    assert torch.allclose(curve.relative, torch.full_like(curve.relative, 0.1))
    assert curve.probability(0.0999) == 0
    assert curve.probability(0.1001) == 1
    assert float(curve.absolute.square().mean().sqrt()) == pytest.approx(0.1 * curve.scale)


def test_a_missing_feature_is_named(target: PatchGenerator) -> None:
    learned = target.map()
    learned.W = [w.clone() for w in learned.W]
    learned.W[1][4, :, 2] = learned.W[1][4, :, 0]
    assert [u[:2] for u in certify(learned, target, 50).unmatched] == [(2, 4)]


def test_rotation_undoes_a_rotation(target: PatchGenerator) -> None:
    q = torch.linalg.qr(torch.randn(target.latent_dim, target.latent_dim, dtype=torch.float64))[0]
    u = rotation(target.V[0] @ q, target.V[0])
    assert torch.allclose(target.V[0] @ u, target.V[0] @ q)


def test_matching_finds_the_order(target: PatchGenerator) -> None:
    learned, orders = disguise(target, target.latent_dim)
    found, cosine = match(learned.W[1], target.W[1])
    assert torch.equal(orders[1].gather(1, found), torch.arange(5).expand(16, 5))
    assert float(cosine.min()) > 1 - 1e-6


def test_the_bound_is_larger_for_rarer_neurons(target: PatchGenerator) -> None:
    rare = target.map()
    rare.b = [1.5 * rare.b[0], rare.b[1]]
    off = ~torch.eye(20, dtype=torch.bool)
    assert bool((gram_bound(rare)[off] > gram_bound(target)[off]).all())


def test_tables_and_json(target: PatchGenerator) -> None:
    certificate = certify(target, target, 100)
    assert certificate.table().row_count == len(certificate.rows) + len(certificate.curves)
    data = json.loads(json.dumps(certificate.to_json()))
    assert [c["level"] for c in data["curves"]] == [1, 2, None]
    assert len(data["curves"][0]["relative"]) == 101


def test_other_sizes_are_refused(target: PatchGenerator) -> None:
    other = plant(PlantConfig(patches=(4, 16), channels=(4,), d=9, p=(0.1, 0.2)))
    with pytest.raises(UserError, match="--target"):
        certify(target, other)
    rewired = target.map()
    rewired.parents = [None, torch.zeros(16, 1, dtype=torch.int64)]
    with pytest.raises(UserError, match="graph of level 2"):
        certify(target, rewired)
