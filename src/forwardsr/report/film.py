"""Films: the same latents at every report of a training, to be run through with a slider.

A page must stay light, so a film has a budget in bytes. Where too few frames would fit, fewer latents are shown, then frames
are left out evenly, the first and the last always kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from forwardsr.report.story import Story, number
from forwardsr.report.strips import Wall, walls

_MOST = 60  # frames looked at: more are no use to a hand on a slider
_FEWEST = 20  # rather half the latents than fewer frames than this
WHAT = "Generated pictures"


@dataclass(frozen=True)
class Frame:
    """One report. ``uris`` are its strips, wall by wall, coarse first; ``images`` and ``seconds`` where the log has them."""

    step: int
    images: float | None
    seconds: float | None
    uris: Sequence[str]


@dataclass(frozen=True)
class Film:
    """``walls`` is the last frame as shown at first; ``reports`` counts all there were before thinning."""

    walls: Sequence[Wall]
    frames: Sequence[Frame]
    reports: int


def _uris(shown: Sequence[Wall]) -> list[str]:
    return [strip.uri for wall in shown for strip in wall.strips]


def _cost(frames: Sequence[Frame]) -> int:
    return sum(len(uri) for frame in frames for uri in frame.uris)


def _shape(shown: Sequence[Wall]) -> list[tuple[int, int]]:
    return [(strip.side, strip.columns) for wall in shown for strip in wall.strips]


def evenly(count: int, keep: int) -> list[int]:
    """At most ``keep`` (two or more) of ``range(count)``, evenly apart, the first and the last among them."""
    return (
        sorted({round(float(i)) for i in np.linspace(0, count - 1, max(2, keep))})
        if count > keep
        else list(range(count))
    )


def film(story: Story, budget: int) -> Film | None:
    """The film of a run in at most ``budget`` bytes of page (two frames at least), or ``None`` where it kept no samples."""
    steps = story.steps
    last: list[Wall] = []
    while steps and not last:
        last = walls(story.pictures(f"{steps[-1]:08d}"), WHAT)
        steps = steps if last else steps[:-1]
    if not last:
        return None
    frames = []
    for step in (steps[i] for i in evenly(len(steps), _MOST)):
        shown = walls(story.pictures(f"{step:08d}"), WHAT)
        if _shape(shown) == _shape(last):  # else it was cut short
            line = story.at(step)
            frames.append(Frame(step, number(line.get("images")), number(line.get("seconds")), _uris(shown)))

    rows = len(last)
    while rows > 1 and budget * len(frames) < _cost(frames) * min(len(frames), _FEWEST):
        rows = (rows + 1) // 2
        last = last[:rows]
        frames = [replace(frame, uris=frame.uris[: len(_uris(last))]) for frame in frames]
    keep, kept = len(frames), frames
    while _cost(kept) > budget and keep > 2:
        keep -= 1
        kept = [frames[i] for i in evenly(len(frames), keep)]
    return Film(last, kept, len(steps))
