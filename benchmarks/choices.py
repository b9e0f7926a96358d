"""The measurements behind the joint learner's defaults: losses, gradient penalty, rates, heads, at equal images.

Every candidate trains the same networks on the same images from the same seed; the table gives the score (log of distance over
noise floor, mean over levels and forms; lower is better), the raw distance by level, and the speed. ``hinge`` and ``wgan-gp``
(Gulrajani et al. 2017: the penalty ``(|grad| - 1)^2`` on interpolates; weight 10) cannot use the one-pass step; they are trained
by the usual two passes here, to be compared at equal images.

    python benchmarks/choices.py SOURCE [--resolution 32] [--images 16000] [--out choices.json]

The same command again goes on with the candidates that the file lacks.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import tyro
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

from forwardsr.data.open import open_source
from forwardsr.learn.adversarial import average, gradient_penalty
from forwardsr.learn.joint import JointConfig, JointLearner
from forwardsr.measure.distance import Reference

BEST = JointConfig()
CANDIDATES: dict[str, JointConfig] = {
    "default": BEST,
    "non-saturating": replace(BEST, loss="non-saturating"),
    "wasserstein + R1": replace(BEST, loss="wasserstein"),
    "hinge": replace(BEST, loss="hinge"),
    "wgan-gp": replace(BEST, loss="wgan-gp"),
    "gamma 0.1": replace(BEST, gamma=0.1),
    "gamma 10": replace(BEST, gamma=10.0),
    "momentum 0.5": replace(BEST, beta1=0.5),
    "equal rates": replace(BEST, rate_d=BEST.rate_g),
    "batch 32": replace(BEST, batch=32),
    "a logit at every scale": replace(BEST, heads="all"),
    "joint logit alone": replace(BEST, heads="none"),
}


@dataclass
class Settings:
    """What to train on, and how far."""

    source: tyro.conf.Positional[str]
    resolution: int = 32
    images: int = 16_000
    only: tuple[str, ...] = ()
    """Candidates by name; all where empty."""
    seed: int = 0
    out: Path = Path("choices.json")


class TwoPassLearner(JointLearner):
    """Critic and generator in turn, for losses that the one-pass step cannot take."""

    def advance(self) -> dict[str, Tensor]:
        """One alternating step."""
        config = self.config
        real = self.data.next()
        fake = self.generator(torch.randn(config.batch, config.latent, generator=self.rng))
        detached = [x.detach() for x in fake]
        on_real, on_fake = self.critic(real), self.critic(detached)
        if config.loss == "hinge":
            loss_d = (F.relu(1 - on_real) + F.relu(1 + on_fake)).mean(1).sum()
            if self.step % config.penalty_interval == 0:
                loss_d = loss_d + config.gamma * config.penalty_interval * gradient_penalty(self.critic, real, self.rng)
        else:
            t = torch.rand(config.batch, 1, 1, 1, generator=self.rng)
            between = [(t * a + (1 - t) * b).requires_grad_() for a, b in zip(real, detached)]
            loss_d = (on_fake - on_real).mean(1).sum() + 1e-3 * on_real.square().mean(1).sum()
            for logit in self.critic(between):
                slopes = torch.autograd.grad(logit.sum(), between, create_graph=True, allow_unused=True)
                norm = sum(g.square().sum((1, 2, 3)) for g in slopes if g is not None)
                loss_d = loss_d + 10 * ((norm + 1e-12).sqrt() - 1).square().mean()  # type: ignore[operator]
        self.optimizer_d.zero_grad()
        loss_d.backward()
        self.optimizer_d.step()
        self.optimizer_g.zero_grad()
        (-self.critic(fake)).mean(1).sum().backward()
        self.optimizer_g.step()
        self.step += 1
        decay = 0.5 ** (config.batch / min(config.ema_images, 0.05 * self.images))
        average(list(self.average.parameters()), list(self.generator.parameters()), decay)
        return {"loss_d": loss_d.detach()}


def main(settings: Settings) -> None:
    """Train every candidate that ``out`` does not hold yet, and print the table."""
    source = open_source(settings.source, resolution=settings.resolution)
    records: list[dict[str, Any]] = json.loads(settings.out.read_text()) if settings.out.exists() else []
    known = {record["candidate"] for record in records}
    reference = Reference.from_source(source, 1024, seed=1) if known < set(CANDIDATES) else None
    for name, config in CANDIDATES.items():
        if reference is None or name in known or (settings.only and name not in settings.only):
            continue
        kind = TwoPassLearner if config.loss in ("hinge", "wgan-gp") else JointLearner
        learner = kind(replace(config, seed=settings.seed, precision="float32"), source, torch.device("cpu"))
        start = time.perf_counter()
        while learner.images < settings.images:
            learner.advance()
        speed = learner.images / (time.perf_counter() - start)
        distance = reference.compare(learner.shown().sample(reference.n, torch.Generator().manual_seed(2)))
        print(name, f"{distance.score():.3f}", file=sys.stderr, flush=True)
        records.append({"candidate": name, "images_per_second": speed, **distance.to_json()})
        settings.out.write_text(json.dumps(records, indent=2) + "\n")
    sides = [shape[-1] for shape in source.shapes]
    table = Table("candidate", "score", *(f"raw {side} px" for side in sides), "MS-SSIM", "images/s", box=box.MARKDOWN)
    for record in records:
        raw = [f"{value:.0f}" for value in record["raw"]]
        diversity, speed = f"{record['diversity'][-1]:.3f}", f"{record['images_per_second']:.0f}"
        table.add_row(record["candidate"], f"{record['score']:.2f}", *raw, diversity, speed)
    Console(width=130).print(table)


if __name__ == "__main__":
    main(tyro.cli(Settings))
