"""`reproduce agnostic`: its claims from the logs of three runs, whose numbers are known here."""

import json
from pathlib import Path

import pytest

from forwardsr.study.agnostic import Three, figure, outcomes
from forwardsr.study.checks import resolve_targets


def _run(folder: Path, reports: list[tuple[float, int, float]]) -> Path:
    """A run folder with a log of (seconds, images, score), whose distances are the score in every level."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"schema": 1, "version": "0"}))
    lines = [
        {"kind": "distance", "step": n, "images": n, "seconds": t, "score": s, "sides": [8, 16], "standardised": [s, s],
         "raw": [s, 2 * s]}
        for t, n, s in reports
    ]  # fmt: skip
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    best = min(s for *_, s in reports) / 2  # of more images, so less than what the log says
    (folder / "distance.json").write_text(json.dumps({"standardised": [best, best], "raw": [best, 2 * best]}))
    return folder


@pytest.fixture
def three(tmp_path: Path) -> Three:
    return Three(
        0,
        {
            "minmax": _run(tmp_path / "m", [(5.0, 0, 0.8)]),
            "joint": _run(tmp_path / "j", [(10.0, 100, 3.0), (20.0, 200, 1.0), (40.0, 400, 0.5), (50.0, 500, 0.6)]),
            "joint-from-minmax": _run(tmp_path / "i", [(10.0, 100, 0.9), (20.0, 200, 0.4)]),
        },
    )


def test_claims_are_what_the_logs_say(three: Three) -> None:
    better, sooner, overtaken = outcomes([three])
    # Against joint's best weights at its end, 0.25.
    assert better.effects["seed 0"] == {k: pytest.approx(3.2) for k in better.effects["seed 0"]}
    assert better.verdict == "failed"
    # Plain joint's best report is 0.5 after 400 images.
    # From 0.9 after 100 images to 0.4 after 200: four fifths of the way, in logarithms.
    assert sooner.effects["seed 0"]["images"] == pytest.approx(100 * 2**0.8 / 400)
    assert sooner.verdict == "held"
    assert overtaken.effects["seed 0"]["seconds"] == 40.0
    assert overtaken.verdict == "open"


def test_the_figure_is_drawn_without_pictures(three: Three) -> None:
    assert len(figure([three]).axes) == 4


def test_all_is_the_papers_study() -> None:
    assert "agnostic" not in resolve_targets(["all"], ["theorem", "agnostic"])
    assert resolve_targets(["agnostic"], ["theorem", "agnostic"]) == ["agnostic"]
