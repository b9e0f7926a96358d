"""``joint``: all levels of a deconvolutional generator trained together, by multi-scale gradient (paper, Figure 1).

The objective is :mod:`forwardsr.learn.adversarial`'s, over all logits of :class:`forwardsr.model.critic.Critic`. What is
shown, measured and kept is the exponential moving average of the generator's weights.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from forwardsr.data.coarsest import coarsest
from forwardsr.data.pyramid import Pyramid
from forwardsr.data.source import Epochs, Source
from forwardsr.learn.adversarial import LOSSES, adversarial_gradients, average, gradient_penalty
from forwardsr.model.critic import Critic
from forwardsr.model.deconv_generator import DeconvGenerator
from forwardsr.model.shared_norm import share_batch_norms
from forwardsr.parallel import ALONE, World

CALIBRATION = 1024  # latents from which the shown generator's batch-norm moments are taken
START_RATE = 0.3  # of --rate-g, where training starts from another run: what is there is corrected, not learned anew
START_IMAGES = 40_000  # over which that rate is reached: a critic that has seen nothing must not lead


@dataclass(frozen=True)
class JointConfig:
    """The settings of one training; the loss was chosen by measurement (benchmarks/choices.py)."""

    width: int = 64
    """Channels of every hidden layer, and filters of the critic's first layers."""
    latent: int = 128
    """Length of the latent z_1; with --init a minmax run it is that run's."""
    innovations: int | None = None
    """Channels of noise at every place of each level above the first: none by default; with --init a minmax run that run's."""
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
    """float32, bfloat16 (autocast; of minmax on images, level 1's descent), or auto: the faster of the two here."""


@dataclass(frozen=True)
class Stage:
    """What is learned together: hidden layers and outputs ``first .. levels - 1`` (from 0), against the images of levels
    ``0 .. levels - 1``. Layers below ``first`` are frozen, those from ``levels`` on are not computed.
    """

    name: str
    first: int
    levels: int

    @property
    def trained(self) -> range:
        """The levels that learn."""
        return range(self.first, self.levels)


class JointLearner:
    """Both networks, their optimizers, the averaged generator and every random state: one training, step by step.

    A single stage in which everything learns; :class:`forwardsr.learn.schedules.ScheduledLearner` has others.
    """

    def __init__(self, config: JointConfig, source: Source, device: torch.device, started: bool = False) -> None:
        """``source`` in image form; its shapes fix the sides and the channels. ``started``: the generator will be given the
        weights of another run (:data:`START_RATE`).
        """
        self.config, self.source, self.device, self.started = config, source, device, started
        self.rng = torch.Generator().manual_seed(config.seed)
        self.generator = self.new_generator().to(device)
        self.average = copy.deepcopy(self.generator)
        self.world = ALONE
        self.step = 0
        self.begin(0)

    @property
    def sides(self) -> list[int]:
        """Of the images, coarse first."""
        return [shape[-1] for shape in self.source.shapes]

    @property
    def stages(self) -> tuple[Stage, ...]:
        """All stages, in order."""
        return (Stage("all levels together", 0, len(self.sides)),)

    @property
    def stage(self) -> Stage:
        """The present one."""
        return self.stages[self.index]

    @property
    def corrects(self) -> bool:
        """Whether the present stage trains layers that an earlier one has trained."""
        return self.index > 0 and self.stage.first < self.stages[self.index - 1].levels

    def new_generator(self) -> DeconvGenerator:
        """The network to train, its weights drawn from ``rng``."""
        config = self.config
        return DeconvGenerator(
            self.sides, width=config.width, latent=config.latent, channels=self.source.shapes[0][0],
            innovations=config.innovations or 0, generator=self.rng,
        )  # fmt: skip

    def judged(self) -> range:
        """The levels whose images the present stage can change: only these may have a logit of their own."""
        return self.stage.trained

    def begin(self, index: int) -> None:
        """Make ready for a stage: its layers learn and no others, under a fresh critic of its levels and fresh optimizers."""
        self.index, self.began = index, self.step
        config, stage = self.config, self.stage
        for level, parts in enumerate(zip(self.generator.layers, self.generator.outputs)):
            for part in parts:
                part.train(level in stage.trained).requires_grad_(level in stage.trained)
        sides = self.sides[: stage.levels]
        heads = [
            level in self.judged() and (config.heads == "all" or (config.heads == "coarse" and side < sides[-1]))
            for level, side in enumerate(sides)
        ]
        self.critic = Critic(
            sides, width=config.width, channels=self.source.shapes[0][0], heads=heads, generator=self.rng
        ).to(self.device)
        pairs = list(zip(self.average.parameters(), self.generator.parameters()))
        self._averaged = [a for a, g in pairs if g.requires_grad]
        self._learned = [g for _, g in pairs if g.requires_grad]
        fused = self.device.type in ("cpu", "cuda")
        betas = (config.beta1, config.beta2)
        self.optimizer_g = torch.optim.Adam(self._learned, config.rate_g, betas, fused=fused)
        self.optimizer_d = torch.optim.Adam(self.critic.parameters(), config.rate_d, betas, fused=fused)
        self.data = Epochs(
            coarsest(self.source, stage.levels), config.batch, config.seed, config.flip, self.images,
            part=self.world.part(config.batch),
        )  # fmt: skip
        self.weights = torch.ones(1 + len(self.critic.headed), device=self.device)

    def rate(self) -> float:
        """The generator's at the present step."""
        if not self.started:
            return self.config.rate_g
        return START_RATE * min(1.0, (self.images - self.began * self.config.batch) / START_IMAGES) * self.config.rate_g

    def join(self, world: World) -> None:
        """From the next step on be one of many: take a part of every batch, and share gradients and batch norms' moments.

        All must have the same state (:meth:`state`), and then keep it.
        """
        self.world = world
        share_batch_norms(self.generator, world)
        self.data.part = world.part(self.config.batch)

    def stage_over(self, spent: float) -> bool:
        """Whether the present stage ends now that this fraction of the budget is spent. The last one never does."""
        return False

    def next_stage(self) -> None:
        """Freeze what is to be frozen and begin the stage after the present one."""
        raise RuntimeError("there is no further stage")

    @property
    def images(self) -> int:
        """Real images seen."""
        return self.step * self.config.batch

    def advance(self) -> dict[str, Tensor]:
        """One step of both players; returns ``loss_d`` and ``loss_g``, one a logit, and now and then ``penalty``."""
        config = self.config
        real = self.data.next().map(device=self.device)
        z = torch.randn(config.batch, self.generator.latent_dim, generator=self.rng)[self.data.part].to(self.device)
        penalised = config.gamma > 0 and self.step % config.penalty_interval == 0
        self.optimizer_d.zero_grad()
        self.optimizer_g.zero_grad()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=config.precision == "bfloat16"):
            fake = self.generator.render(self.generator.hidden(z, self.stage.levels))
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
        learned = [(x, gradient) for x, gradient in zip(fake, gradients) if x.requires_grad]
        torch.autograd.backward([x for x, _ in learned], [gradient for _, gradient in learned])
        gradients = [p.grad for p in (*self.critic.parameters(), *self._learned) if p.grad is not None]
        self.world.average([*gradients, *record.values()])
        for group in self.optimizer_g.param_groups:
            group["lr"] = self.rate()
        self.optimizer_d.step()
        self.optimizer_g.step()
        self.step += 1
        # What another run or a correction starts from is worth keeping; what new layers start from is not.
        since = 0 if self.corrects else self.began
        half_life = config.ema_images
        if not self.started:
            half_life = min(half_life, 0.05 * (self.step - since) * config.batch)
        average(self._averaged, self._learned, 0.5 ** (config.batch / half_life))
        return record

    def shown(self) -> DeconvGenerator:
        """The averaged generator, its batch-norm moments its own, in evaluation mode. Changes nothing of the training.

        Frozen layers keep the moments that they were frozen with.
        """
        model = copy.deepcopy(self.average)
        calibrate(model, self.stage.trained, seed=self.config.seed)
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
            "stage": self.index,
            "began": self.began,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state`."""
        self.begin(state.get("stage", 0))  # a checkpoint older than stages has a single one
        for name in ("generator", "critic", "average", "optimizer_g", "optimizer_d"):
            getattr(self, name).load_state_dict(state[name])
        self.rng.set_state(state["rng"])
        self.data.position, self.step, self.began = state["position"], state["step"], state.get("began", 0)


@torch.no_grad()
def calibrate(model: DeconvGenerator, levels: Sequence[int], seed: int, n: int = CALIBRATION, batch: int = 256) -> None:
    """Set the running moments of the batch norms of ``levels`` (from 0) to those of ``n`` fresh latents.

    Averaged weights do not have the moments that were averaged beside them. The layers below are in evaluation mode, so they
    keep their moments and the inputs calibrated for are those that evaluation will see. Leaves ``model`` in evaluation mode.
    """
    model.eval()
    norms = [part for level in levels for part in model.layers[level].modules() if isinstance(part, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a cumulative average
        norm.train()
    rng, device = torch.Generator().manual_seed(seed), next(model.parameters()).device
    for start in range(0, n, batch):
        z = torch.randn(min(batch, n - start), model.latent_dim, generator=rng)
        model.hidden(z.to(device), max(levels) + 1)
    for norm, momentum in zip(norms, momenta):
        norm.momentum = momentum
    model.eval()


def draw_levels(model: DeconvGenerator, z: Tensor, levels: int, batch: int = 256) -> Pyramid:
    """The coarsest ``levels`` of ``model(z)`` without gradients, ``batch`` latents at a time, on the CPU."""
    device = next(model.parameters()).device
    with torch.no_grad():
        return Pyramid.cat(
            [model.render(model.hidden(part.to(device), levels)).map(device="cpu") for part in z.split(batch)]
        )
