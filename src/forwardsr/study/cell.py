"""A cell of a study on disk: learned, measured, and read by the claims and the figures.

A run that has spent its budget is not run again, and what was measured of it is kept in ``measured/`` beside the runs; one that was
cut goes on from its checkpoint.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from forwardsr.errors import UserError
from forwardsr.learning import fit
from forwardsr.measuring import measure
from forwardsr.run import Run, replacing
from forwardsr.study.plan import CellPlan, RunPlan

Values = dict[str, Any]


class Unmeasured(Exception):
    """What a claim asks for is not there: its run diverged, or the measurement has no meaning for it."""


@dataclass
class Cell:
    """``runs``: folders by method. ``distances`` (of the best weights, by method) and ``found`` (by measurement) as JSON has them."""

    plan: CellPlan
    runs: dict[str, Path] = field(default_factory=dict)
    distances: dict[str, Values] = field(default_factory=dict)
    found: dict[str, Values] = field(default_factory=dict)

    def distance(self, method: str) -> Values:
        """The distance of that method's best weights. Raises :class:`Unmeasured`."""
        if method not in self.distances:
            raise Unmeasured(f"{method} has no distance")
        return self.distances[method]

    def measured(self, what: str) -> Values:
        """What the measurement of that name found. Raises :class:`Unmeasured`."""
        if what not in self.found:
            raise Unmeasured(f"no {what}")
        return self.found[what]

    def run(self, method: str) -> Run:
        """The run of that method. Raises :class:`Unmeasured`."""
        if method not in self.runs:
            raise Unmeasured(f"no run of {method}")
        return Run.read(self.runs[method])

    @property
    def sides(self) -> list[int]:
        """Of all levels, coarse first."""
        return [int(side) for side in next(iter(self.distances.values()))["sides"]] if self.distances else []


def seconds(run: Run) -> float:
    """Of learning, so far."""
    return float(next((line["seconds"] for line in reversed(run.lines()) if "seconds" in line), 0.0))


def done(folder: Path, plan: RunPlan) -> bool:
    """Whether the run there has spent its budget."""
    if not (folder / "distance.json").exists():
        return False
    ends = Run.read(folder).lines("end")
    return bool(ends) and ends[-1]["reason"] == "budget" and ends[-1]["images"] >= plan.images


def learn(plan: RunPlan, folder: Path, source: str, device: str) -> int:
    """Learn it, or go on, in silence; returns the exit code of :func:`forwardsr.learning.fit`."""
    return 0 if done(folder, plan) else fit(plan.config(source, device), folder, Console(quiet=True))


def take(folder: Path, names: Sequence[str], samples: int | None, seed: int, store: Path) -> dict[str, Values]:
    """The measurements of a run, those in ``store`` as they stand; the others are made and stored.

    One that has no meaning here is left out.
    """
    known: dict[str, Any] = {}
    end = (Run.read(folder).lines("end") or [{}])[-1]
    key = [end.get("images"), samples]
    if store.exists():
        saved = json.loads(store.read_text())
        known = saved["found"] if saved["key"] == key else {}
    for name in names:
        if name in known:
            continue
        try:
            with contextlib.redirect_stderr(io.StringIO()):  # the source's notes are in every run's log
                found = measure(folder, None, [name], samples, "best", seed, None)
        except UserError as error:
            known[name] = {"inapplicable": str(error)}
        else:
            known[name] = found[name].to_json()
        store.parent.mkdir(parents=True, exist_ok=True)
        with replacing(store) as temporary:
            temporary.write_text(json.dumps({"key": key, "found": known}))
    return {name: known[name] for name in names if "inapplicable" not in known[name]}
