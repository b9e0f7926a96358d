r"""From one resolution to the next on photographs: the linear part of super-resolution (Algorithm 3 without its threshold).

.. math:: \min_B E\|X_{l,j} - \mu_{l,j} - B_j (X_{l-1,P_{l,j}} - \mu)\|^2 + \lambda\,\mathrm{tr}\,G\,\|B_j - B_{\kappa(j)}\|^2

with :math:`B_\kappa` the ridge solution shared by all patches of the kind :math:`\kappa(j)` (:mod:`forwardsr.learn.windows`).
Lambda says how far a patch may go its own way; it is chosen by the error on held-out samples (aligned faces: 10 % better than
shared; photographs of anything: shared), and before it the ridge, in the same way. Everything is a function of sums over samples, so
one pass over the data serves all lambdas and ridges, the held-out error and all levels, and nothing holds more than a chunk.

Rectified features (pairs :math:`(\pm a)_+` in place of a) were tried as inputs: on held-out faces and buildings they are 0 to
1 % worse.
"""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from forwardsr.learn.windows import KINDS

RIDGES = (1e-3, 1e-2, 1e-1)  # of the shared solution, in mean eigenvalues; few images ask for more than regularity
SHARING = (1e-3, 1e-2, 1e-1, 1.0, float("inf"))  # lambdas tried
HELD_OUT = 5  # one sample in five chooses between them


@dataclass(frozen=True)
class Upsampling:
    """``B (j, p d, d)``: the map of every patch's window; means ``below (k, d)`` and ``mean (j, d)``; what held-out data said.

    ``errors``: by lambda, mean square a number; ``sharing``: the lambda chosen; ``variance`` of the level's numbers.
    """

    B: Tensor
    below: Tensor
    mean: Tensor
    sharing: float
    errors: dict[float, float]
    variance: float


class Moments:
    """Sums of one level over the samples that are added, chunk by chunk: of all, and of the held-out ones among them.

    ``parents (j, p)``: its windows; ``below (k, d)``, ``mean (j, d)``: provisional means (of any sample), which keep float32 sums
    accurate; the exact ones are subtracted afterwards.
    """

    def __init__(self, parents: Int64[Tensor, "j p"], below: Float[Tensor, "k d"], mean: Float[Tensor, "j d"]) -> None:
        self.windows, self.which = parents.unique(dim=0, return_inverse=True)
        # Of the patches, by their windows: those behind one are neighbours, and one product serves them all.
        self.order = self.which.argsort(stable=True)
        counts = self.which.bincount().tolist()
        self.behind = self.order.split(counts)
        self.below, self.mean = below, mean
        self.all, self.held = (_Sums(counts, parents.shape[1] * below.shape[1], below, mean) for _ in range(2))

    def add(self, x: Float[Tensor, "k n d"], y: Float[Tensor, "j n d"]) -> None:
        """Samples of level l-1 and of level l; fastest where both are views of sample-first tensors, as a stream's are."""
        x, y = x.transpose(0, 1) - self.below, y.transpose(0, 1).index_select(1, self.order) - self.mean[self.order]
        seen = x.index_select(1, self.windows.flatten()).view(len(x), len(self.windows), -1)
        for sums, step in ((self.all, 1), (self.held, HELD_OUT)):
            sums.add(x[::step], seen[::step], y[::step])


class _Sums:
    """Sample first in, patches in the order of their windows."""

    def __init__(self, behind: list[int], inputs: int, below: Tensor, mean: Tensor) -> None:
        self.n, self.behind = 0, behind
        self.gram = below.new_zeros(len(behind), inputs, inputs)
        self.cross = below.new_zeros(inputs, *mean.shape)
        self.square = 0.0
        self.first_in, self.first_out = torch.zeros_like(below), torch.zeros_like(mean)

    def add(self, x: Tensor, seen: Tensor, y: Tensor) -> None:
        self.n += len(x)
        windows = seen.transpose(0, 1)
        self.gram.baddbmm_(windows.mT, windows)
        for own, cross, out in zip(windows, self.cross.split(self.behind, 1), y.split(self.behind, 1)):
            cross.flatten(1).addmm_(own.T, out.flatten(1))
        self.square += float(torch.linalg.vector_norm(y)) ** 2
        self.first_in += x.sum(0)
        self.first_out += y.sum(0)

    def __sub__(self, part: _Sums) -> _Sums:
        rest = copy(self)
        for name in ("n", "gram", "cross", "square", "first_in", "first_out"):
            setattr(rest, name, getattr(self, name) - getattr(part, name))
        return rest


def learn_upsampling(moments: Moments, kinds: Int64[Tensor, " j"]) -> Upsampling:
    """The minimiser of the objective of the module's head; ``kinds`` of the level's patches."""
    whole, held, which = moments.all, moments.held, moments.which
    n, numbers = max(whole.n, 1), moments.mean.numel()
    mean_in, mean_out = whole.first_in / n, whole.first_out / n
    (gram, cross, _), (held_gram, held_cross, held_square) = (
        _centred(sums, mean_in, mean_out, moments) for sums in (whole - held, held)
    )
    fitted, held_gram = _Ridge(gram, cross, moments, kinds), held_gram[which]

    def error(sharing: float, ridge: float) -> float:
        B = fitted.solve(sharing, ridge)
        explained = (B * (2 * held_cross).baddbmm_(held_gram, B, alpha=-1)).sum((1, 2)).double().sum()
        return (held_square - float(explained)) / numbers

    ridge = min(RIDGES, key=lambda tried: error(float("inf"), tried))
    errors = {sharing: error(sharing, ridge) for sharing in SHARING}
    best = min(errors, key=lambda key: errors[key])
    gram, cross, _ = _centred(whole, mean_in, mean_out, moments)
    B = _Ridge(gram, cross, moments, kinds).solve(best, ridge)
    mean = moments.mean + mean_out[moments.order.argsort()]
    return Upsampling(B, moments.below + mean_in, mean, best, errors, held_square / numbers)


def _centred(
    sums: _Sums, mean_in: Tensor, mean_out: Tensor, moments: Moments
) -> tuple[Float[Tensor, "w i i"], Float[Tensor, "j i d"], float]:
    """Second moments about the common means: of windows, of windows and their patches, and the patches' squares."""
    n = max(sums.n, 1)
    m, s = mean_in[moments.windows].flatten(1), (sums.first_in / n)[moments.windows].flatten(1)
    gram = sums.gram / n - m[:, :, None] * s[:, None] - s[:, :, None] * m[:, None] + m[:, :, None] * m[:, None]
    which, mo, so = moments.which[moments.order], mean_out, sums.first_out / n
    mi, si = m[which], s[which]
    cross = sums.cross.transpose(0, 1) / n
    cross += mi[:, :, None] * (mo - so)[:, None] - si[:, :, None] * mo[:, None]
    square = sums.square / n - float((2 * mo * so - mo.square()).double().sum())
    return gram, cross[moments.order.argsort()], square


class _Ridge:
    """The minimisers B of the objective for second moments about the means."""

    def __init__(
        self, gram: Float[Tensor, "w i i"], cross: Float[Tensor, "j i d"], moments: Moments, kinds: Tensor
    ) -> None:
        self.gram, self.cross, self.moments, self.kinds = gram, cross, moments, kinds
        self.own = gram[moments.which]
        inputs = gram.shape[1]
        count = torch.bincount(kinds, minlength=KINDS).clamp_min(1)[:, None, None]
        self.pooled = torch.zeros(KINDS, inputs, inputs).index_add_(0, kinds, self.own) / count
        self.target = torch.zeros(KINDS, inputs, cross.shape[2]).index_add_(0, kinds, cross) / count
        self.unit = gram.diagonal(dim1=1, dim2=2).mean().clamp_min(1e-12) * torch.eye(inputs)

    def solve(self, sharing: float, ridge: float) -> Float[Tensor, "j i d"]:
        """The kinds' ridge solutions, and for a finite ``sharing`` each patch's step away from its kind's."""
        shared = torch.linalg.solve(self.pooled + ridge * self.unit, self.target)[self.kinds]
        if sharing == float("inf"):
            return shared
        factors = torch.linalg.cholesky(self.gram + sharing * self.unit)
        rest = torch.baddbmm(self.cross, self.own, shared, alpha=-1)
        for factor, mine in zip(factors, self.moments.behind):  # one factorisation serves every patch behind a window
            right = rest[mine].transpose(0, 1).reshape(len(factor), -1)
            shared[mine] += torch.cholesky_solve(right, factor).view(len(factor), len(mine), -1).transpose(0, 1)
        return shared
