"""A planted target as a source: fresh samples of a known network, streamed, with Gaussian noise where asked."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from forwardsr.data.pyramid import Pyramid
from forwardsr.model.patch_generator import PatchGenerator

RMS_SAMPLES = 4096  # the noise's unit to about 1 %


class PlantedSource:
    """Streams pyramids of a target network in patch form; satisfies :class:`forwardsr.data.source.Source`.

    ``noise``: standard deviation of independent Gaussian noise on every number, in units of the level's patch r.m.s. (the root
    of the mean square of all numbers of that level), estimated once from samples that depend on ``seed`` alone.
    ``channels`` and ``parents`` (``None`` for level 1) are what a learner may know of the target; ``chunk`` is a good number
    of samples to draw at a time. Raises ``ValueError`` where ``noise`` is negative.
    """

    def __init__(self, generator: PatchGenerator, noise: float = 0.0, seed: int = 0, name: str = "planted") -> None:
        if noise < 0:
            raise ValueError(f"noise = {noise} must not be negative")
        self.generator, self.noise, self.name = generator, noise, name
        self.shapes: tuple[tuple[int, ...], ...] = generator.shapes
        self.channels: tuple[int, ...] = generator.channels
        self.parents: list[Tensor | None] = generator.parents
        self.rms: tuple[float, ...] = ()
        if noise:
            sample = generator.sample(RMS_SAMPLES, torch.Generator().manual_seed(seed))
            self.rms = tuple(float(x.double().square().mean().sqrt()) for x in sample)

    @property
    def chunk(self) -> int:
        """Samples per draw at which streaming is fastest."""
        return self.generator.chunk

    def draw(self, n: int, generator: torch.Generator, levels: int | None = None) -> Pyramid:
        """``n`` fresh samples of the coarsest ``levels`` (all by default), ``(n, d_l, d)``, in the network's dtype."""
        clean = self.generator.sample(n, generator, levels)
        if not self.noise:
            return clean
        return Pyramid([_noisy(x, self.noise * rms, generator) for x, rms in zip(clean, self.rms)])


def _noisy(x: Tensor, sigma: float, generator: torch.Generator) -> Tensor:
    noise = torch.randn(x.shape[1], x.shape[0], x.shape[2], generator=generator, device=generator.device)
    return x.add_(noise.to(x).transpose(0, 1), alpha=sigma)


def open_planted(path: str | Path, seed: int = 0, noise: float = 0.0) -> PlantedSource:
    """The source over the network saved at ``path``; named after the file. Raises ``UserError`` where it is no network."""
    return PlantedSource(PatchGenerator.load(path), noise, seed, name=Path(path).stem)
