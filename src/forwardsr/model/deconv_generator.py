r"""The paper's experimental generator (Figure 1): a deconvolutional network each of whose hidden layers renders one resolution.

.. math::
    S_1 = ReLU(BN(V_1 z_1)), \qquad S_l = ReLU(BN(V_l * S_{l-1} + U_l * z_l)), \qquad X_l = W_l * S_l + \mu_l,

with ``V_1`` a full linear map from the latent ``z_1 ~ N(0, I)`` to the coarsest hidden layer, and ``V_l``, ``U_l`` (l > 1) and
``W_l`` deconvolutions of 6 x 6 with stride 2. Hidden layer ``l`` has half the side of the image that it renders: 4, 8, 16 and 32 px
for images of 8, 16, 32 and 64 px. Batch normalisation plays the part of the paper's bias ``b_l`` (its shift is ``-b_l``).

``W_l`` is *linear*: there is no squashing at the output, so "X_l is a linear image of S_l" holds as written (§1.1). ``mu_l``
is one number a channel.

The paper's network is the one without *innovations* (``U_l = 0``, the default): all of a picture then comes from ``z_1``. With them
each level has noise of its own, ``z_l``, a few channels at every place of the layer below and one place further on every side; what a
``minmax`` run has learned of what finer levels add can then be taken over (:mod:`forwardsr.learn.head_start`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from forwardsr.data.pyramid import Pyramid
from forwardsr.model.convolution import Deconvolution

DRAWN = 256  # latents drawn at a time


def pyramid_sides(resolution: int, base: int = 8) -> tuple[int, ...]:
    """The sides of a pyramid from ``base`` to ``resolution``, doubling: ``(8, 16, 32, 64)``.

    Raises ``ValueError`` where ``resolution`` is not ``base`` times a power of two, or ``base`` is odd.
    """
    sides = [base]
    while sides[-1] < resolution:
        sides.append(2 * sides[-1])
    if sides[-1] != resolution or base < 4 or base % 2:
        raise ValueError(f"{resolution} is not an even base side ({base}) times a power of two")
    return tuple(sides)


class HiddenLayer(nn.Module):
    """``S, z -> ReLU(BN(V * S + U * z))``, doubling the side."""

    def __init__(self, inputs: int, outputs: int, innovations: int = 0) -> None:
        """``innovations``: channels of z; with none there is no U."""
        super().__init__()
        self.V = Deconvolution(inputs, outputs, bias=False)
        self.U = Deconvolution(innovations, outputs, bias=False) if innovations else None
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, s: Float[Tensor, "n m h w"], z: Float[Tensor, "n q h2 w2"] | None = None) -> Tensor:
        """``z``: of the side of ``s`` and 2 more; ``None``: zeros, what ``s`` alone determines."""
        pre = self.V(s)
        if self.U is not None and z is not None:
            pre = pre.add_(self.U(z.contiguous(memory_format=torch.channels_last))[:, :, 2:-2, 2:-2])
        return F.relu(self.norm(pre), inplace=True)


class FirstHiddenLayer(nn.Module):
    """``z -> ReLU(BN(V_1 z))``: the only layer that sees the whole picture ("global learning", §3)."""

    def __init__(self, latent: int, outputs: int, side: int) -> None:
        super().__init__()
        self.V = nn.Linear(latent, outputs * side * side, bias=False)
        self.norm = nn.BatchNorm2d(outputs)
        self.side = side

    def forward(self, z: Tensor) -> Tensor:
        s = self.V(z).view(len(z), self.side, self.side, -1).permute(0, 3, 1, 2)  # channels last in memory
        return F.relu(self.norm(s), inplace=True)


class DeconvGenerator(nn.Module):
    """A LayeredGenerator of deconvolutions (paper, Figure 1). Images are float32, about [-1, 1], not clipped."""

    def __init__(
        self, sides: Sequence[int], *, width: int = 64, latent: int = 128, channels: int = 3, innovations: int = 0,
        generator: torch.Generator | None = None,
    ) -> None:  # fmt: skip
        """``sides``: of the images, doubling, coarse first. ``width``: channels m_l of every hidden layer. ``latent``: the length
        of z_1. ``innovations``: channels of z_l at every place of a level above the first.

        ``generator`` draws the initial weights: N(0, 0.02^2) as in DCGAN (Radford et al. 2016), batch-norm scales 1, shifts 0.
        """
        super().__init__()
        if list(sides) != list(pyramid_sides(sides[-1], sides[0])):
            raise ValueError(f"sides must double from level to level, not {list(sides)}")
        self.sides, self.width, self.latent, self.channels = tuple(sides), width, latent, channels
        self.innovations = innovations
        self.layers = nn.ModuleList(
            [
                FirstHiddenLayer(latent, width, sides[0] // 2),
                *(HiddenLayer(width, width, innovations) for _ in sides[1:]),
            ]
        )
        self.outputs = nn.ModuleList(Deconvolution(width, channels) for _ in sides)
        init_normal(self, generator)
        channels_last(self)

    @property
    def latent_dim(self) -> int:
        """m_0, the length of the latent z = (z_1, ..., z_L)."""
        return self.latent + sum(math.prod(shape) for shape in self.innovation_shapes)

    @property
    def innovation_shapes(self) -> list[tuple[int, int, int]]:
        """``(q, side_l / 4 + 2, side_l / 4 + 2)``, the shape of z_l, for every level above the first; empty where there are none."""
        return [(self.innovations, side // 4 + 2, side // 4 + 2) for side in self.sides[1:] if self.innovations]

    def parts(self, z: Float[Tensor, "n m0"]) -> tuple[Float[Tensor, "n m1"], list[Tensor | None]]:
        """``z_1``, and ``[z_2, ..., z_L]`` in their shapes (``None`` each where there are no innovations)."""
        shapes = self.innovation_shapes
        if not shapes:
            return z, [None] * (len(self.sides) - 1)
        first, *rest = z.split([self.latent, *(math.prod(shape) for shape in shapes)], dim=1)
        return first, [part.unflatten(1, shape) for part, shape in zip(rest, shapes)]

    def hidden(self, z: Float[Tensor, "n m0"], levels: int | None = None) -> list[Tensor]:
        """``[S_1, ..., S_L]``, each ``(n, width, side_l / 2, side_l / 2)``; ``levels``: only that many."""
        first, innovations = self.parts(z)
        hidden = [self.layers[0](first)]
        for layer, own in list(zip(list(self.layers)[1:], innovations))[: None if levels is None else levels - 1]:
            hidden.append(layer(hidden[-1], own))
        return hidden

    def render(self, hidden: Sequence[Tensor]) -> Pyramid:
        """``X_l = W_l * S_l + mu_l`` for every hidden layer given (coarse first), each ``(n, channels, side_l, side_l)``."""
        return Pyramid([output(s).float() for output, s in zip(self.outputs, hidden)])

    def forward(self, z: Float[Tensor, "n m0"]) -> Pyramid:
        return self.render(self.hidden(z))

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator, batch: int = 256, levels: int | None = None) -> Pyramid:
        """``n`` pyramids from fresh latents of ``generator`` (a CPU generator), drawn ``batch`` at a time."""
        device = next(self.parameters()).device
        # Blocks of a fixed number, so that what is drawn does not depend on ``batch``: with innovations z is long.
        blocks = (torch.randn(min(DRAWN, n - k), self.latent_dim, generator=generator) for k in range(0, n, DRAWN))
        return Pyramid.cat(
            [
                self.render(self.hidden(part.to(device), levels)).map(device="cpu")
                for block in blocks
                for part in block.split(batch)
            ]
        )


def channels_last(module: nn.Module) -> None:
    """Lay the weights of all convolutions out with channels last, which is 1.5 to 3 times as fast, on CPUs too."""
    module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def init_normal(module: nn.Module, generator: torch.Generator | None, scale: float = 0.02) -> None:
    """Weights N(0, scale^2), biases 0, norms the identity."""
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
                part.weight.normal_(0.0, scale, generator=generator)
                if part.bias is not None:
                    part.bias.zero_()
