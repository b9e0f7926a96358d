"""``reproduce``: learn what is missing, measure it, draw the figures, judge the claims, write the page.

The study's folder holds ``plan.json`` (what it is a study of), ``runs/`` (a Run each), ``measured/``, ``figures/``, ``page.html`` and
``study.json``. The same command again goes on where it stopped; other figures named for the same folder share its runs.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import forwardsr
from forwardsr.device import resolve_device
from forwardsr.report.sections import duration
from forwardsr.run import Run, replacing
from forwardsr.study import agnostic, theorem
from forwardsr.study import cell as cells_on_disk
from forwardsr.study.cell import Cell, Unmeasured
from forwardsr.study.chapter import Chapter, Context, Stopped
from forwardsr.study.checks import SCHEMA, check_folder, check_source, resolve_targets, write_plan
from forwardsr.study.claims import CLAIMS, Outcome, examine
from forwardsr.study.drawing import save
from forwardsr.study.dry_run import plan_table
from forwardsr.study.effects import over_floor
from forwardsr.study.figures import DRAWN
from forwardsr.study.page import write_page
from forwardsr.study.plan import FIGURES, CellPlan, ReproduceConfig, Scale, cells, find_scale


@dataclass(frozen=True)
class Extra:
    """A part of a study that learns what no figure needs: the lines of its plan, its chapter, whether it is about pictures."""

    lines: Callable[[Scale, int], list[str]]
    chapter: Callable[[Context], Chapter]
    of_pictures: bool = False


EXTRAS = {"theorem": Extra(theorem.lines, theorem.chapter), "agnostic": Extra(agnostic.lines, agnostic.chapter, True)}


def reproduce(targets: Sequence[str], config: ReproduceConfig, out: Path, dry_run: bool, console: Console) -> int:
    """Reproduce the figures named in ``targets`` (figure1 ... figure8, theorem, agnostic, all) in the folder ``out``.

    Returns 0; 1 where a run diverged (what could be measured is on the page); 128 + a signal's number where one stopped it.
    Raises :class:`UserError` for a mistake in the settings.
    """
    names = resolve_targets(targets, list(EXTRAS))
    scale = find_scale(config.scale, config.effort)
    figures = [name for name in names if name in FIGURES]
    check_source(config.source, any(name in FIGURES or EXTRAS[name].of_pictures for name in names))
    device = resolve_device(config.device)
    planned = cells(figures, scale, config.seed)
    check_folder(out, config)
    if dry_run:
        extras = [line for name in names if name in EXTRAS for line in EXTRAS[name].lines(scale, config.seed)]
        console.print(plan_table(planned, names, extras, scale, out, device))
        return 0
    write_plan(out, config)
    done: list[Cell] = []
    drawn: dict[str, Path | None] = {}
    chapters: list[Chapter] = []
    context = Context(scale, config.seed, config.source or "", out, config.device, console.print)
    try:
        for plan in planned:
            done.append(_learn(plan, (len(done), len(planned)), context, console))
            drawn = drawn or {name: _draw(name, done[0], out) for name in figures}
            chapters = [_chapter(name, drawn[name], done) for name in figures]
            # Already now: what is there can be read while the other seeds learn.
            _write(out, _study(config, scale, planned, done, chapters), chapters)
        for name in names:
            if name in EXTRAS:
                chapters.append(EXTRAS[name].chapter(context))
                _write(out, _study(config, scale, planned, done, chapters), chapters)
    except Stopped as stop:
        console.print("saved; the same command goes on from here")
        return stop.code
    console.print(verdicts(chapters))
    console.print(f"page: {out / 'page.html'}")
    return 1 if any(len(cell.runs) < len(cell.plan.runs) for cell in done) else 0


def _learn(plan: CellPlan, place: tuple[int, int], context: Context, console: Console) -> Cell:
    """The runs of a cell, then its measurements; ``place``: the cell's, from 0, and how many there are. Raises :class:`Stopped`."""
    cell, out = Cell(plan), context.out
    for k, (method, run) in enumerate(plan.runs.items(), start=1):
        folder = out / "runs" / run.name
        there = cells_on_disk.done(folder, run)
        with console.status(f"{run.name}: {run.images:,} images"):
            code = cells_on_disk.learn(run, folder, context.source, context.device)
        if code > 1:
            raise Stopped(code)
        if code:
            console.print(f"{run.name}: its losses are not finite; claims about it are left out")
            continue
        cell.runs[method] = folder
        cell.distances[method] = json.loads((folder / "distance.json").read_text())
        finest = over_floor(cell.distances[method], -1)
        took = "learned already" if there else duration(cells_on_disk.seconds(Run.read(folder)))
        count = f"[{place[0] * len(plan.runs) + k}/{place[1] * len(plan.runs)}]"
        console.print(
            f"{count} {run.name}: {took}; {run.side} px pictures at {finest:.1f} times the floor", markup=False
        )
    for method, names in plan.what.items():
        if method in cell.runs and names:
            name = plan.runs[method].name
            with console.status(f"{name}: {', '.join(names)}"):
                store = out / "measured" / f"{name}.json"
                cell.found |= cells_on_disk.take(cell.runs[method], names, context.scale.samples, 1, store)
    return cell


def _draw(name: str, cell: Cell, out: Path) -> Path | None:
    """The figure of that name, or ``None`` where something it shows is missing."""
    try:
        return save(DRAWN[name].draw(cell), out / "figures" / f"{name}.png")
    except Unmeasured:
        return None


def _chapter(name: str, picture: Path | None, done: Sequence[Cell]) -> Chapter:
    outcomes = [examine(claim, done) for claim in CLAIMS if claim.figure == name]
    apart = done[0].plan.role == "pictures"
    return Chapter(
        name, DRAWN[name].title, DRAWN[name].seen, picture, outcomes, done[0].plan.name if apart else None,
        [cell.plan.name for cell in done[1 if apart else 0 :]],
    )  # fmt: skip


def _write(out: Path, study: dict[str, Any], chapters: Sequence[Chapter]) -> None:
    write_page(out / "page.html", study, chapters)
    with replacing(out / "study.json") as temporary:
        temporary.write_text(json.dumps(study, indent=1) + "\n")


def _study(
    config: ReproduceConfig,
    scale: Scale,
    planned: Sequence[CellPlan],
    done: Sequence[Cell],
    chapters: Sequence[Chapter],
) -> dict[str, Any]:
    """All numbers, as JSON can hold them. Of the source only its own name: a study is passed on."""
    runs = [
        {
            "name": plan.name, "method": method, "side": plan.side, "seed": plan.seed, "images": plan.images,
            "compute": plan.compute, "shares": plan.shares,
            "seconds": seconds_of(cell, method), "distance": cell.distances.get(method),
        }
        for cell in done
        for method, plan in cell.plan.runs.items()
    ]  # fmt: skip
    return {
        "schema": SCHEMA,
        "version": forwardsr.__version__,
        "source": None if config.source is None else Path(config.source).name,
        "scale": scale.name,
        "effort": config.effort,
        "seed": config.seed,
        "pictures": vars(scale.pictures),
        "numbers": vars(scale.numbers) | {"seeds": scale.seeds},
        "width": scale.width,
        "batch": scale.batch,
        "to_come": [plan.name for plan in planned[len(done) :]],
        "runs": runs,
        "claims": [outcome.to_json() for chapter in chapters for outcome in chapter.outcomes],
        "measured": {cell.plan.name: cell.found for cell in done},
    }


def seconds_of(cell: Cell, method: str) -> float | None:
    """Of learning, where it was learned."""
    return cells_on_disk.seconds(Run.read(cell.runs[method])) if method in cell.runs else None


def verdicts(chapters: Sequence[Chapter]) -> Table:
    """A row a claim."""
    table = Table(title="What the paper says, and whether it held here", title_justify="left")
    for heading in ("figure", "claim", "verdict"):
        table.add_column(heading)

    def word(outcome: Outcome) -> str:
        held = sum(outcome.holds(cell) for cell in outcome.effects) if outcome.verdict == "mixed" else 0
        return f"mixed: in {held} of {len(outcome.effects)} runs" if outcome.verdict == "mixed" else outcome.verdict

    for chapter in chapters:
        for outcome in chapter.outcomes:
            table.add_row(chapter.name, outcome.claim.says, word(outcome))
    return table
