"""plant, learn --method minmax, certify, draw and measure from the command line, on a small target."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from forwardsr.cli import main
from forwardsr.errors import UserError
from forwardsr.generators import load_target
from forwardsr.learn.minmax import MinmaxConfig
from forwardsr.learning_minmax import learn_theorem
from forwardsr.measure.certificate import match
from forwardsr.model.patch_generator import PatchGenerator
from forwardsr.run import Run

SMALL = ["--patches", "4", "16", "--channels", "8", "--d", "12", "--p", "0.1", "0.12"]


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("target") / "target.safetensors"
    assert main(["plant", *SMALL, "--out", str(path)]) == 0
    return path


@pytest.fixture(scope="module")
def learned(target: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("learned") / "run"
    assert main(["learn", str(target), "--method", "minmax", "--samples", "60000", "--out", str(out)]) == 0
    return out


def test_the_theorem_end_to_end(
    target: Path, learned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("config.json", "log.jsonl", "model.safetensors", "checkpoint.pt", "certificate.json", "report.html"):
        assert (learned / name).is_file(), name
    page = (learned / "report.html").read_text()
    for title in ("Theorem 5.1", "Every lemma, measured", "The learned features", "Algorithm 4, stage by stage"):
        assert title in page
    with Image.open(learned / "samples" / "features1-002.png") as sheet:  # 32 columns of W_1, 16 a row
        shown = np.asarray(sheet)
    feature = load_target(learned / "model.safetensors").W[0][0, :, 0].view(3, 2, 2)
    assert shown.shape == (4, 32, 3)
    assert np.abs(shown[:2, :2] / 127.5 - 1 - (feature / feature.abs().max()).permute(1, 2, 0).numpy()).max() < 0.01
    assert "The log holds no training step" not in page
    capsys.readouterr()
    assert main(["certify", str(learned), "--target", str(target), "--json", "-n", "2000"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    worst = {(row["lemma"], row["level"], row["quantity"]): row["worst"] for row in rows}
    assert worst["B.2", 1, "columns of W"] < 1e-5
    assert worst["B.2", 2, "columns of W"] < 1e-5
    assert worst["D.10", 2, "V, relative"] < 1e-5
    assert worst["C.6", 1, "norms of V_1, relative"] < 0.05

    # Without its target it is indistinguishable from its own law, and distinguishable from another target's.
    assert main(["certify", str(learned), "--json"]) == 0
    capsys.readouterr()
    other = tmp_path / "other.safetensors"
    assert main(["plant", *SMALL, "--seed", "1", "--out", str(other)]) == 0
    assert main(["draw", str(learned), "-n", "3", "--out", str(tmp_path / "s.npz")]) == 0
    with np.load(tmp_path / "s.npz") as arrays:
        assert {key: x.shape for key, x in arrays.items()} == {"x1": (3, 4, 12), "x2": (3, 16, 12)}
    assert main(["draw", str(learned), "-n", "3", "--out", str(tmp_path / "s.png")]) == 0


def test_the_same_command_again_changes_nothing(target: Path, learned: Path) -> None:
    before = (learned / "model.safetensors").read_bytes()
    assert main(["learn", str(target), "--method", "minmax", "--samples", "60000", "--out", str(learned)]) == 0
    assert (learned / "model.safetensors").read_bytes() == before


def test_stopped_between_two_stages_it_goes_on_bit_for_bit(
    target: Path, learned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    original = Run.save_checkpoint
    saves = []

    def save_and_stop(run: Run, state: object) -> None:
        original(run, state)  # type: ignore[arg-type]
        saves.append(1)
        if len(saves) == 2:
            raise KeyboardInterrupt

    command = ["learn", str(target), "--method", "minmax", "--samples", "60000", "--out", str(out)]
    monkeypatch.setattr(Run, "save_checkpoint", save_and_stop)
    assert main(command) == 130
    monkeypatch.undo()
    assert main(command) == 0
    stages = [(line["level"], line["name"]) for line in Run.read(out).lines("stage")]
    assert len(stages) == len(set(stages)) == 4
    ours, theirs = (Run.read(path).load_weights("model.safetensors") for path in (out, learned))
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        assert torch.equal(value, theirs[key]), key


def test_arrays_written_by_numpy_alone_are_learned(
    target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    samples, others = tmp_path / "samples.npz", tmp_path / "others.npz"
    for path, seed in ((samples, "1"), (others, "2")):
        assert main(["draw", str(target), "-n", "30000", "--seed", seed, "--out", str(path)]) == 0
    out = tmp_path / "run"
    original = Run.save_checkpoint

    def save_and_stop(run: Run, state: object) -> None:
        original(run, state)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    monkeypatch.setattr(Run, "save_checkpoint", save_and_stop)
    assert main(["learn", str(samples), "--method", "minmax", "--channels", "7,8", "--out", str(out)]) == 130
    monkeypatch.undo()
    # What the command leaves out is as the run has it.
    assert main(["learn", str(samples), "--method", "minmax", "--out", str(out)]) == 0
    assert PatchGenerator.load(out / "model.safetensors").channels == (7, 8)
    shutil.rmtree(out)
    assert main(["learn", str(samples), "--method", "minmax", "--channels", "8,8", "--out", str(out)]) == 0
    assert main(["certify", str(out), "--target", str(target), "-n", "1000"]) == 0
    # Held against what it was learned from it says so; against other samples of the law the two are not the same.
    assert "of the samples that it was learned from" in (out / "report.html").read_text()
    capsys.readouterr()
    found = []
    for more in ([], ["--source", str(others)]):
        assert main(["certify", str(out), *more, "--json"]) == 0
        found.append(json.loads(capsys.readouterr().out))
    assert [result["held_out"] for result in found] == [False, True]
    for more, says in ((["-n", "10"], "-n 10"), (["--target", str(target), "--source", "x"], "--source")):
        assert main(["certify", str(out), *more]) == 2
        assert says in capsys.readouterr().err


def test_one_neuron_has_no_pairs(tmp_path: Path) -> None:
    target = tmp_path / "target.safetensors"
    assert main(["plant", "--patches", "1", "--channels", "1", "--d", "4", "--out", str(target)]) == 0
    for solver, more in (("efficient", []), ("closed-form", []), ("sgda", ["--sgda.neurons.steps", "20"])):
        out = tmp_path / solver
        command = ["learn", str(target), "--method", "minmax", "--solver", solver, "--out", str(out)]
        assert main([*command, *more, *([] if solver == "sgda" else ["--samples", "20000"])]) == 0
        learned = PatchGenerator.load(out / "model.safetensors")
        assert all(bool(torch.isfinite(x).all()) for x in learned.tensors().values())


def test_a_pair_that_the_data_do_not_determine_is_named(tmp_path: Path) -> None:
    # Channel 0 of patch 0 and channel 0 of patch 1, at a correlation of -0.93; the learner counts channels in its own order.
    target, out = tmp_path / "target.safetensors", tmp_path / "run"
    small = ["--patches", "2", "--channels", "6", "--d", "8", "--p", "0.05", "0.08"]
    assert main(["plant", *small, "--violate", "identifiability", "--amount", "0.93", "--out", str(target)]) == 0
    assert main(["learn", str(target), "--method", "minmax", "--samples", "100000", "--out", str(out)]) == 0
    planted, learned = PatchGenerator.load(target), PatchGenerator.load(out / "model.safetensors")
    first, second = match(learned.W[0].double(), planted.W[0].double())[0][:, 0].tolist()
    notes = [line["message"] for line in Run.read(out).lines("note")]
    named = f"level 1: 100000 samples do not determine the correlation of (0, {first})-(1, {second})"
    assert notes == [named]


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--channels", "13"], "--channels"),
        (["--channels", "8,8,8"], "--channels"),
        (["--channels", "eight"], "--channels eight"),
        (["--samples", "10"], "--samples"),
        (["--solver", "magic"], "--solver"),
        (["--budget", "5m"], "--budget"),
        (["--resolution", "32"], "--resolution"),
        (["--innovation", "0.5"], "--innovation"),
        (["--seed", "18446744073709551616"], "--seed"),
        (["--solver", "sgda", "--sgda.latent", "10"], "--sgda.latent 10"),
        (["--solver", "sgda", "--sgda.output.trace-points", "0"], "trace-points"),
    ],
)
def test_mistakes(target: Path, more: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["learn", str(target), "--method", "minmax", *more, "--out", str(tmp_path / "r")]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert says in said[-1]
    assert said[-1].startswith("forwardsr: ")


def test_sizes_must_be_given_for_arrays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(tmp_path / "a.npz", x1=np.zeros((50, 4, 12), np.float32))
    assert main(["learn", str(tmp_path / "a.npz"), "--method", "minmax", "--out", str(tmp_path / "r")]) == 2
    assert "--channels" in capsys.readouterr().err


def test_a_certificate_needs_a_patch_network(tmp_path: Path) -> None:
    from rich.console import Console

    with pytest.raises(UserError, match="missing"):
        learn_theorem(
            str(tmp_path / "missing"), None, MinmaxConfig(), 0, tmp_path / "r", Console(quiet=True), "forwardsr learn"
        )
