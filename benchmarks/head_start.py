"""What a head start is worth: ``joint`` from a ``minmax`` run beside plain ``joint``, by images seen (docs/photographs.md).

    python benchmarks/head_start.py faces PLAIN FROM_MINMAX [PLAIN FROM_MINMAX ...]     # runs, a pair a seed
    python benchmarks/head_start.py faces - FROM_MINMAX ...     # beside the plain run of the same seed that was kept; no figure
    python benchmarks/head_start.py faces                       # the table, from what was kept

Keeps the logged distances in ``benchmarks/results/head-start-NAME.json``, draws them and samples of the first pair in
``docs/photographs-head-start-NAME.png`` and prints the table. The score is the mean logarithm of distance over floor, over all levels
and both forms, of 1,024 pictures.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter
from PIL import Image

from forwardsr.run import Run
from forwardsr.study.agnostic import images_until
from forwardsr.study.drawing import COLOURS, STYLE, new_figure, save

ROOT = Path(__file__).parents[1]
SHOWN = (1024, 8192, 20_000, 40_000, 80_000, 120_000)  # images of the table's columns
DRAWN = (10_000, 40_000, 80_000)  # images of the figure's strips
TILES = 14
NAMES = ("joint", "joint from minmax")
KEPT_RUN = Path("-")
KEPT = ("images", "seconds", "score", "sides", "standardised", "raw")


def curve(path: Path) -> list[dict[str, Any]]:
    """The distances a run has logged."""
    return [{key: line[key] for key in KEPT} for line in Run.read(path).lines("distance")]


def table(pairs: list[dict[str, Any]]) -> None:
    """Scores by images, and what share of plain ``joint``'s images brings its last score."""
    print(f"| images seen | {' | '.join(f'{n:,}' for n in SHOWN)} | at the end | plain's last score after |")
    print(f"|---|{'---:|' * (len(SHOWN) + 2)}")
    for pair in pairs:
        goal, total = pair["plain"][-1]["score"], pair["plain"][-1]["images"]
        for name, label in zip(("plain", "started"), NAMES):
            reports = pair[name]
            # The last report by then: reports fall on multiples of a batch.
            scores = [([r["score"] for r in reports if r["images"] <= n + 16] or [float("nan")])[-1] for n in SHOWN]
            cells = [f"{s:.2f}" if reports[-1]["images"] >= n else "" for s, n in zip(scores, SHOWN)]
            reached = images_until(reports, goal)
            share = (
                f"{reached:,.0f} ({reached / total:.3f} of its images)"
                if reached < float("inf")
                else "not in this time"
            )
            print(f"| {label}, seed {pair['seed']} | {' | '.join(cells)} | {reports[-1]['score']:.2f} | "
                  f"{f'{total:,}' if name == 'plain' else share} |")  # fmt: skip


def strip(run: Path, images: int) -> Any:
    """The finest samples of the last report by ``images``, :data:`TILES` of them in a row, and the images seen by then."""
    known = [line for line in Run.read(run).lines("distance") if 0 < line["images"] <= images + 16]
    step, side = known[-1]["step"], known[-1]["sides"][-1]
    with Image.open(run / "samples" / f"{step:08d}-{side:03d}.png") as picture:
        return np.asarray(picture.convert("RGB"))[:side, : TILES * side], known[-1]["images"]


def figure(pairs: list[dict[str, Any]], plain: Path, started: Path) -> Figure:
    """Samples of the first seed as images are seen, and score against images, a line a run."""
    last = [pairs[0][name][-1]["images"] for name in ("plain", "started")]
    rows = [(name, run, n) for n in DRAWN for name, run, end in zip(NAMES, (plain, started), last) if n <= end]
    rows += [(NAMES[0], plain, last[0])]
    with matplotlib.rc_context(STYLE):
        drawn = new_figure(8.0, 0.62 * len(rows) + 3.0)
        grid = drawn.add_gridspec(len(rows) + 1, 1, height_ratios=[0.62] * len(rows) + [3.0])
        for k, (name, run, n) in enumerate(rows):
            axis = drawn.add_subplot(grid[k])
            tiles, seen = strip(run, n)
            axis.imshow(tiles, interpolation="nearest")
            axis.set(xticks=[], yticks=[])
            axis.set_ylabel(f"{name}\n{seen:,}", rotation=0, ha="right", va="center")
            for spine in axis.spines.values():
                spine.set_visible(False)
        axis = drawn.add_subplot(grid[len(rows)])
        for k, pair in enumerate(pairs):
            for colour, key, label in zip(COLOURS[1:], ("plain", "started"), NAMES):
                x, y = zip(*((r["images"], r["score"]) for r in pair[key] if r["images"]))
                axis.plot(x, y, color=colour, linewidth=1.2, label=label if k == 0 else None)
        axis.set(xscale="log", xlabel="real images seen", ylabel="score (0: real against real)")
        axis.xaxis.set_major_formatter(ScalarFormatter())
        axis.set_ylim(bottom=0.0)
        axis.legend()
    return drawn


def main(name: str, runs: list[Path]) -> None:
    """Keep and draw, where there are runs; print."""
    kept = ROOT / "benchmarks" / "results" / f"head-start-{name}.json"
    if runs:
        before = {pair["seed"]: pair["plain"] for pair in json.loads(kept.read_text())} if kept.exists() else {}
        pairs = []
        for plain, started in zip(runs[::2], runs[1::2], strict=True):
            seed = Run.read(started).config["seed"]
            pairs.append(
                {"seed": seed, "plain": before[seed] if plain == KEPT_RUN else curve(plain), "started": curve(started)}
            )
        kept.write_text(json.dumps(pairs, indent=1) + "\n")
        if KEPT_RUN not in runs:
            save(figure(pairs, *runs[:2]), ROOT / "docs" / f"photographs-head-start-{name}.png")
    table(json.loads(kept.read_text()))


if __name__ == "__main__":
    if len(sys.argv) < 2 or len(sys.argv) % 2:
        sys.exit(__doc__)
    main(sys.argv[1], [Path(argument) for argument in sys.argv[2:]])
