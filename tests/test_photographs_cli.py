"""``learn --method minmax`` on a folder of pictures, as a user meets it."""

import json
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from forwardsr import generators, learning
from forwardsr.cli import main
from forwardsr.generators import load_generator, load_snapshot
from forwardsr.learn import photographs
from forwardsr.learn.copula import FirstLevel, learn_first_level
from forwardsr.learn.head_start import latents
from forwardsr.model.deconv_generator import DeconvGenerator
from forwardsr.model.innovation_generator import InnovationGenerator
from forwardsr.run import Run


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120 pictures of odd sizes: bright blobs on dark ground."""
    folder = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(0)
    for i in range(120):
        h, w = random.integers(20, 50, 2)
        y, x = np.mgrid[0:h, 0:w] / min(h, w)
        blob = np.exp(-8 * ((y - random.uniform(0.3, 0.7)) ** 2 + (x - random.uniform(0.3, 0.7)) ** 2))
        colour = random.uniform(80, 255, 3)
        image = blob[:, :, None] * colour + random.normal(0, 6, (h, w, 3))
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(folder / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def run(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    assert main([*learn(pictures, out), "--precision", "float32"]) == 0
    return out


def learn(pictures: Path, out: Path) -> list[str]:
    return ["learn", str(pictures), "--method", "minmax", "--resolution", "16", "--out", str(out)]


def test_the_run_holds_what_a_run_holds(run: Path) -> None:
    assert isinstance(load_generator(run), InnovationGenerator)
    with safe_open(run / "model.safetensors", "pt") as file:
        assert {"U2", "around2", "mean1", "mean2", "W2", "V2", "b2", "parents2"} <= set(file.keys())
        assert file.metadata()["format"] == "forwardsr/1"
    assert [line["level"] for line in Run.read(run).lines("stage")] == [1, 2]
    page = (run / "report.html").read_text()
    assert "New pictures, not copies" in page
    assert "Generated beside real" in page
    assert "The learned features" in page
    found = json.loads((run / "novelty.json").read_text())
    assert found["copies"] == 0.0
    assert (run / "samples" / "walk-016.png").exists()


def test_everything_else_works_on_it(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "target.safetensors"
    assert main(["plant", "--patches", "4", "16", "--channels", "8", "--d", "12", "--out", str(target)]) == 0
    assert main(["certify", str(run), "--target", str(target)]) == 2
    assert "--target" in capsys.readouterr().err
    assert main(["draw", str(run), "-n", "5", "--out", str(tmp_path / "samples.npz")]) == 0
    with np.load(tmp_path / "samples.npz") as arrays:
        assert arrays["x2"].shape == (5, 16, 48)
    assert main(["draw", str(run), "-n", "2", "--out", str(tmp_path / "drawn"), "--levels", "all"]) == 0
    assert (tmp_path / "drawn" / "016" / "000001.png").exists()
    capsys.readouterr()
    names = ["distance", "sparsity", "moments", "features", "forward-super-resolution"]
    assert main(["measure", str(run), "--json", "-n", "60", "--what", *names]) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found) == names
    assert main(["certify", str(run), "--json"]) == 0
    families = {(f["discriminator"], f["level"]) for f in json.loads(capsys.readouterr().out)["families"]}
    assert families == {("D1", 1), ("D4", 1), ("D5", 1), ("D1", 2), ("D2", 2)}


def test_a_run_that_stopped_between_levels_ends_as_one_that_did_not(
    run: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "stopped"
    command = [*learn(pictures, out), "--precision", "float32"]
    whole = photographs.learn_upsampling

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(photographs, "learn_upsampling", interrupted)
    assert main(command) == 130
    monkeypatch.setattr(photographs, "learn_upsampling", whole)
    monkeypatch.setattr(photographs, "_first_stage", interrupted)  # level 1 is not learned twice
    assert main(command) == 0
    ours, theirs = load_generator(out), load_generator(run)
    assert isinstance(ours, InnovationGenerator)
    assert isinstance(theirs, InnovationGenerator)
    for a, b in zip(ours.tensors().values(), theirs.tensors().values()):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--patch", "3"], "--patch 3"),
        (["--innovation", "-1"], "--innovation"),
        (["--resolution", "24"], "--resolution 24"),
        (["--solver", "sgda"], "--solver sgda"),
        (["--level1", "gan"], "--level1"),
        (["--precision", "half"], "--precision half"),
        (["--init", "x"], "--init"),
    ],
)
def test_bad_settings_are_one_line(
    pictures: Path, tmp_path: Path, arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "bad"
    assert main([*learn(pictures, out), *arguments]) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("forwardsr:")]
    assert len(said) == 1
    assert says in said[0]
    assert not out.exists()


def test_another_setting_is_refused(run: Path, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*learn(pictures, run), "--innovation", "0.5"]) == 2
    assert "--innovation" in capsys.readouterr().err


def test_too_few_pictures(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = tmp_path / "few"
    few.mkdir()
    for path in sorted(pictures.iterdir())[:20]:
        (few / path.name).write_bytes(path.read_bytes())
    assert main(["learn", str(few), "--method", "minmax", "--resolution", "16", "--out", str(tmp_path / "out")]) == 2
    assert "at least 50" in capsys.readouterr().err


def test_a_run_keeps_its_precision(
    run: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*learn(pictures, run), "--precision", "bfloat16"]) == 2
    assert "--precision" in capsys.readouterr().err
    used: list[str] = []

    def law(x: torch.Tensor, generator: torch.Generator, channels: int, precision: str) -> FirstLevel:
        used.append(precision)
        return learn_first_level(x, generator)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(photographs, "LAWS", {"sliced": law})
    monkeypatch.setattr(photographs, "learn_upsampling", interrupted)
    out = tmp_path / "other"
    for faster in ("bfloat16", "float32"):  # what auto finds, the second time on a run that exists
        monkeypatch.setattr(learning, "resolve_precision", lambda name, device, faster=faster: faster)
        assert main(learn(pictures, out)) == 130
        assert Run.read(out).config["precision"] == "bfloat16"
    assert used == ["bfloat16"]


def test_a_run_older_than_the_setting_is_still_a_run(
    run: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = tmp_path / "old"
    shutil.copytree(run, old)
    config = json.loads((old / "config.json").read_text())
    del config["precision"]
    (old / "config.json").write_text(json.dumps(config))
    assert main(learn(pictures, old)) == 0
    assert "already" in capsys.readouterr().err


def test_a_law_without_a_descent_has_no_use_for_a_precision(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--level1", "copula", "--precision", "bfloat16"]
    assert main([*learn(pictures, tmp_path / "out"), *arguments]) == 2
    assert "--precision: --level1 copula" in capsys.readouterr().err


@pytest.mark.parametrize("method", ["joint", "backward-correction"])
def test_a_gan_starts_from_it_with_its_latents_and_innovations(
    method: str, run: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(generators, "distil", partial(generators.distil, samples=128))
    teacher = load_generator(run)
    assert isinstance(teacher, InnovationGenerator)
    command = ["learn", str(pictures), "--method", method, "--resolution", "16", "--width", "4", "--batch", "4",
               "--precision", "float32", "--init", str(run)]  # fmt: skip
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert main([*command, "--steps", "6", "--out", str(whole)]) == 0
    made = load_generator(whole)
    assert isinstance(made, DeconvGenerator)
    assert (made.latent, made.innovations) == latents(teacher)
    assert made.innovations > 0
    if method == "joint":  # to go on needs no more than the same command, and not even the other run
        assert main([*command, "--steps", "3", "--out", str(parts)]) == 0
        hidden = run.rename(run.with_name("elsewhere"))
        try:
            assert main([*command, "--steps", "6", "--out", str(parts)]) == 0
        finally:
            hidden.rename(run)
        ours, theirs = (load_snapshot(path / "model.safetensors").state_dict() for path in (whole, parts))
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
        assert main(["draw", str(whole), "-n", "3", "--out", str(tmp_path / "s.npz")]) == 0
        assert main(["measure", str(whole), "--source", str(pictures), "--what", "locality", "sparsity"]) == 0
    capsys.readouterr()
    for more, says in (
        (["--latent", "64"], f"--latent 64: {run} has {made.latent}"),
        (["--innovations", "2"], f"--innovations 2: {run} has {made.innovations}"),
        (["--innovations", "-1"], "--innovations -1"),
        (["--resolution", "32"], "make them equal"),
    ):
        assert main([*command, *more, "--steps", "8", "--out", str(tmp_path / "other")]) == 2
        assert says in capsys.readouterr().err.replace("\n", " ").strip()
        assert not (tmp_path / "other").exists()
