"""``learn --method minmax`` on photographs: a generative model in seconds, into a Run that resumes between levels."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from forwardsr.data.pyramid import Pyramid
from forwardsr.data.source import FiniteSource, Source
from forwardsr.drawing import save_features
from forwardsr.errors import UserError
from forwardsr.learn.photographs import LevelRecord, State, learn_photographs
from forwardsr.learn.stream import Stream
from forwardsr.measure.distance import Reference
from forwardsr.measure.novelty import novelty
from forwardsr.model.innovation_generator import InnovationGenerator
from forwardsr.observing import FIXED_LATENTS, LATENT_SEED, STOPS, walks
from forwardsr.report.figures import grid, save_png
from forwardsr.report.page import write_report
from forwardsr.run import Run

FINAL = 2048  # images the final distance is taken of
NOVEL = 512  # drawn images whose nearest training images are looked for
SHOWN_NEAREST = 16


def patch_side(source: Source, patch: int | None) -> int:
    """The side of a patch in pixels: ``patch``, or 4 where that cuts the coarsest level in two by two patches or more, or half its
    side: larger patches have coarser windows and slower closed forms."""
    side = source.shapes[0][-1]
    chosen = (4 if side % 4 == 0 and side > 4 else side // 2) if patch is None else patch
    if chosen < 2 or side % chosen:
        raise UserError(f"--patch {patch}: must be at least 2 and divide the coarsest side, {side}")
    return chosen


def learn_images(source: Source, settings: dict[str, Any], free: frozenset[str], out: Path, console: Console) -> int:
    """Learn images into the Run at ``out``, or go on there after the levels that were finished; returns 0 or 130.

    ``settings``: ``seed``, ``innovation``, ``patch``, ``level1``, ``precision`` and whatever else the Run is to
    remember. Raises :class:`UserError`.
    """
    channels = source.shapes[0][0]
    stream = Stream(source, settings["seed"], patch_side(source, settings["patch"]))
    run = Run.create(out, settings, free)
    try:
        saved = run.load_checkpoint()
        if saved is not None and saved.get("done"):
            console.print(f"{out}: learned already; its report is {run.path / 'report.html'}")
            return 0
        if saved is None:
            sides = ", ".join(str(shape[-1]) for shape in source.shapes)
            size = f"{len(source):,} images" if isinstance(source, FiniteSource) else "fresh samples"
            console.print(f"{source.name}: {size} at {sides} px; patches of {stream.patch} px, level by level")
            for note in getattr(source, "notes", []):
                run.log("note", message=note)
        start = time.monotonic() - (0.0 if saved is None else saved["seconds"])

        def keep(record: LevelRecord, state: State) -> None:
            found = {key: round(value, 4) for key, value in record.metrics.items()}
            run.log("stage", level=record.level, name=record.name, algorithms="5, 2" if record.level == 1 else "5, 3",
                    seconds=round(record.seconds, 2), metrics=found)  # fmt: skip
            if record.level < record.total:
                run.save_checkpoint({"state": dict(state), "seconds": time.monotonic() - start})
            console.print(
                f"level {record.level} of {record.total}: {record.name}, {record.seconds:.1f} s"
                + "".join(f", {key} {value:.3g}" for key, value in record.metrics.items())
            )

        model = learn_photographs(
            stream, channels, settings["seed"], settings["innovation"], keep, None if saved is None else saved["state"],
            settings["level1"], settings["precision"] or "float32",
        )  # fmt: skip
        seconds = time.monotonic() - start
        model.save(run.path / "model.safetensors", {"command": str(settings["command"])})
        console.print(f"learned in {seconds:.1f} s")
        _finish(run, model, source, seconds, console)
        run.log("end", reason="learned", seconds=round(seconds, 2))
        run.save_checkpoint({"done": True})
    except KeyboardInterrupt:
        console.print("stopped; the levels that were finished are kept, and the same command goes on after them")
        return 130
    finally:
        run.close()
    return 0


def _finish(run: Run, model: InnovationGenerator, source: Source, seconds: float, console: Console) -> None:
    """Samples, a walk, the distance, the nearest training images, the page."""
    latents = model.latents(FIXED_LATENTS, torch.Generator().manual_seed(LATENT_SEED))
    _sheets(run, "best", model.render(model.hidden(latents)), FIXED_LATENTS // 2)
    _sheets(run, "walk", model.render(model.hidden(walks(latents))), STOPS)
    _sheets(run, "real", source.draw(FIXED_LATENTS, torch.Generator().manual_seed(LATENT_SEED)), FIXED_LATENTS // 2)
    save_features(model, run.path / "samples")
    reference = Reference.from_source(source, FINAL, seed=1, channels=source.shapes[0][0])
    drawn = model.sample(max(reference.n, 2), torch.Generator().manual_seed(LATENT_SEED + 2))
    distance = reference.compare(drawn)
    run.write_json("distance.json", distance.to_json())
    images = len(source) if isinstance(source, FiniteSource) else 0
    run.log("distance", step=0, images=images, seconds=round(seconds, 2), best=True, **distance.to_json())
    console.print(distance.table())
    if isinstance(source, FiniteSource):
        console.print(_nearest(run, drawn, source))
    page = write_report([run.path], run.path / "report.html")
    console.print(f"samples and distances: {page}")


def _nearest(run: Run, drawn: Pyramid, source: FiniteSource) -> Table:
    """The nearest training images of drawn ones: two rows of pictures, ``novelty.json``, and a table."""
    found = novelty([x[:NOVEL] for x in drawn], source)
    run.write_json("novelty.json", found.to_json())
    pairs = torch.cat([drawn[-1][:SHOWN_NEAREST], source.take(found.nearest[:SHOWN_NEAREST])[-1]])
    save_png(grid(pairs, SHOWN_NEAREST), run.path / "samples" / f"nearest-{pairs.shape[-1]:03d}.png")
    return found.table()


def _sheets(run: Run, name: str, pyramid: Pyramid, columns: int) -> None:
    for images in pyramid:
        save_png(grid(images, columns), run.path / "samples" / f"{name}-{images.shape[-1]:03d}.png")
