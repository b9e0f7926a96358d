"""The loop around every step-by-step learner: budgets, progress, the log, checkpoints, signals.

Reports fall due by images seen (1,024, 2,048, 4,096, ... and then every ``report_images``), not by time, so what is measured
and which weights are kept as the best do not depend on the machine's speed. Checkpoints fall due by time, and change nothing.

Many processes (:mod:`forwardsr.parallel`) go round the loop together, by rank 0's clock, and end at a signal to any of them.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Protocol, runtime_checkable

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, TextColumn
from torch import Tensor

from forwardsr.learn.budget import Budget
from forwardsr.parallel import ALONE, World
from forwardsr.run import Pace, Run

LOG_STEPS = 50  # steps a line of the log is the mean of
FIRST_REPORT = 1024  # images


class Diverged(Exception):
    """The losses are no longer finite; the last checkpoint is from before."""


@runtime_checkable
class StepLearner(Protocol):
    """A learner that moves in steps, perhaps in stages by share of the budget, and whose whole state can be saved."""

    step: int

    @property
    def images(self) -> int: ...

    def advance(self) -> dict[str, Tensor]: ...

    def state(self) -> dict[str, Any]: ...

    def load(self, state: dict[str, Any]) -> None: ...

    def stage_over(self, spent: float) -> bool: ...

    def next_stage(self) -> None: ...


Observe = Callable[[float], None]
"""Called at every report, or after every change of stage, with the seconds of training so far."""


def reports_passed(before: int, after: int, every: int) -> bool:
    """Whether a report falls due in ``(before, after]`` images: at 1,024 times powers of two, then every ``every``."""
    return _reports_by(after, every) > _reports_by(before, every)


def _reports_by(images: int, every: int) -> int:
    return (min(images, every) // FIRST_REPORT).bit_length() + images // every


@contextmanager
def signals_caught() -> Iterator[list[int]]:
    """SIGINT and SIGTERM are noted in the list instead of ending the process, so that a step can be finished and saved."""
    caught: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        caught.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def train(
    learner: StepLearner, run: Run | None, budget: Budget, observe: Observe, on_stage: Observe, *, report_images: int,
    checkpoint_seconds: float, console: Console, world: World = ALONE,
) -> int:  # fmt: skip
    """Go on until ``budget`` is spent; returns 0, or 128 + the signal that stopped it after a checkpoint was saved.

    A stage ends with a report; ``on_stage`` is called when the next has begun, and a checkpoint makes that final. ``run`` is
    ``None`` where ``world`` has another process that keeps it; all start from that one's state.

    Raises :class:`Diverged` where a loss is not finite.
    """
    saved = None if run is None else run.load_checkpoint()
    spent = 0.0
    window: dict[str, list[float]] = {}
    if saved is not None:
        learner.load(saved["learner"])
        spent, window = saved["seconds"], saved["window"]
        console.print(f"going on from step {learner.step:,} ({learner.images:,} images)")
    if world.size > 1:
        state = world.share(learner.state() if world.main else None)
        if not world.main:
            learner.load(state)
    start = time.monotonic() - spent
    began_at, began = learner.images, time.monotonic()
    pace = Pace(checkpoint_seconds)

    def save() -> None:
        if run is not None:
            run.save_checkpoint({"learner": learner.state(), "seconds": time.monotonic() - start, "window": window})

    with signals_caught() as caught, _progress(console) as progress:
        task = progress.add_task("learning", total=1.0, speed="", losses="")
        while True:
            elapsed, number = world.agree(time.monotonic() - start, caught[0] if caught else 0)
            spent = budget.spent(elapsed, learner.step, learner.images)
            if spent >= 1.0 or number:
                break
            if learner.stage_over(spent):
                observe(time.monotonic() - start)
                learner.next_stage()
                on_stage(time.monotonic() - start)
                save()
            before = learner.images
            record = learner.advance()
            for key, value in record.items():
                window.setdefault(key, []).append(_number(value))
            if not all(math.isfinite(values[-1]) for values in window.values()):
                raise Diverged(f"the losses are not finite after step {learner.step:,}")
            elapsed = time.monotonic() - start
            speed = (learner.images - began_at) / max(time.monotonic() - began, 1e-9)
            if learner.step % LOG_STEPS == 0:
                means = {key: round(sum(values) / len(values), 5) for key, values in window.items()}
                if run is not None:
                    run.log("train", step=learner.step, images=learner.images, seconds=round(elapsed, 2),
                            images_per_second=round(speed, 1), **means)  # fmt: skip
                window.clear()
                progress.update(task, losses=" ".join(f"{k} {v:.2f}" for k, v in means.items() if k.startswith("loss")))
            progress.update(
                task, completed=budget.spent(elapsed, learner.step, learner.images), speed=f"{speed:.0f} images/s"
            )
            if reports_passed(before, learner.images, report_images):
                observe(elapsed)
            if pace.due():
                save()
        stopped = 128 + number if number else 0
        if not stopped and learner.images > began_at:
            observe(time.monotonic() - start)
        if run is not None and (learner.images > began_at or saved is None):
            run.log("end", step=learner.step, images=learner.images, seconds=round(time.monotonic() - start, 2),
                    reason="stopped" if stopped else "budget")  # fmt: skip
            save()
    return stopped


def _number(value: Tensor) -> float:
    return float(value.mean())


class _TimeLeft(ProgressColumn):
    """Time left at the pace so far in this session."""

    def render(self, task: Any) -> str:
        done = task.completed - task.fields.setdefault("origin", task.completed)
        if not task.elapsed or done <= 0:
            return "-:--:-- left"
        left = int(task.elapsed * (1.0 - task.completed) / done)
        return f"{left // 3600}:{left // 60 % 60:02d}:{left % 60:02d} left"


def _progress(console: Console) -> Progress:
    return Progress(
        SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"),
        TextColumn("{task.fields[speed]}"), TextColumn("{task.fields[losses]}"), _TimeLeft(),
        console=console, transient=True, disable=not console.is_terminal,
    )  # fmt: skip
