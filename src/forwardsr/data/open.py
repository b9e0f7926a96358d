"""From what the user typed to a source."""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from rich.console import Console

from forwardsr.data.arrays import is_array_folder, open_arrays
from forwardsr.data.decode import Fit
from forwardsr.data.images import SUFFIXES, open_images
from forwardsr.data.named import open_digits, open_photos
from forwardsr.data.source import Source
from forwardsr.errors import UserError

# The named sources, with the resolution each has where none is asked for.
NAMES = {"photos": 64, "digits": 32}
DEFAULT_RESOLUTION = 64
COARSEST = 8


def resolve_sides(resolution: int, sides: Sequence[int] | None = None) -> tuple[int, ...]:
    """The sides of all levels in pixels, coarse first: ``sides`` where given, else ``resolution`` halved down to 8.

    Raises ``UserError`` where ``resolution`` is not 8 times a power of two, or ``sides`` do not divide the last one.
    """
    if sides is not None:
        given = tuple(sides)
        if not given or given[0] < 1 or any(a >= b or given[-1] % a for a, b in pairwise(given)):
            raise UserError(f"sides {list(given)}: must grow, and each must divide the last, as in 12, 24, 48")
        return given
    if resolution < COARSEST or resolution % COARSEST or (resolution // COARSEST).bit_count() != 1:
        raise UserError(f"--resolution {resolution}: must be 8 times a power of two (16, 32, 64, 128, 256)")
    return tuple(COARSEST << k for k in range((resolution // COARSEST).bit_length()))


def open_source(
    spec: str,
    *,
    resolution: int | None = None,
    sides: Sequence[int] | None = None,
    channels: int = 3,
    fit: Fit = "crop",
    skip_bad: bool = False,
    seed: int = 0,
    cache: Path | None = None,
    console: Console | None = None,
) -> Source:
    """The source that ``spec`` names: one of :data:`NAMES`, or a path.

    A path is an image folder or ``.zip``, pyramid arrays (``.npz`` or a folder with ``x1.npy``), or a planted target
    (``.safetensors``). ``resolution`` or ``sides``, ``channels`` (1 or 3), ``fit``, ``skip_bad`` concern images alone; ``seed``
    concerns ``photos`` and planted targets. Every source has ``notes``, lines to show to the user. All but planted ones are
    :class:`forwardsr.data.source.FiniteSource`. Raises ``UserError`` for anything that cannot be opened.
    """
    if channels not in (1, 3):
        raise UserError(f"--channels {channels}: images have 3 (colour) or 1 (grey)")
    path = Path(spec).expanduser()
    if spec in NAMES:
        levels = resolve_sides(NAMES[spec] if resolution is None else resolution, sides)
        named = (
            open_digits(levels, channels) if spec == "digits" else open_photos(levels, channels, seed, cache, console)
        )
        if path.exists():
            named.notes.append(
                f"{spec}: this is the built-in source; for the {spec} in this folder say .{os.sep}{spec}"
            )
        return named
    if not path.exists():
        raise UserError(_unknown(spec))
    suffix = path.suffix.lower()
    if suffix == ".npz" or (path.is_dir() and is_array_folder(path)):
        return open_arrays(path, console)
    if path.is_dir() or suffix == ".zip":
        levels = resolve_sides(DEFAULT_RESOLUTION if resolution is None else resolution, sides)
        return open_images(path, levels, channels, fit, skip_bad, cache, console)
    if suffix == ".safetensors":
        from forwardsr.data.planted import open_planted

        planted: Source = open_planted(path, seed=seed)
        return planted
    if suffix in SUFFIXES | {".npy"}:
        raise UserError(f"{spec}: one file is no data set: give the folder it is in")
    raise UserError(f"{spec}: neither a folder nor a .zip of images, .npz arrays or a .safetensors target")


def _unknown(spec: str) -> str:
    names = ", ".join(sorted(NAMES))
    close = difflib.get_close_matches(spec.lower(), NAMES, n=1)
    guess = f"; did you mean {close[0]}?" if close else ""
    return f"{spec}: no such file or folder, and no named source (there are: {names}){guess}"
