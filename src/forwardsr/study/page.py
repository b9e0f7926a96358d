"""The study's page: figure by figure what the paper says, our picture, our numbers, and whether the claim held here."""

from __future__ import annotations

import base64
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import ChoiceLoader, PackageLoader

from forwardsr import __version__
from forwardsr.errors import UserError
from forwardsr.report.charts import compact
from forwardsr.report.sections import environment
from forwardsr.run import replacing
from forwardsr.study.chapter import Chapter
from forwardsr.study.claims import Claim, Outcome

_WORDS = {"held": "held", "failed": "failed", "mixed": "mixed", "open": "no claim", "unmeasured": "not measured"}


@dataclass(frozen=True)
class Row:
    """One effect: its name, the mean and the spread over the cells of numbers, and the pictures' cell. ``kept``: of each."""

    label: str
    mean: str
    spread: str
    pictures: str
    mean_kept: bool
    pictures_kept: bool


@dataclass(frozen=True)
class Judged:
    """A claim as the page shows it."""

    claim: Claim
    verdict: str
    word: str
    where: str
    rows: Sequence[Row]
    missing: Sequence[str]


def judged(outcome: Outcome, chapter: Chapter) -> Judged:
    """The outcome's rows and words."""
    claim = outcome.claim
    rows = []
    for label in outcome.labels():
        values = outcome.values(label, chapter.cells)
        shown = outcome.values(label, [chapter.pictures_cell] if chapter.pictures_cell else [])
        rows.append(
            Row(
                label, number(statistics.fmean(values)) if values else "–", spread(values),
                number(shown[0]) if shown else "–",
                claim.open or all(map(claim.keeps, values)), claim.open or all(map(claim.keeps, shown)),
            )
        )  # fmt: skip
    count, total = sum(outcome.holds(cell) for cell in outcome.effects), len(outcome.effects)
    where = {
        "held": f"in all {total} runs",
        "failed": f"in all {total} runs",
        "mixed": f"holds in {count} of {total} runs",
    }
    missing = [f"{cell}: {reason}" for cell, reason in outcome.missing.items()]
    return Judged(claim, outcome.verdict, _WORDS[outcome.verdict], where.get(outcome.verdict, ""), rows, missing)


def number(value: float) -> str:
    """Three digits; what is not finite in words."""
    if not math.isfinite(value):
        return "never" if value > 0 else "–"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def spread(values: Sequence[float]) -> str:
    """From the least to the greatest."""
    return f"{number(min(values))} to {number(max(values))}" if len(values) > 1 else ""


def write_page(out: Path, study: Mapping[str, Any], chapters: Sequence[Chapter]) -> Path:
    """Write the page, complete in itself. Raises :class:`UserError` where it cannot be written."""
    env = environment().overlay(
        loader=ChoiceLoader([PackageLoader("forwardsr.study", "."), PackageLoader("forwardsr.report", ".")])
    )
    shown = [
        {
            "chapter": chapter,
            "heading": chapter.name.capitalize().replace("Figure", "Figure "),
            "claims": [judged(outcome, chapter) for outcome in chapter.outcomes],
            "uri": None if chapter.picture is None else _uri(chapter.picture),
            "anchor": chapter.name,
        }
        for chapter in chapters
    ]
    page = env.get_template("study.html.j2").render(
        study=study, chapters=shown, facts=facts(study), version=__version__, runs=runs(study),
        counts=", ".join(f"{n} {word}" for word, n in counts([o for c in chapters for o in c.outcomes])),
        caution=caution(study),
    )  # fmt: skip
    try:
        with replacing(out) as temporary:
            temporary.write_text(page, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror or error}); choose another --out") from error
    return out


def counts(outcomes: Sequence[Outcome]) -> list[tuple[str, int]]:
    """How many claims have each verdict."""
    found = [_WORDS[outcome.verdict] for outcome in outcomes]
    return [(word, found.count(word)) for word in _WORDS.values() if word in found]


def caution(study: Mapping[str, Any]) -> str:
    """What must be known of a study that learned less than a whole one."""
    if not study["runs"]:
        return ""
    if study["scale"] == "smoke":
        return "At this scale networks hardly begin to learn: it shows that everything runs, not what the claims are worth."
    if study["effort"] < 1:
        return (
            f"Every learner saw {study['effort']:g} times the images of this scale's whole study: what is claimed of trained "
            "networks may fail for want of training."
        )
    return ""


def facts(study: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What a reader asks first."""
    pictures, numbers = study["pictures"], study["numbers"]
    trained = sum(run["seconds"] or 0.0 for run in study["runs"])
    found = [
        ("pictures", study["source"] or "planted targets"),
        ("scale", study["scale"] + (f", effort {study['effort']:g}" if study["effort"] != 1 else "")),
    ]
    if study["runs"]:
        same = pictures["side"] == numbers["side"]
        found += [
            ("shown", f"{pictures['side']} px, {compact(float(pictures['images']))} images for joint"),
            ("numbers over", f"{numbers['seeds']} seeds" + ("" if same else f" at {numbers['side']} px")),
            ("learning in all", f"{trained / 60:.0f} min"),
        ]
    return found


def runs(study: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, str]], bool]]:
    """The rows of the table of runs: images, compute, time, distances over their floors."""

    def ratio(run: Mapping[str, Any], form: str) -> str:
        distance = run["distance"]
        return "–" if distance is None else f"{distance[form][-1] / distance['floor_' + form][-1]:.1f}"

    rows = []
    for run in study["runs"]:
        cells = [
            f"{run['images']:,}",
            f"{run['compute']:.2g}",
            "–" if run["seconds"] is None else f"{run['seconds'] / 60:.1f}",
        ]
        cells += [ratio(run, "standardised"), ratio(run, "raw")]
        rows.append((f"{run['method']}, {run['side']} px, seed {run['seed']}", [(cell, "") for cell in cells], False))
    return rows


def _uri(path: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
