"""Image training: the distance from real pictures after equal time, ours against the four peers.

All learn the built-in photographs (12,000 crops) at 32 px with the networks, widths and updates of the case before, in batches of 16
(lightweight-gan: 4) without augmentation, each alone for the same processor time (on a GPU, wall time) from its own random start, the
drawing of real pictures included. *Error* is the distance of 2,048 generated pictures from as many real ones, in noise floors
(geometric mean over levels and both forms of sliced Wasserstein distance): 1 is indistinguishable. The coarse levels of a peer
that has none are its pictures pooled; where a peer has averaged weights, those or the trained ones are taken, whichever are nearer;
ours are averaged, with batch norms' moments of their own. *n* is the number of real pictures seen. One training a side, so no spread;
of lightweight-gan it says no more than that a step costs seconds here.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from cases.record import OURS, Record
from cases.training import BATCH, SLOW, WIDTHS
from cases.training_peers import PLAIN, SIDES, Training
from forwardsr.data.open import open_source
from forwardsr.data.pyramid import Pyramid, pool
from forwardsr.data.source import Epochs, FiniteSource
from forwardsr.device import resolve_device
from forwardsr.learn.memory import keep_freed_memory
from forwardsr.measure.distance import Reference

TITLE = "Image training: distance at equal time"
SIDE = 32
SECONDS, SECONDS_QUICK = 150.0, 5.0
DRAWN = 2048
GOAL = 1.0


class Feed:
    """Real pictures for any side: a source, and batches of its largest size one after another."""

    def __init__(self, source: FiniteSource) -> None:
        self.source, self.name, self.shapes = source, source.name, source.shapes
        self.batches = Epochs(source, BATCH, seed=0, flip=False)
        self.pyramid = source.take(torch.arange(BATCH))

    def __len__(self) -> int:
        return len(self.source)

    def take(self, index: Tensor, levels: int | None = None) -> Pyramid:
        """Pictures by number."""
        return self.source.take(index, levels)

    def draw(self, n: int, generator: torch.Generator, levels: int | None = None) -> Pyramid:
        """Random ones."""
        return self.source.draw(n, generator, levels)

    def finest(self, device: torch.device) -> Tensor:
        """The next batch."""
        return self.batches.next()[-1].to(device)


def run(full: bool) -> Iterator[Record]:
    """Ours, then every peer that is installed."""
    keep_freed_memory()
    device, limit = resolve_device("auto"), SECONDS if full else SECONDS_QUICK
    source = open_source("photos", resolution=SIDE)
    assert isinstance(source, FiniteSource)
    reference = Reference.from_source(source, DRAWN, seed=1)
    ours: float | None = None
    for name, build in SIDES.items():
        if name == PLAIN or (name == SLOW and not full):
            continue
        torch.manual_seed(0)  # the peers draw from the global state
        try:
            training = build(Feed(source), WIDTHS[SIDE][name], device)  # type: ignore[arg-type]
        except ImportError as error:
            print(f"  {name}: left out ({error})", flush=True)
            continue
        steps, seconds = train(training, limit, device)
        shown = [training.averaged()] if training.averaged else []
        if name != OURS:
            shown.append(training.generator)
        found = min(math.exp(reference.compare(sample(each, training.latent, device)).score()) for each in shown)
        ours = found if name == OURS else ours
        ratio = {} if name == OURS or ours is None else {"error": ours / found}
        yield Record(
            "pictures", f"photos, {SIDE} px, {device.type}", name, training.version, steps * training.seen, found, seconds,
            None, 1, ratio, dict.fromkeys(ratio, GOAL),
        )  # fmt: skip


def train(training: Training, limit: float, device: torch.device) -> tuple[int, float]:
    """Steps until the time is over, and the time."""
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    start, steps = clock(), 0
    while clock() - start < limit:
        training.step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        steps += 1
    return steps, clock() - start


@torch.no_grad()
def sample(generator: nn.Module, latent: int, device: torch.device) -> Pyramid:
    """``DRAWN`` pictures at all sizes, in evaluation mode."""
    generator.eval()
    rng, sides = torch.Generator().manual_seed(2), [8, 16, 32]
    parts = []
    for z in torch.randn(DRAWN, latent, generator=rng).split(64):
        found = generator(z.to(device))
        levels = pool(found, sides) if isinstance(found, Tensor) else [x for x in found if x.shape[-1] in sides]
        parts.append(Pyramid([x.float().cpu() for x in levels]))
    return Pyramid.cat(parts)
