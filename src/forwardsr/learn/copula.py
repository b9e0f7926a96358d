r"""The law of level 1 on photographs: what Algorithm 2 learns, where the data are no censored Gaussians (§6, agnostic learning).

The features of a patch are the theory's own (Algorithm 5's warm start on the patches, made orthonormal), and the model stays a
first hidden layer of thresholded Gaussians. A signed feature :math:`a = \langle w, X_{1,j} - \mu\rangle` is

.. math:: a = \alpha + \sum_i c_i (g + h - t_i)_+ - \sum_i c'_i (-g + h - t_i)_+, \qquad g = \langle V, z\rangle,\ \|V\| = 1,
          \quad h = \langle \Gamma, z'\rangle,

a piecewise linear function of a standard Gaussian g, whose thresholds (:data:`KNOTS`) a second one moves: h is common to both
signs, so it makes a loud or faint whatever its sign, and its few latents z' (:data:`FACTORS`) are common to the whole image.
Six neurons a feature, with the rows :math:`(\pm V, \Gamma)` of V_1.

* *Marginals* (the task of D4): the slopes with which a has the distribution of the data, all features at once.
* *Pairs* (the task of D5): the Gram matrix of the V is the correlation matrix of the normal scores (a Gaussian copula), shrunk
  towards the identity as Ledoit and Wolf (2004) compute for the sample at hand, and of rank :data:`LATENTS` at most.
* *Loudness*: the leading factors of the correlations of the normal scores' sizes, beyond those that a Gaussian copula implies.
  Some pictures have contrast everywhere and some nowhere; no Gram matrix of signed features says so.

What the thresholds take from the last two is made up for by drawing once; twice is no better. On principal components of the
whole image the copula is several times as far above the floor of the distance: the marginals of local, sparse features say more.
Loudness brings level 1 nearer to its floor, and finer levels with it, since level 1's contrasts move their thresholds. One, three or
five factors gain less.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from forwardsr.learn.warm_start import CumulantSettings, cumulant_warm_start
from forwardsr.sorting import argsort_rows, sort_rows

KNOTS = (0.0, 1.0, 2.0)
LATENTS = 254  # of the signed features: at 12 px in colour there are 432, and the others buy nothing
FACTORS = 2  # of loudness
DRAWN = 2048  # samples that marginals are fitted to and correlations calibrated on; twice as many are no better
TURNS = 2  # of ranks and slopes; four are no better
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
    basis = features(x - mean, d, generator)
    a = ((x - mean).transpose(0, 1) @ basis).transpose(0, 1).reshape(n, k * d)
    rows = a.T.contiguous()
    g = torch.empty_like(rows).scatter_(1, argsort_rows(rows), normal_scores(n).expand_as(rows)).T
    ranked = sort_rows(rows)
    wanted = shrunk_correlation(g).float()
    signed, loadings = wanted, _loadings(g)
    shared = loadings @ loadings.T
    fit, _ = _marginals(ranked, loadings.norm(dim=1))
    drawn = _values(fit, *_latents(_root(signed), loadings, generator)).T.contiguous()
    scores = torch.empty_like(drawn).scatter_(1, argsort_rows(drawn), normal_scores(DRAWN).expand_as(drawn))
    signed = _correlation(signed * _ratio(wanted, torch.corrcoef(scores)))
    loadings = loadings * _ratio(shared, _loudness(scores.T)) ** 0.5
    (fit, sizes), root = _marginals(ranked, loadings.norm(dim=1)), _root(signed)
    knots, units = torch.tensor(KNOTS), 2 * len(KNOTS)
    signs = torch.cat([torch.ones(len(KNOTS)), -torch.ones(len(KNOTS))])
    # Neurons of a patch: feature by feature, the knots of +g and then those of -g.
    turned = signs[:, None] * root[:, None, :]
    V = torch.cat([turned, loadings[:, None, :].expand(-1, units, -1)], 2).reshape(k, d * units, -1)
    slopes = fit[:, 1:].reshape(k, d, units)
    W = (basis[:, :, :, None] * slopes[:, None]).reshape(k, d, d * units)
    rises = torch.zeros(k, d, units, d)
    index = torch.arange(d)
    rises[:, index, :, index] = sizes.view(k, d, units).transpose(0, 1)
    return FirstLevel(
        W,
        V,
        torch.cat([knots, knots]).repeat(k, d),
        mean + (basis @ fit[:, 0].view(k, d, 1))[:, :, 0],
        basis,
        rises.view(k, d * units, d),
    )


def factors(V: Float[Tensor, "k m m_0"]) -> tuple[Float[Tensor, "k m r"], Float[Tensor, "k r m_0"]]:
    """C and R with ``V = C R``, for V as :func:`learn_first_level` makes it: R the directions of a patch's d features and of the
    loudness, r = d + :data:`FACTORS`; C its neurons' signs and loadings.
    """
    units = 2 * len(KNOTS)
    own = V.unflatten(1, (-1, units))
    eye = torch.eye(own.shape[1])[:, None, :].expand(-1, units // 2, -1)
    signs = torch.cat([eye, -eye], 1).flatten(0, 1).expand(len(V), -1, -1)
    loudness = torch.eye(V.shape[2])[-FACTORS:].expand(len(V), -1, -1)
    return torch.cat([signs, V[..., -FACTORS:]], 2), torch.cat([(own[:, :, 0] - own[:, :, -1]) / 2, loudness], 1)


def _loudness(g: Float[Tensor, "n p"]) -> Float[Tensor, "p p"]:
    """Correlations of sizes beyond those that Gaussians of g's own correlations have; zero diagonal."""
    r = torch.corrcoef(g.T).clamp(-1, 1)
    of_gaussians = (2 / math.pi) * ((1 - r * r).sqrt() + r * torch.asin(r) - 1) / (1 - 2 / math.pi)
    return (torch.corrcoef(g.abs().T) - of_gaussians).fill_diagonal_(0)


def _loadings(g: Float[Tensor, "n p"]) -> Float[Tensor, "p r"]:
    """Leading factors of the loudness, less what eigenvalues of so few samples have by chance (Marchenko and Pastur 1967)."""
    n, p = g.shape
    values, vectors = torch.linalg.eigh(_loudness(g))
    chance = (1 + (p / n) ** 0.5) ** 2 - 1
    return vectors[:, -FACTORS:] * (values[-FACTORS:] - chance).clamp_min(0).sqrt()


def _ratio(wanted: Float[Tensor, "p p"], found: Float[Tensor, "p p"]) -> float:
    """How many times too small ``found`` is, off the diagonal; between 1/2 and 2."""
    off = ~torch.eye(len(wanted), dtype=torch.bool)
    both = float((wanted * found)[off].sum())
    return min(max(float(wanted[off].square().sum()) / both, 0.5), 2.0) if both > 0 else 1.0


def _correlation(c: Tensor) -> Tensor:
    """``c`` with a unit diagonal and no negative eigenvalue."""
    values, vectors = torch.linalg.eigh(c.fill_diagonal_(1.0))
    c = (vectors * values.clamp_min(1e-4)) @ vectors.T
    scale = c.diagonal().rsqrt()
    return c * scale * scale[:, None]


def _latents(root: Tensor, loadings: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    z = torch.randn(DRAWN, root.shape[1], generator=generator) @ root.T
    return z, torch.randn(DRAWN, loadings.shape[1], generator=generator) @ loadings.T


def _marginals(
    ranked: Float[Tensor, "p n"], size: Float[Tensor, " p"]
) -> tuple[Float[Tensor, "p 7"], Float[Tensor, "p 6"]]:
    """alpha and the six slopes of every feature: the law nearest to its sorted values in Wasserstein's distance; and the slopes
    with which the neurons come nearest to the size of a - alpha.

    ``size``: the deviation of h. By turns, quasi-random draws take the data's quantiles of their own ranks, and the slopes are
    fitted to these.
    """
    p, n = ranked.shape
    u = torch.quasirandom.SobolEngine(2, scramble=True, seed=1).draw(DRAWN, dtype=torch.float64)
    z = torch.special.ndtri(u.clamp(1e-6, 1 - 1e-6)).float()
    wanted = ranked[:, ((torch.arange(DRAWN) + 0.5) / DRAWN * n).long()]
    fit, sizes = torch.zeros(p, 7), torch.zeros(p, 6)
    for start in range(0, p, 64):
        part = slice(start, start + 64)
        own = _neurons(z[:, :1], z[:, 1:] * size[part])
        design = torch.cat([torch.ones(*own.shape[:2], 1), own], 2).transpose(0, 1)
        gram = (design.mT @ design / DRAWN).double() + 1e-6 * torch.eye(7, dtype=torch.float64)
        value = z[:, 0].expand(len(own[0]), -1)
        for _ in range(TURNS):
            matched = torch.empty(len(value), DRAWN).scatter_(1, argsort_rows(value), wanted[part])
            fit[part] = torch.linalg.solve(gram, (design.mT @ matched[..., None] / DRAWN).double())[..., 0].float()
            value = (design @ fit[part][..., None])[..., 0]
        moment = design[:, :, 1:].mT @ (value - fit[part, :1]).abs()[..., None] / DRAWN
        sizes[part] = torch.linalg.solve(gram[:, 1:, 1:], moment.double())[..., 0].float()
    return fit, sizes


def _values(fit: Tensor, z: Tensor, w: Tensor) -> Tensor:
    return torch.cat([fit[:, 0] + (_neurons(a, b) * fit[:, 1:]).sum(2) for a, b in zip(z.split(512), w.split(512))])


def _neurons(g: Tensor, w: Tensor) -> Tensor:
    """``(..., 6)``: the neurons at g and w; a = alpha + sum c (g + w - t)_+ + sum c' (-g + w - t)_+, signs being the slopes' own."""
    knots = torch.tensor(KNOTS)
    g, w = torch.broadcast_tensors(g, w)
    return torch.cat([(g[..., None] + w[..., None] - knots).relu(), (w[..., None] - g[..., None] - knots).relu()], -1)


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
    root = (vectors * values.clamp_min(0).sqrt())[:, -LATENTS:].float()
    return root / root.norm(dim=1, keepdim=True)
