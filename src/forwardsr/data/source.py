"""Sources: anything that draws fresh pyramids (paper, §2.1 and §4: "we can sample i.i.d. examples").

Two kinds share one protocol. A *streamed* source (a planted target) draws as many fresh samples as it is asked for. A *finite*
source (images, arrays) also has a length and can be read by index, so that a learner can go through it in epochs.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Int64
from torch import Tensor

from forwardsr.data.pyramid import Pyramid


@runtime_checkable
class Source(Protocol):
    """Draws pyramids. ``shapes`` holds the shape of one sample per level: ``(d_l, d)`` or ``(c, h_l, w_l)``."""

    name: str
    shapes: tuple[tuple[int, ...], ...]

    def draw(self, n: int, generator: torch.Generator, levels: int | None = None) -> Pyramid:
        """``n`` samples, independent given the source: fresh where it is streamed, with replacement where it is finite.

        ``levels``: only that many of the coarsest levels (all by default), for learners that need no finer ones. Image form
        is float32 in [-1, 1]. All randomness comes from ``generator`` (a CPU generator).
        """
        ...


@runtime_checkable
class FiniteSource(Source, Protocol):
    """A source of finitely many samples, each reachable by its index."""

    def __len__(self) -> int: ...

    def take(self, index: Int64[Tensor, " n"], levels: int | None = None) -> Pyramid:
        """The samples at ``index``, in that order, without augmentation; ``levels`` as in :meth:`Source.draw`."""
        ...


class Epochs:
    """Minibatches of a source in a shuffled order that depends on ``(seed, position)`` alone, so it resumes anywhere.

    A finite source is read without replacement, each epoch in a fresh order, mirrored left to right with probability 1/2
    where ``flip``; a batch may run over the end of an epoch into the next. A streamed source draws fresh samples.
    ``position`` (samples read so far) is the whole state. ``part``: of every batch, what :meth:`next` gives.
    """

    def __init__(
        self, source: Source, batch: int, seed: int, flip: bool = False, position: int = 0, part: slice | None = None
    ) -> None:
        if flip and len(source.shapes[0]) != 3:
            raise ValueError(f"{source.name}: only images can be mirrored; fold its patches first")
        self.source, self.batch, self.seed, self.flip, self.position = source, batch, seed, flip, position
        self.part = part or slice(0, batch)
        self._order: tuple[int, Tensor, Tensor] | None = None

    def _epoch(self, epoch: int, size: int) -> tuple[Tensor, Tensor]:
        if self._order is None or self._order[0] != epoch:
            generator = torch.Generator().manual_seed(_mix(self.seed, epoch))
            order = torch.randperm(size, generator=generator)
            self._order = (epoch, order, torch.rand(size, generator=generator) < 0.5)
        return self._order[1], self._order[2]

    def next(self) -> Pyramid:
        """The next batch, in the source's own form."""
        start, self.position = self.position, self.position + self.batch
        if not isinstance(self.source, FiniteSource):
            drawn = self.source.draw(self.batch, torch.Generator().manual_seed(_mix(self.seed, start)))
            return Pyramid([x[self.part] for x in drawn])
        size = len(self.source)
        index, mirror = [], []
        while start < self.position:
            epoch, at = divmod(start, size)
            order, coins = self._epoch(epoch, size)
            stop = min(size, at + self.position - start)
            index.append(order[at:stop])
            mirror.append(coins[at:stop])
            start += stop - at
        pyramid = self.source.take(torch.cat(index)[self.part])
        if not self.flip:
            return pyramid
        where = torch.cat(mirror)[self.part, None, None, None]
        return Pyramid([torch.where(where, x.flip(-1), x) for x in pyramid])


def _mix(seed: int, counter: int) -> int:
    """One 63-bit seed from two integers (splitmix64's finaliser), so that neighbouring counters are unrelated."""
    x = (seed * 0x9E3779B97F4A7C15 + counter * 0xD1B54A32D192ED03 + 0x632BE59BD9B4E019) & 0xFFFFFFFFFFFFFFFF
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x = ((x ^ (x >> shift)) * factor) & 0xFFFFFFFFFFFFFFFF
    return (x ^ (x >> 31)) >> 1
