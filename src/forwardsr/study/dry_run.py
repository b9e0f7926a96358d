"""``--dry-run``: the plan as a table, every learner built and a few of its steps timed."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from forwardsr.data.pyramid import Pyramid
from forwardsr.device import resolve_precision
from forwardsr.learn.budget import Budget
from forwardsr.learn.joint import JointLearner
from forwardsr.learning import make_learner, validate
from forwardsr.model.deconv_generator import pyramid_sides
from forwardsr.report.sections import duration
from forwardsr.study.cell import done
from forwardsr.study.plan import CellPlan, RunPlan, Scale, run_plan


class Noise:
    """Pictures of noise, to time a learner with."""

    name = "noise"

    def __init__(self, side: int) -> None:
        self.shapes: tuple[tuple[int, ...], ...] = tuple((3, s, s) for s in pyramid_sides(side))

    def draw(self, n: int, generator: torch.Generator, levels: int | None = None) -> Pyramid:
        """``n`` of them."""
        return Pyramid([torch.randn(n, *shape, generator=generator) for shape in self.shapes[:levels]])


def built(plan: RunPlan, device: torch.device) -> JointLearner:
    """The learner of a run, over noise. Raises :class:`UserError` where its settings cannot be."""
    config = plan.config("noise", device.type)
    validate(config)
    sides = list(pyramid_sides(plan.side))
    precision = resolve_precision(config.precision, device)
    settings: dict[str, Any] = vars(config) | {"sides": sides, "precision": precision}
    if plan.method == "last-layer":
        settings["random_width"] = plan.random_width
    return make_learner(settings, Noise(plan.side), device, Budget(images=plan.images))


def pace(plan: RunPlan, device: torch.device, steps: int = 2) -> float:
    """Multiplications a second of the joint learner at this size, here and now."""
    learner = built(plan, device)
    learner.advance()
    _wait(device)
    start = time.monotonic()
    for _ in range(steps):
        learner.advance()
    _wait(device)
    return plan.compute / plan.images * plan.scale.batch * steps / max(time.monotonic() - start, 1e-9)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def plan_table(
    planned: Sequence[CellPlan],
    names: Sequence[str],
    extras: Sequence[str],
    scale: Scale,
    out: Path,
    device: torch.device,
) -> Table:
    """What would be run, with sizes and the time to expect here; ``extras``: lines for what is no run of a figure."""
    table = Table(title=f"{', '.join(names)} at scale {scale.name}, on {device}", title_justify="left")
    table.add_column("run")
    for heading in ("images", "stages' shares of them", "multiplications", "time"):
        table.add_column(heading, justify="right")
    total, paces, tried = 0.0, dict[int, float](), set[tuple[str, int]]()
    for plan in [run for c in planned for run in c.runs.values()]:
        if (plan.method, plan.side) not in tried:
            built(plan, device)  # says what cannot be
            tried.add((plan.method, plan.side))
        if plan.side not in paces:
            paces[plan.side] = pace(_joint(plan), device)
        there = done(out / "runs" / plan.name, plan)
        expected = 0.0 if there else plan.compute / paces[plan.side]
        total += expected
        table.add_row(
            plan.name, f"{plan.images:,}", plan.shares or "1",
            f"{plan.compute:.2g}", "done" if there else duration(expected),
        )  # fmt: skip
    for line in extras:
        table.add_row(line, "", "", "", "")
    table.caption = (
        f"About {duration(total)} of learning, as a few steps here and now take; measurements and reports come on top. Every "
        f"run of a size costs the same compute. Pictures {scale.pictures.side} px; numbers {scale.numbers.side} px, "
        f"{scale.seeds} seeds; {scale.width} channels, batch {scale.batch}."
    )
    return table


def _joint(plan: RunPlan) -> RunPlan:
    size = plan.scale.pictures if plan.scale.pictures.side == plan.side else plan.scale.numbers
    return run_plan("joint", size, plan.seed, plan.scale)
