r"""Streamed statistics of hidden layers: how often channels of a patch are active, alone and together, and how large.

For a level with S of shape ``(n, patches, m)`` and ``A = 1[S > 0]`` everything is a sum over samples, so memory does not grow
with n: ``A``, ``S``, ``A A^T``, ``A S^T``, ``1[0 < S <= delta] A^T``, histograms of ``|S|_0`` and ``|S|_inf``, and
``A_p A_q A_r`` for all p < q < r. An image-form layer ``(n, m, h, w)`` counts as h w patches.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor

GROUPS = 16  # independent groups of samples whose spread gives the standard error of the moments mu
SUP_EDGES = torch.logspace(-3, 5, 401)  # bins of |S|_inf, 4.7 % wide: only its order of magnitude is assumed


def patch_form(S: Tensor, limit: int) -> Float[Tensor, "patches n m"]:
    """A hidden layer of either form, patches first; at most ``limit`` evenly spaced patches of it."""
    layer = S.transpose(0, 1) if S.ndim == 3 else S.flatten(2).permute(2, 0, 1)
    if len(layer) > limit:
        layer = layer[kept_patches(len(layer), limit)]
    return layer.contiguous()


def kept_patches(count: int, limit: int) -> list[int]:
    """Which of ``count`` patches :func:`patch_form` keeps."""
    return list(range(count)) if count <= limit else torch.linspace(0, count - 1, limit).long().tolist()


class LevelCounts:
    """The sums of one level. ``patches`` and ``m`` are its sizes, ``deltas`` the thresholds of anti-concentration.

    After :meth:`add`, all float64 and the counts exact: ``n``; ``active``, ``total``, ``square`` ``(patches, m)``, counts of
    S > 0, sums of S and S^2; ``pair`` ``(patches, m, m)``; ``triple`` ``(patches, T)`` over ``index`` ``(T, 3)``; ``mu``
    ``(GROUPS, patches, m, m)``, sums of ``1[S_p > 0] S_q``, and ``mu_n`` samples a group; ``small`` ``(deltas, patches, m)``,
    counts of 0 < S <= delta; ``small_pair`` ``(deltas, patches, m, m)``, of that of the first while the second is active;
    ``l0`` ``(patches, m + 1)`` and ``sup`` ``(patches, bins)``, histograms.
    """

    def __init__(self, patches: int, m: int, deltas: Sequence[float]) -> None:
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(*shape, dtype=torch.float64)

        self.deltas = torch.tensor(deltas)
        self.index: Int64[Tensor, "T 3"] = torch.combinations(torch.arange(m), 3)
        self.n, self.mu_n = 0, zeros(GROUPS)
        self.active, self.total, self.square = zeros(patches, m), zeros(patches, m), zeros(patches, m)
        self.pair, self.mu = zeros(patches, m, m), zeros(GROUPS, patches, m, m)
        self.small, self.small_pair = zeros(len(deltas), patches, m), zeros(len(deltas), patches, m, m)
        self.triple = zeros(patches, len(self.index))
        self.l0, self.sup = zeros(patches, m + 1), zeros(patches, len(SUP_EDGES) + 1)
        self._adds = 0

    def add(self, S: Float[Tensor, "patches n m"]) -> None:
        """Count a chunk of at most 2^24 samples (so that float32 sums of ones are exact)."""
        S = S.cpu().float()
        A = (S > 0).float()
        n, group = S.shape[1], self._adds % GROUPS
        self.n, self._adds = self.n + n, self._adds + 1
        self.active += A.sum(1)
        self.total += S.sum(1)
        self.square += S.square().sum(1)
        self.pair += A.mT @ A
        self.mu[group] += A.mT @ S
        self.mu_n[group] += n
        for i, delta in enumerate(self.deltas):
            small = ((S > 0) & S.le(delta)).float()
            self.small[i] += small.sum(1)
            self.small_pair[i] += small.mT @ A
        size = A.sum(2).long()
        self.l0 += _histogram(size, self.l0.shape[1])
        self.sup += _histogram(torch.bucketize(S.amax(2), SUP_EDGES), self.sup.shape[1])
        self.triple += _triples(A, size, self.index)


def _histogram(bins: Int64[Tensor, "patches n"], count: int) -> Float[Tensor, "patches count"]:
    offset = torch.arange(len(bins))[:, None] * count
    return torch.bincount((bins + offset).flatten(), minlength=len(bins) * count).view(-1, count).double()


def _triples(A: Tensor, size: Tensor, index: Tensor) -> Float[Tensor, "patches T"]:
    """How often each triple of channels is active together: by listing them where few are active, by products where many."""
    m = A.shape[2]
    listed = (size * (size - 1) * (size - 2)).double().mean() / 6
    # One listed triple costs about as much as 200 multiply-adds of a matrix product.
    return _listed_triples(A, size, index) if listed * 200 < m**3 / 6 else _multiplied_triples(A, index)


def _listed_triples(A: Tensor, size: Tensor, index: Tensor) -> Float[Tensor, "patches T"]:
    patches, _, m = A.shape
    rank = _rank(m, index)
    places = [torch.zeros(0, dtype=torch.int64)]
    for k in range(3, int(size.max()) + 1):
        patch, row = (size == k).nonzero(as_tuple=True)
        channel = A[patch, row].nonzero()[:, 1].view(-1, k)
        p, q, r = channel[:, torch.combinations(torch.arange(k), 3)].unbind(2)
        places.append((patch[:, None] * len(index) + rank[p, q, r]).flatten())
    return torch.bincount(torch.cat(places), minlength=patches * len(index)).view(patches, -1).double()


def _multiplied_triples(A: Tensor, index: Tensor) -> Float[Tensor, "patches T"]:
    """For every middle channel q the products of those before it with those after: m^3 / 6 multiply-adds, each triple once."""
    patches, _, m = A.shape
    rank = _rank(m, index)
    rows = A.mT.contiguous()
    total = torch.zeros(patches, len(index), dtype=torch.float64)
    for q in range(1, m - 1):
        counts = (rows[:, :q] * rows[:, q, None]) @ rows[:, q + 1 :].mT
        total[:, rank[:q, q, q + 1 :].flatten()] = counts.flatten(1).double()
    return total


def _rank(m: int, index: Int64[Tensor, "T 3"]) -> Int64[Tensor, "m m m"]:
    """The place of the triple p < q < r in ``index``."""
    rank = torch.zeros(m, m, m, dtype=torch.int64)
    rank[index[:, 0], index[:, 1], index[:, 2]] = torch.arange(len(index))
    return rank
