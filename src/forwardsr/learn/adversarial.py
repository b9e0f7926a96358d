r"""The adversarial step of the image learners: both players moved by one pass through the critic.

With logits :math:`r_k = D_k(X^*)` and :math:`f_k = D_k(G(z))`, one logit for all scales together (k = 0) and one a scale,

.. math::
    \min_D \sum_k E[\ell_D(r_k, f_k)] + \frac{\gamma}{2} \sum_k E\|\nabla_X D_k(X^*)\|^2, \qquad
    \min_G \sum_k E[\ell_G(r_k, f_k)].

**One pass.** A logit of this critic depends on its own sample only, so the gradient of *any* loss of the logits with respect to
a sample's features is :math:`(\partial\ell/\partial f_{k,i})\,\nabla f_{k,i}`: the critic's and the generator's differ by the
scalar :math:`\rho_{k,i} = (\partial\ell_G/\partial f_{k,i}) / (\partial\ell_D/\partial f_{k,i})`. The backward pass made for
the critic therefore also gives the generator's gradient, rescaled sample by sample where the streams of the logits meet
(:math:`h_l`). That is the simultaneous form of gradient descent ascent, at the price of little more than the critic's step
alone. It needs :math:`\partial\ell_D/\partial f \ne 0` everywhere, which the losses below have (the hinge loss has not).

Losses (each `E` over a batch; sp = softplus):

=================  =====================  ==================  ==========================================================
``--loss``         l_D(r, f)              l_G(r, f)           source
=================  =====================  ==================  ==========================================================
``non-saturating`` sp(-r) + sp(f)         sp(-f)              Goodfellow et al. 2014
``relativistic``   sp(f - r)              sp(r - f)           Jolicoeur-Martineau 2019; pairs as in Huang et al. 2024
``wasserstein``    f - r                  -f                  Arjovsky et al. 2017 (here with R1 in place of clipping)
=================  =====================  ==================  ==========================================================

R1 (Mescheder et al. 2018), and R2 on generated samples, are taken every ``interval`` steps with the weight multiplied by it
(Karras et al. 2020). The sum over the logits is one gradient: with independent signs s_k,
:math:`E_s\|\nabla\sum_k s_k D_k\|^2 = \sum_k\|\nabla D_k\|^2`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from forwardsr.data.pyramid import Pyramid
from forwardsr.model.convolution import transposed
from forwardsr.model.critic import SLOPE, Critic

Loss = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def _non_saturating(real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
    return F.softplus(-real) + F.softplus(fake), F.softplus(-fake)


def _relativistic(real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
    return F.softplus(fake - real), F.softplus(real - fake)


def _wasserstein(real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
    return fake - real, -fake


LOSSES: dict[str, Loss] = {
    "non-saturating": _non_saturating,
    "relativistic": _relativistic,
    "wasserstein": _wasserstein,
}


def adversarial_gradients(
    critic: Critic, real: Pyramid, fake: Pyramid, loss: Loss, weights: Float[Tensor, " logits"]
) -> tuple[Float[Tensor, " logits"], Float[Tensor, " logits"], list[Tensor]]:
    """Add the critic's gradient to its parameters' ``.grad``; return ``(loss_D, loss_G, gradients)``, one loss a logit.

    ``fake`` is detached here: hand ``gradients``, those of the generator's loss with respect to each of its levels, to
    ``torch.autograd.backward(fake.levels, gradients)``. ``weights``: of the logits in the sum, the joint one first.
    """
    n = real.n
    both = [torch.cat([a, b.detach()]).contiguous(memory_format=torch.channels_last) for a, b in zip(real, fake)]
    before = [first(x) for first, x in zip(critic.first, both)]
    # In place: a convolution's gradient does not need its result, and the sign of h is that of what it was computed from.
    # Leaves where the streams of the logits part, so that each stream's gradient is seen on its own.
    trunk_leaf = [F.leaky_relu_(a.detach(), SLOPE).requires_grad_() for a in before]
    head_leaf = [trunk_leaf[level].detach().requires_grad_() for level in critic.headed]
    logits = torch.stack(
        [critic.trunk(trunk_leaf), *(head(leaf) for head, leaf in zip(critic.heads, head_leaf))]
    ).float()

    cut = logits.detach().requires_grad_()
    losses_d, losses_g = (part.mean(1) for part in loss(cut[:, :n], cut[:, n:]))
    (slope_d,) = torch.autograd.grad((weights * losses_d).sum(), cut, retain_graph=True)
    (slope_g,) = torch.autograd.grad((weights * losses_g).sum(), cut)
    logits.backward(slope_d)
    ratio = (slope_g[:, n:] / slope_d[:, n:]).nan_to_num(0.0)[:, :, None, None, None]

    gradients: list[Tensor] = []
    own = {level: k for k, level in enumerate(critic.headed)}
    for level, (a, leaf) in enumerate(zip(before, trunk_leaf)):
        assert leaf.grad is not None
        weight = cast(Tensor, critic.first[level].weight).detach()
        if level in own:
            stream = head_leaf[own[level]].grad
            assert stream is not None
            for_g = ratio[0] * leaf.grad[n:] + ratio[own[level] + 1] * stream[n:]
            a.backward(_through_leaky_relu(leaf.grad.add_(stream), leaf))
            gradients.append(
                transposed(_through_leaky_relu(for_g.to(leaf.dtype), leaf[n:]), weight).to(fake[level].dtype)
            )
        else:
            for_d = _through_leaky_relu(leaf.grad, leaf)
            a.backward(for_d)
            gradients.append(ratio[0] * transposed(for_d[n:], weight).to(fake[level].dtype))
    return losses_d.detach(), losses_g.detach(), gradients


def _through_leaky_relu(gradient: Tensor, after: Tensor) -> Tensor:
    """``gradient`` with respect to what ``after`` is the leaky ReLU of; overwrites ``gradient``."""
    through = torch.ops.aten.leaky_relu_backward.grad_input
    return through(gradient, after.detach(), SLOPE, True, grad_input=gradient)


def gradient_penalty(critic: Critic, pyramid: Pyramid, generator: torch.Generator) -> Float[Tensor, ""]:
    """``sum_k E ||grad_X D_k(X)||^2 / 2`` over all levels of ``pyramid``, by one gradient with random signs s_k."""
    levels = [x.detach().requires_grad_() for x in pyramid]
    logits = critic(levels)
    signs = torch.randint(0, 2, (len(logits), 1), generator=generator).to(logits.device) * 2.0 - 1.0
    gradients = torch.autograd.grad((signs * logits).sum(), levels, create_graph=True)
    return 0.5 * torch.stack([g.square().flatten(1).sum(1).mean() for g in gradients]).sum()


@torch.no_grad()
def average(target: Sequence[Tensor], source: Sequence[Tensor], decay: float) -> None:
    """``target <- decay * target + (1 - decay) * source``, tensor by tensor in one call."""
    torch._foreach_lerp_(list(target), list(source), 1.0 - decay)
