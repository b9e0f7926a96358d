r"""Forward super-resolution: the paper's central claim, measured (§1.1, and the remark of §3).

*Linear.* "The distribution of images at resolution l is given by W_l G_l": is X_l a linear (affine) image of S_l, and of no earlier
hidden layer? The error is that of the best linear map on held-out samples,

.. math:: \bigl( E |X_l - \hat A S - \hat c|^2 / E |X_l - E X_l|^2 \bigr)^{1/2}, \qquad S = S_l \text{ or } S_{l-1} \; (S_0 = z),

0 by construction from S_l in the networks of this package: what is tested there is that the measurement, and the network as it
was loaded, are what they claim to be. From S_{l-1} it says how much the layer's nonlinearity does. In a deconvolutional network
the map is one for all positions, from the window that the network itself sees to a block of pixels; of patches it is one a patch,
from the patch's own channels or from those of its parents.

*Pooling.* Nothing in multi-scale training makes X_{l-1} the low-resolution version of X_l; "still, the generator learns to" do so.
The error is :math:`(E |pool(X_l) - X_{l-1}|^2 / E |X_{l-1} - E X_{l-1}|^2)^{1/2}`, beside that of a shuffled pairing (independent
images of one law give 1.41) and that of real data (0 where its levels were made by pooling).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

from forwardsr.data.pyramid import Pyramid, unfold
from forwardsr.data.source import FiniteSource, Source
from forwardsr.measure.draws import as_images, latents, plus_minus
from forwardsr.model.patch_generator import PatchGenerator
from forwardsr.model.protocol import LayeredGenerator

SAMPLES = 1024  # two thirds to fit, one third to test
BATCH = 128
POSITIONS = (
    6  # a side of a hidden layer at which windows are taken: 24,576 of them to fit the 1,600 numbers of the widest
)
EXACT = 1000  # inputs up to which products are in float64, so that an exact map is found to 1e-6 and better
Z95 = 1.96


@dataclass(frozen=True)
class Step:
    """What is measured at one level; errors are relative, ``*_error`` their standard errors; ``None`` where it has no meaning.

    ``from_own``, ``from_below``: of the best linear map of X_l from S_l, from S_{l-1} (from z at level 1). ``pooled``, ``shuffled``,
    ``real``: of X_{l-1} from X_l by pooling, in its own pairing, in a shuffled one, and in real data.
    """

    level: int
    from_own: float
    from_own_error: float
    from_below: float
    from_below_error: float
    pooled: float | None = None
    pooled_error: float | None = None
    shuffled: float | None = None
    real: float | None = None


@dataclass(frozen=True)
class ForwardSuperResolution:
    """All levels, coarse first."""

    steps: tuple[Step, ...]
    n: int

    def table(self) -> Table:
        """A row a level."""
        table = Table(title=f"Forward super-resolution: relative errors ({self.n:,} samples)", title_justify="left")
        table.add_column("level")
        for heading in (
            "X_l linear in S_l", "X_l linear in S_(l-1)", "X_(l-1) = pool(X_l)", "shuffled pairs", "real data",
        ):  # fmt: skip
            table.add_column(heading, justify="right")

        def cell(value: float | None, error: float | None = None) -> str:
            if value is None:
                return "-"
            return f"{value:.2g}" if error is None or value < 1e-3 else plus_minus(value, Z95 * error)

        for s in self.steps:
            table.add_row(
                str(s.level), cell(s.from_own, s.from_own_error), cell(s.from_below, s.from_below_error),
                cell(s.pooled, s.pooled_error), cell(s.shuffled), cell(s.real),
            )  # fmt: skip
        table.caption = "0: exactly so; 1: no better than the mean image. Level 1's S_0 is the latent z."
        return table

    def to_json(self) -> dict[str, Any]:
        """``n`` and a record a level."""
        return {"n": self.n, "steps": [vars(s) for s in self.steps]}


Key = tuple[int, bool]  # a level (from 0), and whether its images are predicted from the hidden layer below


@dataclass(frozen=True)
class _Examples:
    """Inputs and outputs of a linear map at each of some positions, which share one map or have one each."""

    x: Float[Tensor, "n positions k"]
    y: Float[Tensor, "n positions q"]
    shared: bool

    def rows(self) -> tuple[Tensor, Tensor]:
        """``(maps, rows, k)`` and ``(maps, rows, q)``."""
        if self.shared:
            return self.x.flatten(0, 1)[None], self.y.flatten(0, 1)[None]
        return self.x.transpose(0, 1), self.y.transpose(0, 1)


class _Regression:
    """Least squares, streamed, one map for each of the groups of rows it is given."""

    def __init__(self) -> None:
        self.gram = self.cross = self.A = torch.zeros(())

    def fit(self, examples: _Examples) -> None:
        x, y = examples.rows()
        # Products of wide windows in float32: their error, 1e-6, is far below what a map that is not exact leaves.
        x, y = (_with_one(x), y) if x.shape[-1] > EXACT else (_with_one(x.double()), y.double())
        self.gram, self.cross = self.gram + (x.mT @ x).double(), self.cross + (x.mT @ y).double()

    def solve(self) -> None:
        size = self.gram.diagonal(dim1=1, dim2=2).mean(1)
        ridge = 1e-6 if self.gram.shape[-1] > EXACT + 1 else 1e-12
        eye = torch.eye(self.gram.shape[-1], dtype=torch.float64)
        scale = size[:, None, None].clamp(min=1e-30) * eye
        factor, failed = torch.linalg.cholesky_ex(self.gram + ridge * scale)
        while bool(failed.any()):  # fewer samples than inputs, to rounding
            ridge *= 100
            factor, failed = torch.linalg.cholesky_ex(self.gram + ridge * scale)
        self.A = torch.cholesky_solve(self.cross, factor)

    def errors(self, examples: _Examples) -> Float[Tensor, " n"]:
        """Squared error of every sample."""
        x, y = examples.rows()
        e = (y.double() - _with_one(x.double()) @ self.A).square().sum(2)
        return e.view(len(examples.x), -1).sum(1) if examples.shared else e.sum(0)


def _with_one(x: Tensor) -> Tensor:
    return torch.cat([x, torch.ones_like(x[..., :1])], -1)


def _windows(S: Float[Tensor, "n m h w"], X: Float[Tensor, "n c H W"], reach: int) -> _Examples:
    """Windows of ``(2 reach + 1)^2`` hidden positions, and the block of pixels over the middle one, at evenly spaced positions."""
    h, factor = S.shape[-1], X.shape[-1] // S.shape[-1]
    width, padded = 2 * reach + 1, F.pad(S, (reach,) * 4)
    rows = torch.linspace(0, h - 1, min(h, POSITIONS)).round().long().tolist()
    places = [(i, j) for i in rows for j in rows]
    x = [padded[..., i : i + width, j : j + width].flatten(1) for i, j in places]
    y = [X[..., factor * i : factor * (i + 1), factor * j : factor * (j + 1)].flatten(1) for i, j in places]
    return _Examples(torch.stack(x, 1), torch.stack(y, 1), shared=True)


def _examples(
    generator: LayeredGenerator, z: Tensor, hidden: list[Tensor], images: list[Tensor]
) -> dict[Key, _Examples]:
    """The examples of every map that is fitted."""
    found = {}
    first = (
        z[:, : generator.V[0].shape[-1]] if isinstance(generator, PatchGenerator) else z
    )  # what the first level sees
    for level, X in enumerate(images):
        S = hidden[level]
        found[0, True] = _Examples(first[:, None], images[0].flatten(1)[:, None], shared=False)
        if S.ndim == 4:
            # A block of pixels depends on 3 x 3 positions of S_l and, through them, on 5 x 5 of S_(l-1).
            found[level, False] = _windows(S, X, 1)
            if level:
                found[level, True] = _windows(hidden[level - 1], X, 2)
            continue
        if X.ndim == 4:
            X = unfold(X, X.shape[-1] // math.isqrt(S.shape[1]))
        found[level, False] = _Examples(S, X, shared=False)
        if level:
            parents = generator.parents[level] if isinstance(generator, PatchGenerator) else None
            if parents is None:
                raise ValueError(f"{type(generator).__name__} does not say what its patches are wired to")
            found[level, True] = _Examples(hidden[level - 1][:, parents.cpu()].flatten(2), X, shared=False)
    return found


def _ratio(errors: Tensor, spread: Tensor) -> tuple[float, float]:
    """``sqrt(sum errors / sum spread)`` and its standard error (linearised), over independent samples."""
    ratio = errors.mean() / spread.mean().clamp(min=1e-30)
    deviation = (errors - ratio * spread).std() / spread.mean().clamp(min=1e-30) / math.sqrt(len(errors))
    root = ratio.sqrt()
    return float(root), float(deviation / (2 * root).clamp(min=1e-30))


@torch.no_grad()
def linear_errors(generator: LayeredGenerator, n: int = SAMPLES, seed: int = 0) -> dict[Key, tuple[float, float]]:
    """By level (from 0) and "from below", the relative error of the best linear map and its standard error.

    Fitted to two thirds of ``n`` samples, tested on the others. Raises ``ValueError`` for a generator of unknown family.
    """

    def stream(count: int, at: int) -> Iterator[dict[Key, _Examples]]:
        for z in latents(generator, count, at, BATCH):
            hidden = generator.hidden(z)
            images = [X.cpu() for X in generator.render(hidden)]
            yield _examples(generator, z.cpu(), [S.cpu() for S in hidden], images)

    maps: dict[Key, _Regression] = {}
    for part in stream(max(2 * n // 3, 1), seed):
        for key, examples in part.items():
            maps.setdefault(key, _Regression()).fit(examples)
    for fitted in maps.values():
        fitted.solve()
    errors: dict[Key, list[Tensor]] = {key: [] for key in maps}
    outputs: dict[Key, list[Tensor]] = {key: [] for key in maps}
    for part in stream(max(n // 3, 2), seed + 1):
        for key, examples in part.items():
            errors[key].append(maps[key].errors(examples))
            outputs[key].append(examples.y.flatten(1).double())
    found = {}
    for key in maps:
        y = torch.cat(outputs[key])
        found[key] = _ratio(torch.cat(errors[key]), (y - y.mean(0)).square().sum(1))
    return found


def pooling_errors(pyramid: Pyramid, shuffled: bool = False) -> list[tuple[float, float]]:
    """For levels 2, 3, ... of an image-form pyramid, the relative error of X_{l-1} from pooling X_l, and its standard error.

    ``shuffled``: against the next sample's X_{l-1}. ``ValueError`` where a side is no multiple of the one below.
    """
    found = []
    for low, high in pairwise(pyramid):
        if high.shape[-1] % low.shape[-1]:
            raise ValueError(f"images of {high.shape[-1]} px do not pool to {low.shape[-1]} px")
        pooled = F.avg_pool2d(high, high.shape[-1] // low.shape[-1]).double()
        x = low.double()
        target = x.roll(1, 0) if shuffled else x
        found.append(_ratio((pooled - target).square().sum((1, 2, 3)), (x - x.mean(0)).square().sum((1, 2, 3))))
    return found


def forward_super_resolution(
    generator: LayeredGenerator, source: Source | None = None, n: int = SAMPLES, seed: int = 0
) -> ForwardSuperResolution:
    """Measure both claims on ``n`` samples; real data's pooling where a source is given. Pooling needs patches that fold.

    Raises ``ValueError`` for a generator of a family unknown here.
    """
    linear = linear_errors(generator, n, seed)
    levels = len(linear) // 2
    own: list[tuple[float, float]] = []
    shuffled: list[tuple[float, float]] = []
    with contextlib.suppress(ValueError):  # patches that make no images are measured without pooling
        drawn = as_images(generator.sample(n, torch.Generator().manual_seed(seed)).map(device="cpu"))
        own, shuffled = pooling_errors(drawn), pooling_errors(drawn, shuffled=True)
    real: list[tuple[float, float]] = []
    if source is not None and own:
        random = torch.Generator().manual_seed(seed)
        count = min(n, len(source)) if isinstance(source, FiniteSource) else n
        real = pooling_errors(as_images(source.draw(count, random)))
    steps = []
    for level in range(levels):
        pooled, pooled_error = own[level - 1] if level and own else (None, None)
        steps.append(
            Step(
                level + 1, *linear[level, False], *linear[level, True], pooled, pooled_error,
                shuffled[level - 1][0] if level and shuffled else None,
                real[level - 1][0] if level and real else None,
            )
        )  # fmt: skip
    return ForwardSuperResolution(tuple(steps), n)
