"""``fit``: a source, a learner, a Run and its observations put together. This is what the command line calls."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console

from forwardsr.data.arrays import is_array_folder
from forwardsr.data.coarsest import coarsest
from forwardsr.data.folded import FoldedSource
from forwardsr.data.open import NAMES, open_source
from forwardsr.data.source import FiniteSource, Source
from forwardsr.device import resolve_device, resolve_precision
from forwardsr.errors import UserError
from forwardsr.generators import copy_start, load_generator, start_sizes
from forwardsr.learn.adversarial import LOSSES
from forwardsr.learn.budget import Budget, seconds
from forwardsr.learn.joint import JointConfig, JointLearner
from forwardsr.learn.loop import Diverged, train
from forwardsr.learn.minmax import MinmaxConfig
from forwardsr.learn.schedules import (
    SCHEDULES,
    ScheduleConfig,
    ScheduledLearner,
    matching_width,
    schedule,
    stage_ends,
)
from forwardsr.measure.distance import Reference
from forwardsr.model.deconv_generator import DeconvGenerator, pyramid_sides
from forwardsr.observing import LATENT_SEED, Observer
from forwardsr.parallel import current, team
from forwardsr.report.page import write_report
from forwardsr.run import Run

METHODS = ("joint", *SCHEDULES, "minmax")
FINAL = 2048  # images the final distance is taken of
DEFAULT_BUDGET = "20m"

# Settings that do not shape the result, or only how long it is pursued: a run may go on with other ones.
FREE = frozenset({"budget", "steps", "images", "report_images", "checkpoint", "device"})


@dataclass(frozen=True)
class LearnConfig(JointConfig, ScheduleConfig, MinmaxConfig):
    """All settings of ``learn``: those of the source and the run here, those of each method inherited."""

    source: str = "photos"
    """An image folder or .zip, pyramid arrays (.npz or a folder of .npy), a planted target, or a name: photos, digits."""
    method: str = "joint"
    """The learner: joint, layerwise, last-layer, backward-correction (of images: Figures 1, 7, 8) or minmax (Algorithm 4)."""
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
    init: str | None = None
    """joint, layerwise, backward-correction: a run, of the same sizes, whose generator this one starts from; or one of minmax."""


def fit(config: LearnConfig, out: Path, console: Console, command: str = "") -> int:
    """Learn ``config.source`` into the Run at ``out`` (or go on there); returns the exit code.

    Raises :class:`UserError` for bad settings or input. Returns 0, or 128 + a signal's number after saving.
    """
    config = as_made(config, out)
    refuse_unused(config)
    if config.method == "minmax":
        if team().size > 1 and (config.solver != "efficient" or is_images(config.source)):
            console.print("note: of minmax only --solver efficient on planted targets and arrays is divided among processes; "
                          "one learns, the others wait")  # fmt: skip
        from forwardsr.learning_minmax import learn_theorem

        if is_images(config.source):
            return fit_photographs(config, out, console, command)
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
    team().check(config.batch, device)
    others = {f.name for f in fields(MinmaxConfig)}
    config = as_started(config, out)
    settings = {key: value for key, value in asdict(config).items() if key not in others} | {"command": command}
    if config.precision == "auto":
        settings["precision"] = None
    made = Run.check(out, settings, FREE)
    start = Path(config.init) if config.init is not None and not (out / "checkpoint.pt").exists() else None
    if start is not None:
        Run.read(start)
    source = open_images_source(config, console)
    settings["precision"] = settled_precision(config, made, device)
    settings["sides"] = [shape[-1] for shape in source.shapes]
    if config.method == "last-layer":
        settings["random_width"] = config.random_width or matching_width(
            settings["sides"], config.width, config.latent, source.shapes[0][0]
        )
    learner = make_learner(settings, source, device, limits)
    if start is not None:
        copy_start(start, learner.generator, settings["precision"])
        learner.average.load_state_dict(learner.generator.state_dict())
    run = Run.create(out, settings, FREE)
    try:
        return _learn(run, learner, config, limits, checkpoint_seconds, console)
    finally:
        run.close()


def settled_precision(config: LearnConfig, made: Mapping[str, Any], device: torch.device) -> str:
    """A run goes on with the precision it was begun with, whatever would be faster here."""
    found: str = made.get("precision") or resolve_precision(config.precision, device)
    return found


def as_made(config: LearnConfig, out: Path) -> LearnConfig:
    """``config`` with what it leaves open (``None``) as the run at ``out``, if there is one, was made with."""
    made = Run.check(out, {})
    if made.get("method") != config.method:
        return config
    left = {f.name for f in fields(config) if getattr(config, f.name) is None} - FREE
    return replace(config, **{name: made[name] for name in left if made.get(name) is not None})


def as_started(config: LearnConfig, out: Path) -> LearnConfig:
    """``config`` with the latents of the ``minmax`` run that it starts from. Raises :class:`UserError` where it asks for others."""
    if config.init is None:
        return config
    made, plain = Run.check(out, {}), LearnConfig()
    open_ = [name for name in ("latent", "innovations") if getattr(config, name) == getattr(plain, name)]
    if made:
        return replace(config, **{name: made[name] for name in open_ if name in made})
    found = start_sizes(Path(config.init))
    for name, value in found.items():
        if name not in open_ and getattr(config, name) != value:
            raise UserError(
                f"--{name} {getattr(config, name)}: {config.init} has {value}, and a start from it as many; leave it out"
            )
    return replace(config, **found)


def refuse_unused(config: LearnConfig) -> None:
    """One clear line for a setting that the method has no use for, rather than a run without it."""
    minmax, images = {f.name for f in fields(MinmaxConfig)}, {"patch", "innovation", "level1"}
    if config.method != "minmax":
        unused = minmax
    else:
        loop = {"budget", "steps", "images", "report_images", "checkpoint", "init"}
        unused = {f.name for base in (JointConfig, ScheduleConfig) for f in fields(base)} - {"seed"} | loop
        unused |= minmax - images - {"solver"} if is_images(config.source) else images | {"resolution", "base", "fit"}
        unused -= {"precision"} if is_images(config.source) and config.level1 == "sliced" else set()
        if config.device not in ("auto", "cpu"):
            raise UserError(f"--device {config.device}: minmax computes on the CPU; leave it out")
    plain = LearnConfig()
    for name in sorted(unused):
        if getattr(config, name) != getattr(plain, name):
            of = f"{config.method} of {config.source}" if config.method == "minmax" else config.method
            if name == "precision" and is_images(config.source):
                of = f"--level1 {config.level1}"
            raise UserError(f"--{name.replace('_', '-')}: {of} has no use for it; leave it out")


def is_images(source: str) -> bool:
    """Whether ``source`` names images (a folder or .zip of them, a named set), not patches (a planted target, arrays)."""
    path = Path(source).expanduser()
    return source in NAMES or not (path.suffix.lower() in (".safetensors", ".npz") or is_array_folder(path))


def fit_photographs(config: LearnConfig, out: Path, console: Console, command: str) -> int:
    """``minmax`` on images (§6): see :mod:`forwardsr.learning_photographs`."""
    from forwardsr.learning_photographs import learn_images

    validate(config)
    if config.solver != "efficient":
        raise UserError(f"--solver {config.solver}: photographs are learned by efficient; leave it out")
    kept = (
        "method",
        "source",
        "resolution",
        "base",
        "channels",
        "fit",
        "skip_bad",
        "seed",
        "patch",
        "innovation",
        "level1",
    )
    settings = {key: getattr(config, key) for key in kept} | {"command": command}
    settings["precision"] = None if config.precision == "auto" else config.precision
    made = Run.check(out, settings, FREE)
    if config.level1 != "sliced" or ("method" in made and "precision" not in made):  # or a run older than the setting
        settings["precision"] = None
    else:
        settings["precision"] = settled_precision(config, made, torch.device("cpu"))
    return learn_images(open_images_source(config, console), settings, FREE, out, console)


def make_learner(
    settings: Mapping[str, Any], source: Source, device: torch.device, limits: Budget
) -> JointLearner:  # fmt: skip
    """The learner of ``settings["method"]``. Raises :class:`UserError` where its stages do not fit the budget."""
    config = JointConfig(**{f.name: settings[f.name] for f in fields(JointConfig)})
    started = settings["init"] is not None
    if settings["method"] == "joint":
        return JointLearner(config, source, device, started)
    stages = schedule(settings["method"], settings["sides"])
    ends = stage_ends(settings["shares"], stages, limits, config.batch)
    return ScheduledLearner(
        config, source, device, stages, ends, settings["random_width"], settings["correction_rate"], started
    )


def _learn(
    run: Run, learner: JointLearner, config: LearnConfig, limits: Budget, checkpoint_seconds: float, console: Console
) -> int:
    fresh, source = not run.log_path.exists(), learner.source
    observer = Observer(run, learner, console)
    if not (run.path / "checkpoint.pt").exists():
        observer.begin()
    if fresh:
        for note in getattr(source, "notes", []):
            run.log("note", message=note)
        console.print(describe(learner, run.config))
    try:
        with team().call(assist, config, run.config, limits) as world:
            learner.join(world)
            stopped = train(
                learner, run, limits, observer, observer.stage_begins, report_images=config.report_images,
                checkpoint_seconds=checkpoint_seconds, console=console, world=world,
            )  # fmt: skip
    except Diverged as error:
        run.log("alarm", step=learner.step, message=str(error))
        console.print(f"forwardsr: {error}; the last checkpoint and the best weights are kept. Try --rate-g 2e-4 "
                      "--rate-d 1e-4, or --gamma 1, with another --out")  # fmt: skip
        return 1
    if stopped:
        console.print(f"saved at step {learner.step:,}; the same command goes on from here")
        return stopped
    finish(run, learner, console)
    return 0


def assist(config: LearnConfig, settings: dict[str, Any], limits: Budget) -> None:
    """What the other processes do while rank 0 is in :func:`fit` (:mod:`forwardsr.parallel`): their part of every step."""
    world, quiet = current(), Console(quiet=True)
    learner = make_learner(settings, open_images_source(config, quiet), resolve_device(config.device), limits)
    learner.join(world)

    def ignore(_seconds: float) -> None:
        """Rank 0 looks at it."""

    with contextlib.suppress(Diverged):
        train(learner, None, limits, ignore, ignore, report_images=config.report_images, checkpoint_seconds=math.inf,
              console=quiet, world=world)  # fmt: skip


def validate(config: LearnConfig) -> None:
    """One clear line for every setting that cannot be."""
    if config.method not in METHODS:
        raise UserError(f"--method {config.method}: no such method; say {', '.join(METHODS)}")
    if config.shares is not None and config.method in ("joint", "last-layer"):
        raise UserError(f"--shares: {config.method} has a single stage; leave it out")
    if config.random_width is not None and (config.method != "last-layer" or config.random_width < 1):
        raise UserError(f"--random-width {config.random_width}: at least 1, and for --method last-layer only")
    if config.innovations is not None and (config.innovations < 0 or config.method == "last-layer"):
        raise UserError(f"--innovations {config.innovations}: at least 0, and not for --method last-layer")
    if config.init is not None and config.method == "last-layer":
        raise UserError("--init: last-layer starts from random layers; leave it out")
    if config.loss not in LOSSES:
        raise UserError(f"--loss {config.loss}: no such loss; say {', '.join(LOSSES)}")
    if config.heads not in ("coarse", "all", "none"):
        raise UserError(f"--heads {config.heads}: say coarse, all or none")
    try:
        pyramid_sides(config.resolution, config.base)
    except ValueError as error:
        remedy = "say 16, 32, 64, 128 or 256, or --base 12 for 24, 48 or 96"
        raise UserError(f"--resolution {config.resolution}: {error}; {remedy}") from None
    for name in ("width", "latent", "batch", "penalty_interval", "report_images"):
        if getattr(config, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} {getattr(config, name)}: must be at least 1")
    if config.batch < 2:
        raise UserError("--batch 1: batch normalisation needs at least 2 images")
    for name in ("rate_g", "rate_d", "ema_images", "correction_rate"):
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


def describe(learner: JointLearner, settings: Mapping[str, Any]) -> str:
    """One line on what is about to be trained."""
    source = learner.source
    count = sum(p.numel() for p in learner.generator.parameters()), sum(p.numel() for p in learner.critic.parameters())
    size = f"{len(source):,} images" if isinstance(source, FiniteSource) else "fresh samples"
    return (
        f"{source.name}: {size} at {', '.join(map(str, settings['sides']))} px; generator {count[0]:,} and critic "
        f"{count[1]:,} weights; {settings['precision']} on {learner.device}"
    )


def finish(run: Run, learner: JointLearner, console: Console) -> None:
    """The final distance of the best weights, as a table and ``distance.json``, and the report."""
    start = time.monotonic()
    levels, source = learner.stage.levels, learner.source
    if learner.index + 1 < len(learner.stages):
        which = f"stage {learner.index + 1} of {len(learner.stages)} ({learner.stage.name})"
        message = f"the budget ended at {which}; a larger one goes on"
        run.log("note", message=message)
        console.print(f"note: {message}")
    model = load_generator(run.path)
    assert isinstance(model, DeconvGenerator)
    reference = Reference.from_source(coarsest(source, levels), FINAL, seed=1, channels=source.shapes[0][0])
    sampled = model.sample(reference.n, torch.Generator().manual_seed(LATENT_SEED + 2), levels=levels)
    distance = reference.compare(sampled)
    run.write_json("distance.json", distance.to_json())
    console.print(distance.table())
    page = write_report([run.path], run.path / "report.html")
    console.print(f"distance and report took {time.monotonic() - start:.0f} s")
    console.print(f"samples, curves and distances: {page}")
