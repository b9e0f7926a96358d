"""The Run: a folder that holds everything about one learning, so that nothing needs the process that made it.

``config.json`` (settings, with a schema version), ``log.jsonl`` (one JSON object a line), ``model.safetensors`` (the last
weights) and ``best.safetensors`` (the best by the run's own distance), ``critic.safetensors``, ``snapshots/`` (the generator
through training), ``checkpoint.pt`` (everything needed to go on bit for bit), ``samples/``, ``figures/``, ``report.html``. Every
file is written under a temporary name, flushed to disk and renamed, so a run killed at any moment still has its last
checkpoint whole. The log is cut back to the checkpoint on resuming.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

import forwardsr
from forwardsr.errors import UserError

SCHEMA = 1
SNAPSHOTS = 24  # kept of a run's generator: at 2.4 MB each (64 px) less than 60 MB


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path``, renamed to it when the block ends well and removed otherwise.

    A full disk or a folder that cannot be written raises :class:`UserError`; what stood at ``path`` is untouched.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except (OSError, RuntimeError) as error:
        # torch.save reports a full disk as a RuntimeError from its zip writer, so ask the disk itself.
        number = error.errno if isinstance(error, OSError) else None
        if number == errno.ENOSPC or (number is None and _disk_is_full(path.parent)):
            raise UserError(
                f"{path}: the disk is full; make room and run the same command again (the last save is kept)"
            ) from None
        if number in (errno.EACCES, errno.EPERM, errno.EROFS, errno.EDQUOT):
            raise UserError(f"{path}: cannot be written ({os.strerror(number)}); choose another --out") from None
        raise
    finally:
        temporary.unlink(missing_ok=True)


def _disk_is_full(folder: Path) -> bool:
    """Whether a further megabyte does not fit. (Asks by writing: quotas and reserved blocks hide from statvfs.)"""
    probe = folder / f".probe.{os.getpid()}"
    try:
        with probe.open("wb") as file:
            file.write(b"\0" * (1 << 20))
            os.fsync(file.fileno())
    except OSError as error:
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    finally:
        with contextlib.suppress(OSError):
            probe.unlink(missing_ok=True)
    return False


class Run:
    """One learning on disk. Make it with :meth:`create` (which also reopens it to go on) or :meth:`read`."""

    def __init__(self, path: Path, config: dict[str, Any]) -> None:
        self.path, self.config = path, config
        self._lock: IO[str] | None = None

    # -- opening --------------------------------------------------------------------------------------------------------

    @classmethod
    def create(cls, path: Path, config: Mapping[str, Any], free: frozenset[str] = frozenset()) -> Run:
        """Make the folder for ``config``, or reopen it where it was made with the same one.

        ``free``: settings that may differ from those it was made with (budgets); the new values are stored. A setting that is
        ``None`` means "as the run has it". Raises :class:`UserError` where another setting differs, the path is no Run or
        cannot be written, or another process is training it.
        """
        made = cls.check(path, config, free)
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--out {path}: cannot make this folder ({error.strerror}); choose another") from None
        kept = {key: made.get(key) if value is None and key not in free else value for key, value in config.items()}
        run = cls(path, {"schema": SCHEMA, "version": forwardsr.__version__, **kept})
        run._take_lock()
        run.write_json("config.json", run.config)
        return run

    @classmethod
    def check(cls, path: Path, config: Mapping[str, Any], free: frozenset[str] = frozenset()) -> dict[str, Any]:
        """Whether :meth:`create` would do, before anything long is begun; returns the settings of the run there, if any.

        Settings that ``config`` leaves out or has as ``None`` are not compared, and none where the run there ended before it had
        begun, refused for its settings. Raises :class:`UserError` as ``create`` does.
        """
        if (path / "config.json").exists():
            if not any((path / name).exists() for name in ("log.jsonl", "checkpoint.pt")):
                return {}
            made = cls.read(path).config
            for key in sorted(config.keys() - free - {"command"}):
                old, new = made.get(key), config[key]
                if new is not None and old != new:
                    flag = "SOURCE" if key == "source" else f"--{key.replace('_', '-')}"
                    raise UserError(f"{flag}: {path} was made with {old}, not {new}; give that, or another --out")
            return made
        if path.is_dir() and any(entry.name != ".lock" for entry in path.iterdir()):
            raise UserError(f"--out {path}: the folder holds other things than a run; choose a new or empty one")
        there = next(p for p in (path, *path.absolute().parents) if p.exists())
        if not there.is_dir() or not os.access(there, os.W_OK):
            raise UserError(f"--out {path}: {there} is no folder that can be written; choose another")
        return {}

    @classmethod
    def read(cls, path: Path) -> Run:
        """Open an existing Run for reading. Raises :class:`UserError` where there is none."""
        file = path / "config.json"
        if not file.is_file():
            raise UserError(
                f"{path}: not a run (it has no config.json); give a folder that `forwardsr learn --out` made"
            )
        try:
            config = json.loads(file.read_text())
            schema = int(config["schema"])
        except (ValueError, KeyError, TypeError):
            raise UserError(
                f"{file}: not a run's configuration; give a folder that `forwardsr learn --out` made"
            ) from None
        if schema > SCHEMA:
            raise UserError(f"{file}: made by a newer forwardsr (schema {schema}, here {SCHEMA}); upgrade forwardsr")
        return cls(path, config)

    def _take_lock(self) -> None:
        try:
            self._lock = (self.path / ".lock").open("w")
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.close()
            raise UserError(
                f"--out {self.path}: another process is training this run; wait for it or stop it"
            ) from None
        except OSError as error:
            raise UserError(f"--out {self.path}: cannot be written ({error.strerror}); choose another") from None

    def close(self) -> None:
        """Let another process train this run."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    # -- the log --------------------------------------------------------------------------------------------------------

    @property
    def log_path(self) -> Path:
        """Where the log is."""
        return self.path / "log.jsonl"

    def log(self, kind: str, **values: Any) -> None:
        """Append one line to the log; ``kind`` tells lines apart (train, distance, switch, alarm, note, end)."""
        try:
            with self.log_path.open("a") as file:
                file.write(json.dumps({"kind": kind, **values}) + "\n")
        except OSError as error:
            raise UserError(
                f"{self.log_path}: cannot be written ({error.strerror}); make room and repeat the command"
            ) from None

    def lines(self, kind: str | None = None) -> list[dict[str, Any]]:
        """The log's lines, all or those of one kind. A last line cut short by a kill is left out."""
        if not self.log_path.exists():
            return []
        found = []
        for line in self.log_path.read_text().splitlines():
            with contextlib.suppress(ValueError):
                found.append(json.loads(line))
        return [line for line in found if isinstance(line, dict) and (kind is None or line.get("kind") == kind)]

    def write_json(self, name: str, value: Mapping[str, Any]) -> None:
        """Write a small result beside the log."""
        with replacing(self.path / name) as temporary:
            temporary.write_text(json.dumps(dict(value), indent=2) + "\n")

    # -- weights and checkpoints ----------------------------------------------------------------------------------------

    def save_weights(self, name: str, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
        """Write ``name`` (such as ``model.safetensors``)."""
        with replacing(self.path / name) as temporary:
            save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, temporary, dict(metadata))

    def load_weights(self, name: str) -> dict[str, Tensor]:
        """Read ``name``. Raises :class:`UserError` where it is missing or damaged."""
        return read_weights(self.path / name)[0]

    # -- snapshots ------------------------------------------------------------------------------------------------------

    def save_snapshot(self, images: int, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
        """Keep the generator as it is after ``images`` images; of more than :data:`SNAPSHOTS` the most crowded are dropped.

        The first, those nearest above the powers of two and the last are always kept. Later ones than ``images`` are dropped:
        a run that goes on from a checkpoint makes them again.
        """
        (self.path / "snapshots").mkdir(exist_ok=True)
        for later, file in self.snapshots():
            if later > images:
                file.unlink()
        self.save_weights(f"snapshots/{images:09d}.safetensors", tensors, metadata)
        kept = self.snapshots()
        for images in set(thinned([images for images, _ in kept], SNAPSHOTS)) ^ {images for images, _ in kept}:
            (self.path / f"snapshots/{images:09d}.safetensors").unlink()

    def snapshots(self) -> list[tuple[int, Path]]:
        """``(images seen, file)`` in order; the first, at 0, is the initialisation. Empty where none were kept."""
        files = (self.path / "snapshots").glob("*.safetensors")
        return sorted((int(file.stem), file) for file in files if file.stem.isdigit())

    def save_checkpoint(self, state: Mapping[str, Any]) -> None:
        """Write ``checkpoint.pt``; the place in the log goes with it."""
        offset = self.log_path.stat().st_size if self.log_path.exists() else 0
        with replacing(self.path / "checkpoint.pt") as temporary:
            torch.save({**state, "log_offset": offset}, temporary)

    def load_state(self) -> dict[str, Any] | None:
        """Read ``checkpoint.pt`` and change nothing; ``None`` where there is none yet."""
        file = self.path / "checkpoint.pt"
        if not file.exists():
            return None
        try:
            state: dict[str, Any] = torch.load(file, weights_only=True, map_location="cpu")
            state["log_offset"] = int(state["log_offset"])
        except Exception as error:  # a damaged zip or pickle raises any of a dozen types
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(f"{file}: damaged ({reason}); delete it to start this run again") from None
        return state

    def load_checkpoint(self) -> dict[str, Any] | None:
        """Read ``checkpoint.pt`` to go on from it: the log is cut back to it. ``None`` where there is none yet."""
        state = self.load_state()
        offset = 0 if state is None else state.pop("log_offset")
        if self.log_path.exists() and self.log_path.stat().st_size > offset:
            os.truncate(self.log_path, offset)
        return state


def thinned(counts: Sequence[int], most: int) -> list[int]:
    """At most ``most`` of ascending ``counts``, where they can be spared: not 0, the first at or above each power of two, nor
    the last. The one with the nearest neighbours goes first, so what is left is spread evenly.
    """
    kept = list(counts)
    while len(kept) > most:
        spare = [i for i in range(1, len(kept) - 1) if kept[i].bit_length() == kept[i - 1].bit_length()]
        if not spare:
            break
        del kept[min(spare, key=lambda i: kept[i + 1] - kept[i - 1])]
    return kept


def read_weights(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of a ``.safetensors`` file. Raises :class:`UserError` where it is missing or damaged."""
    try:
        with safe_open(file, "pt") as opened:
            metadata: dict[str, str] = opened.metadata() or {}
        return load_file(file), metadata
    except FileNotFoundError:
        raise UserError(f"{file}: no weights yet; let `forwardsr learn` run longer") from None
    except Exception as error:  # safetensors has an exception type of its own for every kind of damage
        raise UserError(f"{file}: cannot be read ({error}); train the run again") from None


class Pace:
    """A moment that comes back every ``seconds`` of wall time."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.seconds, self.clock = seconds, clock
        self.last = clock()

    def due(self) -> bool:
        """True once every ``seconds``."""
        if self.clock() - self.last < self.seconds:
            return False
        self.last = self.clock()
        return True
