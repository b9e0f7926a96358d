r"""A deconvolutional generator of one picture: coarser levels are that picture, averaged down.

Where only the last hidden layer and its output are trained (paper, Figure 7 bottom), the outputs of the layers below are random
and render nothing. The levels such a network is judged, shown and measured at are those of its finest image:

.. math:: X_L = W_L * S_L + \mu_L, \qquad X_l = pool(X_L), \quad l < L.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from forwardsr.data.pyramid import Pyramid, pool
from forwardsr.model.deconv_generator import DeconvGenerator


class PooledGenerator(DeconvGenerator):
    """A :class:`DeconvGenerator` whose coarser outputs go unused."""

    def render(self, hidden: Sequence[Tensor]) -> Pyramid:
        """Every level from the last hidden layer, each ``(n, channels, side_l, side_l)``; needs all hidden layers."""
        return pool(self.outputs[-1](hidden[len(self.sides) - 1]).float(), self.sides)

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator, batch: int = 256, levels: int | None = None) -> Pyramid:
        """As :meth:`DeconvGenerator.sample`; ``levels`` saves nothing here."""
        return super().sample(n, generator, batch)[:levels]
