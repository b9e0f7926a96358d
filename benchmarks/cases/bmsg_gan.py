r"""BMSG-GAN's published networks, loss and update, re-declared: the peer has no package.

Karnewar and Wang, "MSG-GAN: Multi-Scale Gradients for Generative Adversarial Networks" (CVPR 2020), as in the authors' PyTorch
code (github.com/akanimax/BMSG-GAN: ``GAN.py``, ``CustomLayers.py``, ``Losses.py``, and the defaults of ``train.py``). Blocks of two
3 x 3 convolutions a resolution from 4 px up, every one with a picture of its own, all judged by one critic:

.. math::
    \min_D E[1 - (r - \bar f)]_+ + E[1 + (f - \bar r)]_+, \qquad \min_G E[1 + (r - \bar f)]_+ + E[1 - (f - \bar r)]_+,

with logits r, f of real and generated pictures and their means over the batch; Adam(0.003, (0, 0.99)) for both. Weights are N(0, 1)
and multiplied by :math:`\sqrt{2 / fan}` when used (equalised learning rates); the generator's pixels are normalised over channels;
the critic sees the mean standard deviation over the batch. The one liberty: ``width`` need not be a power of two.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SLOPE = 0.2
FULL = 3  # blocks of full width, after which it halves from one to the next
RATE, BETAS, DECAY = 3e-3, (0.0, 0.99), 0.999


class EqualConv(nn.Conv2d):
    """A convolution, padded to keep the side unless ``padding`` says otherwise, whose N(0, 1) weights are scaled in use."""

    def __init__(self, inputs: int, outputs: int, size: int, padding: int | None = None) -> None:
        super().__init__(inputs, outputs, size, padding=size // 2 if padding is None else padding)
        nn.init.normal_(self.weight)
        nn.init.zeros_(self.bias)  # type: ignore[arg-type]
        self.scale = math.sqrt(2 / (size * size * inputs))

    def forward(self, input: Tensor) -> Tensor:
        return F.conv2d(input, self.weight * self.scale, self.bias, padding=self.padding)  # type: ignore[arg-type]


class EqualDeconv(nn.ConvTranspose2d):
    """The generator's first layer, 1 px to 4 px; its fan is the number of input channels."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 4)
        nn.init.normal_(self.weight)
        nn.init.zeros_(self.bias)  # type: ignore[arg-type]
        self.scale = math.sqrt(2 / inputs)

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        return F.conv_transpose2d(input, self.weight * self.scale, self.bias)


def leaky(x: Tensor) -> Tensor:
    return F.leaky_relu(x, SLOPE)


def normalised(x: Tensor) -> Tensor:
    """Over channels, pixel by pixel."""
    return x / (x.square().mean(1, keepdim=True) + 1e-8).sqrt()


def widths(width: int, depth: int) -> list[int]:
    """Channels of the pictures' features, coarse first: of 4, 8, 16 and 32 px in full, then halves."""
    return [width // 2 ** max(0, i - FULL) for i in range(depth)]


class Generator(nn.Module):
    """``(n, width) -> depth`` pictures of 4, 8, ... px."""

    def __init__(self, depth: int, width: int) -> None:
        super().__init__()
        channels = widths(width, depth)
        self.first = nn.ModuleList([EqualDeconv(width, width), EqualConv(width, width, 3)])
        self.blocks = nn.ModuleList(
            nn.ModuleList([EqualConv(a, b, 3), EqualConv(b, b, 3)]) for a, b in itertools.pairwise(channels)
        )
        self.outputs = nn.ModuleList(EqualConv(c, 3, 1) for c in channels)

    def forward(self, z: Tensor) -> list[Tensor]:
        y = z[:, :, None, None]
        for convolution in self.first:
            y = leaky(convolution(y))
        hidden = [normalised(y)]
        for block in self.blocks:
            y = F.interpolate(hidden[-1], scale_factor=2)
            for convolution in block:
                y = normalised(leaky(convolution(y)))
            hidden.append(y)
        return [output(y) for output, y in zip(self.outputs, hidden)]


class Critic(nn.Module):
    """Pictures of all sizes, coarse first, ``-> (n,)``."""

    def __init__(self, depth: int, width: int) -> None:
        super().__init__()
        # A block's input: half of its channels from the block before, half from the picture of its size; the finest has its
        # picture alone.
        inputs = widths(width, depth)
        hands = [c // 2 for c in inputs[:-1]]
        entries = [*hands, inputs[-1]]
        self.enters = nn.ModuleList(EqualConv(3, c, 1) for c in entries)
        self.blocks = nn.ModuleList(
            nn.ModuleList([EqualConv(c, c, 3), EqualConv(c, h, 3)]) for c, h in zip(inputs[1:], hands)
        )
        self.last = nn.ModuleList(
            [EqualConv(width + 1, width, 3), EqualConv(width, width, 4, 0), EqualConv(width, 1, 1)]
        )

    def forward(self, pictures: Sequence[Tensor]) -> Tensor:
        y = self.enters[-1](pictures[-1])
        for x, enter, block in zip(pictures[-2::-1], list(self.enters)[-2::-1], list(self.blocks)[::-1]):
            for convolution in block:
                y = leaky(convolution(y))
            y = torch.cat([enter(x), F.avg_pool2d(y, 2)], 1)
        deviation = ((y - y.mean(0)).square().mean(0) + 1e-8).sqrt().mean().expand(len(y), 1, *y.shape[2:])
        y = torch.cat([y, deviation], 1)
        for convolution in self.last[:2]:
            y = leaky(convolution(y))
        return self.last[2](y).flatten()


class Trainer:
    """Both networks, their optimizers and the averaged generator."""

    def __init__(self, side: int, width: int, device: torch.device) -> None:
        depth = int(math.log2(side)) - 1
        self.width, self.depth, self.device = width, depth, device
        self.generator, self.critic = Generator(depth, width).to(device), Critic(depth, width).to(device)
        self.average = copy.deepcopy(self.generator).requires_grad_(False)
        self.optimizer_g = torch.optim.Adam(self.generator.parameters(), RATE, BETAS)
        self.optimizer_d = torch.optim.Adam(self.critic.parameters(), RATE, BETAS)

    def step(self, pictures: Tensor) -> None:
        """One of the critic, then one of the generator, each with pictures of its own. ``pictures``: the finest, real."""
        real = [F.avg_pool2d(pictures, 2**k) for k in range(self.depth - 1, 0, -1)] + [pictures]
        z = torch.randn(2, len(pictures), self.width, device=self.device)
        fake = [x.detach() for x in self.generator(z[0])]
        self.update(self.optimizer_d, real, fake, 1.0)
        self.update(self.optimizer_g, real, self.generator(z[1]), -1.0)
        for a, g in zip(self.average.parameters(), self.generator.parameters()):
            a.copy_(DECAY * a + (1 - DECAY) * g.detach())

    def update(self, optimizer: torch.optim.Optimizer, real: list[Tensor], fake: list[Tensor], sign: float) -> None:
        """By the relativistic average hinge loss, of the critic (``sign`` 1) or the generator (-1)."""
        r, f = self.critic(real), self.critic(fake)
        loss = F.relu(1 - sign * (r - f.mean())).mean() + F.relu(1 + sign * (f - r.mean())).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()  # as the authors' loop, which reports it
