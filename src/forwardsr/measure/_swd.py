r"""Laplacian pyramids, patches and the sliced Wasserstein distance: what :mod:`forwardsr.measure.distance` is made of.

The Laplacian pyramid is Burt and Adelson's (1983), halved and doubled by :mod:`forwardsr.data.scale`: constants pass unchanged, and
every detail band of one is zero.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from forwardsr.data.scale import double, halve
from forwardsr.sorting import sort_rows

PATCH = 7
"""Side of a descriptor (Karras et al., 2018); smaller where the band is."""

SMALLEST_SD = 1e-4
"""What a standard deviation is raised to before dividing: far below one grey value (2/255), far above rounding."""


def band_sides(side: int) -> list[int]:
    """Sides of the bands of an image of ``side`` pixels, coarse first: halved while that is even and holds a patch."""
    sides = [side]
    while sides[-1] % 2 == 0 and sides[-1] // 2 >= PATCH:
        sides.append(sides[-1] // 2)
    return sides[::-1]


def laplacian(images: Float[Tensor, "n c s s"]) -> list[Tensor]:
    """The bands, coarse first: ``[low-pass, detail, ..., finest detail]``, of the sides that :func:`band_sides` lists.

    Doubling the coarsest and adding the next, repeatedly, gives the images back.
    """
    bands = []
    for _ in band_sides(images.shape[-1])[1:]:
        low = halve(images)
        bands.append(images - double(low))
        images = low
    return [images, *bands[::-1]]


def patches(band: Float[Tensor, "n c s s"], at: Int64[Tensor, " p"]) -> Float[Tensor, "np c k k"]:
    """The ``min(7, s)`` pixels wide patches of every image with top left corners ``at`` (row-major among those that fit)."""
    side = band.shape[-1]
    k = min(PATCH, side)
    fit = side - k + 1
    found = band.unfold(2, k, 1).unfold(3, k, 1)[:, :, at // fit, at % fit]
    return found.transpose(1, 2).flatten(0, 1)


def project(descriptors: Float[Tensor, "m c k k"], theta: Float[Tensor, "r c k k"]) -> Float[Tensor, "2 r m"]:
    """Sorted projections of the descriptors on the directions ``theta``: as they are ``[0]``, and standardised ``[1]``.

    Standardised descriptors have, in every channel, mean 0 and standard deviation 1 over all descriptors and pixels. The
    standardising is moved into the directions, so that it costs no pass over the descriptors.
    """
    mean = descriptors.mean((0, 2, 3))
    centred = descriptors - mean[:, None, None]
    sd = torch.linalg.vector_norm(centred, dim=(0, 2, 3)) / (centred.numel() / len(mean)) ** 0.5  # faster than std()
    sd = sd.clamp_min(SMALLEST_SD)
    scaled = theta / sd[:, None, None]
    both = torch.stack([theta, scaled]).flatten(2) @ descriptors.flatten(1).T
    both[1] -= torch.einsum("rcij,c->r", scaled, mean)[:, None]
    return sort_rows(both)


def wasserstein(a: Float[Tensor, "*r m"], b: Float[Tensor, "*r k"]) -> Float[Tensor, "*r"]:
    r"""The 1-Wasserstein distance of the empirical distributions of sorted rows: :math:`\int_0^1 |F_a^{-1} - F_b^{-1}|`.

    Exact for unequal sizes too: the quantile functions are constant between consecutive multiples of 1/m and 1/k.
    """
    m, k = a.shape[-1], b.shape[-1]
    if m == k:
        return (a - b).abs().mean(-1)
    steps = torch.cat([torch.arange(1, m + 1) * k, torch.arange(1, k + 1) * m]).sort().values
    ends = torch.unique_consecutive(steps)
    widths = torch.diff(ends, prepend=ends.new_zeros(1))
    starts = ends - widths
    gap = a[..., (starts // k).to(a.device)] - b[..., (starts // m).to(b.device)]
    return gap.abs() @ widths.to(a) / (m * k)
