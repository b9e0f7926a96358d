r"""Off the model (the paper's open problem of §6): the learner's error against how far the data are from any target of its form.

On the small target of ``theorem_assumptions.py`` (2 and 8 patches, m = 12, d = 24), learned from 100,000 samples a stage:

* ``noise``: Gaussian, of every number, in units of the patch r.m.s. The paper says that noise of magnitude about 1/d is tolerated.
* ``foreign``: that share of the samples is of another law, independent Gaussian numbers with the data's mean square.
* ``layer``: S_1 goes through a further hidden layer that renders nothing: level 2 is made from (1 - x) S_1 + x ReLU(Q S_1 - q),
  where Q adds to each channel the one before it in its patch, and q is a third of the mean of an active channel.
* ``activation``: ReLU(.)^(1 + x), in units of an active channel's mean.

What is held against the truth is the generator itself, ||G*(Uz) - G(z)|| / ||G*(Uz)||, whatever it is made of.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from forwardsr.data.planted import PlantedSource
from forwardsr.data.pyramid import Pyramid
from forwardsr.errors import UserError
from forwardsr.learn.minmax import MinmaxConfig
from forwardsr.model.patch_generator import PatchGenerator
from forwardsr.model.plant import PlantConfig, plant
from theorem_assumptions import BASE
from theorem_trial import Line, trial

AMOUNTS = {
    "noise": (0.0, 0.01, 0.03, 0.1, 0.3, 1.0),
    "foreign": (0.0, 1e-4, 1e-3, 0.01, 0.03, 0.1),
    "layer": (0.0, 0.03, 0.1, 0.3, 1.0),
    "activation": (0.0, 0.01, 0.03, 0.1, 0.3, 1.0),
}
SOLVERS = ("closed-form", "efficient")


class Outside(PatchGenerator):
    """A target whose hidden layers go through ``bend(level, S)`` (level from 0, S ``(n, d_l, m_l)``) before they go on or render."""

    bend: Callable[[int, Tensor], Tensor]
    between: Callable[[Tensor], Tensor]

    def __init__(
        self, target: PatchGenerator, bend: Callable[[int, Tensor], Tensor], between: Callable[[Tensor], Tensor]
    ) -> None:
        super().__init__(target.W, target.V, target.b, target.parents, target.activation)
        self.bend, self.between = bend, between

    def hidden(self, z: Tensor, levels: int | None = None) -> list[Tensor]:
        """As :meth:`PatchGenerator.hidden`."""
        layers = [self.bend(0, super().hidden(z, 1)[0])]
        for l in range(1, len(self.W) if levels is None else levels):
            parents = self.parents[l]
            assert parents is not None
            below = self.between(layers[-1])[:, parents]
            pre = torch.einsum("njim,jirm->njr", below, self.V[l]) - self.b[l]
            layers.append(self.bend(l, torch.relu(pre)))
        return layers

    def map(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> PatchGenerator:
        """As :meth:`PatchGenerator.map`."""
        return Outside(super().map(device, dtype), self.bend, self.between)


@dataclass
class Foreign:
    """``source`` with a ``share`` of its samples replaced by Gaussian numbers of the same mean square."""

    source: PlantedSource
    share: float

    def __post_init__(self) -> None:
        self.name, self.shapes = self.source.name, self.source.shapes
        sample = self.source.draw(4096, torch.Generator().manual_seed(0))
        self.rms = [float(x.square().mean().sqrt()) for x in sample]

    def draw(self, n: int, generator: torch.Generator, levels: int | None = None) -> Pyramid:
        """``n`` samples, of either law."""
        own = self.source.draw(n, generator, levels)
        other = torch.rand(n, generator=generator) < self.share
        count = int(other.sum())
        for x, rms in zip(own, self.rms):
            x[other] = rms * torch.randn(count, *x.shape[1:], generator=generator)
        return own


def _kept(_level: int, s: Tensor) -> Tensor:
    return s


def layer(target: PatchGenerator, x: float) -> PatchGenerator:
    """The target with a further hidden layer, mixed in by ``x``."""
    mean = _active_means(target)[0]

    def between(s: Tensor) -> Tensor:
        if s.shape[1] != target.W[0].shape[0]:
            return s
        return (1 - x) * s + x * torch.relu(s + s.roll(1, dims=2) - mean / 3)

    return Outside(target, _kept, between)


def activation(target: PatchGenerator, x: float) -> PatchGenerator:
    """The target with the activation ReLU^(1 + x)."""
    means = _active_means(target)
    return Outside(target, lambda l, s: means[l] * (s / means[l]) ** (1 + x), lambda s: s)


def _active_means(target: PatchGenerator) -> list[float]:
    hidden = target.hidden(target.latents(4096, torch.Generator().manual_seed(0)))
    return [float(s[s > 0].mean()) for s in hidden]


def outside() -> list[Line]:
    """One line a violation, amount and solver; a refusal is a line with ``refused`` and no errors."""
    config = PlantConfig(**BASE)
    target, lines = plant(config), list[Line]()
    for violate, amounts in AMOUNTS.items():
        for x in amounts:
            truth = {"layer": layer, "activation": activation}.get(violate, lambda g, _: g)(target, x)
            source: Any = PlantedSource(truth, x if violate == "noise" else 0.0)
            source = Foreign(source, x) if violate == "foreign" else source
            for solver in SOLVERS:
                what = f"{violate} {x:g}, {solver}"
                line: Line = {"violate": violate, "amount": x, "solver": solver}
                settings = MinmaxConfig(solver=solver, samples=100_000, level_samples=100_000)  # type: ignore[arg-type]
                try:
                    line |= trial(what, config, settings, target=truth, source=source)
                    del line["stages"]
                except UserError as error:
                    line |= {"what": what, "refused": str(error)}
                    print(f"{what}: refused: {error}", flush=True)
                lines.append(line)
    return lines
