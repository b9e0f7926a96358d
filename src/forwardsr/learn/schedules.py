r"""The learners that train in stages, or a part only: ``layerwise``, ``last-layer``, ``backward-correction`` (Figures 7, 8).

With :math:`L_l(G, D)` the adversarial objective of :mod:`forwardsr.learn.adversarial` on the levels :math:`X_1, \dots, X_l`:

* ``layerwise`` (Figure 7, top; the order of Algorithm 4): for l = 1, ..., L in turn

  .. math:: \min_{V_l, b_l, W_l} \max_D L_l(G, D) \quad\text{with}\ V_k, b_k, W_k\ (k < l)\ \text{frozen};

* ``backward-correction`` (Figure 8): the same, and then once more with everything free, starting from the layer-wise weights:
  :math:`\min_{V_1, b_1, W_1, \dots, V_L, b_L, W_L} \max_D L_L(G, D)`;
* ``last-layer`` (Figure 7, bottom): :math:`\min_{V_L, b_L, W_L} \max_D L_L(G, D)` over random :math:`V_1, \dots, V_{L-1}`. The
  network is widened ("we even enlarge the network to incorporate more random features"); its coarser levels are its finest
  image averaged down (:mod:`forwardsr.model.pooled_generator`), as the random layers' own outputs mean nothing.

**Frozen** layers are those of the *averaged* generator, with the batch-norm moments it was shown with: weights, running moments
and the function computed stay bit for bit what the last report of their stage measured. The random layers of ``last-layer``
are normalised once, by the moments of fresh latents, and are fixed functions from then on.

**The critic** of stage l sees levels 1 to l, as :math:`D^{(2)}(X_l, X_{l-1})` sees a patch beside what it was made from: what it
judges is the super-resolution. Frozen images have no logit of their own, since nothing could follow from it. It grows from the
critic of the stage before. In a new level's stage a fresh one did as well (faces, 8-16-32 px, 32,000, 20,000 and 12,000 images:
standardised distances 62 and 69 against 60 and 72 at 16 and 32 px); in the correction it lost what had been learned (below).

**The correction** is made of small steps. At the rate of training the weights of both hidden layers wandered by 58 % in 16,000
images and nothing was gained (faces, 8-16 px: the score of 1.10 became 1.14; with a fresh critic 1.24); at a fifth of it they
moved by 17 and 24 % and the score became 0.93, both levels gaining. The average keeps what it starts from.

**Time.** Stages end by share of the budget. Nothing ever goes back: a stage that has ended stays ended when the run is
continued with a larger budget (what is yet to come has its shares of the larger one; after the last switch all of it goes to the
last stage).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from forwardsr.data.source import Source
from forwardsr.errors import UserError
from forwardsr.learn.budget import Budget
from forwardsr.learn.joint import JointConfig, JointLearner, Stage, calibrate
from forwardsr.model.critic import Critic
from forwardsr.model.deconv_generator import DeconvGenerator
from forwardsr.model.pooled_generator import PooledGenerator

SCHEDULES = ("layerwise", "last-layer", "backward-correction")
KERNEL = 6 * 6  # weights of a deconvolution for each pair of channels
ROUNDING = 1e-9  # shares are sums of floats; a step is more than this part of any budget


@dataclass(frozen=True)
class ScheduleConfig:
    """The settings of the learners that train in stages.

    By default each level has twice the time of the one below: a step of it costs three to four times as much, and coarse ones
    gain from more images. The correction has as much as the finest level. Of a budget in steps or images all have equal shares.
    """

    shares: str | None = None
    """layerwise, backward-correction: the stages' shares of the budget, as 1,2,4 (the default, of time) or 1,1,1 (of images)."""
    random_width: int | None = None
    """last-layer: channels of its hidden layers; by default as many as make its trained weights those of layerwise in number."""
    correction_rate: float = 0.2
    """backward-correction: the generator's rate in the correction, as a part of --rate-g: larger ones undo what was learned."""


def schedule(method: str, sides: Sequence[int]) -> tuple[Stage, ...]:
    """The stages of a method of :data:`SCHEDULES` for images of ``sides``."""
    count = len(sides)
    if method == "last-layer":
        return (Stage("the last hidden layer over random ones", count - 1, count),)
    one_by_one = tuple(Stage(f"level {level + 1} ({side} px)", level, level + 1) for level, side in enumerate(sides))
    return one_by_one + ((Stage("correction of all levels", 0, count),) if method == "backward-correction" else ())


def stage_ends(shares: str | None, stages: Sequence[Stage], limits: Budget, batch: int) -> tuple[float, ...]:
    """Where each stage ends, as a fraction of the whole budget; the last is 1.

    ``shares`` as in :class:`ScheduleConfig`. Raises :class:`UserError` where they are not positive numbers, one a stage, or a
    budget in steps or images leaves a stage without a step.
    """
    if shares is not None:
        parts = _positive(shares, stages)
    elif limits.seconds is not None:
        parts = [2.0 ** (stage.levels - 1) for stage in stages]
    else:
        parts = [1.0] * len(stages)
    ends = [sum(parts[: k + 1]) / sum(parts) for k in range(len(parts))]
    allowed = [count for count in (limits.steps, limits.images and math.ceil(limits.images / batch)) if count]
    if allowed and min(allowed) * min(parts) / sum(parts) < 1 - ROUNDING:
        raise UserError(
            f"--shares: {min(allowed)} steps, divided as {','.join(f'{part:g}' for part in parts)}, leave a stage with none; "
            "give more steps or images"
        )
    return (*ends[:-1], 1.0)


def _positive(shares: str, stages: Sequence[Stage]) -> list[float]:
    try:
        parts = [float(part) for part in shares.split(",")]
    except ValueError:
        parts = []
    if len(parts) != len(stages) or not all(math.isfinite(part) and part > 0 for part in parts):
        raise UserError(
            f"--shares {shares}: give {len(stages)} positive numbers, one for each of "
            f"{', '.join(stage.name for stage in stages)}"
        )
    return parts


def matching_width(sides: Sequence[int], width: int, latent: int, channels: int) -> int:
    r"""The width w at which the last hidden layer and output have as many weights as all layers have at ``width`` m.

    Norms and biases left out, :math:`36 w^2 + 36 c w = m_0 m (s_1/2)^2 + 36 (L-1) m^2 + 36 L c m`; w to the nearest multiple of
    8, and m where there is one level.
    """
    if len(sides) == 1:
        return width
    first = latent * width * (sides[0] // 2) ** 2
    total = first + KERNEL * width * ((len(sides) - 1) * width + len(sides) * channels)
    root = math.sqrt(channels**2 / 4 + total / KERNEL) - channels / 2
    return max(width, 8 * round(root / 8))


class ScheduledLearner(JointLearner):
    """:class:`JointLearner`'s step, in stages."""

    def __init__(
        self, config: JointConfig, source: Source, device: torch.device, stages: Sequence[Stage], ends: Sequence[float],
        random_width: int | None = None, correction_rate: float = 1.0, started: bool = False,
    ) -> None:  # fmt: skip
        """``stages`` from :func:`schedule`, ``ends`` from :func:`stage_ends`; ``random_width``: of a network whose lower layers
        stay random (``None``: there are none); ``correction_rate`` as in :class:`ScheduleConfig`.
        """
        self._stages, self.ends = tuple(stages), tuple(ends)
        self.random_width, self.correction_rate = random_width, correction_rate
        super().__init__(config, source, device, started)
        calibrate(self.average, range(len(self.sides)), config.seed)
        self.generator.load_state_dict(self.average.state_dict())

    @property
    def stages(self) -> tuple[Stage, ...]:
        """All stages, in order."""
        return self._stages

    def new_generator(self) -> DeconvGenerator:
        """The network to train, its weights drawn from ``rng``."""
        if self.random_width is None:
            return super().new_generator()
        config, channels = self.config, self.source.shapes[0][0]
        return PooledGenerator(
            self.sides, width=self.random_width, latent=config.latent, channels=channels, generator=self.rng
        )

    def judged(self) -> range:
        """The levels whose images the present stage can change."""
        return super().judged() if self.random_width is None else range(self.stage.levels)

    def rate(self) -> float:
        """As :meth:`JointLearner.rate`, and in the correction its own."""
        return self.config.rate_g * self.correction_rate if self.corrects else super().rate()

    def stage_over(self, spent: float) -> bool:
        """Whether the present stage ends now; each has one step at least."""
        last = self.index == len(self.stages) - 1
        return not last and self.step > self.began and spent >= self.ends[self.index] - ROUNDING

    def next_stage(self) -> None:
        """Freeze the averaged generator's layers with the moments they are shown with, and begin the next stage."""
        shown = self.shown().state_dict()
        self.generator.load_state_dict(shown)
        self.average.load_state_dict(shown)
        before = self.critic
        self.begin(self.index + 1)
        grow(before, self.critic)


@torch.no_grad()
def grow(before: Critic, after: Critic) -> None:
    """Give ``after``, a critic of as many levels or one more, the layers that it shares with ``before``.

    The trunk's layers are counted from the finest level down, so with a level more they move up by one.
    """
    more = len(after.sides) - len(before.sides)
    for old, new in (
        *zip(before.first, after.first),
        *zip(before.trunk.down, list(after.trunk.down)[more:]),
        *zip(before.trunk.enter, list(after.trunk.enter)[more:]),
        (before.trunk.mix, after.trunk.mix),
        (before.trunk.logit, after.trunk.logit),
    ):
        new.load_state_dict(old.state_dict())
