"""The cache of decoded images: whole entries or none, whatever happens while one is written."""

import errno
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from forwardsr.data import cache as store
from forwardsr.errors import UserError

SHAPE = (2, 3, 3)


def _rows(n):
    return (np.full(SHAPE, i, np.uint8) for i in range(n))


def test_an_entry_reads_back_and_may_have_fewer_rows_than_announced(tmp_path):
    facts = {"left": 0}

    def rows():
        yield from _rows(99)
        facts["left"] = 1

    built = store.build(tmp_path / "new" / "folder", "key", 1000, SHAPE, rows(), facts)
    found = store.lookup(tmp_path / "new" / "folder", "key")
    assert found.images.shape == (99, *SHAPE)
    assert found.images.dtype == np.uint8
    assert found.facts == {"left": 1}
    assert isinstance(found.images, np.memmap)
    assert not found.images.flags.writeable
    assert np.array_equal(found.images, np.stack(list(_rows(99))))
    assert np.array_equal(found.images, built.images)
    assert [p.name for p in (tmp_path / "new" / "folder").iterdir()] == ["key"]


def test_an_error_or_interrupt_leaves_nothing(tmp_path):
    for error in (UserError("bad"), KeyboardInterrupt()):

        def rows(error=error):
            yield from _rows(3)
            raise error

        with pytest.raises(type(error)):
            store.build(tmp_path, "key", 5, SHAPE, rows(), {})
        assert list(tmp_path.iterdir()) == []


def test_a_kill_leaves_nothing_that_is_taken_for_an_entry(tmp_path):
    script = """
import os, signal, sys, numpy as np
from pathlib import Path
from forwardsr.data import cache as store
def rows():
    for i in range(100_000):
        yield np.zeros((2, 3, 3), np.uint8)
    os.kill(os.getpid(), signal.SIGKILL)
store.build(Path(sys.argv[1]), "key", 100_000, (2, 3, 3), rows(), {})
"""
    assert subprocess.run([sys.executable, "-c", script, str(tmp_path)]).returncode == -signal.SIGKILL
    (draft,) = tmp_path.iterdir()
    assert store.lookup(tmp_path, "key") is None
    assert len(store.build(tmp_path, "key", 4, SHAPE, _rows(4), {}).images) == 4
    assert draft.exists(), "a young one may belong to a running process"
    for path in (draft, *draft.iterdir()):
        os.utime(path, (time.time() - 10_000,) * 2)
    store.build(tmp_path, "other", 4, SHAPE, _rows(4), {})
    assert not draft.exists()


def test_two_builders_of_one_entry_do_not_disturb_each_other(tmp_path):
    def rows():
        yield from _rows(2)
        store.build(tmp_path, "key", 3, SHAPE, _rows(3), {"by": "the faster"})

    assert store.build(tmp_path, "key", 2, SHAPE, rows(), {"by": "the slower"}).facts == {"by": "the faster"}
    assert [p.name for p in tmp_path.iterdir()] == ["key"]


def test_a_builder_that_is_overtaken_at_the_last_moment_takes_what_is_there(tmp_path, monkeypatch):
    rename = store.Path.rename

    def overtaken(self, target):
        monkeypatch.undo()
        store.build(tmp_path, "key", 3, SHAPE, _rows(3), {"by": "the faster"})
        return rename(self, target)

    monkeypatch.setattr(store.Path, "rename", overtaken)
    assert store.build(tmp_path, "key", 2, SHAPE, _rows(2), {"by": "the slower"}).facts == {"by": "the faster"}
    assert [p.name for p in tmp_path.iterdir()] == ["key"]


def test_a_damaged_entry_is_made_again(tmp_path):
    file = tmp_path / "key" / "images.npy"
    for size in (0, 50, 130):
        store.build(tmp_path, "key", 5, SHAPE, _rows(5), {})
        os.truncate(file, size)
        assert store.lookup(tmp_path, "key") is None
    assert len(store.build(tmp_path, "key", 5, SHAPE, _rows(5), {}).images) == 5


def _refused(tmp_path, match):
    with pytest.raises(UserError, match=match) as caught:
        store.build(tmp_path, "key", 5, SHAPE, _rows(5), {})
    message = str(caught.value)
    assert "\n" not in message
    assert str(tmp_path) in message
    assert "FORWARDSR_CACHE" in message


def test_a_full_disk_and_an_unwritable_folder_are_one_line(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    file = tmp_path / "file"
    file.touch()
    _refused(file, "cannot be written")
    _refused(file / "below", "cannot be written")
    with monkeypatch.context() as patch:
        patch.setattr(store.os, "fsync", full)
        _refused(tmp_path, "No space left")
    with monkeypatch.context() as patch:
        patch.setattr(store.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 10}))
        _refused(tmp_path, "need 0 MB and the disk has 0 MB left")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_the_environment_chooses_the_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("FORWARDSR_CACHE", str(tmp_path))
    assert store.cache_dir() == tmp_path
    monkeypatch.delenv("FORWARDSR_CACHE")
    monkeypatch.setattr(store.sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert store.cache_dir().as_posix() == "/somewhere/forwardsr"
