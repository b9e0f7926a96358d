"""Keep studies in the docs: page and figures (small) under docs/study/NAME, and one table of all claims in docs/study/README.md.

forwardsr reproduce all agnostic --source celeba9k.zip --scale cpu --out run-study-faces
forwardsr reproduce all agnostic --source heritage64.zip --scale cpu --out run-study-heritage
python benchmarks/study.py faces=run-study-faces heritage=run-study-heritage
"""

from __future__ import annotations

import json
import math
import re
import shutil
import statistics
import sys
from pathlib import Path
from typing import Any

from PIL import Image

DOCS = Path(__file__).parents[1] / "docs" / "study"
COLOURS = 128  # of a figure's palette: a third of its size, and no difference to be seen


def keep(folder: Path, to: Path) -> None:
    """The page as it is, and the figures with a palette."""
    (to / "figures").mkdir(parents=True, exist_ok=True)
    shutil.copyfile(folder / "page.html", to / "page.html")
    for picture in sorted((folder / "figures").glob("*.png")):
        with Image.open(picture) as image:
            image.convert("RGB").quantize(COLOURS).save(to / "figures" / picture.name, optimize=True)


def spread(claim: dict[str, Any]) -> str:
    """The effect that decides a claim in the pictures' run, and its range over the seeds' runs.

    A rule that is about every level is decided by the worst of them; where there is none it is the geometric mean.
    """

    def one(run: dict[str, float | None]) -> float:
        values = [math.nan if x is None else x for x in run.values()]
        if not values or not all(map(math.isfinite, values)):
            return math.nan
        if claim["at_most"] is not None:
            return max(values)
        return min(values) if claim["at_least"] is not None else statistics.geometric_mean(values)

    first, *seeds = (one(run) for run in claim["effects"].values())
    known = [x for x in seeds if math.isfinite(x)]
    shown = f"{first:.3g}" if math.isfinite(first) else "never"
    if not known:
        return shown
    return f"{shown} ({min(known):.3g} to {max(known):.3g}{', others never' if len(known) < len(seeds) else ''})"


def table(studies: dict[str, dict[str, Any]]) -> str:
    """A row a claim, two columns a study: the verdict, and the effect."""
    head = ["figure", "claim", "effect, and the rule", *(x for name in studies for x in (f"{name}: verdict", "effect"))]
    lines = [head, ["---"] * len(head)]
    for claims in zip(*(study["claims"] for study in studies.values()), strict=True):
        assert len({claim["claim"] for claim in claims}) == 1
        of = claims[0]
        row = [of["figure"].removeprefix("figure"), of["claim"], f"{of['effect']}; {of['rule']}"]
        lines.append(row + [cell for claim in claims for cell in (claim["verdict"], spread(claim))])
    return _markdown(lines)


def _markdown(lines: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def runs(studies: dict[str, dict[str, Any]]) -> str:
    """A row a learner: at the pictures' resolution and over the seeds, distance over floor (geometric mean) and images."""
    head = ["data", "learner", "pictures: images", "distance over floor", "seeds: distance over floor"]
    lines = [head, ["---"] * len(head)]
    for name, study in studies.items():
        large = study["pictures"]["side"]
        for method in dict.fromkeys(run["method"] for run in study["runs"]):
            own = [run for run in study["runs"] if run["method"] == method]
            shown = next(run for run in own if run["side"] == large)
            others = ", ".join(f"{math.exp(run['distance']['score']):.2f}" for run in own if run["side"] != large)
            lines.append([name, method, f"{shown['images']:,}", f"{math.exp(shown['distance']['score']):.2f}", others])
    return _markdown(lines)


def main() -> None:
    folders = dict(argument.split("=", 1) for argument in sys.argv[1:])
    studies = {name: json.loads((Path(folder) / "study.json").read_text()) for name, folder in folders.items()}
    for name, folder in folders.items():
        keep(Path(folder), DOCS / name)
    page = DOCS / "README.md"
    text = page.read_text()
    for what, body in (("claims", table(studies)), ("runs", runs(studies))):
        between = re.compile(rf"(<!-- table: {what} -->\n).*?(<!-- end -->)", re.DOTALL)
        text, n = between.subn(lambda match, body=body: f"{match[1]}\n{body}\n\n{match[2]}", text)  # type: ignore[misc]
        assert n == 1, what
    page.write_text(text)


if __name__ == "__main__":
    main()
