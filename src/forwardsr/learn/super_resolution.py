r"""Algorithm 3, GAN_ForwardSuperResolution: learn V_l and b_l, l > 1, against D2 (§4.3, Lemma D.2).

.. math:: \min_{V^D, b^D} \max_{V, b} \; E[D^{(2)}_{j,r}(X_l^*, X_{l-1}^*)] - E[D^{(2)}_{j,r}(X_l, X_{l-1})]
    - \lambda_G \|V\|^2 + \lambda_D \|V^D\|^2 \qquad \text{for every patch } j \text{ and channel } r

The generator is the fast player: it copies the discriminator's map (D.3), and the discriminator, slow, learns the true one from
the true pairs (D.7). Signs of the regularisers are those of the proofs. abs has slope at most one, so with inputs a (the channels
below) the gradient in V is at most E[a]; the natural step is the inverse of E[a^2], that of a regression.

=====================  =======  ======================================================================================
paper                  default  reason
=====================  =======  ======================================================================================
lambda_D               1e-6     1/poly(d/eps): its pull on V is a millionth of a sample's
lambda_G               1e-8     lambda_D / poly(d/eps)
zeta                   0.02     slope of a silent neuron, hence the speed at which it wakes; the finished network's is smaller
7 (line 6)             0        raising b by 7b makes S <= S* in the limit b -> 0; at finite b it would be the largest error
V at the start         I        on the first parent (padded with zeros where m_l and m_(l-1) differ)
=====================  =======  ======================================================================================
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from forwardsr.data.source import Source
from forwardsr.learn.sgda import Player, SGDASettings, Trace, sgda
from forwardsr.model.activations import Activation
from forwardsr.model.discriminators import D2, beside, coordinates
from forwardsr.model.patch_generator import PatchGenerator


@dataclass(frozen=True)
class SuperResolutionSettings:
    """The numbers of D2 and Algorithm 3; the module's table gives each one's reason."""

    zeta: float = 0.02
    lambda_d: float = 1e-6
    lambda_g: float = 1e-8
    raise_bias: float = 0.0


def start_super_resolution(
    k: int, p: int, m: int, m_below: int
) -> tuple[Float[Tensor, "k p m m_below"], Float[Tensor, "k m"]]:
    """Line 3: the identity on the first of ``p`` parents, zero on the others and in b; float32."""
    v = torch.zeros(k, p, m, m_below)
    v[:, 0] = torch.eye(m, m_below)
    return v, torch.zeros(k, m)


class LevelBatch(NamedTuple):
    """Patch first. True: s ``(k, n, m)`` and D2's inputs ``(k, n, i)``. Fake: the parents' channels, and D2's inputs."""

    true_s: Tensor
    true_inputs: Tensor
    below: Tensor
    fake_inputs: Tensor


class SuperResolutionGame:
    """D2 of every patch and channel of a level (counted from 0): V^D, b^D slow, V, b fast; V flattened to ``(k, m, i)``."""

    outer: Player = "discriminator"

    def __init__(
        self, source: Source, network: PatchGenerator, level: int, b: float, settings: SuperResolutionSettings
    ) -> None:
        parents = network.parents[level]
        assert parents is not None
        self.source, self.network, self.level, self.settings = source, network, level, settings
        self.name = f"D2, level {level + 1}"
        self.d2 = D2(network.W[level], network.W[level - 1], parents, b, settings.zeta)
        self.act = Activation("leaky", settings.zeta)
        self.gram = network.W[level].mT @ network.W[level]
        self.v = network.V[level].transpose(1, 2).flatten(2).clone()
        self.b = network.b[level].clone()
        self.v_d, self.b_d = self.v.clone(), self.b.clone()

    def parameters(self, player: Player) -> list[Tensor]:
        return [self.v, self.b] if player == "generator" else [self.v_d, self.b_d]

    def sample(self, n: int, rng: torch.Generator) -> LevelBatch:
        true = self.source.draw(n, rng, self.level + 1)
        below = self.network.hidden(self.network.latents(n, rng), self.level)[self.level - 1]
        image = torch.bmm(below.transpose(0, 1), self.network.W[self.level - 1].mT).transpose(0, 1)
        return LevelBatch(
            coordinates(true[self.level], self.d2.w).transpose(0, 1),
            self.d2.inputs(true[self.level - 1]),
            beside(below, self.d2.parents),
            self.d2.inputs(image),
        )

    def _residuals(self, batch: LevelBatch) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Residuals s - LeakyReLU(fraktur s), true and fake, and the three pre-activations behind them."""
        true_pre = self.d2.pre(batch.true_inputs, self.v_d, self.b_d)
        fake_pre = self.d2.pre(batch.fake_inputs, self.v_d, self.b_d)
        own_pre = self.d2.pre(batch.below, self.v, self.b)
        fake_s = self.act(own_pre) @ self.gram
        return batch.true_s - self.act(true_pre), fake_s - self.act(fake_pre), true_pre, fake_pre, own_pre

    def value(self, batch: LevelBatch) -> float:
        true, fake, *_ = self._residuals(batch)
        gain = self.d2.abs(true).mean(1).sum() - self.d2.abs(fake).mean(1).sum()
        ridge = self.settings.lambda_d * self.v_d.square().sum() - self.settings.lambda_g * self.v.square().sum()
        return float(gain + ridge)

    def gradient(self, batch: LevelBatch, player: Player) -> list[Tensor]:
        n = batch.true_s.shape[1]
        if player == "generator":
            # Only a neuron's own weights move in its own game, so cross-talk is part of s but carries no gradient.
            own_pre = self.d2.pre(batch.below, self.v, self.b)
            fake = self.act(own_pre) @ self.gram - self.act(self.d2.pre(batch.fake_inputs, self.v_d, self.b_d))
            own = torch.diagonal(self.gram, dim1=1, dim2=2)[:, None, :]
            pull = self.d2.abs.derivative(fake) * self.act.derivative(own_pre) * own / n
            return [-(pull.mT @ batch.below) - 2 * self.settings.lambda_g * self.v, pull.sum(1)]
        true, fake, true_pre, fake_pre, _ = self._residuals(batch)
        true_pull = -self.d2.abs.derivative(true) * self.act.derivative(true_pre) / n
        fake_pull = -self.d2.abs.derivative(fake) * self.act.derivative(fake_pre) / n
        gradient = true_pull.mT @ batch.true_inputs - fake_pull.mT @ batch.fake_inputs
        return [gradient + 2 * self.settings.lambda_d * self.v_d, fake_pull.sum(1) - true_pull.sum(1)]

    def step(self, batch: LevelBatch, player: Player) -> list[Tensor | float]:
        energy = batch.true_inputs.square().mean().clamp_min(1e-12)
        return [1 / energy, 1 / energy]

    def retract(self, player: Player) -> None:
        """Both players are free."""

    def learned(self) -> PatchGenerator:
        """The network with the generator's V and b of this level."""
        v, b = list(self.network.V), list(self.network.b)
        k, p, m, m_below = v[self.level].shape
        v[self.level] = self.v.reshape(k, m, p, m_below).transpose(1, 2).contiguous()
        b[self.level] = self.b + self.settings.raise_bias * self.d2.b
        return PatchGenerator(self.network.W, v, b, self.network.parents, self.network.activation)


def super_resolution(
    source: Source,
    network: PatchGenerator,
    level: int,
    b: float,
    sgda_settings: SGDASettings,
    rng: torch.Generator,
    settings: SuperResolutionSettings = SuperResolutionSettings(),
) -> tuple[PatchGenerator, Trace]:
    """Algorithm 3 on ``level`` (counted from 0, at least 1), from the network's own V and b of that level (line 3 is
    :func:`start_super_resolution`): the network with both learned.

    ``source`` in patch form, in units in which a channel's mean while active is about 1; ``b`` is the stage's threshold.
    """
    game = SuperResolutionGame(source, network, level, b, settings)
    trace = sgda(game, sgda_settings, rng)
    return game.learned(), trace
