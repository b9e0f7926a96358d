"""D1, D4, D5, D2, each on its own, converge to the truth from a moderate start; Algorithms 5 and 4 run from samples alone."""

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from forwardsr.data.planted import PlantedSource
from forwardsr.errors import UserError
from forwardsr.learn.first_hidden import (
    FirstHiddenSettings,
    NeuronGame,
    PairGame,
    first_hidden,
    start_first_hidden,
)
from forwardsr.learn.minmax_sgda import MinmaxSGDASettings, cross_talk, extend, in_units, learn_sgda, turn
from forwardsr.learn.output_layer import output_layer
from forwardsr.learn.sgda import SGDASettings, sgda
from forwardsr.learn.super_resolution import start_super_resolution, super_resolution
from forwardsr.learn.warm_start import Algorithm5Settings, algorithm_5
from forwardsr.measure.certificate import certify
from forwardsr.model.activations import Activation
from forwardsr.model.patch_generator import PatchGenerator
from forwardsr.model.plant import PlantConfig, plant


@pytest.fixture(scope="module")
def target() -> PatchGenerator:
    """Two levels, 4 and 16 patches, m = 8, d = 12."""
    return plant(PlantConfig(patches=(4, 16), channels=(8,), d=12, p=(0.08, 0.12)))


def learner(target: PatchGenerator, **changed: dict[int, Tensor]) -> PatchGenerator:
    lists = {key: list(getattr(target, key)) for key in "WVb"}
    for key, tensors in changed.items():
        for level, tensor in tensors.items():
            lists[key][level] = tensor
    return PatchGenerator(lists["W"], lists["V"], lists["b"], target.parents, Activation("leaky", 1e-3))


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_d1_learns_w(target: PatchGenerator) -> None:
    w = target.W[0] + 0.1 * torch.randn(target.W[0].shape, generator=rng(5)) / 12**0.5
    start = w / w.norm(dim=1, keepdim=True)
    settings = SGDASettings(steps=150, samples=1024)
    learned, _ = output_layer(PlantedSource(target), learner(target, W={0: start}), 0, 0.3, settings, rng())
    error, before = ((x - target.W[0]).norm(dim=1) for x in (learned.W[0], start))
    assert before.mean() > 0.08
    assert error.max() < 0.04
    torch.testing.assert_close(learned.W[0].norm(dim=1), torch.ones(4, 8))


def test_d4_learns_norms_and_biases(target: PatchGenerator) -> None:
    v, b = start_first_hidden(4, 8)
    game = NeuronGame(PlantedSource(target), learner(target, V={0: v}, b={0: b}), 0.1, FirstHiddenSettings())
    sgda(game, SGDASettings(steps=400, samples=2048, rate_outer=0.6, inner_steps=1), rng())
    network = game.learned()
    norm = target.V[0].norm(dim=2)
    assert (norm - v.norm(dim=2)).abs().mean() > 0.2
    assert (network.V[0].norm(dim=2) / norm - 1).abs().mean() < 0.03
    assert (network.b[0] - target.b[0]).abs().mean() < 0.08


def test_d4_wakes_no_neuron_it_should_not_kill(target: PatchGenerator) -> None:
    """From far too active and from far too silent a start, Pr[S > 0] comes to the target's."""
    source = PlantedSource(target)
    rate = (target.hidden(target.latents(20000, rng(9)), 1)[0] > 0).float().mean(0)
    for active in (0.3, 0.05):
        v, b = start_first_hidden(4, 8, active=active)
        game = NeuronGame(source, learner(target, V={0: v}, b={0: b}), 0.1, FirstHiddenSettings())
        sgda(game, SGDASettings(steps=300, samples=1024, rate_outer=0.6, inner_steps=1), rng())
        found = torch.special.ndtr(-game.t)
        assert (found / rate - 1).abs().max() < 0.35


def test_d5_learns_angles(target: PatchGenerator) -> None:
    v, _ = start_first_hidden(4, 8)
    v = v / v.norm(dim=2, keepdim=True) * target.V[0].norm(dim=2, keepdim=True)
    game = PairGame(PlantedSource(target), learner(target, V={0: v}), 0.1, FirstHiddenSettings(), rng(1))
    sgda(game, SGDASettings(steps=400, samples=1024, rate_outer=0.5), rng())
    truth = torch.nn.functional.normalize(target.V[0].flatten(0, 1), dim=1)
    off = ~torch.eye(32, dtype=torch.bool)
    error = (game.unit @ game.unit.T - truth @ truth.T)[off].square().mean().sqrt()
    assert (truth @ truth.T)[off].square().mean().sqrt() > 0.2
    assert error < 0.03
    torch.testing.assert_close(game.learned().V[0].norm(dim=2), v.norm(dim=2))


def test_d2_learns_the_level_above_from_the_identity(target: PatchGenerator) -> None:
    v, b = start_super_resolution(16, 1, 8, 8)
    settings = SGDASettings(steps=800, samples=256, rate_outer=0.4, rate_inner=0.6, inner_steps=1)
    start = learner(target, V={1: v}, b={1: b})
    learned, trace = super_resolution(PlantedSource(target), start, 1, 0.05, settings, rng())
    assert (learned.V[1] - target.V[1]).norm() / target.V[1].norm() < 0.08
    assert (learned.b[1] - target.b[1]).square().mean().sqrt() < 0.12
    assert abs(trace.values[-1]) < trace.values[0] / 50


def test_starts_are_alive_independent_and_of_unit_mean() -> None:
    v, b = start_first_hidden(2, 3, active=0.2)
    rows = v.flatten(0, 1)
    torch.testing.assert_close(rows @ rows.T, float(rows[0] @ rows[0]) * torch.eye(6))
    s = (torch.randn(200000, 12, generator=rng()) @ rows.T - b.flatten()).clamp_min(0)
    assert (s > 0).float().mean(0).sub(0.2).abs().max() < 0.01
    assert (s.sum(0) / (s > 0).sum(0) - 1).abs().max() < 0.02
    mixed = start_first_hidden(2, 3, gamma=0.3)[0].flatten(0, 1)
    unit = mixed / mixed.norm(dim=1, keepdim=True)
    torch.testing.assert_close(unit @ unit.T, torch.eye(6) * (1 - 0.09) + 0.09)
    with pytest.raises(ValueError, match="6 latent"):
        start_first_hidden(2, 3, latent=5)


def test_algorithm_5_finds_every_feature_as_written(target: PatchGenerator) -> None:
    w, missing = algorithm_5(PlantedSource(target), 0, 8, Algorithm5Settings(), rng())
    assert not missing.any()
    for found, truth in zip(w, target.W[0]):
        rows, columns = linear_sum_assignment(-(truth.T @ found).numpy())
        # Lemma A.1: poly(k) / sqrt(m)
        assert (truth[:, rows] - found[:, columns]).norm(dim=0).max() < 1 / 8**0.5 + 0.15


def test_algorithm_5_names_what_it_did_not_find(target: PatchGenerator) -> None:
    w, missing = algorithm_5(PlantedSource(target), 0, 8, Algorithm5Settings(tries=1, samples=512), rng())
    assert missing.any()
    assert torch.equal(missing, w.norm(dim=1) == 0)


def test_units_change_nothing_but_the_scale(target: PatchGenerator) -> None:
    z = target.latents(50, rng())
    scaled = in_units(target, [2.0, 0.5])
    for s, t, unit in zip(target.hidden(z), scaled.hidden(z), (2.0, 0.5)):
        torch.testing.assert_close(s / unit, t)


def test_cross_talk_is_that_of_the_gram_matrix() -> None:
    w = torch.tensor([[[1.0, 0.6], [0.0, 0.8]]])
    s = torch.tensor([[[2.0, -1.0]]]).expand(1000, 1, 2)
    assert cross_talk(s, w) == pytest.approx(1.2)
    assert cross_talk(s, torch.eye(2)[None]) == pytest.approx(1.0)  # the negative coordinate itself
    assert cross_talk(s.abs(), torch.eye(2)[None]) == 0


def test_algorithm_4_runs_at_any_scale_of_the_data() -> None:
    """Data in 128 times the unit (a power of two, which rounding does not see) gives the same network, 128 times as large."""
    target = plant(PlantConfig(patches=(1, 4), channels=(3,), d=4, p=(0.1, 0.15)))
    brief = SGDASettings(steps=20, samples=256)
    settings = MinmaxSGDASettings(stages=1, probe=4096, neurons=brief, pairs=brief, level=brief, output=brief)
    one, traces = learn_sgda(PlantedSource(target), (3, 3), target.parents, settings, rng())
    small = PlantedSource(in_units(target, [1 / 128, 1 / 128]))
    other, _ = learn_sgda(small, (3, 3), target.parents, settings, rng())
    names = [trace.name for trace in traces]
    assert names == [
        "D4, level 1, stage 1",
        "D5, level 1, stage 1",
        "D1, level 1, stage 1",
        "D2, level 2, stage 1",
        "D1, level 2, stage 1",
    ]
    for a, b, scale in zip((*one.W, *one.b), (*other.W, *other.b), (1, 1, 128, 128)):
        torch.testing.assert_close(a * scale, b, rtol=1e-3, atol=1e-3 * scale)


def test_algorithm_4_finds_the_target_from_a_bad_start_of_w() -> None:
    """Columns off by 0.05: two stages a level, each with b from the cross-talk it finds, learn the whole."""
    target = plant(PlantConfig(patches=(1, 4), channels=(3,), d=4, p=(0.1, 0.15)))
    settings = MinmaxSGDASettings(
        stages=1,
        probe=4096,
        neurons=SGDASettings(steps=300, rate_outer=0.7),
        pairs=SGDASettings(steps=300, rate_outer=0.5),
        level=SGDASettings(1000, 1, 128, rate_outer=0.2, rate_inner=0.6, decay=1.0),
        output=SGDASettings(steps=60, samples=8192),
    )
    source, random, network = PlantedSource(target), rng(1), None
    for level, w in enumerate(target.W):
        off = torch.nn.functional.normalize(torch.randn(w.shape, generator=rng(2)), dim=1)
        start = torch.nn.functional.normalize(w + 0.05 * off, dim=1)
        network = extend(network, start, target.parents[level], settings)
        thresholds = []
        for _ in range(2):
            network, b, _ = turn(source, network, [1.0, 1.0], level, 0, settings, random)
            thresholds.append(b)
        assert thresholds[1] < thresholds[0]
    assert network is not None
    found = certify(network, target, 2000)
    assert max(row.worst for row in found.rows if row.lemma == "B.2") < 0.05
    assert found.find("C.6", 1, "norms of V_1, relative").worst < 0.05
    assert found.find("C.10", 1, "<V, V'> within a patch, relative to norms").worst < 0.08
    assert found.find("D.10", 2, "V, relative").worst < 0.1
    assert found.total.quantile(0.5) < 0.06


def test_first_hidden_plays_d4_then_d5(target: PatchGenerator) -> None:
    v, b = start_first_hidden(4, 8)
    brief = SGDASettings(steps=3, samples=128)
    network, traces = first_hidden(PlantedSource(target), learner(target, V={0: v}, b={0: b}), 0.1, brief, brief, rng())
    assert [t.name for t in traces] == ["D4", "D5"]
    assert not torch.equal(network.V[0], v)
    assert torch.equal(network.V[1], target.V[1])


def test_an_empty_level_is_a_users_mistake(target: PatchGenerator) -> None:
    silent = PatchGenerator([w * 0 for w in target.W], target.V, target.b, target.parents)
    with pytest.raises(UserError, match="level 1 is zero"):
        learn_sgda(PlantedSource(silent), (8, 8), target.parents, MinmaxSGDASettings(probe=200), rng())
