"""W from identical planted samples: one patch, d = 108, m = 24 and 64 channels.

The error is the mean over columns of |W_r - W*_r| of unit columns, after the best matching of signs and
permutation. The limit beside the peers, where there is noise: the orthonormal W nearest to the samples *given the true S*
(Procrustes), the maximum-likelihood estimate of one who is told what is hidden.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

import forwardsr
from cases.peers import PEERS, quietly
from cases.record import OURS, Record, alternate
from forwardsr.data.planted import PlantedSource
from forwardsr.data.pyramid import Pyramid
from forwardsr.learn.features import learn_features
from forwardsr.learn.stream import Stream
from forwardsr.model.patch_generator import PatchGenerator
from forwardsr.model.plant import PlantConfig, plant

TITLE = "Features (W) from identical samples"
D = 108
BAND = {24: (0.05, 0.1), 64: (0.04, 0.055)}  # of activation probabilities; m = 64 needs less (Assumption 2.2)
NOISE = 0.03
AT_MOST = {"picard": 100_000, "NMF": 100_000}  # samples: a million take them minutes
AT_MOST_QUICK = {"picard": 10_000, "NMF": 100_000}
LIMIT = "true S given"
ROUNDS = 3
_CHUNK = 50_000  # samples drawn at once


class Held:
    """Samples ``(n, d)`` of one patch as a finite source."""

    name = "held"

    def __init__(self, x: Tensor) -> None:
        self.x = x
        self.shapes = ((1, x.shape[1]),)

    def __len__(self) -> int:
        return len(self.x)

    def take(self, index: Tensor, levels: int | None = None) -> Pyramid:
        """The samples of these indices."""
        return Pyramid([self.x[index][:, None]])

    def draw(self, n: int, generator: torch.Generator, levels: int | None = None) -> Pyramid:
        """Random ones."""
        return self.take(torch.randint(len(self), (n,), generator=generator))


def ours(x: Tensor, m: int) -> np.ndarray:
    """The ``efficient`` learner's features."""
    found = learn_features(Stream(Held(x), 0), 0, m, len(x), torch.Generator().manual_seed(0), 1)
    return found.W[0].double().numpy()


def column_error(w: np.ndarray, true: np.ndarray) -> float:
    """Mean distance of unit columns after matching; both ``(d, m)``."""
    w = w / np.linalg.norm(w, axis=0)
    cosine = w.T @ true
    i, j = linear_sum_assignment(-np.abs(cosine))
    return float(np.linalg.norm(w[:, i] * np.sign(cosine[i, j]) - true[:, j], axis=0).mean())


def limit(target: PatchGenerator, x: Tensor, seed: int) -> float:
    """The error of Procrustes on the true S of the same samples."""
    generator, cross = torch.Generator().manual_seed(seed), torch.zeros(D, target.channels[0], dtype=torch.float64)
    for start in range(0, len(x), _CHUNK):
        part = x[start : start + _CHUNK]
        s = target.hidden(target.latents(len(part), generator))[0][:, 0]
        cross += (part.T @ s).double()
        torch.randn(len(part) * D, generator=generator)  # what the source drew for its noise
    u, _, vh = torch.linalg.svd(cross, full_matrices=False)
    return column_error((u @ vh).numpy(), target.W[0][0].double().numpy())


def samples(target: PatchGenerator, noise: float, n: int, seed: int) -> Tensor:
    """``(n, d)`` of the target's one patch."""
    source, generator = PlantedSource(target, noise), torch.Generator().manual_seed(seed)
    counts = [min(_CHUNK, n - start) for start in range(0, n, _CHUNK)]
    return torch.cat([source.draw(count, generator)[0][:, 0] for count in counts])


def run(full: bool) -> Iterator[Record]:
    """Every setting, smallest first."""
    for m in (24, 64) if full else (24,):
        target = plant(PlantConfig(patches=(1,), channels=(m,), d=D, p=BAND[m]))
        for noise in (0.0, NOISE):
            for n in (10_000, 100_000, 1_000_000) if full else (10_000, 100_000):
                yield from compare(target, m, noise, n, AT_MOST if full else AT_MOST_QUICK, ROUNDS if full else 1)


def compare(target: PatchGenerator, m: int, noise: float, n: int, at_most: dict[str, int], rounds: int) -> list[Record]:
    """Ours, every peer that is in time, and the limit, on the same ``n`` samples."""
    x, true = samples(target, noise, n, seed=1), target.W[0][0].double().numpy()
    array, before = x.numpy(), hashlib.sha256(x.numpy()).hexdigest()
    peers = {name: peer for name, (peer, _) in PEERS.items() if n <= at_most.get(name, n)}
    sides = {OURS: lambda: ours(x, m)}
    sides |= {name: lambda peer=peer: quietly(peer, array, m) for name, peer in peers.items()}
    sides[OURS]()  # the first call of all pays for what torch sets up once
    found = alternate(sides, rounds)
    assert hashlib.sha256(array).hexdigest() == before, "a side changed the samples"
    for name, side in found.items():
        assert side.result.shape == (D, m), f"{name} gave {side.result.shape}"
        assert np.isfinite(side.result).all(), f"{name} gave numbers that are not finite"
    error = {name: column_error(side.result, true) for name, side in found.items()}
    best, fastest = min(error[name] for name in peers), min(found[name].median for name in peers)
    goal = (0.1 if noise else 1e-3) if n >= 100_000 else None
    records = []
    for name, side in found.items():
        ratio = {"error": error[OURS] / error[name], "seconds": found[OURS].median / side.median}
        if name == OURS:  # its own line holds the goals, against the best and the fastest
            ratio = {"error": error[OURS] / best, "seconds": found[OURS].median / fastest}
        goals = {"error": goal, "seconds": 1.0} if name == OURS and goal else {}
        version = forwardsr.__version__ if name == OURS else PEERS[name][1]
        setting = f"m = {m}, {f'noise {noise:.0%}' if noise else 'no noise'}"
        turns = len(side.seconds)
        records.append(
            Record("features", setting, name, version, n, error[name], side.median, side.spread, turns, ratio, goals)
        )
    if noise:
        bound = limit(target, x, seed=1)
        records.append(
            Record("features", records[0].setting, LIMIT, "", n, bound, None, None, 1, {"error": error[OURS] / bound})
        )
    return records
