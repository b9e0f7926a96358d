"""Photographs through the theorem, in the study (§6, the third open problem): ``minmax`` on pictures, ``joint``, and ``joint`` that
starts from ``minmax``, side by side at equal wall time.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter
from PIL import Image
from rich.console import Console

from forwardsr.learning import LearnConfig, fit
from forwardsr.report.sections import duration
from forwardsr.run import Run
from forwardsr.study.cell import Values
from forwardsr.study.chapter import Chapter, Context, Stopped
from forwardsr.study.claims import Claim, Outcome
from forwardsr.study.drawing import COLOURS, STYLE, new_figure, save
from forwardsr.study.plan import Scale, run_plan

TIMES = (10.0, 60.0, 300.0, 1200.0, 3600.0)  # seconds of learning at which samples are shown
SHOWN = 8  # samples each

NAMES = {"minmax": "minmax", "joint": "joint", "joint-from-minmax": "joint from minmax"}

BETTER = Claim(
    "agnostic", "In seconds and in closed form, pictures are learned better than jointly by the end of its budget.",
    "what if the output of target network has some error comparing to the true distribution?", "§6, agnostic learning",
    "distance of minmax over joint's, each level, standardised and raw", "at most 1, at every level and in both forms",
    lambda cell: {}, at_most=1.0,
)  # fmt: skip
SOONER = Claim(
    "agnostic", "A GAN that starts from it needs half the images.",
    "the forward super-resolution structure of the target distribution (such as for images) makes learning much easier", "§6",
    "images until the best score of plain joint is reached (on lines from report to report), over plain joint's", "at most 0.5",
    lambda cell: {}, at_most=0.5,
)  # fmt: skip
OVERTAKEN = Claim(
    "agnostic", "When does joint training overtake the closed form?",
    "it would be much more interesting to extend the result beyond this level", "§6, agnostic learning",
    "seconds until joint's score is below that of minmax", "a question", lambda cell: {},
)  # fmt: skip


@dataclass(frozen=True)
class Three:
    """The runs of one seed, by the keys of :data:`NAMES`."""

    seed: int
    runs: dict[str, Path]

    def reports(self, name: str) -> list[Values]:
        """The distances logged, in order of time."""
        return Run.read(self.runs[name]).lines("distance")

    def final(self, name: str) -> Values:
        """The distance of a run's best weights at its end."""
        found: Values = json.loads((self.runs[name] / "distance.json").read_text())
        return found


def lines(scale: Scale, seed: int) -> list[str]:
    """What would be learned, a line each."""
    size = scale.numbers
    return [f"{name} at {size.side} px, seed {seed + k}" for k in range(scale.seeds) for name in NAMES]


def learn(context: Context, seed: int) -> Three:
    """The three runs of a seed; those that are there are not learned again. Raises :class:`Stopped`."""
    scale, folder = context.scale, context.out / "runs"
    plan = run_plan("joint", scale.numbers, seed, scale)
    joint = plan.config(context.source, context.device)
    closed = folder / f"minmax-{plan.side}px-{seed}"
    pictures = LearnConfig(source=context.source, method="minmax", resolution=plan.side, seed=seed, skip_bad=True,
                           precision=scale.precision)  # fmt: skip
    planned = {
        "minmax": (closed, pictures),
        "joint": (folder / plan.name, joint),
        "joint-from-minmax": (folder / f"joint-from-minmax-{plan.side}px-{seed}", replace(joint, init=str(closed))),
    }
    for name, (path, config) in planned.items():
        if not (path / "distance.json").exists() and (code := fit(config, path, Console(quiet=True))):
            raise Stopped(code)
        context.say(f"{path.name}: {NAMES[name]} learned")
    return Three(seed, {name: path for name, (path, _) in planned.items()})


def outcomes(found: Sequence[Three]) -> list[Outcome]:
    """The claims, a cell a seed."""
    better, sooner, overtaken = {}, {}, {}
    for three in found:
        cell = f"seed {three.seed}"
        ours, theirs = three.reports("minmax")[-1], min(three.reports("joint"), key=_score)
        final = three.final("joint")  # of as many images as minmax's; those of the log are of fewer, and so larger
        better[cell] = {
            f"{side} px, {form}": a / b
            for form in ("standardised", "raw")
            for side, a, b in zip(ours["sides"], ours[form], final[form])
        }
        reached = {name: images_until(three.reports(name), _score(theirs)) for name in ("joint", "joint-from-minmax")}
        sooner[cell] = {"images": reached["joint-from-minmax"] / reached["joint"]}
        later = [r["seconds"] for r in three.reports("joint") if _score(r) < _score(ours)]
        overtaken[cell] = {"seconds": float(later[0]) if later else float("inf")}
    return [Outcome(BETTER, better), Outcome(SOONER, sooner), Outcome(OVERTAKEN, overtaken)]


def images_until(reports: Sequence[Values], goal: float) -> float:
    """After how many the score is first at ``goal``, on straight lines from report to report over the logarithm of images."""
    for i, report in enumerate(reports):
        if _score(report) <= goal:
            before = _score(reports[i - 1]) if i else float("inf")
            if math.isinf(before):
                return float(report["images"])
            share = (before - goal) / (before - _score(report))
            return float(reports[i - 1]["images"] ** (1 - share) * report["images"] ** share)
    return float("inf")


def _score(report: Values) -> float:
    score = report.get("score")
    return float("inf") if score is None else float(score)


def chapter(context: Context) -> Chapter:
    """Learn what is missing; the figure and the claims. Raises :class:`Stopped`."""
    found = [learn(context, context.seed + k) for k in range(context.scale.seeds)]
    picture = save(figure(found), context.out / "figures" / "agnostic.png")
    judged = outcomes(found)
    return Chapter(
        "agnostic", "Photographs through the theorem: in closed form, jointly, and one after the other",
        "Samples of the first seed at equal times of learning, on the same machine, and the score (the mean logarithm of distance "
        "over floor) against time, a line a seed. The head start's own distillation is not in its time.",
        picture, judged, None, list(judged[0].effects),
    )  # fmt: skip


def figure(found: Sequence[Three]) -> Figure:
    """Samples at :data:`TIMES`, a row a learner, and the score against time."""
    shown = [
        (name, [(t, tiles) for t in TIMES if (tiles := _samples(found[0], name, t)) is not None]) for name in NAMES
    ]
    columns = max((len(row) for _, row in shown), default=1) or 1
    with matplotlib.rc_context(STYLE):
        drawn = new_figure(2.3 * columns + 0.6, 1.3 * len(NAMES) + 3.0)
        grid = drawn.add_gridspec(len(NAMES) + 1, columns, height_ratios=[1.2] * len(NAMES) + [2.6])
        for i, (name, row) in enumerate(shown):
            for j in range(columns):
                axis = drawn.add_subplot(grid[i, j])
                axis.set(xticks=[], yticks=[])
                for spine in axis.spines.values():
                    spine.set_visible(False)
                if j == 0:
                    axis.set_ylabel(NAMES[name])
                if j < len(row):
                    axis.imshow(row[j][1], interpolation="nearest")
                    axis.set_title(f"after {duration(row[j][0])}")
        axis = drawn.add_subplot(grid[len(NAMES), :])
        for k, name in enumerate(NAMES):
            for i, three in enumerate(found):
                reports = [r for r in three.reports(name) if r["seconds"] > 0 and np.isfinite(_score(r))]
                x, y = [r["seconds"] for r in reports], [_score(r) for r in reports]
                style: dict[str, Any] = {"color": COLOURS[k], "label": NAMES[name] if i == 0 else None}
                axis.plot(x, y, "o-" if len(x) > 1 else "D", markersize=3 if len(x) > 1 else 6, linewidth=1.2, **style)
                if name == "minmax" and x:
                    axis.axhline(y[-1], color=COLOURS[k], linewidth=0.7, linestyle=":")
        axis.set(xscale="log", xlabel="seconds of learning", ylabel="score (0: real against real)")
        axis.xaxis.set_major_formatter(ScalarFormatter())
        axis.legend()
    return drawn


def _samples(three: Three, name: str, seconds: float) -> np.ndarray | None:
    """The finest samples of the last report by then, one picture; ``None`` where there is none, or the run had ended long before."""
    reports = three.reports(name)
    known = [r for r in reports if r["seconds"] <= seconds]
    last = max(
        three.reports(other)[-1]["seconds"]
        for other in (["joint", "joint-from-minmax"] if name == "minmax" else [name])
    )
    if not known or seconds > max(2 * last, TIMES[0]):
        return None
    side = known[-1]["sides"][-1]
    stem = "best" if name == "minmax" else f"{known[-1]['step']:08d}"
    path = three.runs[name] / "samples" / f"{stem}-{side:03d}.png"
    if not path.exists():
        return None
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB"))
    row = pixels[:side, : SHOWN * side]
    half = SHOWN // 2 * side
    return np.concatenate([row[:, :half], row[:, half : 2 * half]])
