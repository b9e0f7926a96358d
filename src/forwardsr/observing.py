"""What happens at a report of an image learner: samples, distance, weights and snapshots, the best of them, alarms.

Nothing here touches the training. Levels that no stage has trained yet are blank in the pictures and left out of the distance; the
best weights are those of the present stage, since a score of fewer levels does not compare.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from rich.console import Console

from forwardsr.data.coarsest import coarsest
from forwardsr.data.pyramid import Pyramid
from forwardsr.generators import critic_metadata, generator_metadata
from forwardsr.learn.joint import JointLearner, draw_levels
from forwardsr.measure.distance import Distance, Reference
from forwardsr.model.deconv_generator import DeconvGenerator
from forwardsr.report.figures import grid, save_png
from forwardsr.run import Run

FIXED_LATENTS = 32  # shown at every report, in two rows
LATENT_SEED = 20210604
WALKS, STOPS = 4, 16  # latent interpolations: rows and columns
PROBE = 1024  # images a distance is taken of
COLLAPSED = 0.9  # MS-SSIM of random pairs: above it they are one picture
CROWDED = 0.5  # distance to the nearest other sample, of the real one: below it they repeat themselves
GRACE = 20_000  # images seen in a stage before samples are expected to differ
FALLEN = 1.0  # a rise of the score (a logarithm of distance over floor) above the best, worth an alarm


class Observer:
    """Called at every report with the seconds of training so far."""

    def __init__(self, run: Run, learner: JointLearner, console: Console) -> None:
        self.run, self.learner, self.source, self.console = run, learner, learner.source, console
        self.latents = torch.randn(
            FIXED_LATENTS, learner.generator.latent_dim, generator=torch.Generator().manual_seed(LATENT_SEED)
        )
        self._reference: Reference | None = None
        self.last_step = -1

    @property
    def reference(self) -> Reference:
        """The real side of the distance at the present stage's levels, made once a stage; the report's real pictures with it."""
        levels = self.learner.stage.levels
        if self._reference is None or len(self._reference.shapes) != levels:
            channels = self.source.shapes[0][0]
            self._reference = Reference.from_source(coarsest(self.source, levels), PROBE, seed=0, channels=channels)
            real = self.source.draw(FIXED_LATENTS, torch.Generator().manual_seed(LATENT_SEED))
            self.save_grids("real", real)
        return self._reference

    def save_grids(self, name: str, pyramid: Pyramid, columns: int = FIXED_LATENTS // 2) -> None:
        """One picture a level under samples/, blank where ``pyramid`` has no such level."""
        levels = list(pyramid)
        for channels, side, _ in self.source.shapes[len(levels) :]:
            levels.append(torch.zeros(pyramid.n, channels, side, side))
        for images in levels:
            save_png(grid(images, columns), self.run.path / "samples" / f"{name}-{images.shape[-1]:03d}.png")

    def best(self) -> dict[str, Any] | None:
        """The log's line of the present stage's best weights so far."""
        stage = self.learner.index + 1
        marked = [line for line in self.run.lines("distance") if line.get("best") and line.get("stage", 1) == stage]
        return marked[-1] if marked else None

    def begin(self) -> None:
        """Before the first step: the initialisation as a snapshot."""
        self._snapshot(self.learner.shown())

    def stage_begins(self, elapsed: float) -> None:
        """Log that a stage has begun; before one that changes frozen layers, keep what they were as ``before.safetensors``."""
        learner = self.learner
        self.run.log(
            "switch", stage=learner.index + 1, of=len(learner.stages), name=learner.stage.name, step=learner.step,
            images=learner.images, seconds=round(elapsed, 2),
        )  # fmt: skip
        self.console.print(f"{learner.images:>9,} images  now {learner.stage.name}")
        if learner.corrects:
            model = learner.average  # what the stage starts from, with its frozen moments
            self.run.save_weights("before.safetensors", model.state_dict(), generator_metadata(model))

    def _snapshot(self, model: DeconvGenerator) -> None:
        learner = self.learner
        at = {"images": str(learner.images), "step": str(learner.step), "stage": str(learner.index + 1)}
        self.run.save_snapshot(learner.images, model.state_dict(), generator_metadata(model) | at)

    def __call__(self, elapsed: float) -> None:
        learner, levels = self.learner, self.learner.stage.levels
        step, images = learner.step, learner.images
        if step == self.last_step:
            return
        self.last_step = step
        model = learner.shown()
        shown = draw_levels(model, self.latents, levels)
        self.save_grids(f"{step:08d}", shown)
        generator = torch.Generator().manual_seed(LATENT_SEED + 1)
        distance = self.reference.compare(model.sample(self.reference.n, generator, levels=levels))
        score, best = distance.score(), self.best()
        is_best = math.isfinite(score) and (best is None or best["score"] is None or score < best["score"])
        metadata = generator_metadata(model)
        self.run.save_weights("model.safetensors", model.state_dict(), metadata)
        self.run.save_weights("critic.safetensors", learner.critic.state_dict(), critic_metadata(learner.critic))
        self._snapshot(model)
        if is_best:
            self.run.save_weights("best.safetensors", model.state_dict(), metadata)
            self.save_grids("best", shown)
            self.save_grids("walk", draw_levels(model, walks(self.latents), levels), STOPS)
        self.run.log(
            "distance", step=step, images=images, seconds=round(elapsed, 2), stage=learner.index + 1, best=is_best,
            **distance.to_json(),
        )  # fmt: skip
        self.console.print(
            f"{images:>9,} images  score {score:.3f}{' (best so far)' if is_best else ''}  raw "
            + " ".join(f"{side}:{value:.0f}" for side, value in zip(distance.sides, distance.raw))
        )
        in_stage = images - learner.began * learner.config.batch
        for message in alarms(distance, None if best is None else best["score"], in_stage):
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
