"""``measure`` as a user meets it: every measurement of a run and of a target, as tables, JSON and pictures."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from forwardsr.cli import main
from forwardsr.measuring import MEASUREMENTS, thinned

TINY = [
    "--resolution",
    "16",
    "--width",
    "4",
    "--latent",
    "6",
    "--batch",
    "4",
    "--device",
    "cpu",
    "--precision",
    "float32",
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of backward-correction on 80 smooth pictures, with snapshots, its critic and the weights before."""
    folder = tmp_path_factory.mktemp("measured")
    g = torch.Generator().manual_seed(0)
    (folder / "pictures").mkdir()
    for i in range(80):
        coarse = torch.rand(1, 3, 4, 4, generator=g)
        smooth = torch.nn.functional.interpolate(coarse, size=(16, 16), mode="bilinear")[0]
        pixels = (smooth * 255).permute(1, 2, 0).to(torch.uint8).numpy()
        Image.fromarray(np.ascontiguousarray(pixels)).save(folder / "pictures" / f"{i:02d}.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FORWARDSR_CACHE", str(folder / "cache"))
        command = ["learn", str(folder / "pictures"), "--method", "backward-correction", *TINY, "--images", "160"]
        assert main([*command, "--out", str(folder / "run")]) == 0
    return folder / "run"


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("planted") / "target.safetensors"
    assert (
        main(
            ["plant", "--patches", "4", "16", "--channels", "6", "--d", "12", "--p", "0.1", "0.12", "--out", str(path)]
        )
        == 0
    )
    return path


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORWARDSR_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


def test_everything_about_a_run(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pictures = tmp_path / "figures"
    assert main(["measure", str(run), "--what", "all", "-n", "32", "--json", "--figures", str(pictures)]) == 0
    said = capsys.readouterr()
    found = json.loads(said.out)
    assert set(found) == set(MEASUREMENTS) - {"fid"}
    assert "left out" not in said.err
    assert found["sparsity"]["initial"][0]["single"]["mean"] == pytest.approx(0.5, abs=0.1)
    rows = found["moments"]["rows"]
    assert rows[0]["images"] == 0
    assert rows[0]["to_initial"] == [1, 1, 1, 1]
    assert {s["owner"] for s in found["features"]["sets"]} == {"generator", "critic"}
    assert {p["of"] for p in found["locality"]["predictions"]} == {"generated", "real"}
    assert found["corrections"]["learning"] is not None
    assert found["corrections"]["before"]["sides"] == [8, 16]
    steps = found["forward-super-resolution"]["steps"]
    assert max(s["from_own"] for s in steps) < 1e-3
    assert steps[1]["real"] < 1e-5
    for name in set(found) - {"assumptions"}:
        with Image.open(pictures / f"{name}.png") as image:
            assert min(image.size) > 100, name


def test_a_target_and_what_has_no_meaning_there(target: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["measure", str(target), "--what", "novelty", "--source", "photos"]) == 2
    assert "novelty is of images" in capsys.readouterr().err
    assert main(["measure", str(target), "--what", "all", "-n", "200"]) == 0
    said = capsys.readouterr()
    for title in ("Sparsity", "Correlation", "Features", "Locality", "Forward super-resolution", "Assumptions"):
        assert title in said.out
    for name in ("distance", "moments", "corrections"):
        assert f"note: {name} left out" in said.err
    # Against its own law: a distance at its floor, and moments that agree.
    what = ["--what", "distance", "moments", "--source", str(target), "--json", "-n", "512"]
    assert main(["measure", str(target), *what]) == 0
    found = json.loads(capsys.readouterr().out)
    for ours, floor in zip(found["distance"]["raw"], found["distance"]["floor_raw"]):
        assert ours < 3 * floor
    for row in found["moments"]["rows"]:
        for value, error in zip(row["difference"], row["error"]):
            assert abs(value) < 5 * error


def test_planted_sparsity_is_the_one_planted(target: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["measure", str(target), "--what", "sparsity", "correlation", "--json", "-n", "20000"]) == 0
    found = json.loads(capsys.readouterr().out)
    for level in found["sparsity"]["trained"]:
        assert 0.095 < level["single"]["mean"] < 0.125
    for level in found["correlation"]["trained"]:  # independent within a patch
        assert level["pair"]["mean"] == pytest.approx(0.11**2, rel=0.15)
        assert level["triple"]["mean"] == pytest.approx(0.11**3, rel=0.3)


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--what", "beauty"], "--what beauty"),
        (["--what", "corrections"], "backward-correction"),
        (["--what", "moments"], "--source"),
        (["-n", "3"], "-n 3"),
        (["--what", "sparsity", "-n", "50", "--figures", "FILE/figures"], "--figures"),
    ],
)
def test_one_line_for_every_mistake(
    more: list[str], says: str, target: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "FILE").write_text("")
    arguments = [word.replace("FILE", str(tmp_path / "FILE")) for word in more]
    assert main(["measure", str(target), *arguments]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("forwardsr: ")]
    assert len(lines) == 1
    assert says in lines[0]


def test_snapshots_are_thinned_evenly_in_the_logarithm() -> None:
    kept = [(images, Path(str(images))) for images in (0, 1, 2, 4, 8, 16, 32, 64, 128, 256)]
    assert [images for images, _ in thinned(kept, 4)] == [0, 1, 16, 256]
    assert thinned(kept[:3], 4) == kept[:3]
