"""Pictures of pyramids: grids of one resolution, and strips that show every resolution of the same samples."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from forwardsr.data.pyramid import Pyramid
from forwardsr.errors import UserError

_WHITE = 255


def _to_bytes(images: Float[Tensor, "n c h w"]) -> UInt8[np.ndarray, "n h w 3"]:
    """Pixels as bytes: -1 is 0 and 1 is 255, rounded to nearest and clipped; one channel becomes three; NaN is mid-grey."""
    if images.shape[1] not in (1, 3):
        raise ValueError(f"a picture has 1 or 3 channels, not {images.shape[1]}")
    pixels = torch.nan_to_num(images.detach().float().cpu(), nan=0.0).add(1).mul(127.5).round().clamp(0, 255)
    pixels = pixels.to(torch.uint8).expand(-1, 3, -1, -1)
    array: np.ndarray = pixels.permute(0, 2, 3, 1).contiguous().numpy()
    return array


def grid(images: Float[Tensor, "n c h w"], columns: int, gap: int = 0) -> UInt8[np.ndarray, "height width 3"]:
    """Lay images in [-1, 1] out row by row, ``columns`` a row, ``gap`` white pixels between them.

    Cells that the last row lacks are white. ``ValueError`` where there is no image, no column, or neither 1 nor 3 channels.
    """
    if images.shape[0] < 1 or columns < 1 or gap < 0:
        raise ValueError(f"{images.shape[0]} images do not make a grid of {columns} columns with gaps of {gap}")
    tiles = _to_bytes(images)
    n, h, w, _ = tiles.shape
    rows = -(-n // columns)
    cells = np.full((rows * columns, h + gap, w + gap, 3), _WHITE, dtype=np.uint8)
    cells[:n, :h, :w] = tiles
    sheet = cells.reshape(rows, columns, h + gap, w + gap, 3).swapaxes(1, 2)
    return sheet.reshape(rows * (h + gap), columns * (w + gap), 3)[
        : rows * (h + gap) - gap, : columns * (w + gap) - gap
    ]


def pyramid_strip(pyramid: Pyramid, columns: int, gap: int = 0) -> UInt8[np.ndarray, "height width 3"]:
    """Every level enlarged to the finest side (nearest neighbour) and laid level under level, one sample a column.

    Samples after the first ``columns`` follow in further blocks of L rows, twice the ``gap`` below. Patch form is folded as
    three channels. ``ValueError`` where a side does not divide the finest.
    """
    levels = list(pyramid.fold())
    side = levels[-1].shape[-1]
    if any(side % x.shape[-1] for x in levels):
        raise ValueError(f"sides {[x.shape[-1] for x in levels]} do not all divide the finest, {side}")
    enlarged = [F.interpolate(x, size=(side, side), mode="nearest") for x in levels]
    strips = []
    for first in range(0, pyramid.n, columns):
        rows = [x[first : first + columns] for x in enlarged]
        short = columns - rows[0].shape[0]
        # The last block is padded with white, so that blocks stack.
        rows = [F.pad(x, (0, 0, 0, 0, 0, 0, 0, short), value=1.0) for x in rows]
        strips.append(grid(torch.cat(rows), columns, gap))
    spacer = np.full((2 * gap, strips[0].shape[1], 3), _WHITE, dtype=np.uint8)
    return np.concatenate([part for strip in strips for part in (spacer, strip)][1:])


def save_png(pixels: UInt8[np.ndarray, "height width 3"], path: Path) -> Path:
    """Write a picture as PNG, making its folder, through a temporary name so that no half file is ever seen.

    Raises :class:`~forwardsr.errors.UserError` where the path cannot be written.
    """
    temporary = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(temporary, format="PNG")
        temporary.replace(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error}); choose another place") from error
    return path
