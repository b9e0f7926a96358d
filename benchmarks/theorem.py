"""Theorem 5.1 in numbers: learn planted targets from samples, certify, and print a table (and JSON).

    python benchmarks/theorem.py standard          # the standard target at a million samples, efficient
    python benchmarks/theorem.py large             # the same at ten million
    python benchmarks/theorem.py closed-form       # closed-form, a million samples a stage at level 1
    python benchmarks/theorem.py seeds             # ten targets at a million samples
    python benchmarks/theorem.py noise             # noise of 0, 0.01, 0.03, 0.1 of the patch r.m.s.
    python benchmarks/theorem.py samples           # 1e5 to 1e7 samples: the slope of the errors, seconds a sample
    python benchmarks/theorem.py patches           # 4 to 256 patches: seconds a patch; 4 levels, m = 64

Seconds are of the processor (user + system, over all threads), sampling included: wall time depends on what else runs. On idle cores
the two differ by the number of threads in use.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from forwardsr.data.planted import PlantedSource
from forwardsr.learn.minmax import MinmaxConfig, learn_minmax
from forwardsr.measure.certificate import certify
from forwardsr.model.plant import PlantConfig, plant

COLUMNS = (
    "what", "samples", "cpu s", "wall s", "GB", "W", "V_l", "b_l", "norms", "biases", "Gram", "Gram/CR", "median %", "95th %",
)  # fmt: skip


def trial(what: str, config: PlantConfig, settings: MinmaxConfig, noise: float = 0.0, seed: int = 0) -> dict[str, Any]:
    """Plant, learn, certify: one line of the table. Errors are worst cases for W, V_l and b_l, r.m.s. for the others."""
    target = plant(config)
    source = PlantedSource(target, noise)
    cpu, wall = time.process_time(), time.perf_counter()
    result = learn_minmax(source, target.channels, target.parents, settings, seed)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    certificate = certify(result.generator, target, 4000, seed, result.state, settings.samples)
    worst = {
        name: max(
            (row.worst for row in certificate.rows if row.lemma == lemma and row.quantity.startswith(start)),
            default=0.0,
        )
        for name, lemma, start in (("W", "B.2", "columns"), ("V_l", "D.10", "V"), ("b_l", "D.10", "b"))
    }
    first = {row.quantity: row.rms for row in certificate.rows if row.level == 1}
    gram = [row for row in certificate.rows if row.lemma == "C.10" and "relative" in row.quantity]
    line = {
        "what": what,
        "samples": settings.samples,
        "cpu s": cpu,
        "wall s": wall,
        "GB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
        **worst,
        "norms": first["norms of V_1, relative"],
        "biases": first["biases, relative"],
        "Gram": math.sqrt(sum(row.rms**2 for row in gram) / len(gram)),
        "Gram/CR": first["<V, V'>, in Cramér-Rao bounds"],
        "median %": 100 * certificate.total.quantile(0.5),
        "95th %": 100 * certificate.total.quantile(0.95),
        "unmatched": len(certificate.unmatched),
        "notes": result.notes,
        "stages": [record.to_json() for record in result.trace],
    }
    show([line])
    return line


def show(lines: list[dict[str, Any]]) -> None:
    """Print lines as a table."""
    table = Table()
    for name in COLUMNS:
        table.add_column(name)
    for line in lines:
        table.add_row(*(f"{line[c]:.3g}" if isinstance(line[c], float) else f"{line[c]}" for c in COLUMNS))
    console = Console(width=170)
    console.print(table)
    for line in lines:
        for note in line["notes"]:
            console.print(f"{line['what']}: {note}")
        if line["unmatched"]:
            console.print(f"{line['what']}: {line['unmatched']} columns unmatched")


def slope(lines: list[dict[str, Any]], x: str, y: str) -> float:
    """Least-squares slope of log y in log x."""
    a = torch.tensor([[math.log(line[x]), 1.0] for line in lines], dtype=torch.float64)
    b = torch.tensor([[math.log(line[y])] for line in lines], dtype=torch.float64)
    return float(torch.linalg.lstsq(a, b).solution[0, 0])


def efficient(samples: int = 1_000_000) -> MinmaxConfig:
    return MinmaxConfig(samples=samples)


def run(which: str) -> list[dict[str, Any]]:
    standard = PlantConfig()
    if which == "standard":
        return [trial("standard", standard, efficient())]
    if which == "large":
        return [trial("standard", standard, efficient(10_000_000))]
    if which == "closed-form":
        return [trial("closed-form", standard, MinmaxConfig(solver="closed-form"))]
    if which == "seeds":
        return [trial(f"seed {s}", PlantConfig(seed=s), efficient(), seed=s) for s in range(10)]
    if which == "noise":
        return [trial(f"noise {x:g}", standard, efficient(), noise=x) for x in (0.0, 0.01, 0.03, 0.1)]
    if which == "samples":
        lines = [
            trial("standard", standard, efficient(n)) for n in (100_000, 316_000, 1_000_000, 3_160_000, 10_000_000)
        ]
        for name in ("Gram", "median %", "cpu s"):
            print(f"slope of {name} in samples: {slope(lines, 'samples', name):.3f}")
        return lines
    sizes = ((4,), (4, 16), (4, 16, 64), (4, 16, 64, 256))
    lines = [trial(f"{sum(s)} patches", PlantConfig(patches=s), efficient(100_000)) for s in sizes]
    for line, s in zip(lines, sizes, strict=True):
        line["patches"] = sum(s)
    print(f"slope of cpu s in patches: {slope(lines, 'patches', 'cpu s'):.3f}")
    wide = PlantConfig(patches=(4, 16, 64, 256), channels=(64,), p=(0.03, 0.06))
    return [*lines, trial("340 patches, m = 64", wide, efficient())]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = ("standard", "large", "closed-form", "seeds", "noise", "samples", "patches")
    parser.add_argument("what", nargs="+", choices=names)
    parser.add_argument("--json", type=Path, help="write all numbers here")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    lines = {name: run(name) for name in arguments.what}
    for found in lines.values():
        show(found)
    if arguments.json:
        arguments.json.write_text(json.dumps(lines, indent=1))


if __name__ == "__main__":
    main()
