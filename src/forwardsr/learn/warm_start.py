r"""Warm starts of the output layer W (paper, §7.1 and Appendix A).

``cumulant_warm_start`` is the default: third cumulants by tensor power iteration, checked and repaired.

=====================  =======  ====================================================================================
setting                default  reason
=====================  =======  ====================================================================================
restarts               8        limits per column to choose from; one suffices for most columns of a planted target
iterations             12       power iteration doubles its digits a step once near
joint                  6        symmetric steps that undo the order of deflation
cosines                see      from "clearly this channel" to "this channel alone": 0.9 is 0.44 of other channels
least                  20       samples a column is averaged from; fewer would be noisier than the cumulant
tolerance              0.02     negative energy of a column off by 0.14: ten times a good start's, a tenth of a mixture's
repairs                3        rounds of repair, each with four times the restarts of the one before
pool                   1024     samples that starts are drawn from: a channel at one percent is in ten of them
=====================  =======  ====================================================================================
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from forwardsr.errors import UserError
from forwardsr.learn.cumulants import (
    average_alone,
    deflate,
    misfit,
    refine,
    seek_alone,
    signal_subspace,
    third_moment,
)

_BLOCK = 2**26  # numbers of signal coordinates held at once: patches beyond that are done in turn
_WRONG = 0.2  # a misfit above this is no feature at all, however large


@dataclass(frozen=True)
class CumulantSettings:
    """The numbers of :func:`cumulant_warm_start`; the module's table gives each one's reason."""

    restarts: int = 8
    iterations: int = 12
    joint: int = 6
    cosines: tuple[float, ...] = (0.9, 0.97)
    least: int = 20
    tolerance: float = 0.02
    repairs: int = 3
    pool: int = 1024


def cumulant_warm_start(
    x: Float[Tensor, "n k d"],
    m: int,
    generator: torch.Generator,
    settings: CumulantSettings = CumulantSettings(),
) -> Float[Tensor, "k d m"]:
    """Unit columns near those of W*, in an order of their own, for every patch; float32 or float64 as ``x``.

    Columns within a patch never repeat. One that explains its channel badly is sought again, and stays as it is where that
    fails: :func:`missing_features` says which. ``generator`` is a CPU generator.

    Raises ``UserError`` where a patch is narrower than ``m``, samples are too few, or any number is not finite.
    """
    n, k, d = x.shape
    if m > d:
        raise UserError(f"patches hold {d} numbers, too few for {m} orthonormal features: ask for at most {d} channels")
    if n < 20 * m:
        raise UserError(
            f"{n} samples are too few for {m} channels: a warm start needs {20 * m} so that each fires a few times"
        )
    if not bool(torch.isfinite(x.sum())):
        raise UserError("the samples hold NaN or infinite numbers: clean them first")
    block = max(1, _BLOCK // (n * m))
    picks = torch.randperm(n, generator=generator)[: settings.pool * (1 + settings.repairs)].to(x.device)
    return torch.cat([_columns(x[:, i : i + block], m, picks, settings) for i in range(0, k, block)])


def _columns(x: Tensor, m: int, picks: Tensor, settings: CumulantSettings) -> Tensor:
    basis, noise = signal_subspace(x, m)
    y = (x.transpose(0, 1) @ basis).mT.contiguous()
    mean = y.mean(2, keepdim=True)
    t = third_moment(y - mean)
    first, *rest = picks.split(settings.pool)
    known = torch.zeros(len(y), dtype=torch.int64, device=x.device)
    columns = deflate(
        t, y[:, :, first] - mean, t.new_zeros(len(y), m, m), known, settings.restarts, settings.iterations
    )
    columns = average_alone(y, refine(t, columns, settings.joint), settings.cosines, settings.least)
    fault = misfit(y, columns, noise)
    for pick in rest:
        which = (fault > settings.tolerance).any(1).nonzero()[:, 0]
        if not len(which):
            break
        part, order = y[which], fault[which].argsort(dim=1)
        kept = columns[which].gather(2, order[:, None, :].expand(-1, m, -1))
        good = (fault[which] <= settings.tolerance).sum(1)
        pool = part[:, :, pick]
        for attempt in (
            seek_alone(pool, kept, good, settings.cosines[-1]),
            deflate(t[which], pool - mean[which], kept, good, 4 * settings.restarts, settings.iterations),
        ):
            attempt = average_alone(part, attempt, settings.cosines, settings.least)
            new = misfit(part, attempt, noise[which])
            better = new.clamp_max(_WRONG).sum(1) < fault[which].clamp_max(_WRONG).sum(1)
            columns[which[better]], fault[which[better]] = attempt[better], new[better]
    return basis @ columns


def missing_features(
    x: Float[Tensor, "n k d"], w: Float[Tensor, "k d m"], tolerance: float = CumulantSettings.tolerance
) -> Bool[Tensor, "k m"]:
    """Which columns of ``w`` stand for no channel of the data, by patch and channel: silent, mixed or repeated.

    A true feature's coordinate is non-negative; ``tolerance`` is the share of its energy that may be negative.
    """
    basis, noise = signal_subspace(x, w.shape[2])
    y = (x.transpose(0, 1) @ basis).mT
    columns = basis.mT @ w
    overlap = torch.triu(columns.mT @ columns, diagonal=1).amax(1)
    return (misfit(y, columns, noise) > tolerance) | (overlap > 0.5)
