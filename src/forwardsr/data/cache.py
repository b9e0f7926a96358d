"""A store of decoded images: a folder per data set and settings, holding one uint8 ``.npy`` that later starts memory-map.

An entry is written beside its final name and renamed when complete, so a process killed at any moment leaves nothing that a
later one would take for an entry. What it does leave (``*.tmp``) is swept away by a later build. Entries are never evicted: the
folder may be deleted at any time.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forwardsr.errors import UserError

# A build in progress writes all the time, so a temporary folder this old (in seconds) belongs to a dead process.
_STALE = 3600.0


@dataclass(frozen=True)
class Entry:
    """``images``: uint8 ``(n, c, h, w)``, memory-mapped; ``facts``: what was noted while they were decoded."""

    images: NDArray[np.uint8]
    facts: dict[str, Any]


def cache_dir() -> Path:
    """``$FORWARDSR_CACHE``, else ``forwardsr`` in the platform's folder for a user's caches."""
    if given := os.environ.get("FORWARDSR_CACHE"):
        return Path(given).expanduser()
    if sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    elif sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "forwardsr"


def lookup(cache: Path, key: str) -> Entry | None:
    """The entry, or ``None`` where there is none (or somebody damaged it)."""
    try:
        images = np.load(cache / key / "images.npy", mmap_mode="r")
        facts = json.loads((cache / key / "facts.json").read_text())
    except (OSError, ValueError, EOFError):
        return None
    return Entry(images, facts)


def build(
    cache: Path,
    key: str,
    n: int,
    shape: tuple[int, int, int],
    rows: Iterator[NDArray[np.uint8]],
    facts: Mapping[str, Any],
) -> Entry:
    """Write an entry of at most ``n`` images of ``shape`` (c, h, w), in the order of ``rows``, and open it.

    ``facts`` is read after the last row, so whatever makes the rows may still add to it. Raises ``UserError`` where the disk is
    full or the folder cannot be written; whatever ``rows`` raises passes through. Neither leaves anything behind.
    """
    final, draft = cache / key, cache / f"{key}.{uuid.uuid4().hex[:8]}.tmp"
    with _writing(cache):
        cache.mkdir(parents=True, exist_ok=True)
        _sweep(cache)
        need, free = n * math.prod(shape), shutil.disk_usage(cache).free
        if need > free:
            raise UserError(
                f"{cache}: the decoded images need {need / 1e6:,.0f} MB and the disk has {free / 1e6:,.0f} MB left: "
                "free some, or set FORWARDSR_CACHE to a folder on another disk"
            )
        draft.mkdir()
    try:
        _write(cache, draft, n, shape, rows, facts)
        with _writing(cache):
            try:
                draft.rename(final)
            except OSError:
                if (entry := lookup(cache, key)) is not None:  # another process was faster
                    return entry
                shutil.rmtree(final, ignore_errors=True)
                draft.rename(final)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    entry = lookup(cache, key)
    assert entry is not None
    return entry


def _write(
    cache: Path,
    draft: Path,
    n: int,
    shape: tuple[int, int, int],
    rows: Iterator[NDArray[np.uint8]],
    facts: Mapping[str, Any],
) -> None:
    written = 0
    # Plain writes, not a writable memory map: on a full disk a map ends the process with SIGBUS, a write raises.
    with _writing(cache):
        file = (draft / "images.npy").open("wb")
    with file:
        file.write(_header(n, shape))
        for row in rows:
            with _writing(cache):
                file.write(row.tobytes())
            written += 1
        with _writing(cache):
            file.seek(0)
            file.write(_header(written, shape))
            file.flush()
            os.fsync(file.fileno())
    with _writing(cache):
        (draft / "facts.json").write_text(json.dumps(dict(facts)))


def _header(n: int, shape: tuple[int, int, int]) -> bytes:
    buffer = BytesIO()
    # The .npy format pads its header for a growing first axis, so that its length does not depend on n.
    np.lib.format.write_array_header_1_0(buffer, {"descr": "|u1", "fortran_order": False, "shape": (n, *shape)})
    return buffer.getvalue()


def _sweep(cache: Path) -> None:
    for draft in cache.glob("*.tmp"):
        try:
            touched = max(path.stat().st_mtime for path in (draft, *draft.iterdir()))
        except OSError:  # its owner finished meanwhile
            continue
        if time.time() - touched > _STALE:
            shutil.rmtree(draft, ignore_errors=True)


@contextmanager
def _writing(cache: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{cache}: the cache of decoded images cannot be written ({error.strerror or error}): "
            "free some space there, or set FORWARDSR_CACHE to a folder you can write"
        ) from error
