"""Epochs: every sample once an epoch, in an order that depends on the seed and the position alone."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from forwardsr.data.pyramid import Pyramid
from forwardsr.data.source import Epochs, FiniteSource, Source

sizes, batches, seeds = st.integers(1, 20), st.integers(1, 50), st.integers(0, 2**31)


class Numbered:
    """A finite source whose sample i is the image (i, -i): it shows its index and whether it was mirrored."""

    name, shapes = "numbered", ((1, 1, 2),)

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def take(self, index, levels=None):
        return Pyramid([torch.stack([index + 1.0, -index - 1.0], -1)[:, None, None]])

    def draw(self, n, generator, levels=None):
        return self.take(torch.randint(self.size, (n,), generator=generator), levels)


class Stream:
    name, shapes = "stream", ((1, 1, 1),)

    def draw(self, n, generator, levels=None):
        return Pyramid([torch.randn(n, 1, 1, 1, generator=generator)])


def _read(epochs: Epochs, count: int) -> torch.Tensor:
    return torch.cat([epochs.next()[0] for _ in range(count)])


def test_the_protocols_tell_finite_from_streamed():
    assert isinstance(Numbered(3), FiniteSource)
    assert isinstance(Stream(), Source)
    assert not isinstance(Stream(), FiniteSource)


@settings(deadline=None, max_examples=40)
@given(size=sizes, batch=batches, seed=seeds)
def test_every_sample_comes_once_an_epoch(size, batch, seed):
    count = -(-3 * size // batch)
    read = _read(Epochs(Numbered(size), batch, seed), count)[:, 0, 0, 0]
    for epoch in read[: len(read) // size * size].split(size):
        assert epoch.sort().values.tolist() == list(range(1, size + 1))


@settings(deadline=None, max_examples=40)
@given(size=sizes, batch=batches, seed=seeds, before=st.integers(0, 5), flip=st.booleans())
def test_resuming_anywhere_gives_the_same_stream(size, batch, seed, before, flip):
    whole, first = Epochs(Numbered(size), batch, seed, flip), Epochs(Numbered(size), batch, seed, flip)
    _read(whole, before + 1)
    _read(first, before + 1)
    resumed = Epochs(Numbered(size), batch, seed, flip, position=first.position)
    assert torch.equal(_read(resumed, 4), _read(whole, 4))


@settings(deadline=None, max_examples=20)
@given(size=sizes, seed=seeds, data=st.data())
def test_the_stream_does_not_depend_on_the_batch(size, seed, data):
    a, b = data.draw(st.lists(st.integers(1, 30), min_size=2, max_size=2))
    one, two = (_read(Epochs(Numbered(size), batch, seed, True), -(-60 // batch))[:60] for batch in (a, b))
    assert torch.equal(one, two)


def test_half_are_mirrored_and_only_where_asked():
    mirrored = _read(Epochs(Numbered(1000), 100, 0, flip=True), 10)[:, 0, 0, 0] < 0
    assert 400 < int(mirrored.sum()) < 600
    assert not bool((_read(Epochs(Numbered(1000), 100, 0), 10)[:, 0, 0, 0] < 0).any())


def test_orders_differ_between_epochs_and_seeds():
    first, second = _read(Epochs(Numbered(100), 100, 0), 2).split(100)
    other = _read(Epochs(Numbered(100), 100, 1), 1)
    assert not torch.equal(first, second)
    assert not torch.equal(first, other)


def test_a_stream_is_fresh_and_resumes():
    whole = Epochs(Stream(), 4, 3)
    batches = [whole.next()[0] for _ in range(3)]
    assert not torch.equal(batches[0], batches[1])
    assert torch.equal(Epochs(Stream(), 4, 3, position=8).next()[0], batches[2])
