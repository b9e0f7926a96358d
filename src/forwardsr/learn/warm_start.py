r"""Warm starts of the output layer W (paper, §7.1, Appendix A, Lemma A.1), batched over patches.

``cumulant_warm_start`` is the robust default: third cumulants by tensor power iteration, checked and repaired.
``algorithm_5`` is the paper's, as written: with x the sum of two samples,

.. math:: H = E[\langle x, X\rangle\, P_{\mathcal W}(X)^{\otimes 2}], \qquad
    P_{\mathcal W}(X) = \prod_{w \in \mathcal W} (I - w w^\top 1[\langle w, X\rangle \ge b])\, X,

whose top eigenvector v is near a column that x favours and W lacks; then :math:`v' \propto E[1[\langle v, X\rangle \ge b] X]`.

=====================  =======  ====================================================================================
cumulants              default  reason
=====================  =======  ====================================================================================
restarts               8        limits per column to choose from; one suffices for most columns of a planted target
iterations             12       power iteration doubles its digits a step once near
joint                  6        symmetric steps that undo the order of deflation
cosines                see      from "clearly this channel" to "nearly alone": at 0.9 others may have 0.44 of the length
least                  20       samples a column is averaged from; fewer would be noisier than the cumulant
tolerance              0.02     negative energy of a column off by 0.14: ten times a good start's, a tenth of a mixture's
repairs                3        rounds of repair, by single-active samples and by four times the restarts
pool                   1024     samples that starts are drawn from: a channel at one percent is in ten of them
=====================  =======  ====================================================================================

=====================  =======  ====================================================================================
Algorithm 5            default  reason
=====================  =======  ====================================================================================
b = 1/poly(k)          0.5      half a channel's mean: above the error of v (0.3 at m = 8) times what else is active
Delta > 1/m            4/m      at 1/m one column in ten is a mixture of two (m = 8, p = 0.1), at 4/m none of 160
T = poly(k) m^3        60 m     tries; x must favour a missing channel, which one try in poly(k) m does by luck
N                      4096     samples a try: a channel active one time in twenty is in two hundred of them
=====================  =======  ====================================================================================
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from forwardsr.data.source import Source
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
class Algorithm5Settings:
    """The numbers of :func:`algorithm_5`; the module's table gives each one's reason. ``tries`` is T / m."""

    b: float = 0.5
    gap: float = 4.0
    """Delta must exceed ``gap / m``."""
    tries: int = 60
    samples: int = 4096


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


def algorithm_5(
    source: Source, level: int, m: int, settings: Algorithm5Settings, rng: torch.Generator
) -> tuple[Float[Tensor, "k d m"], Bool[Tensor, "k m"]]:
    """Algorithm 5 on every patch of ``level`` (counted from 0): W in the order of finding, and which columns were not found.

    A column that was not found within the tries is zero. ``source`` in patch form, in units in which a channel's mean while
    active is about 1; fresh samples every try, for all patches still incomplete.
    """
    k, d = source.shapes[level]
    w, count = torch.zeros(k, d, m), torch.zeros(k, dtype=torch.int64)
    for _ in range(settings.tries * m):
        todo = (count < m).nonzero()[:, 0]
        if not len(todo):
            break
        x = source.draw(settings.samples + 2, rng, level + 1)[level].transpose(0, 1)[todo].float()
        favour, x = x[:, :2].sum(1), x[:, 2:]
        known, rest = w[todo], x
        seen = (x @ known >= settings.b).to(x.dtype)
        for r in range(int(count.max())):  # the product over W in the order of finding
            column = known[:, :, r : r + 1]
            rest = rest - seen[:, :, r : r + 1] * (rest @ column) * column.mT
        h = (rest * (x @ favour[:, :, None])).mT @ rest / settings.samples
        values, vectors = torch.linalg.eigh(h)
        v = vectors[:, :, -1:]
        # An eigenvector has no sign of its own; channels are non-negative, so theirs is the one the samples agree with.
        v = v * (x @ v).mean(1, keepdim=True).sign()
        fresh = (values[:, -1] - values[:, -2] > settings.gap / m) & ((known.mT @ v)[:, :, 0] <= 0.5).all(1)
        mean = (x * (x @ v >= settings.b)).mean(1)
        found = mean / mean.norm(dim=1, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)
        hit = todo[fresh]
        w[hit, :, count[hit]] = found[fresh]
        count[hit] += 1
    return w, torch.arange(m) >= count[:, None]


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
