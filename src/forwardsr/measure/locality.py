r"""Locality: how far super-resolution reaches (paper, Figure 4, made quantitative).

*Response.* At one position j of hidden layer l the channels ``S_{l,j}`` are exchanged for those of another sample, and the change of
the *next* level's image, :math:`\Delta = X_{l+1}(S_l') - X_{l+1}(S_l)`, is looked at: the radius around j (in pixels of level l+1)
that holds 50, 90 and 99 % of :math:`|\Delta|^2`. The baseline is the radius that holds as much of a change spread evenly over the
image. Radii are means over positions and samples, errors over samples.

*Prediction.* How well a window of level l predicts the patch of level l+1 over it: :mod:`neighbourhood`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from rich.table import Table
from torch import Tensor

from forwardsr.data.pyramid import Pyramid
from forwardsr.data.source import FiniteSource, Source
from forwardsr.measure.draws import as_images, latents, plus_minus, pyramid_batches
from forwardsr.measure.neighbourhood import Prediction, Step, join, predictions, steps
from forwardsr.model.deconv_generator import DeconvGenerator
from forwardsr.model.innovation_generator import InnovationGenerator
from forwardsr.model.patch_generator import PatchGenerator
from forwardsr.model.pooled_generator import PooledGenerator
from forwardsr.model.protocol import LayeredGenerator

SHARES = (0.5, 0.9, 0.99)
EXCHANGED = 64  # samples whose hidden layers are changed
POSITIONS = 4  # a side of the hidden layer, evenly spaced (all where there are no more)
SAMPLES = 3584  # of the regressions: 2,048 to fit, 512 to choose the ridge, 1,024 to test
BATCH = 256
ROUNDING = 1e-9  # of the largest squared change of a pixel: below it, fast convolutions move pixels by rounding alone
Z95 = 1.96


@dataclass(frozen=True)
class Response:
    """How far a change at one position of hidden layer ``level`` moves the pixels of level + 1, an image of ``side`` pixels.

    ``radius``, ``error``, ``even``: for each of :data:`SHARES` the radius in pixels, its standard error, and that of an even change.
    ``reach``: the largest distance of any pixel that moved. ``profile[k]``: the share within k pixels.
    """

    level: int
    side: int
    radius: tuple[float, ...]
    error: tuple[float, ...]
    even: tuple[float, ...]
    reach: float
    profile: tuple[float, ...]


@dataclass(frozen=True)
class Locality:
    """Responses and predictions, by level."""

    responses: tuple[Response, ...]
    predictions: tuple[Prediction, ...]

    def table(self) -> Table:
        """A row a step from one level to the next."""
        table = Table(title="Locality of super-resolution, level to level", title_justify="left")
        table.add_column("step")
        for share in SHARES[1:]:
            table.add_column(f"{share:.0%} of a change within", justify="right")
        table.add_column("reach", justify="right")
        table.add_column("of")
        table.add_column("held-out R² of the patch (of its detail), by window of the level below")
        responses = {r.level: r for r in self.responses}
        for level in sorted({p.level for p in self.predictions} | set(responses)):
            r = responses.get(level)
            cells = ["", "", ""]
            if r is not None:
                cells = [f"{plus_minus(r.radius[i], Z95 * r.error[i])} px (even: {r.even[i]:.0f})" for i in (1, 2)]
                cells.append(f"{r.reach:.0f} of {r.side} px")
            groups = [
                (of, [p for p in self.predictions if (p.level, p.of) == (level, of)]) for of in ("generated", "real")
            ]
            shown = [(of, found) for of, found in groups if found] or [("", [])]
            for i, (of, found) in enumerate(shown):
                text = ", ".join(
                    f"{'all' if p.radius is None else f'{p.pixels} px'} {p.r2:.3f} ({p.detail:.2f})" for p in found
                )
                table.add_row(
                    f"{level} to {level + 1}" if i == 0 else "", *(cells if i == 0 else ["", "", ""]), of, text,
                    end_section=i == len(shown) - 1,
                )  # fmt: skip
        return table

    def to_json(self) -> dict[str, Any]:
        """Everything, as values that JSON can hold."""
        responses = [{k: list(v) if isinstance(v, tuple) else v for k, v in vars(r).items()} for r in self.responses]
        return {"shares": list(SHARES), "responses": responses, "predictions": [vars(p) for p in self.predictions]}


def next_layer(generator: LayeredGenerator, level: int, S: Tensor, z: Tensor | None = None) -> Tensor:
    """Hidden layer ``level + 1`` from hidden layer ``level`` (both counted from 1).

    ``z``: the latents, for a network with innovations; without them its innovations are 0: what the present layer determines.
    ``ValueError`` for a family unknown here.
    """
    if isinstance(generator, DeconvGenerator):
        found: Tensor = generator.layers[level](S, None if z is None else generator.parts(z)[1][level - 1])
        return found
    if isinstance(generator, InnovationGenerator):
        shapes = generator.innovations
        if z is None:
            z = S.new_zeros(len(S), generator.latent_dim)
        noise = z.split([generator.V[0].shape[-1], *(k * q for k, q in shapes)], dim=1)[level]
        noise = noise.view(len(S), *shapes[level - 1]).transpose(0, 1)
        return generator.level(level, S.transpose(0, 1), noise).transpose(0, 1)
    if not isinstance(generator, PatchGenerator):
        raise ValueError(f"{type(generator).__name__} cannot be entered at a hidden layer")
    V, b, parents = generator.V[level], generator.b[level], generator.parents[level]
    assert parents is not None
    pre = torch.einsum("njim,jirm->njr", S[:, parents], V) - b
    return generator.activation(pre)


@torch.no_grad()
def responses(generator: LayeredGenerator, n: int = EXCHANGED, seed: int = 0) -> tuple[Response, ...]:
    """The responses of all levels but the last, over ``n`` samples. ``ValueError`` where patches make no square images."""
    z = next(latents(generator, n, seed, batch=n))
    hidden = generator.hidden(z)
    return tuple(_response(generator, level, hidden, z) for level in range(1, len(hidden)))


def _response(generator: LayeredGenerator, level: int, hidden: list[Tensor], z: Tensor) -> Response:
    S = hidden[level - 1]
    n = len(S)
    grid = S.shape[-1] if S.ndim == 4 else int(S.shape[1] ** 0.5)
    # A generator whose levels are its finest image pooled down needs all layers to render any.
    depth = len(hidden) if isinstance(generator, PooledGenerator) else level + 1

    def image(layer: Tensor) -> Tensor:
        stack = [*hidden[: level - 1], layer]
        while len(stack) < depth:
            stack.append(next_layer(generator, len(stack), stack[-1], z))
        return as_images(generator.render(stack))[level].float()

    before = image(S)
    side = before.shape[-1]
    rows = torch.linspace(0, grid - 1, min(grid, POSITIONS) + 2 * (grid > POSITIONS)).round().long()
    rows = rows[1:-1] if grid > POSITIONS else rows
    pixel = torch.arange(side, dtype=torch.float64)
    radii, even, profiles, reach = [], [], [], 0.0
    other = S.roll(1, 0)
    for i in rows.tolist():
        for j in rows.tolist():
            changed = S.clone()
            if S.ndim == 4:
                changed[:, :, i, j] = other[:, :, i, j]
            else:
                changed[:, i * grid + j] = other[:, i * grid + j]
            energy = (image(changed) - before).double().square().sum(1).flatten(1).cpu()
            y, x = (pixel + 0.5 - (at + 0.5) * side / grid for at in (i, j))
            distance = (y[:, None].square() + x.square()).sqrt().flatten()
            radii.append(_radius(energy, distance))
            even.append(_radius(torch.ones(1, side * side, dtype=torch.float64), distance)[0])
            profiles.append(_profile(energy, distance, side))
            moved = (energy > ROUNDING * energy.amax().clamp(min=1e-30)).any(0)
            reach = max(reach, float(distance[moved].max()) if moved.any() else 0.0)
    per_sample = torch.stack(radii).nanmean(0)
    per_sample = per_sample[~per_sample.isnan().any(1)]
    error = per_sample.std(0) / max(len(per_sample), 1) ** 0.5 if len(per_sample) > 1 else per_sample.new_zeros(3)
    return Response(
        level,
        side,
        tuple(per_sample.mean(0).tolist()),
        tuple(error.tolist()),
        tuple(torch.stack(even).mean(0).tolist()),
        reach,
        tuple(torch.stack(profiles).nanmean((0, 1)).tolist()) if n else (),
    )


def _radius(energy: Float[Tensor, "n pixels"], distance: Float[Tensor, " pixels"]) -> Float[Tensor, "n shares"]:
    """For every sample and share, the least radius that holds it; NaN where nothing moved."""
    order = distance.argsort()
    held = energy[:, order].cumsum(1)
    shares = torch.tensor(SHARES, dtype=energy.dtype)
    where = torch.searchsorted(held, held[:, -1:] * shares * (1 - 1e-12)).clamp(max=len(distance) - 1)
    found = distance[order][where]
    return torch.where(held[:, -1:] > 0, found, torch.nan)


def _profile(energy: Tensor, distance: Tensor, side: int) -> Float[Tensor, "n side"]:
    """For every sample, the share of the change within 0, 1, 2, ... pixels."""
    within = (distance[:, None] <= torch.arange(side, dtype=distance.dtype)).to(energy)
    return energy @ within / energy.sum(1, keepdim=True)


def _gather(batches: Iterable[Pyramid]) -> list[Step]:
    """Windows and patches of all samples: the finest images themselves are not kept."""
    return join([steps(as_images(part)) for part in batches])


def _real_batches(source: Source, n: int, seed: int) -> Iterable[Pyramid]:
    generator = torch.Generator().manual_seed(seed)
    if isinstance(source, FiniteSource):
        order = torch.randperm(len(source), generator=generator)[:n]
        return (source.take(part) for part in order.split(BATCH))
    return (source.draw(min(BATCH, n - start), generator) for start in range(0, n, BATCH))


def locality(
    generator: LayeredGenerator,
    source: Source | None = None,
    n: int = SAMPLES,
    exchanged: int = EXCHANGED,
    seed: int = 0,
) -> Locality:
    """Responses of ``exchanged`` samples; predictions on ``n`` generated and, where a source is given, real ones.

    Raises ``ValueError`` where patches make no square images, or levels do not double.
    """
    found = list(predictions("generated", _gather(pyramid_batches(generator, n, seed + 1, BATCH))))
    if source is not None:
        found += predictions("real", _gather(_real_batches(source, n, seed)))
    return Locality(responses(generator, exchanged, seed), tuple(found))
