"""Strips: one row of samples at one resolution, as a small picture inside the page.

A *wall* is a row of samples at every resolution, level under level, so a sample keeps its column from coarse to fine. Strips
keep their native pixels (the browser enlarges them) with transparent gaps of one eighth of a tile, in proportion at every
level, so that the columns line up. Low resolutions are stored exactly, high ones as lossy WebP, where that saves most.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8
from PIL import Image, features

from forwardsr.report.story import Sheet

COLUMNS = 8
_EXACT_SIDE = 16  # up to this side a strip is stored without loss
_QUALITY = 84  # WebP quality above it: no difference to be seen at the size shown


@dataclass(frozen=True)
class Strip:
    """One level of a wall. ``tile`` and ``pitch`` are in native pixels."""

    side: int
    pitch: int
    columns: int
    uri: str
    alt: str

    @property
    def width(self) -> int:
        return self.pitch * self.columns - (self.pitch - self.side)


@dataclass(frozen=True)
class Wall:
    """One row of samples, coarse strip first. ``tile`` is the side in CSS pixels of every tile when there is room."""

    strips: Sequence[Strip]
    first: int
    columns: int

    @property
    def tile(self) -> int:
        """A whole multiple of every side up to 64 px, so that pixels stay square."""
        finest = self.strips[-1].side
        return finest * max(1, 64 // finest) if finest <= 64 else 64

    @property
    def width(self) -> float:
        last = self.strips[-1]
        return self.tile * last.width / last.side


def gap(side: int, coarsest: int) -> int:
    """The gap beside a tile of this side: a whole number of pixels, in proportion at every level where sides divide."""
    return max(1, max(1, round(coarsest / 8)) * side // coarsest)


def encode(pixels: UInt8[np.ndarray, "h w c"], side: int) -> str:
    """A picture as a data URI: WebP (exact up to 16 px) where Pillow has it, else PNG."""
    buffer, image = io.BytesIO(), Image.fromarray(pixels)
    if not features.check("webp"):
        image.save(buffer, "PNG", optimize=True)
        kind = "png"
    else:
        if side <= _EXACT_SIDE:
            image.save(buffer, "WEBP", lossless=True, quality=60, method=3)
        else:
            image.save(buffer, "WEBP", quality=_QUALITY, method=4)
        kind = "webp"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def walls(sheets: Sequence[Sheet], what: str, columns: int = COLUMNS, rows: int | None = None) -> list[Wall]:
    """Cut a sheet of all resolutions into walls of ``columns`` samples, the first ``rows`` of them where given.

    Levels whose sheets hold another number of samples than the finest are left out: they belong to something else.
    """
    if not sheets:
        return []
    height, width = sheets[-1].tiles.shape[:2]
    kept = [sheet for sheet in sheets if sheet.tiles.shape[:2] == (height, width)]
    total = height * width
    columns = min(columns, width)
    starts = range(0, total, columns)
    return [
        Wall([_strip(sheet, first, columns, kept[0].side, what) for sheet in kept], first, min(columns, total - first))
        for first in starts[:rows]
    ]


def _strip(sheet: Sheet, first: int, columns: int, coarsest: int, what: str) -> Strip:
    tiles = sheet.tiles.reshape(-1, sheet.side, sheet.side, 3)[first : first + columns]
    between = gap(sheet.side, coarsest)
    n, pitch = tiles.shape[0], sheet.side + between
    cells = np.zeros((sheet.side, n, pitch, 4), dtype=np.uint8)
    cells[:, :, : sheet.side, :3] = tiles.swapaxes(0, 1)
    cells[:, :, : sheet.side, 3] = 255
    flat = cells.reshape(sheet.side, n * pitch, 4)[:, : n * pitch - between]
    alt = f"{what}, {first + 1} to {first + n}, at {sheet.side} × {sheet.side} pixels"
    return Strip(sheet.side, pitch, n, encode(flat, sheet.side), alt)
