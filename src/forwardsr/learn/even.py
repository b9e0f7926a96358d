r"""Gaussian samples that lie more evenly than independent ones: at right angles, and in pairs :math:`\pm z` (Yu et al. 2016).

Means over n of them of what is linear in z have no noise, and those of what is quadratic have little. So they are for what is
*fitted to* drawn samples; what is measured or shown is of independent ones, as its floor is.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def rotation(m: int, generator: torch.Generator) -> Float[Tensor, "m m"]:
    """A random orthogonal matrix."""
    return torch.linalg.qr(torch.randn(m, m, generator=generator)).Q


def even(n: int, Q: Float[Tensor, "m m"], R: Float[Tensor, "m m"], generator: torch.Generator) -> Float[Tensor, "n m"]:
    """``n`` standard Gaussians that lie more evenly than independent ones: m at a time at right angles (Yu et al. 2016).

    ``Q``, ``R``: orthogonal and random: standard are the samples over these. In place of a new rotation for every m of them, random
    signs between the two and after them; lengths as Wilson and Hilferty (1931) approximate them.
    """
    m = len(Q)
    blocks = []
    for _ in range(-(-n // m)):
        first, last = (torch.randint(2, (2, m), generator=generator) * 2 - 1).to(Q)
        square = m * (1 - 2 / (9 * m) + (2 / (9 * m)) ** 0.5 * torch.randn(m, 1, generator=generator)) ** 3
        blocks.append(((Q * first) @ R) * last * square.clamp_min(0).sqrt().to(Q))
    return torch.cat(blocks)[:n]


def even_pairs(n: int, m: int, generator: torch.Generator) -> Float[Tensor, "n m"]:
    """``n`` samples as :func:`even` makes them, and their negatives, in random order."""
    half = even(-(-n // 2), rotation(m, generator), rotation(m, generator), generator)
    return torch.cat([half, -half])[torch.randperm(2 * len(half), generator=generator)[:n]]
