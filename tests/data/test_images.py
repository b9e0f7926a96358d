"""Image folders and zips: what is read, in which order, when it is decoded again, and what is said about bad input."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from forwardsr.data import images as module
from forwardsr.data.images import ImageSource, open_images
from forwardsr.data.source import FiniteSource
from forwardsr.errors import UserError

SIDES = (8, 16)
SHARED = Path(__file__).parents[2].parent / "shared" / "data"


def _png(value: int, size=(16, 16)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, (value, 255 - value, 7)).save(buffer, "PNG")
    return buffer.getvalue()


FILES = {
    "b.png": _png(20),
    "a/deep/er/c.PNG": _png(10),
    "c.jpeg.png": _png(30),
    "notes.txt": b"text",
    "list.csv": b"a,b",
    ".hidden.png": b"not an image",
    ".cache/x.png": b"not an image",
    "__MACOSX/._b.png": b"not an image",
    "a/.DS_Store": b"",
}


def _folder(root: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def _zip(path: Path, files: dict[str, bytes], kind=zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", kind) as archive:
        archive.mkdir("a")
        for name, data in files.items():
            archive.writestr(name, data)
    return path


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


def _refusal(*args, **options) -> str:
    with pytest.raises(UserError) as caught:
        open_images(*args, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_folder_and_zip_hold_the_same_images_in_the_order_of_names(tmp_path, cache):
    folder = open_images(_folder(tmp_path / "set", FILES), SIDES, cache=cache)
    packed = open_images(_zip(tmp_path / "set.zip", FILES), SIDES, cache=cache)
    assert folder.images[:, 0, 0, 0].tolist() == [10, 20, 30]
    assert np.array_equal(folder.images, packed.images)
    assert (folder.name, packed.name, len(folder)) == ("set", "set.zip", 3)
    assert isinstance(folder, FiniteSource)
    assert folder.shapes == ((3, 8, 8), (3, 16, 16))


def test_a_second_start_decodes_nothing_until_a_file_or_a_setting_changes(tmp_path, cache, monkeypatch):
    root = _folder(tmp_path / "set", FILES)
    packed = _zip(tmp_path / "set.zip", FILES)
    decoded = []
    decode = module.decode
    monkeypatch.setattr(module, "decode", lambda *args: decoded.append(args) or decode(*args))

    def starts(path, **options) -> int:
        decoded.clear()
        open_images(path, options.pop("sides", SIDES), cache=cache, **options)
        return len(decoded)

    assert [starts(root), starts(root), starts(packed), starts(packed)] == [3, 0, 3, 0]
    assert starts(root, sides=(4, 8, 16)) == 0, "coarser levels are pooled when they are read"
    assert [starts(root, channels=1), starts(root, fit="pad"), starts(root, sides=(8,))] == [3, 3, 3]
    (root / "d.png").write_bytes(_png(40))
    assert [starts(root), starts(root)] == [4, 0]
    (root / "d.png").write_bytes(_png(41))
    assert starts(root) == 4
    assert starts(root.rename(tmp_path / "moved")) == 4, "the name shows in the cache"
    _zip(packed, FILES | {"b.png": _png(21)}, zipfile.ZIP_STORED)
    assert starts(packed) == 3


def test_levels_are_means_of_the_finest_pixels(cache, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 3, 16, 16), dtype=np.uint8)
    pixels[0], pixels[1] = 0, 255
    source = ImageSource("x", pixels, (4, 16))
    index = torch.tensor([1, 4, 0, 1])
    coarse, fine = source.take(index)
    wanted = pixels[index.numpy()].astype(np.float64) / 127.5 - 1
    assert fine.dtype == torch.float32
    np.testing.assert_allclose(fine, wanted, atol=1e-6)
    np.testing.assert_allclose(coarse, wanted.reshape(4, 3, 4, 4, 4, 4).mean((3, 5)), atol=1e-6)
    assert fine[2].unique().tolist() == [-1.0]
    assert fine[0].unique().tolist() == [1.0]
    (alone,) = source.take(index, levels=1)
    assert torch.equal(alone, coarse)
    assert len(source.take(index, levels=2)) == len(source.take(index, levels=9)) == 2


def test_drawing_is_with_replacement_and_by_the_generator():
    pixels = np.arange(10, dtype=np.uint8)[:, None, None, None] * np.ones((1, 1, 8, 8), np.uint8)
    source = ImageSource("x", pixels, (8,))
    one, two = (source.draw(5000, torch.Generator().manual_seed(1))[0] for _ in range(2))
    assert torch.equal(one, two)
    counts = torch.bincount(((one[:, 0, 0, 0] + 1) * 127.5).round().long(), minlength=10)
    assert counts.min() > 400
    assert counts.max() < 600


BAD = {
    "text.jpg": b"this is text",
    "empty.png": b"",
    "cut.png": _png(9)[:60],
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("packed", [False, True])
def test_a_bad_file_is_named_and_can_be_skipped(tmp_path, cache, name, packed):
    files = FILES | {f"sub/{name}": BAD[name]}
    path = _zip(tmp_path / "set.zip", files) if packed else _folder(tmp_path / "set", files)
    message = _refusal(path, SIDES, cache=cache)
    assert str(path / "sub" / name) in message
    assert "--skip-bad" in message
    source = open_images(path, SIDES, cache=cache, skip_bad=True)
    assert source.images[:, 0, 0, 0].tolist() == [10, 20, 30]
    assert any("1 unreadable file(s) left out" in note and name in note for note in source.notes)
    assert _refusal(path, SIDES, cache=cache) == message, "the cache does not make a bad file good"
    assert open_images(path, SIDES, cache=cache, skip_bad=True).notes == source.notes


def test_only_bad_files(tmp_path, cache):
    assert "none of its 3 images" in _refusal(_folder(tmp_path / "set", BAD), SIDES, cache=cache, skip_bad=True)
    assert not list(cache.iterdir())


def test_a_damaged_member_of_a_zip_is_named(tmp_path, cache):
    path = _zip(tmp_path / "set.zip", {"a.png": _png(1), "b.png": _png(2)}, zipfile.ZIP_STORED)
    raw = bytearray(path.read_bytes())
    raw[raw.index(_png(2)) + 30] ^= 255
    path.write_bytes(raw)
    assert "b.png" in _refusal(path, SIDES, cache=cache)


def test_nothing_to_read(tmp_path, cache):
    (tmp_path / "empty").mkdir()
    assert "no images" in _refusal(tmp_path / "empty", SIDES, cache=cache)
    assert "no images" in _refusal(_zip(tmp_path / "dirs.zip", {}), SIDES, cache=cache)
    assert "no images" in _refusal(_folder(tmp_path / "texts", {"a.txt": b"", ".b.png": b""}), SIDES, cache=cache)
    phone = _folder(tmp_path / "phone", {"a.HEIC": b"", "b.heic": b""})
    assert "2 .heic" in _refusal(phone, SIDES, cache=cache)
    (tmp_path / "text.zip").write_text("no zip")
    assert "not a readable zip" in _refusal(tmp_path / "text.zip", SIDES, cache=cache)
    whole = _zip(tmp_path / "cut.zip", FILES)
    whole.write_bytes(whole.read_bytes()[:-40])
    assert "not a readable zip" in _refusal(whole, SIDES, cache=cache)


def test_notes_tell_of_small_few_and_foreign_images(tmp_path, cache):
    files = {"dot.png": _png(5, (1, 1)), "fits.png": _png(6, (99, 16)), "phone.heic": b""}
    source = open_images(_folder(tmp_path / "set", files), SIDES, cache=cache)
    notes = "\n".join(source.notes)
    assert "1 of 2 images are smaller than 16 pixels" in notes
    assert "only 2 images" in notes
    assert "flips, a lower resolution, more pictures" in notes
    assert "1 .heic" in notes
    assert (source.images[0, 0] == 5).all()
    assert ImageSource("many", np.zeros((2000, 1, 8, 8), np.uint8), (8,)).notes == []


def test_links_are_followed_but_not_in_circles(tmp_path, cache):
    root = _folder(tmp_path / "set", {"a/b.png": _png(1)})
    _folder(tmp_path / "other", {"c.png": _png(2)})
    try:
        (root / "a" / "up").symlink_to(root, target_is_directory=True)
        (root / "more").symlink_to(tmp_path / "other", target_is_directory=True)
        (root / "gone.png").symlink_to(root / "nowhere.png")
    except OSError:
        pytest.skip("no symbolic links here")
    assert len(open_images(root, SIDES, cache=cache)) == 2


def test_mixed_kinds_become_one_array(tmp_path, cache):
    root = tmp_path / "set"
    root.mkdir()
    red = Image.new("RGB", (20, 30), (255, 0, 0))
    for mode in ("L", "RGB", "RGBA", "P", "1"):
        red.convert(mode).save(root / f"{mode}.png")
    red.convert("CMYK").save(root / "cmyk.jpg")
    assert open_images(root, SIDES, cache=cache).images.shape == (6, 3, 16, 16)
    assert open_images(root, SIDES, channels=1, cache=cache).images.shape == (6, 1, 16, 16)


def test_progress_goes_to_the_console_given(tmp_path, cache, capsys):
    console = Console(file=io.StringIO(), force_terminal=True)
    open_images(_folder(tmp_path / "set", FILES), SIDES, cache=cache, console=console)
    assert "decoding set" in console.file.getvalue()
    assert capsys.readouterr() == ("", "")


def test_a_real_zip(cache, monkeypatch):
    path = SHARED / "heritage64.zip"
    if not path.is_file():
        pytest.skip("needs ../shared/data/heritage64.zip")
    decoded = []
    blank = np.zeros((3, 8, 8), np.uint8), False
    monkeypatch.setattr(module, "decode", lambda *_: decoded.append(1) or blank)
    for _ in range(2):
        source = open_images(path, (8,), cache=cache)
        assert (len(source), len(decoded), source.notes) == (10130, 10130, [])
