r"""The multi-scale critic: every resolution enters through its own 64 filters of 6 x 6 x c (Figure 5's W^D).

Two things are asked of it: that finer images be judged in the context of the coarser ones (multi-scale gradient, Karnewar and
Wang 2020), and that the coarse images matter. With one logit for all scales they do not: the finest scale alone soon tells
real from fake, the loss saturates, and the 8 px image is left as noise. So it gives a joint logit *and* one for every scale
but the finest (which the joint one looks at first; a logit of its own there costs a third more and gained nothing):

.. math::
    h_l = lrelu(W^D_l * X_l), \qquad D_l(X_l) = head_l(h_l), \qquad
    D_0(X) = head(t_1), \quad t_L = h_L, \quad t_l = lrelu(A_l * t_{l+1} + B_l * h_l),

all strided convolutions of 6 x 6 in the trunk, and each logit has a loss of its own, so that a level which is judged
easily cannot silence another. There is no normalisation across samples: a sample's logit depends on that sample alone, which
:mod:`forwardsr.learn.adversarial` uses to update both networks from one backward pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional as F

from forwardsr.data.pyramid import Pyramid
from forwardsr.model.convolution import Convolution
from forwardsr.model.deconv_generator import channels_last

SLOPE = 0.2


class _LeakySlope(Function):
    """``gradient`` times the slope of the leaky ReLU whose result is ``after``. The slope is constant almost everywhere."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, after: Tensor) -> Tensor:
        ctx.save_for_backward(after)
        return torch.ops.aten.leaky_relu_backward(gradient, after, SLOPE, True)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _LeakySlope.apply(gradient, ctx.saved_tensors[0]), None  # type: ignore[no-untyped-call]


class _LeakyReLU(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        F.leaky_relu_(x, SLOPE)
        ctx.mark_dirty(x)
        ctx.save_for_backward(x)
        return x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _LeakySlope.apply(gradient, ctx.saved_tensors[0].detach())  # type: ignore[no-untyped-call]


class LeakyReLU(nn.Module):
    """``x`` where positive, :data:`SLOPE` times x elsewhere; overwrites its input.

    PyTorch's own has a second derivative of zeros, and a gradient penalty then carries these zeros back through the whole
    network. This one has none.
    """

    def forward(self, x: Tensor) -> Tensor:
        return _LeakyReLU.apply(x)  # type: ignore[no-untyped-call]


class Trunk(nn.Module):
    """From the finest features down to one logit, taking in each coarser scale's features on the way."""

    def __init__(self, levels: int, width: int, side: int) -> None:
        """``side``: of the coarsest features."""
        super().__init__()
        self.down = nn.ModuleList(Convolution(width, width) for _ in range(levels - 1))
        self.enter = nn.ModuleList(Convolution(width, width, 1, 1) for _ in range(levels - 1))
        self.mix = Convolution(width, 2 * width, 3, 1)
        self.leaky_relu = LeakyReLU()
        self.logit = nn.Linear(2 * width * side * side, 1)

    def forward(self, features: Sequence[Tensor]) -> Float[Tensor, " n"]:
        t = features[-1]
        for down, enter, h in zip(self.down, self.enter, reversed(features[:-1])):
            t = self.leaky_relu(down(t).add_(enter(h)))
        return self.logit(self.leaky_relu(self.mix(t)).flatten(1)).squeeze(1)


class Head(nn.Module):
    """One scale's own logit, from that scale's features alone: strided convolutions down to 4 px or less, then a linear map."""

    def __init__(self, width: int, side: int) -> None:
        super().__init__()
        steps: list[nn.Module] = []
        inputs = width
        while side > 4 and side % 2 == 0:
            steps += [Convolution(inputs, width // 2), LeakyReLU()]
            inputs, side = width // 2, side // 2
        steps += [Convolution(inputs, width, 3, 1), LeakyReLU()]
        self.steps = nn.Sequential(*steps)
        self.logit = nn.Linear(width * side * side, 1)

    def forward(self, h: Tensor) -> Float[Tensor, " n"]:
        return self.logit(self.steps(h).flatten(1)).squeeze(1)


class Critic(nn.Module):
    """``features`` gives each scale's first layer, ``judge`` the logits: the joint one first, then one a scale."""

    def __init__(
        self, sides: Sequence[int], *, width: int = 64, channels: int = 3, heads: Sequence[bool] | None = None,
        generator: torch.Generator | None = None,
    ) -> None:  # fmt: skip
        """``heads``: which scales have a logit of their own (all but the finest by default). ``generator``: initial weights."""
        super().__init__()
        self.sides = tuple(sides)
        self.first = nn.ModuleList(Convolution(channels, width) for _ in sides)
        self.leaky_relu = LeakyReLU()
        self.trunk = Trunk(len(sides), width, sides[0] // 2)
        chosen = [side < self.sides[-1] for side in self.sides] if heads is None else list(heads)
        self.headed = tuple(level for level, on in enumerate(chosen) if on)
        self.heads = nn.ModuleList(Head(width, sides[level] // 2) for level in self.headed)
        init_kaiming(self, generator)
        channels_last(self)

    def features(self, pyramid: Pyramid | Sequence[Tensor]) -> list[Tensor]:
        """``h_l``, each ``(n, width, side_l / 2, side_l / 2)``."""
        return [self.leaky_relu(first(x)) for first, x in zip(self.first, pyramid)]

    def judge(self, features: Sequence[Tensor]) -> Float[Tensor, "logits n"]:
        """The logits: row 0 the joint one, then those of the scales in ``headed``."""
        own = [head(features[level]) for head, level in zip(self.heads, self.headed)]
        return torch.stack([self.trunk(features), *own]).float()

    def forward(self, pyramid: Pyramid | Sequence[Tensor]) -> Float[Tensor, "logits n"]:
        return self.judge(self.features(pyramid))


def init_kaiming(module: nn.Module, generator: torch.Generator | None) -> None:
    """He initialisation for leaky ReLU; biases 0."""
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, nn.Conv2d | nn.Linear):
                fan = part.weight[0].numel()
                part.weight.normal_(0.0, (2.0 / (1 + SLOPE**2) / fan) ** 0.5, generator=generator)
                if part.bias is not None:
                    part.bias.zero_()
