"""The sections of a run of the theorem: Theorem 5.1's curve, every lemma's error, the stages of Algorithm 4.

They are made from ``certificate.json`` (of a planted target, or the self-certificate on data) and the log's ``stage`` lines.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from forwardsr.report.charts import Curve, chart
from forwardsr.report.sections import Chapter, Section, parts
from forwardsr.report.strips import walls
from forwardsr.run import Run


def _found(chapter: Chapter) -> dict[str, Any] | None:
    """The certificate, or nothing where it is missing or torn."""
    try:
        value = json.loads((chapter.story.folder / "certificate.json").read_text())
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def theorem(chapter: Chapter) -> Section | None:
    """Theorem 5.1: how often the learned network is how near to its target, at every level."""
    found = _found(chapter)
    if found is None or "curves" not in found:
        return None
    curves, rows = [], []
    for i, curve in enumerate(found["curves"]):
        name = "all levels" if curve["level"] is None else f"level {curve['level']}"
        relative = [100 * x for x in curve["relative"]]
        curves.append(Curve(name, relative[:-2], [100 * p for p in curve["probability"]][:-2], colour=i))
        rows.append((name, [(f"{relative[p]:.2f} %", "") for p in (50, 95)], False))
    drawn = chart(
        "Share of z (in %) with an error of at most epsilon",
        curves, x_label="epsilon, % of |G*(Uz)|", key=f"theorem{chapter.index}",
    )  # fmt: skip
    sentence = parts().sentence(
        f"Pr[|G*(Uz) - G(z)| <= epsilon] on {found['n']:,} fresh z. The latent is learned up to the rotation U; "
        "what is left is the sampling error of the first layer's law."
    )
    table = parts().table({"head": ["median", "95th percentile"], "groups": [("|G*(Uz) - G(z)| / |G*(Uz)|", rows)]})
    body = sentence + parts().charts([("Theorem 5.1", drawn)]) + table
    return Section("theorem", "Theorem 5.1: the learned network is the target", body)


def lemmas(chapter: Chapter) -> Section | None:
    """The error of every lemma, by level."""
    found = _found(chapter)
    if found is None or "rows" not in found:
        return None
    levels: dict[int, list[tuple[str, list[tuple[str, str]], bool]]] = {}
    for row in found["rows"]:
        cells = [(f"{row['rms']:.2g}", ""), (f"{row['worst']:.2g}", ""), (row["where"], "")]
        levels.setdefault(row["level"], []).append((f"{row['lemma']}: {row['quantity']}", cells, False))
    groups = [(f"Level {level}", rows) for level, rows in sorted(levels.items())]
    for level, j, r in found["unmatched"]:
        groups.append((f"Level {level}", [(f"patch {j}, channel {r}: nothing learned stands for it", [], False)]))
    return Section(
        "lemmas", "Every lemma, measured", parts().table({"head": ["r.m.s.", "worst", "where"], "groups": groups})
    )


def against_data(chapter: Chapter) -> Section | None:
    """The self-certificate: every discriminator's moments, learned against the data's, in standard errors."""
    found = _found(chapter)
    if found is None or "families" not in found:
        return None
    sentence = parts().sentence(
        f"On {found['n']:,} {found['samples']} the network is {found['verdict']}, by these discriminators."
    )
    rows = [
        (
            f"{f['discriminator']}, level {f['level']}",
            [(f"{f['mean_square']:.2f}", ""), (f"{f['largest']:.1f}", ""), (f"{f['bound']:.1f}", ""), (f["where"], "")],
            False,
        )
        for f in found["families"]
    ]
    table = parts().table({"head": ["mean z²", "largest |z|", "bound", "where"], "groups": [("Moments", rows)]})
    return Section("self-certificate", "Against the data", sentence + table)


def stages(chapter: Chapter) -> Section | None:
    """What every stage of Algorithm 4 took and found."""
    lines = Run.read(chapter.story.folder).lines("stage")
    if not lines:
        return None
    rows = [
        (
            f"Level {line['level']}, {line['name']} (Algorithm {line['algorithms']})",
            [(f"{line['seconds']:.1f}", ""), (", ".join(f"{k} {v:.3g}" for k, v in line["metrics"].items()), "")],
            False,
        )
        for line in lines
    ]
    total = sum(line["seconds"] for line in lines)
    table = {
        "head": ["seconds", "found"],
        "groups": [(f"{len(lines)} stages in {total:.0f} s, sampling included", rows)],
    }
    return Section("stages", "Algorithm 4, stage by stage", parts().table(table))


def nearest(chapter: Chapter) -> Section | None:
    """Drawn images above the training images nearest to them."""
    story = chapter.story
    try:
        found = json.loads((story.folder / "novelty.json").read_text())
    except (OSError, ValueError):
        return None
    shown = walls(story.pictures("nearest"), "Drawn images, and the training images nearest to each", columns=16)
    copied = (
        "none is a copy" if not found["copies"] else f"{found['copies']:.1%} are closer than any two training images"
    )
    sentence = parts().sentence(
        f"Above, drawn images; below each, the training image nearest to it at {found['side']} px. {found['n']} drawn images are "
        f"{found['ratio']:.2f} times as far from the training set as its own images are from each other; {copied}."
    )
    return Section("nearest", "New pictures, not copies", sentence + parts().panel("Drawn above, nearest below", shown))


def features(chapter: Chapter) -> Section | None:
    """What every level paints with: columns of W_l."""
    story = chapter.story
    stems = sorted(stem for stem in story.sheets if stem.startswith("features"))
    named = [
        (f"Level {stem.removeprefix('features')}", walls(story.pictures(stem), "Output features", columns=16))
        for stem in stems
    ]
    if not named:
        return None
    sentence = parts().sentence(
        "Columns of W_l, each on its own scale: what hidden layer l paints a patch of its image with."
    )
    return Section("features", "The learned features", sentence + parts().panels(named))


THEOREM: list[Callable[[Chapter], Section | None]] = [theorem, lemmas, against_data, nearest, features, stages]
