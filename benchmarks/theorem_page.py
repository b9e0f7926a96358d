"""The tables of docs/theorem.md, each between two comments that name it, filled in from the JSON under ``results/``."""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

Line = dict[str, Any]

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parents[1] / "docs" / "theorem.md"


def _markdown(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    cells = [[f"{x:.3g}" if isinstance(x, float) else str(x) for x in row] for row in rows]
    ruler = ["---", *("---:" for _ in head[1:])]
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ruler, *cells))


ERRORS = ("W", "V_l", "norms", "biases", "Gram", "Gram/CR", "median %", "95th %")


def _seeds(lines: list[Line]) -> str:
    rows = [
        [line["what"], line["cpu s"], line["GB"], *(line[e] for e in ERRORS), ", ".join(line["missed"])]
        for line in lines
    ]
    return _markdown(["", "cpu s", "GB", *ERRORS, "above its goal"], rows)


def _limit(lines: list[Line]) -> str:
    """What the learner reached on the same targets, beside it."""
    reached, pairs = (
        {line["what"]: line for line in json.loads((RESULTS / f"theorem-{name}.json").read_text())["lines"]}
        for name in ("seeds", "pairs")
    )
    rows: list[list[object]] = []
    for line in lines:
        own, with_all = reached[line["what"]], pairs[line["what"]]
        gain = with_all["95th %, all covariances"] / with_all["95th %"]
        errors = [own["median %"], line["median %"], own["95th %"], f"{gain:.3f}", line["95th %"]]
        between = f"{line['95th % least']:.3g} to {line['95th % largest']:.3g}"
        rows.append([line["what"], *errors, between, line["slope"], line["bias"]])
    head = [
        "", "median %: reached", "limit", "95th %: reached", "x, all covariances", "limit", "its draws", "slope", "mean score",
    ]  # fmt: skip
    return _markdown(head, rows)


def _trials(lines: list[Line]) -> str:
    return _markdown(
        ["", "samples", "cpu s", "GB", *ERRORS],
        [
            [line["what"], f"{line['samples']:,}", line["cpu s"], line["GB"], *(line[e] for e in ERRORS)]
            for line in lines
        ],
    )


def _assumptions(lines: list[Line]) -> str:
    """A row a target: the audit, and for each learner the error of W and Theorem 5.1's median."""
    rows: dict[tuple[str, Any], list[object]] = {}
    for line in lines:
        amount = "none" if line["amount"] is None else f"{line['amount']:g}"
        row = rows.setdefault((line["violate"], amount), [f"{line['violate']}, {amount}", line["audit"]])
        row += ["refused", ""] if "refused" in line else [line["W"], line["median %"]]
    head = ["violated, by", "audit", *(f"{who}: {what}" for who in ("closed-form", "efficient", "efficient, noise 0.03")
                                       for what in ("W", "median %"))]  # fmt: skip
    return _markdown(head, list(rows.values()))


def _outside(lines: list[Line]) -> str:
    """A row a violation and amount: Theorem 5.1's median, and W, of each solver."""
    rows: dict[tuple[str, float], list[object]] = {}
    for line in lines:
        row = rows.setdefault((line["violate"], line["amount"]), [f"{line['violate']}, {line['amount']:g}"])
        row += ["refused", ""] if "refused" in line else [line["median %"], line["W"]]
    solvers = dict.fromkeys(line["solver"] for line in lines)
    return _markdown(["", *(f"{who}: {what}" for who in solvers for what in ("median %", "W"))], list(rows.values()))


TIERS = ("W", "norms", "b_1", "Gram", "V_l", "b_l")


def _tiers(lines: list[Line]) -> str:
    """Means over seeds: r.m.s. errors, in brackets the worst of all seeds."""
    rows = []
    for name in dict.fromkeys(line["what"].rsplit(",", 1)[0] for line in lines):
        own = [line for line in lines if line["what"].startswith(f"{name}, seed")]
        seconds = [line["seconds"] for line in own if line["seconds"] is not None]
        rows.append([
            f"{name}, {len(own)} seeds",
            statistics.fmean(seconds) if seconds else "",
            *(f"{statistics.fmean(x[e]['rms'] for x in own):.2g} ({max(x[e]['worst'] for x in own):.2g})" for e in TIERS),
            *(statistics.fmean(x[e] for x in own) for e in ("median %", "95th %")),
        ])  # fmt: skip
    return _markdown(["", "cpu s", *TIERS, "median %", "95th %"], rows)


TABLES: dict[str, tuple[str, Callable[[list[Line]], str]]] = {
    "seeds": ("theorem-seeds", _seeds),
    "joint": ("theorem-joint", _seeds),
    "limit": ("theorem-limit", _limit),
    "noise": ("theorem-noise", _trials),
    "largest": ("theorem-largest", _trials),
    "assumptions": ("theorem-assumptions", _assumptions),
    "outside": ("theorem-outside", _outside),
    "tiers-small": ("tiers-small", _tiers),
    "tiers-standard": ("tiers-standard", _tiers),
}


def write_page() -> None:
    """Fill in every table whose JSON is there."""
    text = PAGE.read_text()
    for name, (file, table) in TABLES.items():
        path = RESULTS / f"{file}.json"
        if not path.exists():
            continue
        found = json.loads(path.read_text())
        body = table(found["lines"] if isinstance(found, dict) else found)
        between = re.compile(rf"(<!-- table: {re.escape(name)} -->\n).*?(<!-- end -->)", re.DOTALL)
        text, n = between.subn(lambda match, body=body: f"{match[1]}\n{body}\n\n{match[2]}", text)
        assert n == 1, name
    PAGE.write_text(text)
