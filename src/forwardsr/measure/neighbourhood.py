r"""How well a local linear map predicts the next level's patch from the level below (paper, Figure 4 and section 4.3).

A patch y of level l+1, 6 x 6 pixels, lies over 3 x 3 pixels of level l. From the window x of ``(3 + 2 rho)^2`` pixels around those,
or from the whole image ("global"), it is predicted by ridge regression in closed form,

.. math:: \min_A E |y - \bar y - A (x - \bar x)|^2 + \lambda |A|_F^2,

lambda chosen on one part of held-out samples, the result taken on another:

* ``r2 = 1 - E|y - y_hat|^2 / E|y - E y|^2``, of everything in the patch;
* ``detail``: the same error against the variance of y minus the enlarged x, that is of what super-resolution has to add. (Enlarging
  is itself a local linear map, so the prediction's error is the same in both.)

If super-resolution is local, windows do as well as the whole image; if it were linear too, ``detail`` would be 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from forwardsr.data.pyramid import Pyramid

PATCH, FOOTPRINT = 6, 3
RADII = (0, 1, 2, 4)  # rho, in pixels of level l
PLACES = 2  # patches a side, at even distances from each other and from the border
RIDGES = (1e-6, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # lambda, in units of the mean squared length of a feature
Split = tuple[int, int, int]


@dataclass(frozen=True)
class Prediction:
    """Held-out R^2 of patches of level + 1 from windows of radius ``radius`` (``None``: the whole image) of level ``level``.

    ``of``: "generated" or "real". ``*_error``: standard errors. ``pixels``: the window's side.
    """

    of: str
    level: int
    radius: int | None
    pixels: int
    r2: float
    r2_error: float
    detail: float
    detail_error: float


def split(n: int) -> Split:
    """Samples to fit, to choose lambda, and to test: 4 : 1 : 2."""
    return n * 4 // 7, n // 7, n - n * 4 // 7 - n // 7


@dataclass(frozen=True)
class Step:
    """One level's images and the patches of the next one over it: all that the regressions need of the samples."""

    below: Float[Tensor, "n c h h"]
    patches: Float[Tensor, "n places d"]
    places: tuple[tuple[int, int], ...]


def steps(pyramid: Pyramid) -> list[Step]:
    """A step from every level of an image-form pyramid to the next; ``ValueError`` where a level is not twice the last."""
    found = []
    for x, y in pairwise(pyramid):
        side = x.shape[-1]
        if y.shape[-1] != 2 * side:
            raise ValueError(f"levels of {side} and {y.shape[-1]} pixels: only levels that double are predicted")
        rows = torch.linspace(0, max(side - FOOTPRINT, 0), PLACES + 2)[1:-1].round().int().tolist()
        places = tuple((i, j) for i in dict.fromkeys(rows) for j in dict.fromkeys(rows))
        patches = [y[..., 2 * i : 2 * i + PATCH, 2 * j : 2 * j + PATCH].flatten(1) for i, j in places]
        found.append(Step(x.clone(), torch.stack(patches, 1), places))
    return found


def join(parts: list[list[Step]]) -> list[Step]:
    """Batches of samples into one."""
    return [
        Step(torch.cat([s.below for s in same]), torch.cat([s.patches for s in same]), same[0].places)
        for same in zip(*parts)
    ]


def predictions(of: str, joined: list[Step]) -> Iterator[Prediction]:
    """All radii of all steps."""
    for level, step in enumerate(joined, start=1):
        side = step.below.shape[-1]
        sizes = split(len(step.below))
        y = step.patches.double()
        enlarged = F.interpolate(step.below, scale_factor=2, mode="nearest").double()
        up = [enlarged[..., 2 * i : 2 * i + PATCH, 2 * j : 2 * j + PATCH].flatten(1) for i, j in step.places]
        test, detail = y.split(sizes)[2], (y - torch.stack(up, 1)).split(sizes)[2]
        spreads = [(t - t.mean(0)).square().sum((1, 2)) for t in (test, detail)]
        for radius in [r for r in RADII if FOOTPRINT + 2 * r < side] + [None]:
            if radius is None:
                errors = _errors(step.below.flatten(1), y.flatten(1), sizes)
            else:
                width, padded = FOOTPRINT + 2 * radius, F.pad(step.below, (radius,) * 4)
                windows = [padded[..., i : i + width, j : j + width].flatten(1) for i, j in step.places]
                errors = sum((_errors(x, y[:, p], sizes) for p, x in enumerate(windows)), torch.zeros(1))
            (r2, r2_error), (d, d_error) = (_one_minus_ratio(errors, spread) for spread in spreads)
            pixels = side if radius is None else FOOTPRINT + 2 * radius
            yield Prediction(of, level, radius, pixels, r2, r2_error, d, d_error)


def _one_minus_ratio(a: Tensor, b: Tensor) -> tuple[float, float]:
    """``1 - mean a / mean b`` and its standard error (linearised)."""
    ratio = a.mean() / b.mean().clamp(min=1e-30)
    error = (a - ratio * b).std() / b.mean().clamp(min=1e-30) / len(a) ** 0.5
    return float(1 - ratio), float(error)


def _errors(x: Float[Tensor, "n k"], y: Float[Tensor, "n q"], sizes: Split) -> Float[Tensor, " tested"]:
    """Squared error of every test sample, at the lambda that is best on the samples set aside for choosing it."""
    x = x.double()
    x, y = x - x[: sizes[0]].mean(0), y - y[: sizes[0]].mean(0)
    (fit, choose, test), (target, chosen, truth) = x.split(sizes), y.split(sizes)
    n, k = fit.shape
    dual = k > n
    gram = fit @ fit.T if dual else fit.T @ fit
    right = target if dual else fit.T @ target
    scale = gram.diagonal().mean().clamp(min=1e-30)
    best, found = torch.inf, truth.square().sum(1)
    for ridge in RIDGES:
        factor, failed = torch.linalg.cholesky_ex(gram + ridge * scale * torch.eye(len(gram), dtype=gram.dtype))
        if failed:
            continue
        A = torch.cholesky_solve(right, factor)
        A = fit.T @ A if dual else A
        loss = float((chosen - choose @ A).square().sum())
        if loss < best:
            best, found = loss, (truth - test @ A).square().sum(1)
    return found
