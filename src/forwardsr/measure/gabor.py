r"""The best Gabor function for each of many filters, all at once.

A filter is ``w(c, x)``: c colour channels by p x p pixels. It is fitted by a Gabor function of one colour,

.. math:: a_c \; e^{-u^2 / 2 s_u^2 - v^2 / 2 s_v^2} \cos(2 \pi f u + \phi), \qquad
          (u, v) = R_\theta (x - x_0),

with a in R^c; ``r^2 = 1 - |w - fit|^2 / |w|^2``. For given centre, angle, frequency and widths the best a and phase are those of the
largest singular value of the c x 2 matrix of w's coefficients in the orthonormalised envelope times cosine and sine. So the search
is over six numbers: first a grid, then Levenberg-Marquardt on all ten from the best shape of every frequency of the grid, for every
filter in the same batch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

# Of the first search, for a patch of p pixels: angles, cycles a pixel, centres (a side), widths in pixels along and across.
ANGLES, FREQUENCIES, CENTRES, WIDTHS = 8, (0.03, 0.08, 0.14, 0.21, 0.3, 0.42), 4, (0.8, 1.5, 3.0)
ITERATIONS = 25
WIDEST, NARROWEST, FASTEST = 2.0, 0.3, 0.5  # widths in sides of the patch and in pixels; cycles a pixel (Nyquist's)


@dataclass(frozen=True)
class GaborFit:
    """The best Gabor of every filter: r^2, and its angle in [0, pi) (of the wave: 0 is across columns), cycles a pixel."""

    r2: Float[Tensor, " n"]
    angle: Float[Tensor, " n"]
    frequency: Float[Tensor, " n"]


def _coordinates(side: int) -> Float[Tensor, "2 pixels"]:
    """x (along columns) and y (along rows) of every pixel, row-major, from the patch's centre."""
    at = torch.arange(side, dtype=torch.float64) - (side - 1) / 2
    return torch.stack([at.repeat(side), at.repeat_interleave(side)])


def _wave(shape: Float[Tensor, "*n 6"], side: int) -> tuple[Float[Tensor, "*n pixels"], Float[Tensor, "*n pixels"]]:
    """Envelope and phase of shapes ``(x_0, y_0, theta, f, log s_u, log s_v)``."""
    x, y = _coordinates(side)
    x0, y0, theta, f, log_u, log_v = shape[..., None].unbind(-2)
    u = (x - x0) * theta.cos() + (y - y0) * theta.sin()
    v = (y - y0) * theta.cos() - (x - x0) * theta.sin()
    return (-(u * torch.exp(-log_u)).square() / 2 - (v * torch.exp(-log_v)).square() / 2).exp(), 2 * math.pi * f * u


def _grid(side: int) -> Float[Tensor, "grid 6"]:
    half = (side - 1) / 2 * (1 - 1 / CENTRES)
    centre = torch.linspace(-half, half, CENTRES, dtype=torch.float64)
    angle = torch.arange(ANGLES, dtype=torch.float64) * math.pi / ANGLES
    width = torch.tensor(WIDTHS, dtype=torch.float64).log()
    frequency = torch.tensor(FREQUENCIES, dtype=torch.float64)
    return torch.cartesian_prod(centre, centre, angle, frequency, width, width)


def _starts(filters: Float[Tensor, "n c pixels"], side: int) -> Float[Tensor, "starts n 6"]:
    """The grid's best shape of every frequency for every filter, in float32."""
    grid = _grid(side)
    envelope, phase = _wave(grid, side)
    first = envelope * phase.cos()
    first = first / first.norm(dim=-1, keepdim=True)
    second = envelope * phase.sin()
    second = second - (first * second).sum(-1, keepdim=True) * first
    length = second.norm(dim=-1, keepdim=True)
    second = torch.where(length > 1e-6, second / length.clamp(min=1e-12), 0.0)
    starts = []
    for f in FREQUENCIES:
        of = (grid[:, 3] == f).nonzero()[:, 0]
        cos, sin = (filters.float() @ basis[of].float().T for basis in (first, second))
        # The largest eigenvalue of the 2 x 2 Gram matrix of the coefficients.
        a, b, c = (cos * cos).sum(1), (sin * sin).sum(1), (cos * sin).sum(1)
        starts.append(grid[of[(a + b + ((a - b).square() + 4 * c * c).sqrt()).argmax(1)]])
    return torch.stack(starts)


def _fit(q: Float[Tensor, "n q"], side: int) -> Float[Tensor, "n c pixels"]:
    """The Gabor function of parameters ``(shape, phase, a)``."""
    envelope, phase = _wave(q[:, :6], side)
    return q[:, 7:, None] * (envelope * (phase + q[:, 6, None]).cos())[:, None]


def _normal_equations(
    q: Float[Tensor, "n q"], residual: Float[Tensor, "n c pixels"], side: int
) -> tuple[Float[Tensor, "n q q"], Float[Tensor, "n q"]]:
    """``J^T J`` and ``J^T residual``, J the derivatives of the fit: those by shape and phase are ``a`` times one field each."""
    x, y = _coordinates(side)
    x0, y0, theta, f, log_u, log_v, phi = q[:, :7, None].unbind(1)
    a = q[:, 7:]
    cos, sin = theta.cos(), theta.sin()
    u, v = (x - x0) * cos + (y - y0) * sin, (y - y0) * cos - (x - x0) * sin
    uu, vv, k = u * torch.exp(-2 * log_u), v * torch.exp(-2 * log_v), 2 * math.pi * f
    envelope = (-(u * uu + v * vv) / 2).exp()
    wave, shifted = envelope * (k * u + phi).cos(), -envelope * (k * u + phi).sin()
    by_u, by_v = shifted * k - uu * wave, -vv * wave
    fields = torch.stack(
        [
            -by_u * cos + by_v * sin, -by_u * sin - by_v * cos, by_u * v - by_v * u, 2 * math.pi * u * shifted,
            u * uu * wave, v * vv * wave, shifted,
        ],
        1,
    )  # fmt: skip
    cross = a[:, None, :] * (fields @ wave[..., None])
    corner = wave.square().sum(1)[:, None, None] * torch.eye(a.shape[1], dtype=q.dtype)
    top = torch.cat([a.square().sum(1)[:, None, None] * (fields @ fields.mT), cross], 2)
    H = torch.cat([top, torch.cat([cross.mT, corner], 2)], 1)
    g = torch.cat([(fields @ (a[:, None] @ residual).mT)[..., 0], (residual @ wave[..., None])[..., 0]], 1)
    return H, g


def _amplitudes(shape: Tensor, filters: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """The best phase ``(n, 1)`` and colour ``(n, c)`` of given shapes."""
    envelope, phase = _wave(shape, side)
    waves = torch.stack([envelope * phase.cos(), envelope * phase.sin()], 1)
    orthonormal, triangle = torch.linalg.qr(waves.mT)
    u, s, vh = torch.linalg.svd(filters @ orthonormal, full_matrices=False)
    # Back from the orthonormal basis to (cos, sin); a small ridge where the sine vanishes.
    ridge = 1e-9 * torch.eye(2, dtype=shape.dtype)
    back = torch.linalg.solve(triangle + ridge, vh[:, 0, :, None])[..., 0]
    length = back.norm(dim=1, keepdim=True)
    return torch.atan2(-back[:, 1:], back[:, :1]), u[:, :, 0] * s[:, :1] * length


def _clamp(q: Tensor, side: int) -> Tensor:
    q = q.clone()
    q[:, :2] = q[:, :2].clamp(-side / 2, side / 2)
    q[:, 3] = q[:, 3].clamp(0, FASTEST)
    q[:, 4:6] = q[:, 4:6].clamp(math.log(NARROWEST), math.log(WIDEST * side))
    return q


def fit_gabors(filters: Float[Tensor, "n c p p"]) -> GaborFit:
    """The best Gabor function of every filter. Filters of zero norm get r^2 = 0."""
    side = filters.shape[-1]
    norms = filters.double().flatten(1).norm(dim=1)
    w = filters.double().flatten(2) / norms.clamp(min=1e-30)[:, None, None]
    starts = _starts(w, side)
    w = w.repeat(len(starts), 1, 1)
    shape = starts.flatten(0, 1)
    q = _clamp(torch.cat([shape, *_amplitudes(shape, w, side)], 1), side)
    damping = torch.full((len(w),), 1e-2, dtype=torch.float64)
    residual = w - _fit(q, side)
    loss = residual.square().sum((1, 2))
    for _ in range(ITERATIONS):
        H, g = _normal_equations(q, residual, side)
        ridge = damping[:, None] * (H.diagonal(dim1=1, dim2=2) + 1e-6)
        tried = _clamp(q + torch.linalg.solve(H + torch.diag_embed(ridge), g), side)
        r = w - _fit(tried, side)
        better = r.square().sum((1, 2)) < loss
        q, residual = torch.where(better[:, None], tried, q), torch.where(better[:, None, None], r, residual)
        loss = residual.square().sum((1, 2))
        damping = torch.where(better, damping / 4, damping * 4).clamp(1e-9, 1e9)
    loss, best = loss.view(len(starts), -1).min(0)
    q = q.view(len(starts), len(norms), -1)[best, torch.arange(len(norms))]
    return GaborFit(torch.where(norms > 0, (1 - loss).clamp(0, 1), 0.0), q[:, 2] % math.pi, q[:, 3])
