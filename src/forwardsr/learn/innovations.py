r"""What a finer level adds on photographs: sparse innovations whose activity the coarser level controls.

The residual of :mod:`forwardsr.learn.upsampling` is written in details of 2 x 2 pixels (so that pooling the finer image still gives
the coarser one: forward super-resolution holds exactly), each the difference of two neurons,

.. math:: y = s\,[(M + g)_+ - (M - g)_+], \qquad g \sim N(0, 1), \qquad M = \langle v, S_{l-1}\rangle - b .

For M < 0 that is sparse, :math:`\mathrm{sign}(g)(|g| - |M|)_+`, and for M > 0 dense. So an innovation that must be large where the
coarse picture has contrast, and absent on a smooth cheek or sky, is what the paper's first hidden layer already is: a thresholded
Gaussian, whose threshold the coarser level moves.

* *Activity.* Contrasts are absolute values; their positive and negative parts apart gain nothing on faces or buildings.
  :math:`\hat M` = E|y| given the contrasts of the level below, relative to its mean, by ridge regression shared by the patches of a
  kind, with relative errors: where the picture is smooth a small absolute error is a great one.
* *Fed its own output* the level keeps its law: the activity of drawn samples is made to be distributed like that of real ones
  by the line nearest to their sorted values, for each detail of each patch, and s, the scale, has the right E y^2 on drawn samples
  (D4's task). Else what a coarser level gets wrong about contrast would grow from level to level.
* *Its law*, ``M = A + rho Mhat``, is the one with which drawn details are nearest to real ones (:mod:`.innovation_law`).
* *Pairs* (the task of D5): the correlation of y over 3 x 3 patches, mapped to that of g, and the middle of its symmetric root
  as ``U_l``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from forwardsr.learn.innovation_law import choose_law
from forwardsr.learn.windows import KINDS, gather, through
from forwardsr.sorting import sort_rows

ENERGY = 0.99  # of the residual, that the details kept must hold
TYPICAL = -0.7  # M at which correlations are mapped
RIDGE = 0.05  # of the activity's regression, in mean squares of the contrasts
TURNS = (4, 1)  # of the regression and its weights, and which part of the rows they are of; two more are no better
SMOOTH = 0.15  # activity, relative to its mean, below which patches are equally smooth
PAIRED = 60_000  # patches the correlations are taken over
ROWS = 20_000  # patches a kind's regression looks at
FAR = 6.0  # |M| beyond which E y^2 no longer changes
SMALL = 0.05  # of a contrast's mean over patches: below it a patch's own mean is no measure


def _phi(t: Tensor) -> Tensor:
    return torch.exp(-t.square() / 2) / (2 * torch.pi) ** 0.5


def mean_square(M: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
    """``E [(M + g)_+ - (M - g)_+]^2`` for a standard Gaussian g."""
    t = M.abs()
    tail = torch.special.ndtr(-t)
    sparse = (1 + t * t).mul_(tail).sub_(t.mul_(_phi(t))).mul_(2)
    return sparse.add_((M > 0) * (4 - 8 * tail))  # dense, where M > 0


@functools.cache
def _attenuation() -> tuple[Tensor, Tensor]:
    """The correlation of g and that of y at :data:`TYPICAL` M, on a grid: 2^17 seeded pairs."""
    g, h = torch.randn(2, 2**17, generator=torch.Generator().manual_seed(0))
    rho = torch.linspace(0, 0.999, 41)
    other = rho[:, None] * g + (1 - rho.square()).sqrt()[:, None] * h
    y, v = ((TYPICAL + x).relu() - (TYPICAL - x).relu() for x in (g, other))
    found = (y * v).mean(1) / (y.square().mean() * v.square().mean(1)).sqrt()
    return rho, found.cummax(0).values


def latent_correlation(c: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
    """The correlation that g needs for y to have the correlation ``c``."""
    rho, found = _attenuation()
    size = c.abs().clamp(float(found[0]), float(found[-1]))
    i = torch.searchsorted(found, size.contiguous()).clamp(1, len(found) - 1)
    low, high = found[i - 1], found[i]
    return c.sign() * (rho[i - 1] + (size - low) / (high - low).clamp_min(1e-6) * (rho[i] - rho[i - 1]))


def details(channels: int, patch: int, colours: Float[Tensor, "c c"]) -> Float[Tensor, "d q"]:
    """Orthonormal details of the 2 x 2 blocks of a patch ``(c, patch, patch)``, q = 3/4 d: three a block and colour.

    ``colours``: orthonormal columns. An odd ``patch`` leaves its last row and column without.
    """
    blocks = patch // 2
    signs = torch.tensor([[1.0, 1, -1, -1], [1, -1, 1, -1], [1, -1, -1, 1]]).view(3, 2, 2) / 2
    plane = torch.zeros(blocks, blocks, 3, patch, patch)
    for y in range(blocks):
        for x in range(blocks):
            plane[y, x, :, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2] = signs
    found = torch.einsum("ca,kyx->cyxka", colours, plane.view(-1, patch, patch))
    return found.reshape(channels * patch * patch, -1)


@dataclass(frozen=True)
class Innovations:
    """Of one level: ``D (d, q)`` details; ``scale (j, q)``; ``slope (j, p f, q)`` and ``offset (j, q)``: ``M = slope contrast
    - offset``; ``root (9, q, q)``: g from the innovations around; ``silence`` A, ``rise`` rho; ``active``: how often y is not zero.
    """

    D: Tensor
    scale: Tensor
    slope: Tensor
    offset: Tensor
    root: Tensor
    silence: float
    rise: float
    active: float


def learn_innovations(
    residual: Float[Tensor, "j n d"],
    real: Float[Tensor, "j n d"],
    contrast: Float[Tensor, "k n f"],
    drawn: Float[Tensor, "k n f"],
    expected: Callable[[Tensor, slice], Tensor],
    parents: Int64[Tensor, "j p"],
    kinds: Int64[Tensor, " j"],
    channels: int,
    patch: int,
    generator: torch.Generator,
) -> Innovations:
    """Fit the law of the module's head to the residuals of the sample ``real``, given the contrasts of the level below.

    ``drawn``: contrasts of as many samples of the levels learned so far, and ``expected``, from indices ``(w,)`` and a slice of
    samples: what is predicted of those patches ``(w, n, d)`` in them.
    """
    j, _, _ = residual.shape
    D = _kept(residual, channels, patch)
    q = D.shape[1]
    y = residual @ D
    average = contrast.mean(1)
    average = average.clamp_min(float(SMALL * average.mean())).clamp_min(1e-6)
    slope, level = _activity(contrast / average[:, None], y, parents, kinds, generator)
    own = slope[kinds].view(j, parents.shape[1], -1, q) / average[parents][..., None]
    own = own.reshape(j, -1, q)
    active, rolled = (through(x, parents, own).add_(level[kinds][:, None]) for x in (contrast, drawn))
    lift, gain = _matched(rolled, active)
    root = _middle(latent_correlation(_neighbours(y / active.clamp_min(SMOOTH))))
    power = y.square().mean(1)
    rolled = lift + gain * rolled
    silence, rise = choose_law(real, expected, rolled, root, power, D, channels, patch, generator)
    M = (silence + rise * rolled).clamp(-FAR, FAR)
    scale = (power / mean_square(M).mean(1).clamp_min(1e-6)).sqrt()
    offset = -(silence + rise * (lift[:, 0] + gain[:, 0] * level[kinds]))
    active_often = float((2 * torch.special.ndtr(M)).clamp_max(1).mean())
    return Innovations(D, scale, own * (rise * gain), offset, root, silence, rise, active_often)


def _matched(
    drawn: Float[Tensor, "j n q"], real: Float[Tensor, "j n q"]
) -> tuple[Float[Tensor, "j 1 q"], Float[Tensor, "j 1 q"]]:
    """(lift, gain) with which the activity of drawn samples is distributed most like that of real ones: least squares of their
    sorted values.
    """
    x, y = (sort_rows(v.mT.contiguous()) for v in (drawn, real))
    mean_x, mean_y = x.mean(2), y.mean(2)
    x -= mean_x[..., None]
    gain = (x * (y - mean_y[..., None])).mean(2) / x.square().mean(2).clamp_min(1e-9)
    return (mean_y - gain * mean_x)[:, None], gain[:, None]


def _kept(residual: Tensor, channels: int, patch: int) -> Tensor:
    """The details that hold :data:`ENERGY` of the residual's, ``(d, q)``, in colours of its own."""
    rows = residual.flatten(0, 1)
    moments = rows.T @ rows / len(rows)
    pixels = moments.view(channels, patch * patch, channels, -1).diagonal(dim1=1, dim2=3)
    D = details(channels, patch, torch.linalg.eigh(pixels.sum(2)).eigenvectors.flip(1))
    power = (D * (moments @ D)).sum(0)
    order = power.argsort(descending=True)
    enough = int((power[order].cumsum(0) < ENERGY * power.sum()).sum()) + 1
    return D[:, order[:enough].sort().values]


def _activity(
    relative: Tensor, y: Tensor, parents: Tensor, kinds: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Regression of |y| / E|y| on the contrasts, a kind at a time: ``(KINDS, p f, q)`` and ``(KINDS, q)``.

    Rows are weighted by the inverse square of what is predicted of the whole patch, and so by turns: the error of a size is
    proportional to it, and where the picture is smooth a small absolute error is a great one.
    """
    size = y.abs().mean(1).clamp_min(1e-6)
    inputs, q = parents.shape[1] * relative.shape[2], y.shape[2]
    slope, level = torch.zeros(KINDS, inputs, q), torch.ones(KINDS, q)
    for kind in kinds.unique().tolist():
        mine = (kinds == kind).nonzero()[:, 0]
        pick = torch.randperm(y.shape[1], generator=generator)[: max(1, ROWS // len(mine))]
        x = gather(relative[:, pick], parents[mine]).flatten(0, 1)
        t = (y[mine[:, None], pick].abs_() / size[mine][:, None]).flatten(0, 1)
        x = torch.cat([x, torch.ones(len(x), 1)], 1)
        weight = torch.ones(len(x), 1)
        for part in TURNS:
            some = x[::part]
            rows = some * (weight / weight.mean())[::part]
            gram = rows.T @ some / len(rows)
            ridge = RIDGE * gram.diagonal()[:-1].mean().clamp_min(1e-9) * torch.eye(inputs + 1)
            ridge[-1, -1] = 0
            found = torch.linalg.solve(gram + ridge, rows.T @ t[::part] / len(rows))
            weight = (x @ found.mean(1, keepdim=True)).clamp_min(SMOOTH).square().reciprocal()
        slope[kind], level[kind] = found[:-1], found[-1]
    return slope, level


def _neighbours(unit: Float[Tensor, "j n q"]) -> Float[Tensor, "s s"]:
    """Correlations over 3 x 3 patches (s = 9 q), pooled over the patches that have all their neighbours; the identity where
    none has.
    """
    j, n, q = unit.shape
    grid = round(j**0.5)
    row, column = torch.arange(j) // grid, torch.arange(j) % grid
    centres = ((row > 0) & (row < grid - 1) & (column > 0) & (column < grid - 1)).nonzero()
    if not len(centres):
        return torch.eye(9 * q)
    step = torch.tensor([dy * grid + dx for dy in (-1, 0, 1) for dx in (-1, 0, 1)])
    pick = max(1, min(n, PAIRED // len(centres)))
    rows = gather(unit[:, :pick], centres + step).flatten(0, 1)
    c = rows.T @ rows / len(rows)
    scale = c.diagonal().clamp_min(1e-12).rsqrt()
    return c * scale * scale[:, None]


def _middle(c: Float[Tensor, "s s"]) -> Float[Tensor, "9 q q"]:
    """The middle columns of the symmetric root of correlations over 3 x 3 patches, each of unit length."""
    q = len(c) // 9
    values, vectors = torch.linalg.eigh(c.double().fill_diagonal_(1.0))
    root = ((vectors * values.clamp_min(0).sqrt()) @ vectors.T)[:, 4 * q : 5 * q].float()
    return (root / root.norm(dim=0)).view(9, q, q)
