r"""Level 1 on photographs, second half: its network moved until no one-dimensional view tells drawn images from real ones.

The closed form (:mod:`forwardsr.learn.copula`) has every feature's distribution and every pair's correlation, and nothing says
that what three and more features do together is right: drawn pictures have too few patches without contrast. The network stays

.. math:: X_1 = W_1\,\mathrm{ReLU}(V_1 z - b_1) + \mu_1,

and W_1, V_1 = C R, b_1, mu_1 descend, from the closed form on, in the sliced Wasserstein distance (Rabin et al. 2011)

.. math:: E_\theta\, W_1(\langle\theta, X_1\rangle, \langle\theta, X_1^*\rangle) / \mathrm{sd}
          + c_A\, E_\omega\, W_1(\log(\langle\omega, A\rangle + \epsilon_A), \log(\langle\omega, A^*\rangle + \epsilon_A))
          + c_F\, E_F\, W_1(\log(F(X_1) + \epsilon_F), \log(F(X_1^*) + \epsilon_F)) :

* theta Gaussian weights on a random window, of two pixels a side up to all (whole images alone look Gaussian in every direction):
  of the image; of the image blurred; and of what is finest in the image doubled (:mod:`forwardsr.data.scale`).
  The image's own projections are mostly of what is neither, and these two are what finer levels make their coarse bands of;
* omega positive weights on the sizes :math:`A = |\langle w, X_1 - \mu\rangle| / E|\langle w, X_1^* - \mu\rangle|` of all features in
  a window of patches: the contrasts by which level 2 is gated;
* F the energy of every block of 2 x 2 pixels about its mean, all colours together, relative to the real one's mean: how loud the
  finest that level 1 holds is there. Features hold coarse and fine together and do not see it.

The last two in logarithms, since a smooth patch is where small errors are great. In place of a critic that must be trained the
inner maximum is a sort, and the gradient is exact, but for the order of numbers that are equal to one part in 128. With bfloat16
all large products are computed in it, the network's and those with views, and projections rounded to it; weights, and what is made
of projections, stay in float32.

A patch's part of V_1 has few directions, its features' and the loudness's (:func:`forwardsr.learn.copula.factors`): it stays the
product of these R and of what its neurons make of them, C, in little more than a third of the products that V_1 takes whole. At
12 px in colour that, and no more latents than :data:`forwardsr.learn.copula.LATENTS`, halve the time; the distances of 12 px are the
same, what is finest in the pictures doubled is a thirtieth further off.

What limits the descent is the noise of the drawn samples' quantiles, so these samples are no independent ones: z come in pairs
:math:`\pm z`, and as many of a half as z has numbers at right angles (:mod:`forwardsr.learn.even`). Faces at 12 px are then in 250
steps where independent samples are in 1000.

=================  =========  =========================================================================================
setting            default    reason
=================  =========  =========================================================================================
STEPS, BATCH       450, 512   twice the batch takes half as long again and is no nearer, half of it is a tenth further off; 540 steps
                              are a hundredth nearer
SLICES, SIZES      400, 80    windows at once, and those of contrasts; 256 of the first cost a twenty-fifth of the distances, half as
                              many again of the second gain nothing
BAND, BAND_WINDOW  0.24, 7    part of the windows that are of the image blurred, as many are of what is finest in it doubled; and
                              their pixels a side. Buildings at 48 px: 17.5 with the second alone, 17.0 with both in windows of all
                              sizes, 16.6 so, 18.4 without (three draws of 4096; 480 windows, a fifth, 600 steps)
REUSED             3          steps that views are kept for: at 5 all is a fiftieth further off, at 8 a twelfth; a third fewer views
                              at every second step are no better
CONTRAST, ENERGY   0.15,      c_A, and c_F a pixel of the image: 0.013 at 8 px, 0.029 at 12; more takes from the windows. Without c_A
                   2e-4       buildings are a twentieth further off, with twice c_F faces' finest band is nearer, all else further
SMALL, QUIET       0.01,      epsilon_A, epsilon_F, of a mean contrast and of a mean energy: below it a patch is smooth, however
                   0.03       much
REAL, SEEN         10,000,    real samples that are kept, and those of them that are sorted, others each time: five times a batch;
                   2560       with four times a batch, kept for five steps, faces were a sixteenth further off than with six times
RATE               0.007      Adam, for b; 0.9 of it for C (a third of that is a fiftieth further off), 0.3 for R, and the usual size
                              of W times it for W; 0.01 makes buildings too loud at 12 px, 0.005 is slower
AVERAGED           0.95       decay of the average of the weights that is kept, over the last two fifths
FEWEST_STEPS,      80, 6      from 250 samples to 4000 no more steps than one for two has hurt held-out samples: this saves time
A_STEP
SIZE               700,000    neurons times latents: larger networks take fewer and smaller steps. 12 px in colour have as many,
                              8 px a third
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
from forwardsr.data.scale import of_blurred, of_doubled_finest
from forwardsr.learn.adversarial import average
from forwardsr.learn.copula import FirstLevel, factors, learn_first_level
from forwardsr.learn.even import even, rotation
from forwardsr.sorting import argsort_rows, sort_rows

STEPS, BATCH = 450, 512
SLICES, SIZES, REUSED = 400, 80, 3
CONTRAST, ENERGY = 0.15, 2e-4
RATE = 0.007
MOMENTUM = (0.5, 0.99)
AVERAGED, FROM = 0.95, 0.6
SIZE = 700_000
FEWEST_STEPS, A_STEP = 80, 6  # no more steps than one for so many samples
REAL, SEEN = 10_000, 2560
WINDOWS = (2, 3, 4, 6, 8, 8)  # pixels a side; and the whole image, as often as two of these (four at 8 px)
PATCHES = (1, 1, 2, 2, 3)  # patches a side; and all, once
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
    """``W ReLU(C R z - b)`` at z and then at -z, patch first and sample last, all products in a given dtype: what autograd would do
    with half the products by C and R, and hidden layers stay in that dtype.
    """

    @staticmethod
    def forward(ctx: Any, z: Tensor, C: Tensor, R: Tensor, W: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
        z, C, R, W, b = (t.to(dtype) for t in (z, C, R, W, b))
        g = (R.flatten(0, 1) @ z.T).view(*R.shape[:2], -1)
        h = C @ g
        s = h.new_empty(*h.shape[:2], 2 * len(z))
        torch.sub(h, b[..., None], out=s[..., : len(z)])
        torch.sub(-b[..., None], h, out=s[..., len(z) :])
        s.relu_()
        ctx.save_for_backward(z, C, g, W, s)
        return (W @ s).float()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        z, C, g, W, s = ctx.saved_tensors
        of_x = gradients[0].to(s.dtype)
        of_s = W.mT @ of_x
        torch.ops.aten.threshold_backward.grad_input(of_s, s, 0, grad_input=of_s)
        of_b = -of_s.sum(2, dtype=torch.float32)
        of_h = of_s[..., : len(z)].sub_(of_s[..., len(z) :])
        of_R = (C.mT @ of_h).flatten(0, 1) @ z
        return None, (of_h @ g.mT).float(), of_R.view(*g.shape[:2], -1).float(), (of_x @ s.mT).float(), of_b, None


def _apart(rows: Float[Tensor, "s n"], quantiles: Float[Tensor, "s n"], unit: Float[Tensor, " s"]) -> Tensor:
    """W_1 of rows and their quantiles, in units, the mean of rows."""
    return _Apart.apply(rows, quantiles, unit)  # type: ignore[no-untyped-call]


class _Apart(torch.autograd.Function):
    """See :func:`_apart`; autograd's way through sorted rows is twice as long."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, quantiles: Tensor, unit: Tensor) -> Tensor:
        order = argsort_rows(rows)
        over = rows.gather(1, order).sub_(quantiles)
        ctx.save_for_backward(order, over, unit)
        return (over.norm(p=1, dim=1) / unit).sum() / over.numel()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        order, over, unit = ctx.saved_tensors
        slope = over.sign_().mul_((gradients[0] / (unit * over.numel()))[:, None])
        return torch.empty_like(slope).scatter_(1, order, slope), None, None


class _Energy(torch.autograd.Function):
    """Of all blocks of 2 x 2 pixels about their means, ``(c, s, s, n)`` to ``((s - 1)^2, n)``: a contrast of a colour, the sum of
    squares less four times the mean's, over 3 c.
    """

    @staticmethod
    def forward(ctx: Any, image: Tensor) -> Tensor:
        total = _summed(image)
        ctx.save_for_backward(image, total)
        return ((_summed(image.square().sum(0)) - total.square().sum(0) / 4) / (3 * len(image))).flatten(0, 1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        image, total = ctx.saved_tensors
        of_energy = gradients[0].view(total.shape[1:]) * (2 / (3 * len(image)))
        return image * _spread(of_energy) - _spread(total * (of_energy / 4))


def _summed(x: Float[Tensor, "*c s s n"]) -> Float[Tensor, "*c t t n"]:
    """Over every block of 2 x 2 pixels, t = s - 1."""
    rows = x[..., 1:, :, :] + x[..., :-1, :, :]
    return rows[..., 1:, :] + rows[..., :-1, :]


def _spread(x: Float[Tensor, "*c t t n"]) -> Float[Tensor, "*c s s n"]:
    """To every pixel the sum over the blocks that hold it."""
    return _summed(functional.pad(x, (0, 0, 1, 1, 1, 1)))


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
    x = x[torch.randperm(n, generator=generator)[:REAL]]
    views = _Views(x.permute(1, 2, 0), start, channels, 2 * half, dtype)
    first, last = (rotation(m, generator).to(dtype) for _ in range(2))
    moving = [t.clone().requires_grad_() for t in (*factors(start.V), start.W, start.b, start.mean)]
    size, spread = float(start.W.abs().mean()), float(x.std())
    rates = [0.9 * RATE, 0.3 * RATE, RATE * size, RATE, 0.1 * RATE * spread]
    adam = [_Adam(t, rate) for t, rate in zip(moving, rates)]
    kept: list[Tensor] = []
    for step in range(steps):
        if step % REUSED == 0:
            views.turn(SLICES, generator)
        C, R, W, b, mean = moving
        z = even(half, first, last, generator)
        drawn = mean[..., None] + _Patches.apply(z, C, R, W, b, dtype)  # type: ignore[no-untyped-call]
        signed, contrasts, energies = views.distances(drawn)
        (signed + CONTRAST * contrasts + ENERGY * views.pixels * energies).backward()
        for each in adam:
            each.step(min(1.0, (step + 1) / 10) * (1 - 0.95 * step / steps))
        if step >= FROM * steps:
            kept = kept or [t.detach().clone() for t in moving]
            average(kept, [t.detach() for t in moving], AVERAGED)
    C, R, W, b, mean = kept
    found = replace(start, V=C @ R, W=W, b=b, mean=mean)
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
    """One-dimensional views of images in patches, patch first and image last, and the real samples' distributions in them."""

    def __init__(
        self,
        x: Float[Tensor, "k d n"],
        start: FirstLevel,
        channels: int,
        drawn: int,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        k, d, _ = x.shape
        self.n, self.dtype = drawn, dtype
        self.place = fold(torch.arange(k * d, dtype=torch.float64).view(1, k, d), channels)[0].long()  # of every pixel
        self.grid, self.pixels = math.isqrt(k), k * d // channels
        self.centre = x.mean(2, keepdim=True)
        self.real = x - self.centre
        self.basis = start.basis.mT
        self.level = self.basis @ (self.centre - start.mean[..., None])
        usual = self._contrast(self.real).mean(2, keepdim=True).clamp_min(1e-9)
        self.basis, self.level = (self.basis / usual).contiguous(), self.level / usual
        self.contrast = self._contrast(self.real).to(dtype)
        energy = self._energy(x)
        self.loud = energy.mean(1, keepdim=True).clamp_min(1e-12)
        self.energies = _quantiles((energy / self.loud + QUIET).log_(), drawn)

    def turn(self, slices: int, generator: torch.Generator) -> None:
        """Other views, and the quantiles of real samples' projections that drawn ones are held to."""
        channels, side, _ = self.place.shape
        theta = torch.empty(slices, self.place.numel())
        theta[:, self.place.flatten()] = directions(slices, channels, side, generator).flatten(1)
        self.theta = theta.to(self.dtype)
        omega = -torch.rand(SIZES, self.grid, self.grid, self.basis.shape[1], generator=generator).neg_().log1p_()
        omega *= boxes(SIZES, self.grid, [*PATCHES, self.grid], generator)[..., None]
        self.omega = (omega / omega.sum((1, 2, 3), keepdim=True)).reshape(SIZES, -1).to(self.dtype)
        first = int(torch.randint(max(1, self.real.shape[2] - SEEN + 1), (), generator=generator))
        some = slice(first, first + SEEN)  # of samples in random order
        self.signed = _quantiles(self._signed(self.real[..., some]), self.n)
        self.unit = (self.signed.norm(dim=1) / self.n**0.5).clamp_min(1e-9)
        self.sizes = _quantiles(self._sizes(self.contrast[..., some]), self.n)

    def _signed(self, about: Float[Tensor, "k d n"]) -> Float[Tensor, "s n"]:
        """Of images less the centre."""
        return (self.theta @ about.flatten(0, 1).to(self.dtype)).float()

    def _contrast(self, about: Float[Tensor, "k d n"]) -> Float[Tensor, "k r n"]:
        """The sizes A of features, of images less the centre."""
        return torch.baddbmm(self.level, self.basis, about).abs()

    def _sizes(self, contrast: Float[Tensor, "k r n"]) -> Float[Tensor, "s n"]:
        return ((self.omega @ contrast.flatten(0, 1)).float() + SMALL).log()

    def _energy(self, x: Float[Tensor, "k d n"]) -> Float[Tensor, "t n"]:
        image = x.flatten(0, 1).index_select(0, self.place.flatten()).view(*self.place.shape, -1)
        return _Energy.apply(image)  # type: ignore[no-untyped-call]

    def distances(self, drawn: Float[Tensor, "k d n"]) -> tuple[Tensor, Tensor, Tensor]:
        """The three means of the module's head, over the present views."""
        about = drawn - self.centre
        sizes = self._sizes(self._contrast(about).to(self.dtype))
        loudness = (self._energy(drawn) / self.loud + QUIET).log()
        return (
            _apart(self._signed(about), self.signed, self.unit),
            _apart(sizes, self.sizes, torch.ones(len(sizes))),
            _apart(loudness, self.energies, torch.ones(len(loudness))),
        )


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
    some, sizes, window = round(BAND * n), [*WINDOWS, side, side], min(BAND_WINDOW, side)
    plain = torch.randn(n - 2 * some, channels, side, side, generator=generator)
    plain *= boxes(len(plain), side, sizes, generator)[:, None]
    coarse, fine = (
        of(
            torch.randn(some, channels, window, window, generator=generator),
            torch.randint(whole - window + 1, (some, 2), generator=generator),
            side,
        )
        for of, whole in ((of_blurred, side), (of_doubled_finest, 2 * side))
    )
    return torch.cat([plain, coarse, fine])
