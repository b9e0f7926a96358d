r"""Tensor power iteration on the third cumulant of every patch: the mathematics of the robust warm start.

A patch is :math:`X = W S + \sigma\xi` with orthonormal columns in :math:`W` and sparse, non-negative :math:`S`. Centred, its
third moment is the third *cumulant* (paper, Claim A.2, with the sums over :math:`\beta, \gamma` gone where channels are
independent):

.. math:: T = E[(X - EX)^{\otimes 3}] = \sum_r \kappa_r W_r^{\otimes 3} + \text{(cross-cumulants of dependent channels)},

and Gaussian noise of any size has none. The columns of :math:`W` are therefore the fixed points of
:math:`a \leftarrow T(a, a, \cdot)/\|\cdot\|`, which converges quadratically. Everything runs in the m-dimensional signal
subspace (the top eigenvectors of the covariance), where :math:`T` has only :math:`m^3` entries, and on all patches at once.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor

_CHUNK = 2048  # samples a product: the chunk of scaled coordinates stays in cache


def signal_subspace(x: Float[Tensor, "n k d"], m: int) -> tuple[Float[Tensor, "k d m"], Float[Tensor, " k"]]:
    """Orthonormal basis of the m directions of largest variance of every patch, and the noise variance outside them.

    The noise variance is the mean of the remaining ``d - m`` eigenvalues of the covariance: zero where ``d = m``.
    """
    mean = x.mean(0)
    second = x.permute(1, 2, 0) @ x.transpose(0, 1) / len(x)
    values, vectors = torch.linalg.eigh(second.double() - mean[:, :, None].double() * mean[:, None, :].double())
    rest = values[:, :-m]
    noise = rest.mean(1).clamp_min(0) if rest.shape[1] else values.new_zeros(len(values))
    return vectors[:, :, -m:].to(x.dtype), noise.to(x.dtype)


def third_moment(y: Float[Tensor, "k m n"]) -> Float[Tensor, "k m m m"]:
    """``E[y ⊗ y ⊗ y]`` per patch: the cumulant where ``y`` is centred."""
    k, m, n = y.shape
    moment = y.new_zeros(k, m, m, m)
    for start in range(0, n, _CHUNK):
        part = y[:, :, start : start + _CHUNK]
        transposed = part.mT.contiguous()
        for i in range(m):  # symmetric in its first two indices, so only j >= i is formed
            moment[:, i, i:] += (part[:, i:] * part[:, i : i + 1]) @ transposed
    upper = torch.triu(torch.ones(m, m, dtype=torch.bool, device=y.device))[None, :, :, None]
    return torch.where(upper, moment, moment.transpose(1, 2)) / n


def contract(t: Float[Tensor, "k m m m"], a: Float[Tensor, "k m r"]) -> Float[Tensor, "k m r"]:
    """``T(a_r, a_r, ·)`` for every column ``a_r``."""
    k, m, r = a.shape
    return ((t.reshape(k, m * m, m) @ a).reshape(k, m, m, r) * a[:, None]).sum(2)


def _unit(a: Tensor) -> Tensor:
    return a / a.norm(dim=1, keepdim=True).clamp_min(torch.finfo(a.dtype).tiny)


def _outside(a: Float[Tensor, "k m r"], found: Float[Tensor, "k m m"]) -> Float[Tensor, "k m r"]:
    # Twice: a polished column is orthogonal to the others only up to its error, and the second pass squares that error.
    for _ in range(2):
        a = a - found @ (found.mT @ a)
    return a


def deflate(
    t: Float[Tensor, "k m m m"],
    pool: Float[Tensor, "k m s"],
    columns: Float[Tensor, "k m m"],
    known: Int64[Tensor, " k"],
    restarts: int,
    iterations: int,
) -> Float[Tensor, "k m m"]:
    """Fill columns ``known[k]`` onwards of each patch, one after another, each orthogonal to those before it.

    A column starts from the ``restarts`` samples of ``pool`` with the largest part outside the columns found so far (the
    samples in which a missing channel is active); of their limits the one with the largest ``T(a, a, a)`` is kept. The
    complement makes duplicates impossible.
    """
    m = columns.shape[2]
    columns = columns * (torch.arange(m, device=t.device) < known[:, None])[:, None, :]
    for r in range(int(known.min()), m):
        outside = _outside(pool, columns)
        best = outside.norm(dim=1).topk(min(restarts, pool.shape[2]), dim=1).indices
        a = _unit(outside.gather(2, best[:, None, :].expand(-1, m, -1)))
        for _ in range(iterations):
            a = _unit(_outside(contract(t, a), columns))
        score = (contract(t, a) * a).sum(1)
        winner = a.gather(2, score.argmax(1)[:, None, None].expand(-1, m, 1))[:, :, 0]
        columns[:, :, r] = torch.where((known <= r)[:, None], winner, columns[:, :, r])
    return columns


def refine(t: Float[Tensor, "k m m m"], columns: Float[Tensor, "k m m"], iterations: int) -> Float[Tensor, "k m m"]:
    """Move all columns together and orthonormalise symmetrically, so that none carries the errors of those found before.

    Columns keep their weight ``kappa_r``: a silent channel, which has none, leaves the others alone.
    """
    for _ in range(iterations):
        u, _, vh = torch.linalg.svd(contract(t, columns))
        columns = u @ vh
    return columns


def average_alone(
    y: Float[Tensor, "k m n"], columns: Float[Tensor, "k m m"], cosines: tuple[float, ...], least: int
) -> Float[Tensor, "k m m"]:
    """Replace each column by the mean of the (uncentred) samples that point its way, under tightening cosines.

    A sample in which one channel is active alone is parallel to that channel's column, whatever the correlations
    between channels; the mean weighs samples by their size, so the noisiest count least. A column with fewer than ``least``
    such samples stays.
    """
    for cosine in cosines:
        total, count = torch.zeros_like(columns), torch.zeros_like(columns[:, :1])
        for part in y.split(_CHUNK, dim=2):
            alone = ((columns.mT @ part) > cosine * part.norm(dim=1, keepdim=True)).to(y.dtype)
            total += part @ alone.mT
            count += alone.sum(2)[:, None, :]
        columns = torch.where(count >= least, _unit(total), columns)
    return columns


def seek_alone(
    pool: Float[Tensor, "k m s"], columns: Float[Tensor, "k m m"], known: Int64[Tensor, " k"], cosine: float
) -> Float[Tensor, "k m m"]:
    """Fill columns ``known[k]`` onwards by the directions in which most samples of the (uncentred) pool point.

    Samples of one channel alone are parallel, so its column is where directions are densest. It needs no independence of
    channels, which cumulants do; cumulants need no samples with one channel alone, which this does.
    """
    m = columns.shape[2]
    size = pool.norm(dim=1)
    direction = _unit(pool)
    direction = direction * (size > 0.1 * size.square().mean(1, keepdim=True).sqrt())[:, None, :]
    near = ((direction.mT @ direction) > cosine).to(pool.dtype)
    columns = columns * (torch.arange(m, device=pool.device) < known[:, None])[:, None, :]
    free = (columns.mT @ direction).amax(1) < 0.7
    for r in range(int(known.min()), m):
        densest = (near.sum(2) * free).argmax(1)
        members = near.gather(1, densest[:, None, None].expand(-1, 1, near.shape[2]))
        found = _unit((pool * members).sum(2, keepdim=True))[:, :, 0]
        columns[:, :, r] = torch.where((known <= r)[:, None], found, columns[:, :, r])
        free &= (columns[:, None, :, r] @ direction)[:, 0] < 0.7
    return columns


def misfit(
    y: Float[Tensor, "k m n"], columns: Float[Tensor, "k m m"], noise: Float[Tensor, " k"]
) -> Float[Tensor, "k m"]:
    """The share of a channel's energy that is negative, beyond what noise explains; 1 where the channel is silent.

    Channels are non-negative, so a column of W has none, while a mixture of two columns, or a column that stands for none,
    has up to half.
    """
    inverse = torch.linalg.pinv(columns)
    energy, negative = torch.zeros_like(columns[:, 0]), torch.zeros_like(columns[:, 0])
    for part in y.split(_CHUNK, dim=2):
        s = inverse @ part
        energy += s.square().sum(2) / y.shape[2]
        negative += s.clamp_max(0).square().sum(2) / y.shape[2]
    floor = noise[:, None] * inverse.square().sum(2)
    negative = negative - floor  # half of it is expected; the rest allows for its fluctuation
    silent = energy <= 2 * floor + 1e-6 * energy.amax(1, keepdim=True)
    return torch.where(silent, torch.ones_like(energy), negative.clamp_min(0) / energy.clamp_min(1e-30))
