"""What every generator of the package is: a stack of hidden layers, each of which renders one resolution linearly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from forwardsr.data.pyramid import Pyramid


@runtime_checkable
class LayeredGenerator(Protocol):
    r"""The forward super-resolution structure (paper, §2.1): :math:`S_l = act(V_l S_{l-1} - b_l)`, :math:`X_l = W_l S_l`.

    ``latent_dim`` is m_0', the length of ``z ~ N(0, I)``.
    """

    @property
    def latent_dim(self) -> int: ...

    def hidden(self, z: Float[Tensor, "n m0"]) -> list[Tensor]:
        """The hidden layers ``[S_1, ..., S_L]``: ``(n, d_l, m_l)`` in patch form, ``(n, m_l, h_l, w_l)`` in image form."""
        ...

    def render(self, hidden: Sequence[Tensor]) -> Pyramid:
        """The images ``[X_1, ..., X_L]``, each a linear (or affine) function of its own hidden layer."""
        ...

    def sample(self, n: int, generator: torch.Generator) -> Pyramid:
        """``n`` fresh samples; all randomness comes from ``generator``."""
        ...
