r"""``--init RUN`` from a ``minmax`` run: the deconvolutional generator starts from what the theorem's algorithm learned in seconds.

With the teacher G (an :class:`InnovationGenerator`) and the student D (a :class:`DeconvGenerator` with innovations), both functions
of one latent z = (z_1, ..., z_L),

.. math::
    \min_D E_z \sum_l \frac{\|D_l(z) - G_l(z)\|^2}{v_l} + \frac{\|\Delta(D_l(z) - G_l(z))\|^2}{w_l}, \qquad
    v_l = E\|G_l - E G_l\|^2, \quad w_l = E\|\Delta G_l - E \Delta G_l\|^2,

:math:`\Delta X` the picture less its means over 2 x 2 pixels: its finest band is a few hundredths of its variance, and what is fitted
to variance alone is blurred. The latents are the same numbers: the teacher's patches of 4 pixels are the student's places, and z_l
lies on their grid, one wider on every side, in both. (Patches of another size have no such places: their innovations are left out, in
target and student.) The student's output features are the teacher's first: a pair of channels a feature. Adam on fresh samples, of
level 1 alone (which costs little, and is what all others are made of) and then of all levels; at the end the variance that the
regression has left out is given back (:func:`restore_variance`). No real image is used.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional as F

from forwardsr.data.pyramid import Pyramid
from forwardsr.errors import UserError
from forwardsr.learn.joint import calibrate
from forwardsr.model.convolution import KERNEL
from forwardsr.model.deconv_generator import DeconvGenerator
from forwardsr.model.innovation_generator import InnovationGenerator

# Reasons are scores at the start (faces, 32 px, 2,048 samples; the teacher's is 0.28).
SAMPLES = 32_768  # drawn from the teacher for all levels: 1.17 with half as many, 0.98 with these, a minute of a core
FIRST = 4  # times as many for level 1 alone: 0.88 in place of 0.98, for a third of the time
COMPARED = 1024  # samples whose variances are compared: 0.61 in place of 0.88
BATCH = 32
RATE = 3e-3  # Adam's, falling to 0 along a cosine: 6e-3 is worse
NOTES = 8  # on the progress of each of the two fits


def latents(teacher: InnovationGenerator) -> tuple[int, int]:
    """The length of z_1 and the channels of innovations of a student that takes all latents of ``teacher``."""
    return teacher.V[0].shape[2], max(q for _, q in teacher.innovations) if _aligned(teacher) else 0


def _aligned(teacher: InnovationGenerator) -> bool:
    grids = zip(_sides(teacher)[1:], teacher.innovations)
    return len(teacher.W) > 1 and all(count == (side // 4 + 2) ** 2 for side, (count, _) in grids)


def _sides(teacher: InnovationGenerator) -> tuple[int, ...]:
    return tuple(round(k**0.5) * round((d // teacher.image_channels) ** 0.5) for k, d in teacher.shapes)


def teachers(z: Tensor, student: DeconvGenerator, teacher: InnovationGenerator) -> Tensor:
    """The latents of ``teacher`` ``(n, m_0)`` that are the same numbers as the student's ``z`` ``(n, student.latent_dim)``."""
    first, innovations = student.parts(z)
    found = [first]
    for own, (count, q) in zip(innovations, teacher.innovations):
        found.append(z.new_zeros(len(z), count * q) if own is None else own[:, :q].permute(0, 2, 3, 1).flatten(1))
    return torch.cat(found, 1)


def distil(
    teacher: InnovationGenerator,
    student: DeconvGenerator,
    seed: int = 0,
    samples: int = SAMPLES,
    precision: str = "float32",
    note: Callable[[str], None] = lambda message: None,
) -> None:
    """Fit ``student`` to ``teacher``, in place; ``precision`` float32 or bfloat16 (autocast). Raises ``UserError`` where their
    images differ in size or channels, ``ValueError`` where their latents do.
    """
    sides = _sides(teacher)
    if sides != student.sides or teacher.image_channels != student.channels:
        raise UserError(
            f"--init: that run's images are {', '.join(map(str, sides))} px of {teacher.image_channels} channels, here they are "
            f"{', '.join(map(str, student.sides))} px of {student.channels}; make them equal"
        )
    if (student.latent, student.innovations) != latents(teacher):
        raise ValueError(f"a student of this run has {latents(teacher)} latents and innovations")
    plant_features(teacher, student)
    rng, training = torch.Generator().manual_seed(seed), student.training
    student.train()
    for levels, count in ((1, FIRST * samples), (len(sides), samples)):
        _fit(teacher, student, levels, count, rng, precision, note)
    calibrate(student, range(len(sides)), seed)
    restore_variance(teacher, student, rng)
    student.train(training)


def _fit(
    teacher: InnovationGenerator,
    student: DeconvGenerator,
    levels: int,
    samples: int,
    rng: torch.Generator,
    precision: str,
    note: Callable[[str], None],
) -> None:
    """The objective of the coarsest ``levels``."""
    device = next(student.parameters()).device
    optimizer, steps = torch.optim.Adam(student.parameters(), RATE, (0.9, 0.99)), samples // BATCH
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(steps, 1))
    scale: list[Tensor] = []
    for step in range(steps):
        z = torch.randn(BATCH, student.latent_dim, generator=rng)
        with torch.no_grad():
            target = teacher.render(teacher.hidden(teachers(z, student, teacher), levels)).map(device=device)
        wanted = [*target, *map(finest, target)]
        scale = scale or [x.var(0).mean().clamp_min(1e-12) for x in wanted]
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            drawn = student.render(student.hidden(z.to(device), levels))
        errors = torch.stack([F.mse_loss(a, b) / v for a, b, v in zip([*drawn, *map(finest, drawn)], wanted, scale)])
        optimizer.zero_grad()
        errors.sum().backward()
        optimizer.step()
        schedule.step()
        if step % max(1, steps // NOTES) == 0:
            which = "level 1" if levels == 1 else "all levels"
            unexplained = float(errors.detach()[:levels].mean())
            note(f"head start, {which}: {step * BATCH:,} of {samples:,} drawn samples, unexplained {unexplained:.3f}")


@torch.no_grad()
def restore_variance(teacher: InnovationGenerator, student: DeconvGenerator, rng: torch.Generator) -> None:
    r"""Give every level of ``student`` (in evaluation mode) the variance of the teacher's, in its finest band and in the rest.

    What a regression does not explain it leaves out. With r and t the square roots of the teacher's variance over the student's in
    either band, :math:`W_l \gets r\,(W_l - \Delta W_l) + t\,\Delta W_l`, the same bands of the features: blocks of 2 x 2 pixels are
    places of a deconvolution of stride 2. :math:`\mu_l` keeps the mean colour the teacher's.
    """
    device = next(student.parameters()).device
    drawn: list[Pyramid] = []
    target: list[Pyramid] = []
    for _ in range(COMPARED // BATCH):
        z = torch.randn(BATCH, student.latent_dim, generator=rng)
        drawn.append(student(z.to(device)))
        target.append(teacher.render(teacher.hidden(teachers(z, student, teacher))))
    for output, y, x in zip(student.outputs, Pyramid.cat(drawn), Pyramid.cat(target)):
        x = x.to(device)
        fine, coarse = (
            (a.var(0).mean() / b.var(0).mean().clamp_min(1e-12)).sqrt()
            for a, b in ((finest(x), finest(y)), (x - finest(x), y - finest(y)))
        )
        weight, bias = cast(Tensor, output.weight), cast(Tensor, output.bias)
        bias.copy_(x.mean((0, 2, 3)) - coarse * (y.mean((0, 2, 3)) - bias))
        weight.copy_(coarse * (weight - finest(weight)) + fine * finest(weight))


def finest(x: Tensor) -> Tensor:
    """``(n, c, h, w)`` less its means over 2 x 2 pixels."""
    return x - F.avg_pool2d(x, 2).repeat_interleave(2, 2).repeat_interleave(2, 3)


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
