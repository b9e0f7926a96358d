r"""The self-certificate: is a learned network distinguishable from data, by the paper's discriminators, at this sample size?

No target is needed. Each discriminator is linear in its trainable parameters (§4; D2 apart), so what it can do is decided by
the mismatch of its moments between held-out samples and the generator's. Each is given in standard errors, z:

=====  ======  =====================================================================================
D1     all l   ``E[1[s_r > b] X]``, all numbers of the patch
D4     l = 1   ``Pr[s_r > b]`` and ``E(s_r - 2b)_+``
D5     l = 1   ``E(s_r - b)_+ (s_r' - b)_+``, all pairs
D2     l > 1   ``E abs~(s_r - ReLU(V S_(l-1) - b))``: the excess over b of what super-resolution leaves unexplained
=====  ======  =====================================================================================

with :math:`s = W^\top X`. For a perfect network every z is standard normal, so the mean of z^2 is 1 and the largest of K
keeps below the Bonferroni bound :math:`\Phi^{-1}(1 - \alpha/2K)` with probability 1 - alpha. A moment that fewer than 30 samples
contribute to is left out: it is not normal yet.

A network of photographs (:class:`InnovationGenerator`) has signed features of centred patches, :math:`s = F^\top (X - \mu)`,
and in D2 the part of s that is new takes the place of what super-resolution leaves unexplained. No such network is the law of
photographs: the table says which moments refuse it, and by how much.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from rich.table import Table
from torch import Tensor

from forwardsr.data.source import Source
from forwardsr.errors import UserError
from forwardsr.learn.stream import Stream, mix
from forwardsr.model.innovation_generator import InnovationGenerator
from forwardsr.model.patch_generator import PatchGenerator

ALPHA = 0.01  # of calling a perfect network distinguishable, per family of moments
_LEAST = 30
_THRESHOLD = 0.1  # b, in sizes of an active channel: above the cross-talk and noise of a usable network
_PAIRS = 4096  # neurons of level 1 whose pairs are looked at, at most


@dataclass(frozen=True)
class Family:
    """The moments of one discriminator at one level: how many, their mean z^2, the largest |z|, its bound, and where it is."""

    discriminator: str
    level: int
    moments: int
    mean_square: float
    largest: float
    bound: float
    where: str

    @property
    def distinguishable(self) -> bool:
        """The largest mismatch is beyond what chance makes."""
        return self.largest > self.bound


@dataclass(frozen=True)
class SelfCertificate:
    """All families of moments, from ``n`` samples of the data and as many of the generator's.

    ``held_out``: whether the network was learned from others; from the same, the mismatch is smaller than it ought to be.
    """

    n: int
    families: tuple[Family, ...]
    held_out: bool = True

    @property
    def distinguishable(self) -> bool:
        """Some discriminator tells the network from the data at this sample size."""
        return any(family.distinguishable for family in self.families)

    @property
    def verdict(self) -> str:
        """In words."""
        if not any(family.moments for family in self.families):
            return f"undecided, no moment has {_LEAST} samples"
        return "distinguishable from the data" if self.distinguishable else "not distinguishable from the data"

    @property
    def samples(self) -> str:
        """What it was held against, in words."""
        return "held-out samples of the data" if self.held_out else "of the samples that it was learned from"

    def table(self) -> Table:
        """The result as a table for a terminal."""
        table = Table(title=f"Self-certificate on {self.n:,} {self.samples}: {self.verdict}")
        for heading in ("", "level", "moments", "mean z^2", "largest |z|", "bound", "where"):
            table.add_column(heading)
        for f in self.families:
            mark = f"[{'bold red' if f.distinguishable else 'green'}]{f.largest:.3g}[/]"
            numbers = (str(f.level), f"{f.moments:,}", f"{f.mean_square:.3g}", mark, f"{f.bound:.3g}", f.where)
            table.add_row(f.discriminator, *numbers)
        return table

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        families = [vars(f) | {"distinguishable": f.distinguishable} for f in self.families]
        words = {"samples": self.samples, "verdict": self.verdict}
        return {
            "n": self.n,
            "held_out": self.held_out,
            "distinguishable": self.distinguishable,
            **words,
            "families": families,
        }


@torch.no_grad()
def self_certificate(
    generator: PatchGenerator,
    source: Source,
    n: int = 20_000,
    seed: int = 0,
    patch: int | None = None,
    held_out: bool = True,
) -> SelfCertificate:
    """Hold ``generator`` against ``n`` samples of ``source``. ``held_out``: whether it was learned from others (fresh, or held out
    by the caller); the result says so.

    ``patch``: the side of a patch, for sources of images; the network's own where not given. Raises ``UserError`` where the
    source's patches are not the network's, or hold numbers that are not finite.
    """
    stream = Stream(source, seed, patch or _patch(generator, source))
    if tuple(stream.sizes) != generator.shapes:
        raise UserError(
            f"{source.name}: its patches {tuple(stream.sizes)} are not the network's {generator.shapes}; give what it learned"
        )
    n = stream.available(n)
    if not isinstance(generator, InnovationGenerator):
        generator = generator.map("cpu", torch.float32)
    levels = len(generator.W)
    b = _thresholds(generator, seed)
    real, fake = ([_moments_of(generator, l, b) for l in range(levels)] for _ in range(2))
    random = torch.Generator().manual_seed(mix(seed, 3))
    for chunk in stream.chunks(n, levels, 4):
        drawn = generator.sample(chunk[0].shape[1], random)
        other = [x.transpose(0, 1) for x in drawn.unfold(stream.patch)]
        for l in range(levels):
            real[l].add(chunk)
            fake[l].add(other)
    families: list[Family] = []
    for l in range(levels):
        families += [_compare(name, l + 1, real[l], fake[l]) for name in real[l].sums]
    return SelfCertificate(n, tuple(families), held_out)


def _patch(generator: PatchGenerator, source: Source) -> int:
    """The side of the network's patches, where the source is of images (any number where it is not)."""
    return source.shapes[0][-1] // math.isqrt(generator.W[0].shape[0]) if len(source.shapes[0]) == 3 else 1


def _thresholds(generator: PatchGenerator, seed: int) -> list[float]:
    hidden = generator.hidden(generator.latents(2000, torch.Generator().manual_seed(mix(seed, 5))))
    return [_THRESHOLD * float(s.square().sum() / s.abs().sum().clamp_min(1e-30)) for s in hidden]


class _Moments:
    """Sums of every statistic of one level, of its square, and of how many samples are not zero there."""

    def __init__(self, generator: PatchGenerator, level: int, b: list[float]) -> None:
        self.generator, self.level, self.b = generator, level, b
        self.sums: dict[str, tuple[Tensor, Tensor, Tensor]] = {}
        self.count = 0

    def add(self, x: list[Tensor]) -> None:
        """``x``: patch-first levels ``(k, n, d)``."""
        l, b = self.level, self.b[self.level]
        here = x[l]
        s = self._values(here)
        self.count += here.shape[1]
        gate = (s > b).float()
        seen = gate.sum(2)[:, :, None].expand(*gate.shape[:2], here.shape[2])
        self._sum("D1", gate @ here, gate @ here.square(), seen)
        if l == 0:
            ramp = torch.relu(s - 2 * b)
            both = torch.stack([gate, ramp])
            self._sum("D4", both.sum(3), both.square().sum(3), (both > 0).sum(3))
            h = torch.relu(s - b).flatten(0, 1)[:_PAIRS]
            positive = (h > 0).float()
            keep = torch.triu(torch.ones(len(h), len(h)), 1)
            self._sum("D5", h @ h.mT, h.square() @ h.square().mT, (positive @ positive.mT) * keep)
        else:
            error = torch.relu((s - self._predicted(x)).abs() - b)
            self._sum("D2", error.sum(2), error.square().sum(2), torch.full(error.shape[:2], error.shape[2]))

    def _values(self, here: Tensor) -> Tensor:
        return torch.bmm(self.generator.W[self.level].mT, here.mT)

    def _predicted(self, x: list[Tensor]) -> Tensor:
        l, g = self.level, self.generator
        graph = g.parents[l]
        assert graph is not None
        below = torch.relu(torch.bmm(g.W[l - 1].mT, x[l - 1].mT))
        below = below * (below > self.b[l - 1])
        pre = -g.b[l][:, :, None].expand(-1, -1, below.shape[2])
        for i in range(graph.shape[1]):
            pre = torch.baddbmm(pre, g.V[l][:, i], below[graph[:, i]])
        return g.activation(pre)

    def _sum(self, name: str, first: Tensor, second: Tensor, seen: Tensor) -> None:
        new = tuple(t.double() for t in (first, second, seen))
        old = self.sums.get(name)
        self.sums[name] = (
            (new[0], new[1], new[2]) if old is None else (old[0] + new[0], old[1] + new[1], old[2] + new[2])
        )


class _SignedMoments(_Moments):
    """The same of signed features of centred patches."""

    generator: InnovationGenerator

    def __init__(self, generator: InnovationGenerator, level: int, b: list[float]) -> None:
        super().__init__(generator, level, b)
        self.features = generator.features(level)
        if level:
            parents = generator.parents[level]
            assert parents is not None
            r = self.features.shape[2]
            below = torch.linalg.pinv(generator.W[level - 1])[parents]
            self.map = generator.V[level][:, :, :r] @ below
            self.parents = parents

    def _values(self, here: Tensor) -> Tensor:
        return torch.bmm(self.features.mT, (here - self.generator.mean[self.level][:, None]).mT)

    def _predicted(self, x: list[Tensor]) -> Tensor:
        below = (x[self.level - 1] - self.generator.mean[self.level - 1][:, None]).mT
        pre = -self.generator.b[self.level][:, : self.features.shape[2], None].expand(-1, -1, below.shape[2])
        for i in range(self.parents.shape[1]):
            pre = torch.baddbmm(pre, self.map[:, i], below[self.parents[:, i]])
        return pre


def _moments_of(generator: PatchGenerator, level: int, b: list[float]) -> _Moments:
    kind = _SignedMoments if isinstance(generator, InnovationGenerator) else _Moments
    return kind(generator, level, b)  # type: ignore[arg-type]


def _compare(name: str, level: int, real: _Moments, fake: _Moments) -> Family:
    means, variances, seen = [], [], torch.zeros(())
    for side in (real, fake):
        first, second, nonzero = side.sums[name]
        mean = first / side.count
        means.append(mean)
        variances.append((second / side.count - mean.square()).clamp_min(0) / side.count)
        seen = seen + nonzero
    error = (variances[0] + variances[1]).sqrt()
    scale = means[0].abs().amax().clamp_min(means[1].abs().amax())
    # A number that both compute exactly (D2 without noise) differs by rounding alone: not a mismatch.
    z = torch.where(seen >= _LEAST, (means[0] - means[1]) / error.clamp_min(1e-6 * scale + 1e-30), torch.nan)
    return _summary(name, level, z)


def _summary(name: str, level: int, z: Float[Tensor, "..."]) -> Family:
    known = z[~z.isnan()]
    if not len(known):
        return Family(name, level, 0, 0.0, 0.0, 0.0, "")
    at = [int(i) for i in torch.unravel_index(z.nan_to_num(0.0).abs().argmax(), z.shape)]
    if name == "D4":
        where = f"patch {at[1]}, channel {at[2]}"
    elif name == "D5":
        where = f"neurons {at[0]} and {at[1]}"
    else:
        where = f"patch {at[0]}, channel {at[1]}"
    tail = torch.tensor(ALPHA / (2 * len(known)), dtype=torch.float64)
    return Family(
        name,
        level,
        len(known),
        float(known.square().mean()),
        float(known.abs().max()),
        float(-torch.special.ndtri(tail)),
        where,
    )
