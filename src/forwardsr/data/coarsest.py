"""The coarsest levels of a source as a source of their own, for stages that need no finer ones."""

from __future__ import annotations

import torch
from jaxtyping import Int64
from torch import Tensor

from forwardsr.data.pyramid import Pyramid
from forwardsr.data.source import FiniteSource, Source


class _Coarsest:
    def __init__(self, source: Source, levels: int) -> None:
        self.source, self.levels, self.name = source, levels, source.name
        self.shapes = source.shapes[:levels]

    def draw(self, n: int, generator: torch.Generator, levels: int | None = None) -> Pyramid:
        return self.source.draw(n, generator, min(levels or self.levels, self.levels))


class _FiniteCoarsest(_Coarsest):
    source: FiniteSource

    def __len__(self) -> int:
        return len(self.source)

    def take(self, index: Int64[Tensor, " n"], levels: int | None = None) -> Pyramid:
        return self.source.take(index, min(levels or self.levels, self.levels))


def coarsest(source: Source, levels: int) -> Source:
    """``source`` with its ``levels`` coarsest levels only (itself where it has no more); finite where it is finite."""
    if levels == len(source.shapes):
        return source
    return _FiniteCoarsest(source, levels) if isinstance(source, FiniteSource) else _Coarsest(source, levels)
