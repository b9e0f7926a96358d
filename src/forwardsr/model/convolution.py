r"""The convolutions of which both networks are made, each computed in the fastest way that there is here.

* On CPUs, 6 x 6 with stride 2 between many channels, and their transposes: Winograd's minimal filtering
  (:mod:`forwardsr.model.winograd`).
* On CPUs, those from or to few channels (an image): as 3 x 3 convolutions from or to the four pixels of 2 x 2 blocks,

  .. math::
      S(i) = \sum_{p=0}^{1} \sum_{m=0}^{2} w(2m + p)\, X(2(i + m - 1) + p), \qquad
      X(2i + p) = \sum_{m=0}^{2} w(2m + p)\, S(i + 1 - m) \quad \text{(in each dimension)},

  the same sums; the second is two to four times as fast as PyTorch's transposed convolution, in bfloat16, too.
* All else, everything on GPUs, and in half precision all but the second, by PyTorch.

Gradient penalties differentiate an image's gradient once more. Here that costs what it must: PyTorch computes the weights'
gradient along with the image's where a function is written in Python, and after the second derivative carries zeros back through
the whole network (its convolutions and leaky ReLU return zeros, not nothing, for a derivative that vanishes).
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from forwardsr.model import winograd

KERNEL = 6  # the paper's 6 x 6 features
FEW = 32  # channels: with fewer, Winograd's transforms cost more than the multiplications that they save
LEAST_PRODUCTS = 100e6  # multiplications of a convolution, likewise (both measured on two AVX2 cores)


class Convolution(nn.Conv2d):
    """``kernel x kernel``, padded so that the side is divided by ``stride`` exactly. The default halves the side."""

    def __init__(self, inputs: int, outputs: int, kernel: int = KERNEL, stride: int = 2) -> None:
        super().__init__(inputs, outputs, kernel, stride=stride, padding=(kernel - stride) // 2)

    def forward(self, input: Float[Tensor, "n c H W"]) -> Float[Tensor, "n m h w"]:
        if _library(input):
            return super().forward(input)
        stride, windows = self.stride[0], list[Tensor]()
        token = _Parameters.apply(input.detach(), self.weight, self.bias, stride, windows)  # type: ignore[no-untyped-call]
        return _Image.apply(input, self.weight, self.bias, stride, windows, token)  # type: ignore[no-untyped-call]


class Deconvolution(nn.ConvTranspose2d):
    """6 x 6, doubling the side."""

    def __init__(self, inputs: int, outputs: int, bias: bool = True) -> None:
        super().__init__(inputs, outputs, KERNEL, stride=2, padding=KERNEL // 2 - 1, bias=bias)

    def forward(
        self, input: Float[Tensor, "n m h w"], output_size: list[int] | None = None
    ) -> Float[Tensor, "n c H W"]:
        if output_size is not None:
            return super().forward(input, output_size)
        return transposed(input, self.weight, self.bias)


def transposed(
    s: Float[Tensor, "n m h w"],
    weight: Float[Tensor, "m c k k"],
    bias: Float[Tensor, " c"] | None = None,
    stride: int = 2,
) -> Float[Tensor, "n c H W"]:
    """The transposed convolution, H = stride h, W = stride w: ``conv_transpose2d`` with padding (k - stride) / 2."""
    if _library(s):
        if s.device.type != "cpu" or s.dtype == torch.float64 or not _from_or_to_image(weight):
            return F.conv_transpose2d(s, weight, bias, stride, (weight.shape[2] - stride) // 2)
        half = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else s.dtype
        s, weight, bias = s.to(half), weight.to(half), None if bias is None else bias.to(half)
    return _Transposed.apply(s, weight, bias, stride)  # type: ignore[no-untyped-call]


def _library(x: Tensor) -> bool:
    full = x.dtype in (torch.float32, torch.float64) and not torch.is_autocast_enabled(x.device.type)
    return x.device.type != "cpu" or not full


def _winograd(weight: Tensor, pixels: int) -> bool:
    """Whether Winograd's way pays, ``pixels`` being those of the smaller image over all samples."""
    return weight.shape[2] == KERNEL and min(weight.shape[:2]) >= FEW and weight.numel() * pixels >= LEAST_PRODUCTS


def _pixels(x: Tensor) -> int:
    return len(x) * x.shape[2] * x.shape[3]


def _from_or_to_image(weight: Tensor) -> bool:
    return weight.shape[2] == KERNEL and weight.shape[1] < FEW


def _down(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int) -> tuple[Tensor, list[Tensor]]:
    if _winograd(weight, _pixels(x) // 4):
        y, windows = winograd.down(x, weight)
        return y if bias is None else y.add_(bias[:, None, None]), windows
    if _from_or_to_image(weight):
        return _from_image(x, weight, bias), []
    return F.conv2d(x, weight, bias, stride, (weight.shape[2] - stride) // 2), []


def _up(s: Tensor, weight: Tensor, bias: Tensor | None, stride: int) -> Tensor:
    if _winograd(weight, _pixels(s)):
        out = winograd.up(s, weight)
        return out if bias is None else out.add_(bias[:, None, None])
    if _from_or_to_image(weight):
        return _to_image(s, weight, bias)
    return F.conv_transpose2d(s, weight, bias, stride, (weight.shape[2] - stride) // 2)


def _block_taps(weight: Tensor) -> Tensor:
    """``(m, c, 6, 6)`` as ``(4 c, m, 3, 3)``: first the place in the block, p and q, then the channel."""
    return weight.unflatten(3, (3, 2)).unflatten(2, (3, 2)).permute(3, 5, 1, 0, 2, 4).flatten(0, 2)


def _from_image(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    n, c, h, w = x.shape
    blocks = x.permute(0, 2, 3, 1).reshape(n, h // 2, 2, w // 2, 2, c).transpose(2, 3).reshape(n, h // 2, w // 2, 4 * c)
    taps = _block_taps(weight).transpose(0, 1).contiguous(memory_format=torch.channels_last)
    return F.conv2d(blocks.permute(0, 3, 1, 2), taps, bias, padding=1)


def _to_image(s: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    n, _, h, w = s.shape
    c = weight.shape[1]
    spare = -4 * c % 8  # to a multiple of a vector's length
    taps = F.pad(_block_taps(weight).flip(2, 3), (0, 0, 0, 0, 0, 0, 0, spare))
    shift = None if bias is None else F.pad(bias.repeat(4), (0, spare))
    blocks = F.conv2d(s, taps.contiguous(memory_format=torch.channels_last), shift, padding=1).permute(0, 2, 3, 1)
    out = torch.empty((n, c, 2 * h, 2 * w), dtype=s.dtype, memory_format=torch.channels_last)
    out.permute(0, 2, 3, 1).view(n, h, 2, w, 2, c).copy_(blocks[..., : 4 * c].unflatten(3, (2, 2, c)).transpose(2, 3))
    return out


_Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]


def _gradients(
    cotangent: Tensor, x: Tensor, weight: Tensor, stride: int, needed: list[bool], *, transposed: bool = False
) -> _Gradients:
    padding = (weight.shape[2] - stride) // 2
    return torch.ops.aten.convolution_backward(
        cotangent, x, weight, [cotangent.shape[1]], [stride] * 2, [padding] * 2, [1, 1], transposed, [0, 0], 1, needed
    )


class _Image(Function):
    """A convolution as a function of its image. It hands its cotangent on to ``token``, for the parameters' gradients, and
    leaves what Winograd's way computes for those in ``windows``."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, stride: int, windows: list[Tensor], token: Tensor
    ) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.stride = stride
        y, parts = _down(x, weight, bias, stride)
        if token.requires_grad:
            windows += parts
        return y

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, None, None, None, None, Tensor]:
        (weight,) = ctx.saved_tensors
        for_x = transposed(cotangent, weight, None, ctx.stride) if ctx.needs_input_grad[0] else None
        return for_x, None, None, None, None, cotangent


class _Parameters(Function):
    """Of a convolution, the gradients of weight and bias, differentiable once. Its value is a token without content.

    The engine comes here only where the parameters' gradients are asked for; it always comes to :class:`_Image`.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, stride: int, windows: list[Tensor]) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.windows = stride, windows
        return x.new_zeros(()).expand(len(x), len(weight), x.shape[2] // stride, x.shape[3] // stride)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, cotangent: Tensor) -> tuple[None, Tensor | None, Tensor | None, None, None]:
        x, weight = ctx.saved_tensors
        needed = ctx.needs_input_grad
        if ctx.windows:
            for_weight = winograd.weight_gradient(ctx.windows, cotangent) if needed[1] else None
            return None, for_weight, cotangent.sum((0, 2, 3)) if needed[2] else None, None, None
        _, for_weight, for_bias = _gradients(cotangent, x, weight, ctx.stride, [False, *needed[1:3]])
        return None, for_weight, for_bias, None, None


class _Transposed(Function):
    @staticmethod
    def forward(ctx: Any, s: Tensor, weight: Tensor, bias: Tensor | None, stride: int) -> Tensor:
        ctx.save_for_backward(s, weight)
        ctx.stride = stride
        return _up(s, weight, bias, stride)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        s, weight = ctx.saved_tensors
        needed = list(ctx.needs_input_grad[:3])
        if torch.is_grad_enabled():  # these gradients will be differentiated again
            return *_gradients(cotangent, s, weight, ctx.stride, needed, transposed=True), None
        if _winograd(weight, _pixels(s)):
            own, windows = winograd.down(cotangent, weight)
            for_weight = winograd.weight_gradient(windows, s) if needed[1] else None
            return own, for_weight, cotangent.sum((0, 2, 3)) if needed[2] else None, None
        for_s: Tensor | None = None
        if needed[0] and _from_or_to_image(weight):
            for_s, needed[0] = _from_image(cotangent, weight), False
        rest = _gradients(cotangent, s, weight, ctx.stride, needed, transposed=True)
        return rest[0] if for_s is None else for_s, rest[1], rest[2], None
