"""Pyramid arrays on disk as a source, in patch form.

The format: an ``.npz`` (read into memory), or a folder (memory-mapped, so it may be larger than memory), with ``x1 … xL``,
each float32 or float64 ``(n, d_l, d)``, and optional ``parents2 … parentsL``, integers ``(d_l, |P|)``: the patches of level
l-1 that each patch of level l is wired to. Without them level l is wired as a quad-tree, where it has four times as many
patches, in a square.
"""

from __future__ import annotations

import pickle
import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int64
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from forwardsr.data.pyramid import Pyramid
from forwardsr.errors import UserError
from forwardsr.model.patch_generator import quad_tree

_CHUNK_BYTES = 1 << 26
_UNREADABLE = (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error, pickle.UnpicklingError)


class ArraySource:
    """Arrays as pyramids in patch form; a :class:`forwardsr.data.source.FiniteSource`.

    ``arrays``: of every level ``(n, d_l, d)``; ``parents``: ``None``, then int64 ``(d_l, |P|)``. Samples come in the arrays'
    own precision (the higher one where they differ).
    """

    def __init__(self, name: str, arrays: list[NDArray[np.floating]], parents: list[Tensor | None]) -> None:
        self.name, self.arrays, self.parents = name, arrays, parents
        self.notes: list[str] = []
        self.shapes: tuple[tuple[int, ...], ...] = tuple(tuple(x.shape[1:]) for x in arrays)
        self._dtype = np.result_type(*arrays)

    def __len__(self) -> int:
        return len(self.arrays[0])

    def take(self, index: Int64[Tensor, " n"], levels: int | None = None) -> Pyramid:
        """The samples at ``index``, ``(n, d_l, d)`` a level."""
        rows = index.numpy()
        return Pyramid(
            [torch.from_numpy(np.asarray(x)[rows].astype(self._dtype, copy=False)) for x in self.arrays[:levels]]
        )

    def draw(self, n: int, generator: torch.Generator, levels: int | None = None) -> Pyramid:
        """``n`` samples, with replacement."""
        return self.take(torch.randint(len(self), (n,), generator=generator), levels)


def is_array_folder(path: Path) -> bool:
    """Whether a folder holds pyramid arrays rather than images."""
    return (path / "x1.npy").is_file()


def open_arrays(path: Path, console: Console | None = None) -> ArraySource:
    """Open an ``.npz`` or a folder of ``.npy`` and check it all, every number included (a progress bar where it is large).

    Raises ``UserError`` where a file is damaged, a level is missing, has the wrong rank or type, other samples or patches of
    another length than level 1, holds NaN or infinity; or where the parents are missing, misshapen or out of range.
    """
    arrays = _folder(path) if path.is_dir() else _npz(path)
    last = max((int(key[1:]) for key in arrays if key[0] == "x"), default=0)
    levels: list[NDArray[np.floating]] = []
    for l in range(1, last + 1):
        if f"x{l}" not in arrays:
            raise UserError(
                f"{path}: x{l} is missing though there is x{last}: number the levels x1 (coarsest) to x{last}"
            )
        levels.append(_checked(path, l, arrays[f"x{l}"], levels[0] if levels else None))
    if not levels:
        raise UserError(f"{path}: no x1 in it: name the levels x1 (coarsest), x2, …, each of shape (n, d_l, d)")
    parents: list[Tensor | None] = [None]
    parents += [
        _parents(path, l, levels[l - 2].shape[1], levels[l - 1].shape[1], arrays.get(f"parents{l}"))
        for l in range(2, last + 1)
    ]
    _finite(path, levels, console)
    return ArraySource(path.name, levels, parents)


def _is_level(name: str) -> bool:
    return any(name.startswith(stem) and name[len(stem) :].isdecimal() for stem in ("x", "parents"))


def _folder(path: Path) -> dict[str, NDArray[np.generic]]:
    arrays = {}
    for file in sorted(path.glob("*.npy")):
        if _is_level(file.stem):
            try:
                arrays[file.stem] = np.load(file, mmap_mode="r")
            except _UNREADABLE as error:
                raise UserError(
                    f"{file}: not a readable .npy file ({error}): write it again with numpy.save"
                ) from error
    return arrays


def _npz(path: Path) -> dict[str, NDArray[np.generic]]:
    try:
        with path.open("rb") as stream, np.load(stream) as file:
            return {name: file[name] for name in file.files if _is_level(name)}
    except (*_UNREADABLE, AttributeError, TypeError) as error:  # the last two: a lone .npy or a pickle under this name
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: not a readable .npz file ({reason}): write it again with numpy.savez") from error


def _checked(path: Path, l: int, x: NDArray[np.generic], first: NDArray[np.floating] | None) -> NDArray[np.floating]:
    if x.ndim != 3:
        raise UserError(f"{path}: x{l} has shape {x.shape}, not (n, d_l, d): samples, patches, numbers in a patch")
    if x.dtype not in (np.float32, np.float64):
        raise UserError(f"{path}: x{l} is {x.dtype}: save it as float32 or float64")
    if 0 in x.shape:
        raise UserError(f"{path}: x{l} has shape {x.shape}, so it is empty: write some samples")
    if first is not None and len(x) != len(first):
        raise UserError(f"{path}: x{l} has {len(x):,} samples and x1 {len(first):,}: all levels need the same ones")
    if first is not None and x.shape[2] != first.shape[2]:
        raise UserError(
            f"{path}: patches of x{l} hold {x.shape[2]} numbers and those of x1 {first.shape[2]}: "
            "all levels need the same d"
        )
    return x  # type: ignore[return-value]


def _parents(path: Path, l: int, above: int, here: int, given: NDArray[np.generic] | None) -> Tensor:
    if given is None:
        try:
            return quad_tree(above, here)
        except ValueError:
            raise UserError(
                f"{path}: levels {l - 1} and {l} have {above} and {here} patches, which is no quad-tree: add parents{l} of "
                f"shape ({here}, |P|)"
            ) from None
    if given.ndim != 2 or len(given) != here or not given.size or not np.issubdtype(given.dtype, np.integer):
        raise UserError(
            f"{path}: parents{l} is {given.dtype} of shape {given.shape}, not integers of shape ({here}, |P|)"
        )
    graph = given.astype(np.int64)
    if graph.min() < 0 or graph.max() >= above:
        wrong = graph[(graph < 0) | (graph >= above)][0]
        raise UserError(f"{path}: parents{l} names patch {wrong} of level {l - 1}, which has patches 0 to {above - 1}")
    return torch.from_numpy(graph)


def _finite(path: Path, levels: list[NDArray[np.floating]], console: Console | None) -> None:
    with Progress(console=console, transient=True, disable=console is None) as progress:
        task = progress.add_task(f"checking {path.name}", total=sum(x.nbytes for x in levels))
        for l, x in enumerate(levels, start=1):
            rows = max(1, _CHUNK_BYTES // x[0].nbytes)
            for start in range(0, len(x), rows):
                chunk = x[start : start + rows]
                if not (fine := np.isfinite(chunk)).all():
                    where = start + int(np.argmin(fine.all(axis=(1, 2))))
                    raise UserError(f"{path}: x{l} holds NaN or infinity, first in sample {where}: remove such samples")
                progress.advance(task, chunk.nbytes)
