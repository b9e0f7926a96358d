r"""Edge-colour features: an orthonormal basis under which small colour patches of photographs are sparse (paper, Fig. 2).

The span is that of the m leading principal components of random patches; inside it, the basis is the rotation that makes the
coefficients least Gaussian (symmetric fixed-point ICA with the contrast log cosh). A rotation keeps the columns orthonormal.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int64
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F

from forwardsr.data.pyramid import unfold

PATCHES = 8_000  # enough for visibly oriented features; a second of work
ITERATIONS = 40  # the rotation has settled to the eye well before


def photograph_patches(n: int, side: int, scale: int, generator: torch.Generator) -> Float[Tensor, "n d"]:
    """``n`` random RGB patches, flattened as ``(3, side, side)``, of photographs shrunk ``scale`` times; float64."""
    from skimage import data as photographs

    pools = []
    for name in ("astronaut", "coffee", "chelsea"):
        image = getattr(photographs, name)()
        pixels = torch.from_numpy(np.asarray(image, dtype=np.float64) / 127.5 - 1).permute(2, 0, 1)[None]
        pixels = F.avg_pool2d(pixels, scale)
        for y, x in ((0, 0), (side // 2, side // 2)):
            shifted = pixels[:, :, y:, x:]
            h, w = (s - s % side for s in shifted.shape[-2:])
            pools.append(unfold(shifted[:, :, :h, :w], side)[0])
    pool = torch.cat(pools)
    return pool[torch.randint(len(pool), (n,), generator=generator)]


def edge_colour_features(m: int, side: int, scale: int, generator: torch.Generator) -> Float[Tensor, "d m"]:
    """An orthonormal ``(3 side^2, m)`` basis, float64, each column signed so that its coefficient is skewed to the positive.

    ``scale``: how many times the photographs are shrunk first (coarser levels see larger structures).
    """
    x = photograph_patches(PATCHES, side, scale, generator)
    x = x - x.mean(0)
    values, vectors = torch.linalg.eigh(x.T @ x / len(x))
    values, vectors = values[-m:], vectors[:, -m:]
    white = ((x @ vectors) / values.sqrt()).float()
    rotation = torch.linalg.qr(torch.randn(m, m, generator=generator))[0]
    for _ in range(ITERATIONS):
        y = white @ rotation
        g = torch.tanh(y)
        update = white.T @ g / len(x) - rotation * (1 - g**2).mean(0)
        u, _, vh = torch.linalg.svd(update)
        rotation = u @ vh
    W: Tensor = vectors @ torch.linalg.qr(rotation.double())[0]  # orthonormal to double precision again
    return W * torch.where(((x @ W) ** 3).mean(0) < 0, -1.0, 1.0).to(W)


def matching_parents(
    parent: Float[Tensor, "k d m0"], child: Float[Tensor, "k d m"], quadrant: Int64[Tensor, " k"], side: int
) -> Int64[Tensor, "k m"]:
    """For every child patch and channel (``m <= m0``), the parent's channel it continues best, each used once at most.

    ``parent[k]`` holds the features of child k's parent, ``quadrant[k]`` (0..3, row-major) its place there. The parent's
    features are enlarged twice bilinearly and cut into quadrants; the assignment has the largest total inner product.
    """
    k, _, m = parent.shape
    large = F.interpolate(
        parent.mT.reshape(k * m, -1, side, side), scale_factor=2, mode="bilinear", align_corners=False
    )
    quarters = unfold(large, side).view(k, m, 4, -1)[torch.arange(k), :, quadrant]
    likeness = torch.einsum("kpd,kdc->kcp", quarters, child)
    return torch.stack([torch.from_numpy(linear_sum_assignment(a.numpy(), maximize=True)[1]) for a in likeness])
