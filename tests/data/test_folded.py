"""Patch-form sources shown as images: the same numbers up to one factor, and still finite where they were."""

import numpy as np
import pytest
import torch

from forwardsr.data.arrays import ArraySource
from forwardsr.data.folded import FoldedSource
from forwardsr.data.pyramid import Pyramid
from forwardsr.data.source import FiniteSource, Source
from forwardsr.errors import UserError


class Stream:
    name, shapes, notes = "stream", ((4, 12), (16, 12)), ("a note",)

    def draw(self, n, generator, levels=None):
        return Pyramid([torch.randn(n, k, 12, generator=generator, dtype=torch.float64) for k in (4, 16)][:levels])


def _arrays(factor=1.0, counts=(4, 16)):
    rng = np.random.default_rng(0)
    return ArraySource("arrays", [factor * rng.standard_normal((50, k, 12)) for k in counts], [None, None])


def test_a_stream_stays_a_stream_and_arrays_stay_finite():
    stream, arrays = FoldedSource(Stream()), FoldedSource(_arrays())
    assert isinstance(stream, Source)
    assert not isinstance(stream, FiniteSource)
    assert stream.notes == ["a note"]
    assert isinstance(arrays, FiniteSource)
    assert len(arrays) == 50
    assert stream.shapes == arrays.shapes == ((3, 4, 4), (3, 8, 8))


@pytest.mark.parametrize("inner", [Stream(), _arrays()])
def test_it_is_the_folded_source_over_one_factor(inner):
    source = FoldedSource(inner)
    shown = source.draw(9, torch.Generator().manual_seed(4))
    plain = inner.draw(9, torch.Generator().manual_seed(4)).fold(3)
    for x, y in zip(shown, plain, strict=True):
        assert x.dtype == torch.float32
        torch.testing.assert_close(x.double() * source.scale, y, rtol=1e-6, atol=1e-6)
    assert len(source.draw(9, torch.Generator(), levels=1)) == 1


def test_nearly_all_values_lie_within_one_and_the_rest_is_not_clipped():
    source = FoldedSource(_arrays(factor=1000.0))
    values = torch.cat([x.abs().flatten() for x in source.take(torch.arange(50))])
    assert 0.998 < (values <= 1).double().mean() < 1
    assert values.max() > 1
    assert FoldedSource(_arrays(factor=1000.0)).scale == pytest.approx(1000 * FoldedSource(_arrays()).scale)
    assert FoldedSource(_arrays(), scale=2.5).scale == 2.5


def test_all_zero_data_has_a_scale():
    assert FoldedSource(_arrays(factor=0.0)).scale == 1.0


@pytest.mark.parametrize(("counts", "channels"), [((4, 8), 3), ((4, 16), 1)])
def test_patches_that_make_no_square_are_refused(counts, channels):
    with pytest.raises(UserError, match="cannot be shown as images"):
        FoldedSource(_arrays(counts=counts), channels)
