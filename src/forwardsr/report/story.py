"""What a Run folder tells a report: its settings, its log told apart by kind, and its pictures cut into single images.

A run may have been killed at any moment, so every piece but ``config.json`` may be missing, and a torn line or picture is
passed over. A step logged twice (the run went back to a checkpoint and came by again) counts once, the later line winning.
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

SCHEMA = 1
_PICTURE = re.compile(r"(?P<stem>.+)-(?P<side>\d+)\.png")

Line = dict[str, Any]


@dataclass(frozen=True)
class Sheet:
    """One resolution of a sample sheet: ``tiles`` is ``(rows, columns, side, side, 3)`` in bytes."""

    side: int
    tiles: UInt8[np.ndarray, "rows columns side side 3"]


@dataclass(frozen=True)
class Story:
    """A Run, read. ``train``, ``distances`` and ``alarms`` are in order of step; ``lost`` counts unreadable log lines."""

    folder: Path
    config: Mapping[str, Any]
    train: Sequence[Line] = ()
    distances: Sequence[Line] = ()
    alarms: Sequence[Line] = ()
    notes: Sequence[str] = ()
    end: Line | None = None
    lost: int = 0
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


def _read_log(path: Path) -> tuple[list[Line], int]:
    lines, lost = [], 0
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        if not text.strip():
            continue
        try:
            line = json.loads(text)
        except ValueError:
            line = None
        if isinstance(line, dict):
            lines.append(line)
        else:
            lost += 1
    return lines, lost


def _by_step(lines: Sequence[Line], kind: str) -> list[Line]:
    steps = {int(x["step"]): x for x in lines if x.get("kind") == kind and number(x.get("step")) is not None}
    return [steps[step] for step in sorted(steps)]


def read_story(folder: Path) -> Story:
    """Read a Run folder. Raises :class:`~forwardsr.errors.UserError` where it is none."""
    path = folder / "config.json"
    if not folder.is_dir():
        raise UserError(f"{folder}: no such run folder; name the folder given to `forwardsr learn --out`")
    if not path.is_file():
        raise UserError(
            f"{folder}: not a run (it has no config.json); name the folder given to `forwardsr learn --out`"
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise UserError(
            f"{path}: cannot be read as JSON ({error}); restore it or learn again".replace("\n", " ")
        ) from error
    if not isinstance(config, dict):
        raise UserError(f"{path}: holds no settings; restore it or learn again")
    if config.get("schema", SCHEMA) != SCHEMA:
        raise UserError(
            f"{path}: schema {config['schema']!r}, this version reads {SCHEMA}; use the forwardsr that wrote it"
        )

    log = folder / "log.jsonl"
    lines, lost = _read_log(log) if log.is_file() else ([], 0)
    sheets: dict[str, list[tuple[int, Path]]] = {}
    for picture in (folder / "samples").glob("*.png"):
        if match := _PICTURE.fullmatch(picture.name):
            sheets.setdefault(match["stem"], []).append((int(match["side"]), picture))
    alarms = [line for line in lines if line.get("kind") == "alarm"]
    return Story(
        folder=folder,
        config=config,
        train=_by_step(lines, "train"),
        distances=_by_step(lines, "distance"),
        alarms=sorted(alarms, key=lambda line: number(line.get("step")) or 0.0),
        notes=list(dict.fromkeys(str(x.get("message", "")) for x in lines if x.get("kind") == "note")),
        end=next((x for x in reversed(lines) if x.get("kind") == "end"), None),
        lost=lost,
        sheets={stem: sorted(sides) for stem, sides in sheets.items()},
    )
