"""What a study hands from its parts to its page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from forwardsr.study.claims import Outcome
from forwardsr.study.plan import Scale


@dataclass(frozen=True)
class Chapter:
    """One figure (or the theorem): its title, its picture, what is to be seen there, and its claims' outcomes.

    ``picture``: ``None`` where something it shows is missing. ``cells``: the names of the cells that the outcomes are of, but
    that of the pictures, ``pictures_cell`` (``None`` where the pictures come from the first of the others).
    """

    name: str
    title: str
    seen: str
    picture: Path | None
    outcomes: Sequence[Outcome]
    pictures_cell: str | None
    cells: Sequence[str]


@dataclass(frozen=True)
class Context:
    """What a part that learns by itself (:data:`forwardsr.study.reproduce.EXTRAS`) is given. ``say`` prints a line."""

    scale: Scale
    seed: int
    source: str
    out: Path
    device: str
    say: Callable[[str], None]


class Stopped(Exception):
    """A signal ended a learning after its checkpoint was saved; ``code`` is the exit code."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code
