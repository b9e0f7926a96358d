"""The command line as a user meets it: the whole way once, and one clear line for every mistake."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from forwardsr.cli import main
from forwardsr.generators import load_critic, load_generator, load_snapshot
from forwardsr.run import Run

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
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 pictures: each a colour gradient of its own."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    ramp = np.linspace(0, 1, 20)
    for i in range(60):
        a, b = rng.uniform(0, 255, (2, 3))
        image = a * ramp[:, None, None] + b * (1 - ramp)[None, :, None]
        Image.fromarray(np.clip(image, 0, 255).astype(np.uint8)).save(folder / f"{i:02d}.png")
    return folder


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORWARDSR_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


def test_learn_draw_measure_report(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    assert main(["learn", str(pictures), *TINY, "--images", "80", "--out", str(out)]) == 0
    said = capsys.readouterr().err
    assert "real vs real" in said
    assert str(out / "report.html") in said.replace("\n", "")
    for name in ("config.json", "log.jsonl", "model.safetensors", "best.safetensors", "checkpoint.pt", "distance.json"):
        assert (out / name).is_file(), name
    assert json.loads((out / "config.json").read_text())["command"].startswith("forwardsr learn ")

    # The same command again: nothing is left to do, and nothing is lost. A larger budget goes on.
    weights = (out / "model.safetensors").read_bytes()
    assert main(["learn", str(pictures), *TINY, "--images", "80", "--out", str(out)]) == 0
    assert (out / "model.safetensors").read_bytes() == weights
    assert main(["learn", str(pictures), *TINY, "--images", "88", "--out", str(out)]) == 0
    assert "going on from step 20" in capsys.readouterr().err

    assert main(["draw", str(out), "-n", "5", "--out", str(tmp_path / "s"), "--levels", "all"]) == 0
    assert sorted(p.name for p in (tmp_path / "s" / "016").iterdir()) == [f"{i:06d}.png" for i in range(5)]
    with Image.open(tmp_path / "s" / "008" / "000004.png") as image:
        assert image.size == (8, 8)
    assert main(["draw", str(out), "-n", "3", "--out", str(tmp_path / "s.npz")]) == 0
    with np.load(tmp_path / "s.npz") as arrays:
        assert {k: v.shape for k, v in arrays.items()} == {"x1": (3, 4, 48), "x2": (3, 16, 48)}

    capsys.readouterr()
    assert main(["measure", str(out), "--json", "-n", "20"]) == 0
    found = json.loads(capsys.readouterr().out)["distance"]
    assert found["sides"] == [8, 16]
    assert main(["report", str(out), "--out", str(tmp_path / "page.html")]) == 0
    assert "<html" in (tmp_path / "page.html").read_text()


@pytest.mark.parametrize("method", ["layerwise", "last-layer", "backward-correction"])
def test_the_scheduled_learners_go_the_whole_way(
    method: str, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    command = ["learn", str(pictures), *TINY, "--method", method, "--report-images", "1024", "--out", str(out)]
    assert main([*command, "--steps", "12"]) == 0
    lines = Run.read(out).lines()
    reports = [line for line in lines if line["kind"] == "distance"]
    sides = {"layerwise": [[8], [8, 16]], "last-layer": [[8, 16]], "backward-correction": [[8], [8, 16], [8, 16]]}[
        method
    ]
    assert [line["sides"] for line in reports] == sides
    assert all(line["best"] for line in reports)  # each the first of its stage
    images = [48 * (k + 1) // len(sides) for k in range(len(sides))]
    assert [line["images"] for line in lines if line["kind"] == "switch"] == images[:-1]
    assert [seen for seen, _ in Run.read(out).snapshots()] == [0, *images]
    assert json.loads((out / "distance.json").read_text())["sides"] == [8, 16]

    # What the last report showed is the last snapshot; the start of the correction is the end of the layer-wise stages.
    snapshots = [load_snapshot(path).state_dict() for _, path in Run.read(out).snapshots()]
    assert same_weights(snapshots[-1], load_generator(out, "last").state_dict())
    assert not same_weights(snapshots[0], snapshots[-1])
    if method == "backward-correction":
        assert same_weights(load_snapshot(out / "before.safetensors").state_dict(), snapshots[-2])
    else:
        assert not (out / "before.safetensors").exists()
    assert load_critic(out).sides == (8, 16)

    # A larger budget goes on in the last stage; pictures and page come out; another method is refused.
    assert main([*command, "--steps", "14"]) == 0
    assert len(Run.read(out).lines("switch")) == len(sides) - 1
    assert main(["draw", str(out), "-n", "2", "--out", str(tmp_path / "s.npz")]) == 0
    with np.load(tmp_path / "s.npz") as arrays:
        assert arrays["x1"].shape == (2, 4, 48)
    assert "<html" in (out / "report.html").read_text()
    capsys.readouterr()
    assert main(["learn", str(pictures), *TINY, "--method", "joint", "--out", str(out)]) == 2
    assert "--method" in one_line(capsys)


def same_weights(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_a_run_starts_from_another_ones_generator(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    assert main(["learn", str(pictures), *TINY, "--steps", "4", "--out", str(first)]) == 0
    command = ["learn", str(pictures), *TINY, "--method", "layerwise", "--steps", "4", "--init", str(first)]
    assert main([*command, "--out", str(second)]) == 0
    theirs, ours = load_generator(first).state_dict(), load_snapshot(Run.read(second).snapshots()[0][1]).state_dict()
    for key in theirs:
        if "norm" not in key:  # the moments are taken anew
            assert torch.equal(theirs[key], ours[key]), key
    capsys.readouterr()
    for more, says in (
        (["--width", "5"], "--init"),
        (["--method", "last-layer"], "--init"),
        (["--init", str(tmp_path / "nowhere")], "nowhere"),
    ):
        assert main([*command, *more, "--out", str(tmp_path / "third")]) == 2
        assert says in capsys.readouterr().err.strip().splitlines()[-1]
        assert not (tmp_path / "third").exists()


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--method", "layerwise", "--shares", "1,2,3"], "--shares 1,2,3: give 2 positive numbers"),
        (["--method", "backward-correction", "--shares", "1,1"], "--shares 1,1: give 3"),
        (["--method", "layerwise", "--shares", "1,zero"], "--shares 1,zero"),
        (["--method", "layerwise", "--steps", "1"], "--shares: 1 steps"),
        (["--method", "joint", "--shares", "1,1"], "--shares: joint"),
        (["--method", "last-layer", "--shares", "1"], "--shares: last-layer"),
        (["--method", "last-layer", "--random-width", "0"], "--random-width 0"),
        (["--method", "layerwise", "--random-width", "64"], "--random-width 64"),
        (["--method", "backward-correction", "--correction-rate", "0"], "--correction-rate 0"),
        (["--method", "layer-wise"], "--method layer-wise"),
        (["--method", "joint", "--solver", "sgda"], "--solver: joint has no use for it"),
    ],
)
def test_settings_of_stages_that_cannot_be(
    more: list[str], says: str, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["learn", str(pictures), *TINY, *more, "--out", str(tmp_path / "out")]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert says in lines[-1]
    assert not (tmp_path / "out").exists()


def test_a_run_is_not_continued_with_other_settings(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "run")
    assert main(["learn", str(pictures), *TINY, "--steps", "2", "--out", out]) == 0
    capsys.readouterr()
    assert main(["learn", str(pictures), *TINY, "--steps", "2", "--gamma", "3.5", "--out", out]) == 2
    assert "--gamma" in one_line(capsys)


def test_a_kill_at_any_moment_loses_no_more_than_one_interval(pictures: Path, tmp_path: Path) -> None:
    """SIGKILL again and again while checkpoints are written without pause; the run ends where an undisturbed one does."""
    command = ["learn", str(pictures), *TINY, "--steps", "160", "--report-images", "100000"]
    assert main([*command, "--out", str(tmp_path / "calm")]) == 0
    disturbed = [*command, "--checkpoint", "0.001s", "--out", str(tmp_path / "killed")]
    killed = 0
    for _ in range(3):
        process = subprocess.Popen([sys.executable, "-m", "forwardsr", *disturbed], stderr=subprocess.DEVNULL)
        checkpoint = tmp_path / "killed" / "checkpoint.pt"
        before = checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0
        while process.poll() is None and (not checkpoint.exists() or checkpoint.stat().st_mtime_ns == before):
            time.sleep(0.01)
        time.sleep(0.15)
        process.send_signal(signal.SIGKILL)
        killed += process.wait() == -signal.SIGKILL
    assert killed >= 1
    assert main(disturbed) == 0
    states = [
        torch.load(tmp_path / name / "checkpoint.pt", weights_only=True)["learner"] for name in ("calm", "killed")
    ]
    for network in ("generator", "critic", "average"):
        for key, value in states[0][network].items():
            assert torch.equal(value, states[1][network][key]), key
    assert states[0]["step"] == states[1]["step"] == 160


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    """What was said on standard error: one line, no traceback."""
    said = capsys.readouterr().err.strip()
    assert "Traceback" not in said
    assert said.count("\n") == 0, said
    assert said.startswith("forwardsr: ")
    return said


def no_pictures(folder: Path) -> list[str]:
    (folder / "empty").mkdir()
    return ["learn", str(folder / "empty")]


def text_as_jpeg(folder: Path) -> list[str]:
    (folder / "a.jpg").write_text("hello")
    return ["learn", str(folder)]


def truncated(folder: Path) -> list[str]:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "whole.jpg")
    (folder / "cut.jpg").write_bytes((folder / "whole.jpg").read_bytes()[:2000])
    return ["learn", str(folder)]


def directory_zip(folder: Path) -> list[str]:
    import zipfile

    with zipfile.ZipFile(folder / "d.zip", "w") as archive:
        archive.writestr("inside/", "")
    return ["learn", str(folder / "d.zip")]


def with_nan(folder: Path) -> list[str]:
    np.savez(folder / "a.npz", x1=np.full((9, 4, 12), np.nan, dtype=np.float32), x2=np.zeros((9, 16, 12), np.float32))
    return ["learn", str(folder / "a.npz")]


def wrong_rank(folder: Path) -> list[str]:
    np.savez(folder / "a.npz", x1=np.zeros((9, 4), dtype=np.float32))
    return ["learn", str(folder / "a.npz")]


def file_as_out(folder: Path) -> list[str]:
    (folder / "f").write_text("a file")
    return ["learn", "photos", "--out", str(folder / "f" / "run")]


def flags(*more: str) -> Callable[[Path], list[str]]:
    return lambda folder: ["learn", "photos", *more]


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda folder: ["learn", str(folder / "missing")], "missing"),
        (no_pictures, "empty"),
        (text_as_jpeg, "a.jpg"),
        (truncated, "cut.jpg"),
        (directory_zip, "d.zip"),
        (with_nan, "x1"),
        (wrong_rank, "x1"),
        (file_as_out, "--out"),
        (flags("--resolution", "60"), "--resolution 60"),
        (flags("--resolution", "sixty"), "--resolution"),
        (flags("--budget", "-5m"), "--budget"),
        (flags("--budget=-5m"), "--budget"),
        (flags("--images", "-5"), "--images"),
        (flags("--steps", "0"), "--steps"),
        (flags("--method", "magic"), "--method magic"),
        (flags("--loss", "hinge"), "--loss hinge"),
        (flags("--device", "cuda"), "--device"),
        (flags("--device", "tpu"), "--device"),
        (flags("--width", "0"), "--width"),
        (flags("--gamma", "nan"), "--gamma"),
        (flags("--fit", "squash"), "--fit"),
        (flags("--no-such-flag", "3"), "--no-such-flag"),
        (lambda folder: ["lern", "photos"], "lern"),
        (lambda folder: [], "learn"),
        (lambda folder: ["draw", str(folder), "--out", "x"], "not a run"),
        (lambda folder: ["draw", str(folder), "-n", "0", "--out", "x"], "-n 0"),
        (lambda folder: ["measure", str(folder)], "not a run"),
        (lambda folder: ["report", str(folder / "nothing")], "nothing"),
    ],
)
def test_a_mistake_gets_one_line_and_exit_code_2(
    make: Callable[[Path], list[str]], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if "cuda" in says and torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    arguments = make(tmp_path)
    if arguments[:1] == ["learn"] and "--out" not in arguments:
        arguments += ["--out", str(tmp_path / "out")]
    if "--device" not in arguments and arguments[:1] == ["learn"]:
        arguments += ["--device", "cpu"]
    assert main(arguments) == 2
    assert says in one_line(capsys)
    assert not (tmp_path / "out").exists()


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("forwardsr ")
    with pytest.raises(SystemExit) as stop:
        main(["learn", "--help"])
    assert stop.value.code == 0
    assert "--budget" in capsys.readouterr().out
