"""``fit``: a source, a learner, a Run and its observations put together. This is what the command line calls."""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console

from forwardsr.data.folded import FoldedSource
from forwardsr.data.open import open_source
from forwardsr.data.pyramid import Pyramid
from forwardsr.data.source import FiniteSource, Source
from forwardsr.device import resolve_device, resolve_precision
from forwardsr.errors import UserError
from forwardsr.generators import load_generator
from forwardsr.learn.adversarial import LOSSES
from forwardsr.learn.budget import Budget, seconds
from forwardsr.learn.joint import JointConfig, JointLearner, draw_levels, network_metadata
from forwardsr.learn.loop import Diverged, train
from forwardsr.learn.minmax import MinmaxConfig
from forwardsr.measure.distance import Distance, Reference
from forwardsr.model.deconv_generator import pyramid_sides
from forwardsr.report.figures import grid, save_png
from forwardsr.report.page import write_report
from forwardsr.run import Run

METHODS = ("joint", "minmax")
FIXED_LATENTS = 32  # shown at every report, in two rows
LATENT_SEED = 20210604
WALKS, STOPS = 4, 16  # latent interpolations: rows and columns
PROBE = 1024  # images a distance is taken of while training
FINAL = 2048  # and at the end
COLLAPSED = 0.9  # MS-SSIM of random pairs: above it they are one picture
CROWDED = 0.5  # distance to the nearest other sample, of the real one: below it they repeat themselves
GRACE = 20_000  # images seen before samples are expected to differ
FALLEN = 1.0  # a rise of the score (a logarithm of distance over floor) above the best, worth an alarm
DEFAULT_BUDGET = "20m"

# Settings that do not shape the result, or only how long it is pursued: a run may go on with other ones.
FREE = frozenset({"budget", "steps", "images", "report_images", "checkpoint", "device"})


@dataclass(frozen=True)
class LearnConfig(JointConfig, MinmaxConfig):
    """All settings of ``learn``: those of the source and the run here, those of each method inherited."""

    source: str = "photos"
    """An image folder or .zip, pyramid arrays (.npz or a folder of .npy), a planted target, or a name: photos, digits."""
    method: str = "joint"
    """The learner: joint (Figure 1's network, all levels together) or minmax (Algorithm 4, for patches)."""
    resolution: int = 64
    """Side of the finest images: 16, 32, 64, 128 or 256 (8 times a power of two)."""
    base: int = 8
    """Side of the coarsest images; the resolution must be base times a power of two."""
    channels: str | None = None
    """joint: 3 for colour (the default) or 1 for grey. minmax: channels a patch at every level, m1,m2,..."""
    fit: Literal["crop", "pad"] = "crop"
    """How pictures that are not square become so: crop (the centre) or pad."""
    skip_bad: bool = False
    """Leave out pictures that cannot be read, and count them, instead of stopping."""
    device: str = "auto"
    """auto, cpu or cuda."""
    budget: str | None = None
    """Wall time, as 90s, 20m or 1h30m (20m where no budget is given at all)."""
    steps: int | None = None
    """Steps, as a budget."""
    images: int | None = None
    """Real images seen, as a budget."""
    report_images: int = 16_384
    """Images from one report (samples, distance) to the next; the first reports come sooner."""
    checkpoint: str = "1m"
    """Wall time from one checkpoint to the next."""


def fit(config: LearnConfig, out: Path, console: Console, command: str = "") -> int:
    """Learn ``config.source`` into the Run at ``out`` (or go on there); returns the exit code.

    Raises :class:`UserError` for bad settings or input. Returns 0, or 128 + a signal's number after saving.
    """
    if config.method == "minmax":
        from forwardsr.learning_minmax import learn_theorem

        chosen = MinmaxConfig(**{f.name: getattr(config, f.name) for f in fields(MinmaxConfig)})
        return learn_theorem(config.source, config.channels, chosen, config.seed, out, console, command)
    validate(config)
    limits = Budget(
        seconds(config.budget) if config.budget is not None
        else None if config.steps or config.images else seconds(DEFAULT_BUDGET),
        config.steps,
        config.images,
    )  # fmt: skip
    checkpoint_seconds = seconds(config.checkpoint, "--checkpoint")
    device = resolve_device(config.device)
    others = {f.name for f in fields(MinmaxConfig)}
    settings = {key: value for key, value in asdict(config).items() if key not in others} | {"command": command}
    if config.precision == "auto":
        settings["precision"] = None
    made = Run.check(out, settings, FREE)
    source = open_images_source(config, console)
    # A run goes on with the precision it was begun with, whatever would be faster here.
    settings["precision"] = made.get("precision") or resolve_precision(config.precision, device)
    settings["sides"] = [shape[-1] for shape in source.shapes]
    run = Run.create(out, settings, FREE)
    try:
        return _learn(run, config, settings, source, device, limits, checkpoint_seconds, console)
    finally:
        run.close()


def _learn(
    run: Run, config: LearnConfig, settings: dict[str, Any], source: Source, device: torch.device, limits: Budget,
    checkpoint_seconds: float, console: Console,
) -> int:  # fmt: skip
    fresh = not run.log_path.exists()
    joint = JointConfig(**{f.name: settings[f.name] for f in fields(JointConfig)})
    learner = JointLearner(joint, source, device)
    if fresh:
        for note in getattr(source, "notes", []):
            run.log("note", message=note)
        console.print(describe(learner, source, settings))
    observer = Observer(run, learner, source, console)
    try:
        stopped = train(
            learner, run, limits, observer,
            report_images=config.report_images, checkpoint_seconds=checkpoint_seconds, console=console,
        )  # fmt: skip
    except Diverged as error:
        run.log("alarm", step=learner.step, message=str(error))
        console.print(f"forwardsr: {error}; the last checkpoint and the best weights are kept. Try --rate-g 2e-4 "
                      "--rate-d 1e-4, or --gamma 1, with another --out")  # fmt: skip
        return 1
    if stopped:
        console.print(f"saved at step {learner.step:,}; the same command goes on from here")
        return stopped
    finish(run, learner, source, observer, console)
    return 0


def validate(config: LearnConfig) -> None:
    """One clear line for every setting that cannot be."""
    if config.method not in METHODS:
        raise UserError(f"--method {config.method}: no such method; say {' or '.join(METHODS)}")
    if config.loss not in LOSSES:
        raise UserError(f"--loss {config.loss}: no such loss; say {', '.join(LOSSES)}")
    if config.heads not in ("coarse", "all", "none"):
        raise UserError(f"--heads {config.heads}: say coarse, all or none")
    try:
        pyramid_sides(config.resolution, config.base)
    except ValueError as error:
        raise UserError(f"--resolution {config.resolution}: {error}; say 16, 32, 64, 128 or 256") from None
    for name in ("width", "latent", "batch", "penalty_interval", "report_images"):
        if getattr(config, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} {getattr(config, name)}: must be at least 1")
    if config.batch < 2:
        raise UserError("--batch 1: batch normalisation needs at least 2 images")
    for name in ("rate_g", "rate_d", "ema_images"):
        if not (math.isfinite(getattr(config, name)) and getattr(config, name) > 0):
            raise UserError(f"--{name.replace('_', '-')} {getattr(config, name)}: must be positive")
    if not (math.isfinite(config.gamma) and config.gamma >= 0):
        raise UserError(f"--gamma {config.gamma}: must not be negative")
    for name in ("beta1", "beta2"):
        if not 0 <= getattr(config, name) < 1:
            raise UserError(f"--{name} {getattr(config, name)}: must be in [0, 1)")


def image_channels(config: LearnConfig) -> int:
    """1 or 3."""
    if config.channels not in (None, "1", "3"):
        raise UserError(f"--channels {config.channels}: images have 3 (colour) or 1 (grey)")
    return int(config.channels or 3)


def open_images_source(config: LearnConfig, console: Console) -> Source:
    """The source in image form, patch-form ones folded. Raises :class:`UserError`."""
    source = open_source(
        config.source, resolution=config.resolution, sides=pyramid_sides(config.resolution, config.base),
        channels=image_channels(config), fit=config.fit, skip_bad=config.skip_bad, console=console,
    )  # fmt: skip
    for note in getattr(source, "notes", []):
        console.print(f"note: {note}")
    if len(source.shapes[0]) == 2:
        source = FoldedSource(source, image_channels(config))
    sides = [shape[-1] for shape in source.shapes]
    try:
        if list(pyramid_sides(sides[-1], sides[0])) != sides:
            raise ValueError(f"sides {sides} do not double from level to level")
    except ValueError as error:
        raise UserError(f"{config.source}: the image learners need even sides that double: {error}") from None
    return source


def describe(learner: JointLearner, source: Source, settings: dict[str, Any]) -> str:
    """One line on what is about to be trained."""
    count = sum(p.numel() for p in learner.generator.parameters()), sum(p.numel() for p in learner.critic.parameters())
    size = f"{len(source):,} images" if isinstance(source, FiniteSource) else "fresh samples"
    return (
        f"{source.name}: {size} at {', '.join(map(str, settings['sides']))} px; generator {count[0]:,} and critic "
        f"{count[1]:,} weights; {settings['precision']} on {learner.device}"
    )


class Observer:
    """What happens at a report: samples of the same latents, the distance, the best weights, alarms. Pure of training."""

    def __init__(self, run: Run, learner: JointLearner, source: Source, console: Console) -> None:
        self.run, self.learner, self.source, self.console = run, learner, source, console
        self.latents = torch.randn(
            FIXED_LATENTS, learner.config.latent, generator=torch.Generator().manual_seed(LATENT_SEED)
        )
        self._reference: Reference | None = None
        self.last_step = -1

    @property
    def reference(self) -> Reference:
        """The real side of the distance, made once; the real pictures of the report with it."""
        if self._reference is None:
            channels = self.source.shapes[0][0]
            self._reference = Reference.from_source(self.source, PROBE, seed=0, channels=channels)
            real = self.source.draw(FIXED_LATENTS, torch.Generator().manual_seed(LATENT_SEED))
            self.save_grids("real", real)
        return self._reference

    def save_grids(self, name: str, pyramid: Pyramid, columns: int = FIXED_LATENTS // 2) -> None:
        """One picture a level under samples/."""
        for images in pyramid:
            save_png(grid(images, columns), self.run.path / "samples" / f"{name}-{images.shape[-1]:03d}.png")

    def best(self) -> dict[str, Any] | None:
        """The log's line of the best weights so far."""
        marked = [line for line in self.run.lines("distance") if line.get("best")]
        return marked[-1] if marked else None

    def __call__(self, elapsed: float) -> None:
        step, images = self.learner.step, self.learner.images
        if step == self.last_step:
            return
        self.last_step = step
        model = self.learner.shown()
        shown = draw_levels(model, self.latents)
        self.save_grids(f"{step:08d}", shown)
        generator = torch.Generator().manual_seed(LATENT_SEED + 1)
        distance = self.reference.compare(model.sample(self.reference.n, generator))
        score, best = distance.score(), self.best()
        is_best = math.isfinite(score) and (best is None or best["score"] is None or score < best["score"])
        metadata = network_metadata(model)
        self.run.save_weights("model.safetensors", model.state_dict(), metadata)
        if is_best:
            self.run.save_weights("best.safetensors", model.state_dict(), metadata)
            self.save_grids("best", shown)
            self.save_grids("walk", draw_levels(model, walks(self.latents)), STOPS)
        self.run.log(
            "distance", step=step, images=images, seconds=round(elapsed, 2), best=is_best, **distance.to_json()
        )
        self.console.print(
            f"{images:>9,} images  score {score:.3f}{' (best so far)' if is_best else ''}  raw "
            + " ".join(f"{side}:{value:.0f}" for side, value in zip(distance.sides, distance.raw))
        )
        for message in alarms(distance, None if best is None else best["score"], images):
            self.run.log("alarm", step=step, message=message)
            self.console.print(f"alarm: {message}")


def alarms(distance: Distance, best: float | None, images: int) -> list[str]:
    """What is wrong with the samples, if anything: from :data:`GRACE` images on, all generators being alike before."""
    if images < GRACE:
        return []
    found = [
        f"the {side} px samples have collapsed: two random ones agree to {value:.2f} (MS-SSIM; real ones to {real:.2f})"
        for side, value, real in zip(distance.sides, distance.diversity, distance.real_diversity)
        if value > COLLAPSED > real
    ]
    found += [
        f"the {side} px samples are few pictures over and over: each has another {value / real:.2f} times as near as real ones"
        for side, value, real in zip(distance.sides, distance.spacing, distance.real_spacing)
        if value < CROWDED * real
    ]
    if best is not None and distance.score() > best + FALLEN:
        found.append(f"the score has risen from {best:.2f} to {distance.score():.2f}; the best weights are kept")
    return found


def walks(latents: torch.Tensor) -> torch.Tensor:
    """Spherical interpolations from one fixed latent to the next: ``WALKS`` rows of ``STOPS``, one after the other."""
    rows = []
    for k in range(WALKS):
        a, b = latents[2 * k], latents[2 * k + 1]
        angle = torch.arccos(torch.nn.functional.cosine_similarity(a, b, dim=0))
        t = torch.linspace(0, 1, STOPS)[:, None]
        rows.append((torch.sin((1 - t) * angle) * a + torch.sin(t * angle) * b) / torch.sin(angle))
    return torch.cat(rows)


def finish(run: Run, learner: JointLearner, source: Source, observer: Observer, console: Console) -> None:
    """The final distance of the best weights, as a table and ``distance.json``, and the report."""
    start = time.monotonic()
    model = load_generator(run.path)
    reference = Reference.from_source(source, FINAL, seed=1, channels=source.shapes[0][0])
    distance = reference.compare(model.sample(reference.n, torch.Generator().manual_seed(LATENT_SEED + 2)))
    run.write_json("distance.json", distance.to_json())
    console.print(distance.table())
    page = write_report([run.path], run.path / "report.html")
    console.print(f"distance and report took {time.monotonic() - start:.0f} s")
    console.print(f"samples, curves and distances: {page}")
