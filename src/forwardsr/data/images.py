"""Image folders and zips as a source: decoded once into a cache, then read by index from a memory map."""

from __future__ import annotations

import hashlib
import json
import os
import threading
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from torch import Tensor

from forwardsr.data import cache as store
from forwardsr.data.decode import BadImage, Fit, decode, in_parallel
from forwardsr.data.pyramid import Pyramid, pool
from forwardsr.errors import UserError

SUFFIXES = frozenset(
    ".avif .bmp .gif .jfif .jp2 .jpe .jpeg .jpg .pgm .png .ppm .tga .tif .tiff .webp".split()  # noqa: SIM905
)
# Pictures by name that Pillow cannot read: worth a word, where other files (lists, captions) are passed over in silence.
FOREIGN = frozenset(".arw .cr2 .cr3 .dng .heic .heif .nef .orf .psd .rw2 .svg".split())  # noqa: SIM905
FEW = 2000
# Part of every key: raise it when decoding changes, so that no cache of an earlier version is read.
_VERSION = 1


class ImageSource:
    """Images as pyramids in image form, float32 in [-1, 1]; a :class:`forwardsr.data.source.FiniteSource`.

    ``images``: uint8 ``(n, c, h, h)``, usually memory-mapped; ``sides``: of every level, coarse first, the last one h.
    ``notes``: lines a user should see once.
    """

    def __init__(self, name: str, images: NDArray[np.uint8], sides: Sequence[int], notes: Sequence[str] = ()) -> None:
        self.name, self.images, self.sides, self.notes = name, images, tuple(sides), list(notes)
        self.shapes: tuple[tuple[int, ...], ...] = tuple((images.shape[1], s, s) for s in self.sides)
        if len(images) < FEW:
            self.notes.append(
                f"{name}: only {len(images):,} images. Below {FEW:,} expect less varied samples, and of the adversarial methods "
                "a generator that repeats or memorises them; what helps: flips, a lower resolution, more pictures"
            )

    def __len__(self) -> int:
        return len(self.images)

    def take(self, index: Int64[Tensor, " n"], levels: int | None = None) -> Pyramid:
        """The images at ``index``; levels below the finest are averages of its pixels, taken in float."""
        # asarray: indexing a memmap keeps it a memmap, which costs more than the copy itself for small batches.
        pixels = torch.from_numpy(np.asarray(self.images)[index.numpy()])
        finest = pixels.to(torch.float32).div_(127.5).sub_(1)
        if levels is None or levels >= len(self.sides):
            return pool(finest, self.sides)
        return pool(finest, [*self.sides[:levels], self.sides[-1]])[:levels]

    def draw(self, n: int, generator: torch.Generator, levels: int | None = None) -> Pyramid:
        """``n`` images, with replacement."""
        return self.take(torch.randint(len(self), (n,), generator=generator), levels)


def _wanted(name: str, foreign: Counter[str]) -> bool:
    path = PurePosixPath(name)
    if any(part.startswith(".") or part == "__MACOSX" for part in path.parts):
        return False
    suffix = path.suffix.lower()
    if suffix in FOREIGN:
        foreign[suffix] += 1
    return suffix in SUFFIXES


class _Folder:
    """``members``: name, size and modification time of every image below a folder; ``foreign``: suffixes left out, counted."""

    def __init__(self, path: Path) -> None:
        self.path, self.members, self.foreign = path, list[tuple[str, int, int]](), Counter[str]()
        seen = set[tuple[int, int]]()
        stack = [""]
        while stack:
            below = stack.pop()
            here = path / below
            status = here.stat()
            if (status.st_dev, status.st_ino) in seen:  # a link back to a folder above would never end
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(here) as entries:
                for entry in entries:
                    name = f"{below}/{entry.name}" if below else entry.name
                    if entry.name.startswith(".") or entry.name == "__MACOSX":
                        continue
                    if entry.is_dir():
                        stack.append(name)
                    elif _wanted(entry.name, self.foreign) and entry.is_file():
                        status = entry.stat()
                        self.members.append((name, status.st_size, status.st_mtime_ns))
        self.members.sort()

    def read(self, name: str) -> bytes:
        return (self.path / name).read_bytes()


class _Zip:
    """``members``: name, size and checksum of every image in an archive; ``foreign``: suffixes left out, counted."""

    def __init__(self, path: Path) -> None:
        self.path, self.foreign = path, Counter[str]()
        try:
            self.file = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, NotImplementedError) as error:
            raise UserError(f"{path}: not a readable zip archive ({error}): make or download it again") from error
        wanted = [i for i in self.file.infolist() if not i.is_dir() and _wanted(i.filename, self.foreign)]
        self.infos = {i.filename: i for i in wanted}
        self.members = sorted((i.filename, i.file_size, i.CRC) for i in self.infos.values())
        self.lock = threading.Lock()

    def read(self, name: str) -> bytes:
        with self.lock:  # a ZipFile counts its open members without one
            return self.file.read(self.infos[name])


def open_images(
    path: Path,
    sides: Sequence[int],
    channels: int = 3,
    fit: Fit = "crop",
    skip_bad: bool = False,
    cache: Path | None = None,
    console: Console | None = None,
) -> ImageSource:
    """All images of a folder (recursive) or a zip, in the order of their names.

    Decoded in parallel, with a progress bar on ``console``, on the first call; later calls find them in ``cache`` (default
    :func:`forwardsr.data.cache.cache_dir`) by the files' names, sizes and modification times (in a zip: checksums). Raises
    ``UserError`` where there are none, or one cannot be read and ``skip_bad`` is false, or the cache cannot be written.
    """
    try:
        files = _Folder(path) if path.is_dir() else _Zip(path)
    except OSError as error:
        raise UserError(
            f"{error.filename or path}: cannot be read ({error.strerror or error}): check its permissions"
        ) from error
    if not files.members:
        left = ", ".join(f"{n:,} {suffix}" for suffix, n in sorted(files.foreign.items()))
        raise UserError(
            f"{path}: no images in it" + (f" but {left}" if left else "") + ": give a folder or zip that holds "
            "some (png, jpg, webp, tif, bmp, gif, …)"
        )
    cache = store.cache_dir() if cache is None else cache
    key = _key(path.stem, files.members, (sides[-1], channels, fit))
    entry = store.lookup(cache, key)
    if entry is None:
        facts: dict[str, Any] = {"skipped": {}, "enlarged": 0}
        rows = _rows(files, sides[-1], channels, fit, skip_bad, facts, console)
        entry = store.build(cache, key, len(files.members), (channels, sides[-1], sides[-1]), rows, facts)
    skipped: dict[str, str] = entry.facts["skipped"]
    if skipped and not skip_bad:
        raise _bad(path, *next(iter(skipped.items())))
    return ImageSource(path.name, entry.images, sides, _notes(path, entry, files.foreign, sides[-1]))


def _key(stem: str, members: list[tuple[str, int, int]], settings: tuple[object, ...]) -> str:
    digest = hashlib.blake2b(json.dumps([_VERSION, settings, members]).encode("utf-8", "surrogatepass"), digest_size=12)
    # The name is for whoever looks into the cache; only the digest tells entries apart.
    readable = "".join(c if c.isascii() and c.isalnum() else "-" for c in stem)[:40]
    return f"{readable}-{settings[0]}px-{digest.hexdigest()}"


def _rows(
    files: _Folder | _Zip,
    side: int,
    channels: int,
    fit: Fit,
    skip_bad: bool,
    facts: dict[str, Any],
    console: Console | None,
) -> Iterator[NDArray[np.uint8]]:
    def attempt(name: str) -> tuple[NDArray[np.uint8], bool] | BadImage:
        try:
            data = files.read(name)
        # A damaged or encrypted member of a zip raises BadZipFile, RuntimeError, NotImplementedError or zlib.error.
        except Exception as error:
            return BadImage(getattr(error, "strerror", None) or str(error))
        try:
            return decode(data, side, channels, fit) if data else BadImage("the file is empty")
        except BadImage as bad:
            return bad

    names = [name for name, _, _ in files.members]
    results = track(
        zip(names, in_parallel(attempt, names), strict=True),
        f"decoding {files.path.name}",
        total=len(names),
        console=console,
        transient=True,
        disable=console is None,
    )
    for name, result in results:
        if isinstance(result, BadImage):
            if not skip_bad:
                raise _bad(files.path, name, str(result))
            facts["skipped"][name] = str(result)
        else:
            facts["enlarged"] += result[1]
            yield result[0]
    if len(facts["skipped"]) == len(names):
        raise UserError(
            f"{files.path}: none of its {len(names):,} images can be read, the first because of: "
            f"{facts['skipped'][names[0]]}"
        )


def _bad(path: Path, name: str, reason: str) -> UserError:
    return UserError(
        f"{path / name}: cannot be read as an image ({reason}): replace it, or pass --skip-bad to leave such files out"
    )


def _notes(path: Path, entry: store.Entry, foreign: Counter[str], side: int) -> list[str]:
    notes, skipped, enlarged = [], entry.facts["skipped"], entry.facts["enlarged"]
    if skipped:
        first = next(iter(skipped))
        notes.append(f"{path}: {len(skipped):,} unreadable file(s) left out, the first {first} ({skipped[first]})")
    if enlarged:
        notes.append(
            f"{path}: {enlarged:,} of {len(entry.images):,} images are smaller than {side} pixels and were enlarged; "
            "a lower resolution avoids that"
        )
    if foreign:
        left = ", ".join(f"{n:,} {suffix}" for suffix, n in sorted(foreign.items()))
        notes.append(f"{path}: {left} file(s) left out: save them as png or jpg to use them")
    return notes
