r"""What a step of an image learner costs, so that learners can be compared at equal compute.

Counted are the multiplications of convolutions and linear maps (of their plain form, however they are computed). With
:math:`G` those of one picture through the generator, :math:`G_t` those of the layers that learn, and :math:`C` those of one picture
through the critic, a step costs for each real picture

.. math:: G + 2\, G_t + (6 + 10 / 16)\, C:

the generator forward, and backward (to weights and to inputs) through what learns; the critic forward and twice backward, on a
real and a generated picture; and every 16 steps the gradient penalty, about five passes for each of the two.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn

from forwardsr.learn.joint import JointConfig, Stage
from forwardsr.model.critic import Critic
from forwardsr.model.deconv_generator import DeconvGenerator

PENALTY = 10  # passes of the critic


def multiplications(module: nn.Module, *inputs: Any) -> dict[str, float]:
    """Those of one forward pass, by the names of the layers. On the meta device nothing is computed."""
    found: dict[str, float] = {}

    def watch(name: str, part: nn.Module) -> Any:
        def count(_module: nn.Module, given: tuple[Tensor, ...], result: Tensor) -> None:
            weight = part.weight
            assert isinstance(weight, Tensor)
            each = given[0] if isinstance(part, nn.ConvTranspose2d) else result
            found[name] = found.get(name, 0.0) + each.numel() * weight[0].numel()

        return part.register_forward_hook(count)

    kinds = nn.Conv2d | nn.ConvTranspose2d | nn.Linear
    hooks = [watch(name, part) for name, part in module.named_modules() if isinstance(part, kinds)]
    with torch.no_grad():
        module(*inputs)
    for hook in hooks:
        hook.remove()
    return found


@functools.cache
def step_cost(
    sides: tuple[int, ...], stage: Stage, config: JointConfig, random_width: int | None = None, channels: int = 3
) -> float:
    """Multiplications of a step of ``stage`` for each real picture. ``random_width``: of ``last-layer``'s network."""
    half = torch.bfloat16  # of which the convolutions take the library's way, that has no kernel to run here
    with torch.device("meta"):
        network = DeconvGenerator(sides, width=random_width or config.width, latent=config.latent, channels=channels,
                                  innovations=config.innovations or 0)  # fmt: skip
        judged = range(stage.levels) if random_width else stage.trained
        seen = sides[: stage.levels]
        heads = [level in judged and side < seen[-1] for level, side in enumerate(seen)]
        critic = Critic(seen, width=config.width, channels=channels, heads=heads)
        z = torch.empty(1, network.latent_dim, dtype=half)
        pictures = [torch.empty(1, channels, side, side, dtype=half) for side in seen]
    by_level = [0.0] * len(sides)
    for name, count in multiplications(network.to(half).eval(), z).items():
        part, level = name.split(".")[0], int(name.split(".")[1])
        if not (random_width and part == "outputs" and level < len(sides) - 1):  # the random layers' outputs go unused
            by_level[level] += count
    learned = sum(by_level[level] for level in stage.trained)
    judging = sum(multiplications(critic.to(half), pictures).values())
    return sum(by_level[: stage.levels]) + 2 * learned + (6 + PENALTY / config.penalty_interval) * judging
