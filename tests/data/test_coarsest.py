"""A source of the coarsest levels is the source, less its finer levels."""

import torch

from forwardsr.data.coarsest import coarsest
from forwardsr.data.pyramid import Pyramid, pool
from forwardsr.data.source import Epochs, FiniteSource


class Stream:
    """Fresh random pictures; counts the levels it was asked for."""

    name = "stream"
    shapes = ((3, 4, 4), (3, 8, 8), (3, 16, 16))

    def __init__(self) -> None:
        self.asked: list[int | None] = []

    def draw(self, n: int, generator: torch.Generator, levels: int | None = None) -> Pyramid:
        self.asked.append(levels)
        return pool(torch.randn(n, 3, 16, 16, generator=generator), (4, 8, 16))[:levels]


class Finite(Stream):
    """Nine pictures."""

    def __len__(self) -> int:
        return 9

    def take(self, index: torch.Tensor, levels: int | None = None) -> Pyramid:
        self.asked.append(levels)
        whole = pool(torch.randn(9, 3, 16, 16, generator=torch.Generator().manual_seed(0)), (4, 8, 16))
        return Pyramid([x[index] for x in whole][:levels])


def test_fewer_levels_are_asked_for_and_the_rest_is_the_same() -> None:
    for kind in (Stream, Finite):
        source = kind()
        lower = coarsest(source, 2)
        assert lower.shapes == ((3, 4, 4), (3, 8, 8))
        assert isinstance(lower, FiniteSource) == (kind is Finite)
        ours, theirs = (Epochs(s, 5, seed=3, flip=True) for s in (lower, kind()))
        for _ in range(3):
            for a, b in zip(ours.next(), theirs.next()[:2], strict=True):
                assert torch.equal(a, b)
        assert source.asked == [2] * 3
        assert len(lower.draw(4, torch.Generator().manual_seed(0), levels=1)) == 1
        assert len(lower.draw(4, torch.Generator().manual_seed(0), levels=3)) == 2


def test_all_levels_are_the_source_itself() -> None:
    source = Stream()
    assert coarsest(source, 3) is source
