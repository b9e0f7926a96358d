r"""Which law the innovations of a level have: the one whose drawn details are nearest to real ones.

For ``M = A + rho Mhat``, Mhat the activity that the coarser level predicts (1 on average), the pair (A, rho) minimises

.. math:: E_{j, \theta}\, W_1(\langle\theta, H X_{l,j}\rangle, \langle\theta, H X_{l,j}^*\rangle) / \mathrm{sd} ,

the sliced Wasserstein distance (Rabin et al. 2011) of what is finest (H, the last band of a Laplacian pyramid) in windows of 2 x 2
patches j, the X_l drawn by the levels learned so far. What is finest is the level's details and the steps between the coarser one's
pixels, which on a smooth cheek or sky cancel: judged by details alone, buildings at 48 px were a twentieth further off.
Judged one patch at a time, on real pictures, a law may have the sizes of single details right and not see that they are large
together, window by window: its drawn pictures are too busy here and too empty there, and the next level makes it worse. On faces
and buildings ``A + rho`` is -1.2 to 0.6 (a detail of typical activity is on in a quarter to all of samples) and must be known
to a tenth; rho matters less, and the steeper the law, the more it is a switch: off where the picture is smooth, Gaussian where it
is busy.

=============  ==========  =======================================================================================================
setting        default     reason
=============  ==========  =======================================================================================================
RISE           2 to 8      rho: from a gentle law, with a few innovations everywhere, to a switch
STEP           0.3         of A + rho, downhill, and then to the vertex of the parabola through the lowest three: the distance is
                           smooth in it, and so that is within 0.02 of its minimum
START          5, -0.7     rho and A + rho where the search begins; from rho to rho on while that is nearer
BOUNDS         -1.5, 1.5   of A + rho. Where what is predicted is too loud, as after few images, innovations so rare that no
                           direction sees them would be nearest, and each a spot; at the upper one nearly all are on
WINDOWS        48          places that are looked at: few of them may all be of the background
SAMPLES        4096        at most (there are 4000, and 2048 at 64 px), drawn and real, each looked at in a quarter of the windows;
                           half of them, seen in half as many directions, took a steeper law than is best on buildings
DIRECTIONS     128         theta, Gaussian in a box, sum zero in each colour
SIDES          1/4 to 1    of a box, in windows: most are whole; with small ones alone the law is too sparse, with none too dense
=============  ==========  =======================================================================================================
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from forwardsr.data.scale import of_finest
from forwardsr.learn.sliced import boxes
from forwardsr.learn.windows import ring
from forwardsr.sorting import sort_rows

RISE = (2.0, 3.0, 5.0, 8.0)
STEP = 0.3
START = (5.0, -0.7)
BOUNDS = (-1.5, 1.5)  # of A + rho
WINDOWS, SAMPLES, SHARES, DIRECTIONS = 48, 4096, 4, 128
TOGETHER = 4  # windows whose details are drawn at once: they should stay near the processor
SIDES = (0.25, 0.5, 1.0, 1.0, 1.0)  # of a box, in sides of a window


def choose_law(
    real: Float[Tensor, "j n d"],
    expected: Callable[[Tensor, slice], Tensor],
    active: Float[Tensor, "j m q"],
    root: Float[Tensor, "9 q q"],
    power: Float[Tensor, "j q"],
    D: Float[Tensor, "d q"],
    channels: int,
    patch: int,
    generator: torch.Generator,
) -> tuple[float, float]:
    """(A, rho) for the images ``real``, their mean subtracted.

    ``expected``: from indices ``(w,)`` and a slice of drawn samples, what is predicted of those patches ``(w, n, d)`` in them;
    ``active``: their Mhat; ``root``: g from the innovations around; ``power``: E y^2.
    """
    grid, n, q = round(len(real) ** 0.5), min(SAMPLES, real.shape[1], active.shape[1]) // SHARES, D.shape[1]
    corner = torch.randperm((grid - 1) ** 2, generator=generator)[:WINDOWS]
    corner = corner // (grid - 1) * grid + corner % (grid - 1)
    at = (corner[:, None] + torch.tensor([0, 1, grid, grid + 1])).flatten()
    parts = enumerate(at.view(-1, 4).tensor_split(SHARES))
    shares = [(part.flatten(), slice(i * n, (i + 1) * n)) for i, part in parts]
    views = _views(channels, patch, generator)
    of_details = D.T @ views

    def sample_last(x: Float[Tensor, "p n d"]) -> Float[Tensor, "w s n"]:
        return x.view(-1, 4, *x.shape[1:]).transpose(2, 3).flatten(1, 2)

    def rows(projected: Float[Tensor, "w r n"]) -> Float[Tensor, "r s"]:
        return projected.transpose(0, 1).flatten(1)

    whole = views.flatten(0, 1).T
    wanted = sort_rows(rows(torch.cat([whole @ sample_last(real[part, some]) for part, some in shares])))
    spread = wanted.std(1).clamp_min(1e-9)
    cells, around = ring(grid)[at].unique(return_inverse=True)
    z = torch.randn(len(cells), n, q, generator=generator)
    g = sample_last(sum(z[around[:, i]] @ own for i, own in enumerate(root)))
    busy = sample_last(torch.cat([active[part, some] for part, some in shares])).sub_(1)
    base = torch.cat([whole @ sample_last(expected(part, some)) for part, some in shares])
    weights = of_details.flatten(0, 1).T * power[at].sqrt().view(-1, 1, 4 * q)

    @functools.cache
    def distance(rise: float, typical: float) -> float:
        """Of the law with rho = ``rise`` and A + rho = ``typical``."""
        if not BOUNDS[0] <= typical <= BOUNDS[1]:
            return math.inf
        drawn = torch.empty_like(base)
        for one in range(0, len(base), TOGETHER):
            part = slice(one, one + TOGETHER)
            M = torch.add(torch.tensor(typical), busy[part], alpha=rise)
            y = (M + g[part]).relu_()
            y -= M.sub_(g[part]).relu_()
            size = torch.linalg.vector_norm(y, dim=2) / n**0.5
            torch.baddbmm(base[part], weights[part] / size.clamp_min(1e-6)[:, None], y, out=drawn[part])
        apart = sort_rows(rows(drawn)).sub_(wanted).abs_().mean(1)
        return float((apart / spread).mean())

    def lowest(rise: float, typical: float) -> tuple[float, float, float]:
        """The least distance with this rho, from ``typical`` on; A + rho, which has it; and rho."""
        while True:
            left, here, right = (distance(rise, typical + step) for step in (-STEP, 0.0, STEP))
            if here <= min(left, right):
                break
            typical += STEP if right < left else -STEP
        if max(left, right) < math.inf and left + right > 2 * here:
            typical += STEP / 2 * (left - right) / (left - 2 * here + right)
        return distance(rise, typical), typical, rise

    best = lowest(*START)
    first = RISE.index(START[0])
    for others in (RISE[first + 1 :], RISE[first - 1 :: -1]):
        before = best
        for rise in others:
            tried = lowest(rise, best[1])
            if tried >= best:
                break
            best = tried
        if best != before:  # and the other way is uphill
            break
    return best[1] - best[2], best[2]


def _views(channels: int, patch: int, generator: torch.Generator) -> Float[Tensor, "4 d r"]:
    """The directions theta, through H, as weights of the pixels of a window's 2 x 2 patches."""
    side = 2 * patch
    box = boxes(DIRECTIONS, side, [round(side * part) for part in SIDES], generator)[:, None]
    theta = torch.randn(DIRECTIONS, channels, side, side, generator=generator) * box
    theta -= box * theta.sum((2, 3), keepdim=True) / box.sum((2, 3), keepdim=True)
    tiles = of_finest(theta).view(DIRECTIONS, channels, 2, patch, 2, patch).permute(2, 4, 1, 3, 5, 0)
    return tiles.reshape(4, -1, DIRECTIONS)
