r"""Batch normalisation of a batch that is cut into equal parts, one a process, by the moments of the whole of it.

.. math:: y = w \hat x + b, \qquad \hat x = \frac{x - m}{\sqrt{v + \epsilon}},

with m and v the mean and variance of a channel over the samples (and places) of *all* processes, so that a training by many is one by
one. With m_r and v_r a process's own: :math:`m = \overline{m_r}`, :math:`v = \overline{v_r} + \overline{(m_r - m)^2}`. PyTorch's
``SyncBatchNorm`` does the same on CUDA devices only.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional as F

from forwardsr.parallel import World


class _Normalise(Function):
    r"""``x -> w x^ + b``. With g the cotangent and N values a channel in all processes, over which both sums run,
    :math:`\nabla_x = \frac{w}{\sqrt{v + \epsilon}} (g - \frac1N \sum g - \hat x \frac1N \sum g \hat x)`;
    the gradients of w and b are this process's own.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, w: Tensor, b: Tensor, mean: Tensor, var: Tensor, eps: float, world: World
    ) -> Tensor:
        ctx.save_for_backward(x, w, mean, var)
        ctx.eps, ctx.world = eps, world
        return F.batch_norm(x, mean, var, w, b, False, 0.0, eps)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, w, mean, var = ctx.saved_tensors
        plain, gw, gb = torch.ops.aten.native_batch_norm_backward(
            g, x, w, mean, var, None, None, False, ctx.eps, [True, True, True]
        )
        n = ctx.world.size * (x.numel() // x.shape[1])
        sums = ctx.world.total(torch.stack([gw, gb])) / n
        scale = (var + ctx.eps).rsqrt()
        slope = w * scale * scale * sums[0]
        offset = w * scale * sums[1] - slope * mean
        shape = (1, -1, 1, 1)
        return plain - (x * slope.view(shape) + offset.view(shape)).to(plain.dtype), gw, gb, None, None, None, None


class SharedBatchNorm(nn.BatchNorm2d):
    """The module's head as a layer. In evaluation mode, and in its state, an ``nn.BatchNorm2d``."""

    world: World

    @staticmethod
    def of(norm: nn.BatchNorm2d, world: World) -> SharedBatchNorm:
        """With the parameters and buffers of ``norm`` themselves, so that optimizers still hold them."""
        shared = SharedBatchNorm(norm.num_features, norm.eps, norm.momentum, device="meta")
        shared.world = world
        shared._parameters, shared._buffers = norm._parameters, norm._buffers
        return shared.train(norm.training)

    def forward(self, x: Tensor) -> Tensor:
        """``(n, c, h, w)``, this process's samples."""
        if not self.training:
            return super().forward(x)
        with torch.no_grad():
            var, mean = torch.var_mean(x.to(torch.promote_types(x.dtype, torch.float32)), (0, 2, 3), correction=0)
            variances, means = self.world.stack(torch.stack([var, mean])).unbind(1)
            mean = means.mean(0)
            var = variances.mean(0) + (means - mean).square().mean(0)
            n = self.world.size * (x.numel() // x.shape[1])
            assert self.running_mean is not None
            assert self.running_var is not None
            assert self.num_batches_tracked is not None
            assert self.momentum is not None
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var * (n / max(n - 1, 1)), self.momentum)
        return cast(Tensor, _Normalise.apply(x, self.weight, self.bias, mean, var, self.eps, self.world))  # type: ignore[no-untyped-call]


def share_batch_norms(module: nn.Module, world: World) -> None:
    """Replace every ``nn.BatchNorm2d`` inside ``module`` by a :class:`SharedBatchNorm` of the same parameters."""
    if world.size == 1:
        return
    for part in module.modules():
        for name, child in list(part.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                setattr(part, name, SharedBatchNorm.of(child, world))
