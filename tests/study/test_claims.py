"""The rules: what holds, what fails, and numbers by hand."""

from __future__ import annotations

import math

import pytest

from forwardsr.study.cell import Cell, Unmeasured
from forwardsr.study.claims import CLAIMS, Claim, examine
from forwardsr.study.effects import Effects, fallen_at, over_floor
from forwardsr.study.plan import FIGURES, SCALES, cells


def cell(seed: int = 0, **found: object) -> Cell:
    plan = next(c for c in cells(list(FIGURES), SCALES["smoke"], 0) if c.seed == seed and c.role == "numbers")
    made = Cell(plan)
    made.found.update(found)  # type: ignore[arg-type]
    return made


def distance(standardised: float, raw: float) -> dict[str, object]:
    return {
        "sides": [8, 16], "standardised": [4.0, standardised], "raw": [9.0, raw], "floor_standardised": [2.0, 2.0],
        "floor_raw": [2.0, 2.0],
    }  # fmt: skip


def claim(says: str) -> Claim:
    return next(c for c in CLAIMS if says in c.says)


def measured(says: str, at: Cell) -> Effects:
    return claim(says).measure(at)


def test_a_verdict_is_of_all_cells_and_of_every_effect() -> None:
    rule = Claim("figure1", "", "", "", "", "", lambda c: c.found["x"], at_most=1.0)
    good, bad = {"a": 1.0, "b": -3.0}, {"a": 0.5, "b": 1.5}
    assert examine(rule, [cell(0, x=good), cell(1, x=good)]).verdict == "held"
    assert examine(rule, [cell(0, x=good), cell(1, x=bad)]).verdict == "mixed"
    assert examine(rule, [cell(0, x=bad), cell(1, x=bad)]).verdict == "failed"
    assert examine(rule, [cell(0, x={"a": math.nan})]).verdict == "failed"
    assert examine(rule, [cell(0, x={})]).verdict == "failed"
    outcome = examine(rule, [cell(0, x=good), cell(1, x=bad)])
    assert outcome.to_json()["held"] is False
    assert outcome.to_json()["held_in"] == ["16 px, seed 0"]
    assert outcome.values("b", list(outcome.effects)) == [-3.0, 1.5]


def test_what_could_not_be_measured_has_no_verdict() -> None:
    outcome = examine(claim("beats learning the last layer"), [cell()])
    assert outcome.verdict == "unmeasured"
    assert outcome.to_json()["held"] is None
    assert list(outcome.missing) == ["16 px, seed 0"]


def test_factors_between_learners_by_hand() -> None:
    at = cell()
    at.distances = {"last-layer": distance(8.0, 18.0), "layerwise": distance(4.0, 6.0)}  # type: ignore[dict-item]
    found = measured("beats learning the last layer", at)
    # Level 1 is alike; at level 2 the geometric mean of 2 and 3, of which the mean over both levels takes the root.
    expected = {"finest level, standardised": 2.0, "finest level, raw": 3.0, "all levels, both forms": 6**0.25}
    assert found == pytest.approx(expected)
    assert over_floor(at.distances["layerwise"], 0) == pytest.approx(3.0)


def test_when_a_difference_has_fallen_for_good() -> None:
    assert fallen_at([0.0, 100.0], [0.05, 0.01], 0.1) == 0
    assert fallen_at([0.0, 100.0, 200.0], [1.0, 1.0, 0.01], 0.1) == pytest.approx(
        150
    )  # half of the way in the logarithm
    assert fallen_at([0.0, 100.0, 200.0, 300.0], [1.0, 0.01, 1.0, 0.01], 0.1) == pytest.approx(
        250
    )  # the last time counts
    assert fallen_at([0.0, 100.0], [1.0, 0.2], 0.1) == math.inf
    assert fallen_at([0.0, 100.0], [1.0, -0.2], 0.1) < 100  # an unbiased estimate of nothing may be negative


def test_moments_take_the_worst_level() -> None:
    rows = [
        {"level": level, "images": images, "to_initial": [value] * 4}
        for level, values in ((1, (1.0, 0.05)), (2, (1.0, 0.5)))
        for images, value in zip((0, 1000), values)
    ]
    at = cell(moments={"rows": rows})
    assert set(measured("matches the moments", at).values()) == {0.5}
    assert set(measured("It does so early", at).values()) == {math.inf}
    rows[0]["to_initial"] = None
    with pytest.raises(Unmeasured):
        measured("matches the moments", at)


def test_features_count_edges_and_plain_colours() -> None:
    sets = [
        {"level": 1, "owner": "generator", "edge": [True, False, False, False], "flat": [0.1, 0.9, 0.2, 0.3]},
        {"level": 1, "owner": "critic", "edge": [True, True, True, True], "flat": [0.1] * 4},
    ]
    at = cell(features={"sets": sets})
    assert list(measured("paint with edges", at).values()) == [0.5]
    assert list(measured("critic's first layer", at).values()) == [1.0]


def test_a_window_is_held_against_the_whole_picture() -> None:
    predictions = [
        {"of": "real", "level": 1, "radius": radius, "r2": r2} for radius, r2 in ((0, 0.5), (1, 0.7), (None, 0.65))
    ]
    found = measured("predicted from the window", cell(locality={"predictions": predictions}))
    assert found == pytest.approx({"real, level 1 to 2": 0.05})


def test_every_claim_is_of_a_known_figure_and_says_its_rule() -> None:
    assert {c.figure for c in CLAIMS} == set(FIGURES)
    for c in CLAIMS:
        assert c.quote
        assert c.where
        assert c.effect
        assert c.rule
        assert not (c.at_most is not None and c.at_least is not None)
