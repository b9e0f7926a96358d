"""Pages of whole, broken and strange runs, read as text."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from synthetic import make_run, save_sheet

from forwardsr.errors import UserError
from forwardsr.report.charts import Curve, chart, compact
from forwardsr.report.film import evenly, film
from forwardsr.report.page import write_report
from forwardsr.report.sections import duration
from forwardsr.report.story import Sheet, read_story
from forwardsr.report.strips import walls


def test_a_page_is_complete_in_itself(one_page: Path, two_runs_page: Path) -> None:
    for path in (one_page, two_runs_page):
        text = path.read_text()
        assert not re.search(r"""(?:src|href)=["'](?!data:|#)""", text)
        assert not re.search(r"url\((?!#)", text)
        assert "http:" not in text
        assert "https:" not in text
        assert not list(path.parent.glob("*.part"))


def test_ids_are_unique(two_runs_page: Path) -> None:
    ids = re.findall(r'\sid="([^"]*)"', two_runs_page.read_text())
    assert len(ids) == len(set(ids))
    links = re.findall(r'href="#([^"]*)"', two_runs_page.read_text())
    assert set(links) <= set(ids)


def test_the_table_holds_distances_their_ratio_and_the_floor(one_page: Path) -> None:
    text = one_page.read_text()
    # At the end, in synthetic.py: floor 1.1 l, standardised floor (1.3 + 12 / e^3), of which the ratio is 1.9.
    assert "<td>2.09<small>1.9 × floor</small></td>" in text
    assert "<td>4.40</td>" in text
    assert "noise floor: real against real" in text


def test_a_walk_keeps_to_its_row(one_page: Path) -> None:
    alts = re.findall(r'alt="A walk between two latents, (\d+) to (\d+), at 64', one_page.read_text())
    assert alts == [("1", "16"), ("17", "32"), ("33", "48"), ("49", "64")]


def test_the_final_distance_replaces_the_reports_in_the_table(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", sides=(4, 8), final=True)
    final = json.loads((run / "distance.json").read_text())
    (run / "distance.json").write_text(json.dumps(final | {"raw": [1.25, 3.5], "score": 0.0}))
    text = write_report([run], tmp_path / "page.html").read_text()
    assert "<td>1.25<small>1.0 × floor</small></td>" in text
    assert "last report" not in text
    assert "1.0 × floor</dd>" in text
    assert "8,192 pictures in the table" in text
    assert "2,048 pictures in the curves" in text


@pytest.mark.parametrize("missing", ["log", "samples", "distances", "everything"])
def test_missing_pieces_become_a_sentence(tmp_path: Path, missing: str) -> None:
    run = make_run(
        tmp_path / "run", reports=0 if missing == "distances" else 2, sheets=missing != "samples", sides=(4, 8)
    )
    if missing in {"log", "everything"}:
        (run / "log.jsonl").unlink()
    if missing == "everything":
        (run / "config.json").write_text('{"schema": 1}')
        for picture in (run / "samples").glob("*"):
            picture.unlink()
    text = write_report([run], tmp_path / "page.html").read_text()
    expected = {
        "log": ["The log holds no training step yet", "No distance was measured yet"],
        "samples": ["No samples were kept yet", "No pictures were kept yet"],
        "distances": ["No distance was measured yet", "No samples were kept yet"],
        "everything": ["No samples were kept yet", "The run did not record its command"],
    }
    assert all(sentence in text for sentence in expected[missing])
    if missing == "everything":
        both = write_report([run, run], tmp_path / "both.html").read_text()
        assert "Fewer than two of these runs kept samples" in both


def test_torn_ends_are_passed_over(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", sides=(4, 8), reports=3)
    with (run / "log.jsonl").open("a") as log:
        log.write('"not an object"\n{"kind": "train", "step": 31')
    torn = run / "samples" / "00003000-008.png"
    torn.write_bytes(torn.read_bytes()[:60])
    (run / "samples" / "00002000-004.png").write_bytes(b"")
    story = read_story(run)
    assert story.train[-1]["step"] == 3000
    assert [sheet.side for sheet in story.pictures("00003000")] == [4]
    assert "step 3,000" in write_report([run], tmp_path / "page.html").read_text()


def test_a_step_logged_again_after_a_resume_counts_once(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", sides=(4, 8), reports=0, train_lines=5, sheets=False)
    with (run / "log.jsonl").open("a") as log:
        log.writelines(
            json.dumps({"kind": "train", "step": s, "images": 64 * s, "loss_g": 9.0}) + "\n" for s in (400, 500, 600)
        )
    story = read_story(run)
    assert [line["step"] for line in story.train] == [100, 200, 300, 400, 500, 600]
    assert [line["loss_g"] for line in story.train][3:] == [9.0, 9.0, 9.0]


def test_numbers_that_are_not_finite_do_not_break_the_page(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", sides=(4, 8), reports=2)
    with (run / "log.jsonl").open("a") as log:
        log.write(
            '{"kind": "train", "step": 4000, "images": 9e5, "loss_g": NaN, "loss_d": Infinity, "r1": null, "word": "a"}\n'
        )
        log.write(
            '{"kind": "distance", "step": 4000, "sides": [4, 8], "standardised": [null, 2.0], "raw": [0.0], "score": null}\n'
        )
    text = write_report([run], tmp_path / "page.html").read_text()
    assert "nan" not in re.sub(r"data:image[^\"]*", "", text).lower().replace("finance", "")
    assert "<td>–</td>" in text


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "not a run"), ("{", "not a run"), ("[1]", "not a run"), ('{"schema": 2}', "newer")],
)
def test_a_folder_that_is_no_run(tmp_path: Path, content: str | None, message: str) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    if content is not None:
        (folder / "config.json").write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        write_report([folder], tmp_path / "page.html")
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)
    assert not (tmp_path / "page.html").exists()


def test_wrong_arguments(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", sides=(4, 8), reports=0)
    with pytest.raises(UserError, match="no such run"):
        write_report([tmp_path / "nothing"], tmp_path / "page.html")
    with pytest.raises(UserError, match="no run was named"):
        write_report([], tmp_path / "page.html")
    with pytest.raises(UserError, match="is a folder"):
        write_report([run], tmp_path)
    with pytest.raises(UserError, match="cannot be written"):
        write_report([run], run / "config.json" / "page.html")


def test_a_strip_keeps_low_resolutions_exactly_with_gaps_in_proportion() -> None:
    g = np.random.default_rng(0)
    sheets = [Sheet(s, g.integers(0, 256, (2, 16, s, s, 3), dtype=np.uint8)) for s in (8, 16, 32, 64)]
    first, second, *rest = walls(sheets, "Pictures")
    assert len(rest) == 2
    for strip, sheet in zip(second.strips, sheets):
        image = Image.open(io.BytesIO(base64.b64decode(strip.uri.split(",")[1]))).convert("RGBA")
        assert image.size == (strip.width, strip.side)
        assert strip.pitch == strip.side + strip.side // 8
        pixels = np.asarray(image)
        for column in range(8):
            left = column * strip.pitch
            tile = pixels[:, left : left + strip.side]
            assert (tile[..., 3] == 255).all()
            if strip.side <= 16:
                assert np.array_equal(tile[..., :3], sheet.tiles[0, 8 + column])
            assert (pixels[:, left + strip.side : left + strip.pitch, 3] == 0).all()
    assert (first.first, second.first) == (0, 8)
    assert first.width == 8 * 64 + 7 * 8


def test_a_film_keeps_its_budget_and_its_ends(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", sides=(4, 8), reports=0, sheets=False)
    g = torch.Generator().manual_seed(0)
    for step in range(1, 31):
        save_sheet(run, f"{step:08d}", torch.rand(32, 3, 8, 8, generator=g) * 2 - 1, (4, 8))
    story = read_story(run)
    whole = film(story, 10**9)
    assert whole is not None
    assert (len(whole.frames), len(whole.walls)) == (30, 4)
    size = sum(len(uri) for frame in whole.frames for uri in frame.uris)
    for budget in (size // 2, size // 5, size // 20):
        thin = film(story, budget)
        assert thin is not None
        assert sum(len(uri) for frame in thin.frames for uri in frame.uris) <= budget
        assert [thin.frames[0].step, thin.frames[-1].step, thin.reports] == [1, 30, 30]
        assert len(thin.frames) * len(thin.walls) < 30 * 4


@pytest.mark.parametrize(("count", "keep"), [(1, 9), (2, 2), (40, 7), (100, 60), (5, 1)])
def test_evenly(count: int, keep: int) -> None:
    kept = evenly(count, keep)
    assert (kept[0], kept[-1]) == (0, count - 1)
    assert len(kept) == len(set(kept)) <= max(2, keep)
    steps = np.diff(kept)
    assert not len(steps) or steps.max() - steps.min() <= 1


def test_a_chart_belongs_to_the_page() -> None:
    svg = str(
        chart(
            "a <title>",
            [Curve("first & last", [1.0, 2.0], [3.0, 4.0]), Curve("b", [1.0], [2.0], 1)],
            run="all",
            log=True,
        )
    )
    assert svg.startswith("<svg")
    assert 'aria-label="a &lt;title&gt;"' in svg
    assert "var(--c0)" in svg
    assert "var(--ink)" in svg
    assert "#0a0" not in svg
    assert "first &amp; last" in svg
    assert "DejaVu" not in svg
    assert chart("empty", [Curve("a", [], [])]) == ""


def test_words_for_numbers() -> None:
    assert [compact(x) for x in (0.0, 0.00312, 999.0, 1e3, 38400.0, 2.56e6, 0.5)] == [
        "0",
        "0.00312",
        "999",
        "1k",
        "38.4k",
        "2.56M",
        "0.5",
    ]
    assert [duration(x) for x in (4.4, 59.6, 61.0, 3600.0, 12e3)] == [
        "4 s",
        "1 min 0 s",
        "1 min 1 s",
        "1 h 0 min",
        "3 h 20 min",
    ]
