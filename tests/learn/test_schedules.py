"""Stages: what is frozen stays bit for bit, what is not needed is not computed, boundaries are exact, resuming changes nothing."""

import hashlib
import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from torch import Tensor, nn

from forwardsr.data.pyramid import Pyramid, pool
from forwardsr.errors import UserError
from forwardsr.learn.budget import Budget
from forwardsr.learn.joint import START_IMAGES, START_RATE, JointConfig, JointLearner, Stage, draw_levels
from forwardsr.learn.loop import train
from forwardsr.learn.schedules import (
    SCHEDULES,
    ScheduledLearner,
    grow,
    matching_width,
    schedule,
    stage_ends,
)
from forwardsr.model.critic import Critic
from forwardsr.model.deconv_generator import DeconvGenerator
from forwardsr.run import Run

SIDES = (8, 16, 32)
QUIET = Console(quiet=True)


class Pictures:
    """37 random pictures of 32 px: batches run over the ends of epochs."""

    name = "pictures"
    shapes = tuple((3, side, side) for side in SIDES)

    def __init__(self) -> None:
        coarse = torch.rand(37, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
        self.images = nn.functional.interpolate(coarse, size=32, mode="bilinear")

    def __len__(self) -> int:
        return len(self.images)

    def take(self, index: Tensor, levels: int | None = None) -> Pyramid:
        return pool(self.images[index], SIDES)[:levels]

    def draw(self, n: int, generator: torch.Generator, levels: int | None = None) -> Pyramid:
        return self.take(torch.randint(0, len(self), (n,), generator=generator), levels)


def learner(
    method: str,
    limits: Budget | None = None,
    shares: str | None = None,
    kind: type[ScheduledLearner] = ScheduledLearner,
) -> ScheduledLearner:
    config = JointConfig(width=4, latent=6, batch=5, penalty_interval=3)
    stages = schedule(method, SIDES)
    ends = stage_ends(shares, stages, limits or Budget(steps=100), config.batch)
    width = 6 if method == "last-layer" else None
    return kind(config, Pictures(), torch.device("cpu"), stages, ends, width, correction_rate=0.25)


def hashes(model: DeconvGenerator, levels: range) -> list[str]:
    """Of all weights and moments of some levels."""
    state = model.state_dict()
    names = [name for name in sorted(state) if int(name.split(".")[1]) in levels]
    assert len(names) == 8 * len(levels)  # V; scale, shift, mean, variance, count of the norm; W and its shift
    return [hashlib.sha256(state[name].contiguous().numpy().tobytes()).hexdigest() for name in names]


def models(made: JointLearner) -> list[DeconvGenerator]:
    return [made.generator, made.average, made.shown()]


def steps(made: JointLearner, count: int) -> None:
    for _ in range(count):
        made.advance()


# --- what learns and what does not ---------------------------------------------------------------------------------------


def test_the_stages_of_every_method() -> None:
    def spans(method: str) -> list[tuple[int, int]]:
        return [(stage.first, stage.levels) for stage in schedule(method, SIDES)]

    assert spans("layerwise") == [(0, 1), (1, 2), (2, 3)]
    assert spans("backward-correction") == [(0, 1), (1, 2), (2, 3), (0, 3)]
    assert spans("last-layer") == [(2, 3)]


def test_frozen_levels_keep_every_bit_of_weights_moments_and_images() -> None:
    made = learner("layerwise")
    z = torch.randn(7, 6, generator=torch.Generator().manual_seed(1))
    untouched = hashes(made.generator, range(1, 3))
    steps(made, 3)
    assert hashes(made.generator, range(1, 3)) == untouched
    for level in (1, 2):
        last = made.shown()
        frozen, pictures = hashes(last, range(level)), draw_levels(last, z, level)
        made.next_stage()
        start = hashes(made.generator, range(level, level + 1))
        steps(made, 4)
        for model in models(made):
            assert hashes(model, range(level)) == frozen
        assert hashes(made.generator, range(level, level + 1)) != start
        for now, then in zip(draw_levels(made.shown(), z, level), pictures):
            assert torch.equal(now, then)
        # The training passes compute the same function of z below, batch moments or not.
        in_training = made.generator.render(made.generator.hidden(z, level))
        for now, then in zip(in_training, pictures):
            torch.testing.assert_close(now, then)
            assert not now.requires_grad


def test_finer_levels_are_neither_computed_nor_read() -> None:
    made = learner("layerwise")

    def refuse(*_: object) -> None:
        raise AssertionError("a level that this stage does not need was computed")

    for part in (*list(made.generator.layers)[1:], *list(made.generator.outputs)[1:]):
        part.register_forward_pre_hook(refuse)
    steps(made, 2)
    assert made.critic.sides == (8,)
    assert [x.shape[-1] for x in made.data.next()] == [8]


def test_the_last_layer_alone_learns_and_random_layers_are_normalised_once() -> None:
    made = learner("last-layer")
    start = hashes(made.generator, range(2))
    before = hashes(made.generator, range(2, 3))
    z = torch.randn(4096, 6, generator=torch.Generator().manual_seed(1))
    seen: list[Tensor] = []
    shown = made.shown()
    for layer in list(shown.layers)[:2]:
        assert isinstance(layer.norm, nn.Module)
        layer.norm.register_forward_hook(lambda _m, _i, out: seen.append(out.detach().clone()))
    with torch.no_grad():
        shown.hidden(z)
    for out in seen:  # fresh latents: mean 0 and variance 1, up to the sampling of both draws
        torch.testing.assert_close(out.mean((0, 2, 3)), torch.zeros(6), atol=0.1, rtol=0)
        torch.testing.assert_close(out.var((0, 2, 3)), torch.ones(6), atol=0.15, rtol=0)
    steps(made, 4)
    for model in models(made):
        assert hashes(model, range(2)) == start
    assert hashes(made.generator, range(2, 3)) != before


def test_levels_that_last_layer_does_not_train_are_the_finest_image_averaged_down() -> None:
    made = learner("last-layer")
    steps(made, 2)
    sample = made.shown().sample(5, torch.Generator().manual_seed(0))
    assert [x.shape[-1] for x in sample] == list(SIDES)
    for x, pooled in zip(sample, pool(sample[-1], SIDES)):
        assert torch.equal(x, pooled)
    coarse = made.shown().sample(5, torch.Generator().manual_seed(0), levels=2)
    assert torch.equal(coarse[1], sample[1])
    assert len(coarse) == 2


@pytest.mark.parametrize("sides", [(8,), (8, 16), (8, 16, 32), (8, 16, 32, 64), (12, 24, 48)])
def test_the_width_of_last_layer_makes_trained_weights_equal_in_number(sides: tuple[int, ...]) -> None:
    whole = DeconvGenerator(sides, width=64, latent=128)
    wide = DeconvGenerator(sides, width=matching_width(sides, 64, 128, 3), latent=128)

    def count(*modules: nn.Module) -> int:
        return sum(p.numel() for module in modules for p in module.parameters() if p.ndim > 1)

    trained = count(wide.layers[-1], wide.outputs[-1])
    # The nearest multiple of 8 is within 4 channels: within 8 % of the weights at 100 channels.
    assert abs(trained / count(whole) - 1) < (0.08 if len(sides) > 1 else 1e-9)


def test_the_correction_starts_from_the_layerwise_weights_and_moves_every_level() -> None:
    made = learner("backward-correction")
    for _ in range(3):
        steps(made, 2)
        before = made.shown()
        made.next_stage()
    assert made.stage.trained == range(3)
    for model in (made.generator, made.average):
        assert hashes(model, range(3)) == hashes(before, range(3))
    steps(made, 2)
    for level in range(3):
        one = range(level, level + 1)
        assert hashes(made.generator, one) != hashes(before, one)
    assert made.optimizer_g.param_groups[0]["lr"] == pytest.approx(0.25 * made.config.rate_g)
    assert made.critic.headed == (0, 1)  # every coarse level can change again, so it is judged again


def test_layerwise_stages_do_not_judge_frozen_images_alone() -> None:
    made = learner("layerwise")
    for _ in range(2):
        steps(made, 1)
        made.next_stage()
        assert made.critic.headed == ()


def test_a_grown_critic_judges_coarse_levels_as_before_where_the_finest_is_unseen() -> None:
    generator = torch.Generator().manual_seed(0)
    before = Critic((8, 16), width=4, heads=[False, False], generator=generator)
    after = Critic((8, 16, 32), width=4, heads=[False] * 3, generator=generator)
    grow(before, after)
    with torch.no_grad():  # the new level adds nothing, and what enters beside it passes
        after.trunk.down[0].weight.zero_()
        after.trunk.enter[0].weight.copy_(torch.eye(4)[:, :, None, None])
    features = [torch.rand(5, 4, side // 2, side // 2, generator=generator) for side in (8, 16, 32)]
    torch.testing.assert_close(after.trunk(features), before.trunk(features[:2]))
    images = [torch.rand(5, 3, side, side, generator=generator) for side in (8, 16)]
    torch.testing.assert_close(after.features(images), before.features(images))


# --- when stages end -----------------------------------------------------------------------------------------------------


def test_shares_of_time_and_of_steps() -> None:
    layerwise, corrected = schedule("layerwise", SIDES), schedule("backward-correction", SIDES)
    assert stage_ends(None, layerwise, Budget(seconds=60.0), 16) == pytest.approx((1 / 7, 3 / 7, 1))
    assert stage_ends(None, corrected, Budget(seconds=60.0), 16) == pytest.approx((1 / 11, 3 / 11, 7 / 11, 1))
    assert stage_ends(None, layerwise, Budget(steps=60), 16) == pytest.approx((1 / 3, 2 / 3, 1))
    assert stage_ends("1,1,2", layerwise, Budget(steps=60), 16) == pytest.approx((0.25, 0.5, 1))
    assert stage_ends(None, schedule("last-layer", SIDES), Budget(steps=1), 16) == (1.0,)


@pytest.mark.parametrize(
    ("shares", "limits", "says"),
    [
        ("1,2", Budget(steps=60), "3 positive numbers"),
        ("1,2,x", Budget(steps=60), "--shares 1,2,x"),
        ("1,0,2", Budget(steps=60), "--shares 1,0,2"),
        ("1,-1,2", Budget(steps=60), "--shares"),
        ("1,nan,2", Budget(steps=60), "--shares"),
        ("inf,1,2", Budget(steps=60), "--shares"),
        ("", Budget(steps=60), "--shares"),
        (None, Budget(steps=2), "leave a stage with none"),
        (None, Budget(images=32), "leave a stage with none"),
        ("100,1,1", Budget(steps=50), "leave a stage with none"),
    ],
)
def test_shares_that_cannot_be(shares: str | None, limits: Budget, says: str) -> None:
    with pytest.raises(UserError, match=says):
        stage_ends(shares, schedule("layerwise", SIDES), limits, 16)


class Counting(ScheduledLearner):
    """Stages without networks, and the steps at which they began."""

    def __init__(self, stages: Sequence[Stage], ends: Sequence[float]) -> None:
        self._stages, self.ends, self.step, self.index, self.began = tuple(stages), tuple(ends), 0, 0, 0
        self.switched: list[int] = []

    def next_stage(self) -> None:
        self.index, self.began = self.index + 1, self.step
        self.switched.append(self.step)


@settings(max_examples=40, deadline=None)
@given(shares=st.tuples(*[st.integers(1, 9)] * 3), times=st.integers(1, 7))
def test_boundaries_in_steps_are_exact(shares: tuple[int, ...], times: int) -> None:
    """Where the shares divide the steps, each stage has exactly its steps."""
    limits = Budget(steps=times * sum(shares))
    stages = schedule("layerwise", SIDES)
    made = Counting(stages, stage_ends(",".join(map(str, shares)), stages, limits, 16))
    for made.step in range(times * sum(shares)):
        if made.stage_over(limits.spent(0.0, made.step, 16 * made.step)):
            made.next_stage()
    assert made.switched == [times * shares[0], times * (shares[0] + shares[1])]


def test_every_stage_has_a_step_and_none_is_gone_back_to() -> None:
    stages = schedule("layerwise", SIDES)
    made = Counting(stages, stage_ends(None, stages, Budget(seconds=60.0), 16))
    assert not made.stage_over(0.99)  # no step yet
    made.step = 1
    assert made.stage_over(0.99)
    made.next_stage()
    assert not made.stage_over(0.99)
    made.step = 2
    made.next_stage()
    made.step = 3
    assert made.stage_over(1.0) is False  # the last one goes on for as long as there is time
    assert made.index == 2


# --- on disk -------------------------------------------------------------------------------------------------------------


def ignore(_elapsed: float) -> None:
    """Nothing is watched here."""


def run_for(path: Path, limits: Budget, made: ScheduledLearner, on_stage: Callable[[float], None] = ignore) -> int:
    run = Run.create(path, {"source": "pictures"}, frozenset())
    try:
        return train(made, run, limits, ignore, on_stage, report_images=64, checkpoint_seconds=1e9, console=QUIET)
    finally:
        run.close()


def flat(state: object) -> list[object]:
    if isinstance(state, dict):
        return [x for key in sorted(state, key=str) for x in (key, *flat(state[key]))]
    if isinstance(state, list | tuple):
        return [x for item in state for x in flat(item)]
    return [state]


def same(a: object, b: object) -> bool:
    left, right = flat(a), flat(b)
    return len(left) == len(right) and all(
        torch.equal(x, y) if isinstance(x, Tensor) and isinstance(y, Tensor) else x == y for x, y in zip(left, right)
    )


@pytest.mark.parametrize("method", SCHEDULES)
@pytest.mark.parametrize("stop", [2, 6])
def test_a_run_stopped_anywhere_and_resumed_is_the_undisturbed_one_bit_for_bit(
    tmp_path: Path, method: str, stop: int
) -> None:
    limits = Budget(steps=9)

    class Interrupted(ScheduledLearner):
        def advance(self) -> dict[str, Tensor]:
            if self.step == stop:
                os.kill(os.getpid(), signal.SIGINT)
            return super().advance()

    whole = learner(method, limits)
    assert run_for(tmp_path / "whole", limits, whole) == 0
    assert run_for(tmp_path / "parts", limits, learner(method, limits, kind=Interrupted)) == 130
    rest = learner(method, limits)
    assert run_for(tmp_path / "parts", limits, rest) == 0
    assert rest.index == len(rest.stages) - 1
    assert same(whole.state(), rest.state())


def test_a_larger_budget_goes_on_in_the_last_stage_and_a_stopped_run_does_not_go_back(tmp_path: Path) -> None:
    switches: list[int] = []
    small = learner("layerwise", Budget(steps=6))
    run_for(tmp_path / "run", Budget(steps=6), small, lambda _: switches.append(small.step))
    assert switches == [2, 4]
    frozen = hashes(small.average, range(2))
    larger = learner("layerwise", Budget(steps=60))
    run_for(tmp_path / "run", Budget(steps=9), larger, lambda _: switches.append(-1))
    assert (larger.index, larger.step) == (2, 9)
    assert hashes(larger.average, range(2)) == frozen
    assert switches == [2, 4]


def test_a_switch_is_final_even_where_no_step_follows_it(tmp_path: Path) -> None:
    """A checkpoint is written at the switch: a kill right after it does not bring the earlier stage back."""

    class Killed(ScheduledLearner):
        def advance(self) -> dict[str, Tensor]:
            if self.index == 1:
                raise RuntimeError("killed")
            return super().advance()

    limits = Budget(steps=6)
    with pytest.raises(RuntimeError, match="killed"):
        run_for(tmp_path / "run", limits, learner("layerwise", limits, kind=Killed))
    saved = Run.read(tmp_path / "run").load_state()
    assert saved is not None
    assert (saved["learner"]["stage"], saved["learner"]["step"]) == (1, 2)


def test_what_starts_from_another_run_is_corrected_slowly_and_in_the_beginning_hardly() -> None:
    config = JointConfig(width=4, latent=6, batch=5)
    stages = schedule("backward-correction", SIDES)
    made = ScheduledLearner(
        config, Pictures(), torch.device("cpu"), stages, (0.2, 0.4, 0.6, 1.0), None, 0.25, started=True
    )
    before = hashes(made.generator, range(1))
    steps(made, 1)
    assert hashes(made.generator, range(1)) != before  # batch norm's moments
    assert made.optimizer_g.param_groups[0]["lr"] == 0.0
    made.step = 1 + START_IMAGES // config.batch // 2
    assert made.rate() == pytest.approx(0.5 * START_RATE * config.rate_g, rel=0.01)
    made.step = START_IMAGES
    assert made.rate() == START_RATE * config.rate_g
    made.next_stage()
    assert made.rate() == 0.0
    while not made.corrects:
        made.next_stage()
    assert made.rate() == 0.25 * config.rate_g


def test_the_average_keeps_what_another_run_has_given() -> None:
    config = JointConfig(width=4, latent=6, batch=5, ema_images=1000.0, rate_g=1.0)
    for started, half_life in ((True, 1000), (False, 0.05 * 505)):
        kept = 0.5 ** (5 / half_life)
        made = JointLearner(config, Pictures(), torch.device("cpu"), started)
        made.step = 100
        before = [p.clone() for p in made.average.parameters()]
        steps(made, 1)
        for a, b, g in zip(made.average.parameters(), before, made.generator.parameters()):
            torch.testing.assert_close(a, kept * b + (1 - kept) * g)
