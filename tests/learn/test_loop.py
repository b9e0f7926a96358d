"""Budgets, the schedule of reports, and the loop's promise: stopping and going on changes nothing."""

import os
import signal
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from forwardsr.data.pyramid import Pyramid, pool
from forwardsr.errors import UserError
from forwardsr.learn.budget import Budget, seconds
from forwardsr.learn.joint import JointConfig, JointLearner
from forwardsr.learn.loop import Diverged, reports_passed, train
from forwardsr.run import Run

QUIET = Console(quiet=True)


class Pictures:
    """37 random pictures of 16 px: a number that no batch divides, so batches run over the ends of epochs."""

    name = "pictures"
    shapes = ((3, 8, 8), (3, 16, 16))

    def __init__(self) -> None:
        self.images = torch.rand(37, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1

    def __len__(self) -> int:
        return len(self.images)

    def take(self, index: torch.Tensor, levels: int | None = None) -> Pyramid:
        return pool(self.images[index], (8, 16))[:levels]

    def draw(self, n: int, generator: torch.Generator, levels: int | None = None) -> Pyramid:
        return self.take(torch.randint(0, len(self), (n,), generator=generator), levels)


def learner(**settings: object) -> JointLearner:
    config = JointConfig(width=4, latent=6, batch=5, penalty_interval=3, **settings)  # type: ignore[arg-type]
    return JointLearner(config, Pictures(), torch.device("cpu"))


def run_for(path: Path, steps: int, made: JointLearner) -> int:
    run = Run.create(path, {"source": "pictures"}, frozenset())
    code = train(
        made, run, Budget(steps=steps), ignore, ignore, report_images=64, checkpoint_seconds=1e9, console=QUIET
    )
    run.close()
    return code


def ignore(_elapsed: float) -> None:
    """Nothing is watched here."""


def flat(state: object) -> list[object]:
    if isinstance(state, dict):
        return [x for key in sorted(state, key=str) for x in (key, *flat(state[key]))]
    if isinstance(state, list | tuple):
        return [x for item in state for x in flat(item)]
    return [state]


def same(a: object, b: object) -> bool:
    left, right = flat(a), flat(b)
    return len(left) == len(right) and all(
        torch.equal(x, y) if isinstance(x, torch.Tensor) and isinstance(y, torch.Tensor) else x == y
        for x, y in zip(left, right)
    )


def test_n_steps_resumed_for_n_more_are_2n_steps_bit_for_bit(tmp_path: Path) -> None:
    whole = learner()
    assert run_for(tmp_path / "whole", 22, whole) == 0
    run_for(tmp_path / "parts", 11, learner())  # 55 images: mid-epoch, mid-interval of the penalty and of the log
    rest = learner()
    run_for(tmp_path / "parts", 22, rest)
    assert same(whole.state(), rest.state())
    assert not same(whole.state(), learner().state())


def test_measuring_on_the_way_changes_nothing() -> None:
    watched, unwatched = learner(), learner()
    for _ in range(6):
        watched.advance()
        unwatched.advance()
        watched.shown().sample(3, torch.Generator().manual_seed(0))
    assert same(watched.state(), unwatched.state())


def test_a_seed_decides_everything() -> None:
    a, b, c = learner(), learner(), learner(seed=1)
    for each in (a, b, c):
        each.advance()
    assert same(a.state(), b.state())
    assert not same(a.state(), c.state())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_after_a_checkpoint(tmp_path: Path, number: int) -> None:
    class Interrupted(JointLearner):
        def advance(self) -> dict[str, torch.Tensor]:
            if self.step == 3:
                os.kill(os.getpid(), number)
            return super().advance()

    made = Interrupted(JointConfig(width=4, latent=6, batch=5), Pictures(), torch.device("cpu"))
    assert run_for(tmp_path / "run", 9, made) == 128 + number
    saved = Run.read(tmp_path / "run").load_checkpoint()
    assert saved is not None
    assert saved["learner"]["step"] == 4


def test_losses_that_are_not_finite_stop_the_run_and_keep_the_checkpoint(tmp_path: Path) -> None:
    made = learner()
    run_for(tmp_path / "run", 4, made)
    broken = learner()
    run = Run.create(tmp_path / "run", {"source": "pictures"}, frozenset())
    original = broken.load

    def load_and_break(state: object) -> None:
        original(state)  # type: ignore[arg-type]
        with torch.no_grad():
            next(broken.critic.parameters()).fill_(float("nan"))

    broken.load = load_and_break  # type: ignore[method-assign, assignment]
    with pytest.raises(Diverged, match="step 5"):
        train(broken, run, Budget(steps=9), ignore, ignore, report_images=64, checkpoint_seconds=0.0, console=QUIET)
    run.close()
    saved = Run.read(tmp_path / "run").load_checkpoint()
    assert saved is not None
    assert saved["learner"]["step"] == 4


def test_a_spent_budget_does_nothing_more(tmp_path: Path) -> None:
    run_for(tmp_path / "run", 3, learner())
    before = (tmp_path / "run" / "checkpoint.pt").read_bytes()
    again = learner()
    run_for(tmp_path / "run", 3, again)
    assert again.step == 3
    assert (tmp_path / "run" / "checkpoint.pt").read_bytes() == before


def test_reports_fall_due_at_doublings_and_then_regularly() -> None:
    due = [n for n in range(1, 33_001) if reports_passed(n - 1, n, 8192)]
    assert due == [1024, 2048, 4096, 8192, 16384, 24576, 32768]


@settings(max_examples=20, deadline=None)
@given(every=st.integers(1, 5000), stops=st.lists(st.integers(1, 4_000), min_size=1, max_size=30))
def test_no_report_is_missed_whatever_the_batch(every: int, stops: list[int]) -> None:
    marks = sorted({*stops, 4_000})
    passed = [reports_passed(a, b, every) for a, b in zip([0, *marks], marks)]
    by_one = [n for n in range(1, 4_001) if reports_passed(n - 1, n, every)]
    for (a, b), hit in zip(zip([0, *marks], marks), passed):
        assert hit == any(a < n <= b for n in by_one)


def test_lengths_of_time() -> None:
    assert [seconds(t) for t in ("90", "90s", "20m", "1.5h", "1h30m", "2d")] == [90, 90, 1200, 5400, 5400, 172800]


@pytest.mark.parametrize("text", ["", "-5m", "0", "five", "10x", "m", "1m?", "1e3"])
def test_lengths_of_time_that_are_none(text: str) -> None:
    with pytest.raises(UserError, match="--budget"):
        seconds(text)


def test_the_nearest_limit_counts() -> None:
    assert Budget(seconds=10.0, steps=4).spent(5.0, 1, 0) == 0.5
    assert Budget(seconds=10.0, steps=4).spent(1.0, 4, 0) == 1.0
    with pytest.raises(UserError, match="--steps -1"):
        Budget(steps=-1)
