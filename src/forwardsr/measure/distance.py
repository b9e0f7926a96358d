r"""Distance: how far generated images are from real ones, at every resolution, against the noise floor of real from real.

Level l of a pyramid is cut into its own Laplacian bands :math:`\Delta_{l,1}, \dots, \Delta_{l,B}` (low-pass first), each
band into 7 x 7 patches, and a patch is a vector :math:`p \in R^{49 c}`. With directions :math:`\theta_r` uniform on the sphere
of :math:`R^{49 c}` (of fewer numbers where the band is smaller than a patch),

.. math:: d_l = \frac{10^3}{B} \sum_b \frac1R \sum_r W_1\big( \theta_r \cdot p,\ \theta_r \cdot q \big),
          \qquad p \sim \Delta_{l,b}(X_l^{gen}),\ q \sim \Delta_{l,b}(X_l^{real}).

Since the low-pass band is among them, a wrong colour at 64 px is seen at the 64 px level, not only at the 8 px one. Two forms:

* ``raw``: patches as they are, so :math:`d_l` is in thousandths of the [-1, 1] scale (for a shift of everything by t in all
  channels, the low-pass term is :math:`10^3 |t|\, E|\sum_j \theta_j| \approx 800 |t|`, and the other bands' terms are 0);
* ``standardised`` (Karras et al. 2018, whose table is the bands of the finest level): each side's patches are first given
  mean 0 and variance 1 in each channel, over all patches and pixels, *by their own* mean and variance.

**What the standardised form cannot see.** Let :math:`Y_c = a_c X_c + b_c` with :math:`a_c > 0`: other colours, another
brightness and contrast. The Laplacian pyramid is linear and keeps constants in the low-pass band alone, so every patch
transforms as :math:`p_c \mapsto a_c p_c + b'_c` with :math:`b'_c` the same for all patches (:math:`b_c` in the low-pass band, 0
in the others). A band's mean :math:`\mu_c` and deviation :math:`\sigma_c` become :math:`a_c \mu_c + b'_c` and
:math:`a_c \sigma_c`, hence

.. math:: \frac{(a_c p_c + b'_c) - (a_c \mu_c + b'_c)}{a_c \sigma_c} = \frac{p_c - \mu_c}{\sigma_c}:

the standardised patches of Y *are* those of X, and their distance is 0. The same holds where :math:`a_c` differs from band to
band (blurring). The raw form sees all of these.

**The floor.** An empirical :math:`W_1` of n samples is not 0 for equal distributions but of order :math:`n^{-1/2}`. So every
distance stands beside that of two disjoint draws of n real images; only what exceeds it means anything.

The positions of the patches are the same in all images (and other ones for every group of directions), all of them where a band
has no more than asked for: the distance then does not depend on the order of the images, is exactly 0 for equal sets, and real
and generated share the noise of positions and directions. All randomness comes from ``seed``.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from forwardsr.data.pyramid import Pyramid
from forwardsr.data.source import FiniteSource, Source
from forwardsr.errors import UserError
from forwardsr.measure import _swd
from forwardsr.measure.diversity import diversity, spacing

SCALE = 1e3


@dataclass(frozen=True)
class Sampling:
    """How patches and directions are drawn.

    ``patches``: positions in a band, for each group of directions. ``groups``: groups of directions, each with its own
    positions. ``directions``: in a group. Karras et al. (2018) take 128 patches and 4 x 128 directions for 16,384 images.
    """

    patches: int = 16
    groups: int = 4
    directions: int = 32


@dataclass(frozen=True)
class Distance:
    """Distances of generated from real images, by level, coarse first, times 1,000; and their floors, real from real.

    ``bands_*[l]`` are the terms that ``standardised[l]`` and ``raw[l]`` are the means of: the low-pass band first, then details
    coarse to fine. ``diversity`` is the mean MS-SSIM of random pairs (1: all equal) and ``spacing`` the mean
    distance to the nearest other image (0: copies), by level. ``n`` and ``n_real`` count the generated and the real images;
    the floors are of ``n_real`` images against ``n_real`` others.
    """

    sides: tuple[int, ...]
    standardised: tuple[float, ...]
    raw: tuple[float, ...]
    floor_standardised: tuple[float, ...]
    floor_raw: tuple[float, ...]
    diversity: tuple[float, ...]
    real_diversity: tuple[float, ...]
    spacing: tuple[float, ...]
    real_spacing: tuple[float, ...]
    bands_standardised: tuple[tuple[float, ...], ...]
    bands_raw: tuple[tuple[float, ...], ...]
    n: int
    n_real: int

    def score(self) -> float:
        r"""One number to choose weights by, lower is better, 0 at the floor.

        :math:`\text{mean}_{l, form} \log(\max(d, f) / f)`, f the floor of d: the logarithm of how many times the floor the
        distances are, in geometric mean. Ratios make levels and forms count alike, whatever their units; the logarithm keeps
        one bad level from hiding the others; and a distance below its floor, luck or a copied data set, earns nothing.
        Infinite where a distance is not finite (a diverged generator).
        """
        distances = (*self.standardised, *self.raw)
        if not all(map(math.isfinite, distances)):
            return math.inf
        floors = [max(f, 1e-3) for f in (*self.floor_standardised, *self.floor_raw)]  # copies have no floor
        return sum(math.log(max(d, f) / f) for d, f in zip(distances, floors)) / len(floors)

    def table(self) -> Table:
        """A column a level, and the real-vs-real row under every row of distances."""
        size = f"{self.n:,} generated and {self.n_real:,} real images"
        table = Table(title=f"Distance of {size} (lower is better; x 1,000)", title_justify="left")
        table.add_column("")
        for side in self.sides:
            table.add_column(f"{side} px", justify="right")
        table.add_column("mean", justify="right")

        def row(name: str, values: tuple[float, ...], digits: int, style: str = "") -> None:
            cells = [f"{v:.{digits}f}" for v in (*values, sum(values) / len(values))]
            table.add_row(name, *cells, style=style)

        row("standardised (Karras et al.)", self.standardised, 2)
        row("  real vs real", self.floor_standardised, 2, "dim")
        row("raw (sees colour, contrast)", self.raw, 2)
        row("  real vs real", self.floor_raw, 2, "dim")
        row("MS-SSIM of pairs (1 = collapse)", self.diversity, 3)
        row("  real", self.real_diversity, 3, "dim")
        row("spacing of images (0 = copies)", self.spacing, 3)
        row("  real", self.real_spacing, 3, "dim")
        table.caption = (
            f"score {self.score():.3f}: {math.exp(min(self.score(), 700)):.1f} times the floor in geometric mean"
        )
        return table

    def to_json(self) -> dict[str, Any]:
        """Everything, and ``score``, as values that JSON can hold: numbers that are not finite become null."""
        return {key: _jsonable(value) for key, value in (asdict(self) | {"score": self.score()}).items()}


def _jsonable(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_jsonable(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@dataclass(frozen=True)
class _Probe:
    """What one band is looked at with: for each group, the positions ``(p,)`` and the directions ``(r, c, k, k)``."""

    positions: list[Tensor]
    directions: list[Tensor]

    @staticmethod
    def random(side: int, channels: int, sampling: Sampling, generator: torch.Generator) -> _Probe:
        k = min(_swd.PATCH, side)
        positions, directions = [], []
        for _ in range(sampling.groups):
            positions.append(torch.randperm((side - k + 1) ** 2, generator=generator)[: sampling.patches])
            theta = torch.randn(sampling.directions, channels, k, k, generator=generator)
            directions.append(theta / theta.square().sum((1, 2, 3), keepdim=True).sqrt())
        return _Probe(positions, directions)

    def project(self, band: Tensor) -> Tensor:
        """Sorted projections, raw and standardised: ``(2, groups * directions, n * p)``."""
        groups = zip(self.positions, self.directions)
        found = [_swd.project(_swd.patches(band, at.to(band.device)), theta.to(band)) for at, theta in groups]
        return torch.cat(found, dim=1)


class Reference:
    """The real side, computed once: its sorted projections, its floor and its diversity.

    Evaluations during training then pay for the generated side only. Use :meth:`from_source`, or two disjoint draws of real
    pyramids ``real`` and ``other`` (patch form is folded into images of ``channels``). ``n`` is the number of images in
    ``real``; compare as many generated ones, so that the floor fits.
    """

    def __init__(
        self, real: Pyramid, other: Pyramid, seed: int = 0, sampling: Sampling | None = None, channels: int = 3
    ) -> None:
        real, other = real.fold(channels), other.fold(channels)
        self.n, self.seed, self.channels = real.n, seed, channels
        self.shapes = tuple(tuple(x.shape[1:]) for x in real)
        generator = torch.Generator().manual_seed(seed)
        self._probes = [
            [
                _Probe.random(side, x.shape[1], sampling or Sampling(), generator)
                for side in _swd.band_sides(x.shape[-1])
            ]
            for x in real
        ]
        self._real = self._project(real)
        self.diversity, self.spacing = self._diversity(real)
        self._floor_raw, self._floor_standardised = _means(self._to_real(other))

    @staticmethod
    def from_source(
        source: Source,
        n: int = 2048,
        seed: int = 0,
        sampling: Sampling | None = None,
        channels: int = 3,
        device: torch.device | str = "cpu",
    ) -> Reference:
        """Two disjoint draws of ``n`` from ``source``: fresh where it is streamed, without replacement where it is finite.

        A finite source of fewer than ``2 n`` is cut in halves: look at ``n`` of the result. ``UserError`` where it holds fewer
        than four, or ``n < 2``.
        """
        generator = torch.Generator().manual_seed(seed)
        if isinstance(source, FiniteSource):
            order = torch.randperm(len(source), generator=generator)
            n = min(n, len(source) // 2)
            if n < 2:
                raise UserError(f"{source.name}: distances need 4 real images at least (2 against 2); give more")
            draws = [source.take(order[:n]), source.take(order[n : 2 * n])]
        else:
            if n < 2:
                raise UserError(f"{source.name}: distances need 2 samples at least; give a larger n")
            draws = [source.draw(n, generator), source.draw(n, generator)]
        real, other = (draw.map(device=device, dtype=torch.float32) for draw in draws)
        return Reference(real, other, seed, sampling, channels)

    def compare(self, pyramid: Pyramid) -> Distance:
        """The distance of generated images, of the same shapes, from the real ones; pixel values in [-1, 1].

        ``ValueError`` where the shapes differ or there are fewer than two images.
        """
        pyramid = pyramid.fold(self.channels)
        if (shapes := tuple(tuple(x.shape[1:]) for x in pyramid)) != self.shapes:
            raise ValueError(f"generated images of shapes {shapes} do not compare with real ones of {self.shapes}")
        bands = self._to_real(pyramid)
        raw, standardised = _means(bands)
        pairs, nearest = self._diversity(pyramid)
        return Distance(
            sides=tuple(shape[-1] for shape in shapes),
            standardised=standardised,
            raw=raw,
            floor_standardised=self._floor_standardised,
            floor_raw=self._floor_raw,
            diversity=pairs,
            real_diversity=self.diversity,
            spacing=nearest,
            real_spacing=self.spacing,
            bands_standardised=tuple(tuple(b[1] for b in level) for level in bands),
            bands_raw=tuple(tuple(b[0] for b in level) for level in bands),
            n=pyramid.n,
            n_real=self.n,
        )

    def _project(self, pyramid: Pyramid) -> list[list[Tensor]]:
        """By level and band, the sorted projections."""
        return [
            [probe.project(band) for probe, band in zip(probes, _swd.laplacian(x))]
            for probes, x in zip(self._probes, pyramid)
        ]

    def _to_real(self, pyramid: Pyramid) -> list[list[tuple[float, float]]]:
        """By level and band, the raw and the standardised distance."""

        def between(a: Tensor, b: Tensor) -> tuple[float, float]:
            raw, standardised = (SCALE * _swd.wasserstein(a, b.to(a)).mean(-1)).tolist()
            return raw, standardised

        levels = zip(self._project(pyramid), self._real)
        return [[between(a, b) for a, b in zip(ours, theirs)] for ours, theirs in levels]

    def _diversity(self, pyramid: Pyramid) -> tuple[tuple[float, ...], tuple[float, ...]]:
        generator = torch.Generator().manual_seed(self.seed)
        return tuple(diversity(x, generator) for x in pyramid), tuple(spacing(x) for x in pyramid)


def _means(bands: list[list[tuple[float, float]]]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The raw and the standardised distance of each level, the means over its bands."""
    raw, standardised = ([sum(b[form] for b in level) / len(level) for level in bands] for form in (0, 1))
    return tuple(raw), tuple(standardised)
