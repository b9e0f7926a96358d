"""The named data sets: nothing is downloaded, both come with a Python package.

* ``photos``: random crops, at random scale, of the colour photographs scikit-image ships;
* ``digits``: the 1,797 handwritten digits (8 x 8) of scikit-learn (the ``digits`` extra).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from importlib import resources
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import track

from forwardsr.data import cache as store
from forwardsr.data.decode import in_parallel, to_array, to_square
from forwardsr.data.images import ImageSource
from forwardsr.errors import UserError

# What the wheel holds besides are textures in grey, drawings, microscopy, the retina and the sky.
PHOTOS = ("astronaut.png", "chelsea.png", "coffee.png", "motorcycle_left.png", "rocket.jpg")
CROPS = 12_000
# The most bytes the crops may take: fewer of them above 128 pixels.
CROPS_BYTES = 600_000_000
_VERSION = 1


def open_photos(
    sides: Sequence[int],
    channels: int = 3,
    seed: int = 0,
    cache: Path | None = None,
    console: Console | None = None,
) -> ImageSource:
    """Square crops of :data:`PHOTOS`, resized to ``sides[-1]``: uniform in photograph and place, log-uniform in scale.

    A crop's side runs from ``sides[-1]`` pixels (its own pixels) to the photograph's short side. They depend on ``seed`` and
    the sides alone, and are kept in the cache like a folder's images. Raises ``UserError`` where scikit-image ships none.
    """
    folder = resources.files("skimage") / "data"
    photos = {
        name: Image.open(BytesIO((folder / name).read_bytes())).convert("RGB" if channels == 3 else "L")
        for name in PHOTOS
        if (folder / name).is_file()
    }
    if not photos:
        raise UserError("photos: this scikit-image ships no photographs: pip install --upgrade scikit-image")
    side = sides[-1]
    n = min(CROPS, CROPS_BYTES // (channels * side * side))
    settings = [_VERSION, side, channels, seed, n, sorted(photos)]
    key = f"photos-{side}px-{hashlib.blake2b(json.dumps(settings).encode(), digest_size=12).hexdigest()}"
    cache = store.cache_dir() if cache is None else cache
    entry = store.lookup(cache, key)
    if entry is None:
        images = list(photos.values())
        rng = np.random.default_rng(seed)
        which = rng.integers(len(images), size=n)
        short = np.array([min(image.size) for image in images])[which]
        size = np.rint(np.exp(rng.uniform(np.log(np.minimum(side, short)), np.log(short)))).astype(int)
        corner = rng.integers(np.array([image.size for image in images])[which] - size[:, None] + 1)

        def crop(i: int) -> np.ndarray:
            x, y = corner[i]
            square = images[which[i]].crop((x, y, x + size[i], y + size[i]))
            return to_array(to_square(square, side))

        rows = track(
            in_parallel(crop, range(n)),
            "cropping photos",
            total=n,
            console=console,
            transient=True,
            disable=console is None,
        )
        entry = store.build(cache, key, n, (channels, side, side), iter(rows), {})
    source = ImageSource("photos", entry.images, sides)
    if side > (least := min(min(image.size) for image in photos.values())):
        source.notes.append(
            f"photos: the smallest photograph has {least} pixels, so crops of it are enlarged to {side}"
        )
    return source


def open_digits(sides: Sequence[int], channels: int = 3) -> ImageSource:
    """scikit-learn's digits, white on black, resized from 8 x 8. Raises ``UserError`` where scikit-learn is absent."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise UserError("digits: needs scikit-learn: pip install 'forwardsr[digits]'") from error
    grey = np.rint(load_digits().images * (255 / 16)).astype(np.uint8)
    images = np.stack([to_array(to_square(Image.fromarray(image), sides[-1])) for image in grey])
    return ImageSource("digits", np.repeat(images, channels, axis=1), sides)
