"""The Run folder: whole or not at all, refused where it is another's."""

import errno
import json
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from forwardsr import run as run_module
from forwardsr.errors import UserError
from forwardsr.run import Run, replacing


def test_a_run_is_reopened_with_the_same_settings_and_refused_with_others(tmp_path: Path) -> None:
    Run.create(tmp_path / "r", {"width": 8, "budget": "1m"}, frozenset({"budget"})).close()
    again = Run.create(tmp_path / "r", {"width": 8, "budget": "2m"}, frozenset({"budget"}))
    assert json.loads((tmp_path / "r" / "config.json").read_text())["budget"] == "2m"
    again.log("train", step=1)
    again.close()
    with pytest.raises(UserError, match=r"--width: .* was made with 8, not 16"):
        Run.create(tmp_path / "r", {"width": 16, "budget": "2m"}, frozenset({"budget"}))


def test_a_run_that_never_began_may_be_made_with_other_settings(tmp_path: Path) -> None:
    Run.create(tmp_path / "r", {"channels": "24,500"}).close()
    again = Run.create(tmp_path / "r", {"channels": "24,24"})
    again.close()
    assert Run.read(tmp_path / "r").config["channels"] == "24,24"


def test_two_processes_do_not_train_one_run(tmp_path: Path) -> None:
    first = Run.create(tmp_path / "r", {}, frozenset())
    with pytest.raises(UserError, match="another process"):
        Run.create(tmp_path / "r", {}, frozenset())
    first.close()
    Run.create(tmp_path / "r", {}, frozenset()).close()


def test_a_folder_with_other_things_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="other things"):
        Run.create(tmp_path, {}, frozenset())
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_no_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a run"):
        Run.read(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="not a run"):
        Run.read(tmp_path)
    (tmp_path / "config.json").write_text('{"schema": 99}')
    with pytest.raises(UserError, match="newer"):
        Run.read(tmp_path)


def test_a_full_disk_is_said_and_the_old_checkpoint_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run.create(tmp_path / "r", {}, frozenset())
    run.save_checkpoint({"step": 1})

    def full(state: object, path: Path) -> None:
        Path(path).write_bytes(b"half of it")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(run_module.torch, "save", full)
    with pytest.raises(UserError, match="disk is full"):
        run.save_checkpoint({"step": 2})
    monkeypatch.undo()
    loaded = run.load_checkpoint()
    assert loaded == {"step": 1}
    assert not list(run.path.glob(".*.tmp"))
    run.close()


def test_what_is_half_written_never_shows(tmp_path: Path) -> None:
    target = tmp_path / "x"
    target.write_text("old")

    def interrupted() -> None:
        with replacing(target) as temporary:
            temporary.write_text("new")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        interrupted()
    assert target.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_the_log_is_cut_back_to_the_checkpoint(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "r", {}, frozenset())
    run.log("train", step=1)
    run.save_checkpoint({"step": 1})
    run.log("train", step=2)
    with run.log_path.open("a") as file:
        file.write('{"kind": "tra')  # killed while writing
    assert [line["step"] for line in run.lines("train")] == [1, 2]
    run.load_checkpoint()
    assert [line["step"] for line in run.lines()] == [1]
    run.close()


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "r", {}, frozenset())
    (run.path / "checkpoint.pt").write_bytes(b"no checkpoint")
    with pytest.raises(UserError, match=r"checkpoint\.pt: damaged"):
        run.load_checkpoint()
    run.close()


def test_weights_go_and_come(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "r", {}, frozenset())
    with pytest.raises(UserError, match="no weights yet"):
        run.load_weights("model.safetensors")
    run.save_weights("model.safetensors", {"a": torch.arange(3.0)}, {"format": "forwardsr/1"})
    torch.testing.assert_close(run.load_weights("model.safetensors")["a"], torch.arange(3.0))
    (run.path / "model.safetensors").write_bytes(b"junk")
    with pytest.raises(UserError, match="cannot be read"):
        run.load_weights("model.safetensors")
    run.close()


def test_snapshots_are_kept_in_order_and_later_ones_are_made_again(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "r", {}, frozenset())
    assert run.snapshots() == []
    for images in (0, 1000, 20_000, 3000):  # the last: going on from a checkpoint before 20,000
        run.save_snapshot(images, {"a": torch.tensor([float(images)])}, {})
    assert [images for images, _ in run.snapshots()] == [0, 1000, 3000]
    tensors, _ = run_module.read_weights(run.snapshots()[1][1])
    assert float(tensors["a"]) == 1000
    for images in range(4000, 80_000, 1000):
        run.save_snapshot(images, {"a": torch.zeros(1)}, {})
    kept = [images for images, _ in run.snapshots()]
    assert len(kept) == run_module.SNAPSHOTS
    assert {0, 1000, 79_000} <= set(kept)
    run.close()


def test_thinning_keeps_the_ends_and_the_powers_of_two_and_spreads_the_rest() -> None:
    assert run_module.thinned([0, 1, 2, 3], 4) == [0, 1, 2, 3]
    # 1030 is the first above 1024, and 2048 a power itself; of 1100, 1500, 2000 the most crowded goes.
    assert run_module.thinned([0, 1030, 1100, 1500, 2000, 2048, 3000], 6) == [0, 1030, 1500, 2000, 2048, 3000]
    # Nothing can be spared: more are kept than asked for.
    assert run_module.thinned([0, 1, 2, 4, 8, 9], 2) == [0, 1, 2, 4, 8, 9]
    kept: list[int] = []
    for images in range(0, 200):
        kept = run_module.thinned([*kept, images], 24)
    assert len(kept) == 24
    assert {0, 1, 2, 4, 8, 16, 32, 64, 128, 199} <= set(kept)
    late = [b - a for a, b in pairwise(kept) if a >= 32]
    assert max(late) <= 4 * 199 / 24
