"""``joint``: all levels of a deconvolutional generator trained together, by multi-scale gradient (paper, Figure 1).

The objective is :mod:`forwardsr.learn.adversarial`'s, over all logits of :class:`forwardsr.model.critic.Critic`. What is
shown, measured and kept is the exponential moving average of the generator's weights.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from forwardsr.data.pyramid import Pyramid
from forwardsr.data.source import Epochs, Source
from forwardsr.learn.adversarial import LOSSES, adversarial_gradients, average, gradient_penalty
from forwardsr.model.critic import Critic
from forwardsr.model.deconv_generator import DeconvGenerator, recalibrate

CALIBRATION = 1024  # latents from which the shown generator's batch-norm moments are taken


@dataclass(frozen=True)
class JointConfig:
    """The settings of one training; the defaults were chosen by measurement (benchmarks/choices.py)."""

    width: int = 64
    """Channels of every hidden layer, and filters of the critic's first layers."""
    latent: int = 128
    """Length of the latent z (m_0)."""
    loss: str = "relativistic"
    """non-saturating, relativistic or wasserstein."""
    heads: str = "coarse"
    """Which scales have a logit of their own besides the joint one: coarse (all but the finest), all, or none."""
    gamma: float = 1.0
    """Weight of the gradient penalty R1, and of R2 with the relativistic loss."""
    penalty_interval: int = 16
    """Steps from one gradient penalty to the next."""
    batch: int = 16
    """Real images a step, and as many generated ones."""
    rate_g: float = 1e-3
    """Adam's rate for the generator."""
    rate_d: float = 2e-4
    """Adam's rate for the critic."""
    beta1: float = 0.0
    """Adam's first decay: no momentum, which a game does not reward."""
    beta2: float = 0.99
    """Adam's second decay."""
    ema_images: float = 10_000.0
    """Half-life of the weight average, in images; shorter in the beginning (a twentieth of the images seen)."""
    flip: bool = True
    """Mirror real images left to right with probability 1/2."""
    seed: int = 0
    precision: str = "auto"
    """float32, bfloat16 (autocast), or auto: the faster of the two here."""


class JointLearner:
    """Both networks, their optimizers, the averaged generator and every random state: one training, step by step."""

    def __init__(self, config: JointConfig, source: Source, device: torch.device) -> None:
        """``source`` in image form; its shapes fix the sides and the channels."""
        self.config, self.device = config, device
        sides = [shape[-1] for shape in source.shapes]
        channels = source.shapes[0][0]
        self.rng = torch.Generator().manual_seed(config.seed)
        self.generator = DeconvGenerator(
            sides, width=config.width, latent=config.latent, channels=channels, generator=self.rng
        ).to(device)
        heads = [config.heads == "all" or (config.heads == "coarse" and side < sides[-1]) for side in sides]
        self.critic = Critic(sides, width=config.width, channels=channels, heads=heads, generator=self.rng).to(device)
        self.average = copy.deepcopy(self.generator)
        fused = device.type in ("cpu", "cuda")
        betas = (config.beta1, config.beta2)
        self.optimizer_g = torch.optim.Adam(self.generator.parameters(), config.rate_g, betas, fused=fused)
        self.optimizer_d = torch.optim.Adam(self.critic.parameters(), config.rate_d, betas, fused=fused)
        self.data = Epochs(source, config.batch, config.seed, config.flip)
        self.weights = torch.ones(1 + len(self.critic.headed), device=device)
        self.step = 0

    @property
    def images(self) -> int:
        """Real images seen."""
        return self.step * self.config.batch

    def advance(self) -> dict[str, Tensor]:
        """One step of both players; returns ``loss_d`` and ``loss_g``, one a logit, and now and then ``penalty``."""
        config = self.config
        real = self.data.next().map(device=self.device)
        z = torch.randn(config.batch, config.latent, generator=self.rng).to(self.device)
        penalised = config.gamma > 0 and self.step % config.penalty_interval == 0
        self.optimizer_d.zero_grad()
        self.optimizer_g.zero_grad()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=config.precision == "bfloat16"):
            fake = self.generator(z)
            loss_d, loss_g, gradients = adversarial_gradients(
                self.critic, real, fake, LOSSES[config.loss], self.weights
            )
        record = {"loss_d": loss_d, "loss_g": loss_g}
        if penalised:  # in float32: second derivatives in bfloat16 are noise
            penalty = gradient_penalty(self.critic, real, self.rng)
            if config.loss == "relativistic":
                penalty = penalty + gradient_penalty(self.critic, fake, self.rng)
            (config.gamma * config.penalty_interval * penalty).backward()
            record["penalty"] = penalty.detach()
        torch.autograd.backward(list(fake.levels), gradients)
        self.optimizer_d.step()
        self.optimizer_g.step()
        self.step += 1
        half_life = min(config.ema_images, 0.05 * self.images)
        decay = 0.5 ** (config.batch / half_life)
        average(list(self.average.parameters()), list(self.generator.parameters()), decay)
        return record

    def shown(self) -> DeconvGenerator:
        """The averaged generator, its batch-norm moments its own, in evaluation mode. Changes nothing of the training."""
        model = copy.deepcopy(self.average)
        recalibrate(model, CALIBRATION, seed=self.config.seed)
        return model.eval()

    def state(self) -> dict[str, Any]:
        """Everything needed to go on bit for bit: tensors, numbers and plain containers only."""
        return {
            "generator": self.generator.state_dict(),
            "critic": self.critic.state_dict(),
            "average": self.average.state_dict(),
            "optimizer_g": self.optimizer_g.state_dict(),
            "optimizer_d": self.optimizer_d.state_dict(),
            "rng": self.rng.get_state(),
            "position": self.data.position,
            "step": self.step,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state`."""
        for name in ("generator", "critic", "average", "optimizer_g", "optimizer_d"):
            getattr(self, name).load_state_dict(state[name])
        self.rng.set_state(state["rng"])
        self.data.position, self.step = state["position"], state["step"]


def network_metadata(model: DeconvGenerator) -> dict[str, str]:
    """What ``model.safetensors`` says of itself, so that :func:`load_network` can rebuild it."""
    return {
        "format": "forwardsr/1",
        "family": "deconv",
        "sides": ",".join(map(str, model.sides)),
        "width": str(model.width),
        "latent": str(model.latent),
        "channels": str(model.channels),
    }


def load_network(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> DeconvGenerator:
    """The network of a weights file, in evaluation mode. Raises ``KeyError`` where the metadata is another network's."""
    model = DeconvGenerator(
        [int(side) for side in metadata["sides"].split(",")],
        width=int(metadata["width"]), latent=int(metadata["latent"]), channels=int(metadata["channels"]),
    )  # fmt: skip
    model.load_state_dict(dict(tensors))
    return model.eval()


def draw_levels(model: DeconvGenerator, z: Tensor, batch: int = 256) -> Pyramid:
    """``model(z)`` without gradients, ``batch`` at a time, on the CPU."""
    device = next(model.parameters()).device
    with torch.no_grad():
        return Pyramid.cat([model(part.to(device)).map(device="cpu") for part in z.split(batch)])
