"""Grids and strips: where each pixel lands, and what value it has."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from forwardsr.data.pyramid import Pyramid, pool
from forwardsr.errors import UserError
from forwardsr.report.figures import grid, pyramid_strip, save_png


def test_values_map_to_bytes_and_clip() -> None:
    images = torch.tensor([-1.0, 1.0, 0.0, -3.0, 7.0, float("nan")]).reshape(6, 1, 1, 1)
    # 0 is 127.5, which rounds to the even 128.
    assert grid(images, 6)[0, :, 0].tolist() == [0, 255, 128, 0, 255, 128]


def test_every_tile_lands_in_its_cell() -> None:
    images = torch.rand(7, 3, 4, 5, generator=torch.Generator().manual_seed(0)) * 2 - 1
    sheet = grid(images, 3, gap=2)
    assert sheet.shape == (3 * 4 + 2 * 2, 3 * 5 + 2 * 2, 3)
    for i in range(7):
        row, column = divmod(i, 3)
        tile = sheet[row * 6 : row * 6 + 4, column * 7 : column * 7 + 5]
        assert np.array_equal(tile, grid(images[i : i + 1], 1))
    assert (sheet[12:, 7:] == 255).all()


def test_strip_shows_one_sample_a_column_at_every_level() -> None:
    fine = torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1
    pyramid = pool(fine, [2, 4, 8])
    strip = pyramid_strip(pyramid, columns=3, gap=1)
    assert strip.shape == (2 * (3 * 9 - 1) + 2, 3 * 9 - 1, 3)
    for i in range(5):
        block, column = divmod(i, 3)
        for level, x in enumerate(pyramid):
            scale = 8 // x.shape[-1]
            expected = grid(x[i : i + 1], 1).repeat(scale, 0).repeat(scale, 1)
            top, left = block * 28 + level * 9, column * 9
            assert np.array_equal(strip[top : top + 8, left : left + 8], expected)


def test_patch_form_is_folded() -> None:
    images = Pyramid([torch.zeros(2, 3, 12, 12), torch.ones(2, 3, 24, 24)])
    assert np.array_equal(pyramid_strip(images.unfold(6), 2), pyramid_strip(images, 2))


def test_refusals() -> None:
    with pytest.raises(ValueError, match="1 or 3 channels"):
        grid(torch.zeros(1, 2, 4, 4), 1)
    with pytest.raises(ValueError, match="0 columns"):
        grid(torch.zeros(1, 3, 4, 4), 0)
    with pytest.raises(ValueError, match="do not all divide"):
        pyramid_strip(Pyramid([torch.zeros(1, 3, 3, 3), torch.zeros(1, 3, 8, 8)]), 1)


def test_png_is_lossless_and_leaves_no_temporary(tmp_path: Path) -> None:
    sheet = grid(torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(2)), 2)
    path = save_png(sheet, tmp_path / "new" / "a.png")
    assert np.array_equal(np.asarray(Image.open(path)), sheet)
    assert [p.name for p in path.parent.iterdir()] == ["a.png"]


def test_an_unwritable_place_is_the_users_mistake(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        save_png(np.zeros((2, 2, 3), dtype=np.uint8), tmp_path / "file" / "a.png")
