r"""Planted targets G*: networks that satisfy Setting 2.1 and Assumptions 2.2 and 2.3, or violate one by a chosen amount.

**Level 1.** ``[S_1j]_r = a (g - t)_+`` with ``g = <u_jr, z>``, ``|u_jr| = 1``: active with probability ``p = Q(t)``, Gaussian
tail, and of mean ``a (phi(t) - t p)``; ``a`` makes the mean p, as the paper's construction does (a mean of 1 while active).
With ``U_j`` the rows of patch j and ``A_j`` skew-symmetric and random,

.. math:: U_j = C^{1/2} [I \; 0] \exp(s A_j), \qquad V_{1,j} = \mathrm{diag}(a) U_j, \qquad b_{1,j} = a t,

so ``U_j U_j^T = C`` exactly (``C = I`` for independent channels within the patch), and the correlation across patches decays
with s: ``rho(u_jr, u_kr) ~ correlation = exp(-s^2)`` on average, more for some channels than for others. s grows until every
correlation lies in :data:`RHO`, the range in which pairs of ReLUs determine it (last condition of Assumption 2.3).

**Levels l > 1.** The ``|P| m_(l-1)`` inputs of a patch are dealt out to its m_l channels at random, so supports are disjoint
(§2.1). Where ``|P| = 1`` and ``m_l = m_(l-1)`` each channel has one parent, and is again ``a' (g - t')_+`` for the same g, so
``V = a'/a`` and ``b = a' (t' - t)`` are exact; probabilities must then fall with l: they do, within the band ``p``. Otherwise
``b`` and the scale of V are the sample quantile and mean over ``calibration`` samples n, of relative standard error
``sqrt((1-p)/(p n))`` for the probability and about ``sqrt(2/(p n))`` for the mean (2 % and 3 % at the defaults).
Sibling patches differ by their parents' permutation, their probabilities and their features.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from forwardsr.errors import UserError
from forwardsr.model.edge_colour import edge_colour_features, matching_parents
from forwardsr.model.patch_generator import PatchGenerator

RHO = (-0.5, 0.9)
"""Level-1 correlations across patches. At p = 0.08 a pair below -0.65 fires together less than 5e-4 as often as either does."""

LATENT_CAP = 256  # default m_0 at most: the exponentials of m_0 x m_0 matrices cost m_0^3 a patch

Violation = Literal[
    "none",
    "density",
    "positive-correlation",
    "anti-concentration",
    "non-degeneracy",
    "orthonormality",
    "identifiability",
]


@dataclass(frozen=True)
class PlantConfig:
    """What target to draw. The defaults give the standard target."""

    patches: tuple[int, ...] = (4, 16, 64)
    """d_l, patches per level, coarse first: 1 to 4 levels (squares, each four times the last, fold into images)."""
    channels: tuple[int, ...] = (24,)
    """m_l, channels per level; one number stands for all levels."""
    d: int = 108
    """Numbers per patch; 108 = 6 x 6 x 3."""
    p: tuple[float, float] = (0.05, 0.1)
    """The band of activation probabilities Pr[S > 0]; means equal them. (m = 64 needs below 0.06: epsilon_2 = m^-2.01.)"""
    parents: int = 1
    """|P|, parents per patch; the nearest patches of the level below, or random ones (``graph``)."""
    graph: Literal["nearest", "random"] = "nearest"
    """Which patches of the level below a patch is wired to."""
    latent: int | None = None
    """m_0, at least m_1. Default: d_1 m_1, at most 256."""
    correlation: float = 0.5
    """Mean correlation of a channel with itself across patches at level 1, in (0, 1)."""
    within: float = 0.0
    """Size of the random correlations within a patch at level 1, in [0, 1); 0: independent channels."""
    mixing: float = 0.0
    """Size of the random entries of V outside the disjoint supports, relative to those inside; 0: disjoint supports."""
    features: Literal["random", "photographs"] = "random"
    """The columns of W: random orthonormal, or edge-colour features of photographs (d = 3 side^2, side even)."""
    shared: bool = False
    """One W per level for all patches, as in a deconvolutional network."""
    violate: Violation = "none"
    """One assumption to violate."""
    amount: float = 0.0
    """By how much. density: Pr[S > 0]; positive-correlation: of the latents of channel pairs (0, 1), (2, 3), ... at level 1;
    anti-concentration: size of a faint second parent at the last level (small is worse); non-degeneracy: factor on the mean of
    channel 0 in every patch (small is worse); orthonormality: cosine between columns (0, 1), (2, 3), ... of W; identifiability:
    minus the correlation of one pair across patches."""
    calibration: int = 2**15
    """Samples by which biases are set where no formula gives them."""
    seed: int = 0
    """Everything random depends on it alone."""

    def __post_init__(self) -> None:
        levels = len(self.patches)
        if not 1 <= levels <= 4 or min(self.patches) < 1:
            raise UserError("--patches: give 1 to 4 positive numbers, patches per level")
        if len(self.channels) not in (1, levels) or min(self.channels) < 1:
            raise UserError("--channels: give one positive number, or one per level")
        low, high = self.p
        checks = (
            (max(self.channels) <= self.d, f"--d {self.d}: patches are narrower than channels; raise --d"),
            (0 < low <= high < 0.5, "--p: give a band 0 < low <= high < 0.5"),
            (self.parents >= 1, "--parents: must be positive"),
            (
                levels == 1 or self.parents <= min(self.patches[:-1], default=0),
                f"--parents {self.parents}: more than the patches of a level below; lower it",
            ),
            (self.latent is None or self.latent >= self.m[0], f"--latent: must be at least m_1 = {self.m[0]}"),
            (0 < self.correlation < 1, "--correlation: must be in (0, 1)"),
            (0 <= self.within < 1, "--within: must be in [0, 1)"),
            (self.mixing >= 0, "--mixing: must not be negative"),
            (self.calibration >= 1000, "--calibration: needs at least 1000 samples"),
            (self.features == "random" or _side(self.d) is not None, f"--d {self.d}: photographs need d = 3 side^2"),
            (self.features == "random" or max(self.channels) < self.d, "--channels: photographs need fewer than d"),
            (self.violate == "none" or self.amount > 0, "--amount: give the size of the violation, above 0"),
            (self.violate in ("none", "non-degeneracy") or self.amount < 1, "--amount: must be below 1"),
            (self.violate != "density" or self.amount < 0.5, "--amount: a density must be below 0.5"),
            (self.violate != "anti-concentration" or levels > 1, "--violate anti-concentration: needs two levels"),
        )
        for holds, message in checks:
            if not holds:
                raise UserError(message)

    @property
    def m(self) -> tuple[int, ...]:
        """m_l of every level."""
        return self.channels if len(self.channels) == len(self.patches) else self.channels * len(self.patches)


def plant(config: PlantConfig | None = None) -> PatchGenerator:
    """Draw a target network, float32 on the CPU, with plain ReLU.

    Raises ``UserError`` where the configuration cannot be met: too few inputs for the channels, a latent too short to keep
    correlations in :data:`RHO`, probabilities that no bias gives.
    """
    config = config or PlantConfig()
    generator = torch.Generator().manual_seed(config.seed)
    W = _features(config, generator)
    p = _first_probabilities(config, generator)
    a, t = rectified_gaussian(p)
    V, b = [a[..., None] * _latent_law(config, generator)], [a * t]
    parents: list[Tensor | None] = [None]
    label = torch.arange(config.m[0]).expand(config.patches[0], -1)
    exact, last = config.parents == 1 and config.mixing == 0, len(config.patches) - 1
    for l in range(1, last + 1):
        faint = config.violate == "anti-concentration" and l == last
        exact = exact and config.m[l] == config.m[l - 1] and not faint
        graph = _graph(config, l, generator)
        owner, label = _deal(config, l, graph, label, W, generator)
        inherited = torch.zeros(config.patches[l], config.m[l], dtype=torch.float64)
        inherited.scatter_reduce_(1, owner.flatten(1), p[graph].flatten(1), "amax")
        inherited *= 1 if exact else 0.9  # a sampled bias must stay above 0 in spite of its error
        target = inherited * (_band(config)[0] / inherited).clamp(max=1) ** (
            _uniform(inherited, generator) / (last + 1 - l)
        )
        if exact:
            source = owner[:, 0].argsort(1)
            a_below, t_below = (x[graph[:, 0]].gather(1, source) for x in (a, t))
            a, t = rectified_gaussian(target)
            v = torch.zeros(*graph.shape, config.m[l], config.m[l - 1], dtype=torch.float64)
            v[:, 0].scatter_(2, source[..., None], (a / a_below)[..., None])
            bias, p = a * (t - t_below), target
        else:
            below = PatchGenerator(W[:l], V, b, parents)
            v = _weights(config, owner, faint, generator)
            p, v, bias = _calibrate(config, below, graph, v, None if faint else target, generator)
        V, b, parents = [*V, v], [*b, bias], [*parents, graph]
    if config.violate == "non-degeneracy":
        _shrink_channel(V, b, config.amount)
    return PatchGenerator(W, V, b, parents).map(dtype=torch.float32)


def rectified_gaussian(p: Float[Tensor, "*shape"]) -> tuple[Float[Tensor, "*shape"], Float[Tensor, "*shape"]]:
    """``(a, t)`` such that ``a (g - t)_+``, g standard Gaussian, is active with probability p and has mean p; float64."""
    t = -torch.special.ndtri(p.double())
    density = torch.exp(-(t**2) / 2) / math.sqrt(2 * math.pi)
    return p / (density - t * p), t


def nearest_parents(d_parent: int, d_child: int, count: int) -> Int64[Tensor, "d_child count"]:
    """The ``count`` patches of the level below nearest to each patch's centre, nearest first.

    Patches lie on a square grid where both numbers are squares (so the first is the quad-tree's parent), else on a line.
    """

    def centres(n: int) -> Tensor:
        side = math.isqrt(n)
        if square:
            at = (torch.arange(side, dtype=torch.float64) + 0.5) / side
            return torch.cartesian_prod(at, at)
        return ((torch.arange(n, dtype=torch.float64) + 0.5) / n)[:, None]

    square = all(math.isqrt(n) ** 2 == n for n in (d_parent, d_child))
    distance = torch.cdist(centres(d_child), centres(d_parent)).round(decimals=9)
    return distance.argsort(dim=1, stable=True)[:, :count].contiguous()


def _side(d: int) -> int | None:
    """The side of an RGB patch of d numbers, or None."""
    side = math.isqrt(d // 3)
    return side if 3 * side * side == d and side % 2 == 0 else None


def _uniform(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.rand(like.shape, generator=generator, dtype=torch.float64)


def _band(config: PlantConfig) -> tuple[float, float]:
    """The band of probabilities, as the violation changes it."""
    if config.violate == "density":
        return 0.8 * config.amount, config.amount
    if config.violate == "anti-concentration":  # the last level adds up two parents' probabilities
        return config.p[0], 1.1 * config.p[0]
    return config.p


def _features(config: PlantConfig, generator: torch.Generator) -> list[Tensor]:
    """W of every level, ``(d_l, d, m_l)``, float64."""
    W = []
    for l, (d_l, m_l) in enumerate(zip(config.patches, config.m, strict=True)):
        count = 1 if config.shared else d_l
        if config.features == "random":
            w = torch.linalg.qr(torch.randn(count, config.d, m_l, generator=generator, dtype=torch.float64))[0]
        else:
            basis = edge_colour_features(m_l, _side(config.d) or 0, 2 ** (len(config.patches) - 1 - l), generator)
            order = torch.rand(count, m_l, generator=generator).argsort(1)
            w = basis.T[order].transpose(1, 2).contiguous()
        if config.violate == "orthonormality":
            even, odd = w[..., 0 : m_l - 1 : 2], w[..., 1::2]
            w[..., 1::2] = config.amount * even + math.sqrt(1 - config.amount**2) * odd
        W.append(w.expand(d_l, -1, -1))
    return W


def _first_probabilities(config: PlantConfig, generator: torch.Generator) -> Float[Tensor, "d1 m1"]:
    """Log-uniform in the upper part of the band, so that L - 1 further levels can fall within it."""
    low, high = _band(config)
    fall = _uniform(torch.empty(config.patches[0], config.m[0]), generator) / len(config.patches)
    p: Tensor = high * (low / high) ** fall
    return p


def _within(config: PlantConfig, generator: torch.Generator) -> Float[Tensor, "m m"]:
    """C, the correlation of the latents within a patch of level 1."""
    m = config.m[0]
    loadings = torch.randn(m, 4, generator=generator, dtype=torch.float64)
    loadings = loadings / loadings.norm(dim=1, keepdim=True)
    C = config.within * loadings @ loadings.T
    C.fill_diagonal_(1)
    if config.violate == "positive-correlation":
        even = torch.arange(0, m - 1, 2)
        C[even, even + 1] = C[even + 1, even] = config.amount
    return C


def _latent_law(config: PlantConfig, generator: torch.Generator) -> Float[Tensor, "d1 m1 m0"]:
    """Unit rows u_jr with the correlations of the module's docstring."""
    d_1, m = config.patches[0], config.m[0]
    m_0 = config.latent or max(m, min(d_1 * m, LATENT_CAP))
    root, failed = torch.linalg.cholesky_ex(_within(config, generator))
    if int(failed):
        raise UserError(
            f"--within {config.within}: with pairs at --amount {config.amount} no Gaussians have such correlations; lower one"
        )
    patch = torch.arange(d_1).repeat_interleave(m)
    across = patch[:, None] != patch
    unevenness = torch.exp(0.3 * torch.randn(m_0, generator=generator, dtype=torch.float64))
    spread = math.sqrt(-math.log(config.correlation))
    for _ in range(60):
        B = torch.randn(d_1, m_0, m_0, generator=generator, dtype=torch.float64) / math.sqrt(2 * m_0)
        A = unevenness[:, None] * (B - B.mT) * unevenness
        U = root @ torch.linalg.matrix_exp(spread * A)[:, :m]
        rho: Tensor = (U.flatten(0, 1) @ U.flatten(0, 1).T)[across]
        if d_1 == 1 or (rho.min() >= RHO[0] and rho.max() <= RHO[1]):
            break
        spread *= 1.05
    else:
        raise UserError(
            f"--latent {m_0}: too short to keep level-1 correlations in {RHO}; raise --latent or lower --within"
        )
    return _oppose(U, config.amount) if config.violate == "identifiability" else U


def _oppose(U: Tensor, amount: float) -> Tensor:
    """Turn patch 1 in the plane of u_00 and u_10 until their correlation is ``-amount``; within patches nothing changes."""
    if len(U) < 2:
        raise UserError("--violate identifiability: needs two patches at level 1; raise --patches")
    u, v = U[0, 0], U[1, 0]
    w = torch.nn.functional.normalize(u - (u @ v) * v, dim=0)
    wanted = -amount * u + math.sqrt(1 - amount**2) * torch.nn.functional.normalize(v - (u @ v) * u, dim=0)
    c, s = wanted @ v, wanted @ w
    x, y = U[1] @ v, U[1] @ w
    turned = U[1] + torch.outer((c - 1) * x - s * y, v) + torch.outer(s * x + (c - 1) * y, w)
    return torch.stack([U[0], turned, *U[2:]])


def _graph(config: PlantConfig, l: int, generator: torch.Generator) -> Int64[Tensor, "d_l P"]:
    """The parents of every patch of level index l (0-based)."""
    if config.graph == "nearest":
        return nearest_parents(config.patches[l - 1], config.patches[l], config.parents)
    order = torch.rand(config.patches[l], config.patches[l - 1], generator=generator).argsort(1)
    return order[:, : config.parents].contiguous()


def _deal(
    config: PlantConfig, l: int, graph: Tensor, label: Tensor, W: Sequence[Tensor], generator: torch.Generator
) -> tuple[Int64[Tensor, "d_l P m_below"], Int64[Tensor, "d_l m_l"]]:
    """Which channel owns each input of each patch, and the label of each channel.

    Inputs are dealt in turn from shuffled decks, one deck a parent. Several parents share labels, which follow the channels of
    level 1 up: inputs of one label go to one channel, for they are correlated across patches and would correlate two channels.
    Photographs' features on a quad-tree are dealt so that a child continues what its parent shows.
    """
    d_l, m_l, m_below, count = config.patches[l], config.m[l], config.m[l - 1], graph.shape[1]
    if count * m_below < m_l:
        raise UserError(f"--channels {m_l} at level {l + 1}: only {count * m_below} inputs; raise --parents")
    square = math.isqrt(d_l) ** 2 == d_l == 4 * config.patches[l - 1]
    if config.features == "photographs" and square and count == 1 and m_below == m_l and config.graph == "nearest":
        side, at = math.isqrt(d_l), torch.arange(d_l)
        quadrant = 2 * (at // side % 2) + at % side % 2
        source = matching_parents(W[l - 1][graph[:, 0]], W[l], quadrant, _side(config.d) or 0)
        return source.argsort(1)[:, None], torch.arange(m_l).expand(d_l, -1)
    if count > 1 and m_below >= m_l:
        group = torch.randperm(m_below, generator=generator) % m_l
        place = torch.rand(d_l, m_l, generator=generator).argsort(1)
        return place.gather(1, group[label[graph]].flatten(1)).view(d_l, count, m_below), place.argsort(1)
    deck = torch.rand(d_l, count, m_below, generator=generator).argsort(2)
    return (deck + m_below * torch.arange(count)[:, None]) % m_l, torch.arange(m_l).expand(d_l, -1)


def _weights(
    config: PlantConfig, owner: Tensor, faint: bool, generator: torch.Generator
) -> Float[Tensor, "d_l P m_l m_below"]:
    """V before scaling: 0.5 to 1.5 on the supports, Gaussian of size ``mixing`` off them."""
    d_l, count, m_below = owner.shape
    m_l = int(owner.max()) + 1
    own = torch.nn.functional.one_hot(owner.flatten(1), m_l).double()  # (d_l, inputs, m_l)
    if faint:
        if owner[0].numel() < 2 * m_l:
            raise UserError("--violate anti-concentration: needs two inputs per channel; give --parents 2")
        rank = own.cumsum(1) * own
        v = (rank == 1).double() + config.amount * (rank == 2).double()
    else:
        v = own * (0.5 + _uniform(own, generator))
        v = v + config.mixing * (1 - own) * torch.randn(own.shape, generator=generator, dtype=torch.float64)
    return v.view(d_l, count, m_below, m_l).transpose(2, 3)


def _calibrate(
    config: PlantConfig,
    below: PatchGenerator,
    graph: Tensor,
    v: Tensor,
    target: Tensor | None,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor, Tensor]:
    """``(p, V, b)`` with V scaled and b set so that probability and mean are ``target``, on samples; b = 0 where it is None."""
    n = config.calibration
    below = below.map(dtype=torch.float32)
    S = below.hidden(below.latents(n, generator))[-1].transpose(0, 1)
    p, bias, mean = [], [], []
    for j in range(len(graph)):  # one patch at a time: the samples of all would not fit
        u = (v[j].float() @ S[graph[j]].mT).sum(0)
        if target is None:
            b_j = torch.zeros(len(u))
        else:
            count = (target[j] * n).round().long().clamp(min=1)[:, None]
            above = int(count.max()) + 1
            top = torch.from_numpy(np.partition(u.numpy(), n - above)[:, n - above :]).sort(descending=True).values
            b_j = (top.gather(1, count) + top.gather(1, count - 1))[:, 0] / 2
            if bool((b_j <= 0).any()):
                raise UserError(
                    "--p: a channel's inputs are not active often enough for it; lower the band, or --mixing"
                )
        active = (u - b_j[:, None]).relu()
        p.append((active > 0).double().mean(1))
        mean.append(active.double().mean(1))
        bias.append(b_j.double())
    probability = torch.stack(p)
    scale = (probability if target is None else target) / torch.stack(mean)
    return probability, v * scale[:, None, :, None], torch.stack(bias) * scale


def _shrink_channel(V: list[Tensor], b: list[Tensor], factor: float) -> None:
    """Scale channel 0 of every patch by ``factor``; the levels above see what they saw before."""
    for l in range(len(V)):
        V[l][..., 0, :] *= factor
        b[l][:, 0] *= factor
        if l + 1 < len(V):
            V[l + 1][..., 0] /= factor
