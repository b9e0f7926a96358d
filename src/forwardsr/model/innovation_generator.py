r"""The paper's network with innovations: what a finer level adds that the coarser ones do not determine (§6, agnostic learning).

.. math::
    S_{1,j} = \mathrm{ReLU}(V_{1,j} z_1 - b_{1,j}), \qquad
    S_{l,j} = \mathrm{ReLU}\Bigl(\sum_i V_{l,j,i} S_{l-1,P_{l,j}(i)} + \sum_i U_{l,j,i} z_{l,Q_{l,j}(i)} - b_{l,j}\Bigr), \qquad
    X_{l,j} = W_{l,j} S_{l,j} + \mu_{l,j},

with one Gaussian :math:`z = (z_1, \dots, z_L)`. It is still a feed-forward ReLU network of Gaussian noise each hidden layer of
which renders one resolution, and it is the paper's where ``U_l = 0`` and ``mu_l = 0``. The innovations ``z_l`` of level l live on
their own grid of patches, one wider on every side than the level's, so that the border has neighbours as well; two patches that share
some of ``Q`` have correlated innovations, which is why no seam shows between them.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from forwardsr.data.pyramid import Pyramid
from forwardsr.errors import UserError
from forwardsr.model.patch_generator import FORMAT, PatchGenerator

BATCH = 128  # samples drawn at a time: the hidden layers of finer levels are wide


class InnovationGenerator(PatchGenerator):
    """The network above; draws images ``(n, image_channels, side_l, side_l)``, about [-1, 1].

    ``W``, ``V``, ``b``, ``parents`` as in :class:`PatchGenerator`. ``mean``: L tensors ``(d_l, d)``. ``U``: ``None``, then
    ``(d_l or 1, |Q|, m_l, q_l)``, a leading 1 where all patches share it; ``around``: ``None``, then int64 ``(d_l, |Q|)``,
    indices into the innovations' grid. ``ValueError`` where shapes or indices do not fit.
    """

    def __init__(
        self,
        W: Sequence[Tensor],
        V: Sequence[Tensor],
        b: Sequence[Tensor],
        parents: Sequence[Tensor | None],
        mean: Sequence[Tensor],
        U: Sequence[Tensor | None],
        around: Sequence[Tensor | None],
        image_channels: int,
    ) -> None:
        super().__init__(W, V, b, parents)
        self.mean, self.U, self.around, self.image_channels = list(mean), list(U), list(around), image_channels
        if len(self.mean) != len(self.W) or len(self.U) != len(self.W) or len(self.around) != len(self.W):
            raise ValueError("a network needs as many mean, U and around as levels")
        for l, (w, mu, u, ring) in enumerate(zip(self.W, self.mean, self.U, self.around), start=1):
            if tuple(mu.shape) != tuple(w.shape[:2]):
                raise ValueError(f"mean{l} has shape {tuple(mu.shape)}, not {tuple(w.shape[:2])}")
            if l == 1:
                continue
            if u is None or ring is None or ring.shape[0] != w.shape[0] or int(ring.min()) < 0:
                raise ValueError(f"level {l} needs U{l} and around{l} of {w.shape[0]} patches")
            if u.shape[0] not in (1, w.shape[0]) or tuple(u.shape[1:3]) != (ring.shape[1], w.shape[2]):
                raise ValueError(
                    f"U{l} has shape {tuple(u.shape)}, not (1 or {w.shape[0]}, {ring.shape[1]}, {w.shape[2]}, q)"
                )

    @property
    def innovations(self) -> list[tuple[int, int]]:
        """The shape ``(patches, q_l)`` of z_l for every level above the first."""
        return [
            (int(ring.max()) + 1, u.shape[-1])
            for ring, u in zip(self.around[1:], self.U[1:])
            if ring is not None and u is not None
        ]

    @property
    def latent_dim(self) -> int:
        """Length of z = (z_1, ..., z_L)."""
        return self.V[0].shape[-1] + sum(k * q for k, q in self.innovations)

    def features(self, l: int) -> Float[Tensor, "k d r"]:
        """The orthonormal features whose values level ``l`` (0-based) holds: one for every pair of its neurons above the first
        level, and for every d of them in the first.
        """
        W, u = self.W[l], self.U[l]
        if u is not None:
            return W[:, :, : (W.shape[2] - 2 * u.shape[-1]) // 2]
        columns = W[:, :, :: W.shape[2] // W.shape[1]]
        return columns / columns.norm(dim=1, keepdim=True).clamp_min(1e-12)

    def hidden(self, z: Float[Tensor, "n m0"], levels: int | None = None) -> list[Tensor]:
        """``[S_1, ..., S_L]``, each ``(n, d_l, m_l)`` (only the first ``levels`` of them where given)."""
        n = len(z)
        first, *rest = z.split([self.V[0].shape[-1], *(k * q for k, q in self.innovations)], dim=1)
        layers = [self._level_one(first)]
        total = len(self.W) if levels is None else levels
        for l, (noise, shape) in enumerate(list(zip(rest, self.innovations))[: total - 1], start=1):
            layers.append(
                self.level(l, layers[-1].transpose(0, 1), noise.view(n, *shape).transpose(0, 1)).transpose(0, 1)
            )
        return layers

    def _level_one(self, z: Tensor) -> Tensor:
        d_1, m_1, _ = self.V[0].shape
        flat = torch.addmm(-self.b[0].reshape(1, -1), z, self.V[0].reshape(d_1 * m_1, -1).T)
        return torch.relu_(flat).view(-1, d_1, m_1)

    def level(self, l: int, below: Float[Tensor, "k n m"], noise: Float[Tensor, "r n q"]) -> Float[Tensor, "k2 n m2"]:
        """S of level ``l`` (0-based, above the first) from the level below and z_l, all patch first."""
        parents, ring, u = self.parents[l], self.around[l], self.U[l]
        assert parents is not None
        assert ring is not None
        assert u is not None
        pre = -self.b[l][:, None, :]
        for i in range(parents.shape[1]):
            pre = torch.baddbmm(pre, below.index_select(0, parents[:, i]), self.V[l][:, i].transpose(1, 2))
        for i in range(ring.shape[1]):
            own = noise.index_select(0, ring[:, i])
            pre = pre + own @ u[0, i].T if len(u) == 1 else torch.baddbmm(pre, own, u[:, i].transpose(1, 2))
        return torch.relu_(pre)

    def render(self, hidden: Sequence[Tensor]) -> Pyramid:
        """``X_l = W_l S_l + mu_l``, folded into images ``(n, c, side_l, side_l)``."""
        patches = super().render(hidden)
        return Pyramid([x + mu for x, mu in zip(patches, self.mean)]).fold(self.image_channels)

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator, levels: int | None = None) -> Pyramid:
        """``n`` fresh pyramids of images, in batches (z is drawn batch by batch: it is long)."""
        return Pyramid.cat(
            [
                self.render(self.hidden(self.latents(min(BATCH, n - start), generator), levels))
                for start in range(0, n, BATCH)
            ]
        )

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor under its name in the file format: those of :class:`PatchGenerator`, ``mean1``, ``U2``, ``around2``, ..."""
        extra = {f"mean{l}": t for l, t in enumerate(self.mean, start=1)}
        extra |= {f"U{l}": t for l, t in enumerate(self.U, start=1) if t is not None}
        return (
            super().tensors() | extra | {f"around{l}": t for l, t in enumerate(self.around, start=1) if t is not None}
        )

    def save(self, path: str | Path, metadata: Mapping[str, str] | None = None) -> None:
        """Write the safetensors format of the package (atomically). Raises ``UserError`` where the path cannot be written."""
        path = Path(path)
        header = {"format": FORMAT, "activation": "relu", "zeta": "0.0", "image_channels": str(self.image_channels)}
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        try:
            save_file(
                {k: t.detach().cpu().contiguous() for k, t in self.tensors().items()},
                partial,
                dict(metadata or {}) | header,
            )
            partial.replace(path)
        except (OSError, SafetensorError) as error:
            raise UserError(f"{path}: cannot be written ({error}); choose another path") from error
        finally:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)

    @staticmethod
    def from_tensors(tensors: Mapping[str, Tensor], image_channels: int) -> InnovationGenerator:
        """Rebuild a network from :meth:`tensors`. Raises ``KeyError`` or ``ValueError`` where they are none."""
        levels = range(1, sum(name.startswith("W") for name in tensors) + 1)
        W, V, b, mean = ([tensors[f"{key}{l}"] for l in levels] for key in ("W", "V", "b", "mean"))
        parents, U, around = (
            [None if l == 1 else tensors[f"{key}{l}"] for l in levels] for key in ("parents", "U", "around")
        )
        return InnovationGenerator(W, V, b, parents, mean, U, around, image_channels)
