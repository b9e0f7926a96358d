r"""MINMAX-GAN, Algorithm 4: learn a :class:`PatchGenerator` layer by layer, coarse to fine, from samples alone (§4.4).

For every level: a warm start of W (line 2), then alternately the hidden layer (lines 6-10) and the output layer (lines 11-12)
while the threshold b shrinks (line 5). Three solvers play the games of these lines:

=================  ==================================================================================================
``efficient``      the best estimators that the model's structure allows; one stage of each kind a level
``closed-form``    the paper's objectives with the inner maximum taken, the generator moved to their zero
``sgda``           the paper's procedure as written: stochastic gradient descent ascent (Algorithm 6)
=================  ==================================================================================================

The learner is told the sizes (channels and graph) and sees samples; nothing else of the target. A learning is a list of stages,
known at the start. Each maps a state (named tensors) to the next and draws its randomness from ``(seed, stage)`` alone, so a
learning that stopped between two stages goes on from the state bit for bit.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from forwardsr.data.source import Source
from forwardsr.errors import UserError
from forwardsr.learn import closed_form, efficient, minmax_sgda
from forwardsr.learn.efficient import names
from forwardsr.learn.joint_law import MOST
from forwardsr.learn.minmax_sgda import MinmaxSGDASettings
from forwardsr.learn.stream import Stream, mix
from forwardsr.model.activations import Activation
from forwardsr.model.patch_generator import PatchGenerator, quad_tree

Solver = Literal["efficient", "closed-form", "sgda"]
State = dict[str, Tensor]
Outcome = tuple[State, dict[str, float], list[str]]


@dataclass(frozen=True)
class MinmaxConfig:
    """Settings of ``--method minmax``."""

    solver: Solver = "efficient"
    """How the games are played: efficient, closed-form or sgda."""
    samples: int = 1_000_000
    """Samples of level 1 for its latent law (efficient), or a stage (closed-form). Errors fall as its inverse root."""
    feature_samples: int = 40_000
    """Samples for each level's features and super-resolution (efficient; without noise 10,000 suffice and are used)."""
    level_samples: int = 1_000_000
    """Samples of the last stage above level 1 (closed-form); the stages before it take a fifth."""
    stages: int = 4
    """T', turns of the loop a level (closed-form; sgda has its own)."""
    shrink: float = 0.5
    """What b is multiplied by from one stage to the next, down to its floor (closed-form; sgda has its own)."""
    law: Literal["pairs", "joint"] = "pairs"
    """Level 1's latent law (efficient): from pairs of neurons; or, without noise and with at most 128 neurons, refined from all of
    them jointly, which lowers Theorem 5.1's error by a seventh for a minute of a core a million samples."""
    latent_dim: int | None = None
    """m_0', columns of V_1. Default: d_1 m_1, enough for any distribution (the paper's 2 d_1 m_1 adds zero columns)."""
    zeta: float = 0.0
    """Slope of the learned network's leaky ReLU below zero; 0 is plain ReLU."""
    patch: int | None = None
    """Side of a patch in pixels, for images; 4, or half the coarsest side, where not given."""
    innovation: float = 1.0
    """Images: a factor on what finer levels add to coarser ones; below 1 pictures are smoother than the data."""
    level1: Literal["sliced", "copula", "adversarial"] = "sliced"
    """Images: the law of the coarsest level: in closed form (copula), from there on in the sliced Wasserstein distance (sliced), or
    against a critic (adversarial)."""
    sgda: MinmaxSGDASettings = field(default_factory=MinmaxSGDASettings)
    """Algorithm 4's and 6's own numbers (sgda); its zeta, latent and patch stand in for those above."""

    def __post_init__(self) -> None:
        checks = (
            (self.samples >= 1000, "--samples: needs at least 1000"),
            (self.feature_samples >= 1000, "--feature-samples: needs at least 1000"),
            (self.level_samples >= 1000, "--level-samples: needs at least 1000"),
            (self.stages >= 1, "--stages: needs at least 1"),
            (0 < self.shrink < 1, "--shrink: must be between 0 and 1"),
            (self.latent_dim is None or self.latent_dim >= 1, "--latent-dim: must be positive"),
            (
                self.law == "pairs" or self.solver == "efficient",
                f"--law {self.law}: --solver {self.solver} has no use for it",
            ),
            (0 <= self.zeta < 1, "--zeta: must be in [0, 1)"),
            (self.patch is None or self.patch >= 2, "--patch: must be at least 2"),
            (0 <= self.innovation <= 4, "--innovation: must be in [0, 4]"),
        )
        for holds, message in checks:
            if not holds:
                raise UserError(message)


@dataclass(frozen=True)
class StageRecord:
    """One stage: what it was, what it took, what it found. ``level`` counts from 1, ``index`` from 0."""

    index: int
    total: int
    level: int
    name: str
    algorithms: str
    seconds: float
    metrics: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Plain types, for a line of log.jsonl."""
        return asdict(self)


@dataclass
class MinmaxResult:
    """The learned network, the record of every stage run, all notes, and the last state (with ``W{l}.warm``, Lemma A.1's)."""

    generator: PatchGenerator
    trace: list[StageRecord]
    notes: list[str]
    state: State


@dataclass(frozen=True)
class Stage:
    """One entry of the plan; ``turn`` is t of Algorithm 4's inner loop, and ``run`` maps (state, seed) to the outcome."""

    level: int
    name: str
    algorithms: str
    run: Callable[[State, int], Outcome]


def learn_minmax(
    source: Source,
    channels: Sequence[int],
    parents: Sequence[Tensor | None] | None = None,
    settings: MinmaxConfig = MinmaxConfig(),
    seed: int = 0,
    on_stage: Callable[[StageRecord, State], None] | None = None,
    resume: State | None = None,
) -> MinmaxResult:
    """Learn a network with ``channels[l]`` channels a patch at every level from samples of ``source``.

    ``parents``: ``None``, then int64 ``(d_l, |P|)``; where not given, the source's own, or quad-trees. ``on_stage`` is called
    after each stage with its record and the state; that state, given as ``resume``, goes on from there. Finite sources are read
    once for the latent law; ``settings.samples`` is a limit there.

    Raises ``UserError`` for channels or graphs that do not fit the source, dead channels, zero or NaN data, too few samples.
    """
    stream = Stream(source, seed)
    channels = _channels(stream, channels)
    graph = _parents(stream, parents)
    plan = _plan(stream, channels, graph, settings)
    state: State = dict(resume or {})
    start = int(state["stage"]) if "stage" in state else 0
    trace: list[StageRecord] = []
    for index in range(start, len(plan)):
        stage, began = plan[index], time.perf_counter()
        found, metrics, notes = stage.run(state, mix(seed, 1000 + index))
        state = state | found | {"stage": torch.tensor(index + 1)}
        seconds = time.perf_counter() - began
        record = StageRecord(index, len(plan), stage.level, stage.name, stage.algorithms, seconds, metrics, notes)
        trace.append(record)
        if on_stage is not None:
            on_stage(record, state)
    notes = [note for record in trace for note in record.notes]
    zeta = settings.sgda.zeta if settings.solver == "sgda" else settings.zeta
    return MinmaxResult(network(state, graph, zeta), trace, notes, state)


def network(
    state: State, parents: Sequence[Tensor | None], zeta: float = 0.0, most: int | None = None
) -> PatchGenerator:
    """The network in a state: as many levels as are there with W, V and b, at ``most`` where given."""
    levels = 0
    while levels != most and all(f"{key}{levels + 1}" in state for key in "WVb"):
        levels += 1
    if not levels:
        raise ValueError("no level is finished")
    W, V, b = ([state[f"{key}{l}"] for l in range(1, levels + 1)] for key in "WVb")
    return PatchGenerator(W, V, b, list(parents[:levels]), Activation("leaky", zeta))


def _channels(stream: Stream, channels: Sequence[int]) -> list[int]:
    levels = len(stream.sizes)
    found = [int(m) for m in channels]
    if len(found) == 1:
        found *= levels
    if len(found) != levels:
        raise UserError(f"--channels: {len(found)} numbers for {levels} levels; give one, or one a level")
    for l, (m, (_, d)) in enumerate(zip(found, stream.sizes), start=1):
        if m < 1:
            raise UserError(f"--channels: {m} at level {l} must be positive")
        if m > d:
            raise UserError(
                f"--channels: {m} at level {l}, but its patches hold only {d} numbers; ask for {d} or fewer"
            )
    return found


def _parents(stream: Stream, parents: Sequence[Tensor | None] | None) -> list[Tensor | None]:
    sizes, levels = [k for k, _ in stream.sizes], len(stream.sizes)
    given = list(parents) if parents is not None else list(getattr(stream.source, "parents", None) or [None] * levels)
    if len(given) != levels:
        raise UserError(f"{stream.source.name}: {len(given)} graphs for {levels} levels")
    graph: list[Tensor | None] = [None]
    for l in range(1, levels):
        own = given[l]
        if own is None:
            try:
                own = quad_tree(sizes[l - 1], sizes[l])
            except ValueError:
                raise UserError(
                    f"{stream.source.name}: level {l + 1} has {sizes[l]} patches, no quad-tree over {sizes[l - 1]}; "
                    f"give parents{l + 1} with the arrays"
                ) from None
        if own.ndim != 2 or own.shape[0] != sizes[l] or own.numel() == 0:
            raise UserError(f"{stream.source.name}: parents{l + 1} has shape {tuple(own.shape)}, not ({sizes[l]}, |P|)")
        if int(own.min()) < 0 or int(own.max()) >= sizes[l - 1]:
            raise UserError(f"{stream.source.name}: parents{l + 1} names patches outside 0..{sizes[l - 1] - 1}")
        graph.append(own)
    return graph


def _plan(stream: Stream, channels: list[int], parents: list[Tensor | None], settings: MinmaxConfig) -> list[Stage]:
    if settings.solver == "efficient":
        return _efficient_plan(stream, channels, parents, settings)
    if settings.solver == "closed-form":
        return _closed_form_plan(stream, channels, parents, settings)
    return _sgda_plan(stream, channels, parents, settings.sgda)


def _efficient_plan(
    stream: Stream, channels: list[int], parents: list[Tensor | None], settings: MinmaxConfig
) -> list[Stage]:
    # Salts choose the samples: a finite source's subsets and a streamed source's draws differ from one stage to the next.
    def features(level: int) -> Stage:
        def run(_: State, seed: int) -> Outcome:
            return efficient.feature_stage(
                stream, level, channels[level], settings.feature_samples, seed, 10 * level + 1
            )

        return Stage(level + 1, "features", "5, 1", run)

    def hidden(level: int) -> Stage:
        def run(state: State, _: int) -> Outcome:
            salt = 10 * level + 2
            if level == 0:
                return efficient.first_hidden_stage(stream, state, settings.samples, settings.latent_dim, salt)
            return efficient.super_resolution_stage(stream, state, level, parents, settings.feature_samples, salt)

        name, algorithm = ("super-resolution", "3") if level else ("first hidden", "2")
        return Stage(level + 1, name, algorithm, run)

    plan = [stage(level) for level in range(len(channels)) for stage in (features, hidden)]
    if settings.law == "joint":
        neurons = stream.sizes[0][0] * channels[0]
        if neurons > MOST:
            raise UserError(f"--law joint: {neurons} neurons at level 1, and it takes at most {MOST}; leave it out")

        def joint(state: State, seed: int) -> Outcome:
            return efficient.joint_law_stage(stream, state, settings.samples, seed, 2)

        plan.insert(2, Stage(1, "joint law", "2", joint))
    return plan


def _closed_form_plan(
    stream: Stream, channels: list[int], parents: list[Tensor | None], settings: MinmaxConfig
) -> list[Stage]:
    def warm(level: int) -> Stage:
        def run(_: State, seed: int) -> Outcome:
            return closed_form.warm_start_stage(
                stream, level, channels[level], min(settings.feature_samples, 10_000), seed, 1000 * level
            )

        return Stage(level + 1, "warm start", "5", run)

    def turn(level: int, t: int) -> Stage:
        def run(state: State, seed: int) -> Outcome:
            salt = 1000 * level + 10 * (t + 1)
            b, floor = closed_form.threshold(stream, state, level, t, settings.shrink, salt)
            if level == 0:
                found, metrics, notes = closed_form.first_level_stage(
                    stream, state, b, settings.samples, settings.latent_dim, seed, salt + 1
                )
            else:
                n = settings.level_samples if t == settings.stages - 1 else settings.level_samples // 5
                found, metrics, notes = closed_form.higher_level_stage(
                    stream, state, level, parents, b, n, settings.feature_samples, seed, salt + 1
                )
            _, left = closed_form.threshold(stream, state | found, level, t, settings.shrink, salt + 5)
            return found | {f"floor{level + 1}": torch.tensor(left)}, metrics | {"floor of b": floor}, notes

        return Stage(level + 1, f"turn {t + 1}", "3, 1" if level else "2, 1", run)

    plan = []
    for level in range(len(channels)):
        plan.append(warm(level))
        plan.extend(turn(level, t) for t in range(settings.stages))
    return plan


def _sgda_plan(
    stream: Stream, channels: list[int], parents: list[Tensor | None], settings: MinmaxSGDASettings
) -> list[Stage]:
    source = stream.source
    neurons = stream.sizes[0][0] * channels[0]
    if settings.latent is not None and settings.latent < neurons:
        raise UserError(
            f"--sgda.latent {settings.latent}: must be at least d_1 m_1 = {neurons}, so that all pairs can be learned"
        )

    def warm(level: int) -> Stage:
        def run(_: State, seed: int) -> Outcome:
            l = level + 1
            start = minmax_sgda.warm_start_stage(
                source, level, channels[level], settings, torch.Generator().manual_seed(seed)
            )
            found = {f"W{l}": start.w, f"W{l}.warm": start.w, f"unit{l}": torch.tensor(start.unit)}
            missing = int(start.missing.sum())
            notes = [f"level {l}: no feature was found for (patch, channel) {names(start.missing)}"] if missing else []
            return found, {"missing": float(missing), "unit": start.unit}, notes

        return Stage(level + 1, "warm start", "5", run)

    def turn(level: int, t: int) -> Stage:
        def run(state: State, seed: int) -> Outcome:
            l = level + 1
            below = network(state, parents, settings.zeta, level) if level else None
            here = minmax_sgda.extend(below, state[f"W{l}"], parents[level], settings)
            if t > 0:
                here.V[level], here.b[level] = state[f"V{l}"], state[f"b{l}"]
            units = [float(state[f"unit{i}"]) for i in range(1, l + 1)]
            rng = torch.Generator().manual_seed(seed)
            here, b, traces = minmax_sgda.turn(source, here, units, level, t, settings, rng)
            metrics = {"b": b} | {f"{trace.name}, last value": trace.values[-1] for trace in traces if trace.values}
            return {f"W{l}": here.W[level], f"V{l}": here.V[level], f"b{l}": here.b[level]}, metrics, []

        return Stage(level + 1, f"turn {t + 1}", "3, 1" if level else "2, 1", run)

    plan = []
    for level in range(len(channels)):
        plan.append(warm(level))
        plan.extend(turn(level, t) for t in range(settings.stages))
    return plan
