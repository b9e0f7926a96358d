"""The three tiers of Algorithm 4 on the same targets: SGDA and closed form from one warm start, and the efficient learner.

    python benchmarks/tiers.py small       # 2 levels, 4 and 16 patches, m = 8, d = 12, three seeds; some minutes each
    python benchmarks/tiers.py standard    # 4, 16, 64 patches, m = 24, d = 108; ten seeds: closed form at a million, and efficient

Every line is one network held against a truth: its r.m.s. errors (in brackets the worst), as the certificate has them. The lines
"sgda to closed-form" hold the former against the latter. Writes ``results/tiers-NAME.json`` beside this file. Seconds are of the
processor (all threads), sampling included.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from forwardsr.data.planted import PlantedSource
from forwardsr.learn.minmax import MinmaxConfig, MinmaxResult, Solver, StageRecord, State, learn_minmax
from forwardsr.measure.certificate import Certificate, certify
from forwardsr.model.patch_generator import PatchGenerator
from forwardsr.model.plant import PlantConfig, plant

SMALL = {"patches": (4, 16), "channels": (8,), "d": 12, "p": (0.1, 0.12)}
ERRORS = {
    "W": ("B.2", ("columns",)),
    "norms": ("C.6", ("norms",)),
    "b_1": ("C.6", ("biases",)),
    "Gram": ("C.10", ("<V, V'> within", "<V, V'> across")),
    "V_l": ("D.10", ("V",)),
    "b_l": ("D.10", ("b",)),
}  # fmt: skip
SEEDS = {"small": 3, "standard": 10}
GOALS = {
    "W": 2e-2,
    "Gram": 1e-2,
}  # of closed form at a million samples a stage on the standard target, worst and r.m.s.


def play(target: PatchGenerator, solver: Solver, seed: int, start: State | None = None) -> tuple[MinmaxResult, float]:
    """Learn ``target``, from the warm starts in ``start`` where given: the result, and seconds."""

    def same_start(record: StageRecord, state: State) -> None:
        name = f"W{record.level}.warm"
        if start is not None and record.name == "warm start":
            state |= {f"W{record.level}": start[name], name: start[name]}

    began = time.process_time()
    settings = MinmaxConfig(solver=solver)
    result = learn_minmax(PlantedSource(target), target.channels, target.parents, settings, seed, same_start)
    return result, time.process_time() - began


def line(what: str, certificate: Certificate, seconds: float | None = None) -> dict[str, Any]:
    """The certificate's errors by name: ``{rms, worst}``, over all levels."""
    found: dict[str, Any] = {"what": what, "seconds": seconds}
    for name, (lemma, starts) in ERRORS.items():
        rows = [row for row in certificate.rows if row.lemma == lemma and row.quantity.startswith(starts)]
        rows = [row for row in rows if "Cram" not in row.quantity]
        rms = math.sqrt(sum(row.rms**2 for row in rows) / len(rows))
        found[name] = {"rms": rms, "worst": max(row.worst for row in rows)}
    return found | {
        "median %": 100 * certificate.total.quantile(0.5),
        "95th %": 100 * certificate.total.quantile(0.95),
        "unmatched": len(certificate.unmatched),
    }


def small(seeds: range) -> list[dict[str, Any]]:
    lines = []
    for seed in seeds:
        target = plant(PlantConfig(**SMALL, seed=seed))  # type: ignore[arg-type]
        sgda, seconds = play(target, "sgda", seed)
        closed, closed_seconds = play(target, "closed-form", seed, sgda.state)
        efficient, efficient_seconds = play(target, "efficient", seed)
        lines += [
            line(f"sgda, seed {seed}", certify(sgda.generator, target), seconds),
            line(f"closed-form, seed {seed}", certify(closed.generator, target), closed_seconds),
            line(f"efficient, seed {seed}", certify(efficient.generator, target), efficient_seconds),
            line(f"sgda to closed-form, seed {seed}", certify(sgda.generator, closed.generator)),
        ]
        show(lines[-4:])
    return lines


def standard(seeds: range) -> list[dict[str, Any]]:
    lines = []
    for seed in seeds:
        target = plant(PlantConfig(seed=seed))
        for solver in ("closed-form", "efficient"):
            result, seconds = play(target, solver, seed)
            lines.append(line(f"{solver}, seed {seed}", certify(result.generator, target), seconds))
            show(lines[-1:])
        closed = lines[-2]
        met = closed["W"]["worst"] <= GOALS["W"] and closed["Gram"]["rms"] <= GOALS["Gram"]
        print(f"closed-form, seed {seed}: W within {GOALS['W']:g} and Gram within {GOALS['Gram']:g}: {met}")
    return lines


def show(lines: list[dict[str, Any]]) -> None:
    """Print lines as a table."""
    table = Table("what", "seconds", *ERRORS, "median %", "95th %", "unmatched")
    for row in lines:
        errors = (f"{row[name]['rms']:.4f} ({row[name]['worst']:.4f})" for name in ERRORS)
        seconds = "" if row["seconds"] is None else f"{row['seconds']:.0f}"
        table.add_row(
            row["what"], seconds, *errors, f"{row['median %']:.2f}", f"{row['95th %']:.1f}", str(row["unmatched"])
        )
    Console(width=170).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("small", "standard"))
    parser.add_argument("--seeds", type=int, help="how many; 3 of small, 10 of standard")
    parser.add_argument("--first", type=int, default=0, help="the first seed; results of earlier ones are kept")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    out = Path(__file__).parent / "results" / f"tiers-{arguments.what}.json"
    kept = [row for row in json.loads(out.read_text()) if _seed(row) < arguments.first] if arguments.first else []
    last = arguments.first + (arguments.seeds or SEEDS[arguments.what])
    lines = {"small": small, "standard": standard}[arguments.what](range(arguments.first, last))
    out.write_text(json.dumps(kept + lines, indent=1) + "\n")


def _seed(row: dict[str, Any]) -> int:
    return int(row["what"].rsplit(" ", 1)[1])


if __name__ == "__main__":
    main()
