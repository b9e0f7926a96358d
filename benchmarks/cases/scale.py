"""How time and memory grow: with samples, patches, channels and resolution, each to 16 times its least.

Every line is a process of its own: its processor seconds, and the most memory that it held beyond what it held before it
began (MiB). *Exponents* are least-squares slopes of the logarithms over all lines of a series but those under a second, in which
what does not grow is most; 1 is linear, 0 says that nothing grows.

* **samples** and **patches** (of the finest level): planted targets, `learn --method minmax`. Chunks are streamed, so samples must
  not cost memory; a patch more is a patch more of weights, and of the few samples (10,000) that its features are found from.
* **channels** of every patch: the first level's law has p(p - 1)/2 pairs, p = 4 m, and a product of p x p a sample.
* **resolution** (the side): `minmax` and `joint` on photographs; a level more has four times the pixels, the exponent of a cost
  linear in pixels is 2. The descent of level 1, always of 8 x 8 pixels, is left out (`--level1 copula`).
"""

from __future__ import annotations

import math
import multiprocessing
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor

import torch

from cases.record import OURS, Record
from cases.training import resident
from forwardsr.data.open import open_source
from forwardsr.data.planted import PlantedSource
from forwardsr.device import resolve_precision
from forwardsr.learn.joint import JointConfig, JointLearner
from forwardsr.learn.memory import keep_freed_memory
from forwardsr.learn.minmax import MinmaxConfig, learn_minmax
from forwardsr.learn.photographs import learn_photographs
from forwardsr.learn.stream import Stream
from forwardsr.model.plant import PlantConfig, plant
from throughput import Noise

TITLE = "Scale: time and memory from small to 16 times"
_MIB = 2**20
_IMAGES = 2048
_STEPS = JointConfig.penalty_interval


def _minmax(config: PlantConfig, samples: int) -> Callable[[], object]:
    target = plant(config)
    source = PlantedSource(target)
    return lambda: learn_minmax(source, target.channels, target.parents, MinmaxConfig(samples=samples))


def _samples(n: int) -> Callable[[], object]:
    return _minmax(PlantConfig(), n)


def _patches(k: int) -> Callable[[], object]:
    return _minmax(PlantConfig(patches=(4, k)), 100_000)


def _channels(m: int) -> Callable[[], object]:
    # Activation probabilities fall with m, so that as many channels as before are active together.
    p = 0.08 * (8 / m) ** 0.5
    return _minmax(PlantConfig(patches=(4,), channels=(m,), d=192, p=(0.8 * p, p)), 200_000)


def _photographs(side: int) -> Callable[[], object]:
    source = open_source("photos", resolution=side)
    return lambda: learn_photographs(Stream(source, 0, patch=4), 3, level1="copula")


def _joint(side: int) -> Callable[[], object]:
    device = torch.device("cpu")
    config = JointConfig(precision=resolve_precision("auto", device), flip=False)
    learner = JointLearner(config, Noise(side, config.batch), device)
    return lambda: [learner.advance() for _ in range(_STEPS)]


SERIES: dict[str, tuple[Callable[[int], Callable[[], object]], tuple[int, ...]]] = {
    "samples, standard target": (_samples, (250_000, 1_000_000, 4_000_000)),
    "patches, two levels of 24 channels": (_patches, (64, 256, 1024)),
    "channels, one level of 4 patches": (_channels, (8, 32, 128)),
    "resolution, minmax on photographs": (_photographs, (16, 32, 64, 128, 256)),
    "resolution, joint, 16 steps of 16": (_joint, (16, 32, 64, 128, 256)),
}


def measure(series: str, x: int) -> tuple[float, float]:
    """Processor seconds and MiB; to be called in a fresh process."""
    keep_freed_memory()
    work, held = SERIES[series][0](x), resident("VmRSS")
    start = time.process_time()
    work()
    return time.process_time() - start, max(resident("VmHWM") - held, 0) / _MIB


def exponent(x: list[float], y: list[float]) -> float:
    """The slope of log y over log x."""
    a, b = (torch.tensor(each, dtype=torch.float64).log() for each in (x, y))
    return float(((a - a.mean()) * (b - b.mean())).sum() / (a - a.mean()).square().sum())


def run(full: bool) -> Iterator[Record]:
    """Every series; of each the two smallest in the quick form."""
    for series, (_, sizes) in SERIES.items():
        found = list[tuple[int, float, float]]()
        for x in sizes if full else sizes[:2]:
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as fresh:
                seconds, memory = fresh.submit(measure, series, x).result()
            found.append((x, seconds, memory))
            yield Record("scale", series, OURS, "", x, None, seconds, None, 1, figures={"peak memory": memory})
        long = [each for each in found if each[1] >= 1] or found[-2:]
        if len(long) < 2:
            continue
        xs, seconds_, memory_ = (list(map(float, each)) for each in zip(*long))
        figures = {"exponent of seconds": exponent(xs, seconds_), "exponent of memory": exponent(xs, memory_)}
        yield Record("scale", series, "fitted", "", math.prod(sizes[:1]), None, None, None, 1, figures=figures)
