"""``draw``: samples of a generator as pictures or arrays."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from forwardsr.data.pyramid import Pyramid
from forwardsr.errors import UserError
from forwardsr.generators import load_generator
from forwardsr.measure.features import output_features
from forwardsr.model.protocol import LayeredGenerator
from forwardsr.report.figures import grid, pyramid_strip, save_png

BATCH = 512
COLUMNS = 12  # of the one picture
FEATURES = 48  # of a level in a report


def draw(path: Path, n: int, out: Path, levels: str, weights: str, seed: int, console: Console) -> None:
    """Draw ``n`` samples of the Run or network at ``path`` to ``out``: pictures in a folder, one ``.png``, or an ``.npz``.

    ``levels``: ``finest``, or ``all`` for a folder a level. One picture shows all levels, a sample a column, level under
    level; arrays hold all levels. Raises :class:`UserError`.
    """
    if n < 1:
        raise UserError(f"-n {n}: must be at least 1")
    if levels not in ("finest", "all"):
        raise UserError(f"--levels {levels}: say finest or all")
    model = load_generator(path, weights)
    generator = torch.Generator().manual_seed(seed)
    try:
        if out.suffix == ".npz":
            _arrays(model.sample(n, generator), out)
            console.print(f"{n} samples: {out}")
            return
        if out.suffix == ".png":
            save_png(pyramid_strip(pictures(model.sample(n, generator)), min(n, COLUMNS)), out)
            console.print(f"{n} samples, all levels: {out}")
            return
        scale = None  # of patch networks: that of the first batch, so that all pictures have the same
        for start in range(0, n, BATCH):
            sample = model.sample(min(BATCH, n - start), generator)
            scale = scale or brightness(sample)
            pyramid = pictures(sample, scale)
            for images in pyramid if levels == "all" else [pyramid[-1]]:
                folder = out / f"{images.shape[-1]:03d}" if levels == "all" else out
                folder.mkdir(parents=True, exist_ok=True)
                for i in range(len(images)):
                    save_png(grid(images[i : i + 1], 1), folder / f"{start + i:06d}.png")
    except OSError as error:
        raise UserError(f"--out {out}: cannot be written ({error.strerror}); choose another") from None
    console.print(f"{n} pictures: {out}{os.sep}")


def save_features(generator: LayeredGenerator, folder: Path) -> None:
    """Every level's output features W_l (evenly spaced ones where there are many), each on its own scale, as sheets
    ``featuresL-SIDE.png`` in ``folder``. Nothing where patches are no pictures. Raises :class:`UserError` on a full disk.
    """
    try:
        found = output_features(generator)
    except ValueError:
        return
    for level, tiles in found.items():
        some = tiles[torch.linspace(0, len(tiles) - 1, min(FEATURES, len(tiles))).long()]
        scale = some.flatten(1).abs().amax(1).clamp_min(torch.finfo(some.dtype).tiny)
        columns = next(k for k in (16, 12, 8, len(some)) if len(some) % k == 0)
        save_png(grid(some / scale[:, None, None, None], columns), folder / f"features{level}-{some.shape[-1]:03d}.png")


def brightness(pyramid: Pyramid) -> float:
    """What patches are divided by to be pictures: of their sizes the 0.999 quantile, at the level where it is largest."""
    return max(float(x.abs().flatten().kthvalue(max(1, round(0.999 * x.numel()))).values) for x in pyramid) or 1.0


def pictures(pyramid: Pyramid, scale: float | None = None) -> Pyramid:
    """The image form, about [-1, 1]: patches are folded as three channels (one where they are no colours) and divided by
    ``scale``, their own :func:`brightness` where it is not given.

    Raises :class:`UserError` where the patches make no square images.
    """
    if pyramid.is_image:
        return pyramid
    for channels in (3, 1):
        try:
            folded = pyramid.fold(channels)
        except ValueError:
            continue
        scale = scale or brightness(folded)
        return Pyramid([x / scale for x in folded])
    raise UserError("these patches make no square images; draw arrays, with --out samples.npz")


def _arrays(pyramid: Pyramid, out: Path) -> None:
    """``x1 .. xL`` in the pyramid-array format: images in patches of 6 x 6 where the sides allow it, else of half the coarsest."""
    coarsest = pyramid[0].shape[-1]
    patches = pyramid.unfold(6 if coarsest % 6 == 0 else coarsest // 2)
    temporary = out.with_name(f".{out.name}.tmp.npz")
    try:
        np.savez(temporary, **{f"x{level}": x.numpy() for level, x in enumerate(patches, 1)})  # type: ignore[arg-type]
        temporary.replace(out)
    finally:
        temporary.unlink(missing_ok=True)
