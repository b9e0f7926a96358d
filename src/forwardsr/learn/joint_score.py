r"""The joint likelihood's score of thresholded Gaussians, all neurons of a sample together, and its Fisher information.

In units in which neuron i is :math:`(g_i - t_i)_+`, :math:`g \sim N(\mu, \Sigma)` with :math:`\mu = 0`, :math:`\Sigma = R`, and in
coordinates z in which R = I, the likelihood's score is

.. math:: \tfrac12 (E[z z^\top \mid x] - I), \qquad E[z \mid x].

**Posterior.** The active of g are known, the silent ones below t. Where all are silent, expectation propagation (Minka 2001) gives
:math:`N(m_0, C_0)` once and for all. A sample with active set A has that Gaussian conditioned on :math:`g_A`, and every silent
neuron's marginal is then corrected once to the moments of what is below its threshold. All of it lies in coefficients,

.. math:: m = m_0 + C_0 c, \qquad C = C_0 - C_0 G C_0, \qquad c_A = K^{-1} (g_A - m_{0A} - (C_0 r)_A), \quad c_{-A} = r,

.. math:: G = E_A K^{-1} E_A^\top + (I - E_A B) \,\mathrm{diag}(e)\, (I - E_A B)^\top, \qquad K = C_{0AA}, \; B = K^{-1} C_{0A},

with r and e the corrections of means and variances, so that a sample costs the inverse of a matrix as large as its few active
neurons and products with C_0 which many samples share. The scores' mean needs the sums of :math:`c`, :math:`c c^\top` and G alone.
The approximate score differs from the true one by 0.6 % of its variance, but not by zero on average (:mod:`.joint_law`).

**Information.** J is the covariance of the approximate scores over samples drawn from the law. It is never formed: every product with
a vector is two of the samples' posterior means with p x p matrices. (The observed information of a Gaussian posterior, after Louis
1982, :math:`X \mapsto \frac12 E[D X M + M X D - D X D]` with D = I - Cov(z | x) and M = E[z | x] E[z | x]^T, needs fewer
samples, but the posterior's skewness matters: its slope is 10 to 25 % too large.)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from scipy.sparse import csr_array
from torch import Tensor

from forwardsr.learn.latent_law import hazard

_PART = 2**13
_CHUNK = 512  # samples with as many active neurons that are worked on at once: they stay in the second-level cache
_REACH = -4.0  # a silent neuron's threshold in the deviations of its marginal, below which float32 loses Phi
_JITTER = 1e-6


@dataclass(frozen=True)
class Law:
    """A law N(0, R) with thresholds t, and the posterior where all neurons are silent; float64 and, for the passes, float32."""

    R: Float[Tensor, "p p"]
    t: Float[Tensor, " p"]
    root: Float[Tensor, "p p"]  # R = root root^T, g = root z
    whiten: Float[Tensor, "p p"]  # its inverse
    precision: Float[Tensor, " p"]  # of the factors that stand for silence
    shift: Float[Tensor, " p"]
    m0: Float[Tensor, " p"]
    C0: Float[Tensor, "p p"]

    @property
    def p(self) -> int:
        """How many neurons."""
        return len(self.t)

    def single(self) -> Law:
        """The same in float32."""
        return Law(*(getattr(self, name).float() for name in self.__dataclass_fields__))


def law_of(rows: Float[Tensor, "p r"], t: Float[Tensor, " p"]) -> Law:
    """The law with correlations ``rows rows^T``, which must be regular; its silent posterior by expectation propagation."""
    R, t = rows.double() @ rows.double().T, t.double()
    values, axes = torch.linalg.eigh(R)
    precision, shift = torch.full_like(t, 0.2), torch.full_like(t, -0.2)
    for _ in range(200):
        C = R - R @ torch.linalg.solve(R + torch.diag(1 / precision), R)
        m, variance = C @ shift, C.diagonal()
        cavity = 1 / (1 / variance - precision).clamp_min(1e-3)
        centre, sd = cavity * (m / variance - shift), cavity.sqrt()
        u = (t - centre) / sd
        h = hazard(u)
        tilted = cavity * (1 - h * (h + u)).clamp_min(1e-4)
        precision = (precision + (1 / tilted - 1 / cavity).clamp_min(1e-4)) / 2
        shift = (shift + (centre - sd * h) / tilted - centre / cavity) / 2
    return Law(R, t, axes * values.sqrt(), (axes / values.sqrt()).T, precision, shift, m, C)


@dataclass(frozen=True)
class Posterior:
    """Of ``k`` samples with ``a`` active neurons each: the coefficients of the module's head."""

    at: Int64[Tensor, "k a"]
    c: Float[Tensor, "k p"]
    e: Float[Tensor, "k p"]
    inverse: Float[Tensor, "k a a"]  # of K
    B: Float[Tensor, "k a p"]


def _inverses(W: Float[Tensor, "a a k"]) -> Float[Tensor, "a a k"]:
    """Of k positive definite matrices, in place: Gauss and Jordan's sweeps, samples last."""
    for q in range(len(W)):
        pivot = W[q, q].reciprocal()
        row, column = W[q] * pivot, W[:, q].clone()
        W.addcmul_(column[:, None], row[None], value=-1)
        W[q] = row
        W[:, q] = column * -pivot
        W[q, q] = pivot
    return W


def _posterior(law: Law, g: Float[Tensor, "k p"], active: Bool[Tensor, "k p"], at: Int64[Tensor, "k a"]) -> Posterior:
    (k, a), p = at.shape, law.p
    of = law.C0.index_select(0, at.flatten()).view(k, a, p)
    flat = (at[:, :, None] * p + at[:, None, :]).permute(1, 2, 0)
    W = _inverses(law.C0.take(flat) + _JITTER * torch.eye(a, dtype=g.dtype)[:, :, None])
    gap = g.gather(1, at).sub_(law.m0[at])
    pull = (W * gap.T[None]).sum(1).T
    inverse = W.permute(2, 0, 1).contiguous()
    B = torch.bmm(inverse, of)
    mean = torch.addmm(law.m0, torch.zeros_like(g).scatter_(1, at, pull), law.C0)
    variance = (law.C0.diagonal() - of.mul_(B).sum(1)).clamp_min_(1e-3)
    # The silent one's cavity is its marginal without its factor; its moments below t are what the marginal is moved to.
    share = (1 - variance * law.precision).reciprocal_()
    cavity = variance * share
    centre = (mean - variance * law.shift).mul_(share)
    sd = cavity.sqrt()
    u = (law.t - centre).div_(sd).clamp_min_(_REACH)
    h = (u * u).mul_(-0.5).exp_().mul_((2 / torch.pi) ** 0.5).div_((u * 0.5**0.5).erf_().add_(1))
    per = variance.reciprocal().masked_fill_(active, 0.0)
    r = centre.addcmul_(sd, h, value=-1).sub_(mean).mul_(per)
    tilted = u.add_(h).mul_(h).neg_().add_(1).mul_(cavity)
    e = (variance - tilted).mul_(per).mul_(per)
    back = gap.sub_((r @ law.C0).gather(1, at))
    return Posterior(at, r.scatter_(1, at, (W * back.T[None]).sum(1).T), e, inverse, B)


def _posteriors(law: Law, g: Float[Tensor, "n p"]) -> Iterator[Posterior]:
    """Of all samples, those with as many active neurons together. ``g``: anything at or below ``t`` where a neuron is silent."""
    active = g > law.t
    counts, order = active.sum(1).sort()
    g, active = g[order], active[order]
    hits, seen, start = active.nonzero()[:, 1], 0, 0
    for a, end in enumerate(counts.bincount().cumsum(0).tolist()):
        for first in range(start, end, _CHUNK):
            part = slice(first, min(first + _CHUNK, end))
            size = (part.stop - first) * a
            yield _posterior(law, g[part], active[part], hits[seen : seen + size].view(part.stop - first, a))
            seen += size
        start = end


@dataclass
class Sums:
    """Over ``n`` samples: of ``c``, of ``c c^T`` and of G. Those of two sets of samples may be added."""

    n: int
    c: Float[Tensor, " p"]
    square: Float[Tensor, "p p"]
    G: Float[Tensor, "p p"]

    def __add__(self, other: Sums) -> Sums:
        return Sums(self.n + other.n, self.c + other.c, self.square + other.square, self.G + other.G)


def score_sums(law: Law, g: Float[Tensor, "n p"]) -> Sums:
    """The sums of samples ``g``, float32 (``law`` too), anything at or below ``t`` where a neuron is silent. Sums are float64."""
    p = law.p
    c, variance = g.new_zeros(p), g.new_zeros(p)
    square, G, cross = (g.new_zeros(p, p) for _ in range(3))
    for one in _posteriors(law, g):
        c += one.c.sum(0)
        square.addmm_(one.c.T, one.c)
        variance += one.e.sum(0)
        moved = one.B * one.e[:, None, :]
        cross.index_add_(0, one.at.flatten(), moved.view(-1, p))
        flat = (one.at[:, :, None] * p + one.at[:, None, :]).flatten()
        G.view(-1).index_add_(0, flat, torch.baddbmm(one.inverse, moved, one.B.mT).view(-1))
    total = G.double() - cross.double() - cross.double().T + torch.diag(variance.double())
    return Sums(len(g), c.double(), square.double(), total)


def mean_score(law: Law, sums: Sums) -> Float[Tensor, " q"]:
    """The mean score of :math:`\\Sigma` (upper triangle, row by row) and :math:`\\mu` in whitened coordinates, ``p (p + 3) / 2``."""
    p = law.p
    F, m0 = law.whiten @ law.C0, law.whiten @ law.m0
    moved = F @ sums.c / sums.n
    second = F @ ((sums.square - sums.G) / sums.n) @ F.T + law.whiten @ law.C0 @ law.whiten.T
    second += torch.outer(m0, m0) + torch.outer(m0, moved) + torch.outer(moved, m0) - torch.eye(p, dtype=F.dtype)
    i, j = torch.triu_indices(p, p)
    return torch.cat([second[i, j] * torch.where(i == j, 0.5, 1.0), m0 + moved])


def coordinates(law: Law, sigma: Float[Tensor, "p p"], mu: Float[Tensor, " p"]) -> Float[Tensor, " q"]:
    """Where the law N(mu, sigma) lies, seen from ``law``, in the coordinates of :func:`mean_score`."""
    i, j = torch.triu_indices(law.p, law.p)
    return torch.cat([(law.whiten @ (sigma - law.R) @ law.whiten.T)[i, j], law.whiten @ mu])


class Information:
    r"""The covariance of the scores of samples, as a linear map: one product costs two of a matrix ``(n, p)`` with p x p ones.

    A score is :math:`\tfrac12 (m m^\top - F G F^\top)` and m, but for constants, in whitened coordinates. Of G the entries
    between active neurons and the diagonal are kept; the others are 0.2 % of the score's variance.
    """

    def __init__(self, law: Law, g: Float[Tensor, "n p"]) -> None:
        p, one = law.p, law.single()
        self.F, m0 = (law.whiten @ law.C0).float(), (law.whiten @ law.m0).float()
        m, e, values, columns, lengths = [], [], [], [], []
        for post in _posteriors(one, g.float()):
            m.append(torch.addmm(m0, post.c, self.F.T))
            e.append(post.e)
            a = post.at.shape[1]
            j, k = torch.triu_indices(a, a)
            G = torch.baddbmm(post.inverse, post.B * post.e[:, None, :], post.B.mT)
            values.append((G[:, j, k] * torch.where(j == k, 1.0, 2.0)).flatten())
            columns.append((post.at[:, j] * p + post.at[:, k]).flatten().int())
            lengths.append(torch.full((len(m[-1]),), len(j)))
        self.m, self.e = torch.cat(m), torch.cat(e)
        ends = torch.cat([torch.zeros(1, dtype=torch.long), torch.cat(lengths).cumsum(0)]).int()
        known = (torch.cat(values).numpy(), torch.cat(columns).numpy(), ends.numpy())
        self.G = csr_array(known, shape=(len(self.m), p * p))
        self.upper = torch.triu_indices(p, p)

    def curvature(self) -> Float[Tensor, "p p"]:
        """About what the map's diagonal is, by rows and columns of Sigma."""
        size = self.m.square().mean(0).double()
        return torch.outer(size, size)

    def __matmul__(self, x: Float[Tensor, " q"]) -> Float[Tensor, " q"]:
        """Of coordinates as :func:`coordinates` orders them; float64."""
        (i, j), p, n = self.upper, len(self.F), len(self.m)
        X = torch.zeros(p, p)
        X[i, j] = X[j, i] = x[: len(i)].float()
        dual = self.F.T @ X @ self.F
        y = torch.from_numpy(self.G @ dual.flatten().numpy()).add_(self.e @ dual.diagonal()).neg_()
        half, shift = X / 2, x[len(i) :].float()
        for part, m in zip(y.split(_PART), self.m.split(_PART)):
            part.div_(2).add_(torch.linalg.vecdot(torch.addmm(shift, m, half), m))
        y -= y.mean()
        total, mean = torch.zeros(p, p), y @ self.m
        for part, m in zip(y.split(_PART), self.m.split(_PART)):
            total.addmm_(m.T, m * part[:, None])
        G = torch.from_numpy(self.G.T @ y.numpy()).view(p, p)
        G = (G + G.T) / 2 + torch.diag(y @ self.e)
        total -= self.F @ G @ self.F.T
        return torch.cat([total[i, j] * torch.where(i == j, 0.5, 1.0), mean]).double() / n
