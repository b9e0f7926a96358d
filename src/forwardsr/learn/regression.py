r"""V_l and b_l for l > 1 by regression: what takes the place of Algorithm 3 in the fast learners (paper, §4.3; Lemma D.2).

Where channel r of patch j is active, :math:`s^*_r = \langle v, S_{l-1,P_j}\rangle - b` exactly, so least squares over those
samples,

.. math:: \min_{v, b} \sum_{i:\ s^{(i)}_r > \tau} \bigl(s^{(i)}_r - \langle v, f^{(i)}\rangle + b\bigr)^2,

is the minimiser of (D.7) once the inactive samples agree (:math:`\langle v, f\rangle \le b` where :math:`s_r = 0`). Where they
do not, Gauss-Newton steps on :math:`\sum (s_r - (\langle v, f\rangle - b)_+)^2` bring them in: the samples are then those
*predicted* active. That adds those of a parent which forbids the channel (and so never shows while it is active), and drops those
that only noise lifted over the threshold; choosing by the prediction does not bias, as choosing by the response does. Decoded
inputs carry noise of known variance, which is subtracted from the normal matrix (errors in variables): it would pull v towards
zero. Normal equations in float64.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

_ROUNDS = 6  # Gauss-Newton rounds at most
_CHANGED = 1e-3  # share of a channel's active samples; a change of fewer ends the rounds


@dataclass
class Regression:
    """``V (k, m, q)`` on the q inputs of a patch, ``b (k, m)``; per channel the relative residual on active samples, the
    share of silent samples predicted active (of the active count), and inputs never seen while it is active (``unseen``)."""

    V: Tensor
    b: Tensor
    residual: Tensor
    disagreement: Tensor
    unseen: Tensor
    rounds: Tensor


def regress(
    inputs: Float[Tensor, "k n q"],
    outputs: Float[Tensor, "k n m"],
    threshold: Float[Tensor, "k m"],
    noise: Float[Tensor, "k q"],
) -> Regression:
    """Fit ``outputs = (inputs V^T - b)_+`` patch by patch; float32 in, float64 out.

    ``inputs``: decoded channels of the parents, zero where silent. ``threshold``: an output below it is silent. ``noise``:
    standard deviation of the noise on an active input.
    """
    return Regression(
        *(torch.stack(x) for x in zip(*(_patch(*args) for args in zip(inputs, outputs, threshold, noise)), strict=True))
    )


def _patch(inputs: Tensor, outputs: Tensor, threshold: Tensor, noise: Tensor) -> tuple[Tensor, ...]:
    # A last row of zeros stands for "no sample" where channels are active in fewer samples than the busiest.
    f = torch.cat([inputs, inputs.new_full((len(inputs), 1), -1.0)], 1)
    f, y = (torch.cat([x, x.new_zeros(1, x.shape[1])]) for x in (f, outputs))
    variance = torch.cat([noise.double().square(), torch.zeros(1, dtype=torch.float64)])
    active = y > threshold
    count = active.sum(0).double().clamp_min(1)
    rounds = torch.zeros(y.shape[1])
    chosen, v = active.clone(), _solve(f, y, active, variance)
    prediction = f @ v.float().T
    loss = (y * active - prediction.relu()).square().sum(0)
    for step in range(_ROUNDS):
        predicted = prediction > threshold
        changed = (predicted != chosen).sum(0) / count
        again = (changed > (0 if step == 0 else _CHANGED)).nonzero()[:, 0]
        if not len(again):
            break
        tried = _solve(f, y[:, again], predicted[:, again], variance)
        there = f @ tried.float().T
        new = ((y * active)[:, again] - there.relu()).square().sum(0)
        # Off the model a step may overshoot. (A sample lifted by noise alone makes a right step look a little worse.)
        better = new <= 1.05 * loss[again]
        again, tried = again[better], tried[better]
        rounds[again] = step + 1
        chosen[:, again], prediction[:, again] = predicted[:, again], there[:, better]
        v[again], loss[again] = tried, new[better]
        if not len(again):
            break
    wrong = ((prediction > threshold) & ~active).sum(0) / count
    error = ((y - prediction).square() * active).sum(0) / (y.square() * active).sum(0).clamp_min(1e-30)
    unseen = active.float().T @ (f[:, :-1] > 0).float() == 0
    return v[:, :-1], v[:, -1], error.sqrt(), wrong, unseen, rounds


def _solve(f: Tensor, y: Tensor, chosen: Tensor, variance: Tensor) -> Tensor:
    """Least squares of every column of ``y`` over its own chosen rows, gathered into one padded batch."""
    m, n = y.shape[1], len(f)
    channel, sample = chosen.T.nonzero(as_tuple=True)
    count = torch.bincount(channel, minlength=m)
    place = torch.arange(len(channel)) - (count.cumsum(0) - count)[channel]
    rows = torch.full((m, max(1, int(count.max()))), n - 1)
    rows[channel, place] = sample
    F = f[rows].double()
    Y = y.T.gather(1, rows).double()
    heard = (F > 0).double().sum(1)
    normal = F.mT @ F - torch.diag_embed(heard * variance)
    right = (F.mT @ Y[:, :, None])[:, :, 0]
    seen = heard > 0
    seen[:, -1] = True
    scale = torch.where(seen, normal.diagonal(dim1=1, dim2=2).clamp_min(1e-30).rsqrt(), 0.0)  # unseen: coefficient zero
    scaled = normal * scale[:, :, None] * scale[:, None, :] + torch.diag_embed((~seen).double())
    # pinv: inputs that only ever occur together share their weight.
    return (torch.linalg.pinv(scaled, rtol=1e-9, hermitian=True) @ (right * scale)[:, :, None])[:, :, 0] * scale
