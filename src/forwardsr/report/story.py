"""What a Run folder tells a report: its settings, its log told apart by kind, and its pictures cut into single images.

A run may have been killed at any moment, so every piece but ``config.json`` may be missing, and a torn picture is passed over.
A step logged twice counts once, the later line winning.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from forwardsr.errors import UserError
from forwardsr.run import Run

_PICTURE = re.compile(r"(?P<stem>.+)-(?P<side>\d+)\.png")

Line = dict[str, Any]


@dataclass(frozen=True)
class Sheet:
    """One resolution of a sample sheet: ``tiles`` is ``(rows, columns, side, side, 3)`` in bytes."""

    side: int
    tiles: UInt8[np.ndarray, "rows columns side side 3"]


@dataclass(frozen=True)
class Story:
    """A Run, read. ``train``, ``distances`` and ``alarms`` are in order of step; ``final`` is the distance of the best weights
    measured once more when the run ended, from more pictures.
    """

    folder: Path
    config: Mapping[str, Any]
    train: Sequence[Line] = ()
    distances: Sequence[Line] = ()
    final: Line | None = None
    alarms: Sequence[Line] = ()
    notes: Sequence[str] = ()
    end: Line | None = None
    sheets: Mapping[str, Sequence[tuple[int, Path]]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The folder's own name."""
        return self.folder.resolve().name

    @property
    def method(self) -> str:
        return str(self.config.get("method", "an unnamed method"))

    @property
    def source(self) -> str:
        """The source's last path component: enough to recognise it by, and no machine's path in a title."""
        return Path(str(self.config.get("source", "an unnamed source"))).name

    @property
    def steps(self) -> list[int]:
        """The steps of which samples were kept, in order."""
        return sorted(int(stem) for stem in self.sheets if stem.isdigit())

    @property
    def best(self) -> Line | None:
        """The distance record of the best weights: the last that was marked best, else the one of least score."""
        marked = [line for line in self.distances if line.get("best")]
        scored = [line for line in self.distances if number(line.get("score")) is not None]
        return marked[-1] if marked else min(scored, key=lambda line: float(line["score"]), default=None)

    @property
    def measured(self) -> Line | None:
        """What is known best of the best weights: the final distance, or the one at their report."""
        return self.final or self.best or next(iter(self.distances[-1:]), None)

    def at(self, step: int) -> Line:
        """The record nearest to a step from below, of either kind; empty where the log has none."""
        near = [line for line in (*self.train, *self.distances) if line["step"] <= step]
        return max(near, key=lambda line: int(line["step"]), default={})

    def pictures(self, stem: str) -> list[Sheet]:
        """The readable resolutions of one sheet (``"best"``, ``"real"``, ``"walk"``, ``"00000100"``), coarse first."""
        sheets = (_cut(side, path) for side, path in self.sheets.get(stem, ()))
        return [sheet for sheet in sheets if sheet is not None]


def number(value: object) -> float | None:
    """A finite number, or ``None`` for anything else a log line may hold."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def numbers(value: object, length: int) -> list[float | None]:
    """A list of exactly ``length`` numbers; whatever is missing or not finite is ``None``."""
    items = list(value) if isinstance(value, list) else []
    return [number(x) for x in (items + [None] * length)[:length]]


def _cut(side: int, path: Path) -> Sheet | None:
    try:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError):  # Pillow's several words for a picture cut short
        return None
    rows, columns = pixels.shape[0] // max(side, 1), pixels.shape[1] // max(side, 1)
    if not rows or not columns:
        return None
    whole = pixels[: rows * side, : columns * side].reshape(rows, side, columns, side, 3)
    return Sheet(side, whole.swapaxes(1, 2))


def _by_step(lines: Sequence[Line], kind: str) -> list[Line]:
    steps = {int(x["step"]): x for x in lines if x.get("kind") == kind and number(x.get("step")) is not None}
    return [steps[step] for step in sorted(steps)]


def _read_final(path: Path) -> Line | None:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def read_story(folder: Path) -> Story:
    """Read a Run folder. Raises :class:`~forwardsr.errors.UserError` where it is none."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such run; give a folder that `forwardsr learn --out` made")
    run = Run.read(folder)
    lines = [line for line in run.lines() if isinstance(line, dict)]
    sheets: dict[str, list[tuple[int, Path]]] = {}
    for picture in (folder / "samples").glob("*.png"):
        if match := _PICTURE.fullmatch(picture.name):
            sheets.setdefault(match["stem"], []).append((int(match["side"]), picture))
    alarms = [line for line in lines if line.get("kind") == "alarm"]
    return Story(
        folder=folder,
        config=run.config,
        train=_by_step(lines, "train"),
        distances=_by_step(lines, "distance"),
        final=_read_final(folder / "distance.json"),
        alarms=sorted(alarms, key=lambda line: number(line.get("step")) or 0.0),
        notes=list(dict.fromkeys(str(x.get("message", "")) for x in lines if x.get("kind") == "note")),
        end=next((x for x in reversed(lines) if x.get("kind") == "end"), None),
        sheets={stem: sorted(sides) for stem, sides in sheets.items()},
    )
