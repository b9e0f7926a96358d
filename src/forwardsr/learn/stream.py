"""Reading a source in chunks: one way for fresh samples and for finite arrays, with the checks that the learners rely on.

A streamed source is drawn from a generator seeded by ``(seed, salt)``; the same salt gives the same samples again, so a
learner may go over its data twice without keeping it. A finite source is read in the order of its indices (kind to
memory-mapped files): all of it, or a random subset that depends on the salt. Where several processes learn together
(:mod:`forwardsr.parallel`) each may read all chunks, or its share of them, or all with a part of a level's patches only.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from forwardsr.data.pyramid import Pyramid
from forwardsr.data.source import FiniteSource, Source
from forwardsr.errors import UserError
from forwardsr.parallel import ALONE, current

_CHUNK_NUMBERS = 2**23  # 32 MiB of float32 a chunk: small enough to stay near the processor, large enough for BLAS


def mix(seed: int, salt: int) -> int:
    """One 63-bit seed from two integers."""
    state = torch.Generator().manual_seed((seed * 1_000_003 + salt * 7_919 + 17) & (2**63 - 1))
    return int(torch.randint(2**62, (1,), generator=state))


class Stream:
    """Chunks of a source in patch form, float32, checked for numbers that are not finite.

    ``patch``: the side of a patch, for sources in image form.
    """

    first = 0  # the number, in the source, of the first patch of a level that is restricted

    def __init__(self, source: Source, seed: int, patch: int = 6) -> None:
        self.source, self.seed, self.patch, self.world = source, seed, patch, current()
        first = source.shapes[0]
        sizes = [s if len(s) == 2 else ((s[1] // patch) * (s[2] // patch), s[0] * patch * patch) for s in source.shapes]
        if len(first) == 3 and any(s[1] % patch or s[2] % patch for s in source.shapes):
            raise UserError(f"{source.name}: images of {first[1]} pixels are no grid of {patch} x {patch} patches")
        self.sizes: list[tuple[int, int]] = [(int(k), int(d)) for k, d in sizes]

    def available(self, n: int) -> int:
        """How many of ``n`` samples there are: all where the source is streamed."""
        return min(n, len(self.source)) if isinstance(self.source, FiniteSource) else n

    def chunks(
        self, n: int, levels: int, salt: int, chunk: int | None = None, dealt: bool = False
    ) -> Iterator[list[Tensor]]:
        """``available(n)`` samples of the coarsest ``levels``, patch first: lists of ``(d_l, c, d)``.

        ``dealt``: of many processes each is given every K-th chunk; the same chunks as one process reads, since a streamed source's
        random state is passed on from one to the next. Raises ``UserError`` where a sample holds NaN or infinity.
        """
        n = self.available(n)
        width = sum(k * d for k, d in self.sizes[:levels])
        chunk = chunk or max(128, min(2**14, _CHUNK_NUMBERS // width))
        generator = torch.Generator().manual_seed(mix(self.seed, salt))
        order = None
        if isinstance(self.source, FiniteSource):
            size = len(self.source)
            order = torch.arange(size) if n == size else torch.randperm(size, generator=generator)[:n].sort().values
        world = self.world if dealt else ALONE
        for start in range(world.rank * chunk, n, world.size * chunk):
            count = min(chunk, n - start)
            if order is not None and isinstance(self.source, FiniteSource):
                pyramid = self.source.take(order[start : start + count], levels)
            else:
                with world.turn(generator, start == 0, start + chunk >= n):
                    pyramid = self.source.draw(count, generator, levels)
            yield [self._check(x, l) for l, x in enumerate(self._patches(pyramid)[:levels])]

    def _patches(self, pyramid: Pyramid) -> Pyramid:
        return pyramid.unfold(self.patch)

    def _check(self, x: Tensor, level: int) -> Tensor:
        if not bool(torch.isfinite(x.sum())):
            raise UserError(
                f"{self.source.name}: level {level + 1} holds NaN or infinite numbers; remove those samples"
            )
        return x.to(torch.float32).transpose(0, 1)


class PatchesOf(Stream):
    """``stream`` with the patches ``part`` of one level (from 0) only; its chunks are of the same samples."""

    def __init__(self, stream: Stream, level: int, part: slice) -> None:
        self.source, self.seed, self.patch, self.world = stream.source, stream.seed, stream.patch, stream.world
        self._stream, self._level, self._part, self.first = stream, level, part, stream.first + (part.start or 0)
        k, d = stream.sizes[level]
        self.sizes = [(len(range(k)[part]), d) if l == level else size for l, size in enumerate(stream.sizes)]

    def chunks(
        self, n: int, levels: int, salt: int, chunk: int | None = None, dealt: bool = False
    ) -> Iterator[list[Tensor]]:
        """As :meth:`Stream.chunks`."""
        for found in self._stream.chunks(n, levels, salt, chunk, dealt):
            yield [x[self._part] if l == self._level else x for l, x in enumerate(found)]
