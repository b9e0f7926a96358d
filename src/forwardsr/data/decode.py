"""One encoded image to one square of uint8 pixels, whatever its format, colour model, depth, orientation and shape.

Choices: transparency is composited over white and padding is white, so both read as paper; 16 bits scale to 8 over the
whole range; resampling is Lanczos, antialiased; of an animation the first frame counts; colour profiles are ignored.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

Fit = Literal["crop", "pad"]
_ALPHA = frozenset(["RGBA", "RGBa", "LA", "La", "PA"])
T = TypeVar("T")
R = TypeVar("R")


class BadImage(Exception):
    """A file that is no readable image; the message is the reason."""


def decode(data: bytes, side: int, channels: int = 3, fit: Fit = "crop") -> tuple[NDArray[np.uint8], bool]:
    """The image as uint8 ``(channels, side, side)``, and whether it had to be enlarged to that.

    ``channels``: 3 (RGB) or 1 (luma). ``fit``: ``crop`` keeps the central square, ``pad`` keeps everything and adds white.
    Raises ``BadImage`` where the data is no image, is cut short, or has pixels that do not fit into 16 bits.
    """
    try:
        with Image.open(BytesIO(data)) as image:
            extent = min(image.size) if fit == "crop" else max(image.size)
            # JPEG alone: decode at 1/2, 1/4 or 1/8, but never below twice the side, where the shortcut would be seen.
            if (factor := 2 * side / extent) < 1:
                image.draft(None, (math.ceil(image.width * factor), math.ceil(image.height * factor)))
            # Damaged EXIF is no damaged image; an error in the pixels themselves comes again below.
            with contextlib.suppress(Exception):
                ImageOps.exif_transpose(image, in_place=True)
            square = to_square(_flat(image, "RGB" if channels == 3 else "L"), side, fit)
    except BadImage:
        raise
    except UnidentifiedImageError as error:
        raise BadImage("no image format, or cut short") from error
    except Exception as error:  # Pillow's readers raise nearly anything on a damaged file
        raise BadImage(" ".join(str(error).split()) or type(error).__name__) from error
    return to_array(square), extent < side


def _flat(image: Image.Image, mode: str) -> Image.Image:
    if image.mode == "F":
        raise BadImage("floating-point pixels; save it with 8 or 16 bits")
    if image.mode.startswith("I"):
        deep = np.asarray(image)
        if deep.min() < 0 or deep.max() > 65535:
            raise BadImage("32-bit pixels; save it with 8 or 16 bits")
        return Image.fromarray(np.rint(deep / 257).astype(np.uint8)).convert(mode)
    if image.mode in _ALPHA or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert(mode)


def to_square(image: Image.Image, side: int, fit: Fit = "crop") -> Image.Image:
    """An image of mode ``L`` or ``RGB``, cropped or padded (with white) to a square and resized to ``side``, antialiased."""
    (w, h), lanczos = image.size, Image.Resampling.LANCZOS
    if w == h == side:
        return image
    if fit == "crop":
        short = min(w, h)
        box = ((w - short) / 2, (h - short) / 2, (w + short) / 2, (h + short) / 2)
        return image.resize((side, side), lanczos, box=box, reducing_gap=3.0)
    scale = side / max(w, h)
    inner = image.resize((max(1, round(w * scale)), max(1, round(h * scale))), lanczos, reducing_gap=3.0)
    square = Image.new(image.mode, (side, side), "white")
    square.paste(inner, ((side - inner.width) // 2, (side - inner.height) // 2))
    return square


def to_array(image: Image.Image) -> NDArray[np.uint8]:
    """The pixels as uint8 ``(c, h, w)``."""
    pixels = np.asarray(image, dtype=np.uint8)
    return np.ascontiguousarray(pixels.reshape(image.height, image.width, -1).transpose(2, 0, 1))


def in_parallel(function: Callable[[T], R], items: Sequence[T]) -> Iterator[R]:
    """``map`` on all cores, in order, a bounded number of items ahead of the consumer.

    Threads: Pillow lets go of the interpreter lock while it decodes and resamples, and threads need neither a guarded main
    module nor a second import of everything, as processes would.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = min(cores, 32)
    block = 64 * workers
    with ThreadPoolExecutor(workers) as pool:
        for start in range(0, len(items), block):
            yield from pool.map(function, items[start : start + block])
