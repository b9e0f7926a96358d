r"""Corrections: what training higher layers changes in lower ones (paper, Figure 8: backward feature correction).

For each neuron with incoming (or, of an output layer, outgoing) weights v before and v' after the correction:

* ``size``: :math:`|v' - v| / |v|`; ``angle``: between v and v', in degrees;
* ``place``: where in the kernel (or, of the first layer, in the image) :math:`|v' - v|^2` lies, as shares.

Batch normalisation makes hidden neurons indifferent to the length of v, so of V_l the angle is what matters. As a scale for
"small", the same is said of the learning before it, from the initialisation to v, where the initialisation is known. The *gain* is
the distance from real data (:mod:`distance`) before and after, level by level.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

from forwardsr.data.source import Source
from forwardsr.measure.distance import Distance, Reference
from forwardsr.measure.draws import channels_of
from forwardsr.measure.features import output_features
from forwardsr.model.deconv_generator import DeconvGenerator
from forwardsr.model.patch_generator import PatchGenerator
from forwardsr.model.protocol import LayeredGenerator

SAMPLES = 2048  # of the distances


@dataclass(frozen=True)
class Neurons:
    """The weights of one layer, a neuron a row, and where each number of a row lies, ``side x side`` places (1 where nowhere)."""

    name: str
    weights: Float[Tensor, "n k"]
    place: Tensor
    side: int


def layers_of(generator: LayeredGenerator) -> list[Neurons]:
    """Every layer of a generator: V_1, W_1, V_2, W_2, ... ``ValueError`` for a family unknown here."""
    if isinstance(generator, DeconvGenerator):
        found = []
        weights = dict(generator.named_parameters())
        for l in range(1, len(generator.sides) + 1):
            weight = weights[f"layers.{l - 1}.V.weight"].detach().cpu().double()
            if l == 1:  # rows are (y, x, channel), columns the latent
                side = generator.sides[0] // 2
                v = weight.view(side * side, generator.width, -1).transpose(0, 1)
                place = torch.arange(side * side)[:, None].expand(v.shape[1:])
            else:  # (channel below, channel, y, x)
                side = weight.shape[-1]
                v = weight.transpose(0, 1).flatten(2)
                place = torch.arange(side * side).expand(v.shape[1:])
            found.append(Neurons(f"V{l}", v.flatten(1), place.flatten(), side))
            w = weights[f"outputs.{l - 1}.weight"].detach().cpu().double()
            place = torch.arange(w[0, 0].numel()).expand(w.shape[1], -1)
            found.append(Neurons(f"W{l}", w.flatten(1), place.flatten(), w.shape[-1]))
        return found
    if not isinstance(generator, PatchGenerator):
        raise ValueError(f"{type(generator).__name__} has no layers of known form")
    found = []
    for l, (V, W) in enumerate(zip(generator.V, generator.W), start=1):
        v = (V if l == 1 else V.transpose(1, 2).flatten(2)).cpu().double().flatten(0, 1)
        w = W.mT.cpu().double().flatten(0, 1)
        found += [
            Neurons(f"{name}{l}", x, torch.zeros(x.shape[1], dtype=torch.int64), 1) for name, x in (("V", v), ("W", w))
        ]
    return found


@dataclass(frozen=True)
class Change:
    """The change of one layer: ``size`` and ``angle`` (degrees) of every neuron, ``place`` the shares of the squared change."""

    name: str
    size: Float[Tensor, " n"]
    angle: Float[Tensor, " n"]
    place: Float[Tensor, "side side"]

    def summary(self) -> dict[str, Any]:
        """Medians and 95 % quantiles over neurons, and ``place``."""
        q = torch.tensor([0.5, 0.95], dtype=torch.float64)
        size, angle = torch.quantile(self.size, q).tolist(), torch.quantile(self.angle, q).tolist()
        return {
            "layer": self.name, "size": size[0], "size_95": size[1], "angle": angle[0], "angle_95": angle[1],
            "place": self.place.tolist(),
        }  # fmt: skip


def changes(before: LayeredGenerator, after: LayeredGenerator) -> tuple[Change, ...]:
    """The change of every layer, between two generators of one family and sizes; ``ValueError`` where they differ."""
    found = []
    ours, theirs = layers_of(before), layers_of(after)
    if [x.weights.shape for x in ours] != [y.weights.shape for y in theirs]:
        raise ValueError("the networks before and after have different sizes")
    for old, new in zip(ours, theirs):
        delta = new.weights - old.weights
        length = old.weights.norm(dim=1).clamp(min=1e-30)
        # From the chord of unit vectors: the arc cosine would lose angles below 1e-6 degrees to rounding.
        chord = (F.normalize(new.weights, dim=1) - F.normalize(old.weights, dim=1)).norm(dim=1)
        angle = 2 * torch.asin((chord / 2).clamp(max=1))
        energy = torch.zeros(old.side**2, dtype=torch.float64).index_add_(0, old.place, delta.square().sum(0))
        place = energy / energy.sum().clamp(min=1e-30)
        found.append(Change(old.name, delta.norm(dim=1) / length, angle.rad2deg(), place.view(old.side, old.side)))
    return tuple(found)


@dataclass(frozen=True)
class Corrections:
    """Changes by the correction, layer by layer; by the learning before it (``None`` where unknown); the distances (likewise).

    ``pictures``: W_l of every level ``(n, c, p, p)``, before and after, of a deconvolutional network; else empty.
    """

    correction: tuple[Change, ...]
    learning: tuple[Change, ...] | None
    before: Distance | None
    after: Distance | None
    pictures: tuple[tuple[Tensor, Tensor], ...]

    def table(self) -> Table:
        """A row a layer, then the gain a level."""
        table = Table(title="Corrections: change of each neuron's weights", title_justify="left")
        table.add_column("layer")
        for heading in ("neurons", "relative size (95 %)", "angle (95 %)"):
            table.add_column(heading, justify="right")
        if self.learning:
            table.add_column("initialisation to before: size, angle", justify="right")
        for i, change in enumerate(self.correction):
            s = change.summary()
            cells = [
                s["layer"], str(len(change.size)), f"{s['size']:.3f} ({s['size_95']:.3f})",
                f"{s['angle']:.1f}° ({s['angle_95']:.1f}°)",
            ]  # fmt: skip
            if self.learning:
                t = self.learning[i].summary()
                cells.append(f"{t['size']:.3f}, {t['angle']:.1f}°")
            table.add_row(*cells)
        if self.before is not None and self.after is not None:
            gains = [
                f"{side} px {a:.1f} to {b:.1f} (floor {f:.1f})"
                for side, a, b, f in zip(self.before.sides, self.before.raw, self.after.raw, self.before.floor_raw)
            ]
            table.caption = "Distance (raw), before to after: " + "; ".join(gains)
        return table

    def to_json(self) -> dict[str, Any]:
        """Summaries of layers and both distances."""
        return {
            "correction": [c.summary() for c in self.correction],
            "learning": None if self.learning is None else [c.summary() for c in self.learning],
            "before": None if self.before is None else self.before.to_json(),
            "after": None if self.after is None else self.after.to_json(),
        }


def corrections(
    before: LayeredGenerator,
    after: LayeredGenerator,
    initial: LayeredGenerator | None = None,
    source: Source | None = None,
    n: int = SAMPLES,
    seed: int = 0,
) -> Corrections:
    """Compare the weights before and after; and, where a source is given, their distances from ``n`` of its samples.

    ``initial``: the network at its initialisation. Raises ``ValueError`` where the networks have different sizes.
    """
    distances: list[Distance | None] = [None, None]
    if source is not None:
        reference = Reference.from_source(source, n, seed=seed, channels=channels_of(source))
        distances = [
            reference.compare(model.sample(reference.n, torch.Generator().manual_seed(seed + 10_007)))
            for model in (before, after)
        ]
    pictures: tuple[tuple[Tensor, Tensor], ...] = ()
    if isinstance(before, DeconvGenerator) and isinstance(after, DeconvGenerator):
        pictures = tuple((a, output_features(after)[level]) for level, a in output_features(before).items())
    learning = None if initial is None else changes(initial, before)
    return Corrections(changes(before, after), learning, distances[0], distances[1], pictures)
