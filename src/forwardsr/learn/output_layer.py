r"""Algorithm 1, GAN_OutputLayer: learn W of one level against the truncated moments of D1 (§4.1, Lemma B.2).

.. math:: \min_{W_j} \max_{V_j} \; E[D^{(1)}_j(X^*)] - E[D^{(1)}_j(X)] - \sum_r \|V_{j,r}\|^{1+c}
    \qquad \text{for every patch } j

With :math:`\mu_{rq} = E[1[s_r > \mathbb{b}] S_q]` the generator's moment is :math:`R = \mu W^\top`, so the players' gradients are

.. math:: \nabla_V L = R^* - R - \nabla \|V\|^{1+c}, \qquad \nabla_W L = -V^\top \mu

(ReLU' is piecewise constant: the gate carries no gradient). With the inner maximum taken, the curvature in W at c = 1 is
:math:`\mu^\top \mu / 2`: the natural step is the inverse of its largest eigenvalue.

=====================  ===========  =================================================================================
paper                  default      reason
=====================  ===========  =================================================================================
bold b = b m^0.152     as written   it exceeds b, so that cross-talk of W^D opens no gate, and of the moving W neither
                                    (Invariant B.3): eta and N must keep W's noise a few times below it
c                      1            see ``model/discriminators``
=====================  ===========  =================================================================================
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from forwardsr.data.source import Source
from forwardsr.learn.sgda import Player, SGDASettings, Trace, sgda
from forwardsr.model.discriminators import D1
from forwardsr.model.patch_generator import PatchGenerator


class OutputBatch(NamedTuple):
    """What a step needs of its samples: the true moment ``(k, m, d)`` and the generator's mass mu ``(k, m, m)``."""

    moment: Tensor
    mass: Tensor


class OutputLayerGame:
    """The games of every patch of a level (counted from 0) at once: W ``(k, d, m)`` against V ``(k, m, d)``."""

    outer: Player = "generator"

    def __init__(self, source: Source, network: PatchGenerator, level: int, b: float, c: float = 1.0) -> None:
        self.source, self.network, self.level = source, network, level
        self.name = f"D1, level {level + 1}"
        start = network.W[level]
        self.d1 = D1(start, b * start.shape[2] ** 0.152, c)
        self.w, self.v = start.clone(), torch.zeros_like(start).mT.contiguous()

    def parameters(self, player: Player) -> list[Tensor]:
        return [self.w] if player == "generator" else [self.v]

    def sample(self, n: int, rng: torch.Generator) -> OutputBatch:
        true = self.source.draw(n, rng, self.level + 1)[self.level]
        s = self.network.hidden(self.network.latents(n, rng), self.level + 1)[self.level]
        fake = torch.bmm(s.transpose(0, 1), self.w.mT).transpose(0, 1)
        return OutputBatch(self.d1.moment(true), self.d1.gate(fake).permute(1, 2, 0) @ s.transpose(0, 1) / n)

    def gap(self, batch: OutputBatch) -> Tensor:
        """``R* - R``."""
        return batch.moment - batch.mass @ self.w.mT

    def value(self, batch: OutputBatch) -> float:
        return float((self.gap(batch) * self.v).sum() - self.d1.penalty(self.v).sum())

    def gradient(self, batch: OutputBatch, player: Player) -> list[Tensor]:
        if player == "generator":
            return [-self.v.mT @ batch.mass]
        return [self.gap(batch) - self.d1.penalty_gradient(self.v)]

    def step(self, batch: OutputBatch, player: Player) -> list[Tensor | float]:
        if player == "discriminator":
            return [0.5]
        return [2 / torch.linalg.matrix_norm(batch.mass, 2).square().clamp_min(1e-12)[:, None, None]]

    def retract(self, player: Player) -> None:
        """W is free until line 4 normalises it."""


def output_layer(
    source: Source,
    network: PatchGenerator,
    level: int,
    b: float,
    settings: SGDASettings,
    rng: torch.Generator,
    c: float = 1.0,
) -> tuple[PatchGenerator, Trace]:
    """Algorithm 1 on every patch of ``level`` (counted from 0): the network with that W learned, its columns of length 1.

    ``source`` in patch form; ``network`` holds at least the levels up to ``level``; ``b`` is the stage's threshold.
    """
    game = OutputLayerGame(source, network, level, b, c)
    trace = sgda(game, settings, rng)
    w = list(network.W)
    w[level] = game.w / game.w.norm(dim=1, keepdim=True)
    return PatchGenerator(w, network.V, network.b, network.parents, network.activation), trace
