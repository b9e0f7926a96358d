r"""Level 1 on photographs, second half: its network moved until no one-dimensional view tells drawn images from real ones.

The closed form (:mod:`forwardsr.learn.copula`) has every feature's distribution and every pair's correlation, and nothing says
that what three and more features do together is right: drawn pictures have too few patches without contrast. The network stays

.. math:: X_1 = W_1\,\mathrm{ReLU}(V_1 z - b_1) + \mu_1,

and W_1, V_1, b_1, mu_1 descend, from the closed form on, in the sliced Wasserstein distance (Rabin et al. 2011)

.. math:: E_\theta\, W_1(\langle\theta, X_1\rangle, \langle\theta, X_1^*\rangle) / \mathrm{sd}
          + c_A\, E_\omega\, W_1(\log(\langle\omega, A\rangle + \epsilon_A), \log(\langle\omega, A^*\rangle + \epsilon_A))
          + c_F\, E_F\, W_1(\log(F(X_1) + \epsilon_F), \log(F(X_1^*) + \epsilon_F)) :

* theta Gaussian weights on a random window, of two pixels a side up to all (whole images alone look Gaussian in every direction):
  of the image; of the image blurred; and of what is finest in the image doubled (:mod:`forwardsr.data.scale`).
  The image's own projections are mostly of what is neither, and these two are what finer levels make their coarse bands of;
* omega positive weights on the sizes :math:`A = |\langle w, X_1 - \mu\rangle| / E|\langle w, X_1^* - \mu\rangle|` of all features in
  a window of patches: the contrasts by which level 2 is gated;
* F the energy of a block of 2 x 2 pixels about its mean, all colours together, relative to the real one's mean: how loud the
  finest that level 1 holds is there. Features hold coarse and fine together and do not see it.

The last two in logarithms, since a smooth patch is where small errors are great. In place of a critic that must be trained the
inner maximum is a sort, and the gradient is exact, but for the order of numbers that are equal to one part in 128. With bfloat16
all large products are computed in it, the network's and those with views, and projections rounded to it; weights, and what is made
of projections, stay in float32.

What limits the descent is the noise of the drawn samples' quantiles, so these samples are no independent ones: z come in pairs
:math:`\pm z`, and as many of a half as z has numbers at right angles (:mod:`forwardsr.learn.even`). Faces at 12 px are then in 250
steps where independent samples are in 1000.

=================  =========  =========================================================================================
setting            default    reason
=================  =========  =========================================================================================
STEPS, BATCH       540,       half of the steps are a tenth further from real images, twice as many a fiftieth nearer; so are
                   1400       samples by half more
SLICES, SIZES      400, 120   windows at once, and those of contrasts; half of the first cost a twentieth of the distances, twice
                              the second gain nothing that another seed does not
BAND, BAND_WINDOW  0.24, 7    part of the windows that are of the image blurred, as many are of what is finest in it doubled; and
                              their pixels a side. Buildings at 48 px: 17.5 with the second alone, 17.0 with both in windows of all
                              sizes, 16.6 so, 18.4 without (three draws of 4096; 480 windows, a fifth, 600 steps)
REUSED             5          steps that views are kept for: new ones at every second step are no better, at every sixth
                              buildings are a fiftieth further off
CONTRAST, ENERGY   0.15,      c_A, and c_F a pixel of the image: 0.013 at 8 px, 0.029 at 12; more takes from the windows. Without c_A
                   2e-4       buildings are a twentieth further off, with twice c_F faces' finest band is nearer, all else further
SMALL, QUIET       0.01,      epsilon_A, epsilon_F, of a mean contrast and of a mean energy: below it a patch is smooth, however
                   0.03       much
BLOCKS             64         whose energies are looked at at once; half as many are noise in the steps: at 12 px a twentieth
                              further off
REAL, SEEN         10,000,    real samples that are kept, and those of them that are sorted, others each time: thrice a batch
                   4096
RATE               0.007      Adam; 0.01 makes buildings too loud at 12 px, 0.005 is slower
AVERAGED           0.95       decay of the average of the weights that is kept, over the last two fifths
FEWEST_STEPS,      80, 6      from 250 samples to 4000 no more steps than one for two has hurt held-out samples: this saves time
A_STEP
SIZE               1,200,000  neurons times latents: larger networks take fewer and smaller steps. 12 px in colour have as many,
                              8 px a fifth
=================  =========  =========================================================================================
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from forwardsr.data.pyramid import fold
from forwardsr.data.scale import of_blurred, of_doubled, of_finest
from forwardsr.learn.adversarial import average
from forwardsr.learn.copula import FirstLevel, learn_first_level
from forwardsr.learn.even import even, rotation
from forwardsr.sorting import sort_rows

STEPS, BATCH = 540, 1400
SLICES, SIZES, REUSED = 400, 120, 5
CONTRAST, ENERGY = 0.15, 2e-4
RATE = 0.007
MOMENTUM = (0.5, 0.99)
AVERAGED, FROM = 0.95, 0.6
SIZE = 1_200_000
FEWEST_STEPS, A_STEP = 80, 6  # no more steps than one for so many samples
REAL, SEEN = 10_000, 4096
WINDOWS = (2, 3, 4, 6, 8, 8)  # pixels a side; and the whole image, as often as two of these (four at 8 px)
PATCHES = (1, 1, 2, 2, 3)  # patches a side; and all, once
BLOCKS = 64
BAND, BAND_WINDOW = 0.24, 7
SMALL, QUIET = 0.01, 0.03
FITTED = 8192  # samples that the contrasts are fitted to


def learn_first_level_sliced(
    x: Float[Tensor, "n k d"], generator: torch.Generator, channels: int = 3, precision: str = "float32"
) -> FirstLevel:
    """The closed form of the patches ``x`` and then the descent above; ``channels`` of the image that they make.

    ``precision`` of the large products in the descent: float32 or bfloat16.
    """
    return descend(x, learn_first_level(x, generator), generator, channels, precision=precision)


def render(level: FirstLevel, z: Float[Tensor, "n m_0"]) -> tuple[Float[Tensor, "k n m"], Float[Tensor, "k n d"]]:
    """The hidden layer and the patches of a first level, patch first."""
    s = torch.baddbmm(-level.b[:, None], z.expand(len(level.V), -1, -1), level.V.mT).relu()
    return s, s @ level.W.mT + level.mean[:, None]


class _Patches(torch.autograd.Function):
    """``W ReLU(V z - b)`` at z and then at -z, patch first, all products in a given dtype: what autograd would do with half the
    products by V, and hidden layers stay in that dtype.
    """

    @staticmethod
    def forward(ctx: Any, z: Tensor, V: Tensor, W: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
        z, V, W, b = (t.to(dtype) for t in (z, V, W, b))
        h = z.expand(len(V), -1, -1) @ V.mT
        s = h.new_empty(len(h), 2 * len(z), h.shape[2])
        torch.sub(h, b[:, None], out=s[:, : len(z)])
        torch.add(h, b[:, None], out=s[:, len(z) :]).neg_()
        s.relu_()
        ctx.save_for_backward(z, W, s)
        return (s @ W.mT).float()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        z, W, s = ctx.saved_tensors
        of_x = gradients[0].to(s.dtype)
        of_s = torch.ops.aten.threshold_backward(of_x @ W, s, 0)
        of_V = (of_s[:, : len(z)] - of_s[:, len(z) :]).mT @ z.expand(len(s), -1, -1)
        of_b = of_s.new_full((len(s), 1, s.shape[1]), -1.0) @ of_s
        return None, of_V.float(), (of_x.mT @ s).float(), of_b[:, 0].float(), None


def _apart(rows: Float[Tensor, "s n"], quantiles: Float[Tensor, "s n"], unit: Float[Tensor, " s"]) -> Tensor:
    """W_1 of rows and their quantiles, in units, the mean of rows."""
    return _Apart.apply(rows, quantiles, unit)  # type: ignore[no-untyped-call]


class _Apart(torch.autograd.Function):
    """See :func:`_apart`; autograd's way through sorted rows is twice as long."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, quantiles: Tensor, unit: Tensor) -> Tensor:
        order = _argsort(rows)
        over = rows.gather(1, order) - quantiles
        ctx.save_for_backward(order, over.sign() / (unit[:, None] * over.numel()))
        return (over.abs().mean(1) / unit).mean()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        order, slope = ctx.saved_tensors
        return (gradients[0] * torch.empty_like(slope).scatter_(1, order, slope)), None, None


def _argsort(rows: Float[Tensor, "s n"]) -> Tensor:
    """The order of every row of at most 2^16 numbers, by the first half of their 32 bits (to one part in 128): number and place in
    one integer, which NumPy sorts in a fifth of the time of its argsort, and that in a third of PyTorch's.
    """
    assert rows.shape[1] <= 1 << 16
    bits = rows.view(torch.int32)
    keys = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).bitwise_and_(-65536)
    keys.bitwise_or_(torch.arange(rows.shape[1], dtype=torch.int32)).numpy().sort(axis=1)
    return keys.bitwise_and_(0xFFFF).long()


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
    n, m, dtype = len(x), start.V.shape[2], getattr(torch, precision)
    ease = math.sqrt(min(1.0, SIZE / start.V.numel()))
    steps, half = min(round(steps * ease), max(FEWEST_STEPS, n // A_STEP)), round(BATCH * ease / 2)
    if n > REAL:
        x = x[torch.randperm(n, generator=generator)[:REAL]]
    views = _Views(x.transpose(0, 1), start, channels, dtype)
    Q, R = rotation(m, generator).to(dtype), rotation(m, generator).to(dtype)
    moving = [t.clone().requires_grad_() for t in (start.V, start.W, start.b, start.mean)]
    size, spread = float(start.W.abs().mean()), float(x.std())
    rates = [0.3 * RATE, RATE * size, RATE, 0.1 * RATE * spread]
    adam = [_Adam(t, rate) for t, rate in zip(moving, rates)]
    kept: list[Tensor] = []
    for step in range(steps):
        if step % REUSED == 0:
            views.turn(2 * half, SLICES, generator)
        V, W, b, mean = moving
        z = even(half, Q, R, generator)
        drawn = mean[:, None] + _Patches.apply(z, V, W, b, dtype)  # type: ignore[no-untyped-call]
        signed, contrasts, energies = views.distances(drawn)
        (signed + CONTRAST * contrasts + ENERGY * views.pixels * energies).backward()
        for each in adam:
            each.step(min(1.0, (step + 1) / 10) * (1 - 0.95 * step / steps))
        if step >= FROM * steps:
            kept = kept or [t.detach().clone() for t in moving]
            average(kept, [t.detach() for t in moving], AVERAGED)
    V, W, b, mean = kept
    found = replace(start, V=V, W=W, b=b, mean=mean)
    return replace(found, contrast=fitted_contrast(found, generator))


class _Adam:
    """Kingma and Ba (2015) for one tensor. PyTorch's takes a second to import what would compile it: a tenth of a short fit."""

    def __init__(self, weights: Tensor, rate: float) -> None:
        self.weights, self.rate, self.steps = weights, rate, 0
        self.first, self.second = torch.zeros_like(weights), torch.zeros_like(weights)

    @torch.no_grad()
    def step(self, ease: float) -> None:
        """One step at ``ease`` times the rate; the gradient is used up."""
        (a, b), gradient = MOMENTUM, self.weights.grad
        assert gradient is not None
        self.steps += 1
        self.first.lerp_(gradient, 1 - a)
        self.second.mul_(b).addcmul_(gradient, gradient, value=1 - b)
        size = (self.second / (1 - b**self.steps)).sqrt_().add_(1e-8)
        self.weights.addcdiv_(self.first, size, value=-ease * self.rate / (1 - a**self.steps))
        self.weights.grad = None


class _Views:
    """One-dimensional views of images in patches, patch first, and the real samples' distributions in them."""

    def __init__(
        self, x: Float[Tensor, "k n d"], start: FirstLevel, channels: int, dtype: torch.dtype = torch.float32
    ) -> None:
        k, _, d = x.shape
        self.basis, self.mean, self.dtype = start.basis, start.mean[:, None], dtype
        self.place = fold(torch.arange(k * d, dtype=torch.float64).view(1, k, d), channels)[0].long()  # of every pixel
        self.grid, self.pixels = math.isqrt(k), k * d // channels
        flat = _flat(x)
        self.centre = flat.mean(0)
        self.real = (flat - self.centre).to(dtype)
        size = ((x - self.mean) @ self.basis).abs()
        self.usual = size.mean(1, keepdim=True).clamp_min(1e-9)
        self.contrast = _flat(size / self.usual).to(dtype)

    def turn(self, n: int, slices: int, generator: torch.Generator) -> None:
        """Other views, and the quantiles of the real samples' projections that ``n`` drawn ones are held to."""
        channels, side, _ = self.place.shape
        weights = directions(slices, channels, side, generator)
        finest = blocks(channels, side, generator).flatten(0, 1)
        theta = torch.empty(self.place.numel(), slices + len(finest))
        theta[self.place.flatten()] = torch.cat([weights, finest]).flatten(1).T
        self.slices, self.theta = slices, theta.to(self.dtype)
        self.still = self.centre @ theta[:, slices:]
        r = self.basis.shape[2]
        omega = torch.empty(SIZES, self.grid, self.grid, r).exponential_(generator=generator)
        omega *= boxes(SIZES, self.grid, [*PATCHES, self.grid], generator)[..., None]
        self.omega = (omega / omega.sum((1, 2, 3), keepdim=True)).reshape(SIZES, -1).T.to(self.dtype)
        some = torch.randperm(len(self.real), generator=generator)[:SEEN]
        signed, energy = self._seen(self.real.index_select(0, some))
        self.signed = _quantiles(signed, n)
        self.unit = (self.signed.norm(dim=1) / n**0.5).clamp_min(1e-9)
        self.sizes = _quantiles(self._sizes(self.contrast.index_select(0, some)), n)
        self.loud = energy.mean(1, keepdim=True).clamp_min(1e-12)
        self.energies = _quantiles((energy / self.loud + QUIET).log_(), n)

    def _seen(self, flat: Float[Tensor, "n q"]) -> tuple[Float[Tensor, "s n"], Float[Tensor, "t n"]]:
        """Projections and energies of pictures less their centre."""
        rows = (self.theta.T @ flat.T).float()
        signed, contrasts = rows.split(
            [self.slices, len(rows) - self.slices]
        )  # its gradient is put together, not added
        return signed, (contrasts + self.still[:, None]).square().view(BLOCKS, -1, len(flat)).mean(1)

    def _sizes(self, contrast: Float[Tensor, "n q"]) -> Float[Tensor, "s n"]:
        return ((self.omega.T @ contrast.T).float() + SMALL).log()

    def distances(self, drawn: Float[Tensor, "k n d"]) -> tuple[Tensor, Tensor, Tensor]:
        """The three means of the module's head, over the present views."""
        signed, energy = self._seen((_flat(drawn) - self.centre).to(self.dtype))
        contrast = ((drawn - self.mean) @ self.basis).abs() / self.usual
        sizes = self._sizes(_flat(contrast).to(self.dtype))
        loudness = (energy / self.loud + QUIET).log()
        return (
            _apart(signed, self.signed, self.unit),
            _apart(sizes, self.sizes, torch.ones(len(sizes))),
            _apart(loudness, self.energies, torch.ones(len(loudness))),
        )


def _flat(x: Float[Tensor, "k n d"]) -> Float[Tensor, "n q"]:
    return x.transpose(0, 1).flatten(1)


def _quantiles(x: Float[Tensor, "s m"], n: int) -> Float[Tensor, "s n"]:
    """What the sorted ``n`` of a sample are held to: the quantiles of the rows at (i + 1/2) / n, between neighbours."""
    return functional.interpolate(sort_rows(x)[None], n, mode="linear", align_corners=False)[0]


def boxes(n: int, side: int, sizes: list[int], generator: torch.Generator) -> Float[Tensor, "n side side"]:
    """Ones in random square windows of a random one of ``sizes``, zeros around."""
    size = torch.tensor(sizes).clamp_max(side)[torch.randint(len(sizes), (n,), generator=generator)]
    first = (torch.rand(n, 2, generator=generator) * (side - size + 1)[:, None]).long()
    i = torch.arange(side)
    row, column = ((i >= a[:, None]) & (i < (a + size)[:, None]) for a in first.unbind(1))
    return (row[:, :, None] & column[:, None, :]).float()


def directions(n: int, channels: int, side: int, generator: torch.Generator) -> Float[Tensor, "n c side side"]:
    """Gaussian weights in random windows: of the picture, of the picture blurred, and of what is finest in the picture doubled."""
    some = round(BAND * n)
    plain, coarse, fine = (
        torch.randn(count, channels, size, size, generator=generator)
        * boxes(count, size, sizes, generator)[:, None]
        for count, size, sizes in (
            (n - 2 * some, side, [*WINDOWS, side, side]), (some, side, [BAND_WINDOW]), (some, 2 * side, [BAND_WINDOW])
        )
    )  # fmt: skip
    return torch.cat([plain, of_blurred(coarse), of_doubled(of_finest(fine))])


def blocks(channels: int, side: int, generator: torch.Generator) -> Float[Tensor, "s p c side side"]:
    """The three orthonormal contrasts (Haar's) of random blocks of 2 x 2 pixels, in every colour: p = 3 channels, s blocks."""
    kernels = torch.tensor([[1.0, 1, -1, -1], [1, -1, 1, -1], [1, -1, -1, 1]]) / 2
    y, x = torch.randint(side - 1, (2, BLOCKS, 1), generator=generator)
    pixels = (y + torch.tensor([0, 0, 1, 1])) * side + x + torch.tensor([0, 1, 0, 1])
    plane = torch.zeros(BLOCKS, 3, side * side).scatter_(
        2, pixels[:, None].expand(-1, 3, -1), kernels.expand(BLOCKS, -1, -1)
    )
    return torch.einsum("skx,ac->skacx", plane, torch.eye(channels)).reshape(BLOCKS, -1, channels, side, side)
