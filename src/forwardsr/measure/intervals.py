"""Confidence intervals of frequencies, and the joint tail of two Gaussians."""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

NODES = 48  # Gauss-Legendre: 1e-8 up to |rho| = 0.99


def wilson(count: Tensor, n: Tensor | int, z: float) -> tuple[Tensor, Tensor]:
    """Wilson's interval, at z standard deviations, of a probability seen ``count`` times in ``n``; [0, 1] where n = 0."""
    n = torch.as_tensor(n, dtype=torch.float64)
    p = count / n.clamp(min=1)
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * (p * (1 - p) / n + (z / (2 * n)) ** 2).sqrt()
    return torch.where(n > 0, (centre - half).clamp(min=0), 0.0), torch.where(n > 0, (centre + half).clamp(max=1), 1.0)


def both_active(
    t_1: Float[Tensor, "*shape"], t_2: Float[Tensor, "*shape"], rho: Float[Tensor, "*shape"]
) -> Float[Tensor, "*shape"]:
    r"""``Pr[g_1 > t_1, g_2 > t_2]`` of standard Gaussians of correlation rho, float64.

    By Plackett's identity d Pr / d rho = phi_2(t_1, t_2; rho), integrated over rho = sin(theta) by Gauss-Legendre.
    """
    nodes, weights = (torch.from_numpy(x) for x in np.polynomial.legendre.leggauss(NODES))
    t_1, t_2, end = t_1.double()[..., None], t_2.double()[..., None], torch.asin(rho.double())[..., None]
    theta = end * (nodes + 1) / 2
    exponent = -(t_1**2 + t_2**2 - 2 * t_1 * t_2 * theta.sin()) / (2 * theta.cos() ** 2)
    integral = (exponent.exp() * weights).sum(-1) * end[..., 0] / (4 * math.pi)
    result: Tensor = (torch.special.ndtr(-t_1) * torch.special.ndtr(-t_2))[..., 0] + integral
    return result
