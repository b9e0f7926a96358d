"""A plain DCGAN at equal wall time: the peer that `learn --method joint` is held against.

The networks are torchgan's (``pip install --no-deps torchgan==0.1.0``), trained by the recipe of Radford et al. (2016) as it
ships it: minimax loss with logits, non-saturating for the generator, Adam(2e-4, 0.5, 0.999), batches of 64, images in [-1, 1].
``--step-channels 32``, the default here, gives them less than half the multiply-adds a picture of the joint learner's networks, so
that they see about 1.3 times as many pictures in the same time; torchgan's own default of 64 is four times as slow. They are given
channels-last memory, as ours. A DCGAN draws the finest level alone, so its coarser levels are average-pooled from that.

    python benchmarks/dcgan.py SOURCE --budget 40m --out dcgan.json

Prints the distance's table and writes it as JSON, with a picture of samples beside.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
import time
import types
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional as F

from forwardsr.data.open import open_source
from forwardsr.data.pyramid import Pyramid, pool
from forwardsr.data.source import Epochs
from forwardsr.learn.budget import seconds
from forwardsr.measure.distance import Reference
from forwardsr.report.figures import pyramid_strip, save_png


@dataclass
class Settings:
    """What to train on, and how long."""

    source: tyro.conf.Positional[str]
    resolution: int = 64
    budget: str = "40m"
    step_channels: int = 32
    seed: int = 0
    n: int = 2048
    out: Path = Path("dcgan.json")


def torchgan_models() -> types.ModuleType:
    """torchgan's DCGAN, without the rest of torchgan (which imports torchvision)."""
    spec = importlib.util.find_spec("torchgan")
    if spec is None or spec.submodule_search_locations is None:
        sys.exit("dcgan: torchgan is missing; pip install --no-deps torchgan==0.1.0")
    shell = types.ModuleType("torchgan")
    shell.__path__ = list(spec.submodule_search_locations)
    sys.modules["torchgan"] = shell
    return importlib.import_module("torchgan.models.dcgan")


def main(settings: Settings) -> None:
    """Train, measure, write."""
    source = open_source(settings.source, resolution=settings.resolution)
    sides = [shape[-1] for shape in source.shapes]
    torch.manual_seed(settings.seed)  # torchgan's networks draw their weights from the global state
    models = torchgan_models()
    generator = models.DCGANGenerator(out_size=settings.resolution, step_channels=settings.step_channels)
    critic = models.DCGANDiscriminator(in_size=settings.resolution, step_channels=settings.step_channels)
    for network in (generator, critic):
        network.to(memory_format=torch.channels_last)
    optimizers = [torch.optim.Adam(net.parameters(), 2e-4, (0.5, 0.999), fused=True) for net in (generator, critic)]
    data = Epochs(source, 64, settings.seed, flip=True)
    rng = torch.Generator().manual_seed(settings.seed)
    limit, start, steps = seconds(settings.budget), time.monotonic(), 0
    while time.monotonic() - start < limit:
        step(generator, critic, optimizers, data.next()[-1], rng)
        steps += 1
        if steps % 200 == 0:
            print(f"{64 * steps:,} images, {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
    elapsed = time.monotonic() - start

    generator.eval()
    reference = Reference.from_source(source, settings.n, seed=1)
    images = sample(generator, reference.n, torch.Generator().manual_seed(1))
    distance = reference.compare(pool(images, sides))
    Console().print(distance.table())
    record = {"peer": "torchgan 0.1.0 DCGAN", "step_channels": settings.step_channels, "steps": steps, "images": 64 * steps,
              "seconds": round(elapsed, 1), "threads": torch.get_num_threads(), **distance.to_json()}  # fmt: skip
    settings.out.write_text(json.dumps(record, indent=2) + "\n")
    strip: Pyramid = pool(images[:16], sides)
    save_png(pyramid_strip(strip, 16), settings.out.with_suffix(".png"))


def step(
    generator: nn.Module, critic: nn.Module, optimizers: list[torch.optim.Adam], real: Tensor, rng: torch.Generator
) -> None:
    """One alternating step: the critic, then the generator."""
    real = real.contiguous(memory_format=torch.channels_last)
    fake = generator(torch.randn(len(real), 100, generator=rng))
    on_real, on_fake = critic(real), critic(fake.detach())
    loss = F.softplus(-on_real).mean() + F.softplus(on_fake).mean()
    optimizers[1].zero_grad()
    loss.backward()
    optimizers[1].step()
    loss = F.softplus(-critic(fake)).mean()
    optimizers[0].zero_grad()
    loss.backward()
    optimizers[0].step()


@torch.no_grad()
def sample(generator: nn.Module, n: int, rng: torch.Generator) -> Tensor:
    """``n`` images, 256 at a time."""
    return torch.cat([generator(z) for z in torch.randn(n, 100, generator=rng).split(256)])


if __name__ == "__main__":
    main(tyro.cli(Settings))
