"""Halving and doubling images, and weights that look through them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from scipy import ndimage
from torch import Tensor

from forwardsr.data.scale import blur_matrix, double, halve, of_blurred, of_doubled_finest, of_finest


def images(n: int, side: int) -> Tensor:
    return torch.randn(n, 3, side, side, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def blurred(x: Tensor) -> Tensor:
    matrix = blur_matrix(x.shape[-1], x.dtype, x.device)
    return matrix @ x @ matrix.T


def test_blurring_is_the_mirrored_binomial_filter() -> None:
    x = images(1, 12)[0, 0]
    taps = torch.tensor([1.0, 4, 6, 4, 1], dtype=torch.float64) / 16
    kernel = taps[:, None] * taps
    expected = ndimage.convolve(x.numpy(), kernel.numpy(), mode="mirror")[::2, ::2]
    torch.testing.assert_close(halve(x), torch.from_numpy(expected.copy()))
    zeros = torch.zeros(24, 24, dtype=torch.float64)
    zeros[::2, ::2] = x
    expected = ndimage.convolve(zeros.numpy(), 4 * kernel.numpy(), mode="mirror")
    torch.testing.assert_close(double(x), torch.from_numpy(expected))


def finest(x: Tensor) -> Tensor:
    return x - double(halve(x))


def test_weights_of_what_is_finest() -> None:
    x, theta = images(5, 8), images(4, 8).flip(-1)
    torch.testing.assert_close(of_finest(theta).flatten(1) @ x.flatten(1).T, theta.flatten(1) @ finest(x).flatten(1).T)


@pytest.mark.parametrize(("weights", "seen"), [(of_blurred, blurred), (of_doubled_finest, lambda x: finest(double(x)))])
def test_weights_of_what_is_seen_in_a_window(
    weights: Callable[[Tensor, Tensor, int], Tensor], seen: Callable[[Tensor], Tensor]
) -> None:
    x, theta = images(5, 8), images(4, 3)
    corners = torch.tensor([[0, 0], [5, 5], [1, 4], [3, 2]])
    for own, (y, column), found in zip(theta, corners.tolist(), weights(theta, corners, 8)):
        expected = (seen(x)[:, :, y : y + 3, column : column + 3] * own).sum((1, 2, 3))
        torch.testing.assert_close((found * x).sum((1, 2, 3)), expected)
