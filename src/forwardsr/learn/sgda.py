r"""Algorithm 6, SGDA: stochastic gradient descent ascent for (7.1), in both orders of play.

.. math:: L(\theta_D, \theta_G) = E[D(X^*; \theta_D)] - E[D(G(z; \theta_G); \theta_D)] + R_1(\theta_G) - R_2(\theta_D)

The *outer* player moves slowly and minimises; the *inner* player moves fast and maximises. Outer is the generator for D1, D4 and
D5, the discriminator for D2 (§7.2, end). Each of T steps draws N fresh samples of both kinds (line 3), gives the inner player
``inner_steps`` ascents on them (lines 5-7), then the outer player one descent with noise (line 8):

.. math:: \theta_{out} \leftarrow \theta_{out} - \eta_t h \nabla L - \eta_t \sigma_\xi \xi, \qquad \xi \sim N(0, I).

A game gives with each gradient its natural step h (one over a curvature), so that rates are plain numbers of order one whatever
m, the sparsity or the discriminator; and a retraction, for players that live on a sphere or a simplex.

==============  =======  ==============================================================================================
paper           default  reason
==============  =======  ==============================================================================================
T (outer)       2000     the slowest direction of a planted target has about a hundredth of the curvature
T (inner)       2        the inner objectives are strongly concave: at a rate near one, a few steps reach the maximum
N               2048     samples a step: a channel active one time in twenty is in a hundred of them
eta (outer)     0.3      of the natural step; below one it is stable although curvature changes on the way
eta (inner)     0.5      halves the distance to the maximum a step, hence averages the last few batches
decay           2.0      eta_t = eta (1 - t/T)^decay: the last steps average; 2 averages several times as many of them
                         as 1 does. The paper's constant 1/poly(d/eps) is 0
sigma_xi        1e-4     in units of the parameters; there to leave saddle points, invisible in the result
==============  =======  ==============================================================================================
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from forwardsr.errors import UserError

Player = Literal["generator", "discriminator"]


@dataclass(frozen=True)
class SGDASettings:
    """Algorithm 6's numbers; the module's table gives each one's reason."""

    steps: int = 2000
    inner_steps: int = 2
    samples: int = 2048
    rate_outer: float = 0.3
    rate_inner: float = 0.5
    decay: float = 2.0
    noise: float = 1e-4
    trace_points: int = 50
    """How many times the objective is recorded."""

    def __post_init__(self) -> None:
        for name in ("steps", "inner_steps", "samples", "trace_points"):
            if getattr(self, name) < 1:
                raise UserError(f"--sgda: {name.replace('_', '-')} must be at least 1, not {getattr(self, name)}")
        for name in ("rate_outer", "rate_inner"):
            if not getattr(self, name) > 0:
                raise UserError(f"--sgda: {name.replace('_', '-')} must be positive, not {getattr(self, name)}")


@dataclass
class Trace:
    """The objective during one SGDA: ``values[i]`` is L (summed over independent games) before step ``steps[i]``."""

    name: str
    steps: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)


@runtime_checkable
class Game(Protocol):
    """An objective (7.1) with its players' parameters, which :func:`sgda` updates in place.

    ``batch`` is whatever the game makes of N fresh samples of both kinds; only the game reads it.
    """

    name: str
    outer: Player

    def parameters(self, player: Player) -> Sequence[Tensor]:
        """The player's own tensors."""
        ...

    def sample(self, n: int, rng: torch.Generator) -> Any:
        """``n`` fresh true samples and ``n`` fresh fake ones."""
        ...

    def value(self, batch: Any) -> float:
        """L on these samples at the current parameters."""
        ...

    def gradient(self, batch: Any, player: Player) -> Sequence[Tensor]:
        """The gradient of L in each of the player's tensors."""
        ...

    def step(self, batch: Any, player: Player) -> Sequence[Tensor | float]:
        """The natural step of each of the player's tensors: broadcasts against it."""
        ...

    def retract(self, player: Player) -> None:
        """Bring the player's parameters back to where they live."""
        ...


def sgda(game: Game, settings: SGDASettings, rng: torch.Generator) -> Trace:
    """Play ``game`` by Algorithm 6 and return the trace of its objective. ``rng``: a CPU generator."""
    trace = Trace(game.name)
    inner: Player = "discriminator" if game.outer == "generator" else "generator"
    every = max(1, settings.steps // settings.trace_points)
    for t in range(settings.steps):
        decayed = (1 - t / settings.steps) ** settings.decay
        batch = game.sample(settings.samples, rng)
        if t % every == 0:
            trace.steps.append(t)
            trace.values.append(game.value(batch))
        for _ in range(settings.inner_steps):
            _move(game, batch, inner, settings.rate_inner * decayed)
        _move(game, batch, game.outer, -settings.rate_outer * decayed)
        if settings.noise:
            for theta in game.parameters(game.outer):
                xi = torch.randn(theta.shape, generator=rng, dtype=theta.dtype)
                theta -= settings.rate_outer * decayed * settings.noise * xi.to(theta.device)
            game.retract(game.outer)
    return trace


def _move(game: Game, batch: Any, player: Player, rate: float) -> None:
    steps = game.step(batch, player)
    for theta, gradient, h in zip(game.parameters(player), game.gradient(batch, player), steps, strict=True):
        theta += rate * h * gradient
    game.retract(player)
