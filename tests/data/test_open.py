"""From what a user types to a source, and to one line where it names none."""

import sys
import types

import numpy as np
import pytest
from PIL import Image

from forwardsr.data import named
from forwardsr.data.arrays import ArraySource
from forwardsr.data.images import ImageSource
from forwardsr.data.open import open_source, resolve_sides
from forwardsr.errors import UserError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FORWARDSR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(named, "CROPS", 10)


def _refusal(spec, **options) -> str:
    with pytest.raises(UserError) as caught:
        open_source(str(spec), **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("resolution", "sides"),
    [(8, (8,)), (16, (8, 16)), (64, (8, 16, 32, 64)), (256, (8, 16, 32, 64, 128, 256))],
)
def test_a_resolution_is_halved_down_to_eight(resolution, sides):
    assert resolve_sides(resolution) == sides


@pytest.mark.parametrize("resolution", [-64, -1, 0, 1, 4, 7, 24, 48, 63, 65, 100])
def test_other_resolutions_are_refused(resolution):
    with pytest.raises(UserError, match=f"--resolution {resolution}: must be 8 times a power of two"):
        resolve_sides(resolution)


def test_sides_may_be_given_instead():
    assert resolve_sides(64, [12, 24, 48]) == (12, 24, 48)
    for wrong in ([], [0, 4], [24, 12], [12, 12], [10, 24], [8, 12, 24, 48, 60]):
        with pytest.raises(UserError, match="must grow, and each must divide"):
            resolve_sides(64, wrong)


def test_every_kind_of_spec(tmp_path):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    Image.new("RGB", (40, 40)).save(pictures / "a.png")
    assert open_source(str(pictures)).shapes[-1] == (3, 64, 64)
    assert open_source(str(pictures), sides=[6, 12], channels=1).shapes == ((1, 6, 6), (1, 12, 12))
    np.savez(tmp_path / "arrays.npz", x1=np.zeros((3, 1, 4), np.float32))
    np.save(pictures / "x1.npy", np.zeros((3, 1, 4), np.float32))
    for path in ("arrays.npz", "pictures"):
        assert isinstance(open_source(str(tmp_path / path)), ArraySource)
    assert isinstance(open_source("digits"), ImageSource)
    assert open_source("digits").shapes[-1] == (3, 32, 32)
    assert open_source("photos", resolution=16, seed=5).name == "photos"


def test_a_planted_target_is_passed_on(tmp_path, monkeypatch):
    module = types.ModuleType("forwardsr.data.planted")
    asked = {}

    class Planted:
        name, shapes = "planted", ((1, 4),)

        def draw(self, n, generator, levels=None): ...

    module.open_planted = lambda path, seed: asked.update(path=path, seed=seed) or Planted()
    monkeypatch.setitem(sys.modules, "forwardsr.data.planted", module)
    (tmp_path / "target.safetensors").touch()
    assert open_source(str(tmp_path / "target.safetensors"), seed=7).name == "planted"
    assert asked == {"path": tmp_path / "target.safetensors", "seed": 7}


def test_a_name_wins_over_a_folder_of_that_name_and_says_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits").mkdir()
    assert any("built-in" in note for note in open_source("digits").notes)
    assert "no images" in _refusal("./digits")


def test_what_names_nothing_is_one_line(tmp_path):
    assert "did you mean photos?" in _refusal("photo")
    assert "digits, photos" in _refusal("celeba")
    missing = tmp_path / "missing"
    assert str(missing) in _refusal(missing)
    assert "no such file or folder" in _refusal(missing)
    for name in ("a.jpg", "x1.npy"):
        (tmp_path / name).touch()
        assert "give the folder" in _refusal(tmp_path / name)
    (tmp_path / "a.tar.gz").touch()
    assert "neither a folder nor" in _refusal(tmp_path / "a.tar.gz")
    assert "--channels 4" in _refusal("digits", channels=4)
    assert "--resolution 63" in _refusal("digits", resolution=63)
