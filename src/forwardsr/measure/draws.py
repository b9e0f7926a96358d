"""Streams of a generator's latents, hidden layers and pyramids, a batch at a time; and how numbers are shown."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor, nn

from forwardsr.data.pyramid import Pyramid
from forwardsr.data.source import Source
from forwardsr.model.patch_generator import PatchGenerator
from forwardsr.model.protocol import LayeredGenerator

BATCH = 256


def example_weight(generator: LayeredGenerator) -> Tensor:
    """Any weight, for its device and dtype (a scalar zero where there is none)."""
    if isinstance(generator, PatchGenerator):
        return generator.W[0]
    return next(generator.parameters()) if isinstance(generator, nn.Module) else torch.zeros(())


def latents(generator: LayeredGenerator, n: int, seed: int, batch: int = BATCH) -> Iterator[Float[Tensor, "batch m0"]]:
    """``n`` standard Gaussian latents of ``seed`` alone, ``batch`` at a time, on the generator's device and in its dtype.

    Raises ``ValueError`` where the generator is in training mode: batch statistics would make samples depend on each other.
    """
    if isinstance(generator, nn.Module) and generator.training:
        raise ValueError("a generator is measured in evaluation mode: call eval() first")
    random, like = torch.Generator().manual_seed(seed), example_weight(generator)
    for start in range(0, n, batch):
        yield torch.randn(min(batch, n - start), generator.latent_dim, generator=random).to(like)


def hidden_batches(generator: LayeredGenerator, n: int, seed: int, batch: int = BATCH) -> Iterator[list[Tensor]]:
    """The hidden layers of ``n`` samples, ``batch`` at a time, without gradients."""
    for z in latents(generator, n, seed, batch):
        with torch.no_grad():
            hidden = generator.hidden(z)
        yield hidden


def pyramid_batches(generator: LayeredGenerator, n: int, seed: int, batch: int = BATCH) -> Iterator[Pyramid]:
    """``n`` samples, ``batch`` at a time, on the CPU, without gradients."""
    for hidden in hidden_batches(generator, n, seed, batch):
        with torch.no_grad():
            pyramid = generator.render(hidden).map(device="cpu")
        yield pyramid


def as_images(pyramid: Pyramid) -> Pyramid:
    """The image form: patches are folded as three channels, or as one where they are no colours.

    Raises ``ValueError`` where the patches make no square images.
    """
    if pyramid.is_image:
        return pyramid
    for channels in (3, 1):
        try:
            return pyramid.fold(channels)
        except ValueError:
            continue
    raise ValueError("these patches make no square images")


def channels_of(source: Source) -> int:
    """Channels of the source's images. Raises ``ValueError`` where its patches make no square images."""
    return as_images(source.draw(1, torch.Generator().manual_seed(0)))[0].shape[1]


def plus_minus(value: float, error: float) -> str:
    """``value`` and the half-width of its 95 % interval, to the first digit of the latter."""
    if not (math.isfinite(value) and math.isfinite(error)) or error <= 0:
        return f"{value:.3g} ± {error:.1g}"
    digits = -math.floor(math.log10(error))
    if digits > 5:
        return f"{value:.2e} ± {error:.0e}"
    return f"{round(value, digits):.{max(digits, 0)}f} ± {round(error, digits):.{max(digits, 0)}f}"
