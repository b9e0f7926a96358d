r"""From one resolution to the next on photographs: the linear part of super-resolution (Algorithm 3 without its threshold).

.. math:: \min_B E\|X_{l,j} - \mu_{l,j} - B_j (X_{l-1,P_{l,j}} - \mu)\|^2 + \lambda\,\mathrm{tr}\,G\,\|B_j - B_{\kappa(j)}\|^2

with :math:`B_\kappa` the ridge solution shared by all patches of the kind :math:`\kappa(j)` (:mod:`forwardsr.learn.windows`).
Lambda says how far a patch may go its own way; it is chosen by the error on held-out samples (aligned faces: 10 % better than
shared; photographs of anything: shared), and before it the ridge, in the same way. Everything is a function of sums over samples, so
one pass over the data serves all lambdas and ridges and the held-out error as well, and nothing holds more than a chunk.

Rectified features (pairs :math:`(\pm a)_+` in place of a) were tried as inputs: on held-out faces and buildings they are 0 to
1 % worse.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from forwardsr.learn.windows import KINDS, gather

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


class _Sums:
    def __init__(self, windows: int, patches: int, inputs: int, outputs: int, below: int) -> None:
        self.n = 0
        self.gram = torch.zeros(windows, inputs, inputs)
        self.cross = torch.zeros(patches, inputs, outputs)
        self.square = torch.zeros(patches, dtype=torch.float64)
        self.first_in, self.first_out = torch.zeros(below, outputs), torch.zeros(patches, outputs)

    def add(self, x: Tensor, y: Tensor, windows: Tensor, which: Tensor) -> None:
        self.n += x.shape[1]
        seen = gather(x, windows)
        self.gram.baddbmm_(seen.mT, seen)
        for w in range(len(windows)):  # every patch that looks through this window
            mine = (which == w).nonzero()[:, 0]
            self.cross[mine] += seen[w].T @ y[mine]
        self.square += y.double().square().sum((1, 2))
        self.first_in += x.sum(1)
        self.first_out += y.sum(1)


def learn_upsampling(
    chunks: Iterable[tuple[Tensor, Tensor]],
    parents: Int64[Tensor, "j p"],
    kinds: Int64[Tensor, " j"],
    below: Float[Tensor, "k d"],
    mean: Float[Tensor, "j d"],
) -> Upsampling:
    """Fit the objective of the module's head.

    ``chunks``: pairs of level l-1 ``(k, n, d)`` and level l ``(j, n, d)``, patch first. ``below``, ``mean``: provisional means
    (of any sample), which keep float32 sums accurate; the exact ones are subtracted afterwards.
    """
    windows, which = parents.unique(dim=0, return_inverse=True)
    k, d = below.shape
    inputs = parents.shape[1] * d
    fit, held = (_Sums(len(windows), len(parents), inputs, d, k) for _ in range(2))
    for x, y in chunks:
        x, y = x - below[:, None], y - mean[:, None]
        out = torch.arange(x.shape[1]) % HELD_OUT == 0
        fit.add(x[:, ~out], y[:, ~out], windows, which)
        held.add(x[:, out], y[:, out], windows, which)
    mean_in = (fit.first_in + held.first_in) / (fit.n + held.n)
    mean_out = (fit.first_out + held.first_out) / (fit.n + held.n)
    parts = [_centred(sums, mean_in, mean_out, windows, which) for sums in (fit, held)]
    (gram, cross, _), (held_gram, held_cross, held_square) = parts

    def error(sharing: float, ridge: float) -> float:
        B = _solve(gram, cross, which, kinds, sharing, ridge)
        explained = (B * (2 * held_cross - held_gram[which] @ B)).sum((1, 2)).double()
        return float((held_square - explained).mean() / d)

    ridge = min(RIDGES, key=lambda tried: error(float("inf"), tried))
    errors = {sharing: error(sharing, ridge) for sharing in SHARING}
    best = min(errors, key=lambda key: errors[key])
    share = fit.n / (fit.n + held.n)
    gram, cross = (share * a + (1 - share) * b for a, b in ((gram, held_gram), (cross, held_cross)))
    B = _solve(gram, cross, which, kinds, best, ridge)
    return Upsampling(B, below + mean_in, mean + mean_out, best, errors, float(held_square.mean() / d))


def _centred(
    sums: _Sums, mean_in: Tensor, mean_out: Tensor, windows: Tensor, which: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Second moments about the common means."""
    n = max(sums.n, 1)
    m, s = mean_in[windows].flatten(1), (sums.first_in / n)[windows].flatten(1)
    gram = sums.gram / n - m[:, :, None] * s[:, None] - s[:, :, None] * m[:, None] + m[:, :, None] * m[:, None]
    mo, so = mean_out, sums.first_out / n
    mi, si = m[which], s[which]
    cross = sums.cross / n - mi[:, :, None] * so[:, None] - si[:, :, None] * mo[:, None] + mi[:, :, None] * mo[:, None]
    square = sums.square / n - (2 * mo * so - mo.square()).sum(1).double()
    return gram, cross, square


def _solve(gram: Tensor, cross: Tensor, which: Tensor, kinds: Tensor, sharing: float, ridge: float) -> Tensor:
    """``B``: the kinds' ridge solutions, and for a finite ``sharing`` each patch's step away from its kind's."""
    inputs = gram.shape[1]
    count = torch.bincount(kinds, minlength=KINDS).clamp_min(1)[:, None, None]
    pooled = torch.zeros(KINDS, inputs, inputs).index_add_(0, kinds, gram[which]) / count
    target = torch.zeros(KINDS, inputs, cross.shape[2]).index_add_(0, kinds, cross) / count
    level = gram.diagonal(dim1=1, dim2=2).mean().clamp_min(1e-12)
    eye = torch.eye(inputs)
    shared = torch.linalg.solve(pooled + ridge * level * eye, target)[kinds]
    if sharing == float("inf"):
        return shared
    factor = torch.linalg.cholesky(gram + sharing * level * eye)
    rest = cross - gram[which] @ shared
    step = torch.empty_like(rest)
    for w in range(len(gram)):  # one factorisation serves every patch behind a window
        mine = (which == w).nonzero()[:, 0]
        right = rest[mine].transpose(0, 1).reshape(inputs, -1)
        step[mine] = torch.cholesky_solve(right, factor[w]).view(inputs, len(mine), -1).transpose(0, 1)
    return shared + step
