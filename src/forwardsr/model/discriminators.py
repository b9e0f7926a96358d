r"""The discriminators D1, D2, D4, D5 as the paper writes them (§4), with their regularisers and inner maxima.

All are batched over patches j and channels r, and take images in patch form: ``Y`` of shape ``(n, k, d)`` with ``k = d_l``. The
default parameters ``W`` (the paper's :math:`W^D`), and thresholds are fields; trainable parameters are arguments.
:math:`s = W^\top Y`, of shape ``(n, k, m)``, stands for the hidden layer.

==============  ==============  =======  ==============================================================================
paper           here            default  reason
==============  ==============  =======  ==============================================================================
c (D1)          ``c``           1        0.001 makes (B.2) a sum of norms to the power 1001; 1 makes it a sum of squares
poly(k) in o_k  ``kappa``       1.25     squared, how much dying counts over overshooting (Remark 4.1). Noise counts so too:
                                         at 2 and 2048 samples a step it shifts b/alpha by -0.004
C_jj            ``within``      10       times Pr*[both active]^-1/2, where the paper has m^2 / (b poly(k)): with m finite some
                                         pairs fire a hundred times as often as others, and so weighted all are heard above
                                         their noise alike. 10: exponents of order one, where all pairs learn at once; larger
                                         ones make (C.13) a maximum, which learns one pair at a time
C_jj'           ``across``      10       the same: so weighted all pairs learn together, and the order of Remark 4.2
                                         (within a patch first) is not needed
poly(k), R5     ``steepness``   300      the barrier is 1 at |rho| = 1 - tau
tau, R5         ``tau``         0.02     at 0.9, where pairs of a standard target end, it must be nothing (Fact C.11): exp(-24).
                                         At 40 and 0.05 it pushes a pair at 0.89 back by 0.1
zeta            ``zeta``        0.05     of a channel's mean while active: D4 and D2 move only through slopes there
==============  ==============  =======  ==============================================================================
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from forwardsr.model.activations import Activation, SmoothAbs


def coordinates(y: Float[Tensor, "n k d"], w: Float[Tensor, "k d m"]) -> Float[Tensor, "n k m"]:
    """``s = W^T Y`` of every patch (stored patch first)."""
    return torch.bmm(y.transpose(0, 1), w).transpose(0, 1)


@dataclass(frozen=True, eq=False)
class D1:
    r"""Truncated moments, for the output layer (§4.1).

    .. math:: D^{(1)}_j(Y) = \sum_r 1[(W_j^\top Y_j)_r > \mathbb{b}] \langle Y_j, V_{j,r}\rangle, \qquad
        R_2(V) = \sum_r \|V_{j,r}\|^{1+c}

    Trainable: ``V`` ``(k, m, d)``. ``b`` is the bold threshold, ``b m^0.152`` in Algorithm 1.
    """

    w: Float[Tensor, "k d m"]
    b: float
    c: float = 1.0

    def __call__(self, y: Float[Tensor, "n k d"], v: Float[Tensor, "k m d"]) -> Float[Tensor, "n k"]:
        """The discriminator of every patch."""
        return (self.gate(y) * coordinates(y, v.mT)).sum(2)

    def gate(self, y: Float[Tensor, "n k d"]) -> Float[Tensor, "n k m"]:
        """``ReLU'(s - b)``: 1 where a channel is seen."""
        return (coordinates(y, self.w) > self.b).to(y.dtype)

    def moment(self, y: Float[Tensor, "n k d"]) -> Float[Tensor, "k m d"]:
        """``R_r = E[1[s_r > b] Y]``; ``E[D1] = <R, V>``, as D1 is linear in V."""
        return self.gate(y).permute(1, 2, 0) @ y.transpose(0, 1) / len(y)

    def penalty(self, v: Float[Tensor, "k m d"]) -> Float[Tensor, " k"]:
        """``R_2(V)`` of every patch."""
        return v.norm(dim=2).pow(1 + self.c).sum(1)

    def penalty_gradient(self, v: Float[Tensor, "k m d"]) -> Float[Tensor, "k m d"]:
        """The gradient of the penalty, 0 at V = 0."""
        size = v.norm(dim=2, keepdim=True)
        return (1 + self.c) * v * torch.where(size > 0, size, torch.ones_like(size)).pow(self.c - 1)

    def best(self, gap: Float[Tensor, "k m d"]) -> Float[Tensor, "k m d"]:
        """The maximiser of ``<gap, V> - R_2(V)``: along the gap, of length ``(|gap| / (1+c))^(1/c)`` (0 where that underflows)."""
        size = gap.norm(dim=2, keepdim=True).clamp_min(torch.finfo(gap.dtype).tiny)
        return gap / size * ((size.log() - math.log1p(self.c)) / self.c).exp()

    def log_best_value(self, gap: Float[Tensor, "k m d"]) -> Float[Tensor, " k"]:
        r"""(B.2) in logarithms, for any c: :math:`\log \sum_r \mathrm{const}_c \|gap_r\|^{1+1/c}`."""
        size = gap.norm(dim=2).clamp_min(torch.finfo(gap.dtype).tiny)
        constant = -math.log1p(self.c) / self.c + math.log(self.c / (1 + self.c))
        return torch.logsumexp((1 + 1 / self.c) * size.log() + constant, dim=1)


@dataclass(frozen=True, eq=False)
class D4:
    r"""Two statistics of one neuron, for the norm and bias of level 1 (§4.2).

    .. math:: D^{(4)}_{j,r}(Y) = \widetilde{\mathrm{ReLU}}(s_{j,r} - 2b)\, o_k(v_{j,r})
        + \widetilde{\mathrm{ReLU}}'(s_{j,r} - b)\, o_k(w_{j,r}), \qquad o_k(x) = \kappa x_+ - (-x)_+

    Trainable: ``vw`` ``(2, k, m)``, v and w. Their regulariser is ``|v|^2 + |w|^2``.
    """

    w: Float[Tensor, "k d m"]
    b: float
    zeta: float = 0.05
    kappa: float = 1.25

    @property
    def relu(self) -> Activation:
        """The smoothed ReLU."""
        return Activation("relu", self.zeta)

    def output(self, vw: Float[Tensor, "2 k m"]) -> Float[Tensor, "2 k m"]:
        """``o_k``, slope kappa above zero and 1 below."""
        return torch.where(vw > 0, self.kappa * vw, vw)

    def output_slope(self, vw: Float[Tensor, "2 k m"]) -> Float[Tensor, "2 k m"]:
        """The derivative of ``o_k``."""
        return torch.where(vw > 0, self.kappa * torch.ones_like(vw), torch.ones_like(vw))

    def features(self, s: Float[Tensor, "n k m"]) -> Float[Tensor, "2 n k m"]:
        """Both statistics of every sample, from its coordinates ``s``."""
        return torch.stack([self.relu(s - 2 * self.b), self.relu.derivative(s - self.b)])

    def slopes(self, s: Float[Tensor, "n k m"]) -> Float[Tensor, "2 n k m"]:
        """Their derivatives in ``s``."""
        return torch.stack([self.relu.derivative(s - 2 * self.b), self.relu.second(s - self.b)])

    def __call__(self, y: Float[Tensor, "n k d"], vw: Float[Tensor, "2 k m"]) -> Float[Tensor, "n k m"]:
        """The discriminator of every patch and channel."""
        return (self.features(coordinates(y, self.w)) * self.output(vw)[:, None]).sum(0)

    def best(self, gap: Float[Tensor, "2 k m"]) -> Float[Tensor, "2 k m"]:
        """The maximiser of ``gap o_k(v) - v^2``, for ``gap = E*[features] - E[features]``."""
        return torch.where(gap > 0, self.kappa * gap, gap) / 2

    def best_value(self, gap: Float[Tensor, "2 k m"]) -> Float[Tensor, "k m"]:
        """(C.2), with its constants: a quarter of the squared gaps, kappa^2 times as much where the generator has less."""
        return (torch.where(gap > 0, self.kappa * gap, gap).square() / 4).sum(0)


@dataclass(frozen=True, eq=False)
class D5:
    r"""Moments of two neurons, for the angles of level 1 (§4.2).

    .. math:: D^{(5)}(Y) = \sum_{(j,r) \ne (j',r')} C_{jj'}\, (u_{+} - u_{-})_{jj'rr'}\, h_{j,r} h_{j',r'}, \qquad
        h = \widetilde{\mathrm{ReLU}}(s - b)

    All pairs at once, q = k m neurons in the order of ``reshape``. Trainable: ``u`` ``(2, q, q)`` on the simplex of its
    off-diagonal entries; its regulariser is the negative entropy ``H(u) = sum u log u``.
    """

    w: Float[Tensor, "k d m"]
    b: float
    weights: Float[Tensor, "q q"]
    zeta: float = 0.05

    @property
    def relu(self) -> Activation:
        """The smoothed ReLU."""
        return Activation("relu", self.zeta)

    def features(self, s: Float[Tensor, "n k m"]) -> Float[Tensor, "n q"]:
        """h of every neuron."""
        return self.relu(s - self.b).reshape(len(s), -1)

    def slopes(self, s: Float[Tensor, "n k m"]) -> Float[Tensor, "n k m"]:
        """Their derivatives in ``s``."""
        return self.relu.derivative(s - self.b)

    def __call__(self, y: Float[Tensor, "n k d"], u: Float[Tensor, "2 q q"]) -> Float[Tensor, " n"]:
        """The discriminator of every sample."""
        h = self.features(coordinates(y, self.w))
        return ((h @ self.signed(u)) * h).sum(1)

    def signed(self, u: Float[Tensor, "2 q q"]) -> Float[Tensor, "q q"]:
        """``C o_d(u)``, the weight of every product of two neurons."""
        return self.weights * (u[0] - u[1])

    def moment(self, s: Float[Tensor, "n k m"]) -> Float[Tensor, "q q"]:
        """``E[h h^T]``: one Gram product."""
        h = self.features(s)
        return h.T @ h / len(h)

    def best_log(self, gap: Float[Tensor, "q q"]) -> Float[Tensor, "2 q q"]:
        """``log u`` at the maximum of ``<C o_d(u), gap> - H(u)`` over the simplex: a softmax. The diagonal is -inf."""
        return log_simplex(torch.stack([self.weights * gap, -self.weights * gap]))

    def best_value(self, gap: Float[Tensor, "q q"]) -> Float[Tensor, ""]:
        """(C.13): ``log sum exp(C gap) + exp(-C gap)`` over ordered pairs of distinct neurons."""
        return torch.logsumexp(_off_diagonal(torch.stack([self.weights * gap, -self.weights * gap])), dim=0)


def pair_weights(
    both: Float[Tensor, "q q"], m: int, within: float = 10.0, across: float = 10.0, least: float = 1e-3
) -> Float[Tensor, "q q"]:
    """``C_{jj'}``: ``within`` for two of the m channels of a patch, ``across`` for channels of two patches, 0 on the diagonal;
    each over the square root of ``both``, the probability that both are active (at least ``least``)."""
    patch = torch.arange(len(both), device=both.device) // m
    size = torch.where(patch[:, None] == patch, within, across)
    return (size / both.clamp_min(least).sqrt()).fill_diagonal_(0.0)


def log_simplex(logits: Float[Tensor, "2 q q"]) -> Float[Tensor, "2 q q"]:
    """Logarithms of the point of the simplex with these logits; -inf on the diagonals, where no pair is."""
    diagonal = torch.eye(logits.shape[1], dtype=torch.bool, device=logits.device)
    logits = logits.masked_fill(diagonal, -torch.inf)
    return logits - torch.logsumexp(logits.flatten(), dim=0)


def negative_entropy(log_u: Float[Tensor, "2 q q"]) -> Float[Tensor, ""]:
    """``H(u) = sum u log u``."""
    log_u = _off_diagonal(log_u)
    return (log_u.exp() * log_u).sum()


def _off_diagonal(pairs: Tensor) -> Tensor:
    return pairs[:, ~torch.eye(pairs.shape[1], dtype=torch.bool, device=pairs.device)].flatten()


def barrier(rho: Float[Tensor, "q q"], steepness: float = 300.0, tau: float = 0.02) -> Float[Tensor, ""]:
    r"""R^(5), (C.14), of the products rho of unit vectors, over ordered pairs of distinct neurons.

    .. math:: \sum_{i \ne j} e^{a(-(1-\tau) - \rho_{ij})} + e^{a(-(1-\tau) + \rho_{ij})}
    """
    near_one, near_minus_one = _walls(rho, steepness, tau)
    return (near_one + near_minus_one).sum()


def barrier_slope(rho: Float[Tensor, "q q"], steepness: float = 300.0, tau: float = 0.02) -> Float[Tensor, "q q"]:
    """The derivative of each (ordered) pair's term of the barrier in its own ``rho``."""
    near_one, near_minus_one = _walls(rho, steepness, tau)
    return steepness * (near_one - near_minus_one)


def barrier_curvature(rho: Float[Tensor, "q q"], steepness: float = 300.0, tau: float = 0.02) -> Float[Tensor, "q q"]:
    """The second derivative of each (ordered) pair's term of the barrier in its own ``rho``."""
    near_one, near_minus_one = _walls(rho, steepness, tau)
    return steepness**2 * (near_one + near_minus_one)


def _walls(rho: Tensor, steepness: float, tau: float) -> tuple[Tensor, Tensor]:
    """The two terms of every pair, 0 on the diagonal."""
    apart = 1.0 - torch.eye(len(rho), dtype=rho.dtype, device=rho.device)
    return apart * torch.exp(steepness * (rho - (1 - tau))), apart * torch.exp(steepness * (-rho - (1 - tau)))


@dataclass(frozen=True, eq=False)
class D2:
    r"""Super-resolution: is a level the right function of the level below it? (§4.3)

    .. math:: D^{(2)}_{j,r}(Y_1, Y_2) = \widetilde{\mathrm{abs}}\bigl(s_r - \mathrm{LeakyReLU}(\mathfrak{s}_r)\bigr), \quad
        \mathfrak{s} = \sum_{i < |P|} V_{j,i}\, \mathrm{LeakyReLU}(W_{P_j(i)}^\top Y_{2,P_j(i)}) - \beta_j

    Trainable: ``v`` ``(k, m, |P| m')``, the parents side by side, and ``beta`` ``(k, m)``. ``b`` is the tolerance of abs.
    """

    w: Float[Tensor, "k d m"]
    w_below: Float[Tensor, "k_below d m_below"]
    parents: Int64[Tensor, "k p"]
    b: float
    zeta: float = 0.05

    @property
    def leaky(self) -> Activation:
        """LeakyReLU, with slope zeta below zero."""
        return Activation("leaky", self.zeta)

    @property
    def abs(self) -> SmoothAbs:
        """The smoothed absolute value with tolerance b."""
        return SmoothAbs(self.b, self.zeta)

    def inputs(self, y_below: Float[Tensor, "n k_below d"]) -> Float[Tensor, "k n i"]:
        """``LeakyReLU(W^T Y_2)`` of every patch's parents, side by side, patch first; ``i = |P| m'``."""
        return beside(self.leaky(coordinates(y_below, self.w_below)), self.parents)

    def pre(
        self, inputs: Float[Tensor, "k n i"], v: Float[Tensor, "k m i"], beta: Float[Tensor, "k m"]
    ) -> Float[Tensor, "k n m"]:
        """The fraktur s."""
        return torch.baddbmm(-beta[:, None, :], inputs, v.mT)

    def __call__(
        self,
        y: Float[Tensor, "n k d"],
        y_below: Float[Tensor, "n k_below d"],
        v: Float[Tensor, "k m i"],
        beta: Float[Tensor, "k m"],
    ) -> Float[Tensor, "n k m"]:
        """The discriminator of every patch and channel."""
        s = coordinates(y, self.w).transpose(0, 1)
        return self.abs(s - self.leaky(self.pre(self.inputs(y_below), v, beta))).transpose(0, 1)


def beside(s: Float[Tensor, "n k_below m"], parents: Int64[Tensor, "k p"]) -> Float[Tensor, "k n i"]:
    """The parents' channels of every patch side by side: ``i = p m``."""
    k, p = parents.shape
    gathered = s.transpose(0, 1).index_select(0, parents.flatten())
    return gathered.reshape(k, p, len(s), -1).transpose(1, 2).reshape(k, len(s), -1)
