r"""Algorithm 4, MINMAX-GAN, for the ``sgda`` solver: every game of it is played by stochastic gradient descent ascent.

For each level: Algorithm 5 gives W a start; then, while the threshold b shrinks, Algorithm 2 (level 1) or 3 learns V and b, and
Algorithm 1 learns W. A stage keeps V in the data's units; the games are played in units of a channel's mean while active
(:math:`E[s^2] / 2E[s]`, which is the mean of an exponential law, near enough of a Gaussian tail), one unit a level, so that
their settings are plain numbers.

=====================  ==============  ===============================================================================
paper                  default         reason
=====================  ==============  ===============================================================================
T'                     3               stages a level; the last decides the accuracy, those before it bring W within its
                                       reach and play a quarter of its steps (but for D2, which must wake from the identity)
b of D4, D5, D1        4 cross-talks   the proofs' invariant b = delta m^0.02 (B.1, C.1, D.1) with poly(k) = 4: the
                                       cross-talk that the current W leaves, read from the data before every stage, so b
                                       shrinks as W is learned; m^-0.3 is its start and m^-0.02 a stage the same
                                       asymptotically. At one cross-talk D4 counts it as activity: norms off by 2 %
the least such b       0.15            the noise of a step moves W too, and the cross-talk that this makes must stay under
                                       D1's gate (Invariant B.3). Where a column strays beyond it, the gate opens on other
                                       channels, mu changes and W runs off: at 2048 samples a step it does for b = 0.065,
                                       at 16384 there is no sign of it at 0.15
b of D2                1/4 cross-talk  an error in b_l up to the tolerance costs nothing, so it stays there
W at the start         cumulants       Algorithm 5's error poly(k)/sqrt(m) is 0.2 at m = 8 and its cross-talk a whole channel,
                                       which no b exceeds; averaging its columns' own samples brings it to 0.02
D4: T, N               2000, 2048      two numbers a neuron
D5: T, N               1000, 8192      its error within a patch becomes W's: mu_rq is D1's denominator
D2: T, N               2500, 256       V wakes from the identity at the speed zeta; without noise in the data its gradient has
                                       none at the truth, so few samples do
D2: eta                0.2, 0.6        the discriminator must be the slower: at 0.4 one generator channel in twenty is left
                                       behind, silent, and its discriminator flees from it for good
D1: T, N               150, 16384      mu is near diagonal: a few dozen natural steps, the rest average
1/poly (line 8)        0               "useless; only for stating theorems more cleanly"
zeta of the network    0               D4, D5 and D1 look above b only, where LeakyReLU is ReLU; D2 has its own zeta
=====================  ==============  ===============================================================================
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from forwardsr.data.pyramid import Pyramid
from forwardsr.data.source import Source
from forwardsr.errors import UserError
from forwardsr.learn.cumulants import average_alone
from forwardsr.learn.first_hidden import FirstHiddenSettings, first_hidden, start_first_hidden
from forwardsr.learn.output_layer import output_layer
from forwardsr.learn.sgda import SGDASettings, Trace
from forwardsr.learn.super_resolution import SuperResolutionSettings, start_super_resolution, super_resolution
from forwardsr.learn.warm_start import (
    Algorithm5Settings,
    CumulantSettings,
    algorithm_5,
    cumulant_warm_start,
    missing_features,
)
from forwardsr.model.activations import Activation
from forwardsr.model.discriminators import coordinates
from forwardsr.model.patch_generator import PatchGenerator


@dataclass(frozen=True)
class MinmaxSGDASettings:
    """Algorithm 4's numbers; the module's table gives each one's reason."""

    warm_start: Literal["cumulant", "algorithm-5"] = "cumulant"
    """The robust start, or Algorithm 5 as written, its columns then averaged over the samples that point their way."""
    stages: int = 3
    """T', stages a level."""
    early: float = 0.25
    """The share of the steps of D4, D5 and D1 that is played in the stages before the last."""
    threshold: float = 4.0
    """b of D4, D5 and D1, in cross-talks of the current W."""
    least: float = 0.15
    """The least such b, in the level's unit."""
    tolerance: float = 0.25
    """b of D2, in cross-talks of the current W."""
    finest: float = 0.005
    """The least such b, in the level's unit."""
    probe: int = 8192
    """Samples from which units, cross-talk and the cumulant start are read."""
    restart: bool = True
    """Start V afresh in every stage, as Algorithms 2 and 3 do; otherwise go on from the stage before."""
    zeta: float = 0.0
    """LeakyReLU of the learned network, in the level's unit."""
    latent: int | None = None
    """m_0'. Default: 2 d_1 m_1."""
    patch: int = 6
    """Side of a patch, for sources of images."""
    neurons: SGDASettings = field(default_factory=lambda: SGDASettings(steps=2000, rate_outer=0.7))
    """Algorithm 6 for D4."""
    pairs: SGDASettings = field(
        default_factory=lambda: SGDASettings(steps=1000, samples=8192, rate_outer=0.5, decay=3.0)
    )
    """Algorithm 6 for D5."""
    level: SGDASettings = field(
        default_factory=lambda: SGDASettings(2500, 1, 256, rate_outer=0.2, rate_inner=0.6, decay=1.0)
    )
    """Algorithm 6 for D2."""
    output: SGDASettings = field(default_factory=lambda: SGDASettings(steps=150, samples=16384))
    """Algorithm 6 for D1."""
    algorithm_5: Algorithm5Settings = field(default_factory=Algorithm5Settings)
    first_hidden: FirstHiddenSettings = field(default_factory=FirstHiddenSettings)
    super_resolution: SuperResolutionSettings = field(default_factory=SuperResolutionSettings)

    def __post_init__(self) -> None:
        checks = (
            (self.stages >= 1, f"--sgda.stages {self.stages}: needs at least 1"),
            (0 < self.early <= 1, f"--sgda.early {self.early}: must be in (0, 1]"),
            (0 <= self.zeta < 1, f"--sgda.zeta {self.zeta}: must be in [0, 1)"),
            (self.latent is None or self.latent >= 1, f"--sgda.latent {self.latent}: must be positive"),
            (self.patch >= 2, f"--sgda.patch {self.patch}: must be at least 2"),
        )
        for holds, message in checks:
            if not holds:
                raise UserError(message)


class UnitSource:
    """A source in patch form with every level divided by its unit; satisfies :class:`forwardsr.data.source.Source`."""

    def __init__(self, source: Source, units: Sequence[float], patch: int = 6) -> None:
        self.source, self.units, self.patch, self.name = source, list(units), patch, source.name
        shapes = source.shapes
        if any(len(s) == 3 and (s[1] % patch or s[2] % patch) for s in shapes):
            raise UserError(f"{source.name}: images of {shapes[0][1]} pixels are no grid of {patch} x {patch} patches")
        self.shapes: tuple[tuple[int, ...], ...] = tuple(
            s if len(s) == 2 else ((s[1] // patch) * (s[2] // patch), s[0] * patch * patch) for s in shapes
        )

    def draw(self, n: int, generator: torch.Generator, levels: int | None = None) -> Pyramid:
        """``n`` samples in patch form, float32, divided by the units."""
        drawn = self.source.draw(n, generator, levels)[:levels].unfold(self.patch)
        return Pyramid([x.float() / u for x, u in zip(drawn, self.units)])


@dataclass(frozen=True, eq=False)
class WarmStart:
    """W of a level, which of its columns stand for no channel, and the level's unit."""

    w: Float[Tensor, "k d m"]
    missing: Bool[Tensor, "k m"]
    unit: float


def warm_start_stage(
    source: Source, level: int, m: int, settings: MinmaxSGDASettings, rng: torch.Generator
) -> WarmStart:
    """Line 2 for ``level`` (counted from 0).

    Raises ``UserError`` where patches are narrower than ``m``, or the level is zero throughout.
    """
    plain = UnitSource(source, [1.0] * len(source.shapes), settings.patch)
    x = plain.draw(max(settings.probe, 20 * m), rng, level + 1)[level]
    if not bool(x.any()):
        raise UserError(
            f"{source.name}: level {level + 1} is zero in all of {len(x)} samples; there is nothing to learn"
        )
    w = cumulant_warm_start(x, m, rng)
    unit = _unit(coordinates(x, w))
    if settings.warm_start == "cumulant":
        return WarmStart(w, missing_features(x, w), unit)
    scaled = UnitSource(source, [*[1.0] * level, unit], settings.patch)
    w, missing = algorithm_5(scaled, level, m, settings.algorithm_5, rng)
    polish = CumulantSettings()
    w = average_alone(x.permute(1, 2, 0), w, (0.8, *polish.cosines), polish.least)
    return WarmStart(w, missing | missing_features(x, w), unit)


def turn(
    source: Source,
    network: PatchGenerator,
    units: Sequence[float],
    level: int,
    t: int,
    settings: MinmaxSGDASettings,
    rng: torch.Generator,
) -> tuple[PatchGenerator, float, list[Trace]]:
    """Lines 5-12 for stage ``t`` (from 0) of ``level`` (from 0): the network, the b that was used, and the games' traces.

    ``source``, ``network`` and b in the data's units; ``network`` ends with this level, whose V and b are the stage before's
    (anything at ``t = 0``).
    """
    scaled, network = UnitSource(source, units, settings.patch), in_units(network, units)
    s = coordinates(scaled.draw(settings.probe, rng, level + 1)[level], network.W[level])
    talk = cross_talk(s, network.W[level])
    b = min(max(settings.threshold * talk, settings.least), network.W[level].shape[2] ** -0.3)
    if settings.restart or t == 0:
        network = _fresh(network, level, settings.latent)
    share = 1.0 if t == settings.stages - 1 else settings.early
    neurons, pairs, output = (
        replace(game, steps=max(1, round(game.steps * share)))
        for game in (settings.neurons, settings.pairs, settings.output)
    )
    if level == 0:
        network, traces = first_hidden(scaled, network, b, neurons, pairs, rng, settings.first_hidden)
    else:
        fine = max(settings.tolerance * talk, settings.finest)
        network, trace = super_resolution(scaled, network, level, fine, settings.level, rng, settings.super_resolution)
        traces = [trace]
    network, trace = output_layer(scaled, network, level, b, output, rng)
    return in_units(network, [1 / u for u in units]), b * units[level], [*traces, trace]


def learn_sgda(
    source: Source,
    channels: Sequence[int],
    parents: Sequence[Tensor | None],
    settings: MinmaxSGDASettings,
    generator: torch.Generator,
) -> tuple[PatchGenerator, list[Trace]]:
    """Learn a network from samples of ``source`` by Algorithm 4 as written.

    ``channels``: m_l a level; ``parents``: ``None``, then int64 ``(d_l, |P|)``; ``generator``: a CPU generator, of all
    randomness. The traces come in the order of play, each named by its game, level and stage.

    Raises ``UserError`` where the sizes do not fit the source, or a level holds nothing.
    """
    network: PatchGenerator | None = None
    units: list[float] = []
    traces: list[Trace] = []
    for level, m in enumerate(channels):
        start = warm_start_stage(source, level, m, settings, generator)
        units.append(start.unit)
        network = extend(network, start.w, parents[level], settings)
        for t in range(settings.stages):
            network, _, played = turn(source, network, units, level, t, settings, generator)
            for trace in played:
                trace.name += f", stage {t + 1}" if "level" in trace.name else f", level 1, stage {t + 1}"
            traces += played
    assert network is not None
    return network, traces


def extend(
    network: PatchGenerator | None, w: Float[Tensor, "k d m"], parents: Tensor | None, settings: MinmaxSGDASettings
) -> PatchGenerator:
    """The network with one more level: this W, and V and b at their starts."""
    k, _, m = w.shape
    if network is None:
        v, b = start_first_hidden(k, m, settings.latent)
        return PatchGenerator([w], [v], [b], [None], Activation("leaky", settings.zeta))
    assert parents is not None
    v, b = start_super_resolution(k, parents.shape[1], m, network.channels[-1])
    return PatchGenerator(
        [*network.W, w], [*network.V, v], [*network.b, b], [*network.parents, parents], network.activation
    )


def in_units(network: PatchGenerator, units: Sequence[float]) -> PatchGenerator:
    """The network whose every S_l is divided by ``units[l]`` (exactly so where zeta is 0)."""
    v = [network.V[0] / units[0]]
    v += [v_l * (below / own) for v_l, below, own in zip(network.V[1:], units, units[1:])]
    b = [b_l / u for b_l, u in zip(network.b, units)]
    return PatchGenerator(network.W, v, b, network.parents, network.activation)


def cross_talk(s: Float[Tensor, "n k m"], w: Float[Tensor, "k d m"]) -> float:
    """What a coordinate holds besides its channel, in the worst patch, at the 99th percentile.

    The larger of what other channels add in the generator, ``|(W^T W - I) s_+|``, and of ``-s`` where it is negative: channels
    are not, so noise or W's error made it.
    """
    gram = w.mT @ w - torch.diag_embed(torch.ones(w.shape[0], w.shape[2]))
    talk = (s.clamp_min(0).transpose(0, 1) @ gram).abs().flatten(1)
    negative = torch.where(s < 0, -s, torch.nan).transpose(0, 1).flatten(1)
    # The latter's tail is that of half a bell curve: its 98th percentile is the 99th of both halves.
    heard = talk.kthvalue(max(1, int(0.99 * talk.shape[1])), dim=1).values
    return float(torch.maximum(heard, _nan_percentile(negative, 0.98)).max())


def _nan_percentile(x: Float[Tensor, "k n"], q: float) -> Float[Tensor, " k"]:
    ordered = x.sort(dim=1).values  # NaN last
    count = (~x.isnan()).sum(1)
    index = (q * (count - 1)).long().clamp_min(0)
    return torch.where(count > 0, ordered.gather(1, index[:, None])[:, 0], torch.zeros_like(ordered[:, 0]))


def _unit(s: Float[Tensor, "n k m"]) -> float:
    return float((s.square().mean(0) / s.clamp_min(0).mean(0).clamp_min(1e-30) / 2).median())


def _fresh(network: PatchGenerator, level: int, latent: int | None) -> PatchGenerator:
    v, b = list(network.V), list(network.b)
    k, m = b[level].shape
    if level == 0:
        v[0], b[0] = start_first_hidden(k, m, latent)
    else:
        v[level], b[level] = start_super_resolution(k, v[level].shape[1], m, v[level].shape[3])
    return PatchGenerator(network.W, v, b, network.parents, network.activation)
