"""An experiment an assumption: the error of the learner against the size of the violation, beside the audit's verdict.

A small target (2 and 8 patches, m = 12, d = 24) whose audit holds is drawn anew with one assumption violated by growing amounts
(``forwardsr plant --violate``), audited on 200,000 samples, and learned from 100,000 a stage in three ways: by the paper's objectives
(``closed-form``), by ``efficient``, and by ``efficient`` with noise of 0.03 of the patch r.m.s., for what needs no assumption without
noise may need it with.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from forwardsr.errors import UserError
from forwardsr.learn.minmax import MinmaxConfig, Solver
from forwardsr.measure.assumptions import audit
from forwardsr.model.plant import PlantConfig, Violation, plant
from theorem_trial import Line, trial

BASE: dict[str, Any] = {"patches": (2, 8), "channels": (12,), "d": 24, "p": (0.08, 0.1)}
LEARNERS: tuple[tuple[Solver, float], ...] = (("closed-form", 0.0), ("efficient", 0.0), ("efficient", 0.03))
"""Solver and noise."""


@dataclass(frozen=True)
class Experiment:
    """One assumption: ``amounts`` from mild to severe, after the target that violates nothing (``None``)."""

    violate: Violation
    amounts: tuple[float, ...]
    base: dict[str, Any] = field(default_factory=dict)


EXPERIMENTS = (
    Experiment("density", (0.2, 0.3, 0.4, 0.49)),
    Experiment("positive-correlation", (0.3, 0.6, 0.9, 0.99)),
    Experiment("orthonormality", (0.1, 0.3, 0.6, 0.95)),
    Experiment("non-degeneracy", (0.3, 0.1, 0.01, 1e-4)),
    Experiment("anti-concentration", (0.5, 0.1, 0.01, 1e-4), {"parents": 2}),
    Experiment("identifiability", (0.6, 0.75, 0.9, 0.97)),
)


def assumptions() -> list[Line]:
    """All experiments, one line a target and learner; a refusal is a line with ``refused`` and no errors."""
    lines: list[Line] = []
    done: dict[PlantConfig, list[Line]] = {}  # most experiments start from the same target
    for experiment in EXPERIMENTS:
        for amount in (None, *experiment.amounts):
            violated: dict[str, Any] = {} if amount is None else {"violate": experiment.violate, "amount": amount}
            config = PlantConfig(**BASE | experiment.base | violated)
            if config not in done:
                done[config] = _target(f"{experiment.violate} {'none' if amount is None else f'{amount:g}'}", config)
            lines += [{"violate": experiment.violate, "amount": amount, **line} for line in done[config]]
    return lines


def _target(what: str, config: PlantConfig) -> list[Line]:
    """One target: its audit, and a line for each of the learners."""
    target = plant(config)
    found = audit(target, 200_000)
    verdict = {
        "audit": "holds" if found.holds else "fails" if found.failed() else "unresolved",
        "failed": [f"level {l}: {name}" for l, name in sorted(found.failed())],
        "unresolved": [f"level {l}: {name}" for l, name in sorted(found.failed("unresolved"))],
    }
    print(f"{what}: audit {verdict['audit']}: {', '.join(verdict['failed'])}", flush=True)
    lines = []
    for solver, noise in LEARNERS:
        name = f"{what}, {solver}, noise {noise:g}"
        line: Line = {"solver": solver, "noise": noise, **verdict}
        settings = MinmaxConfig(solver=solver, samples=100_000, level_samples=100_000)
        try:
            line |= trial(name, config, settings, noise, target=target)
            del line["stages"]
        except UserError as error:
            line |= {"what": name, "refused": str(error)}
            print(f"{name}: refused: {error}", flush=True)
        lines.append(line)
    return lines
