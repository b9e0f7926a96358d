"""Which device and which precision a learning runs on."""

from __future__ import annotations

import time

import torch
from torch import nn

from forwardsr.errors import UserError
from forwardsr.model.deconv_generator import channels_last


def resolve_device(name: str) -> torch.device:
    """``auto``, ``cpu`` or ``cuda`` (``cuda:1``). Raises ``UserError`` for a device that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"--device {name}: no such device; say auto, cpu or cuda") from None
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"--device {name}: only cpu and cuda are supported")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"--device {name}: there is no CUDA device here (or PyTorch is a CPU build); say --device cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"--device {name}: there are {torch.cuda.device_count()} CUDA devices, counted from 0")
    return device


def resolve_precision(name: str, device: torch.device) -> str:
    """``float32`` or ``bfloat16``, or for ``auto`` the faster of the two on ``device``.

    bfloat16 pays where the processor multiplies it in hardware (CUDA, AVX-512 BF16, AMX) and is tens of times slower where it
    does not, which no flag tells reliably: a convolution of the generator's kind is timed in both, one so large that its products
    decide and not what a call costs beside them.
    """
    if name in ("float32", "bfloat16"):
        return name
    if name != "auto":
        raise UserError(f"--precision {name}: no such precision; say auto, float32 or bfloat16")
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float32"
    conv = nn.Conv2d(64, 64, 6, stride=2, padding=2)
    channels_last(conv)
    x = torch.zeros(8, 64, 32, 32).contiguous(memory_format=torch.channels_last)
    took: dict[str, list[float]] = {"float32": [], "bfloat16": []}
    for _ in range(7):  # the best of several, in turn: on a busy machine a single timing says nothing
        for precision, times in took.items():
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
                start = time.perf_counter()
                conv(x)
                times.append(time.perf_counter() - start)
    return "bfloat16" if min(took["bfloat16"]) < 0.8 * min(took["float32"]) else "float32"
