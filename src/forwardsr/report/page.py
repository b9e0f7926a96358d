"""The report: one page for one run or several, complete in itself, that opens offline in any browser."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from forwardsr import __version__
from forwardsr.errors import UserError
from forwardsr.report.charts import compact
from forwardsr.report.comparison import compare
from forwardsr.report.film import film
from forwardsr.report.sections import SECTIONS, Chapter, Section, duration, environment, flatten
from forwardsr.report.story import Story, number, read_story
from forwardsr.report.theorem import THEOREM
from forwardsr.run import replacing

_FILM_BYTES = 3_600_000  # all films of a page together; with everything else a page stays under about 6 MB


def write_report(runs: Sequence[Path], out: Path) -> Path:
    """Write the page of these Run folders to ``out``, whole or not at all, and return its path.

    Raises :class:`~forwardsr.errors.UserError` where a folder is no run or ``out`` cannot be written.
    """
    if not runs:
        raise UserError("report: no run was named; name the folder given to `forwardsr learn --out`")
    stories = [read_story(run) for run in runs]
    if out.is_dir():
        raise UserError(f"{out}: is a folder; name a file, such as {out / 'report.html'}")
    chapters = [Chapter(story, i, film(story, _FILM_BYTES // len(stories))) for i, story in enumerate(stories)]
    page = render(chapters)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with replacing(out) as temporary:
            temporary.write_text(page, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror or error}); choose another --out") from error
    return out


def render(chapters: Sequence[Chapter]) -> str:
    """The page's HTML."""
    several = len(chapters) > 1
    bodies: list[list[Section]] = [
        [s for make in (SECTIONS[0], *THEOREM, *SECTIONS[1:]) if (s := make(chapter)) is not None]
        for chapter in chapters
    ]
    films = {c.index: [frame.uris for frame in c.film.frames] for c in chapters if c.film is not None}
    first = chapters[0].story
    title = " against ".join(c.story.name for c in chapters) if several else first.source
    template = environment().get_template("template.html.j2")
    return template.render(
        title=title,
        several=several,
        chapters=[
            {"story": c.story, "facts": facts(c.story), "sections": sections, "index": c.index}
            for c, sections in zip(chapters, bodies)
        ],
        comparison=compare(chapters) if several else [],
        films=films,
        version=__version__,
    )


def facts(story: Story) -> list[tuple[str, str]]:
    """What a reader asks first, as names and values; what is not known is left out.

    The score of a distance is the mean logarithm of its ratios to the noise floor, so its exponential is a ratio.
    """
    last: dict[str, Any] = max((*story.train, *story.distances), key=lambda line: line["step"], default={})
    images, seconds = number(last.get("images")), number(last.get("seconds"))
    score = number((story.measured or {}).get("score"))
    found = [("step", f"{int(last['step']):,}" if last else None)]
    found += [("images seen", compact(images) if images is not None else None)]
    found += [("time", duration(seconds) if seconds is not None else None)]
    found += [("images a second", compact(images / seconds) if images and seconds else None)]
    found += [("best distance", f"{math.exp(min(score, 700)):.1f} × floor" if score is not None else None)]
    settings = dict(flatten(story.config))
    found += [(key, settings.get(key)) for key in ("resolution", "width", "seed")]
    return [(name, value) for name, value in found if value is not None]
