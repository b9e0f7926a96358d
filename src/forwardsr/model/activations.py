r"""The activations of the paper (§2, §4.3), smoothed by Hermite interpolation on :math:`[0, \zeta]`, with two derivatives.

With :math:`t = \mathrm{clip}(z/\zeta, 0, 1)`,

.. math::
    \widetilde{\mathrm{ReLU}}(z) &= \zeta (t^3 - t^4/2) + (z - \zeta)_+
        && (0 \text{ for } z < 0,\; z - \zeta/2 \text{ for } z \ge \zeta) \\
    \mathrm{LeakyReLU}(z) &= \zeta z + (1 - \zeta) \bigl[\zeta (6t^3 - 8t^4 + 3t^5) + (z - \zeta)_+\bigr]
        && (\zeta z \text{ for } z < 0,\; z \text{ for } z \ge \zeta) \\
    \widetilde{\mathrm{abs}}(z) &= \widetilde{\mathrm{ReLU}}(z - b) + \widetilde{\mathrm{ReLU}}(-z - b)

All are C^2 with a Lipschitz second derivative. ReLU~' is the cubic step 3t^2 - 2t^3, in [0, 1], and ReLU~'' is in
[0, 1.5/zeta]. LeakyReLU is the Hermite quintic between its two lines; its slope lies in [zeta, 1.512]. (The paper asks for a
slope in [0, 1], which cannot be: the mean slope on [0, zeta] is 1 and it starts at zeta. The proofs use O(1).)

zeta is the paper's 1/poly(d/eps). ``zeta = 0`` is the limit: plain ReLU (for both names), plain soft-thresholded abs; at a kink
the derivative is that of the left side, and the second derivative is 0 everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Activation:
    """``relu`` (targets) or ``leaky`` (learners) with smoothing ``zeta >= 0``; callable on tensors of any shape.

    ``zeta`` is in the units of the activation; for ``leaky`` it is the slope below zero as well, hence less than 1.
    Raises ``ValueError`` for another name or a zeta out of range.
    """

    name: Literal["relu", "leaky"] = "relu"
    zeta: float = 0.0

    def __post_init__(self) -> None:
        if self.name not in ("relu", "leaky"):
            raise ValueError(f"activation must be relu or leaky, not {self.name!r}")
        if not 0 <= self.zeta < (1 if self.name == "leaky" else float("inf")):
            raise ValueError(f"zeta = {self.zeta} is out of range for {self.name}")

    def __call__(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """The activation; differentiable twice by autograd."""
        if self.zeta == 0:
            return torch.relu(x)
        t, above = (x / self.zeta).clamp(0, 1), torch.relu(x - self.zeta)
        if self.name == "relu":
            return self.zeta * t**3 * (1 - t / 2) + above
        return self.zeta * x + (1 - self.zeta) * (self.zeta * t**3 * (6 - 8 * t + 3 * t**2) + above)

    def derivative(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """The first derivative at ``x``."""
        if self.zeta == 0:
            return (x > 0).to(x.dtype)
        t = (x / self.zeta).clamp(0, 1)
        if self.name == "relu":
            return t**2 * (3 - 2 * t)
        return self.zeta + (1 - self.zeta) * t**2 * (18 - 32 * t + 15 * t**2)

    def second(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """The second derivative at ``x``, of order 1/zeta on (0, zeta) and 0 elsewhere."""
        if self.zeta == 0:
            return torch.zeros_like(x)
        t = (x / self.zeta).clamp(0, 1)
        if self.name == "relu":
            return 6 * t * (1 - t) / self.zeta
        return 12 * t * (1 - t) * (3 - 5 * t) * ((1 - self.zeta) / self.zeta)


@dataclass(frozen=True)
class SmoothAbs:
    """``abs~(x) = ReLU~(x - b) + ReLU~(-x - b)``: the loss of D2 (§4.3), blind to mismatches below the tolerance ``b``.

    ``b`` and ``zeta`` are in the units of x. Raises ``ValueError`` where either is negative.
    """

    b: float
    zeta: float = 0.0

    def __post_init__(self) -> None:
        if self.b < 0 or self.zeta < 0:
            raise ValueError(f"b = {self.b} and zeta = {self.zeta} must not be negative")

    @property
    def _relu(self) -> Activation:
        return Activation("relu", self.zeta)

    def __call__(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """The soft-thresholded absolute value; one of the two terms is always zero."""
        return self._relu(x.abs() - self.b) if self.zeta == 0 else self._relu(x - self.b) + self._relu(-x - self.b)

    def derivative(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """The first derivative at ``x``, in [-1, 1]."""
        return self._relu.derivative(x - self.b) - self._relu.derivative(-x - self.b)

    def second(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """The second derivative at ``x``, in [0, 1.5/zeta]."""
        return self._relu.second(x - self.b) + self._relu.second(-x - self.b)


RELU = Activation("relu")
"""The target network's activation."""
