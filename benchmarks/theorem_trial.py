"""One trial of the theorem: plant, learn, certify. What every experiment of ``theorem.py`` is made of.

Seconds are of the processor (user + system, over all threads) and of the wall, sampling included: wall time depends on what else
runs. On idle cores the two differ by the number of threads in use.
"""

from __future__ import annotations

import math
import resource
import time
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from forwardsr.data.planted import PlantedSource
from forwardsr.data.source import Source
from forwardsr.learn.latent_law import pair_bound
from forwardsr.learn.minmax import MinmaxConfig, learn_minmax
from forwardsr.measure.certificate import Certificate, certify
from forwardsr.model.patch_generator import PatchGenerator
from forwardsr.model.plant import PlantConfig, plant

Line = dict[str, Any]

COLUMNS = (
    "what", "samples", "cpu s", "wall s", "GB", "W", "V_l", "b_l", "norms", "biases", "Gram", "Gram/CR", "median %", "95th %",
)  # fmt: skip


def trial(
    what: str,
    config: PlantConfig,
    settings: MinmaxConfig,
    noise: float = 0.0,
    seed: int = 0,
    fresh: int = 4000,
    target: PatchGenerator | None = None,
    source: Source | None = None,
) -> Line:
    """Plant (unless a target is given), learn (from ``source``, where its samples are not all the target's), certify on ``fresh`` z:
    one line, printed and returned.

    W, V_l and b_l are worst cases over all patches and channels; norms, biases and Gram are r.m.s., beside which ``norms CR`` and
    ``biases CR`` are what the Cramér-Rao bound of the samples allows them (r.m.s. over neurons, each alone). Raises ``UserError``
    where the learner refuses.
    """
    target = target or plant(config)
    source = source or PlantedSource(target, noise)
    cpu, wall = time.process_time(), time.perf_counter()
    result = learn_minmax(source, target.channels, target.parents, settings, seed)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    certificate = certify(result.generator, target, fresh, seed, result.state, settings.samples)
    line = {
        "what": what,
        "samples": settings.samples,
        "cpu s": cpu,
        "wall s": wall,
        "GB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
        **errors(certificate),
        **bounds(target, settings.samples),
        "notes": result.notes,
        "stages": [record.to_json() for record in result.trace],
    }
    show([line])
    return line


def errors(certificate: Certificate) -> Line:
    """A certificate's errors, each over all levels it is of."""
    worst = {
        name: max(
            (row.worst for row in certificate.rows if row.lemma == lemma and row.quantity.startswith(start)),
            default=0.0,
        )
        for name, lemma, start in (("W", "B.2", "columns"), ("V_l", "D.10", "V"), ("b_l", "D.10", "b"))
    }
    first = {row.quantity: row for row in certificate.rows if row.level == 1}
    gram = [row.rms for row in certificate.rows if row.lemma == "C.10" and "relative" in row.quantity]
    in_bounds = first.get("<V, V'>, in Cramér-Rao bounds")
    return {
        **worst,
        "norms": first["norms of V_1, relative"].rms,
        "norms worst": first["norms of V_1, relative"].worst,
        "biases": first["biases, relative"].rms,
        "biases worst": first["biases, relative"].worst,
        "Gram": math.sqrt(sum(x * x for x in gram) / len(gram)),
        "Gram/CR": in_bounds.rms if in_bounds is not None else math.nan,
        "median %": 100 * certificate.total.quantile(0.5),
        "95th %": 100 * certificate.total.quantile(0.95),
        "unmatched": len(certificate.unmatched),
    }


def bounds(target: PatchGenerator, samples: int) -> Line:
    """What ``samples`` allow the relative errors of norms and biases (``b = t sigma``), r.m.s. over the neurons of level 1."""
    sigma = target.V[0].double().norm(dim=2).flatten()
    t = target.b[0].double().flatten() / sigma
    # Of (t, log sigma), from the neuron alone: a second one that is uncorrelated tells nothing of it.
    covariance = pair_bound(t, t, torch.zeros_like(t))[:, :2, :2]
    slopes = torch.stack([torch.ones_like(t), t], -1)[:, :, None]
    of_b = (slopes.mT @ covariance @ slopes)[:, 0, 0] / torch.maximum(t.square(), torch.ones_like(t))
    return {
        "norms CR": float((covariance[:, 1, 1].mean() / samples).sqrt()),
        "biases CR": float((of_b.mean() / samples).sqrt()),
    }


def show(lines: list[Line]) -> None:
    """Print lines as a table, then their notes."""
    if not lines:
        return
    table = Table()
    for name in COLUMNS:
        table.add_column(name)
    for line in lines:
        table.add_row(*(f"{line[c]:.3g}" if isinstance(line[c], float) else f"{line[c]}" for c in COLUMNS))
    console = Console(width=170)
    console.print(table)
    for line in lines:
        for note in line["notes"]:
            console.print(f"{line['what']}: {note}")
        if line["unmatched"]:
            console.print(f"{line['what']}: {line['unmatched']} columns unmatched")


def slope(x: list[float], y: list[float]) -> float:
    """Least-squares slope of log y in log x."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def straight(x: list[float], y: list[float]) -> tuple[float, float]:
    """``(a, b)`` of ``y = a + b x``, fitted by relative errors, so that small and large count alike."""
    a, b = np.linalg.lstsq(np.stack([1 / np.array(y), np.array(x) / np.array(y)], 1), np.ones(len(x)), rcond=None)[0]
    return float(a), float(b)
