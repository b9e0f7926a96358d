"""The sections of a run's page: each is a function of the run that returns a :class:`Section`, or ``None`` where it has no say.

To add one, write such a function and put it into :data:`SECTIONS`; build its body from the macros of ``parts.html.j2``
(``parts().walls(...)``, ``.table(...)``, ``.charts(...)``), which escape whatever they are given.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from forwardsr.report.charts import Curve, chart, compact
from forwardsr.report.film import Film, Frame
from forwardsr.report.story import Line, Story, number, numbers
from forwardsr.report.strips import walls


@dataclass(frozen=True)
class Section:
    """A titled part of the page. ``anchor`` is a plain word; ``body`` is markup already escaped."""

    anchor: str
    title: str
    body: Markup


@dataclass(frozen=True)
class Chapter:
    """A run on its way to the page: its number there and its film, made once and shared by the sections."""

    story: Story
    index: int
    film: Film | None


@functools.cache
def environment() -> Environment:
    """The templates. Everything is escaped, and a name that is missing is an error."""
    env = Environment(
        loader=PackageLoader("forwardsr.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    env.filters.update(compact=compact, duration=duration)
    return env


def parts() -> Any:
    """The macros of ``parts.html.j2``, as attributes."""
    return environment().get_template("parts.html.j2").module


def duration(seconds: float) -> str:
    """Seconds in words short enough for a label: ``45 s``, ``12 min 5 s``, ``3 h 20 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def moment(images: float | None, seconds: float | None) -> str:
    """``38.4k images · 12 min 5 s``, with whatever of it is known."""
    known = [f"{compact(images)} images"] if images is not None else []
    return " · ".join(known + ([duration(seconds)] if seconds is not None else []))


def frame_label(frame: Frame) -> str:
    return " · ".join(x for x in (f"step {frame.step:,}", moment(frame.images, frame.seconds)) if x)


# --- the sections of one run -------------------------------------------------------------------------------------------


def samples(chapter: Chapter) -> Section:
    """The best weights' pictures beside real ones, every resolution of a picture in one column."""
    story = chapter.story
    shown, caption = walls(story.pictures("best"), "Generated pictures"), "Best weights"
    if shown and story.best:
        best = story.best
        known = moment(number(best.get("images")), number(best.get("seconds")))
        caption = f"Best weights: step {int(best['step']):,}" + (f" · {known}" if known else "")
    if not shown and chapter.film is not None:
        shown, caption = list(chapter.film.walls), f"Latest weights: step {chapter.film.frames[-1].step:,}"
    real = walls(story.pictures("real"), "Real pictures")
    return Section("samples", "Generated beside real", parts().samples(shown, caption, real))


def evolution(chapter: Chapter) -> Section | None:
    """The film of the same latents through training."""
    film = chapter.film
    if film is None and chapter.story.method == "minmax":  # Algorithm 4 has stages, not steps
        return None
    if film is None:
        return Section("evolution", "Through training", parts().sentence("No samples were kept yet."))
    stops = [{"label": frame_label(f), "x": f.images if f.images is not None else f.step} for f in film.frames]
    screens = [{"run": chapter.index, "walls": film.walls, "title": "", "at": list(range(len(stops)))}]
    note = ""
    if len(film.frames) < film.reports:
        note = (
            f"{len(film.frames)} of {film.reports} reports are kept here, evenly apart, so that the page stays light."
        )
    return Section("evolution", "Through training", parts().player(screens, stops, str(chapter.index), note))


def walk(chapter: Chapter) -> Section | None:
    """Straight lines between latents, a walk a row."""
    sheets = chapter.story.pictures("walk")
    if not sheets:
        return None
    shown = walls(sheets, "A walk between two latents", columns=sheets[-1].tiles.shape[1])
    return Section("walk", "From one latent to the next", parts().walk(shown))


def distances(chapter: Chapter) -> Section | None:
    """Distances and diversity of every level, in a table and through training, with the noise floor."""
    story = chapter.story
    title = "Distance to the real pictures"
    if story.measured is None and chapter.story.method == "minmax":  # Algorithm 4 has stages, not steps
        return None
    if story.measured is None:
        return Section(
            "distances", title, parts().sentence("No distance was measured yet: the first comes with a report.")
        )
    last = story.distances[-1] if story.distances else {}
    reports = [("best weights", story.best or {}), ("last report", last)]
    if story.best is last:
        reports = [("best weights: the last report", last)]
    # The final measurement has a floor of its own, being of more pictures; it replaces the others in the table.
    table = distance_table([("best weights", story.final)] if story.final else reports)
    rows = [(label, distance_charts([story], key, chapter.index)) for key, label in FORMS]
    named = [("the table", story.measured), ("the curves", last)]
    sizes = [(where, int(n)) for where, line in named if (n := number(line.get("n"))) is not None]
    return Section("distances", title, parts().distances(table, rows, sizes))


def training(chapter: Chapter) -> Section | None:
    """Losses, speed, and every other number that the trainer logged."""
    lines = chapter.story.train
    if not lines and chapter.story.method == "minmax":  # Algorithm 4 has stages, not steps
        return None
    if not lines:
        return Section("curves", "Training curves", parts().sentence("The log holds no training step yet."))
    keys = [key for line in lines for key in line if key not in {"kind", "step", "images", "seconds"}]
    keys = [key for key in dict.fromkeys(keys) if any(number(line.get(key)) is not None for line in lines)]
    losses = [key for key in keys if key.startswith("loss")]
    groups = [("losses", losses)] if losses else []
    groups += [(key, [key]) for key in keys if key not in losses]
    drawn = []
    for name, members in groups:
        curves = [_train_curve(lines, key, i) for i, key in enumerate(members)]
        title = name.replace("_per_second", " a second").replace("_", " ")
        drawn.append((title, chart(title, curves, x_label=x_label(lines), run=chapter.index, key=f"t{chapter.index}")))
    return Section("curves", "Training curves", parts().charts(drawn))


_ENDINGS = {"budget": "its budget was spent", "stopped": "it was stopped, and the same command goes on from there"}


def journal(chapter: Chapter) -> Section | None:
    """Alarms and notes of the run, and how it ended."""
    story = chapter.story
    alarms = [(moment_of(line), str(line.get("message", ""))) for line in story.alarms]
    if not alarms and not story.notes and story.end is None:
        return None
    reason = None if story.end is None else str(story.end.get("reason", "it finished"))
    ending = None if reason is None else _ENDINGS.get(reason, reason)
    return Section("journal", "Alarms and notes", parts().journal(alarms, story.notes, ending))


def method(chapter: Chapter) -> Section:
    """What was trained and how it was measured, with the papers to cite."""
    return Section("method", "Method", parts().method(chapter.story.method))


def reproduce(chapter: Chapter) -> Section:
    """The command, and every setting."""
    config = chapter.story.config
    return Section("reproduce", "Reproduce", parts().reproduce(str(config.get("command", "")), flatten(config)))


SECTIONS: list[Callable[[Chapter], Section | None]] = [
    samples,
    evolution,
    walk,
    distances,
    training,
    journal,
    method,
    reproduce,
]


# --- what they share ---------------------------------------------------------------------------------------------------

FORMS = (("standardised", "Standardised"), ("raw", "Raw"))


def flatten(config: Any, prefix: str = "") -> list[tuple[str, str]]:
    """Nested settings as dotted names and plain values."""
    if isinstance(config, dict) and config:
        return [
            pair for key, value in config.items() for pair in flatten(value, f"{prefix}.{key}" if prefix else str(key))
        ]
    return [(prefix, ", ".join(map(str, config)) if isinstance(config, list) else str(config))]


def moment_of(line: Line) -> str:
    step = number(line.get("step"))
    known = moment(number(line.get("images")), number(line.get("seconds")))
    return " · ".join(x for x in (f"step {int(step):,}" if step is not None else "", known) if x)


def x_of(line: Line) -> float:
    images = number(line.get("images"))
    return float(line["step"]) if images is None else images


def x_label(lines: Sequence[Line]) -> str:
    return "steps" if any(number(line.get("images")) is None for line in lines) else "images seen"


def sides_of(lines: Sequence[Line]) -> list[int]:
    """Every side measured in these records, coarse first."""
    found = {int(side) for line in lines for side in line.get("sides") or [] if number(side) is not None}
    return sorted(found)


def at_side(line: Line, key: str, side: int) -> float | None:
    """The entry of ``line[key]`` that belongs to this side, or ``None``."""
    sides = line.get("sides") or []
    return numbers(line.get(key), len(sides))[sides.index(side)] if side in sides else None


def _train_curve(lines: Sequence[Line], key: str, colour: int) -> Curve:
    points = [(x_of(line), y) for line in lines if (y := number(line.get(key))) is not None]
    return Curve(key, [x for x, _ in points], [y for _, y in points], colour, binned=True)


def distance_charts(stories: Sequence[Story], key: str, run: int | str | None) -> list[tuple[str, Markup]]:
    """One panel a level. Several runs are overlaid over time; one runs over the images seen, its best report ringed."""
    several = len(stories) > 1
    timed = several and is_timed(stories)

    def along(line: Line) -> float:
        return float(line["seconds"]) / 60 if timed else x_of(line)

    drawn = []
    for side in sides_of([line for story in stories for line in story.distances]):
        curves = []
        floors: list[tuple[list[float], list[float]]] = []
        for i, story in enumerate(stories):
            points = [(along(x), y) for x in story.distances if (y := at_side(x, key, side)) is not None]
            marked = along(story.best) if story.best is not None else None
            label = story.name if several else f"{side} px"
            curves.append(Curve(label, [x for x, _ in points], [y for _, y in points], i, marked=marked))
            below = [(along(x), y) for x in story.distances if (y := at_side(x, f"floor_{key}", side)) is not None]
            band = ([x for x, _ in below], [y for _, y in below])
            if below and all(set(band[1]) != set(other) for _, other in floors):
                floors.append(band)
        label = "minutes" if timed else x_label([line for story in stories for line in story.distances])
        title = f"{side} × {side} px"
        svg = chart(
            f"{key} distance at {title}", curves, x_label=label, floors=floors, log=True, run=run, key=f"d{run}"
        )
        drawn.append((title, svg))
    return drawn


def is_timed(stories: Sequence[Story]) -> bool:
    """Whether every distance of these runs has a time, so that they can be compared at equal time."""
    return all(number(line.get("seconds")) is not None for story in stories for line in story.distances)


def _cells(line: Line, key: str, sides: Sequence[int], floor: str | None) -> list[tuple[str, str]]:
    cells = []
    for side in sides:
        value = at_side(line, key, side)
        least = at_side(line, floor, side) if floor else None
        ratio = f"{value / least:.1f} × floor" if value is not None and least else ""
        cells.append(("–" if value is None else f"{value:#.3g}".rstrip("."), ratio))
    return cells


def distance_table(rows: Sequence[tuple[str, Line]]) -> dict[str, Any]:
    """Sides across; for each measurement the given rows, then what real pictures score among themselves.

    Where rows have different floors (other sources, or floors measured anew), each floor is shown and says whose it is.
    """
    sides = sides_of([line for _, line in rows])

    def group(key: str, real_key: str, real: str, floor: str | None) -> list[tuple[str, list[tuple[str, str]], bool]]:
        body = [(name, _cells(line, key, sides, floor), False) for name, line in rows]
        floors = [(name, _cells(line, real_key, sides, None)) for name, line in rows]
        if all(cells == floors[0][1] for _, cells in floors):
            return [*body, (real, floors[0][1], True)]
        return body + [(f"{real} ({name})", cells, True) for name, cells in floors]

    groups = [
        (label, group(key, f"floor_{key}", "noise floor: real against real", f"floor_{key}")) for key, label in FORMS
    ]
    if any(line.get("diversity") for _, line in rows):
        groups.append(("Diversity", group("diversity", "real_diversity", "real pictures", None)))
    return {"head": [f"{side} px" for side in sides], "groups": groups}
