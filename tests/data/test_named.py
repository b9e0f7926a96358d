"""The named data sets: deterministic, sized to the resolution, without a download."""

import sys

import numpy as np
import pytest
import torch

from forwardsr.data import named
from forwardsr.data.named import open_digits, open_photos
from forwardsr.data.source import FiniteSource
from forwardsr.errors import UserError


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(named, "CROPS", 60)


def test_photos_depend_on_the_seed_alone(few, tmp_path):
    one, two = (open_photos((8, 16), seed=3, cache=tmp_path / str(i)).images for i in range(2))
    assert one.shape == (60, 3, 16, 16)
    assert np.array_equal(one, two)
    assert not np.array_equal(one, open_photos((8, 16), seed=4, cache=tmp_path).images)


def test_photos_are_cropped_once(few, tmp_path, monkeypatch):
    first = open_photos((8, 16), cache=tmp_path)
    monkeypatch.setattr(named, "to_array", None)
    again = open_photos((8, 16), cache=tmp_path)
    assert np.array_equal(first.images, again.images)
    assert isinstance(again, FiniteSource)


def test_photos_are_varied_colour_pictures(few, tmp_path):
    images = open_photos((8, 16), cache=tmp_path).images.astype(float)
    assert np.abs(images[:, 0] - images[:, 2]).mean() > 10
    assert len({tuple(x.ravel()) for x in images}) == 60
    assert images.mean((1, 2, 3)).std() > 20
    assert open_photos((8, 16), channels=1, cache=tmp_path).images.shape == (60, 1, 16, 16)


def test_above_the_photographs_own_size_a_crop_is_a_whole_square(tmp_path, monkeypatch):
    """The square photograph then has a single crop, whatever the place drawn."""
    monkeypatch.setattr(named, "PHOTOS", ("astronaut.png",))
    monkeypatch.setattr(named, "CROPS", 4)
    source = open_photos((640,), cache=tmp_path)
    assert (source.images == source.images[:1]).all()
    assert any("512 pixels, so crops of it are enlarged to 640" in note for note in source.notes)


def test_the_file_of_crops_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(named, "CROPS_BYTES", 100_000)
    assert len(open_photos((64,), cache=tmp_path)) == 100_000 // (3 * 64 * 64)


def test_no_photographs_is_one_line(few, tmp_path, monkeypatch):
    monkeypatch.setattr(named, "PHOTOS", ("absent.png",))
    with pytest.raises(UserError, match="scikit-image"):
        open_photos((8,), cache=tmp_path)


def test_digits():
    source = open_digits((8, 16, 32))
    assert len(source) == 1797
    assert source.shapes == ((3, 8, 8), (3, 16, 16), (3, 32, 32))
    assert any("only 1,797 images" in note for note in source.notes)
    (own,) = open_digits((8,), channels=1).take(torch.arange(100))
    from sklearn.datasets import load_digits

    np.testing.assert_allclose(own[:, 0], load_digits().images[:100] / 8 - 1, atol=1.01 / 255)
    pooled = source.take(torch.arange(100), levels=1)[0]
    assert float((pooled[:, :1] - own).abs().mean()) < 0.1
    assert torch.equal(pooled[:, 0], pooled[:, 2])


def test_digits_without_scikit_learn_tell_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(UserError, match=r"pip install 'forwardsr\[digits\]'"):
        open_digits((8,))
