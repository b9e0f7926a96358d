"""``reproduce`` from the command line: a whole study of the smallest size, and mistakes."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from forwardsr.cli import main
from forwardsr.model.plant import PlantConfig
from forwardsr.study import plan
from forwardsr.study.dry_run import built, pace
from forwardsr.study.plan import FIGURES, SCALES, Size, run_plan

TINY = replace(
    SCALES["smoke"], pictures=Size(32, 64), numbers=Size(16, 64), seeds=2, width=4, batch=4, samples=64,
    target=PlantConfig(patches=(1, 4), channels=(6,), d=27), theorem_samples=10_000,
)  # fmt: skip


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(0)
    for k in range(40):
        coarse = random.integers(0, 256, (3, 3, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((24, 20), Image.Resampling.BILINEAR).save(folder / f"{k}.png")
    return folder


@pytest.fixture(scope="module")
def study(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole study, by the command line."""
    out = tmp_path_factory.mktemp("study") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(plan.SCALES, "smoke", TINY)
        assert main(["reproduce", "all", "--source", str(pictures), "--out", str(out)]) == 0
    return out


def test_everything_is_written_and_every_claim_is_judged(study: Path) -> None:
    found = json.loads((study / "study.json").read_text())
    assert {c["figure"] for c in found["claims"]} == {*FIGURES, "theorem"}
    # The critic's mean loss needs more steps than these runs have; everything else is measured, in the pictures' cell and in
    # both seeds.
    (short,) = [c for c in found["claims"] if c["verdict"] == "unmeasured"]
    assert "critic wins" in short["claim"]
    assert len(short["missing"]) == 3
    judged = [c for c in found["claims"] if c is not short]
    assert all((c["held"] is None) == (c["verdict"] == "open") for c in judged)
    assert all(len(c["effects"]) == (2 if c["figure"] == "theorem" else 3) for c in judged)
    for figure in (*FIGURES, "theorem"):
        with Image.open(study / "figures" / f"{figure}.png") as image:
            assert min(image.size) > 50  # a sheet of four filters is low
    assert [run["method"] for run in found["runs"]].count("joint") == 3


def test_the_page_is_complete_in_itself_and_names_no_folder(study: Path, pictures: Path) -> None:
    page = (study / "page.html").read_text()
    assert not re.findall(r"""(?:src|href)=["'](?!data:|\#)""", page)
    assert page.count("data:image/png;base64,") == 9
    assert str(pictures.parent) not in page
    assert str(pictures.parent) not in (study / "study.json").read_text()
    for figure in FIGURES:
        assert f'id="{figure}"' in page


def test_the_same_command_again_learns_nothing(study: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(plan.SCALES, "smoke", TINY)
    monkeypatch.setattr("forwardsr.study.cell.fit", lambda *_: pytest.fail("a finished run was run again"))
    monkeypatch.setattr("forwardsr.study.cell.measure", lambda *_: pytest.fail("a measurement was made again"))
    before = json.loads((study / "study.json").read_text())
    # Fewer figures come from the same runs, and the source need not be said again in another way.
    assert main(["reproduce", "figure3", "figure7", "--source", str(pictures), "--out", str(study)]) == 0
    after = json.loads((study / "study.json").read_text())
    kept = [c for c in before["claims"] if c["figure"] in ("figure3", "figure7")]
    assert after["claims"] == kept
    assert main(["reproduce", "figure3", "--source", str(pictures), "--out", str(study), "--seed", "7"]) == 2


def test_a_dry_run_says_what_would_be_run_and_writes_nothing(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(plan.SCALES, "smoke", TINY)
    out = tmp_path / "out"
    command = ["reproduce", "figure7", "theorem", "--source", str(pictures), "--out", str(out), "--dry-run"]
    assert main(command) == 0
    said = capsys.readouterr().out
    for name in ("layerwise-16px-0", "last-layer-16px-1", "joint-16px-0", "theorem-10000-1"):
        assert name in said
    assert "backward-correction" not in said
    assert not out.exists()


def test_the_papers_size_can_be_built_and_takes_a_step() -> None:
    scale = replace(SCALES["gpu"], precision="float32")
    plans = {method: run_plan(method, scale.pictures, 0, scale) for method in ("joint", "last-layer", "layerwise")}
    cpu = torch.device("cpu")
    learner = built(plans["layerwise"], cpu)
    assert learner.generator.sides == (8, 16, 32, 64)
    assert len(learner.stages) == 4
    assert learner.advance()["loss_d"].isfinite().all()
    assert learner.images == 64  # the batch
    assert (plans["last-layer"].random_width or 0) > 64
    small = replace(plans["joint"], scale=replace(scale, batch=2))
    assert pace(small, cpu, steps=1) > 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["figure9", "--source", "photos"], "figure9: nothing of that name"),
        (["figure1", "--source", "photos", "--scale", "huge"], "--scale huge"),
        (["figure1", "--source", "photos", "--effort", "0"], "--effort 0"),
        (["figure1"], "--source"),
        (["figure1", "--source", "nowhere.zip"], "nowhere.zip: no such file"),
        (["figure1", "--source", "target.safetensors"], "target.safetensors"),
        (["figure1", "--source", "photos", "--device", "tpu"], "--device tpu"),
    ],
)
def test_a_mistake_is_one_line(
    arguments: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "target.safetensors").write_bytes(b"")
    assert main(["reproduce", *arguments, "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert says in said
    assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("make", ["file", "other"])
def test_a_folder_that_is_no_place_for_a_study(make: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    if make == "file":
        out.write_text("a file")
    else:
        out.mkdir()
        (out / "thesis.tex").write_text("precious")
    assert main(["reproduce", "figure1", "--source", "photos", "--out", str(out)]) == 2
    said = capsys.readouterr().err
    assert f"--out {out}" in said
    assert said.count("\n") == 1
