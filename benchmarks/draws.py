"""Distances of a run over five draws of 2,048 images, means and ranges, and MS-SSIM of 12,000 pairs: tables of docs/photographs.md.

    python benchmarks/draws.py NAME=RUN [NAME=RUN ...]     # measures and keeps: the run's own draw, and measure --seed 2 to 5
    python benchmarks/draws.py                             # the table, from what was kept

Kept in ``benchmarks/results/draws.json``; a name that is there already is replaced.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from forwardsr.generators import load_generator
from forwardsr.measure.diversity import CHUNK, ms_ssim
from forwardsr.measuring import Subject
from forwardsr.run import Run

KEPT = Path(__file__).parent / "results" / "draws.json"
SEEDS = (2, 3, 4, 5)
PAIRED, TURNS = 8000, 3  # images, each in as many pairs
FORMS = ("sides", "standardised", "raw", "diversity", "real_diversity", "n")


def draws(run: Path) -> list[dict[str, Any]]:
    """The run's own distance and those of :data:`SEEDS`."""
    found = [json.loads((run / "distance.json").read_text())]
    for seed in SEEDS:
        command = ["forwardsr", "measure", str(run), "--what", "distance", "--seed", str(seed), "--json"]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        found.append(json.loads(done.stdout)["distance"])
    return [{form: of[form] for form in FORMS} for of in found]


def similarity(images: Tensor) -> list[float]:
    """MS-SSIM of random pairs, mean and its standard error."""
    turns = [torch.randperm(len(images), generator=torch.Generator().manual_seed(turn)) for turn in range(TURNS)]
    found = [ms_ssim(images[a], images[b]) for turn in turns for a, b in (p.T for p in turn.view(-1, 2).split(CHUNK))]
    values = torch.cat(found)
    return [float(values.mean()), float(values.std() / len(values) ** 0.5)]


def similarities(run: Path) -> dict[str, list[list[float]]]:
    """Of drawn and of real images, by level."""
    subject = Subject(load_generator(run), Run.read(run), None, None, 0, None)
    sides = {"drawn": subject.generated(PAIRED), "real": subject.images(PAIRED)}
    with torch.no_grad():
        return {name: [similarity(x.float()) for x in pyramid.fold(3)] for name, pyramid in sides.items()}


def main(named: list[str]) -> None:
    """Measure, keep, print."""
    kept: dict[str, dict[str, Any]] = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    for argument in named:
        name, _, run = argument.partition("=")
        kept[name] = {"draws": draws(Path(run)), "ms_ssim": similarities(Path(run))}
        KEPT.write_text(json.dumps(dict(sorted(kept.items())), indent=1) + "\n")
    for name, record in kept.items():
        found = record["draws"]
        sides = found[0]["sides"]
        print(f"\n| {name} | {' | '.join(f'{side} px' for side in sides)} |\n|---|{'---:|' * len(sides)}")
        for form in ("standardised", "raw", "diversity", "real_diversity"):
            digits = 3 if "diversity" in form else 1
            columns = list(zip(*(of[form] for of in found)))
            cells = [f"{sum(c) / len(c):.{digits}f} ({min(c):.{digits}f} to {max(c):.{digits}f})" for c in columns]
            print(f"| {form.replace('diversity', 'MS-SSIM').replace('_', ' ')} | {' | '.join(cells)} |")
        for of, values in record["ms_ssim"].items():
            cells = [f"{mean:.4f} ± {error:.4f}" for mean, error in values]
            print(f"| MS-SSIM, {PAIRED // 2 * TURNS:,} pairs, {of} | {' | '.join(cells)} |")


if __name__ == "__main__":
    if any("=" not in argument for argument in sys.argv[1:]):
        sys.exit(__doc__)
    main(sys.argv[1:])
