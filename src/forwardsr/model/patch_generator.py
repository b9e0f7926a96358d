r"""The paper's network (§2.1, §2.2): the target :math:`G^*` with ReLU, the learner :math:`G` with leaky ReLU.

.. math::
    S_{1,j} = \mathrm{act}(V_{1,j} z - b_{1,j}), \qquad
    S_{l,j} = \mathrm{act}\Bigl(\sum_{i < |P|} V_{l,j,i} S_{l-1,P_{l,j}(i)} - b_{l,j}\Bigr), \qquad
    X_{l,j} = W_{l,j} S_{l,j}, \qquad z \sim N(0, I).

Everything is batched over patches: level 1 is one matrix product, the others one ``bmm`` over patches per parent. Hidden layers
and images above level 1 are stored patch first and handed out as ``(n, d_l, .)`` views, so that a later product per patch
(``x.transpose(0, 1)``) needs no copy, while ``reshape(n, -1)`` does.

A tensor shared by all patches (the deconvolutional case, ``W_{l,j} = W_l``) is an *expanded* view with stride 0 along the
patches: its shape stays that of the format, and autograd sums its gradient over patches. :meth:`PatchGenerator.tie` makes one.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from jaxtyping import Float, Int64
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from forwardsr.data.pyramid import Pyramid
from forwardsr.errors import UserError
from forwardsr.model.activations import RELU, Activation

FORMAT = "forwardsr/1"


def quad_tree(d_parent: int, d_child: int) -> Int64[Tensor, "d_child 1"]:
    """The graph of a square grid refined by two: child ``(y, x)`` has the one parent ``(y // 2, x // 2)``.

    Raises ``ValueError`` unless both are squares and ``d_child = 4 d_parent``.
    """
    side = math.isqrt(d_child)
    if side * side != d_child or d_child != 4 * d_parent:
        raise ValueError(
            f"{d_parent} and {d_child} patches are no quad-tree: it needs two squares, one four times the other"
        )
    y, x = torch.arange(side).repeat_interleave(side), torch.arange(side).repeat(side)
    return ((y // 2) * (side // 2) + x // 2)[:, None]


class PatchGenerator:
    """The network of §2.1 and §2.2; satisfies :class:`forwardsr.model.protocol.LayeredGenerator`.

    ``W``: L tensors ``(d_l, d, m_l)``, whose columns are the features; ``V``: ``(d_1, m_1, m_0)``, then
    ``(d_l, |P|, m_l, m_(l-1))``; ``b``: ``(d_l, m_l)``; ``parents``: ``None``, then int64 ``(d_l, |P|)``, indices into the
    patches of level l-1. The lists may be assigned to; no tensor is copied. ``ValueError`` where shapes or indices do not fit.
    """

    def __init__(
        self,
        W: Sequence[Tensor],
        V: Sequence[Tensor],
        b: Sequence[Tensor],
        parents: Sequence[Tensor | None],
        activation: Activation = RELU,
    ) -> None:
        self.W, self.V, self.b, self.parents = list(W), list(V), list(b), list(parents)
        self.activation = activation
        if problem := _problem(self.W, self.V, self.b, self.parents):
            raise ValueError(problem)

    def __repr__(self) -> str:
        return (
            f"PatchGenerator(shapes={self.shapes}, channels={self.channels}, m_0={self.latent_dim}, {self.activation})"
        )

    @property
    def latent_dim(self) -> int:
        """m_0 (m_0' in a learner), the length of z."""
        return self.V[0].shape[-1]

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """``(d_l, d)`` of every level."""
        return tuple((w.shape[0], w.shape[1]) for w in self.W)

    @property
    def channels(self) -> tuple[int, ...]:
        """m_l of every level."""
        return tuple(w.shape[2] for w in self.W)

    @property
    def chunk(self) -> int:
        """A number of samples to stream at a time: the largest power of two that keeps every tensor under 16 MB.

        Above that the allocator maps fresh pages for every chunk, which halves the throughput.
        """
        widest = max([self.latent_dim, *(w.shape[0] * max(w.shape[1], w.shape[2]) for w in self.W)])
        return max(1, 1 << (2**24 // (widest * self.W[0].element_size())).bit_length() >> 1)

    def hidden(self, z: Float[Tensor, "n m0"], levels: int | None = None) -> list[Tensor]:
        """``[S_1, ..., S_L]``, each ``(n, d_l, m_l)`` (only the first ``levels`` of them where given)."""
        d_1, m_1, _ = self.V[0].shape
        flat = torch.addmm(-self.b[0].reshape(1, -1), z, self.V[0].reshape(d_1 * m_1, -1).T)
        layers = [self._act(flat.view(-1, d_1, m_1))]
        for V, b, parents in zip(self.V[1:levels], self.b[1:levels], self.parents[1:levels], strict=True):
            assert parents is not None
            below, pre = layers[-1].transpose(0, 1), -b[:, None, :]
            for i in range(parents.shape[1]):
                pre = torch.baddbmm(pre, below.index_select(0, parents[:, i]), V[:, i].transpose(1, 2))
            layers.append(self._act(pre).transpose(0, 1))
        return layers

    def _act(self, fresh: Tensor) -> Tensor:
        # Nobody else holds a fresh pre-activation, and ReLU's backward reads only its result: in place saves a pass.
        return torch.relu_(fresh) if self.activation.zeta == 0 else self.activation(fresh)

    def render(self, hidden: Sequence[Tensor]) -> Pyramid:
        """``X_l = W_l S_l`` for as many levels as are given, each ``(n, d_l, d)``."""
        return Pyramid(
            [torch.bmm(s.transpose(0, 1), w.transpose(1, 2)).transpose(0, 1) for s, w in zip(hidden, self.W)]
        )

    def latents(self, n: int, generator: torch.Generator) -> Float[Tensor, "n m0"]:
        """``n`` standard Gaussians z, drawn in float32 on the generator's device: the weights' dtype does not change them."""
        z = torch.randn(n, self.latent_dim, generator=generator, device=generator.device, dtype=torch.float32)
        return z.to(self.W[0])

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator, levels: int | None = None) -> Pyramid:
        """``n`` fresh pyramids in patch form (only the coarsest ``levels`` where given).

        About 36 kB a sample at the standard target in float32: stream it in chunks of a few thousand.
        """
        return self.render(self.hidden(self.latents(n, generator), levels))

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor under its name in the file format: ``W1``, ``V1``, ``b1``, ``W2``, ..., ``parents2``, ..."""
        named = {f"{key}{l}": t for key in "WVb" for l, t in enumerate(getattr(self, key), start=1)}
        return named | {f"parents{l}": p for l, p in enumerate(self.parents, start=1) if p is not None}

    def map(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> PatchGenerator:
        """A generator with every weight on another device or in another dtype (the graph stays int64)."""
        W, V, b = ([_move(t, device, dtype) for t in ts] for ts in (self.W, self.V, self.b))
        parents = [None if p is None else p.to(device=device) for p in self.parents]
        return PatchGenerator(W, V, b, parents, self.activation)

    def tie(self, *names: str) -> PatchGenerator:
        """Share the named tensors (``"W2"``, ``"b2"``, ...) across patches, each replaced by its mean over patches."""
        lists = {key: list(getattr(self, key)) for key in "WVb"}
        for name in names:
            t = lists[name[0]][int(name[1:]) - 1]
            lists[name[0]][int(name[1:]) - 1] = t.mean(0, keepdim=True).expand_as(t)
        return PatchGenerator(lists["W"], lists["V"], lists["b"], self.parents, self.activation)

    def save(self, path: str | Path, metadata: Mapping[str, str] | None = None) -> None:
        """Write the safetensors format of the package (atomically); shared tensors are written out for every patch.

        ``metadata``: further string entries for the file's header. Raises ``UserError`` where the path cannot be written.
        """
        path = Path(path)
        shared = [name for name, t in self.tensors().items() if _is_shared(t)]
        header = {"format": FORMAT, "activation": self.activation.name, "zeta": repr(self.activation.zeta)}
        header |= {"shared": ",".join(shared)} if shared else {}
        tensors = {
            name: t.detach().cpu().clone(memory_format=torch.contiguous_format) for name, t in self.tensors().items()
        }
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        try:
            save_file(tensors, partial, metadata=dict(metadata or {}) | header)
            partial.replace(path)
        except (OSError, SafetensorError) as error:
            raise UserError(f"{path}: cannot be written ({_line(error)}); choose another path") from error
        finally:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)

    @staticmethod
    def load(path: str | Path) -> PatchGenerator:
        """Read the format that :meth:`save` writes, onto the CPU. Raises ``UserError``, one line, for any other file."""
        hint = "give a network file made by `forwardsr plant` or by a run"
        try:
            with safe_open(str(path), framework="pt") as file:
                header = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise UserError(f"{path}: not a readable safetensors file ({_line(error)}); {hint}") from error
        if header.get("format") != FORMAT:
            raise UserError(f"{path}: its format is {header.get('format', 'unnamed')}, not {FORMAT}; {hint}")
        try:
            if "image_channels" in header:
                from forwardsr.model.innovation_generator import InnovationGenerator

                return InnovationGenerator.from_tensors(tensors, int(header["image_channels"]))
            for name in filter(None, header.get("shared", "").split(",")):
                tensors[name] = tensors[name][:1].expand_as(tensors[name])
            levels = range(1, sum(name.startswith("W") for name in tensors) + 1)
            W, V, b = ([tensors[f"{key}{l}"] for l in levels] for key in "WVb")
            parents = [None if l == 1 else tensors[f"parents{l}"] for l in levels]
            if header["activation"] not in ("relu", "leaky"):
                raise ValueError(f"its activation is {header['activation']}, not relu or leaky")
            activation = Activation(header["activation"], float(header["zeta"]))
            return PatchGenerator(W, V, b, parents, activation)
        except KeyError as error:
            raise UserError(f"{path}: {error.args[0]} is missing from the network; {hint}") from error
        except (ValueError, TypeError) as error:
            raise UserError(f"{path}: {_line(error)}; {hint}") from error


def _is_shared(t: Tensor) -> bool:
    return t.shape[0] > 1 and t.stride(0) == 0


def _move(t: Tensor, device: torch.device | str | None, dtype: torch.dtype | None) -> Tensor:
    return t[:1].to(device=device, dtype=dtype).expand_as(t) if _is_shared(t) else t.to(device=device, dtype=dtype)


def _line(error: BaseException) -> str:
    """The first line of an error's message."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def _problem(W: list[Tensor], V: list[Tensor], b: list[Tensor], parents: list[Tensor | None]) -> str | None:
    """What is wrong with these tensors as a network, or None."""
    if not W or len({len(W), len(V), len(b), len(parents)}) != 1:
        return f"a network needs as many W, V, b and parents as levels, not {[len(W), len(V), len(b), len(parents)]}"
    for l, (w, v, bias, graph) in enumerate(zip(W, V, b, parents), start=1):
        floats = (("W", w), ("V", v), ("b", bias))
        if bad := [name for name, t in floats if not t.is_floating_point() or t.dtype != W[0].dtype]:
            return f"{bad[0]}{l} is not of the floating dtype of W1"
        if w.ndim != 3 or w.shape[1] != W[0].shape[1]:
            return f"W{l} has shape {tuple(w.shape)}, not (d_{l}, {W[0].shape[1] if l > 1 else 'd'}, m_{l})"
        d_l, _, m_l = w.shape
        if tuple(bias.shape) != (d_l, m_l):
            return f"b{l} has shape {tuple(bias.shape)}, not {(d_l, m_l)}"
        if l == 1:
            if v.ndim != 3 or tuple(v.shape[:2]) != (d_l, m_l):
                return f"V1 has shape {tuple(v.shape)}, not ({d_l}, {m_l}, m_0)"
            continue
        d_below, m_below = W[l - 2].shape[0], W[l - 2].shape[2]
        if graph is None or graph.dtype != torch.int64 or graph.ndim != 2 or graph.shape[0] != d_l:
            return f"parents{l} must be int64 of shape ({d_l}, |P|)"
        if tuple(v.shape) != (d_l, graph.shape[1], m_l, m_below):
            return f"V{l} has shape {tuple(v.shape)}, not {(d_l, graph.shape[1], m_l, m_below)}"
        if graph.numel() == 0 or int(graph.min()) < 0 or int(graph.max()) >= d_below:
            return f"parents{l} names patches outside 0..{d_below - 1} of level {l - 1}"
    return None
