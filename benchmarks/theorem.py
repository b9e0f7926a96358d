"""Theorem 5.1 in numbers: learn planted targets from samples, certify, print a table, write JSON and a figure.

    python benchmarks/theorem.py standard     # the standard target at a million samples
    python benchmarks/theorem.py seeds        # ten targets at a million samples, each held to the goals
    python benchmarks/theorem.py joint        # the same ten with the law of all neurons together (--law joint)
    python benchmarks/theorem.py limit        # what all neurons of the first layer together could tell, at a million samples
    python benchmarks/theorem.py pairs        # what the pairs' estimates give when all their covariances are used
    python benchmarks/theorem.py slopes       # 1e5 to 1e7 samples: the slope of every error, seconds against samples
    python benchmarks/theorem.py patches      # 4 to 340 patches: seconds against patches
    python benchmarks/theorem.py largest      # 4 levels, 256 patches in the finest, m = 64: audited, learned, certified
    python benchmarks/theorem.py noise        # noise of 0 to 0.1 of the patch r.m.s.
    python benchmarks/theorem.py assumptions  # every assumption violated by growing amounts
    python benchmarks/theorem.py outside      # noise, foreign samples, targets outside the class
    python benchmarks/theorem.py finite       # arrays written by numpy alone, learned and certified from the command line
    python benchmarks/theorem.py undetermined # a pair of neurons that the data do not determine: named
    python benchmarks/theorem.py figures      # draw the figures, and fill in the tables of docs/theorem.md, again from the JSON

Each writes ``results/theorem-NAME.json`` beside this file and, where there is one, ``../docs/theorem/NAME.png``. docs/theorem.md
says what came out.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch

import theorem_plots
from forwardsr.learn.minmax import MinmaxConfig
from forwardsr.measure.assumptions import AuditSettings, audit
from forwardsr.model.plant import PlantConfig, plant
from theorem_assumptions import assumptions
from theorem_command_line import finite, undetermined
from theorem_limit import limit
from theorem_outside import outside
from theorem_page import write_page
from theorem_pairs import pairs
from theorem_trial import Line, show, slope, straight, trial

RESULTS = Path(__file__).parent / "results"
FIGURES = Path(__file__).parents[1] / "docs" / "theorem"

GOALS = {
    "W": 1e-5, "V_l": 1e-5, "b_l": 1e-5, "norms": 5e-3, "biases": 5e-3, "Gram/CR": 1.1, "median %": 5.0, "95th %": 10.0,
}  # fmt: skip
"""At a million samples of the standard target; a trial succeeds where every error is within its own."""

PATCHES: dict[str, tuple[tuple[int, ...], ...]] = {
    "levels": ((4,), (4, 16), (4, 16, 64), (4, 16, 64, 256)),
    "wide": ((4, 4), (4, 16), (4, 64), (4, 256)),
}
"""Graphs over the same coarsest level: deeper ones, and two levels of which the second is wider."""


def standard() -> list[Line]:
    return [trial("standard", PlantConfig(), MinmaxConfig())]


def seeds(law: Literal["pairs", "joint"] = "pairs") -> list[Line]:
    lines = []
    for s in range(10):
        line = trial(f"seed {s}", PlantConfig(seed=s), MinmaxConfig(law=law), seed=s, fresh=10_000)
        line["missed"] = [name for name, goal in GOALS.items() if not line[name] <= goal]
        lines.append(line)
        print(f"seed {s}: {'succeeds' if not line['missed'] else 'misses ' + ', '.join(line['missed'])}")
    print(f"{sum(not line['missed'] for line in lines)} of {len(lines)} succeed")
    return lines


def joint() -> list[Line]:
    return seeds("joint")


def slopes() -> list[Line]:
    """One target throughout; what differs from one learner to the next are its samples."""
    target = plant(PlantConfig())
    plan = [(100_000, 3), (316_000, 3), (1_000_000, 3), (3_160_000, 1), (10_000_000, 1)]
    lines = []
    for n, repeats in plan:
        for s in range(repeats):
            name = f"{n:,}, learner {s}"
            lines.append(trial(name, PlantConfig(), MinmaxConfig(samples=n), seed=s, fresh=10_000, target=target))
    x = [line["samples"] for line in lines]
    for name in ("norms", "biases", "Gram", "median %", "95th %"):
        print(f"slope of {name} in samples: {slope(x, [line[name] for line in lines]):.3f}")
    a, b = straight(x, [line["cpu s"] for line in lines])
    print(f"processor seconds: {a:.1f} + {1e6 * b:.2f} a million samples")
    return lines


def patches() -> list[Line]:
    """d_1 = 4 and 100,000 samples of level 1 throughout, so that only what is done a patch grows."""
    lines = []
    for series, graphs in PATCHES.items():
        for sizes in graphs:
            name = " + ".join(str(k) for k in sizes)
            line = trial(name, PlantConfig(patches=sizes), MinmaxConfig(samples=100_000))
            lines.append(line | {"series": series, "patches": sum(sizes)})
        own = [line for line in lines if line["series"] == series]
        a, b = straight([line["patches"] for line in own], [line["cpu s"] for line in own])
        print(f"{series}: processor seconds: {a:.2f} + {b:.4f} a patch")
    return lines


LARGEST = PlantConfig(patches=(4, 16, 64, 256), channels=(64,), d=108, p=(0.028, 0.04))
"""epsilon_2 = m^-2.01 = 2.3e-4 bounds p^3; the audit's intervals over all triples leave room for p = 0.04 from 600,000 samples on."""


def largest(samples: int = 1_000_000) -> list[Line]:
    """The trial, then the target's audit (8 patches a level). ``GB`` is the peak of the process up to the certificate."""
    target = plant(LARGEST)
    line = trial("256 patches, m = 64", LARGEST, MinmaxConfig(samples=samples), target=target)
    found = audit(target, 600_000, settings=AuditSettings(max_patches=8))
    print(f"audit: {'holds' if found.holds else 'does not hold'}: {found.failed()} {found.failed('unresolved')}")
    levels = [vars(level) for level in found.levels]
    return [line | {"audit holds": found.holds, "audit": sorted(found.failed()), "levels": levels}]


def noise() -> list[Line]:
    """Also 1e-3: between rounding and what one calls noise the tolerances change hands."""
    amounts = (0.0, 1e-3, 0.01, 0.03, 0.1)
    return [trial(f"noise {x:g}", PlantConfig(), MinmaxConfig(), noise=x, fresh=10_000) | {"noise": x} for x in amounts]


EXPERIMENTS: dict[str, Callable[[], list[Line]]] = {
    f.__name__: f
    for f in (
        standard,
        seeds,
        joint,
        limit,
        pairs,
        slopes,
        patches,
        largest,
        noise,
        assumptions,
        outside,
        finite,
        undetermined,
    )
}


def draw(name: str) -> None:
    """The figure of an experiment from its JSON, where there is one."""
    figure = getattr(theorem_plots, name, None)
    path = RESULTS / f"theorem-{name}.json"
    if figure is not None and path.exists():
        FIGURES.mkdir(exist_ok=True)
        figure(json.loads(path.read_text())["lines"], FIGURES / f"{name}.png")
        print(f"figure: {FIGURES / name}.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="+", choices=(*EXPERIMENTS, "figures"))
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for name in arguments.what:
        if name == "figures":
            for each in EXPERIMENTS:
                draw(each)
            continue
        lines = EXPERIMENTS[name]()
        record = {"command": f"python benchmarks/theorem.py {name}", "threads": arguments.threads, "lines": lines}
        (RESULTS / f"theorem-{name}.json").write_text(json.dumps(record, indent=1) + "\n")
        show([line for line in lines if "GB" in line])
        draw(name)
    write_page()


if __name__ == "__main__":
    main()
