r"""``--level1 adversarial``: the law of level 1 trained on against a critic, every finer level in closed form on top of it (§1.1).

Only the lowest resolution needs global learning, so only it is given to a game. The network stays

.. math:: X_1 = W_1\,\mathrm{ReLU}(V_1 z - b_1) + \mu_1,

starts from the closed form (:mod:`forwardsr.learn.copula`) and moves W_1, V_1, b_1, mu_1 by Adam against the multi-scale critic of
:mod:`forwardsr.model.critic` with one scale, with the loss of :mod:`forwardsr.learn.adversarial`. What is kept is the average
of the generator's weights. In 60,000 images the game does not improve on the closed form, as descent in the sliced Wasserstein
distance does (:mod:`forwardsr.learn.sliced`), which is therefore the default. The
contrasts that gate level 2 are those of the closed form's features, recomputed by least squares for the trained weights.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from forwardsr.data.pyramid import Pyramid, fold
from forwardsr.learn.adversarial import LOSSES, average, gradient_penalty
from forwardsr.learn.copula import FirstLevel, learn_first_level
from forwardsr.learn.sliced import fitted_contrast, render
from forwardsr.model.critic import Critic

IMAGES = 60_000  # seen: less than a minute at 8 px
BATCH = 64
RATE_G, RATE_D = 2e-4, 2e-4  # the generator starts near its goal: five times below the joint learner's
GAMMA, PENALTY_INTERVAL = 1.0, 8
HALF_LIFE = 10_000.0  # of the average, in images


def learn_first_level_adversarially(
    x: Float[Tensor, "n k d"], generator: torch.Generator, channels: int = 3, images: int = IMAGES
) -> FirstLevel:
    """The law of level 1, from its patches; ``channels`` of the image they make."""
    start = learn_first_level(x, generator)
    real = fold(x, channels)
    weights = [t.clone().requires_grad_() for t in (start.W, start.V, start.b, start.mean)]
    kept = [t.detach().clone() for t in weights]
    critic = Critic([real.shape[-1]], channels=channels, heads=[False], generator=generator)
    players = [
        torch.optim.Adam(parameters, rate, (0.0, 0.99))
        for parameters, rate in ((weights, RATE_G), (critic.parameters(), RATE_D))
    ]
    loss = LOSSES["relativistic"]
    for step in range(images // BATCH):
        index = torch.randint(len(real), (BATCH,), generator=generator)
        shown = torch.where(torch.rand(BATCH, 1, 1, 1, generator=generator) < 0.5, real[index].flip(-1), real[index])
        z = torch.randn(BATCH, start.V.shape[2], generator=generator)
        W, V, b, mean = weights
        drawn = fold(render(replace(start, W=W, V=V, b=b, mean=mean), z)[1].transpose(0, 1), channels)
        judged = critic([torch.cat([shown, drawn.detach()])])
        total = loss(judged[:, :BATCH], judged[:, BATCH:])[0].mean()
        if step % PENALTY_INTERVAL == 0:
            for side in (shown, drawn.detach()):
                total = total + GAMMA * PENALTY_INTERVAL * gradient_penalty(critic, Pyramid([side]), generator)
        players[1].zero_grad()
        total.backward()
        players[1].step()
        judged = critic([torch.cat([shown, drawn])])
        loss_g = loss(judged[:, :BATCH], judged[:, BATCH:])[1].mean()
        players[0].zero_grad()
        loss_g.backward()
        players[0].step()
        average(kept, [t.detach() for t in weights], 0.5 ** (BATCH / min(HALF_LIFE, 0.05 * BATCH * (step + 1))))
    W, V, b, mean = kept
    found = replace(start, W=W, V=V, b=b, mean=mean)
    return replace(found, contrast=fitted_contrast(found, generator))
