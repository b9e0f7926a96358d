r"""The law of level 1 on photographs: what Algorithm 2 learns, where the data are no censored Gaussians (§6, agnostic learning).

The features of a patch are the theory's own (Algorithm 5's warm start on the patches, made orthonormal), and the model stays a
first hidden layer of thresholded Gaussians. A signed feature :math:`a = \langle w, X_{1,j} - \mu\rangle` is

.. math:: a = \alpha + \sum_i c_i (g - t_i)_+ - \sum_i c'_i (-g - t_i)_+, \qquad g = \langle V, z\rangle,\ \|V\| = 1,

a piecewise linear function of one standard Gaussian: six neurons that share a row of V_1 up to sign and have the thresholds
``KNOTS``.

* *Marginals* (the task of D4): least squares of the sorted values of ``a`` on the neurons at their normal scores, so that
  ``a`` has the distribution of the data: one small system for all features at once.
* *Pairs* (the task of D5): the Gram matrix of V_1 is the correlation matrix of the normal scores (a Gaussian copula), shrunk
  towards the identity as Ledoit and Wolf (2004) compute for the sample at hand.

On principal components of the whole image the same law is half as good (distance 46 against 32, floor 34, faces at 8 px): the
marginals of local, sparse features say more.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from forwardsr.learn.warm_start import CumulantSettings, cumulant_warm_start

KNOTS = (0.0, 1.0, 2.0)
WARM_SAMPLES = 6000  # the warm start takes third moments, linear in these
SETTINGS = CumulantSettings(
    repairs=0
)  # on photographs no column explains its channel exactly: there is nothing to repair


def orthonormal(w: Float[Tensor, "k d m"]) -> Float[Tensor, "k d m"]:
    """The nearest matrices with orthonormal columns (polar factor)."""
    left, _, right = torch.linalg.svd(w, full_matrices=False)
    return left @ right


def features(x: Float[Tensor, "n k d"], m: int, generator: torch.Generator) -> Float[Tensor, "k d m"]:
    """``m`` orthonormal features of each patch of centred samples, from Algorithm 5's robust form.

    With fewer than 20 m samples a patch has too few of its own: all positions then share what they have together, and with fewer
    still the features are principal components.
    """
    n, k, d = x.shape
    least = 20 * m
    if n < least and k > 1:
        return features(x.reshape(n * k, 1, d), m, generator).expand(k, -1, -1)
    if n < least:
        return torch.linalg.eigh(x[:, 0].T @ x[:, 0]).eigenvectors[None, :, d - m :]
    pick = torch.randperm(n, generator=generator)[: max(WARM_SAMPLES, least)]
    return orthonormal(cumulant_warm_start(x[pick], m, generator, SETTINGS))


def normal_scores(n: int) -> Float[Tensor, " n"]:
    """The standard Gaussian's quantiles at (i + 1/2) / n, float32."""
    return torch.special.ndtri((torch.arange(n, dtype=torch.float64) + 0.5) / n).float()


@dataclass(frozen=True)
class FirstLevel:
    """Level 1: ``W (k, d, m)``, ``V (k, m, m_0)``, ``b (k, m)``, ``mean (k, d)``, ``basis (k, d, r)``, ``contrast (k, m, r)``.

    The values of the r features are ``(X - mean) basis``; ``contrast`` maps a hidden layer to their absolute values, by which
    the innovations of level 2 are gated.
    """

    W: Tensor
    V: Tensor
    b: Tensor
    mean: Tensor
    basis: Tensor
    contrast: Tensor


def learn_first_level(x: Float[Tensor, "n k d"], generator: torch.Generator) -> FirstLevel:
    """The law above, of the patches of level 1."""
    n, k, d = x.shape
    mean = x.mean(0)
    centred = x - mean
    basis = features(centred, d, generator)
    a = (centred.transpose(0, 1) @ basis).transpose(0, 1).reshape(n, k * d)
    order = a.argsort(0)
    scores = normal_scores(n)
    design = torch.cat([torch.ones(n, 1), _neurons(scores)], 1).double()
    fit = torch.linalg.lstsq(design, a.gather(0, order).double()).solution.float()
    g = torch.empty_like(a).scatter_(0, order, scores[:, None].expand_as(a))
    root = _root(shrunk_correlation(g)).view(k, d, -1)
    knots = torch.tensor(KNOTS)
    units = 2 * len(KNOTS)
    signs = torch.cat([torch.ones(len(KNOTS)), -torch.ones(len(KNOTS))])
    # Neurons of a patch: feature by feature, the knots of +g and then those of -g.
    V = (signs[:, None] * root[:, :, None, :]).reshape(k, d * units, -1)
    slopes = fit[1:].T.reshape(k, d, units)
    W = (basis[:, :, :, None] * slopes[:, None]).reshape(k, d, d * units)
    rises = torch.zeros(k, d, units, d)
    index = torch.arange(d)
    rises[:, index, :, index] = (slopes * signs).transpose(0, 1)
    return FirstLevel(
        W,
        V,
        torch.cat([knots, knots]).repeat(k, d),
        mean + (basis @ fit[0].view(k, d, 1))[:, :, 0],
        basis,
        rises.view(k, d * units, d),
    )


def _neurons(g: Tensor) -> Tensor:
    """``(n, 6)``: the neurons at g; a = alpha + sum c (g - t)_+ + sum c' (-g - t)_+, signs being the slopes' own."""
    knots = torch.tensor(KNOTS)
    return torch.cat([(g[:, None] - knots).relu(), (-g[:, None] - knots).relu()], 1)


def shrunk_correlation(g: Float[Tensor, "n p"]) -> Float[Tensor, "p p"]:
    """Ledoit and Wolf's (2004) shrinkage of a correlation matrix of ``g`` (unit variances) to the identity; float64."""
    n, p = g.shape
    c = (g.T @ g / n).double()
    scale = c.diagonal().rsqrt()
    c = c * scale * scale[:, None]
    spread = (c - torch.eye(p, dtype=torch.float64)).square().sum()
    # sum_ij Var(g_i g_j) / n, by E (sum_i g_i^2)^2 - ||c||^2
    noise = ((g.square().sum(1).double().square().mean()) - c.square().sum()) / n
    weight = float((noise / spread.clamp_min(1e-12)).clamp(0, 1))
    return (1 - weight) * c + weight * torch.eye(p, dtype=torch.float64)


def _root(c: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(c)
    root = (vectors * values.clamp_min(0).sqrt()).float()
    return root / root.norm(dim=1, keepdim=True)
