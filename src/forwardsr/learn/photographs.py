r"""``minmax`` on photographs (§6, agnostic learning): level by level, coarse to fine, from a few passes over the data; in closed
form but for the end of level 1.

=========  ================================================================================================================
level 1    features by the warm start, marginals and pairs of the Gaussians behind them (:mod:`forwardsr.learn.copula`); then all
           of it by descent in the sliced Wasserstein distance (:mod:`forwardsr.learn.sliced`)
level l    features by the warm start; their values by regression on the level below (:mod:`forwardsr.learn.upsampling`); what that
           leaves, by sparse innovations (:mod:`forwardsr.learn.innovations`)
=========  ================================================================================================================

The result is an :class:`InnovationGenerator`. A hidden layer above the first holds, for every patch, pairs :math:`(\pm\langle
w_r, B X_{l-1}\rangle)_+` of its features w_r, and pairs :math:`(M \pm g)_+` of its innovations.

A learning is a list of stages, one a level; each maps a state (named tensors) to the next and draws its randomness from ``(seed,
level)`` alone, so that one that stopped between two levels goes on from the state bit for bit.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from forwardsr.errors import UserError
from forwardsr.learn.copula import FirstLevel, features, learn_first_level
from forwardsr.learn.even import even_pairs
from forwardsr.learn.first_level_gan import learn_first_level_adversarially
from forwardsr.learn.innovations import Innovations, learn_innovations
from forwardsr.learn.sliced import learn_first_level_sliced
from forwardsr.learn.stream import Stream, mix
from forwardsr.learn.upsampling import Moments, learn_upsampling
from forwardsr.learn.windows import ring, through, window
from forwardsr.model.innovation_generator import InnovationGenerator

State = dict[str, Tensor]
FEWEST = 50  # images: fewer have no law to speak of
LAW_SAMPLES = 50_000  # level 1 and the features look at no more
SAMPLE_NUMBERS = 2**19  # patches times samples that a level's innovations are learned from: bounds the memory
SAMPLES = 4000  # and no more samples than these
FEATURE_PATCHES = 40_000
FEATURE_ENERGY = 0.999  # of a level's patches, that its features must hold

LAWS: Mapping[str, Callable[[Tensor, torch.Generator, int, str], FirstLevel]] = {
    "sliced": learn_first_level_sliced,
    "copula": lambda x, generator, channels, precision: learn_first_level(x, generator),
    "adversarial": lambda x, generator, channels, precision: learn_first_level_adversarially(x, generator, channels),
}
"""How level 1 is learned, by ``--level1``: from its patches ``(n, k, d)``, a generator, the image's channels and a precision."""


@dataclass(frozen=True)
class LevelRecord:
    """What a stage was, took and found."""

    level: int
    total: int
    name: str
    seconds: float
    metrics: dict[str, float]


def learn_photographs(
    stream: Stream,
    image_channels: int,
    seed: int = 0,
    innovation: float = 1.0,
    on_stage: Callable[[LevelRecord, State], None] | None = None,
    resume: State | None = None,
    level1: str = "sliced",
    precision: str = "float32",
) -> InnovationGenerator:
    """Learn the images of ``stream``, cut into its patches.

    ``innovation``: a factor on what the finer levels add; below 1 pictures are smoother than the data. ``level1``: one of
    :data:`LAWS`, of which ``sliced`` computes in ``precision``. ``on_stage`` is called after each level with its record and the
    state; that state, given as ``resume``, goes on from there. Raises ``UserError`` for fewer than 50 images, or levels that do
    not double.
    """
    sides = [round(k**0.5) for k, _ in stream.sizes]
    if any(b != 2 * a for a, b in pairwise(sides)) or any(a * a != k for a, (k, _) in zip(sides, stream.sizes)):
        raise UserError(f"{stream.source.name}: photographs need square levels that double, not {sides} patches a side")
    if stream.available(FEWEST) < FEWEST:
        raise UserError(f"{stream.source.name}: {stream.available(FEWEST)} images have no law; give at least {FEWEST}")
    state: State = dict(resume or {})
    total = len(sides)
    sample = _sample(stream, total, seed)
    sizes = [x.shape[1] for x in sample[1:]]  # samples that a finer level is fitted to
    contrast: Tensor | None = None
    drawn: tuple[Tensor, Tensor] | None = None
    moments: list[Moments] = []
    for l in range(total):
        random = torch.Generator().manual_seed(mix(seed, l))
        start = time.monotonic()
        done = f"W{l + 1}" in state
        if not done and l == 0:
            law = torch.cat([chunk[0] for chunk in stream.chunks(LAW_SAMPLES, 1, salt=3)], 1)
            metrics = _first_stage(
                state, LAWS[level1](law.transpose(0, 1), random, image_channels, precision), law.shape[1]
            )
        elif not done:
            assert contrast is not None
            assert drawn is not None
            moments = moments or _moments(stream, l, sample)  # of this level and all finer ones, from one pass
            metrics = _finer_stage(
                state,
                moments.pop(0),
                l,
                [x[:, : sizes[l - 1]] for x in sample[l - 1 : l + 1]],
                contrast,
                drawn,
                image_channels,
                innovation,
                random,
            )
        if l + 1 < total:
            n, below = sizes[l], torch.Generator().manual_seed(mix(seed, total + 1 + l))
            contrast = _contrast(
                state, l, [x[:, :n] for x in sample[: l + 1]], None if contrast is None else contrast[:, :n]
            )
            drawn = _first_drawn(state, sizes, below) if drawn is None else _drawn(state, l, n, *drawn, below)
        if not done and on_stage is not None:
            name = "law" if l == 0 else "upsampling and innovations"
            on_stage(LevelRecord(l + 1, total, name, time.monotonic() - start, metrics), state)
    return InnovationGenerator.from_tensors({k: t for k, t in state.items() if "." not in k}, image_channels)


def _sample(stream: Stream, levels: int, seed: int) -> list[Tensor]:
    """Images that everything but the regressions is learned from, patch first, all levels; more of the coarsest.

    In random order, so that the first n are like all: a source may hold its images folder by folder.
    """
    total = stream.available(SAMPLES)
    place = torch.randperm(total, generator=torch.Generator().manual_seed(mix(seed, levels)))
    sample = [torch.empty(k, min(total, max(FEWEST, SAMPLE_NUMBERS // k)), d) for k, d in stream.sizes]
    start = 0
    for chunk in stream.chunks(total, levels, salt=1):
        to = place[start : start + chunk[0].shape[1]]
        for kept, x in zip(sample, chunk):
            here = to < kept.shape[1]
            kept[:, to[here]] = x[:, here]
        start += len(to)
    return sample


def _first_stage(state: State, found: FirstLevel, samples: int) -> dict[str, float]:
    state |= {
        "W1": found.W, "V1": found.V, "b1": found.b, "mean1": found.mean, "basis1.": found.basis,
        "contrast1.": found.contrast,
    }  # fmt: skip
    return {"samples": float(samples), "channels": float(found.W.shape[2])}


def _moments(stream: Stream, first: int, sample: list[Tensor]) -> list[Moments]:
    """What super-resolution from level ``first - 1`` to ``first`` (0-based), and so on, is learned from: all samples."""
    mean, sides = [x.mean(1) for x in sample], [round(len(x) ** 0.5) for x in sample]
    found = [Moments(window(sides[l - 1])[0], mean[l - 1], mean[l]) for l in range(first, len(sample))]
    for chunk in stream.chunks(stream.available(2**62), len(sample), salt=2):
        for l, own in enumerate(found, start=first):
            own.add(chunk[l - 1], chunk[l])
    return found


def _finer_stage(
    state: State, moments: Moments, l: int, sample: list[Tensor], contrast: Tensor, drawn: tuple[Tensor, Tensor],
    channels: int, innovation: float, random: torch.Generator,
) -> dict[str, float]:  # fmt: skip
    """``sample``: level ``l - 1`` and level ``l`` of real images; ``contrast``, ``drawn``: see :func:`_contrast`, :func:`_drawn`."""
    (x, y), patches = sample, drawn[0]
    d = y.shape[2]
    parents, kinds = window(round(len(x) ** 0.5))
    around = ring(round(len(y) ** 0.5))
    up = learn_upsampling(moments, kinds)
    y = y - up.mean[:, None]
    F = _features(y, random)
    state |= {f"B{l + 1}.": up.B, f"below{l + 1}.": up.below, f"F{l + 1}.": F, f"mean{l + 1}": up.mean}
    state[f"parents{l + 1}"], state[f"around{l + 1}"] = parents, around
    own = learn_innovations(
        y - through(x - up.below[:, None], parents, up.B),
        y,
        contrast,
        drawn[1],
        lambda at, some: through(patches[:, some] - up.below[:, None], parents[at], up.B[at]),
        parents,
        kinds,
        channels,
        round((d // channels) ** 0.5),
        random,
    )
    _assemble(state, l, own, innovation)
    return {
        "held-out error": up.errors[up.sharing] / max(up.variance, 1e-12),
        "sharing": up.sharing,
        "features": float(F.shape[1]),
        "innovations": float(own.D.shape[1]),
        "active": own.active,
        "silence": own.silence,
        "rise": own.rise,
    }


def _first_drawn(state: State, sizes: list[int], random: torch.Generator) -> tuple[Tensor, Tensor]:
    """Patches ``(k, n, d)`` and contrasts ``(k, n, f)`` of level 1 in as many samples as the next level is fitted to.

    They are even, and so are the first n of them for every n of ``sizes``: what is fitted to them inherits their noise.
    """
    V, parts = state["V1"], []
    for first, last in pairwise(sorted({0, *sizes})):
        z = even_pairs(last - first, V.shape[2], random)
        hidden = torch.baddbmm(-state["b1"][:, None], z.expand(len(V), -1, -1), V.mT).relu_()
        parts.append((hidden @ state["W1"].mT + state["mean1"][:, None], hidden @ state["contrast1."]))
    patches, contrasts = zip(*parts)
    return torch.cat(patches, 1), torch.cat(contrasts, 1)


def _drawn(
    state: State, l: int, n: int, patches: Tensor, contrast: Tensor, random: torch.Generator
) -> tuple[Tensor, Tensor]:
    """The same of level ``l`` (0-based) in the first ``n`` samples, from those of the level below: as the network draws them, but by
    the parts that its V_l and W_l are products of, which is a tenth of the work.
    """
    B, below, F, slope = (state[f"{name}{l + 1}."] for name in ("B", "below", "F", "slope"))
    parents, around, q = state[f"parents{l + 1}"], state[f"around{l + 1}"], slope.shape[2]
    new = slice(2 * F.shape[1], 2 * F.shape[1] + q)  # neurons of M + g
    root, details = state[f"U{l + 1}"][0, :, new].mT, state[f"W{l + 1}"][:, :, new]
    values = through(patches[:, :n] - below[:, None], parents, B @ F)
    M = through(contrast[:, :n], parents, slope) - state[f"b{l + 1}"][:, None, -q:]
    noise = torch.randn(int(around.max()) + 1, n, q, generator=random)
    g = through(noise, around, root.flatten(0, 1).expand(len(around), -1, -1))
    more, less = (M + g).relu_(), (M - g).relu_()
    drawn = state[f"mean{l + 1}"][:, None] + values @ F.T + (more - less) @ details.mT
    return drawn, torch.cat([values.abs_(), more + less], 2)


def _features(x: Tensor, random: torch.Generator) -> Tensor:
    """``(d, r)`` orthonormal features of a level's centred patches ``(k, n, d)``, of all positions together."""
    d = x.shape[2]
    patches = x.reshape(-1, d)
    patches = patches[torch.randperm(len(patches), generator=random)[:FEATURE_PATCHES]]
    energy = torch.linalg.eigvalsh(patches.T @ patches).flip(0).clamp_min(0)
    r = min(d, int((energy.cumsum(0) < FEATURE_ENERGY * energy.sum()).sum()) + 1)
    return features((patches - patches.mean(0))[:, None], r, random)[0]


def _assemble(state: State, l: int, own: Innovations, innovation: float) -> None:
    """W, V, b, U of level ``l`` (0-based) from its parts; the neurons are F, -F, and those of M + g and M - g."""
    parents, B, F = state[f"parents{l + 1}"], state[f"B{l + 1}."], state[f"F{l + 1}."]
    j, p = parents.shape
    d, q = own.D.shape
    below, C = state[f"W{l}"], state[f"contrast{l}."]
    values = (B @ F).view(j, p, d, -1).mT @ below[parents]
    shift = (state[f"mean{l}"] - state[f"below{l + 1}."])[parents].reshape(j, 1, p * d) @ B @ F
    gates = own.slope.view(j, p, -1, q).mT @ C[parents].mT
    state[f"V{l + 1}"] = torch.cat([values, -values, gates, gates], 2).contiguous()
    state[f"b{l + 1}"] = torch.cat([-shift[:, 0], shift[:, 0], own.offset, own.offset], 1)
    details = innovation * own.D * own.scale[:, None]
    state[f"W{l + 1}"] = torch.cat([F.expand(j, -1, -1), -F.expand(j, -1, -1), details, -details], 2)
    turn, silent = own.root.mT, torch.zeros(9, 2 * F.shape[1], q)
    state[f"U{l + 1}"] = torch.cat([silent, turn, -turn], 1)[None].contiguous()
    eye_r, eye_q = torch.eye(F.shape[1]), torch.eye(q)
    sums = torch.block_diag(torch.cat([eye_r, eye_r]), torch.cat([eye_q, eye_q]))
    state[f"contrast{l + 1}."] = sums.expand(j, -1, -1)
    state[f"D{l + 1}."], state[f"scale{l + 1}."] = own.D, own.scale
    state[f"slope{l + 1}."] = own.slope


def _contrast(state: State, l: int, sample: list[Tensor], below: Tensor | None) -> Tensor:
    """Contrasts ``(k, n, f)`` of real samples at level ``l``, as the network would have them on drawn ones."""
    if l == 0 or below is None:
        return ((sample[0] - state["mean1"][:, None]) @ state["basis1."]).abs()
    parents, B = state[f"parents{l + 1}"], state[f"B{l + 1}."]
    predicted = through(sample[l - 1] - state[f"below{l + 1}."][:, None], parents, B)
    D = state[f"D{l + 1}."]
    y = (sample[l] - state[f"mean{l + 1}"][:, None] - predicted) @ D / state[f"scale{l + 1}."].clamp_min(1e-9)[:, None]
    M = through(below, parents, state[f"slope{l + 1}."]) - state[f"b{l + 1}"][:, None, -D.shape[1] :]
    seen = torch.where(M > 0, torch.maximum(2 * M, y.abs()), y.abs())
    return torch.cat([(predicted @ state[f"F{l + 1}."]).abs(), seen], 2)
