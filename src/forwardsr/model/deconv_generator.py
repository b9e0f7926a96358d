r"""The paper's experimental generator (Figure 1): a deconvolutional network each of whose hidden layers renders one resolution.

.. math::
    S_1 = ReLU(BN(V_1 z)), \qquad S_l = ReLU(BN(V_l * S_{l-1})), \qquad X_l = W_l * S_l + \mu_l,

with ``V_1`` a full linear map from the latent ``z ~ N(0, I)`` to the coarsest hidden layer, and ``V_l`` (l > 1) and ``W_l``
deconvolutions of 6 x 6 with stride 2. Hidden layer ``l`` has half the side of the image that it renders: 4, 8, 16 and 32 px
for images of 8, 16, 32 and 64 px. Batch normalisation plays the part of the paper's bias ``b_l`` (its shift is ``-b_l``).

``W_l`` is *linear*: there is no squashing at the output, so "X_l is a linear image of S_l" holds as written (§1.1). ``mu_l``
is one number a channel.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from forwardsr.data.pyramid import Pyramid
from forwardsr.model.convolution import Deconvolution


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
    """``S -> ReLU(BN(V * S))``, doubling the side."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.V = Deconvolution(inputs, outputs, bias=False)
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, s: Tensor) -> Tensor:
        return F.relu(self.norm(self.V(s)), inplace=True)


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
        self, sides: Sequence[int], *, width: int = 64, latent: int = 128, channels: int = 3,
        generator: torch.Generator | None = None,
    ) -> None:  # fmt: skip
        """``sides``: of the images, doubling, coarse first. ``width``: channels m_l of every hidden layer. ``latent``: m_0.

        ``generator`` draws the initial weights: N(0, 0.02^2) as in DCGAN (Radford et al. 2016), batch-norm scales 1, shifts 0.
        """
        super().__init__()
        if list(sides) != list(pyramid_sides(sides[-1], sides[0])):
            raise ValueError(f"sides must double from level to level, not {list(sides)}")
        self.sides, self.width, self.latent, self.channels = tuple(sides), width, latent, channels
        self.layers = nn.ModuleList(
            [FirstHiddenLayer(latent, width, sides[0] // 2), *(HiddenLayer(width, width) for _ in sides[1:])]
        )
        self.outputs = nn.ModuleList(Deconvolution(width, channels) for _ in sides)
        init_normal(self, generator)
        channels_last(self)

    @property
    def latent_dim(self) -> int:
        """m_0, the length of the latent."""
        return self.latent

    def hidden(self, z: Float[Tensor, "n m0"], levels: int | None = None) -> list[Tensor]:
        """``[S_1, ..., S_L]``, each ``(n, width, side_l / 2, side_l / 2)``; ``levels``: only that many."""
        s, hidden = z, []
        for layer in list(self.layers)[:levels]:
            s = layer(s)
            hidden.append(s)
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
        z = torch.randn(n, self.latent, generator=generator)
        return Pyramid.cat(
            [self.render(self.hidden(part.to(device), levels)).map(device="cpu") for part in z.split(batch)]
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
