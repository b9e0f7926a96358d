"""The one-pass step against the two-pass one, and the critic's independence across samples, on which it rests."""

import math

import pytest
import torch
from torch import Tensor

from forwardsr.data.pyramid import Pyramid
from forwardsr.learn.adversarial import LOSSES, adversarial_gradients, average, gradient_penalty
from forwardsr.model.critic import Critic

SIDES = (8, 16)


def pair(n: int = 5, seed: int = 0) -> tuple[Critic, Pyramid, Pyramid, torch.Generator]:
    generator = torch.Generator().manual_seed(seed)
    critic = Critic(SIDES, width=6, heads=[True, True], generator=generator).double()

    def images() -> Pyramid:
        return Pyramid([torch.randn(n, 3, side, side, dtype=torch.float64, generator=generator) for side in SIDES])

    return critic, images(), images(), generator


@pytest.mark.parametrize("name", LOSSES)
def test_one_backward_pass_gives_both_players_their_own_gradients(name: str) -> None:
    critic, real, fake, _ = pair()
    weights = torch.tensor([1.0, 0.5, 2.0])
    critic.zero_grad()
    loss_d, loss_g, got = adversarial_gradients(critic, real, fake, LOSSES[name], weights)
    critic_got = [p.grad.clone() for p in critic.parameters() if p.grad is not None]

    levels = [x.clone().requires_grad_() for x in fake]
    by_d, by_g = (part.mean(1) for part in LOSSES[name](critic(real), critic(levels)))
    critic_wanted = torch.autograd.grad((weights * by_d).sum(), list(critic.parameters()), retain_graph=True)
    wanted = torch.autograd.grad((weights * by_g).sum(), levels)

    torch.testing.assert_close(loss_d, by_d.detach())
    torch.testing.assert_close(loss_g, by_g.detach())
    assert len(critic_got) == len(critic_wanted)
    for a, b in zip(critic_got, critic_wanted):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-8)  # logits are judged in float32
    for a, b in zip(got, wanted):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("name", LOSSES)
def test_the_critic_wants_real_up_and_generated_down_and_the_generator_the_contrary(name: str) -> None:
    real, fake = (torch.tensor([0.3, -0.7, 1.1], requires_grad=True) for _ in range(2))
    loss_d, loss_g = LOSSES[name](real, fake)
    on_real, on_fake = torch.autograd.grad(loss_d.sum(), (real, fake), retain_graph=True)
    assert (on_real < 0).all()
    assert (on_fake > 0).all()
    (for_generator,) = torch.autograd.grad(loss_g.sum(), fake)
    assert (for_generator < 0).all()


def test_losses_at_known_logits() -> None:
    """Where real and generated logits are equal the critic knows nothing: log 2 a term; a step apart, by hand."""
    equal, one = torch.zeros(1), torch.ones(1)
    assert [float(x) for x in LOSSES["non-saturating"](equal, equal)] == pytest.approx([2 * math.log(2), math.log(2)])
    assert [float(x) for x in LOSSES["relativistic"](one, equal)] == pytest.approx(
        [math.log1p(math.exp(-1)), math.log1p(math.exp(1))]
    )
    assert [float(x) for x in LOSSES["wasserstein"](one, equal)] == [-1, 0]


def test_the_generator_gains_by_going_down_its_gradient() -> None:
    critic, real, fake, _ = pair()
    loss = LOSSES["relativistic"]
    weights = torch.ones(3)
    _, before, gradients = adversarial_gradients(critic, real, fake, loss, weights)
    moved = Pyramid([x - 1e-2 * g / g.norm() for x, g in zip(fake, gradients)])
    _, after, _ = adversarial_gradients(critic, real, moved, loss, weights)
    assert after.sum() < before.sum()


def test_a_logit_depends_on_its_own_sample_alone() -> None:
    critic, real, _, _ = pair()
    whole = critic(real)
    alone = torch.cat([critic([x[i : i + 1] for x in real]) for i in range(real.n)], dim=1)
    torch.testing.assert_close(whole, alone)


def test_the_penalty_is_the_sum_of_squared_gradients_of_all_logits_on_average() -> None:
    critic, real, _, generator = pair(n=3)
    drawn = torch.stack([gradient_penalty(critic, real, generator) for _ in range(200)]).detach()

    levels = [x.clone().requires_grad_() for x in real]
    logits = critic(levels)
    exact = torch.zeros((), dtype=torch.float64)
    for logit in logits:
        for g in torch.autograd.grad(logit.sum(), levels, retain_graph=True, allow_unused=True):
            exact += 0.0 if g is None else 0.5 * g.square().sum() / real.n
    assert abs(drawn.mean() - exact) < 4 * drawn.std() / len(drawn) ** 0.5
    assert drawn.std() > 0


def test_average_is_the_weighted_mean() -> None:
    target: list[Tensor] = [torch.tensor([0.0, 4.0])]
    average(target, [torch.tensor([1.0, 0.0])], decay=0.75)
    torch.testing.assert_close(target[0], torch.tensor([0.25, 3.0]))
