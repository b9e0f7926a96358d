r"""A start for W where cumulants fail: the hyperplanes that hold most samples, from random subsets.

Every channel r has a hyperplane :math:`\{x : \langle u_r, x\rangle = 0\}` through all samples in which it is silent
(:mod:`.features`), however the channels depend on one another and whatever the angles between their features.

1. Of a random subset of samples, take the direction in which they extend least. Where exactly one channel is silent in all of
   the subset, this is that channel's u, exactly where there is no noise; subsets of several sizes suit channels of any activity.
2. With noise, twice more: the direction of least extent of all samples near the plane.
3. Go through the directions by the share of samples on their plane, largest first, and keep each that is linearly independent
   of those kept. A mixture of channels is silent more rarely than any of them, so they come first and it is then dependent:
   this is the greedy algorithm for the sparsest basis, which is optimal.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

_SIZES = (
    1.2,
    1.6,
    2.2,
    3.0,
    4.5,
    7.0,
    12.0,
)  # of subsets, in numbers of channels: one silent channel at p = 0.02 to 0.4
_TRIALS = 20  # subsets a size and channel
_KEPT = 16  # candidates a channel that are improved
_INDEPENDENT = 0.1  # least sine of a direction with the span of those kept, without noise
_ROUNDING = 1e-5


def hyperplane_start(
    y: Float[Tensor, "m n"],
    noise: float,
    generator: torch.Generator,
    known: Float[Tensor, "g m"] | None = None,
    most: int = 3000,
) -> Float[Tensor, "m m"]:
    """Unit columns of W (float64) for one patch, in the coordinates of ``y``; at most ``most`` of its samples are looked at.

    ``noise``: standard deviation of the noise of a number. ``known``: rows of the inverse of W that are right already; subsets then
    hold a sample of each, so that the channel silent in all of them is a missing one. Where too few planes are found, what is
    left fills up the rows, and :func:`.features.audit` rejects those.
    """
    m = len(y)
    size = y.norm(dim=0)
    width = 4 * noise + _ROUNDING * float(size.square().mean().sqrt())
    speaking = (size > m**0.5 * width).nonzero()[:, 0]
    x = y[:, speaking[torch.randperm(len(speaking), generator=generator)[:most]]].double()
    known = torch.zeros(0, m, dtype=torch.float64) if known is None else known / known.norm(dim=1, keepdim=True)
    active = ((known @ x) > width).double() + 1e-12
    trials, found = _TRIALS * m, []
    for factor in _SIZES:
        picks = torch.randint(
            x.shape[1], (trials, max(m - len(known), round(factor * (m - len(known))))), generator=generator
        )
        if len(known):
            picks = torch.cat([picks, torch.multinomial(active, trials, True, generator=generator).T], 1)
        subset = x.T[picks]
        found.append(torch.linalg.eigh(subset.mT @ subset).eigenvectors[:, :, 0])
    u = torch.cat(found)
    u = u[_share(u, x, 2 * width).argsort(descending=True)[: _KEPT * m]]
    if noise > 0:
        for step in (2, 1):
            near = ((u @ x).abs() <= step * width).double()
            moment = torch.stack([(x * row) @ x.T for row in near])
            u = torch.linalg.eigh(moment).eigenvectors[:, :, 0]
    columns = torch.linalg.pinv(_basis(torch.cat([known, u[_share(u, x, width).argsort(descending=True)]])))
    columns = columns / columns.norm(dim=0).clamp_min(1e-30)
    return columns * torch.where((torch.linalg.pinv(columns) @ x).sum(1) < 0, -1.0, 1.0)


def _share(u: Tensor, x: Tensor, width: float) -> Tensor:
    """The share of samples on every plane."""
    return ((u @ x).abs() <= width).double().mean(1)


def _basis(u: Tensor) -> Tensor:
    """The first m independent rows of ``u``, filled up with what they leave."""
    m = u.shape[1]
    kept: list[Tensor] = []
    span = u.new_zeros(0, m)
    for row in u:
        if len(kept) == m:
            break
        rest = row - span.T @ (span @ row)
        rest = rest - span.T @ (span @ rest)
        if float(rest.norm()) > _INDEPENDENT:
            kept.append(row)
            span = torch.cat([span, (rest / rest.norm())[None]])
    if len(kept) < m:
        complement = torch.linalg.svd(span, full_matrices=True).Vh[len(kept) :] if kept else torch.eye(m, dtype=u.dtype)
        kept.extend(complement)
    return torch.stack(kept)
