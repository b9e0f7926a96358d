"""Theorem 5.1 in the study: targets planted, learned from samples alone, and held against what was learned.

For every seed a target is learned twice, from N samples and from N / 10: the theorem's error is to be small, and to fall as samples
are added. (Its bound is polynomial in the number of samples; the estimators used here reach 1/sqrt(N), so a factor of 3.2.)
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from rich.console import Console

from forwardsr.learn.minmax import MinmaxConfig
from forwardsr.learning_minmax import learn_theorem
from forwardsr.model.plant import plant
from forwardsr.study.cell import Values
from forwardsr.study.chapter import Chapter, Context, Stopped
from forwardsr.study.claims import Claim, Outcome
from forwardsr.study.drawing import COLOURS, STYLE, new_figure, save
from forwardsr.study.plan import Scale

FEWER = 10

SMALL = Claim(
    "theorem", "The learned network is the target, up to a rotation of the latent.",
    "there is a column orthonormal matrix U such that Pr[|G*(Uz) - G(z)| ≤ ε] ≥ 1 - 1 / (d/ε)^ω(1)", "Theorem 5.1",
    "95th percentile of |G*(Uz) - G(z)| / |G*(Uz)| over fresh z", "at every level at most a quarter",
    lambda cell: {}, at_most=0.25,
)  # fmt: skip
FALLS = Claim(
    "theorem", "More samples make it more exact.",
    "N = poly(d/ε)", "Algorithm 6",
    f"median error with N / {FEWER} samples, over that with N", "at least 2 (1/√N: 3.2)", lambda cell: {}, at_least=2.0,
)  # fmt: skip


@dataclass(frozen=True)
class Planned:
    """One learning of a target."""

    seed: int
    samples: int

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"theorem-{self.samples}-{self.seed}"


def planned(scale: Scale, seed: int) -> list[Planned]:
    """All learnings, those of N samples first."""
    sizes = (scale.theorem_samples, scale.theorem_samples // FEWER)
    return [Planned(seed + k, n) for n in sizes for k in range(scale.seeds)]


def learn(plan: Planned, scale: Scale, folder: Path) -> int:
    """Plant the seed's target where it is not yet, and learn it; returns the exit code."""
    target = folder / f"target-{plan.seed}.safetensors"
    if not target.exists():
        folder.mkdir(parents=True, exist_ok=True)
        plant(replace(scale.target, seed=plan.seed)).save(target, {})
    run = folder / plan.name
    if (run / "certificate.json").exists():
        return 0
    return learn_theorem(str(target), None, MinmaxConfig(samples=plan.samples), plan.seed, run, Console(quiet=True), "")


def certificate(plan: Planned, folder: Path) -> Values:
    """What the learning left."""
    found: Values = json.loads((folder / plan.name / "certificate.json").read_text())
    return found


def outcomes(scale: Scale, seed: int, folder: Path) -> list[Outcome]:
    """Both claims, a cell a seed."""
    small, falls = {}, {}
    for k in range(scale.seeds):
        many, few = (
            {_name(curve): curve["relative"] for curve in certificate(Planned(seed + k, n), folder)["curves"]}
            for n in (scale.theorem_samples, scale.theorem_samples // FEWER)
        )
        cell = f"target {seed + k}"
        small[cell] = {name: _quantile(relative, 0.95) for name, relative in many.items()}
        falls[cell] = {name: _quantile(few[name], 0.5) / _quantile(many[name], 0.5) for name in many}
    return [Outcome(SMALL, small), Outcome(FALLS, falls)]


def _name(curve: Values) -> str:
    return "all levels" if curve["level"] is None else f"level {curve['level']}"


def _quantile(ascending: list[float], probability: float) -> float:
    """Of a curve's points, which are its quantiles at even steps from 0 to 1."""
    return ascending[math.ceil(probability * (len(ascending) - 1))]


def lines(scale: Scale, seed: int) -> list[str]:
    """What would be learned, a line each."""
    patches = "/".join(map(str, scale.target.patches))
    return [f"{plan.name} ({patches} patches)" for plan in planned(scale, seed)]


def chapter(context: Context) -> Chapter:
    """Learn what is missing; the theorem's figure and claims. Raises :class:`Stopped`."""
    scale, folder = context.scale, context.out / "runs"
    for plan in planned(scale, context.seed):
        if code := learn(plan, scale, folder):
            raise Stopped(code)
        context.say(f"{plan.name}: learned")
    picture = save(figure(scale, context.seed, folder), context.out / "figures" / "theorem.png")
    found = outcomes(scale, context.seed, folder)
    return Chapter(
        "theorem", "Theorem 5.1: a target learned from samples alone",
        "How many z keep to which error, at every level, for each target: solid from N samples, dashed from N / "
        f"{FEWER} (N = {scale.theorem_samples:,}). The targets are planted; the learner sees samples and sizes only.",
        picture, found, None, list(found[0].effects),
    )  # fmt: skip


def figure(scale: Scale, seed: int, folder: Path) -> Figure:
    """A panel a level: the share of z with a relative error of at most epsilon."""
    many = planned(scale, seed)
    names = [_name(curve) for curve in certificate(many[0], folder)["curves"]]
    with matplotlib.rc_context(STYLE):
        drawn = new_figure(2.6 * len(names), 2.7)
        axes = np.ravel(drawn.subplots(1, len(names), sharey=True))
        for plan in many:
            whole = plan.samples == scale.theorem_samples
            for axis, curve in zip(axes, certificate(plan, folder)["curves"]):
                x = np.maximum(curve["relative"], 1e-4)
                colour = COLOURS[(plan.seed - seed) % len(COLOURS)]
                label = f"target {plan.seed}" if whole else None
                axis.plot(x, curve["probability"], "-" if whole else "--", color=colour, linewidth=1.3, label=label)
        for axis, name in zip(axes, names):
            axis.set(xscale="log", title=name, xlabel="ε, relative", ylim=(0, 1), xlim=(1e-3, 10))
        axes[0].set_ylabel("Pr[|G*(Uz) - G(z)| ≤ ε |G*(Uz)|]")
        axes[0].legend()
    return drawn
