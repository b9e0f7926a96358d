"""The numbers that the claims are about, each a function of a cell: effects by name, such as one a level."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from forwardsr.study.cell import Cell, Unmeasured

Effects = dict[str, float]
EDGE_FLAT = 0.5  # share of a feature's energy in its mean colour from which it is plain, as in measure.features
FEATURE = 6 * 6 * 3  # numbers of a feature
FALLEN = 0.1  # of the moments' difference at initialisation


def _level(cell: Cell, level: int) -> str:
    side = cell.sides[level - 1] if level <= len(cell.sides) else None
    return f"level {level}" + (f" ({side} px)" if side else "")


def both(distance: dict[str, Any], level: int) -> float:
    """One level's distance (from 0), the geometric mean of its two forms."""
    return math.sqrt(distance["raw"][level] * distance["standardised"][level])


def over_floor(distance: dict[str, Any], level: int) -> float:
    """The same over the noise floor, real against real."""
    return both(distance, level) / math.sqrt(distance["floor_raw"][level] * distance["floor_standardised"][level])


def over_floors(cell: Cell) -> Effects:
    distance = cell.distance("joint")
    return {_level(cell, l + 1): over_floor(distance, l) for l in range(len(cell.sides))}


def pooling(cell: Cell) -> Effects:
    steps = cell.measured("forward-super-resolution")["steps"]
    return {
        f"X{s['level']} pooled, against X{s['level'] - 1}": s["pooled"] / s["shuffled"]
        for s in steps
        if s.get("pooled") is not None and s.get("shuffled")
    }


def painted(cell: Cell, owner: str) -> Effects:
    """The share of filters that are edges or plain colours."""
    found = {}
    for s in cell.measured("features")["sets"]:
        if s["owner"] == owner:
            told = [edge or flat >= EDGE_FLAT for edge, flat in zip(s["edge"], s["flat"])]
            found[_level(cell, s["level"])] = sum(told) / len(told)
    if not found:
        raise Unmeasured(f"no features of the {owner}")
    return found


def coherence(cell: Cell) -> Effects:
    noise = math.sqrt(2 / (math.pi * FEATURE))
    sets = cell.measured("features")["sets"]
    return {_level(cell, s["level"]): s["coherence"] / noise for s in sets if s["owner"] == "generator"}


def overlap(cell: Cell) -> Effects:
    overlaps = cell.measured("features")["overlaps"]
    return {_level(cell, o["level"]): o["best"] / o["same_spectrum"] for o in overlaps}


def before_after(what: str, kinds: Sequence[str]) -> Callable[[Cell], Effects]:
    def ratios(cell: Cell) -> Effects:
        found = cell.measured(what)
        if "initial" not in found:
            raise Unmeasured("the run keeps no initialisation")
        return {
            f"{kind}s, {_level(cell, after['level'])}" if len(kinds) > 1 else _level(cell, after["level"]):
                after[kind]["mean"] / before[kind]["mean"]
            for kind in kinds
            for before, after in zip(found["initial"], found["trained"])
        }  # fmt: skip

    return ratios


def over_asked(cell: Cell) -> Effects:
    found = cell.measured("correlation")["trained"]
    return {
        f"{kind}s, {_level(cell, a['level'])}": a[kind]["mean"] / a[kind]["asked"]
        for kind in ("pair", "triple")
        for a in found
    }


def lifts(cell: Cell) -> Effects:
    found = cell.measured("correlation")["trained"]
    return {
        f"{kind}s, {_level(cell, a['level'])}": a[kind]["lift_quantiles"][2]
        for kind in ("pair", "triple")
        for a in found
        if a[kind].get("lift_quantiles")
    }


def silent(cell: Cell) -> Effects:
    found = cell.measured("sparsity")["trained"]
    return {_level(cell, a["level"]): a["single"]["never"] / (a["m"] * a["positions"]) for a in found}


def radii(cell: Cell) -> Effects:
    found = cell.measured("locality")
    share = found["shares"].index(0.9)
    return {
        f"level {r['level']} to {r['level'] + 1} ({r['side']} px)": r["radius"][share] / r["even"][share]
        for r in found["responses"]
    }


def windows(cell: Cell) -> Effects:
    predictions = cell.measured("locality")["predictions"]
    found = {}
    for of in ("generated", "real"):
        for level in sorted({p["level"] for p in predictions}):
            here = [p for p in predictions if (p["of"], p["level"]) == (of, level)]
            windows = [p["r2"] for p in here if p["radius"] is not None]
            whole = [p["r2"] for p in here if p["radius"] is None]
            if windows and whole:
                found[f"{of}, level {level} to {level + 1}"] = max(windows) - whole[0]
    return found


def _moments(cell: Cell) -> list[list[dict[str, Any]]]:
    """By level, the rows in the order of training."""
    rows = cell.measured("moments")["rows"]
    if any(row["to_initial"] is None for row in rows):
        raise Unmeasured("the run keeps no initialisation")
    levels = sorted({row["level"] for row in rows})
    return [sorted((r for r in rows if r["level"] == l), key=lambda r: int(r["images"])) for l in levels]


def moments_left(cell: Cell) -> Effects:
    levels = _moments(cell)
    return {f"order {k + 1}, worst level": max(rows[-1]["to_initial"][k] for rows in levels) for k in range(4)}


def fallen_at(seen: Sequence[float], values: Sequence[float], bound: float) -> float:
    """When ``values`` (the first is 1) last come down to ``bound`` for good, by lines in the logarithm; infinite where never."""
    above = [k for k, value in enumerate(values) if not value <= bound]
    if not above:
        return seen[0]
    k = above[-1]
    if k + 1 == len(values):
        return math.inf
    high, low = math.log(values[k]), math.log(max(values[k + 1], 1e-6))
    return seen[k] + (seen[k + 1] - seen[k]) * (high - math.log(bound)) / (high - low)


def moments_fall(cell: Cell) -> Effects:
    levels = _moments(cell)
    found = {}
    for k in range(4):
        at = [
            fallen_at([float(r["images"]) for r in rows], [r["to_initial"][k] for r in rows], FALLEN) for rows in levels
        ]
        found[f"order {k + 1}, worst level"] = max(at) / levels[0][-1]["images"]
    return found


def times_as_far(worse: str, better: str) -> Callable[[Cell], Effects]:
    """How many times as far from real pictures ``worse`` is as ``better``, at the finest level, in both forms."""

    def factors(cell: Cell) -> Effects:
        a, b = cell.distance(worse), cell.distance(better)
        return {f"finest level, {form}": a[form][-1] / b[form][-1] for form in ("standardised", "raw")} | {
            "all levels, both forms": math.exp(
                sum(math.log(both(a, l) / both(b, l)) for l in range(len(cell.sides))) / len(cell.sides)
            )
        }

    return factors


def critic_loss(cell: Cell) -> Effects:
    """The critic's loss over the last tenth of training, over log 2, that of a critic which cannot tell."""
    lines = [line for line in cell.run("last-layer").lines("train") if "loss_d" in line]
    if not lines:
        raise Unmeasured("too few steps for a mean loss")
    late = [line["loss_d"] for line in lines if line["step"] > 0.9 * lines[-1]["step"]]
    return {"last-layer": sum(late) / len(late) / math.log(2)}


def gains(cell: Cell) -> Effects:
    found = cell.measured("corrections")
    before, after = found["before"], found["after"]
    return {_level(cell, l + 1): both(after, l) / both(before, l) for l in range(len(before["sides"]) - 1)}


def changes(quantity: str, over_learning: bool) -> Callable[[Cell], Effects]:
    def sizes(cell: Cell) -> Effects:
        found = cell.measured("corrections")
        last = max(int(c["layer"][1:]) for c in found["correction"])
        if over_learning and found["learning"] is None:
            raise Unmeasured("the run keeps no initialisation")
        return {
            f"{c['layer'][0]}{c['layer'][1:]}": c[quantity] / (found["learning"][i][quantity] if over_learning else 1.0)
            for i, c in enumerate(found["correction"])
            if int(c["layer"][1:]) < last
        }

    return sizes
