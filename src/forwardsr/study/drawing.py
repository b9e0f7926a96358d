"""What the figures are drawn with: a style, pictures on axes, strips of samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from jaxtyping import Float, UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from forwardsr.errors import UserError
from forwardsr.generators import load_generator
from forwardsr.model.deconv_generator import DeconvGenerator
from forwardsr.report.figures import grid
from forwardsr.report.story import Sheet
from forwardsr.study.cell import Cell

BEFORE, AFTER, THIRD, INK, QUIET = "#9aa1a8", "#0b7a75", "#c8553d", "#211d18", "#665e54"
COLOURS = ("#0b7a75", "#c8553d", "#4a5fc1", "#b0861b")
DPI = 150
SAMPLES = 8  # in a strip
STYLE: Any = {
    "font.size": 8.5, "axes.titlesize": 9.0, "axes.titlelocation": "left", "axes.spines.top": False,
    "axes.spines.right": False, "axes.edgecolor": BEFORE, "xtick.color": QUIET, "ytick.color": QUIET,
    "axes.labelcolor": QUIET, "legend.frameon": False, "legend.fontsize": 7.5,
}  # fmt: skip


@dataclass(frozen=True)
class Drawing:
    """How a figure is made from the pictures' cell. ``seen``: what is to be seen there, in a sentence or two."""

    title: str
    seen: str
    draw: Callable[[Cell], Figure]


def new_figure(width: float, height: float) -> Figure:
    """An empty one, in inches."""
    return Figure(figsize=(width, height), layout="constrained")


def save(figure: Figure, path: Path) -> Path:
    """Write a PNG, with its folder. Raises :class:`UserError` where it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with matplotlib.rc_context(STYLE):
            figure.savefig(path, dpi=DPI)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); choose another --out") from None
    return path


def picture(axis: Axes, pixels: UInt8[np.ndarray, "h w 3"], title: str = "", colour: str = INK) -> None:
    """Pixels as they are, no axes."""
    axis.imshow(pixels, interpolation="nearest")
    if title:
        axis.set_title(title, color=colour)
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set_visible(False)


def strip(sheet: Sheet, count: int, first: int = 0) -> UInt8[np.ndarray, "h w 3"]:
    """``count`` samples of a sheet side by side, gaps of an eighth of a side."""
    tiles = sheet.tiles.reshape(-1, sheet.side, sheet.side, 3)[first : first + count]
    gap = np.full((sheet.side, max(1, sheet.side // 8), 3), 255, dtype=np.uint8)
    parts = [part for tile in tiles for part in (tile, gap)][:-1]
    return np.concatenate(parts, axis=1)


def tiles(filters: Float[Tensor, "n c p p"], columns: int = 8, most: int = 64) -> UInt8[np.ndarray, "h w 3"]:
    """Filters as a sheet, each on a scale of its own on which 0 is mid-grey; at most ``most``, evenly picked."""
    kept = torch.linspace(0, len(filters) - 1, min(most, len(filters))).round().long()
    shown = filters[kept].float()
    scale = shown.abs().amax((1, 2, 3), keepdim=True).clamp(min=1e-12)
    return grid((shown / scale) if shown.shape[1] in (1, 3) else (shown / scale)[:, :1], columns, gap=1)


def side_name(cell: Cell, level: int) -> str:
    """``level 2 (16 px)``, of a level from 1."""
    return f"level {level} ({cell.sides[level - 1]} px)"


def bars(
    axis: Axes, names: Sequence[str], groups: Sequence[tuple[str, Sequence[float], str]], floor: float | None = None
) -> None:
    """Grouped bars: ``(label, a value a name, colour)``; ``floor`` as a dotted line."""
    x = np.arange(len(names))
    width = 0.8 / len(groups)
    for k, (label, values, colour) in enumerate(groups):
        axis.bar(x + (k - (len(groups) - 1) / 2) * width, values, width * 0.92, color=colour, label=label)
    if floor is not None:
        axis.axhline(floor, color=INK, linestyle=":", linewidth=1)
    axis.set_xticks(x, list(names))
    axis.tick_params(axis="x", length=0)


def generator_of(cell: Cell, method: str) -> DeconvGenerator:
    """The best weights of that method's run."""
    model = load_generator(cell.run(method).path)
    assert isinstance(model, DeconvGenerator)
    return model
