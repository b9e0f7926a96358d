"""The learned law against the generic alternative: a multi-scale GAN with Adam on the same target's samples.

The standard target (12, 24, 48 px), learned by `minmax` from a million samples, and by `joint` (the package's own multi-scale GAN,
which sees fresh samples as fast as it can use them) in the same time and in multiples of it. *Error* is the distance of 2,048 drawn
samples from as many of the target's, in noise floors (geometric mean over levels and both forms of sliced Wasserstein distance): 1
is indistinguishable. n is the number of samples seen.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator

import torch

import forwardsr
from cases.record import OURS, Record
from forwardsr.data.folded import FoldedSource
from forwardsr.data.planted import PlantedSource
from forwardsr.data.pyramid import Pyramid
from forwardsr.device import resolve_precision
from forwardsr.learn.joint import JointConfig, JointLearner
from forwardsr.learn.minmax import MinmaxConfig, learn_minmax
from forwardsr.measure.distance import Reference
from forwardsr.model.plant import PlantConfig, plant

TITLE = "The learned law against the generic alternative"
PEER = "multi-scale GAN (joint)"
N = 1_000_000
TIMES = (1, 4, 16)  # ours
TIMES_QUICK = (1,)
GOAL = 1.0


def run(full: bool) -> Iterator[Record]:
    """Ours once, then the GAN, stopped at every multiple of its time to be measured."""
    target = plant(PlantConfig())
    source = FoldedSource(PlantedSource(target))
    reference = Reference.from_source(source, 2048, seed=1)

    def error(samples: Pyramid) -> float:
        return math.exp(reference.compare(samples).score())

    learn_minmax(PlantedSource(target), target.channels, target.parents, MinmaxConfig(samples=10_000))
    start = time.process_time()
    learned = learn_minmax(PlantedSource(target), target.channels, target.parents, MinmaxConfig(samples=N)).generator
    seconds = time.process_time() - start
    drawn = learned.sample(2048, torch.Generator().manual_seed(2)).fold(3)
    ours = error(Pyramid([x / source.scale for x in drawn]))
    setting = "standard target, 12 to 48 px"
    yield Record("generic", setting, OURS, forwardsr.__version__, N, ours, seconds, None, 1)

    device = torch.device("cpu")
    config = JointConfig(flip=False, precision=resolve_precision("auto", device))
    learner, spent = JointLearner(config, source, device), 0.0
    for times in TIMES if full else TIMES_QUICK:
        while spent < times * seconds:
            start = time.process_time()
            learner.advance()
            spent += time.process_time() - start
        theirs = error(learner.shown().sample(2048, torch.Generator().manual_seed(2)))
        yield Record(
            "generic", setting, f"{PEER}, {times} x the time", "", learner.images, theirs, spent, None, 1,
            {"error": ours / theirs, "seconds": seconds / spent}, {"error": GOAL},
        )  # fmt: skip
