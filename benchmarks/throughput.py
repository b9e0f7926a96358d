"""Images a second of the joint learner against the same networks trained plainly: float32, channels first, two passes.

The plain side makes the same update mathematics cost what it costs in the usual loop: the critic's step on real and detached
generated images, then the generator's step through the critic again. Both sides have the same networks, batch, optimizers,
weight average and gradient-penalty interval. They are timed step by step in alternation in one process; the ratio is what counts.

    python benchmarks/throughput.py [--resolution 64] [--batch 16 64] [--threads 1 2] [--rounds 5] [--out throughput.json]
"""

from __future__ import annotations

import json
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from torch import Tensor, nn

from forwardsr.data.pyramid import Pyramid, pool
from forwardsr.device import resolve_device, resolve_precision
from forwardsr.learn.adversarial import LOSSES, average, gradient_penalty
from forwardsr.learn.joint import JointConfig, JointLearner
from forwardsr.learn.memory import keep_freed_memory
from forwardsr.model.convolution import Convolution, Deconvolution
from forwardsr.model.critic import SLOPE, LeakyReLU
from forwardsr.model.deconv_generator import pyramid_sides


@dataclass
class Settings:
    """Sizes of the comparison."""

    resolution: int = 64
    batch: tuple[int, ...] = (JointConfig.batch,)
    threads: tuple[int, ...] = (torch.get_num_threads(),)
    rounds: int = 5
    steps: int = JointConfig.penalty_interval
    device: str = "auto"
    out: Path | None = None


class Noise:
    """A source whose data path costs nothing: the same random pictures every time."""

    name = "noise"

    def __init__(self, resolution: int, batch: int) -> None:
        sides = pyramid_sides(resolution)
        self.shapes = tuple((3, side, side) for side in sides)
        self.pyramid = pool(torch.rand(batch, 3, resolution, resolution) * 2 - 1, sides)

    def draw(self, n: int, generator: torch.Generator, levels: int | None = None) -> Pyramid:
        """The same ``n`` pictures."""
        return self.pyramid

    def finest(self, device: torch.device) -> Tensor:
        """They in their largest size, on ``device``."""
        if self.pyramid[-1].device != device:
            self.pyramid = self.pyramid.map(device=device)
        return self.pyramid[-1]


class PlainLearner(JointLearner):
    """The usual loop: PyTorch's own layers, float32, channels first, critic and generator in turn."""

    def __init__(self, config: JointConfig, source: Noise, device: torch.device) -> None:
        super().__init__(config, source, device)
        for network in (self.generator, self.critic, self.average):
            plain_layers(network)
            network.to(memory_format=torch.contiguous_format)
        # So that nothing stays channels last: the first hidden layer hands on a contiguous tensor.
        self.generator.layers[0].register_forward_hook(lambda _m, _i, output: output.contiguous())

    def advance(self) -> dict[str, torch.Tensor]:
        """One alternating step."""
        config, loss = self.config, LOSSES[self.config.loss]
        real = self.data.next().map(device=self.device)
        fake = self.generator(torch.randn(config.batch, config.latent, generator=self.rng).to(self.device))
        detached = [x.detach().contiguous() for x in fake]
        loss_d, _ = loss(self.critic(real), self.critic(detached))
        total = (self.weights * loss_d.mean(1)).sum()
        if config.gamma > 0 and self.step % config.penalty_interval == 0:
            penalty = gradient_penalty(self.critic, real, self.rng) + gradient_penalty(self.critic, fake, self.rng)
            total = total + config.gamma * config.penalty_interval * penalty
        self.optimizer_d.zero_grad()
        total.backward()
        self.optimizer_d.step()
        self.critic.requires_grad_(False)
        with torch.no_grad():
            on_real = self.critic(real)
        _, loss_g = loss(on_real, self.critic(list(fake)))
        self.optimizer_g.zero_grad()
        (self.weights * loss_g.mean(1)).sum().backward()
        self.optimizer_g.step()
        self.critic.requires_grad_(True)
        self.step += 1
        average(list(self.average.parameters()), list(self.generator.parameters()), 0.99)
        return {}


def plain_layers(network: nn.Module) -> None:
    """Put PyTorch's convolutions and leaky ReLU, with the same parameters, in the place of the package's."""
    for name, part in network.named_children():
        plain: nn.Module
        if isinstance(part, Convolution | Deconvolution):
            kind = nn.Conv2d if isinstance(part, Convolution) else nn.ConvTranspose2d
            size, stride, padding = part.kernel_size, part.stride, part.padding
            plain = kind(part.in_channels, part.out_channels, size, stride, padding, bias=part.bias is not None)  # type: ignore[arg-type]
            plain.weight, plain.bias = part.weight, part.bias
            setattr(network, name, plain)
        elif isinstance(part, LeakyReLU):
            setattr(network, name, nn.LeakyReLU(SLOPE, inplace=True))
        else:
            plain_layers(part)


def seconds(learner: JointLearner) -> tuple[float, float]:
    """Wall time and processor time of one step; the latter tells more where the processors are shared."""
    if learner.device.type == "cuda":
        torch.cuda.synchronize()
    start, worked = time.perf_counter(), time.process_time()
    learner.advance()
    if learner.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start, time.process_time() - worked


def compare(settings: Settings, batch: int, threads: int) -> dict[str, str | int | float]:
    """Alternate the two sides, step by step, and print the ratio of their rates."""
    torch.set_num_threads(threads)
    device = resolve_device(settings.device)
    precision = resolve_precision("auto", device)
    source = Noise(settings.resolution, batch)
    ours = JointLearner(JointConfig(batch=batch, precision=precision, flip=False), source, device)
    plain = PlainLearner(JointConfig(batch=batch, precision="float32", flip=False), source, device)
    rates: dict[str, list[float]] = {"ours": [], "plain": []}
    ratios: list[float] = []
    processor: list[float] = []
    for number in range(settings.rounds + 1):
        spent = {"ours": [0.0, 0.0], "plain": [0.0, 0.0]}
        for _ in range(settings.steps):  # as many as lie between two gradient penalties, so that a round has one
            for name, learner in (("plain", plain), ("ours", ours)):
                spent[name] = [a + b for a, b in zip(spent[name], seconds(learner))]
        if number > 0:  # the first is for warming up
            for name, (wall, _) in spent.items():
                rates[name].append(settings.steps * batch / wall)
            ratios.append(spent["plain"][0] / spent["ours"][0])
            processor.append(spent["plain"][1] / spent["ours"][1])
    record: dict[str, str | int | float] = {
        "resolution": settings.resolution, "batch": batch, "device": str(device), "precision": precision,
        "threads": threads, "rounds": settings.rounds, "steps": settings.steps,
        "ours": statistics.median(rates["ours"]), "plain": statistics.median(rates["plain"]),
        "ratio": statistics.median(ratios), "ratio_min": min(ratios), "ratio_max": max(ratios),
        "ratio_of_processor_time": statistics.median(processor),
    }  # fmt: skip
    print(
        f"joint learner, {settings.resolution} px, batch {batch}, {device} ({precision}), {threads} threads: "
        f"{record['ours']:.1f} images/s; plain float32 channels-first two-pass loop: {record['plain']:.1f}; "
        f"ratio {record['ratio']:.2f} ({min(ratios):.2f} to {max(ratios):.2f}), "
        f"of processor time {record['ratio_of_processor_time']:.2f}",
        flush=True,
    )
    return record


def main(settings: Settings) -> None:
    """Every batch with every number of threads."""
    keep_freed_memory()  # of both sides
    records = [compare(settings, batch, threads) for threads in settings.threads for batch in settings.batch]
    if settings.out:
        settings.out.write_text(json.dumps(records, indent=2) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Settings))
