r"""Diversity: MS-SSIM of random pairs (Wang et al. 2003; Odena et al. 2017), and the spacing of nearest neighbours.

For two images the structural similarity over a window is

.. math:: \underbrace{\frac{2 \mu_x \mu_y + C_1}{\mu_x^2 + \mu_y^2 + C_1}}_{l}
          \underbrace{\frac{2 \sigma_{xy} + C_2}{\sigma_x^2 + \sigma_y^2 + C_2}}_{s},

and :math:`\text{MS-SSIM} = \bar l_S^{w_S} \prod_{i \le S} \bar s_i^{w_i}` over scales halved by averaging, bars meaning
averages over the image. Its mean over random pairs is 1 where all images are equal, and the lower the more they differ.

For the small images of a pyramid: scales while the halved side is even and holds 7 pixels (64 px: four, 8 px: one), the
published weights of the scales that are left scaled to sum 1, and an 11 pixel Gaussian window cut down to the side. Both
constants are positive, so constant images give finite numbers.

A collapse to k images moves that mean only by one pair in k. The *spacing* sees it: the mean, over images, of the distance to
the nearest other image (root mean square over the pixels of the low-pass band, so that noise in fine detail does not pass for
variety),

.. math:: \frac1n \sum_i \min_{j \ne i} \| \Delta_1 x_i - \Delta_1 x_j \| / \sqrt{\dim},

which is 0 where every image has a copy. Both are read beside the same number for as many real images: a higher similarity
or a smaller spacing is collapse; the other way is noise rather than merit. The spacing falls with n, by itself.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from forwardsr.measure._swd import band_sides, laplacian

WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Of the scales, fine first (Wang et al. 2003, measured on people)."""

RANGE = 2.0
"""Of the pixel values, [-1, 1]."""

CHUNK = 32
"""Pairs worked on at a time: few enough to stay in the processor's cache, twice as fast as all at once."""

WINDOW, WINDOW_SD = 11, 1.5
C1, C2 = (0.01 * RANGE) ** 2, (0.03 * RANGE) ** 2


def _window(side: int, like: Tensor) -> Tensor:
    """Gaussian windows as a matrix ``(places, side)``: filtering is a product with it along each axis, borders left out."""
    width = min(WINDOW, side - (side + 1) % 2)
    at = torch.arange(width, dtype=like.dtype, device=like.device) - (width - 1) / 2
    taps = (-(at**2) / (2 * WINDOW_SD**2)).exp()
    places = side - width + 1
    matrix = like.new_zeros(places, side)
    for i in range(places):
        matrix[i, i : i + width] = taps / taps.sum()
    return matrix


def ms_ssim(x: Float[Tensor, "n c s s"], y: Float[Tensor, "n c s s"]) -> Float[Tensor, " n"]:
    """MS-SSIM of each pair, pixel values in [-1, 1], averaged over channels. In [-1, 1] up to rounding; 1 where equal."""
    scales = min(len(band_sides(x.shape[-1])), len(WEIGHTS))
    weights = x.new_tensor(WEIGHTS[:scales])
    weights = weights / weights.sum()
    similarity = x.new_ones(x.shape[:2])
    for scale, weight in enumerate(weights):
        window = _window(x.shape[-1], x)
        mx, my, mxx, myy, mxy = window @ (torch.stack([x, y, x * x, y * y, x * y]) @ window.T)
        structure = (2 * (mxy - mx * my) + C2) / (mxx - mx * mx + myy - my * my + C2)
        if scale == scales - 1:
            structure = structure * (2 * mx * my + C1) / (mx * mx + my * my + C1)
        else:
            x, y = F.avg_pool2d(x, 2), F.avg_pool2d(y, 2)
        # A negative base has no fractional power; a negative similarity is no similarity.
        similarity = similarity * structure.mean((-2, -1)).clamp_min(0) ** weight
    return similarity.mean(1)


def diversity(images: Float[Tensor, "n c s s"], generator: torch.Generator, pairs: int = 512) -> float:
    """Mean MS-SSIM over disjoint random pairs, at most ``pairs`` of them; ``ValueError`` where there is not one."""
    if len(images) < 2:
        raise ValueError("diversity needs two images at least")
    pairs = min(pairs, len(images) // 2)
    first, second = torch.randperm(len(images), generator=generator)[: 2 * pairs].to(images.device).view(2, pairs)
    chunks = range(0, pairs, CHUNK)
    return (
        torch.cat([ms_ssim(images[first[i : i + CHUNK]], images[second[i : i + CHUNK]]) for i in chunks]).mean().item()
    )


def spacing(images: Float[Tensor, "n c s s"]) -> float:
    """Mean distance to the nearest other image, root mean square over the low-pass band; ``n >= 2``, ``O(n^2)`` memory."""
    if len(images) < 2:
        raise ValueError("spacing needs two images at least")
    low = laplacian(images)[0].flatten(1)
    # |x|^2 - 2 xy + |y|^2 is fast enough to find the nearest with, but rounds: the distance itself is taken from the difference.
    square = low.square().sum(1)
    nearest = torch.addmm(square, low, low.T, alpha=-2).fill_diagonal_(float("inf")).argmin(1)
    return (low - low[nearest]).square().mean(1).sqrt().mean().item()
