r"""Algorithm 2, GAN_FirstHidden: learn V_1 and b_1 against D4, then D5 (§4.2, Lemmas C.6 and C.10).

With :math:`[V_{1,j}]_r = \alpha_{j,r} \hat v_{j,r}`, :math:`|\hat v| = 1`, first the norms and biases, every neuron by itself,

.. math:: \min_{\alpha, b} \max_{v, w} \; E[D^{(4)}_{j,r}(X_1^*)] - E[D^{(4)}_{j,r}(X_1)] - |v|^2 - |w|^2,

then all the directions together,

.. math:: \min_{\hat v} \max_u \; E[D^{(5)}(X_1^*)] - E[D^{(5)}(X_1)] + R^{(5)}(\hat v) - H(u), \qquad u \in \text{simplex}.

D4 descends in :math:`(\alpha, b/\alpha)`: the two statistics nearly separate there (in :math:`(\alpha, b)` the problem is a hundred
times worse conditioned), and the objective and its minima are the same. On the simplex, ascent is entropic mirror ascent,
:math:`\log u \leftarrow \log u + \eta (\pm C\,\mathrm{gap} - \log u)`, normalised: the gradient in the geometry of H (footnote 16
normalises too).

======================  =======  =================================================================================
paper                   default  reason
======================  =======  =================================================================================
Pr[S > 0] at the start  0.2      footnote 6: above the target's, so that every neuron starts alive and shrinks
mean while active       1        the unit of the data (``learn/minmax_sgda`` rescales to it)
m_0'                    2 d_1 m_1  §2.2; more rows than neurons, so that they can start orthogonal
gamma (App. C.1)        0        the orthogonal start of Algorithm 2 (see slip 7 of the paper: C.1 mixes in e_1)
======================  =======  =================================================================================
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from forwardsr.data.source import Source
from forwardsr.learn.sgda import Player, SGDASettings, Trace, sgda
from forwardsr.model.discriminators import (
    D4,
    D5,
    barrier,
    barrier_curvature,
    barrier_slope,
    coordinates,
    log_simplex,
    negative_entropy,
    pair_weights,
)
from forwardsr.model.patch_generator import PatchGenerator


@dataclass(frozen=True)
class FirstHiddenSettings:
    """The numbers of D4 and D5; ``model/discriminators`` gives each one's reason."""

    zeta: float = 0.05
    kappa: float = 1.25
    within: float = 10.0
    across: float = 10.0
    steepness: float = 300.0
    tau: float = 0.02
    probe: int = 16384
    """Samples from which the weights of D5's pairs are read."""


def start_first_hidden(
    k: int, m: int, latent: int | None = None, active: float = 0.2, gamma: float = 0.0
) -> tuple[Float[Tensor, "k m latent"], Float[Tensor, "k m"]]:
    r"""Line 2: ``V = alpha (sqrt(1 - gamma^2) e_{jm+r} + gamma e_0)``, ``b = beta``, float32.

    alpha and beta give every neuron probability ``active`` and a mean of 1 while active. ``latent``: m_0', at least
    ``k m`` (one more with ``gamma``); ``ValueError`` where it is less.
    """
    latent = 2 * k * m if latent is None else latent
    first = int(gamma > 0)
    if latent < k * m + first:
        raise ValueError(f"{k * m} neurons start orthogonal only in {k * m + first} latent dimensions, not {latent}")
    normal = NormalDist()
    t = normal.inv_cdf(1 - active)
    alpha = 1 / (normal.pdf(t) / active - t)
    v = torch.zeros(k * m, latent)
    v[:, first : first + k * m] = (1 - gamma**2) ** 0.5 * torch.eye(k * m)
    v[:, 0] += gamma
    return alpha * v.reshape(k, m, latent), torch.full((k, m), alpha * t)


class NeuronBatch(NamedTuple):
    """D4: true means ``(2, k, m)``; the generator's means there, and their slopes in ``(alpha, b/alpha)``."""

    true: Tensor
    fake: Tensor
    slopes: tuple[Tensor, Tensor]


class NeuronGame:
    """D4 of every neuron at once: alpha and t = b/alpha ``(k, m)`` against v and w ``(2, k, m)``."""

    outer: Player = "generator"
    name = "D4"

    def __init__(self, source: Source, network: PatchGenerator, b: float, settings: FirstHiddenSettings) -> None:
        self.source, self.network = source, network
        self.d4 = D4(network.W[0], b, settings.zeta, settings.kappa)
        norm = network.V[0].norm(dim=2)
        self.unit = network.V[0] / norm[:, :, None]
        self.alpha, self.t = norm.clone(), network.b[0] / norm
        self.vw = torch.zeros(2, *norm.shape)
        self.gram = network.W[0].mT @ network.W[0]

    def parameters(self, player: Player) -> list[Tensor]:
        return [self.alpha, self.t] if player == "generator" else [self.vw]

    def sample(self, n: int, rng: torch.Generator) -> NeuronBatch:
        true = self.d4.features(coordinates(self.source.draw(n, rng, 1)[0], self.d4.w)).mean(1)
        g = (self.network.latents(n, rng) @ self.unit.flatten(0, 1).T).reshape(n, *self.t.shape)
        pre, act = self.alpha * (g - self.t), self.network.activation
        s = (act(pre).transpose(0, 1) @ self.gram).transpose(0, 1)
        # Only a neuron's own parameters move in its own game, so cross-talk is part of s but carries no gradient.
        own = self.d4.slopes(s) * (act.derivative(pre) * torch.diagonal(self.gram, dim1=1, dim2=2))
        return NeuronBatch(
            true, self.d4.features(s).mean(1), ((own * (g - self.t)).mean(1), -(own.mean(1) * self.alpha))
        )

    def value(self, batch: NeuronBatch) -> float:
        return float(((batch.true - batch.fake) * self.d4.output(self.vw)).sum() - self.vw.square().sum())

    def gradient(self, batch: NeuronBatch, player: Player) -> list[Tensor]:
        if player == "discriminator":
            return [(batch.true - batch.fake) * self.d4.output_slope(self.vw) - 2 * self.vw]
        return [-(self.d4.output(self.vw) * slope).sum(0) for slope in batch.slopes]

    def step(self, batch: NeuronBatch, player: Player) -> list[Tensor | float]:
        if player == "discriminator":
            return [0.5]
        # Curvature kappa^2 J^T J / 2, shared between two coordinates; the floor is that of a neuron active once in a thousand.
        return [1 / (self.d4.kappa**2 * slope.square().sum(0)).clamp_min(1e-6) for slope in batch.slopes]

    def retract(self, player: Player) -> None:
        if player == "generator":
            self.alpha.clamp_(min=1e-3)

    def learned(self) -> PatchGenerator:
        """The network with these norms and biases."""
        v, b = list(self.network.V), list(self.network.b)
        v[0], b[0] = self.alpha[:, :, None] * self.unit, self.alpha * self.t
        return PatchGenerator(self.network.W, v, b, self.network.parents, self.network.activation)


class PairBatch(NamedTuple):
    """D5: the true ``E[h h^T]`` ``(q, q)``; the generator's, and what its gradient needs: h, the slopes dh/ds, dS/dg, z."""

    true: Tensor
    fake: Tensor
    h: Tensor
    outer_slope: Tensor
    inner_slope: Tensor
    z: Tensor


class PairGame:
    """D5 of all pairs: unit rows ``(q, m_0')`` against log u ``(2, q, q)``."""

    outer: Player = "generator"
    name = "D5"

    def __init__(
        self, source: Source, network: PatchGenerator, b: float, settings: FirstHiddenSettings, rng: torch.Generator
    ) -> None:
        self.source, self.network, self.settings = source, network, settings
        k, m, _ = network.V[0].shape
        seen = coordinates(source.draw(settings.probe, rng, 1)[0], network.W[0]).reshape(-1, k * m) > b
        both = seen.to(network.W[0].dtype).T @ seen.to(network.W[0].dtype) / len(seen)
        self.d5 = D5(network.W[0], b, pair_weights(both, m, settings.within, settings.across), settings.zeta)
        rows = network.V[0].flatten(0, 1)
        self.alpha = rows.norm(dim=1)
        self.unit = rows / self.alpha[:, None]
        self.log_u = log_simplex(torch.zeros(2, k * m, k * m))
        self.gram = network.W[0].mT @ network.W[0]

    def parameters(self, player: Player) -> list[Tensor]:
        return [self.unit] if player == "generator" else [self.log_u]

    def sample(self, n: int, rng: torch.Generator) -> PairBatch:
        true = self.d5.moment(coordinates(self.source.draw(n, rng, 1)[0], self.d5.w))
        z, act = self.network.latents(n, rng), self.network.activation
        pre = z @ (self.alpha[:, None] * self.unit).T - self.network.b[0].flatten()
        hidden = act(pre).reshape(n, *self.network.b[0].shape)
        s = (hidden.transpose(0, 1) @ self.gram).transpose(0, 1)
        h = self.d5.features(s)
        return PairBatch(true, h.T @ h / n, h, self.d5.slopes(s), act.derivative(pre) * self.alpha, z)

    def value(self, batch: PairBatch) -> float:
        gain = (self.d5.signed(self.log_u.exp()) * (batch.true - batch.fake)).sum() - negative_entropy(self.log_u)
        return float(gain + barrier(self.unit @ self.unit.T, self.settings.steepness, self.settings.tau))

    def gradient(self, batch: PairBatch, player: Player) -> list[Tensor]:
        if player == "discriminator":
            best = self.d5.best_log(batch.true - batch.fake)
            return [torch.where(torch.isinf(best), torch.zeros_like(best), best - self.log_u)]
        n, k, m = batch.outer_slope.shape
        weights = self.d5.signed(self.log_u.exp())
        pull = (batch.h @ (weights + weights.T)).reshape(n, k, m) * batch.outer_slope
        pull = (pull.transpose(0, 1) @ self.gram).transpose(0, 1).reshape(n, k * m) * batch.inner_slope
        slope = barrier_slope(self.unit @ self.unit.T, self.settings.steepness, self.settings.tau)
        gradient = 2 * slope @ self.unit - pull.T @ batch.z / n
        return [gradient - (gradient * self.unit).sum(1, keepdim=True) * self.unit]

    def step(self, batch: PairBatch, player: Player) -> list[Tensor | float]:
        if player == "discriminator":
            return [1.0]
        # A pair's curvature is u C^2 (ds/drho)^2 with ds/drho = alpha alpha' Pr[both active]; both orders, both rows: times 4.
        both = batch.outer_slope.flatten(1) * batch.inner_slope
        slope = both.T @ both / len(both)
        curvature = self.log_u.exp().sum(0) * (self.d5.weights * slope).square()
        curvature += barrier_curvature(self.unit @ self.unit.T, self.settings.steepness, self.settings.tau)
        return [1 / (4 * curvature).amax(1, keepdim=True).clamp_min(1e-12)]

    def retract(self, player: Player) -> None:
        if player == "generator":
            self.unit /= self.unit.norm(dim=1, keepdim=True)
        else:
            self.log_u.copy_(log_simplex(self.log_u))

    def learned(self) -> PatchGenerator:
        """The network with these directions."""
        v = list(self.network.V)
        v[0] = (self.alpha[:, None] * self.unit).reshape(v[0].shape)
        return PatchGenerator(self.network.W, v, self.network.b, self.network.parents, self.network.activation)


def first_hidden(
    source: Source,
    network: PatchGenerator,
    b: float,
    neurons: SGDASettings,
    pairs: SGDASettings,
    rng: torch.Generator,
    settings: FirstHiddenSettings = FirstHiddenSettings(),
) -> tuple[PatchGenerator, list[Trace]]:
    """Algorithm 2 from the network's own V_1 and b_1 (line 2 is :func:`start_first_hidden`): the network with both learned.

    ``source`` in patch form, in units in which a channel's mean while active is about 1; ``b`` is the stage's threshold;
    ``neurons`` and ``pairs`` are Algorithm 6's numbers for D4 and for D5.
    """
    neuron_game = NeuronGame(source, network, b, settings)
    traces = [sgda(neuron_game, neurons, rng)]
    if neuron_game.learned().b[0].numel() == 1:  # no pairs
        return neuron_game.learned(), traces
    pair_game = PairGame(source, neuron_game.learned(), b, settings, rng)
    traces.append(sgda(pair_game, pairs, rng))
    return pair_game.learned(), traces
