r"""Level 1 on photographs, second half: its network moved until no one-dimensional view tells drawn images from real ones.

The closed form (:mod:`forwardsr.learn.copula`) has every feature's distribution and every pair's correlation, and nothing says
that what three and more features do together is right: drawn pictures have too few patches without contrast. The network stays

.. math:: X_1 = W_1\,\mathrm{ReLU}(V_1 z - b_1) + \mu_1,

and W_1, V_1, b_1, mu_1 descend, from the closed form on, in the sliced Wasserstein distance (Rabin et al. 2011)

.. math:: E_\theta\, W_1(\langle\theta, X_1\rangle, \langle\theta, X_1^*\rangle) / \mathrm{sd}
          + E_\omega\, W_1(\log(\langle\omega, A\rangle + \epsilon), \log(\langle\omega, A^*\rangle + \epsilon)), \qquad
          A = |\langle w, X_1 - \mu\rangle| / E|\langle w, X_1^* - \mu\rangle| ,

theta Gaussian weights on a random window of the image, of two pixels a side up to all (whole images alone look Gaussian in
every direction), omega positive weights on the sizes of all features in a window of patches: the contrasts by which level 2
is gated, in logarithms, since a smooth patch is where small errors are great. In place of a critic that must be trained the inner
maximum is a sort: real projections are sorted once, drawn ones each step, and the gradient is exact.

=================  ========  ==========================================================================================
setting            default   reason
=================  ========  ==========================================================================================
STEPS, BATCH       300,      on buildings at 8 px, 200 steps have nine tenths of what 400 gain in views not descended in; a
                   2048      smaller batch makes the sorts noisy
SMALL              0.03      epsilon, of a mean contrast: below it a patch is smooth, however much
SLICES, REUSED     64, 2     windows at once, half as many of contrasts, kept for so many steps: sorting is half the work
RATE               0.01      Adam; twice that is too noisy for the steps there are
AVERAGED           0.95      decay of the average of the weights that is kept, over the last two fifths
SIZE               450,000   neurons times latents: larger networks take fewer and smaller steps. 12 px in colour have 2.5 times
                             as many, 8 px half as many
=================  ========  ==========================================================================================
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from forwardsr.data.pyramid import fold
from forwardsr.learn.adversarial import average
from forwardsr.learn.copula import FirstLevel, learn_first_level

STEPS, BATCH = 300, 2048
SLICES, REUSED = 64, 2
RATE = 0.01
MOMENTUM = (0.5, 0.99)
AVERAGED, FROM = 0.95, 0.6
SIZE = 450_000
FEWEST_STEPS, A_STEP = 40, 25  # no more steps than one for so many samples: few samples are soon learned by heart
REAL = 10_000  # samples whose projections are sorted
WINDOWS = (2, 3, 4, 6)  # pixels a side; and the whole image, as often as two of these
PATCHES = (1, 1, 2, 2, 3)  # patches a side; and all, once
CENTRED = 0.6  # of the windows have weights that sum to zero in each colour: contrasts
SMALL = 0.03
FITTED = 8192  # samples that the contrasts are fitted to


def learn_first_level_sliced(x: Float[Tensor, "n k d"], generator: torch.Generator, channels: int = 3) -> FirstLevel:
    """The closed form of the patches ``x`` and then the descent above; ``channels`` of the image that they make."""
    return descend(x, learn_first_level(x, generator), generator, channels)


def render(level: FirstLevel, z: Float[Tensor, "n m_0"]) -> tuple[Float[Tensor, "k n m"], Float[Tensor, "k n d"]]:
    """The hidden layer and the patches of a first level, patch first."""
    s = torch.baddbmm(-level.b[:, None], z.expand(len(level.V), -1, -1), level.V.mT).relu()
    return s, s @ level.W.mT + level.mean[:, None]


@torch.no_grad()
def fitted_contrast(level: FirstLevel, generator: torch.Generator) -> Float[Tensor, "k m r"]:
    """The linear map of the hidden layer nearest to |values of the features| on drawn samples."""
    s, x = render(level, torch.randn(FITTED, level.V.shape[2], generator=generator))
    size = ((x - level.mean[:, None]) @ level.basis).abs()
    gram = s.mT @ s / FITTED
    ridge = 1e-3 * gram.diagonal(dim1=1, dim2=2).mean(1)[:, None, None] * torch.eye(gram.shape[1])
    return torch.linalg.solve(gram + ridge, s.mT @ size / FITTED)


def descend(
    x: Float[Tensor, "n k d"], start: FirstLevel, generator: torch.Generator, channels: int, steps: int = STEPS
) -> FirstLevel:
    """``start`` moved towards the law of ``x`` by at most ``steps`` steps."""
    n = len(x)
    ease = math.sqrt(min(1.0, SIZE / start.V.numel()))
    steps, batch = min(round(steps * ease), max(FEWEST_STEPS, n // A_STEP)), round(BATCH * ease)
    if n > REAL:
        x = x[torch.randperm(n, generator=generator)[:REAL]]
    views = _Views(x.transpose(0, 1), start, channels)
    moving = [t.clone().requires_grad_() for t in (start.V, start.W, start.b, start.mean)]
    size, spread = float(start.W.abs().mean()), float(x.std())
    rates = [0.3 * RATE, RATE * size, RATE, 0.1 * RATE * spread]
    adam = torch.optim.Adam([{"params": [t], "lr": r} for t, r in zip(moving, rates)], betas=MOMENTUM)
    kept: list[Tensor] = []
    for step in range(steps):
        for group, rate in zip(adam.param_groups, rates):
            group["lr"] = rate * min(1.0, (step + 1) / 10) * (1 - 0.95 * step / steps)
        if step % REUSED == 0:
            views.turn(batch, SLICES, generator)
        V, W, b, mean = moving
        _, drawn = render(replace(start, V=V, W=W, b=b, mean=mean), torch.randn(batch, V.shape[2], generator=generator))
        adam.zero_grad()
        sum(views.distances(drawn)).backward()  # type: ignore[union-attr]
        adam.step()
        if step >= FROM * steps:
            kept = kept or [t.detach().clone() for t in moving]
            average(kept, [t.detach() for t in moving], AVERAGED)
    V, W, b, mean = kept
    found = replace(start, V=V, W=W, b=b, mean=mean)
    return replace(found, contrast=fitted_contrast(found, generator))


class _Views:
    """One-dimensional views of images in patches, patch first, and the real samples' distributions in them."""

    def __init__(self, x: Float[Tensor, "k n d"], start: FirstLevel, channels: int) -> None:
        k, _, d = x.shape
        self.basis, self.mean = start.basis, start.mean[:, None]
        self.place = fold(torch.arange(k * d, dtype=torch.float64).view(1, k, d), channels)[0].long()  # of every pixel
        self.grid = math.isqrt(k)
        self.real = _flat(x)
        self.centre = self.real.mean(0)
        size = ((x - self.mean) @ self.basis).abs()
        self.usual = size.mean(1, keepdim=True).clamp_min(1e-9)
        self.contrast = _flat(size / self.usual)

    def turn(self, n: int, slices: int, generator: torch.Generator) -> None:
        """Other views, and the quantiles of the real samples' projections that ``n`` drawn ones are held to."""
        channels, side, _ = self.place.shape
        box = boxes(slices, side, [*WINDOWS, side, side], generator)[:, None]
        weights = torch.randn(slices, channels, side, side, generator=generator) * box
        centred = weights - box * weights.sum((2, 3), keepdim=True) / box.sum((2, 3), keepdim=True)
        weights = torch.where(torch.rand(slices, 1, 1, 1, generator=generator) < CENTRED, centred, weights)
        self.theta = torch.empty(self.place.numel(), slices)
        self.theta[self.place.flatten()] = weights.reshape(slices, -1).T
        r = self.basis.shape[2]
        omega = torch.empty(slices // 2, self.grid, self.grid, r).exponential_(generator=generator)
        omega *= boxes(slices // 2, self.grid, [*PATCHES, self.grid], generator)[..., None]
        self.omega = (omega / omega.sum((1, 2, 3), keepdim=True)).reshape(slices // 2, -1).T
        at = ((torch.arange(n) + 0.5) / n * len(self.real)).long()
        self.signed = _sorted((self.real - self.centre) @ self.theta)[:, at]
        self.unit = self.signed.std(1).clamp_min(1e-9)
        self.sizes = _sorted((self.contrast @ self.omega + SMALL).log())[:, at]

    def distances(self, drawn: Float[Tensor, "k n d"]) -> tuple[Tensor, Tensor]:
        """The two means of the module's head, over the present views."""
        signed = _sorted((_flat(drawn) - self.centre) @ self.theta)
        contrast = ((drawn - self.mean) @ self.basis).abs() / self.usual
        sizes = _sorted((_flat(contrast) @ self.omega + SMALL).log())
        return ((signed - self.signed).abs().mean(1) / self.unit).mean(), (sizes - self.sizes).abs().mean()


def _flat(x: Float[Tensor, "k n d"]) -> Float[Tensor, "n q"]:
    return x.transpose(0, 1).flatten(1)


def _sorted(x: Float[Tensor, "n s"]) -> Float[Tensor, "s n"]:
    """Sorted, with a gradient. NumPy's argsort of rows of float32 takes a third of the time of PyTorch's."""
    rows = x.T
    order = np.argsort(rows.detach().contiguous().numpy(), axis=1)
    return rows.gather(1, torch.from_numpy(order))


def boxes(n: int, side: int, sizes: list[int], generator: torch.Generator) -> Float[Tensor, "n side side"]:
    """Ones in random square windows of a random one of ``sizes``, zeros around."""
    size = torch.tensor(sizes).clamp_max(side)[torch.randint(len(sizes), (n,), generator=generator)]
    first = (torch.rand(n, 2, generator=generator) * (side - size + 1)[:, None]).long()
    i = torch.arange(side)
    row, column = ((i >= a[:, None]) & (i < (a + size)[:, None]) for a in first.unbind(1))
    return (row[:, :, None] & column[:, None, :]).float()
