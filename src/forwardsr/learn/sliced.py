r"""Level 1 on photographs, second half: its network moved until no one-dimensional view tells drawn images from real ones.

The closed form (:mod:`forwardsr.learn.copula`) has every feature's distribution and every pair's correlation, and nothing says
that what three and more features do together is right: drawn pictures have too few patches without contrast. The network stays

.. math:: X_1 = W_1\,\mathrm{ReLU}(V_1 z - b_1) + \mu_1,

and W_1, V_1, b_1, mu_1 descend, from the closed form on, in the sliced Wasserstein distance (Rabin et al. 2011)

.. math:: E_\theta\, W_1(\langle\theta, X_1\rangle, \langle\theta, X_1^*\rangle) / \mathrm{sd}
          + c_A\, E_\omega\, W_1(\log(\langle\omega, A\rangle + \epsilon_A), \log(\langle\omega, A^*\rangle + \epsilon_A))
          + c_F\, E_F\, W_1(\log(F(X_1) + \epsilon_F), \log(F(X_1^*) + \epsilon_F)) :

* theta Gaussian weights on a random window of the image, of two pixels a side up to all (whole images alone look Gaussian in
  every direction);
* omega positive weights on the sizes :math:`A = |\langle w, X_1 - \mu\rangle| / E|\langle w, X_1^* - \mu\rangle|` of all features in
  a window of patches: the contrasts by which level 2 is gated;
* F the energy of a random contrast of 2 x 2 or 3 x 3 pixels, the mean over places of a window, relative to the real one's: how loud
  the finest that level 1 holds is there. Features hold coarse and fine together and do not see it.

The last two in logarithms, since a smooth patch is where small errors are great. In place of a critic that must be trained the
inner maximum is a sort, and the gradient is exact. With bfloat16 the network is computed in it, from z to the patches less their
mean; views, sorts and weights stay in float32.

=================  =========  =========================================================================================
setting            default    reason
=================  =========  =========================================================================================
STEPS, BATCH       300,       on buildings at 8 px, 200 steps have nine tenths of what 400 gain in views not descended in; a
                   2048       smaller batch makes the sorts noisy
SLICES             192        windows at once, half as many of contrasts; half of them cost a twentieth of 12 px's distance
REUSED             2          steps that views are kept for: new ones at every step would be a third of the work
CONTRAST, ENERGY   0.3,       c_A, and c_F a pixel of the image: 0.03 at 8 px, where 0.07 makes too many loud and quiet pictures,
                   5e-4       0.07 at 12 px, where 0.05 makes too few. More of either takes from the windows
SMALL, QUIET       0.03,      epsilon_A, epsilon_F, of a mean contrast and of a mean energy: below it a patch is smooth, however
                   0.1        much
PLACES             32, 8      energies at once, and the places that each is the mean over
REAL, SEEN         10,000,    real samples that are kept, and those of them that are sorted, others each time: twice a batch
                   4096
CENTRED            0.3        part of the windows whose weights sum to zero in each colour: contrasts
RATE               0.01       Adam; twice that is too noisy for the steps there are
AVERAGED           0.95       decay of the average of the weights that is kept, over the last two fifths
SIZE               800,000    neurons times latents: larger networks take fewer and smaller steps. 12 px in colour have 1.4
                              times as many, 8 px a third as many
=================  =========  =========================================================================================
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from forwardsr.data.pyramid import fold
from forwardsr.learn.adversarial import average
from forwardsr.learn.copula import FirstLevel, learn_first_level

STEPS, BATCH = 300, 2048
SLICES, REUSED = 192, 2
CONTRAST, ENERGY = 0.3, 5e-4
RATE = 0.01
MOMENTUM = (0.5, 0.99)
AVERAGED, FROM = 0.95, 0.6
SIZE = 800_000
FEWEST_STEPS, A_STEP = 40, 25  # no more steps than one for so many samples: few samples are soon learned by heart
REAL, SEEN = 10_000, 4096
WINDOWS = (2, 3, 4, 6, 8, 8)  # pixels a side; and the whole image, as often as two of these (four at 8 px)
PATCHES = (1, 1, 2, 2, 3)  # patches a side; and all, once
PLACES = (32, 8)
HEARD = (3, 4, 6)  # pixels a side of the window that an energy is of; and the whole image, as often as two of these
CENTRED = 0.3
SMALL, QUIET = 0.03, 0.1
FITTED = 8192  # samples that the contrasts are fitted to


def learn_first_level_sliced(
    x: Float[Tensor, "n k d"], generator: torch.Generator, channels: int = 3, precision: str = "float32"
) -> FirstLevel:
    """The closed form of the patches ``x`` and then the descent above; ``channels`` of the image that they make.

    ``precision`` of the network's products in the descent: float32 or bfloat16.
    """
    return descend(x, learn_first_level(x, generator), generator, channels, precision=precision)


def render(level: FirstLevel, z: Float[Tensor, "n m_0"]) -> tuple[Float[Tensor, "k n m"], Float[Tensor, "k n d"]]:
    """The hidden layer and the patches of a first level, patch first."""
    s = torch.baddbmm(-level.b[:, None], z.expand(len(level.V), -1, -1), level.V.mT).relu()
    return s, s @ level.W.mT + level.mean[:, None]


class _Patches(torch.autograd.Function):
    """``W ReLU(V z - b)``, patch first, all products in a given dtype: what autograd would do, and hidden layers stay in it."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, V: Tensor, W: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
        z, V, W, b = (t.to(dtype) for t in (z, V, W, b))
        s = torch.baddbmm(-b[:, None], z.expand(len(V), -1, -1), V.mT).relu_()
        ctx.save_for_backward(z, W, s)
        return (s @ W.mT).float()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        z, W, s = ctx.saved_tensors
        of_x = gradients[0].to(s.dtype)
        of_s = torch.ops.aten.threshold_backward(of_x @ W, s, 0)
        of_V = of_s.mT @ z.expand(len(s), -1, -1)
        return None, of_V.float(), (of_x.mT @ s).float(), -of_s.sum(1, dtype=torch.float32), None


@torch.no_grad()
def fitted_contrast(level: FirstLevel, generator: torch.Generator) -> Float[Tensor, "k m r"]:
    """The linear map of the hidden layer nearest to |values of the features| on drawn samples."""
    s, x = render(level, torch.randn(FITTED, level.V.shape[2], generator=generator))
    size = ((x - level.mean[:, None]) @ level.basis).abs()
    gram = s.mT @ s / FITTED
    ridge = 1e-3 * gram.diagonal(dim1=1, dim2=2).mean(1)[:, None, None] * torch.eye(gram.shape[1])
    return torch.linalg.solve(gram + ridge, s.mT @ size / FITTED)


def descend(
    x: Float[Tensor, "n k d"], start: FirstLevel, generator: torch.Generator, channels: int, steps: int = STEPS,
    precision: str = "float32",
) -> FirstLevel:  # fmt: skip
    """``start`` moved towards the law of ``x`` by at most ``steps`` steps."""
    n, dtype = len(x), getattr(torch, precision)
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
        z = torch.randn(batch, V.shape[2], generator=generator)
        drawn = mean[:, None] + _Patches.apply(z, V, W, b, dtype)  # type: ignore[no-untyped-call]
        adam.zero_grad()
        signed, contrasts, energies = views.distances(drawn)
        (signed + CONTRAST * contrasts + ENERGY * views.pixels * energies).backward()
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
        self.grid, self.pixels = math.isqrt(k), k * d // channels
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
        self.eta = torch.empty(self.place.numel(), math.prod(PLACES))
        self.eta[self.place.flatten()] = filters(channels, side, generator).reshape(math.prod(PLACES), -1).T
        some = torch.randperm(len(self.real), generator=generator)[:SEEN]
        real = self.real[some]
        self.signed = _quantiles((real - self.centre) @ self.theta, n)
        self.unit = self.signed.std(1).clamp_min(1e-9)
        self.sizes = _quantiles((self.contrast[some] @ self.omega + SMALL).log_(), n)
        energy = self._energy(real)
        self.loud = energy.mean(0).clamp_min(1e-12)
        self.energies = _quantiles((energy / self.loud + QUIET).log_(), n)

    def _energy(self, flat: Float[Tensor, "n q"]) -> Float[Tensor, "n s"]:
        return (flat @ self.eta).view(-1, *PLACES).square().mean(2)

    def distances(self, drawn: Float[Tensor, "k n d"]) -> tuple[Tensor, Tensor, Tensor]:
        """The three means of the module's head, over the present views."""
        flat = _flat(drawn)
        signed = _sorted((flat - self.centre) @ self.theta)
        contrast = ((drawn - self.mean) @ self.basis).abs() / self.usual
        sizes = _sorted((_flat(contrast) @ self.omega + SMALL).log())
        energies = _sorted((self._energy(flat) / self.loud + QUIET).log())
        return (
            ((signed - self.signed).abs().mean(1) / self.unit).mean(),
            (sizes - self.sizes).abs().mean(),
            (energies - self.energies).abs().mean(),
        )


def _flat(x: Float[Tensor, "k n d"]) -> Float[Tensor, "n q"]:
    return x.transpose(0, 1).flatten(1)


def _quantiles(x: Float[Tensor, "m s"], n: int) -> Float[Tensor, "s n"]:
    """What the sorted ``n`` of a sample are held to: the quantiles of the columns at (i + 1/2) / n, between neighbours."""
    rows = torch.from_numpy(np.sort(x.T.contiguous().numpy(), axis=1))
    at = ((torch.arange(n) + 0.5) * (len(x) / n) - 0.5).clamp(0, len(x) - 1)
    low = at.long()
    return torch.lerp(rows[:, low], rows[:, (low + 1).clamp_max(len(x) - 1)], at - low)


def _sorted(x: Float[Tensor, "n s"]) -> Float[Tensor, "s n"]:
    """Sorted, with a gradient. NumPy's argsort of rows of float32 takes a third of the time of PyTorch's."""
    rows = x.T.contiguous()
    order = np.argsort(rows.detach().numpy(), axis=1)
    return rows.gather(1, torch.from_numpy(order))


def boxes(n: int, side: int, sizes: list[int], generator: torch.Generator) -> Float[Tensor, "n side side"]:
    """Ones in random square windows of a random one of ``sizes``, zeros around."""
    size = torch.tensor(sizes).clamp_max(side)[torch.randint(len(sizes), (n,), generator=generator)]
    first = (torch.rand(n, 2, generator=generator) * (side - size + 1)[:, None]).long()
    i = torch.arange(side)
    row, column = ((i >= a[:, None]) & (i < (a + size)[:, None]) for a in first.unbind(1))
    return (row[:, :, None] & column[:, None, :]).float()


def filters(channels: int, side: int, generator: torch.Generator) -> Float[Tensor, "s p c side side"]:
    """Contrasts of 3 x 3 (half of them 2 x 2) pixels in a direction of colour, s of them, each at p places of a window."""
    n, places = PLACES
    step = torch.arange(3)
    size = torch.randint(2, 4, (n,), generator=generator)
    inside = (step.maximum(step[:, None]) < size[:, None, None]).float()
    kernel = torch.randn(n, 3, 3, generator=generator)
    kernel = inside * (kernel - (inside * kernel).sum((1, 2), keepdim=True) / inside.sum((1, 2), keepdim=True))
    window = torch.tensor([*HEARD, side, side]).clamp_max(side)[
        torch.randint(len(HEARD) + 2, (n,), generator=generator)
    ]
    first = (torch.rand(n, 2, 1, generator=generator) * (side - window + 1)[:, None, None]).long()
    y, x = (first + (torch.rand(n, 2, places, generator=generator) * (window - size + 1)[:, None, None]).long()).unbind(
        1
    )
    index = (y[..., None, None] + step[:, None]).clamp_max(side - 1) * side  # what a small kernel has beyond is zero
    index = index + (x[..., None, None] + step).clamp_max(side - 1)
    plane = torch.zeros(n, places, side * side).scatter_add_(
        2, index.flatten(2), kernel.flatten(1)[:, None].expand(-1, places, -1)
    )
    colour = torch.randn(n, 1, channels, 1, generator=generator)
    return (colour * plane[:, :, None]).unflatten(3, (side, side))
