"""The sides of image training: each peer as its users run it, and forwardsr's networks by its own learner and by a plain loop.

Every peer has its own networks, loss, optimizers and training step, float32, channels first, its defaults but for the width:

* torchgan's DCGAN: its networks, and the ``train_ops`` of its minimax losses, as its trainer calls them; Adam(2e-4, (0.5, 0.999));
* mimicry's SNGAN: its residual networks with spectral normalisation, and their ``train_step``, as its trainer calls them: hinge
  loss, five batches for the critic to one of the generator's; Adam(2e-4, (0, 0.9));
* lightweight-gan: its networks, optimizers and losses. Its trainer needs CUDA and a folder of files, so the step is re-declared
  from ``Trainer.train``: hinge loss of two logits, reconstruction, gradient penalty every fourth step; attention at 32 px and a
  single logit, which are its command line's defaults; no augmentation (none of the sides has any); its trainer's batch of 4, as
  its attention holds gigabytes for 16;
* BMSG-GAN: :mod:`cases.bmsg_gan`.

Of the packages, only what a training step uses is imported: not torchvision, tensorflow and others, which they list.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

import forwardsr
from cases import bmsg_gan
from cases.record import OURS
from forwardsr.device import resolve_precision
from forwardsr.learn.joint import JointConfig, JointLearner
from throughput import Noise as Source
from throughput import PlainLearner

PLAIN = "the same networks, plain loop"
UNUSED = ("torchvision", "kornia", "kornia.filters", "adabelief_pytorch", "tqdm")  # by a step of lightweight-gan


@dataclass
class Training:
    """One side. A forward pass of one picture through both networks is ``critic(generator(z))``."""

    version: str
    generator: nn.Module
    critic: nn.Module
    latent: int
    step: Callable[[], object]
    seen: int
    """Real pictures in a step."""
    period: int = 1
    """Steps after which the work repeats; the first of a period has the most."""
    averaged: Callable[[], nn.Module] | None = None
    """A generator of averaged weights, where the side has one."""

    def parameters(self) -> list[nn.Parameter]:
        """Of both networks."""
        return [*self.generator.parameters(), *self.critic.parameters()]

    def pictures(self, n: int) -> Any:
        """``n`` generated ones: the finest, or those of all sizes, coarse first."""
        device = next(self.generator.parameters()).device
        return self.generator(torch.randn(n, self.latent, device=device))


def shell(package: str) -> None:
    """Make submodules of ``package`` importable without running the package's own ``__init__``."""
    if package in sys.modules:
        return
    spec = importlib.util.find_spec(package)
    if spec is None or spec.submodule_search_locations is None:
        raise ImportError(f"{package} is not installed")
    module = types.ModuleType(package)
    module.__path__ = list(spec.submodule_search_locations)
    sys.modules[package] = module


def joint(source: Source, width: int, device: torch.device) -> Training:
    """forwardsr's own learner, with its own choice of precision."""
    precision = resolve_precision("auto", device)
    return _learner(JointLearner(_config(source, width, precision), source, device), forwardsr.__version__)


def plain(source: Source, width: int, device: torch.device) -> Training:
    """forwardsr's networks by the usual loop."""
    return _learner(PlainLearner(_config(source, width, "float32"), source, device), f"torch {torch.__version__}")


def _config(source: Source, width: int, precision: str) -> JointConfig:
    return JointConfig(width=width, batch=source.pyramid.n, precision=precision, flip=False)


def _learner(learner: JointLearner, version: str) -> Training:
    config = learner.config
    return Training(
        version,
        learner.generator,
        learner.critic,
        config.latent,
        learner.advance,
        config.batch,
        config.penalty_interval,
        learner.shown,
    )


def torchgan(source: Source, width: int, device: torch.device) -> Training:
    """``width``: its ``step_channels``, of the finest hidden layer."""
    shell("torchgan")
    models, losses = (importlib.import_module(f"torchgan.{name}") for name in ("models.dcgan", "losses.minimax"))
    batch, side = source.pyramid.n, source.shapes[-1][-1]
    generator = models.DCGANGenerator(out_size=side, step_channels=width).to(device)
    critic = models.DCGANDiscriminator(in_size=side, step_channels=width).to(device)
    optimizer_g, optimizer_d = (torch.optim.Adam(each.parameters(), 2e-4, (0.5, 0.999)) for each in (generator, critic))
    loss_g, loss_d = losses.MinimaxGeneratorLoss(), losses.MinimaxDiscriminatorLoss()

    def step() -> None:
        loss_d.train_ops(generator, critic, optimizer_d, source.finest(device), device)
        loss_g.train_ops(generator, critic, optimizer_g, device, batch)

    return Training(importlib.metadata.version("torchgan"), generator, critic, generator.encoding_dims, step, batch)


def mimicry(source: Source, width: int, device: torch.device) -> Training:
    """``width``: its ``ndf``; ``ngf`` is twice that at 32 px and the same at others, as in its defaults."""
    for package in ("torch_mimicry", "torch_mimicry.training"):
        shell(package)
    sngan = importlib.import_module("torch_mimicry.nets.sngan")
    log = importlib.import_module("torch_mimicry.training.metric_log")
    critics, batch, side = 5, source.pyramid.n, source.shapes[-1][-1]
    generator = getattr(sngan, f"SNGANGenerator{side}")(ngf=2 * width if side == 32 else width).to(device)
    critic = getattr(sngan, f"SNGANDiscriminator{side}")(ndf=width).to(device)
    optimizer_g, optimizer_d = (torch.optim.Adam(each.parameters(), 2e-4, (0.0, 0.9)) for each in (generator, critic))
    labels = torch.zeros(batch, dtype=torch.int64, device=device)

    def step() -> None:
        seen = log.MetricLog()
        for _ in range(critics):
            real = source.finest(device), labels
            seen = critic.train_step(real, generator, optimizer_d, seen, device)
        generator.train_step(real, critic, optimizer_g, seen, device)

    return Training(importlib.metadata.version("torch-mimicry"), generator, critic, generator.nz, step, critics * batch)


def lightweight(source: Source, width: int, device: torch.device) -> Training:
    """``width``: its ``fmap_max`` and ``latent_dim``."""
    shell("lightweight_gan")
    package, batch, side = _lightweight_gan(), 4, source.shapes[-1][-1]

    class Built(package.LightweightGAN):  # type: ignore[misc, name-defined]
        def cuda(self, device: object = None) -> Built:
            return self  # its constructor ends by asking for a GPU

    gan = Built(latent_dim=width, image_size=side, fmap_max=width, attn_res_layers=[32], disc_output_size=1).to(device)
    gan.train()
    interval, weight, count = 4, 10.0, [0]

    def step() -> None:
        real, penalised = source.finest(device)[:batch], count[0] % interval == 0
        count[0] += 1
        gan.D_opt.zero_grad()
        with torch.no_grad():
            fake = gan.G(torch.randn(len(real), width, device=device))
        pictures = real.clone().requires_grad_(penalised)
        fake, (on_fake, on_fake_32, _) = gan.D_aug(
            fake, detach=True, input_requires_grad=penalised, return_discr_input=True
        )
        on_real, on_real_32, reconstruction = gan.D_aug(pictures, calc_aux_loss=True)
        loss = package.hinge_loss(on_real, on_fake) + package.hinge_loss(on_real_32, on_fake_32) + reconstruction
        if penalised:
            slopes = [_slope((on_real, on_real_32), pictures), _slope((on_fake, on_fake_32), fake)]
            loss = loss + weight * torch.cat(slopes).flatten(1).norm(2, dim=1).square().mean()
        loss.backward()
        gan.D_opt.step()
        gan.G_opt.zero_grad()
        on_fake, on_fake_32, _ = gan.D_aug(gan.G(torch.randn(len(real), width, device=device)))
        loss = package.gen_hinge_loss(on_fake, None) + package.gen_hinge_loss(on_fake_32, None)
        loss.backward()
        gan.G_opt.step()
        loss.item()

    version = importlib.metadata.version("lightweight-gan")  # its trainer averages nothing before step 20,000
    return Training(version, gan.G, _First(gan.D), width, step, batch, interval)


class _First(nn.Module):
    """The first result of a network that gives several."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)[0]


def _slope(outputs: tuple[Tensor, ...], inputs: Tensor) -> Tensor:
    ones = [torch.ones_like(each) for each in outputs]
    return torch.autograd.grad(outputs, inputs, ones, create_graph=True)[0]


def _lightweight_gan() -> types.ModuleType:
    """The package's one module, which insists on CUDA, and on packages that a step does not use, when imported."""
    absent = [name for name in UNUSED if name not in sys.modules]
    sys.modules |= {name: mock.MagicMock() for name in absent}
    try:
        with mock.patch.object(torch.cuda, "is_available", return_value=True):
            package = importlib.import_module("lightweight_gan.lightweight_gan")
    finally:
        for name in absent:
            del sys.modules[name]
    package.Blur = nn.Identity  # type: ignore[attr-defined]  # as its trainer does where antialias is not asked for
    return package


def bmsg(source: Source, width: int, device: torch.device) -> Training:
    """``width``: its latent's size, and of the coarser layers."""
    trainer = bmsg_gan.Trainer(source.shapes[-1][-1], width, device)
    return Training(
        "re-declared", trainer.generator, trainer.critic, width, lambda: trainer.step(source.finest(device)),
        source.pyramid.n, averaged=lambda: trainer.average,
    )  # fmt: skip


SIDES: dict[str, Callable[[Source, int, torch.device], Training]] = {
    OURS: joint,
    PLAIN: plain,
    "DCGAN, torchgan": torchgan,
    "SNGAN, mimicry": mimicry,
    "lightweight-gan": lightweight,
    "BMSG-GAN": bmsg,
}
