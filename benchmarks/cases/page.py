"""docs/benchmarks.md, made from the results of ``bench.py``: the goals with the figures reached, then every case's table."""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cases.record import Record

HEAD = """# Benchmarks

Made by `make bench` (all cases; about an hour on two idle cores) from `benchmarks/`; `make bench-quick` runs the smaller settings
in a few minutes. One record a side: sides of equal setting and n had the same samples and ran in alternation. Seconds are of the
processor (medians, one thread); *spread* is (largest - least) / median over the rounds, or, where sides were simulated, the
standard error of the ratio. A *ratio* is ours over that side's; what is held to a goal stands beside it.
"""


def write(page: Path, results: Path, cases: Sequence[str]) -> None:
    """The page of all cases that have results: full ones, or quick where there are none."""
    found: dict[str, dict[str, Any]] = {}
    for case in cases:
        for path in (results / f"bench-{case}.json", results / f"bench-{case}-quick.json"):
            if case not in found and path.exists():
                found[case] = json.loads(path.read_text())
    records = {case: [Record.from_json(each) for each in content["records"]] for case, content in found.items()}
    parts = [HEAD, "## Goals\n", goals(records)]
    parts += [section(case, content, records[case]) for case, content in found.items()]
    page.write_text("\n".join(parts))


def goals(records: dict[str, list[Record]]) -> str:
    """A line a case, quantity and goal: how often it is met, and the worst figure."""
    rows = ["| case | ratio of | goal | met | largest |", "|---|---|---:|---:|---:|"]
    for case, own in records.items():
        held = {(name, bound) for record in own for name, bound in record.goal.items()}
        for name, bound in sorted(held):
            lines = [record for record in own if record.goal.get(name) == bound]
            worst = max(lines, key=lambda record: record.ratio[name])
            met = sum(record.met[name] for record in lines)
            where = f"{worst.ratio[name]:.{3 if worst.met[name] else 4}g} ({worst.setting}, n = {count(worst.n)})"
            rows.append(f"| {title(case)} | {name} | {bound:g} | {met} of {len(lines)} | {where} |")
    return "\n".join(rows) + "\n"


def section(case: str, content: dict[str, Any], records: list[Record]) -> str:
    """One case: what it is, on what machine, what is to be said of it, its table."""
    module, own = importlib.import_module(f"cases.{case}"), content["machine"]
    about = (module.__doc__ or "").strip()
    mode = content["mode"] if content.get("complete", True) else f"{content['mode']}, cut short"
    machine = (
        f"*{mode}; {own['processor']}, {own['cores']} cores, {own['threads']} thread(s), load {own['load']} when it "
        f"began; torch {own['torch']}, Python {own['python']}; {content['wall_seconds'] / 60:.0f} minutes of wall time.*"
    )
    return "\n".join(
        [f"## {module.TITLE}\n", about + "\n", getattr(module, "REMARKS", ""), machine + "\n", table(records)]
    )


def table(records: list[Record]) -> str:
    """All records; a column a figure, and one a quantity of ratio."""
    names = list(dict.fromkeys(name for record in records for name in record.ratio))
    figures = list(dict.fromkeys(name for record in records for name in record.figures))
    heads = ["setting", "n", "side", "error", "seconds", "spread", *figures, *(f"ratio: {name}" for name in names)]
    rows = ["| " + " | ".join(heads) + " |", "|---|---:|---|" + "---:|" * (len(heads) - 3)]
    for r in records:
        side = f"{r.peer}, {r.version}" if r.version else r.peer
        cells = [r.setting, count(r.n), side, number(r.error), number(r.seconds), number(r.spread)]
        cells += [number(r.figures.get(name)) for name in figures]
        rows.append("| " + " | ".join(cells + [held(r, name) for name in names]) + " |")
    return "\n".join(rows) + "\n"


def held(record: Record, name: str) -> str:
    """A ratio, beside its goal where it has one."""
    if name not in record.goal:
        return number(record.ratio.get(name))
    if record.met[name]:
        return f"{number(record.ratio[name])} ≤ {record.goal[name]:g}"
    return f"{record.ratio[name]:.4g} **>** {record.goal[name]:g}"  # a digit more: a miss may be narrow


def line(record: Record) -> str:
    """A record in a line of the terminal."""
    ratios = ", ".join(f"{name} {held(record, name)}" for name in record.ratio)
    found = f"error {number(record.error)}, {number(record.seconds)} s; {ratios}"
    return f"  {record.setting}, n = {count(record.n)}, {record.peer}: {found}"


def number(x: float | None) -> str:
    """Three digits, or a dash."""
    return "–" if x is None else f"{x:.3g}"


def count(n: int) -> str:
    """1e5 where it is a power of ten."""
    digits = f"{n:.0e}".replace("e+0", "e")
    return digits if n >= 1000 and float(digits) == n else f"{n:,}"


def title(case: str) -> str:
    """Of a case's section."""
    return str(importlib.import_module(f"cases.{case}").TITLE)
