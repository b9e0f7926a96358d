"""Work, counted: no learner draws more samples, goes over its data more often, or calls more operators than recorded here.

Counts, unlike seconds, are the same on every machine. Where one falls, lower its number here; where one must grow, say why in the
commit. Samples, passes and a training step are counted exactly. Refinements stop when they have converged, which rounding may
move by a round, so multiply-adds and operator calls of whole learnings have ``SLACK``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from forwardsr.data.planted import PlantedSource
from forwardsr.data.pyramid import Pyramid, pool
from forwardsr.learn.joint import JointConfig, JointLearner
from forwardsr.learn.minmax import MinmaxConfig, learn_minmax
from forwardsr.learn.photographs import learn_photographs
from forwardsr.learn.stream import Stream
from forwardsr.model.patch_generator import PatchGenerator
from forwardsr.model.plant import PlantConfig, plant

SLACK = 1.1


class Work(TorchDispatchMode):
    """Counts operator calls, views left out, and the multiply-adds of products and convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = self.multiplications = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.calls += not func.is_view
        if (formula := flop_registry.get(func.overloadpacket)) is not None:
            self.multiplications += formula(*args, **(kwargs or {}), out_val=out) // 2
        return out


def work(run: Callable[[], object]) -> Work:
    """What ``run()`` took."""
    with Work() as counted:
        run()
    return counted


class Counted(PlantedSource):
    """Counts the samples drawn, by the number of levels drawn."""

    def __init__(self, target: PatchGenerator, noise: float) -> None:
        super().__init__(target, noise)
        self.read: Counter[int] = Counter()

    def draw(self, n: int, generator: torch.Generator, levels: int | None = None) -> Pyramid:
        self.read[levels or len(self.shapes)] += n
        return super().draw(n, generator, levels)


class Photographs:
    """A finite source of smooth random images, 8 and 16 px, that counts its samples by the number of levels read."""

    name = "photographs"

    def __init__(self, n: int) -> None:
        coarse = torch.randn(n, 3, 4, 4, generator=torch.Generator().manual_seed(0))
        images = torch.nn.functional.interpolate(coarse, size=16, mode="bilinear")
        speckle = torch.randn(images.shape, generator=torch.Generator().manual_seed(1))
        self.pyramid = pool(0.5 * images + 0.3 * images.abs() * speckle, (8, 16))
        self.shapes = tuple(tuple(x.shape[1:]) for x in self.pyramid)
        self.read: Counter[int] = Counter()

    def __len__(self) -> int:
        return self.pyramid.n

    def take(self, index: torch.Tensor, levels: int | None = None) -> Pyramid:
        self.read[levels or len(self.shapes)] += len(index)
        return Pyramid([x[index] for x in self.pyramid[:levels]])

    def draw(self, n: int, generator: torch.Generator, levels: int | None = None) -> Pyramid:
        return self.take(torch.randint(len(self), (n,), generator=generator), levels)


CHUNK = 2**14  # of a streamed source; without noise the signal subspace takes one
OUTLINE = 2 * CHUNK  # with noise
EXACT = 10_000  # samples that then suffice for features and super-resolution


@pytest.mark.parametrize(
    ("noise", "read", "calls", "multiplications"),
    [
        # One pass for the latent law; subspace and features at each level; super-resolution at the second.
        (0.0, {1: 60_000 + CHUNK + EXACT, 2: CHUNK + EXACT + EXACT}, 10_750, 831_680_400),
        (0.03, {1: 60_000 + OUTLINE + 40_000, 2: OUTLINE + 2 * 40_000}, 12_675, 1_834_326_136),
    ],
)
def test_efficient_learning(noise: float, read: dict[int, int], calls: int, multiplications: int) -> None:
    target = plant(PlantConfig(patches=(4, 16), channels=(6,), d=12, p=(0.1, 0.15)))
    source = Counted(target, noise)
    settings = MinmaxConfig(samples=60_000, feature_samples=40_000)
    found = work(lambda: learn_minmax(source, target.channels, target.parents, settings))
    assert source.read <= Counter(read)
    assert found.calls <= SLACK * calls
    assert found.multiplications <= SLACK * multiplications


def test_photographs_fit() -> None:
    source = Photographs(600)
    found = work(lambda: learn_photographs(Stream(source, 0, 4), 3, 0))
    # Both levels for the sample that innovations are learned from and for the regression; the coarsest once for its law.
    assert source.read <= Counter({2: 2 * 600, 1: 600})
    assert found.calls <= SLACK * 54_268
    # Nine tenths of them for the 100 steps of level 1's descent, 512 samples and 400 windows each.
    assert found.multiplications <= SLACK * 39_341_244_016


def test_joint_step() -> None:
    source = Photographs(64)
    config = JointConfig(width=32, latent=16, batch=8, penalty_interval=2, precision="float32")
    learner = JointLearner(config, source, torch.device("cpu"))
    penalised, plain = work(learner.advance), work(learner.advance)
    assert source.read <= Counter({2: 2 * config.batch})
    assert plain.calls <= 187
    assert plain.multiplications <= 83_861_504
    assert penalised.calls <= 544
    assert penalised.multiplications <= 170_213_376


def test_doubled_work_is_seen() -> None:
    a = torch.ones(3, 4)
    once, twice = work(lambda: a @ a.T), work(lambda: (a @ a.T, a @ a.T))
    assert (once.calls, once.multiplications) == (1, 3 * 4 * 3)
    assert (twice.calls, twice.multiplications) == (2, 2 * 3 * 4 * 3)
