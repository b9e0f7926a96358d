"""The plan of a study: which runs a figure needs at each scale, and how long each of them learns.

Every learner of a *cell* (one resolution, one seed) spends the same compute, counted in multiplications (:mod:`compute`):
that of ``joint`` on the scale's number of images. Pictures come from one cell at the scale's full resolution, numbers and their
spread from several seeds at another, where the two differ. Runs are shared by all figures that name them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from forwardsr.errors import UserError
from forwardsr.learn.joint import Stage
from forwardsr.learn.schedules import matching_width, schedule
from forwardsr.learning import LearnConfig
from forwardsr.model.deconv_generator import pyramid_sides
from forwardsr.model.plant import PlantConfig
from forwardsr.study.compute import step_cost


@dataclass(frozen=True)
class Size:
    """One kind of cell: the side of the finest pictures, and the images that ``joint`` sees."""

    side: int
    images: int


@dataclass(frozen=True)
class Scale:
    """How large a study is. ``samples``: of each measurement, its own default where ``None``."""

    name: str
    pictures: Size
    numbers: Size
    seeds: int
    width: int
    batch: int
    samples: int | None
    precision: str
    target: PlantConfig
    theorem_samples: int

    def scaled(self, effort: float) -> Scale:
        """The same with ``effort`` times the images."""
        fewer = [replace(size, images=max(round(size.images * effort), 1)) for size in (self.pictures, self.numbers)]
        return replace(self, pictures=fewer[0], numbers=fewer[1])


# The paper gives the network (four hidden layers of 64 channels, 6 x 6 filters, pictures of 64 px) and neither its batch nor the
# number of epochs: gpu takes DCGAN's batch of 64 and 5,000,000 images (25 epochs of CelebA, 40 of LSUN Church).
SCALES = {
    scale.name: scale
    for scale in (
        Scale(
            "smoke", Size(32, 4_000), Size(16, 3_000), seeds=2, width=32, batch=8, samples=512, precision="float32",
            target=PlantConfig(patches=(4, 16), channels=(12,)), theorem_samples=100_000,
        ),
        Scale(
            "cpu", Size(64, 60_000), Size(32, 40_000), seeds=3, width=64, batch=16, samples=None, precision="auto",
            target=PlantConfig(), theorem_samples=1_000_000,
        ),
        Scale(
            "gpu", Size(64, 5_000_000), Size(64, 5_000_000), seeds=3, width=64, batch=64, samples=None, precision="auto",
            target=PlantConfig(), theorem_samples=10_000_000,
        ),
    )
}  # fmt: skip


@dataclass(frozen=True)
class Need:
    """What a figure is made from: runs of these methods, and measurements of the first of them."""

    methods: tuple[str, ...]
    what: tuple[str, ...] = ()


FIGURES = {
    "figure1": Need(("joint",), ("forward-super-resolution",)),
    "figure2": Need(("joint",), ("features",)),
    "figure3": Need(("joint",), ("sparsity", "correlation")),
    "figure4": Need(("joint",), ("locality",)),
    "figure5": Need(("joint",), ("features",)),
    "figure6": Need(("joint",), ("moments",)),
    "figure7": Need(("layerwise", "last-layer", "joint")),
    "figure8": Need(("backward-correction", "layerwise"), ("corrections",)),
}


@dataclass(frozen=True)
class RunPlan:
    """One learning. ``images``: its budget; ``compute``: multiplications in all; ``shares``: of its stages, in images."""

    method: str
    side: int
    seed: int
    images: int
    compute: float
    shares: str | None
    random_width: int | None
    scale: Scale

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.method}-{self.side}px-{self.seed}"

    def config(self, source: str, device: str = "auto") -> LearnConfig:
        """The settings of :func:`forwardsr.learning.fit`."""
        return LearnConfig(
            source=source, method=self.method, resolution=self.side, images=self.images, shares=self.shares, seed=self.seed,
            width=self.scale.width, batch=self.scale.batch, precision=self.scale.precision, device=device, skip_bad=True,
            report_images=max(16_384, self.images // 16),
        )  # fmt: skip


def run_plan(method: str, size: Size, seed: int, scale: Scale) -> RunPlan:
    """The learning that costs as much as ``joint`` does on ``size.images`` images.

    Stages have the shares of compute that they have of time by default (each level twice that of the one below, a correction as
    much as the finest): :mod:`forwardsr.learn.schedules`.
    """
    sides = pyramid_sides(size.side)
    config = LearnConfig(width=scale.width, batch=scale.batch)
    whole = Stage("all", 0, len(sides))
    joint = step_cost(sides, whole, config)
    budget = joint * size.images
    if method == "joint":
        return RunPlan(method, size.side, seed, size.images, budget, None, None, scale)
    width = matching_width(sides, config.width, config.latent, 3) if method == "last-layer" else None
    stages = schedule(method, sides)
    parts = [2.0 ** (stage.levels - 1) for stage in stages]
    images = [budget * part / sum(parts) / step_cost(sides, stage, config, width) for part, stage in zip(parts, stages)]
    shares = ",".join(f"{count / min(images):.3f}" for count in images) if len(images) > 1 else None
    return RunPlan(method, size.side, seed, round(sum(images)), budget, shares, width, scale)


@dataclass(frozen=True)
class CellPlan:
    """One resolution and seed: its runs by method, and the measurements by the method of the run that they are of."""

    role: Literal["pictures", "numbers", "both"]
    side: int
    seed: int
    runs: dict[str, RunPlan]
    what: dict[str, tuple[str, ...]]

    @property
    def name(self) -> str:
        """Short, for tables."""
        return f"{self.side} px, seed {self.seed}"


def cells(figures: Sequence[str], scale: Scale, seed: int) -> list[CellPlan]:
    """The cells of these figures (names of :data:`FIGURES`), that of the pictures first."""
    needs = [FIGURES[figure] for figure in figures]
    methods = list(dict.fromkeys(method for need in needs for method in need.methods))
    if not methods:
        return []
    what: dict[str, tuple[str, ...]] = {}
    for need in needs:
        what[need.methods[0]] = tuple(dict.fromkeys((*what.get(need.methods[0], ()), *need.what)))
    same = scale.pictures == scale.numbers
    sizes: list[tuple[Literal["pictures", "numbers", "both"], Size, int]] = [
        ("both" if same else "pictures", scale.pictures, seed)
    ]
    sizes += [("both" if same else "numbers", scale.numbers, seed + k) for k in range(1 if same else 0, scale.seeds)]
    return [
        CellPlan(role, size.side, s, {m: run_plan(m, size, s, scale) for m in methods}, what) for role, size, s in sizes
    ]


def find_scale(name: str, effort: float) -> Scale:
    """The scale of that name. Raises :class:`UserError`."""
    if name not in SCALES:
        raise UserError(f"--scale {name}: no such scale; say {', '.join(SCALES)}")
    if not effort > 0 or effort > 1000:
        raise UserError(f"--effort {effort}: must be positive, such as 0.3 for three tenths of the images")
    return SCALES[name].scaled(effort)


@dataclass(frozen=True)
class ReproduceConfig:
    """The settings of a study."""

    source: str | None = None
    """The pictures: an image folder or .zip, or a name: photos, digits. The theorem alone needs none."""
    scale: str = "smoke"
    """smoke (minutes, 16 and 32 px), cpu (about two hours on two cores, 64 px) or gpu (the paper's size)."""
    effort: float = 1.0
    """A factor on the scale's number of images, so on the time of learning: 0.3 is a third of the study."""
    seed: int = 0
    """Of the first run; the others count up from it."""
    device: str = "auto"
    """auto, cpu or cuda."""
