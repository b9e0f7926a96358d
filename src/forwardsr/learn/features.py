r"""W from samples, exactly where there is no noise: what takes the place of Algorithm 1 in the ``efficient`` learner.

A patch is :math:`x = W s` with sparse :math:`s \ge 0`. For every channel r, most samples have :math:`s_r = 0`, and those lie
in the hyperplane :math:`\langle u_r, x\rangle = 0` with :math:`u_r` the r-th row of :math:`W^{-1}` (within the signal
subspace; :math:`u_r = W_r` where W is orthonormal). So the rows are the solution of the estimating equations

.. math:: E\bigl[\psi_r(\langle u_r, x\rangle)\, \langle u_q, x\rangle\bigr] = 0 \quad (q \ne r), \qquad
          \psi_r(s) = s\, 1[|s| \le \tau_r],

and :math:`\tau_r` is a few times the cross-talk that the last step corrected, or four standard deviations of the noise where
that is more. Each step solves the linearised equations with :math:`E[s s^T]` for a Jacobian. Without noise the error falls with
the square of :math:`\tau` down to rounding (six steps). With noise every sample in which r is silent counts, so
the error is near sigma sqrt(m / n E[s_q^2]), the Cramér-Rao bound; averaging only the samples in which a channel is alone (a few
percent) loses a factor of three. The rows need no orthonormality of W; where the result is orthonormal within its error, the nearest
orthonormal matrix halves the variance once more.

The equations are solved in coordinates :math:`y = B^T x` of the signal subspace. With noise and many samples B is first that of a
few; then :math:`B' = (\sum x y^T)(\sum y y^T)^{-1}`, one power step, spans that of all, and since :math:`B^T B' = I` the y stay
its coordinates: :math:`W = B' C` from columns C. What the step leaves of a direction's variance is (sigma^2 / lambda_m)^2 n / few.

A mixture of two channels is never a solution that passes :func:`audit`: a channel's coordinate is non-negative and often zero.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from forwardsr.errors import UserError
from forwardsr.learn.hyperplanes import hyperplane_start
from forwardsr.learn.stream import PatchesOf, Stream
from forwardsr.learn.warm_start import cumulant_warm_start

_START = 0.25  # the first slab's half width after a cumulant start, whose columns are off by 0.025
_CLOSE = 0.01  # and after a hyperplane start, which only noise moves
_WIDTH = 6.0  # later half widths, in largest cross-talks just corrected: those left are smaller, and s has a tail
_LONGEST = 0.5  # of a step's largest entry: beyond it the equations are not linear
_QUICK, _ROUNDS = (
    12,
    20,
)  # rounds of refinement at most, with the quick and the exact Jacobian: 6 suffice where it goes well
_SETTLED = 0.05  # a step below this share of its own standard error is the last
_EXACT = 1e-5  # noise below this share of the patch r.m.s. is rounding
_REPAIRS = 4  # hyperplane starts a patch, each from what the one before found
_APART = 0.02  # share of a channel's active samples in which any other is silent, at least
FEW = 10_000  # samples that suffice without noise: the equations are then exact
_OUTLINE = 2**15  # samples that a first subspace, first columns and the audit take where noise asks for more
_JUDGED = 2**13  # samples that tell the size of the noise: to a hundredth at least
_THINNED = 16  # one sample in so many says how often a channel is silent
_WORKING_SET = 2**19  # coordinates that a step works on at once, so that they stay in cache
_WARM = 5_000  # samples for the warm start: an error of 0.025 a column, a tenth of what refinement needs


@dataclass
class Features:
    """What is known of one level's output layer: ``W (k, d, m)``, its decoder ``(k, m, d)``, and the noise of a number of x.

    ``threshold (k,)``: a decoded channel below it counts as silent. ``rms``: of one patch (all its numbers together).
    ``warm``: the columns before refinement. ``bad (k, m)``: channels that :func:`audit` rejects.
    """

    W: Tensor
    noise: Tensor
    rms: Tensor
    warm: Tensor
    bad: Tensor
    samples: int

    @property
    def decoder(self) -> Float[Tensor, "k m d"]:
        """The pseudo-inverse of W."""
        return torch.linalg.pinv(self.W.double()).to(self.W.dtype)

    @property
    def decoded_noise(self) -> Float[Tensor, "k m"]:
        """Standard deviation of the noise of a decoded channel."""
        return self.noise[:, None] * torch.linalg.pinv(self.W.double()).norm(dim=2).to(self.W.dtype)

    @property
    def threshold(self) -> Float[Tensor, "k m"]:
        """4.5 standard deviations of noise (a silent channel exceeds it once in 300,000 samples), or 10 times rounding."""
        return torch.maximum(4.5 * self.decoded_noise, (10 * _EXACT * self.rms)[:, None] / self.W.shape[2] ** 0.5)


def learn_features(stream: Stream, level: int, m: int, n: int, generator: torch.Generator, salt: int) -> Features:
    """W of one level (0-based) from ``n`` samples, in two passes over them: the signal subspace, then the features inside it.

    Raises ``UserError`` where patches are narrower than ``m``, samples too few, or channels dead.
    """
    k, d = stream.sizes[level]
    n = stream.available(n)
    _check_sizes(stream, level, m, n)
    basis, rms, exact = _subspace(stream, level, m, n, salt)
    n = min(n, max(FEW, 100 * m)) if exact else n
    y = torch.empty(k, m, n)
    outside, judged, seen = torch.zeros(k, dtype=torch.float64), 0, 0
    second, cross = torch.zeros(k, m, m, dtype=torch.float64), torch.zeros(k, d, m, dtype=torch.float64)
    for chunk in stream.chunks(n, level + 1, salt):
        x = chunk[level]
        inside = basis.mT @ x.mT
        if judged < _JUDGED:
            left = min(x.shape[1], _JUDGED - judged)
            outside += (x[:, :left].mT - basis @ inside[:, :, :left]).square().sum((1, 2))
            judged += left
        if not exact:
            second += inside @ inside.mT
            cross += x.mT @ inside.mT
        y[:, :, seen : seen + x.shape[1]] = inside
        seen += x.shape[1]
    if not exact:
        # A power step: the subspace of all samples from that of a few, in which y are still the coordinates of the signal.
        basis = torch.linalg.solve(second, cross.mT).mT.float()
    noise = (outside / (judged * max(1, d - m))).sqrt().float()
    noise = torch.where(noise * d**0.5 < _EXACT * rms, torch.zeros_like(noise), noise)
    start = cumulant_warm_start(y[:, :, : max(_WARM, 100 * m)].permute(2, 0, 1), m, generator)
    columns = refine(y, start, noise)
    some = y[:, :, : max(4 * _OUTLINE, 1000 * m)]
    bad = audit(some, columns, noise)
    for j in bad.any(1).nonzero()[:, 0].tolist():
        # The cumulant start failed: channels depend too strongly on one another, or differ too much in size.
        own = slice(j, j + 1)
        for attempt in range(_REPAIRS):
            known = torch.linalg.pinv(columns[j])[~bad[j]] if attempt else None
            fresh = refine(y[own], hyperplane_start(y[j], float(noise[j]), generator, known)[None], noise[own], _CLOSE)
            verdict = audit(some[own], fresh, noise[own])
            if int(verdict.sum()) < int(bad[j].sum()):
                columns[own], bad[own] = fresh, verdict
            if not bool(bad[j].any()):
                break
    columns = _orthonormal_where_consistent(y, columns, noise)
    W, warm = (F.normalize(basis @ x, dim=1) for x in (columns.float(), start))
    return Features(W, noise, rms, warm, bad, n)


def _check_sizes(stream: Stream, level: int, m: int, n: int) -> None:
    d, name = stream.sizes[level][1], stream.source.name
    if m > d:
        raise UserError(
            f"{name}: level {level + 1} has patches of {d} numbers, too few for {m} channels; ask for {d} or fewer"
        )
    if n < 50 * m:
        raise UserError(
            f"{name}: {n} samples are too few for {m} channels; {50 * m} are needed, so that each is active in a few"
        )


def _subspace(stream: Stream, level: int, m: int, n: int, salt: int) -> tuple[Tensor, Tensor, bool]:
    """The top m eigenvectors of every patch's second moment, the patch r.m.s., and whether all else is rounding.

    Where it is, a few thousand samples give the subspace exactly, and no more are read; nor are they where noise is so far below
    the signal that one power step takes the subspace of some samples to that of all.
    """
    k, d = stream.sizes[level]
    enough = max(4096, 40 * m)
    moment = torch.zeros(k, d, d, dtype=torch.float64)
    seen, looked, exact = 0, False, False
    for chunk in stream.chunks(n, level + 1, salt):
        x = chunk[level]
        first = seen < enough
        x = x.double() if first else x
        moment += x.mT @ x
        seen += x.shape[1]
        if first and seen >= enough:
            values, vectors = torch.linalg.eigh(moment)
            basis = vectors[:, :, d - m :]
            outside = (x.square().sum((1, 2)) - (basis.mT @ x.mT).square().sum((1, 2))) / x.shape[1]
            exact = bool((outside < (_EXACT * _EXACT) * values.sum(1) / seen).all())
            if exact:
                break
        if not looked and seen >= _OUTLINE:
            values, looked = torch.linalg.eigvalsh(moment), True
            left = values[:, : d - m].amax(1) / values[:, d - m] if m < d else torch.zeros(1)
            if bool((left.square() * n < 0.01 * seen).all()):  # of the variance of directions, after the step
                break
    values, vectors = torch.linalg.eigh(moment / seen)
    _check_channels(stream, level, m, values, seen)
    return vectors[:, :, d - m :].float(), values.sum(1).sqrt().float(), exact


def _check_channels(stream: Stream, level: int, m: int, values: Tensor, seen: int) -> None:
    name, d = stream.source.name, values.shape[1]
    if not bool(values[:, -1].max() > 0) and not isinstance(stream, PatchesOf):
        raise UserError(f"{name}: level {level + 1} is zero in all of {seen} samples; there is nothing to learn")
    rank = (values[:, d - m :] > 1e-10 * values[:, -1:]).sum(1)
    if bool((rank < m).any()):
        short = int((rank < m).nonzero()[0, 0])
        patch = stream.first + short
        raise UserError(
            f"{name}: level {level + 1}, patch {patch} shows {int(rank[short])} directions in {seen} samples, not {m} channels; "
            f"the others are dead: ask for fewer channels"
        )


def refine(
    y: Float[Tensor, "k m n"], columns: Float[Tensor, "k m m"], noise: Float[Tensor, " k"], width: float = _START
) -> Float[Tensor, "k m m"]:
    """Solve the estimating equations of the module's head from ``columns``; unit columns of W (float64) in the coordinates of y.

    ``noise``: standard deviation of the noise in one number of ``y``. ``width``: the first slab's half width, in sizes of an
    active channel; ten times the cross-talk of the start.
    """
    k, m, n = y.shape
    block = max(1, 2**25 // (m * n))
    parts = [slice(i, i + block) for i in range(0, k, block)]
    return torch.cat([_refine(y[part], columns[part], noise[part], width) for part in parts])


def _refine(y: Tensor, columns: Tensor, noise: Tensor, width: float) -> Tensor:
    few = max(_OUTLINE, 500 * columns.shape[2])
    rough = y.shape[2] > 2 * few  # worth a start from few of them
    W, change = _solve(y[:, :, :few] if rough else y, columns.double(), noise, width, _QUICK, exact=False)
    if rough:
        W, change = _solve(y, W, noise, _CLOSE, _QUICK, exact=False)
    # Where channels depend on one another the mean over all samples is a poor Jacobian: there, that over the slab.
    slow = ((noise == 0) & (change > 1e-6)).nonzero()[:, 0]
    if len(slow):
        W[slow], _ = _solve(y[slow], W[slow], noise[slow], min(width, 10 * float(change.max())), _ROUNDS, exact=True)
    return W


def _solve(y: Tensor, W: Tensor, noise: Tensor, width: float, rounds: int, exact: bool) -> tuple[Tensor, Tensor]:
    """Newton steps on the estimating equations: W and each patch's last step."""
    k, m, n = y.shape
    parts = y.split(max(1024, _WORKING_SET // (k * m)), dim=2)
    eye = torch.eye(m, dtype=torch.float64)
    off = 1 - eye
    cross_talk, last = torch.full((k, m, m), width), torch.full((k,), torch.inf, dtype=torch.float64)
    square, size = _sizes(torch.linalg.pinv(W).float(), parts)
    moment = y.new_zeros(k, m, m)
    for part in () if exact else parts:
        moment += part @ part.mT
    for _ in range(rounds):
        inverse = torch.linalg.pinv(W)
        decoder = inverse.float()
        reach = (cross_talk * size[:, None, :]).amax(2)  # of all others in this one
        slab = torch.maximum(reach, _half_width(inverse, noise))[:, :, None]
        cross = y.new_zeros(k, m, m)
        H = torch.zeros(k, m, m, m, dtype=torch.float64)
        inside, looked = y.new_zeros(k, m), 0
        for part in parts:
            s = decoder @ part
            within = _marked(torch.le, s.abs(), slab)
            cross += (s * within) @ s.mT
            if exact:
                H += torch.stack([(s * within[:, r : r + 1]) @ s.mT for r in range(m)], 1)
            else:  # some samples of every part say it well enough for a Jacobian
                some = within[:, :, ::_THINNED]
                inside, looked = inside + some.sum(2), looked + some.shape[2]
        if not exact:
            second = inverse @ moment.double() @ inverse.mT
            H = second[:, None] * (inside.double() / looked).clamp_min(0.1)[:, :, None, None]
            square = second.diagonal(dim1=1, dim2=2).float() / n
        # For row r: without the r-th row and column. A ridge, as a silent or repeated channel makes it singular.
        H = H / n * off[:, :, None] * off[:, None, :] + torch.diag_embed(eye)
        H = H + 1e-9 * torch.diag_embed(H.diagonal(dim1=2, dim2=3) + 1e-9)
        step = torch.linalg.solve(H, (cross.double() / n * off)[..., None])[..., 0]
        step = step * (_LONGEST / step.abs().amax((1, 2), keepdim=True).clamp_min(_LONGEST))
        W = torch.linalg.pinv(inverse - step @ inverse)
        W = W / W.norm(dim=1, keepdim=True)
        change = step.abs().amax((1, 2))
        error = noise / (n * square.amin(1)).sqrt().clamp_min(1e-30)
        done = (change < 1e-7) | ((change < 1e-4) & (change > 0.7 * last)) | (change < _SETTLED * error)
        last, cross_talk = change, (_WIDTH * step.abs().float()).clamp(1e-7, width)
        if bool(done.all()):
            break
    return W, last


def _marked(compare: Callable[..., Tensor], x: Tensor, bound: Tensor) -> Tensor:
    """Where a comparison holds, as zeros and ones: written as numbers at once it takes a tenth of the time of booleans."""
    return compare(x, bound, out=torch.empty_like(x))


def _sizes(decoder: Tensor, parts: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Of every channel, the mean square, and the size where it is active: ``(k, m)`` each."""
    some = parts[: -(-_OUTLINE // parts[0].shape[2])]
    decoded = [decoder @ part for part in some]
    square, size = (torch.stack([f(s).sum(2) for s in decoded]).sum(0) for f in (torch.square, torch.abs))
    return square / sum(part.shape[2] for part in some), square / size.clamp_min(1e-30)


def _half_width(inverse: Tensor, noise: Tensor) -> Tensor:
    """Where a silent channel may lie by noise or rounding alone: ``(k, m)``."""
    return 4 * noise[:, None] * inverse.norm(dim=2).float()


def audit(
    y: Float[Tensor, "k m n"], columns: Float[Tensor, "k m m"], noise: Float[Tensor, " k"]
) -> Bool[Tensor, "k m"]:
    """Channels that are no channels: silent, negative more than once in ten active samples, repeated (cosine above 0.95), or
    never silent while another is active (the sum of two channels is such a one)."""
    m = columns.shape[2]
    inverse = torch.linalg.pinv(columns)
    s = inverse.float() @ y
    level = 1.5 * _half_width(inverse, noise)[:, :, None] + 1e-3 * s.square().mean(2, keepdim=True).sqrt()
    active, silent = _marked(torch.gt, s, level), _marked(torch.le, s.abs(), level)
    count = active.sum(2)
    negative = s.shape[2] - count - silent.sum(2)
    eye = torch.eye(m, dtype=columns.dtype)
    twins = ((columns.mT @ columns).abs() - eye).amax(1) > 0.95
    apart = silent @ active.mT / count.clamp_min(1)[:, None, :]
    bound = ((apart < _APART) & (count >= 50)[:, None, :] & (eye == 0)).any(2)
    return (count < 3) | (negative * 10 > count) | twins | bound


def _orthonormal_where_consistent(y: Tensor, columns: Tensor, noise: Tensor) -> Tensor:
    """The nearest orthonormal columns in the patches where noise alone explains the distance to them."""
    s = torch.linalg.pinv(columns).float() @ y[:, :, : 4 * _OUTLINE]
    energy = s.square().mean(2).double() - noise[:, None].double().square()
    error = noise[:, None, None].double() / (energy.clamp_min(1e-12)[:, None, :] * y.shape[2]).sqrt()
    off = columns.mT @ columns - torch.eye(columns.shape[2], dtype=columns.dtype)
    z = (off.square() / (error.square() + error.mT.square() + 1e-12)).mean((1, 2))
    u, _, vh = torch.linalg.svd(columns)
    return torch.where(((z < 2) & (noise > 0))[:, None, None], u @ vh, columns)
