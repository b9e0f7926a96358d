r"""V_l and b_l for l > 1 by regression: what takes the place of Algorithm 3 in the fast learners (paper, §4.3; Lemma D.2).

Where channel r of patch j is active, :math:`s^*_r = \langle v, S_{l-1,P_j}\rangle - b` exactly, so least squares over those
samples,

.. math:: \min_{v, b} \sum_{i:\ s^{(i)}_r > \tau} \bigl(s^{(i)}_r - \langle v, f^{(i)}\rangle + b\bigr)^2,

is the minimiser of (D.7) once the inactive samples agree (:math:`\langle v, f\rangle \le b` where :math:`s_r = 0`). Where they
do not (a parent that forbids the channel never shows while it is active), Gauss-Newton steps on
:math:`\sum (s_r - (\langle v, f\rangle - b)_+)^2` bring them in: the active set is then that of the prediction. Decoded
features carry noise of known variance, which is subtracted from the normal matrix (errors in variables), as it would bias v
towards zero. Float32 products, float64 solves, and two rounds on the residual, which make the result exact to rounding.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

_BLOCK = 2**24  # numbers of feature products held at once
_ROUNDS = 6  # Gauss-Newton rounds at most
_DISAGREE = 1e-3  # share of a channel's active count that may be predicted active while silent


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
    f = torch.cat([inputs, inputs.new_full((len(inputs), 1), -1.0)], 1)
    heard = (inputs > 0).float()
    variance = torch.cat([noise.double().square(), noise.new_zeros(1).double()])
    active = outputs > threshold
    count = active.sum(0).double().clamp_min(1)
    rounds = torch.zeros(outputs.shape[1])
    v = _solve(f, outputs, active, heard, variance)
    for step in range(_ROUNDS):
        prediction = f @ v.float().T
        wrong = ((prediction > threshold) & ~active).sum(0) / count
        again = wrong > _DISAGREE
        if not bool(again.any()):
            break
        rounds[again] = step + 1
        v[again] = _solve(f, outputs[:, again], prediction[:, again] > 0, heard, variance)
    prediction = f @ v.float().T
    wrong = ((prediction > threshold) & ~active).sum(0) / count
    error = ((outputs - prediction).square() * active).sum(0) / (outputs.square() * active).sum(0).clamp_min(1e-30)
    unseen = (active.float().T @ heard) == 0
    return v[:, :-1], v[:, -1], error.sqrt(), wrong, unseen, rounds


def _solve(f: Tensor, outputs: Tensor, active: Tensor, heard: Tensor, variance: Tensor) -> Tensor:
    n, q = f.shape
    weight = active.float()
    normal = torch.zeros(outputs.shape[1], q, q, dtype=torch.float64)
    block = max(64, _BLOCK // (q * q))
    for i in range(0, n, block):
        part = f[i : i + block]
        products = (part[:, :, None] * part[:, None, :]).flatten(1)
        normal += (weight[i : i + block].T @ products).double().view(-1, q, q)
    count = weight.T @ torch.cat([heard, heard.new_zeros(n, 1)], 1)
    normal -= torch.diag_embed(count.double() * variance)
    scale = normal.diagonal(dim1=1, dim2=2).clamp_min(1e-30).rsqrt()
    seen = count > 0
    seen[:, -1] = True
    scale = torch.where(seen, scale, torch.zeros_like(scale))  # an unseen input has coefficient zero
    eye = torch.eye(q, dtype=torch.float64)
    scaled = normal * scale[:, :, None] * scale[:, None, :] + torch.diag_embed((~seen).double()) + 1e-9 * eye
    factor, info = torch.linalg.cholesky_ex(scaled)
    v = torch.zeros(outputs.shape[1], q, dtype=torch.float64)
    biased = count.double() * variance
    for _ in range(3):
        residual = (outputs - f @ v.float().T) * weight
        right = (residual.T @ f).double() + biased * v
        if bool((info == 0).all()):
            step = torch.cholesky_solve((right * scale)[..., None], factor)[..., 0]
        else:
            step = (torch.linalg.pinv(scaled, hermitian=True) @ (right * scale)[..., None])[..., 0]
        v = v + step * scale
    return v
