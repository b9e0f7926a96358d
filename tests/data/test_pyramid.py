"""Pyramids: fold and unfold are inverse, pooling is averaging, and misfits are refused."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from forwardsr.data.pyramid import Pyramid, fold, pool, unfold

small = st.integers(1, 4)


def _images(n: int, c: int, h: int, w: int) -> torch.Tensor:
    return torch.arange(n * c * h * w, dtype=torch.float32).reshape(n, c, h, w)


@settings(deadline=None, max_examples=30)
@given(n=small, c=small, grid=small, patch=small)
def test_fold_is_the_inverse_of_unfold(n, c, grid, patch):
    images = _images(n, c, grid * patch, grid * patch)
    patches = unfold(images, patch)
    assert patches.shape == (n, grid * grid, c * patch * patch)
    assert torch.equal(fold(patches, c), images)


@settings(deadline=None, max_examples=30)
@given(c=small, rows=small, columns=small, patch=small, data=st.data())
def test_a_patch_is_the_square_of_pixels_at_its_place_in_the_grid(c, rows, columns, patch, data):
    images = _images(2, c, rows * patch, columns * patch)
    y, x = data.draw(st.integers(0, rows - 1)), data.draw(st.integers(0, columns - 1))
    square = images[:, :, y * patch : (y + 1) * patch, x * patch : (x + 1) * patch]
    assert torch.equal(unfold(images, patch)[:, y * columns + x], square.reshape(2, -1))


@settings(deadline=None, max_examples=30)
@given(n=small, c=small, base=small, levels=small)
def test_pooling_averages_and_composes(n, c, base, levels):
    sides = [base * 2**k for k in range(levels)]
    images = torch.rand(n, c, sides[-1], sides[-1], dtype=torch.float64)
    pyramid = pool(images, sides)
    assert torch.equal(pyramid[-1], images)
    for l, side in enumerate(sides):
        blocks = images.reshape(n, c, side, sides[-1] // side, side, sides[-1] // side)
        torch.testing.assert_close(pyramid[l], blocks.mean((3, 5)))
        torch.testing.assert_close(pool(pyramid[l], sides[: l + 1])[0], pyramid[0])


def test_pooling_commutes_with_mirroring():
    images = torch.rand(3, 3, 12, 12)
    for flipped, plain in zip(pool(images.flip(-1), [3, 6, 12]), pool(images, [3, 6, 12]), strict=True):
        torch.testing.assert_close(flipped, plain.flip(-1))


def test_forms_and_joining():
    pyramid = pool(torch.rand(4, 3, 12, 12), [6, 12])
    patches = pyramid.unfold(3)
    assert [tuple(x.shape) for x in patches] == [(4, 4, 27), (4, 16, 27)]
    assert pyramid.is_image
    assert not patches.is_image
    assert pyramid.fold() is pyramid
    assert patches.unfold() is patches
    joined = Pyramid.cat([patches[:1], patches[:1]])
    assert joined.n == 8
    assert len(joined) == 1
    for back, level in zip(patches.fold(3), pyramid, strict=True):
        assert torch.equal(back, level)
    assert {x.dtype for x in pyramid.map(dtype=torch.float64)} == {torch.float64}


@pytest.mark.parametrize(
    "misfit",
    [
        lambda: fold(torch.rand(1, 3, 12), 3),
        lambda: fold(torch.rand(1, 4, 13), 3),
        lambda: unfold(torch.rand(1, 3, 7, 6), 3),
        lambda: pool(torch.rand(1, 3, 8, 8), [3, 8]),
        lambda: pool(torch.rand(1, 3, 8, 8), [4]),
        lambda: pool(torch.rand(1, 3, 8, 4), [4, 8]),
        lambda: Pyramid([]),
        lambda: Pyramid([torch.rand(2, 1, 3), torch.rand(3, 4, 3)]),
        lambda: Pyramid([torch.rand(2, 1, 3), torch.rand(2, 3, 4, 4)]),
    ],
)
def test_misfits_are_refused(misfit):
    with pytest.raises(ValueError):
        misfit()
