"""Sparsity and correlation: exact probabilities of Gaussians over thresholds, brute force, and errors that cover."""

import json
import math

import pytest
import torch

from forwardsr.measure import sparsity as module
from forwardsr.measure.correlation import Correlation, correlation, lift
from forwardsr.measure.intervals import both_active
from forwardsr.measure.sparsity import Sparsity, activity, sparsity
from forwardsr.model.activations import Activation
from forwardsr.model.deconv_generator import DeconvGenerator
from forwardsr.model.patch_generator import PatchGenerator
from forwardsr.model.plant import PlantConfig, plant


def one_layer(V: torch.Tensor, b: torch.Tensor, activation: Activation | None = None) -> PatchGenerator:
    """A network of one level and one patch: S = act(V z - b)."""
    m = len(V)
    return PatchGenerator([torch.eye(m)[None]], [V[None]], [b[None]], [None], activation or Activation("relu", 0.0))


def test_probabilities_of_thresholded_gaussians() -> None:
    # Channels 0, 1 independent, 2 of correlation 0.6 with 0, 3 a copy of 0.
    V = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8], [1.0, 0.0]])
    b = torch.tensor([0.5, 1.0, 0.7, 0.5])
    n = 60_000
    (level,) = activity(one_layer(V, b), n, seed=3, batch=4096)
    p = torch.special.ndtr(-b.double())
    expected_pair = both_active(
        torch.tensor([0.5, 0.5, 1.0]), torch.tensor([1.0, 0.7, 0.7]), torch.tensor([0.0, 0.6, 0.8])
    )
    assert ((level.single[0] - p).abs() < 4.5 * (p * (1 - p) / n).sqrt()).all()
    found = level.pair[0, [0, 1, 3]]  # (0, 1), (0, 2), (1, 2) of (01 02 03 12 13 23)
    assert ((found - expected_pair).abs() < 4.5 * (expected_pair / n).sqrt()).all()
    assert level.pair[0, 2] == level.single[0, 0]  # 0 and 3 fire together whenever either does
    assert level.triple[0, 2] == level.pair[0, 1]  # so (0, 2, 3) is (0, 2)


def test_triples_against_brute_force_and_means_two_ways() -> None:
    g = plant(PlantConfig(patches=(2, 4), graph="random", channels=(7,), d=8, p=(0.2, 0.3), calibration=2000))
    levels = activity(g, 500, seed=1, positions=3, batch=128)
    z = torch.randn(500, g.latent_dim, generator=torch.Generator().manual_seed(1))
    for level, S in zip(levels, g.hidden(z)):
        A = (S > 0).double()
        A = A[:, torch.linspace(0, A.shape[1] - 1, min(3, A.shape[1])).long()]
        brute = torch.einsum("njp,njq,njr->jpqr", A, A, A) / 500
        p, q, r = torch.combinations(torch.arange(7), 3).T
        torch.testing.assert_close(level.triple, brute[:, p, q, r])
        for kind, (mean, error) in zip(("single", "pair", "triple"), level.means):
            assert mean == pytest.approx(float(getattr(level, kind).mean()), rel=1e-12)
            assert error > 0
        assert level.positions_in_all == S.shape[1]


def test_the_error_of_a_mean_is_its_spread_over_seeds() -> None:
    g = plant(PlantConfig(patches=(4,), channels=(6,), d=8, p=(0.3, 0.4), correlation=0.8))
    runs = [activity(g, 400, seed=s)[0].means for s in range(60)]
    for k in range(3):
        means = torch.tensor([m[k][0] for m in runs])
        stated = sum(m[k][1] for m in runs) / len(runs)
        assert float(means.std()) == pytest.approx(stated, rel=0.35)


def test_a_leaky_unit_below_zero_is_not_active() -> None:
    V, b = torch.randn(5, 4, generator=torch.Generator().manual_seed(0)), torch.full((5,), 0.4)
    plain = activity(one_layer(V, b), 2000, seed=0)[0]
    leaky = activity(one_layer(V, b, Activation("leaky", 1e-3)), 2000, seed=0)[0]
    assert torch.equal(plain.single, leaky.single)
    assert plain.single.max() < 0.5


def test_positions_of_an_image_are_patches_row_by_row() -> None:
    g = DeconvGenerator((8, 16), width=4, latent=5, generator=torch.Generator().manual_seed(0)).eval()
    levels = activity(g, 64, seed=2, positions=1000, batch=32)
    z = torch.randn(64, 5, generator=torch.Generator().manual_seed(2))
    # drawn 32 at a time, the same numbers
    with torch.no_grad():
        for level, S in zip(levels, g.hidden(z)):
            torch.testing.assert_close(level.single, (S > 0).double().mean(0).flatten(1).T)
    with pytest.raises(ValueError, match="eval"):
        activity(g.train(), 8)


def test_lift_is_one_for_independent_channels_and_one_over_p_for_copies() -> None:
    independent = activity(one_layer(torch.eye(6), torch.full((6,), 0.5)), 20_000, seed=0)[0]
    assert lift(independent, "pair").mean() == pytest.approx(1, abs=0.02)
    assert lift(independent, "triple").mean() == pytest.approx(1, abs=0.03)
    same = activity(one_layer(torch.ones(3, 1), torch.full((3,), 0.5)), 5000, seed=0)[0]
    p = same.single[0, 0]
    torch.testing.assert_close(lift(same, "pair"), (1 / p).expand(3))
    torch.testing.assert_close(lift(same, "triple"), (1 / p**2).expand(1))


def test_k_is_the_quantile_of_active_channels() -> None:
    # All ten channels are copies: 0 or 10 are active.
    (level,) = activity(one_layer(torch.ones(10, 1), torch.zeros(10)), 2000)
    assert level.k == 10
    assert level.asked("single") == 1
    assert level.asked("pair") == pytest.approx(0.2)
    assert level.asked("triple") == pytest.approx(10**-2.01)


def test_tables_and_json() -> None:
    g = plant(PlantConfig(patches=(4, 16), channels=(4,), d=12, calibration=1000))
    start = plant(PlantConfig(patches=(4, 16), channels=(4,), d=12, calibration=1000, p=(0.4, 0.45)))
    alone, both = sparsity(g, None, 200), sparsity(g, start, 200)
    assert isinstance(alone, Sparsity)
    assert (alone.table().row_count, both.table().row_count) == (2, 4)
    found = json.loads(json.dumps(both.to_json()))
    assert found["initial"][0]["single"]["mean"] > 3 * found["trained"][0]["single"]["mean"]
    assert sum(found["trained"][0]["single"]["histogram"]["counts"]) == 16
    together = correlation(g, start, 200)
    assert isinstance(together, Correlation)
    assert together.table().row_count == 8
    assert math.isfinite(json.loads(json.dumps(together.to_json()))["trained"][1]["triple"]["mean"])


def test_of_many_channels_some_pairs_and_all_singles_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHANNELS", 3)
    V, b = torch.randn(7, 4, generator=torch.Generator().manual_seed(0)), torch.zeros(7)
    some = activity(one_layer(V, b), 300, seed=0)[0]
    assert some.channels.tolist() == [0, 3, 6]
    monkeypatch.setattr(module, "CHANNELS", 7)
    every = activity(one_layer(V, b), 300, seed=0)[0]
    assert torch.equal(some.single, every.single)
    assert some.k == every.k
    pairs = torch.combinations(torch.arange(7)).tolist()
    assert some.pair[0].tolist() == [float(every.pair[0, pairs.index(pair)]) for pair in ([0, 3], [0, 6], [3, 6])]
    torch.testing.assert_close(some.independent("pair")[0, 1], every.single[0, 0] * every.single[0, 6])
    assert some.means[1][0] == pytest.approx(float(some.pair.mean()))


def test_two_channels_have_no_triples() -> None:
    g = one_layer(torch.eye(2), torch.zeros(2))
    result = correlation(g, None, 100)
    assert result.trained[0].triple.shape == (1, 0)
    assert result.table().row_count == 1
    json.dumps(result.to_json())
