"""Decoding: every colour model, depth, orientation and shape comes out as the same upright square of pixels."""

import io

import numpy as np
import pytest
from PIL import Image

from forwardsr.data.decode import BadImage, decode, in_parallel

RED, GREEN, WHITE = (200, 30, 40), (20, 180, 60), (255, 255, 255)


def _bytes(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _colour(data: bytes, **options) -> tuple[int, ...]:
    pixels, _ = decode(data, 8, **options)
    assert pixels.dtype == np.uint8
    assert pixels.flags["C_CONTIGUOUS"]
    assert np.ptp(pixels.reshape(len(pixels), -1), axis=1).max() <= 2, "a plain image stays plain"
    return tuple(int(x) for x in pixels[:, 0, 0])


def _near(a, b, tolerance=2):
    return all(abs(x - y) <= tolerance for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("size", [(8, 8), (20, 20), (23, 9), (1, 1)])
def test_a_plain_colour_survives_every_colour_model(size):
    red = Image.new("RGB", size, RED)
    assert _colour(_bytes(red)) == RED
    assert _colour(_bytes(red.quantize(4))) == RED
    assert _colour(_bytes(red.convert("RGBA"))) == RED
    assert _near(_colour(_bytes(red, "JPEG", quality=95)), RED, 4)
    assert _near(_colour(_bytes(red.convert("CMYK"), "TIFF")), RED)
    grey = (RED[0] * 299 + RED[1] * 587 + RED[2] * 114) / 1000
    assert _near(_colour(_bytes(red.convert("L"))), (grey,) * 3)
    assert _near(_colour(_bytes(red), channels=1), (grey,))
    assert _near(_colour(_bytes(red.convert("LA")), channels=1), (grey,))
    assert _colour(_bytes(Image.new("1", size, 1))) == WHITE


def test_sixteen_bits_scale_over_the_whole_range():
    for value, expected in [(0, 0), (257 * 77, 77), (65535, 255)]:
        deep = Image.fromarray(np.full((9, 9), value, np.uint16))
        assert _colour(_bytes(deep)) == _colour(_bytes(deep, "TIFF")) == (expected,) * 3


def test_transparency_is_composited_over_white():
    assert _colour(_bytes(Image.new("RGBA", (9, 9), (*RED, 0)))) == WHITE
    half = tuple(round(0.4 * x + 0.6 * 255) for x in RED)
    assert _near(_colour(_bytes(Image.new("RGBA", (9, 9), (*RED, 102)))), half)
    palette = Image.new("RGB", (9, 9), RED).quantize(2)
    assert _colour(_bytes(palette, transparency=palette.getpixel((0, 0)))) == WHITE
    assert _colour(_bytes(Image.new("L", (9, 9), 7), transparency=7)) == WHITE


# What a camera stores for each EXIF orientation: the transposition that the tag tells a viewer to undo.
STORED = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@pytest.mark.parametrize("orientation", STORED)
def test_exif_orientation_is_undone(orientation):
    upright = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    stored = Image.fromarray(upright)
    if STORED[orientation] is not None:
        stored = stored.transpose(STORED[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert np.array_equal(decode(_bytes(stored, exif=exif), 8)[0], upright.transpose(2, 0, 1))


@pytest.mark.parametrize("turn", [False, True])
def test_crop_keeps_the_middle_and_pad_keeps_all(turn):
    strip = np.zeros((10, 30, 3), np.uint8)
    strip[:, :10], strip[:, 10:20], strip[:, 20:] = GREEN, RED, GREEN
    data = _bytes(Image.fromarray(strip.transpose(1, 0, 2) if turn else strip))
    cropped = decode(data, 10)[0].transpose(1, 2, 0)
    assert (cropped == RED).all()
    padded = decode(data, 30, fit="pad")[0].transpose(1, 2, 0)
    padded = padded.transpose(1, 0, 2) if turn else padded
    assert (padded[:10] == 255).all()
    assert (padded[20:] == 255).all()
    assert (padded[10:20] == strip).all()


def test_an_extreme_strip_pads_to_at_least_one_pixel():
    assert decode(_bytes(Image.new("RGB", (900, 1), RED)), 16, fit="pad")[0].shape == (3, 16, 16)


def test_shrinking_is_antialiased():
    checks = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
    pixels = decode(_bytes(Image.fromarray(checks)), 8)[0]
    assert np.abs(pixels.astype(float) - 127.5).max() < 4


def test_the_jpeg_shortcut_does_not_show():
    y, x = np.mgrid[0:600, 0:900] / 60
    picture = Image.fromarray((127 + 60 * np.stack([np.sin(x), np.cos(y), np.sin(x + y)], -1)).astype(np.uint8))
    quick, exact = (decode(_bytes(picture, kind), 32)[0].astype(float) for kind in ("JPEG", "PNG"))
    assert np.abs(quick - exact).mean() < 1.5


def test_enlarging_is_reported():
    data = _bytes(Image.new("RGB", (40, 10)))
    assert [decode(data, side, fit=fit)[1] for side, fit in [(10, "crop"), (11, "crop"), (40, "pad"), (41, "pad")]] == [
        False,
        True,
        False,
        True,
    ]


def _noise(kind: str, **options) -> bytes:
    return _bytes(
        Image.fromarray(np.random.default_rng(1).integers(0, 256, (50, 50, 3), dtype=np.uint8)), kind, **options
    )


def test_damaged_files_are_refused():
    rotated = Image.Exif()
    rotated[0x0112] = 6
    for whole in (_noise("JPEG"), _noise("JPEG", exif=rotated), _noise("PNG"), _noise("WEBP"), _noise("TIFF")):
        decode(whole, 8)
        for cut in (3, len(whole) // 3, len(whole) * 2 // 3):
            with pytest.raises(BadImage):
                decode(whole[:cut], 8)
    for text in (b"", b"this is no picture", b"\xff\xd8\xff"):
        with pytest.raises(BadImage):
            decode(text, 8)
    with pytest.raises(BadImage, match="floating"):
        decode(_bytes(Image.fromarray(np.zeros((9, 9), np.float32)), "TIFF"), 8)
    with pytest.raises(BadImage, match="32-bit"):
        decode(_bytes(Image.fromarray(np.full((9, 9), 1 << 20, np.int32)), "TIFF"), 8)


def test_parallel_mapping_keeps_the_order_and_runs_only_a_little_ahead():
    started = []

    def square(x):
        started.append(x)
        return x * x

    results = in_parallel(square, range(100_000))
    assert [next(results) for _ in range(5)] == [0, 1, 4, 9, 16]
    assert len(started) < 3000
    results.close()
    assert list(in_parallel(square, range(300))) == [x * x for x in range(300)]
