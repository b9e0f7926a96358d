r"""Halving and doubling images as a Laplacian pyramid does (Burt and Adelson 1983), and what is finest in them.

The binomial filter :math:`(1, 4, 6, 4, 1) / 16` with mirrored borders, as in Karras et al. (2018), is on a side of ``s`` pixels an
``s x s`` matrix :math:`B`, so that blurring, halving and doubling are matrix products: :math:`\downarrow x = D x D^T` with
:math:`D = B_{0::2,:}`, and :math:`\uparrow x = U x U^T` with :math:`U = 2 B_{:,0::2}`. The rows of all three sum to one, so constants
pass unchanged, and none is left in what is finest, :math:`H x = x - \uparrow\downarrow x`.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor


def blur_matrix(side: int, dtype: torch.dtype, device: torch.device) -> Float[Tensor, "side side"]:
    """The filter (1, 4, 6, 4, 1) / 16 along one axis of ``side`` pixels, mirrored about the outermost pixels."""
    out = torch.arange(side, device=device)
    matrix = torch.zeros(side, side, dtype=dtype, device=device)
    period = max(1, 2 * (side - 1))
    for tap, weight in zip(range(-2, 3), (1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16)):
        source = (out + tap) % period
        source = torch.minimum(source, period - source).clamp_max(side - 1)
        matrix.index_put_((out, source), matrix.new_tensor(weight).expand(side), accumulate=True)
    return matrix


def halve(x: Float[Tensor, "*n s s"]) -> Float[Tensor, "*n t t"]:
    """Blur and keep every second pixel, the first included."""
    down = _down(x.shape[-1], x)
    return down @ (x @ down.T)


def double(x: Float[Tensor, "*n s s"]) -> Float[Tensor, "*n t t"]:
    """Twice the side: zeros between the pixels, blurred, times four."""
    up = _up(2 * x.shape[-1], x)
    return up @ (x @ up.T)


def of_finest(theta: Float[Tensor, "*n s s"]) -> Float[Tensor, "*n s s"]:
    """The weights w with ``<w, x> = <theta, H x>`` for every image x."""
    coarse = _up(theta.shape[-1], theta) @ _down(theta.shape[-1], theta)
    return theta - coarse.T @ (theta @ coarse)


def of_blurred(
    theta: Float[Tensor, "n c t t"], first: Int64[Tensor, "n 2"], side: int
) -> Float[Tensor, "n c side side"]:
    """The weights w with ``<w, x> = <theta, x blurred, in a window>`` for images of ``side`` pixels; ``first``: its upper left."""
    return _through(blur_matrix(side, theta.dtype, theta.device), theta, first)


def of_doubled_finest(
    theta: Float[Tensor, "n c t t"], first: Int64[Tensor, "n 2"], side: int
) -> Float[Tensor, "n c side side"]:
    """The weights w with ``<w, x> = <theta, H double(x), in a window>``; ``first``: its upper left, in pixels of the double."""
    up = _up(2 * side, theta)
    return _through(up, theta, first) - _through(up @ (_down(2 * side, theta) @ up), theta, first)


def _through(matrix: Tensor, theta: Tensor, first: Tensor) -> Tensor:
    """``theta`` padded with zeros around its window, through a matrix along both axes."""
    row, column = matrix[first[:, :, None] + torch.arange(theta.shape[-1], device=first.device)].unbind(1)
    return row.mT[:, None] @ theta @ column[:, None]


def _down(side: int, like: Tensor) -> Tensor:
    return blur_matrix(side, like.dtype, like.device)[0::2]


def _up(side: int, like: Tensor) -> Tensor:
    return 2 * blur_matrix(side, like.dtype, like.device)[:, 0::2]
