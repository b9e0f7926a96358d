r"""``--init RUN`` from a ``minmax`` run: the deconvolutional generator starts from what the theorem's algorithm learned in seconds.

With the teacher G (an :class:`InnovationGenerator`) and the student D (a :class:`DeconvGenerator`),

.. math:: \min_D E_z \sum_l \|D_l(z) - G_l(R z, 0)\|^2 / v_l, \qquad v_l = E\|G_l - E G_l\|^2,

R the latent directions of level 1 to which its images answer most, as many as the student has; innovations are off, so that the
target is a function of z. The student's output features are the teacher's first: a pair of channels a feature. Adam on fresh
samples; no real image is used.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional as F

from forwardsr.errors import UserError
from forwardsr.model.convolution import KERNEL
from forwardsr.model.deconv_generator import DeconvGenerator
from forwardsr.model.innovation_generator import InnovationGenerator

SAMPLES = 16_384  # drawn from the teacher: half a minute to a minute at 32 px on a core
BATCH = 32
RATE = 2e-3
TOLD = 128  # steps from one progress note to the next


def directions(teacher: InnovationGenerator, n: int) -> Tensor:
    """``(m_0, n)`` orthonormal directions of level 1's latent: those that move its image most, to first order."""
    m_0 = teacher.V[0].shape[2]
    on = torch.special.ndtr(
        -teacher.b[0] / teacher.V[0].norm(dim=2).clamp_min(1e-12)
    )  # how often each neuron is active
    response = (teacher.W[0] * on[:, None]) @ teacher.V[0]
    _, _, right = torch.linalg.svd(response.reshape(-1, m_0), full_matrices=False)
    return right[:n].T


def distil(
    teacher: InnovationGenerator,
    student: DeconvGenerator,
    seed: int = 0,
    samples: int = SAMPLES,
    note: Callable[[str], None] = lambda message: None,
) -> None:
    """Fit ``student`` to ``teacher``, in place. Raises ``UserError`` where their images differ in size or channels."""
    sides = tuple(round(k**0.5) * round((d // teacher.image_channels) ** 0.5) for k, d in teacher.shapes)
    if sides != student.sides or teacher.image_channels != student.channels:
        raise UserError(
            f"--init: that run's images are {', '.join(map(str, sides))} px of {teacher.image_channels} channels, here they are "
            f"{', '.join(map(str, student.sides))} px of {student.channels}; make them equal"
        )
    plant_features(teacher, student)
    rng = torch.Generator().manual_seed(seed)
    R = directions(teacher, student.latent)
    device = next(student.parameters()).device
    optimizer = torch.optim.Adam(student.parameters(), RATE, (0.9, 0.99))
    training, steps = student.training, samples // BATCH
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(steps, 1))
    student.train()
    scale: list[Tensor] = []
    for step in range(steps):
        z = torch.randn(BATCH, student.latent, generator=rng)
        with torch.no_grad():
            latent = torch.zeros(BATCH, teacher.latent_dim)
            latent[:, : len(R)] = z[:, : R.shape[1]] @ R.T
            target = teacher.render(teacher.hidden(latent)).map(device=device)
        scale = scale or [x.var(0).mean() for x in target]
        drawn = student(z.to(device))
        loss = sum((F.mse_loss(a, b) / v for a, b, v in zip(drawn, target, scale)), torch.zeros((), device=device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % TOLD == 0:
            note(
                f"head start: {step * BATCH:,} of {samples:,} drawn samples, unexplained {float(loss.detach()) / len(scale):.3f}"
            )
    student.train(training)


@torch.no_grad()
def plant_features(teacher: InnovationGenerator, student: DeconvGenerator) -> None:
    """Give the student's output layers the teacher's features, evenly chosen over patches, plus and minus, centred in 6 x 6."""
    for l, output in enumerate(student.outputs):
        weight, bias = cast(Tensor, output.weight), cast(Tensor, output.bias)
        features = teacher.features(l)
        d = features.shape[1]
        side = round((d // teacher.image_channels) ** 0.5)
        flat = features[0].T if l else features.mT.reshape(-1, d)
        chosen = flat[torch.linspace(0, len(flat) - 1, min(len(flat), student.width // 2)).long()]
        tiles = chosen.reshape(-1, teacher.image_channels, side, side)
        if side > KERNEL:
            tiles = F.interpolate(tiles, size=KERNEL, mode="area")
        else:
            before = (KERNEL - side) // 2
            tiles = F.pad(tiles, (before, KERNEL - side - before) * 2)
        # An output deconvolution of stride 2 covers a pixel nine times; a tenth keeps its images of the size of the teacher's.
        pairs = 0.1 * torch.cat([tiles, -tiles])
        weight[: len(pairs)] = pairs
        bias.copy_(teacher.mean[l].reshape(-1, teacher.image_channels, side * side).mean((0, 2)))
