r"""The ``closed-form`` learner: Algorithm 4 with the inner maximum of every game taken analytically, as the proofs do.

With the discriminator at its maximum, each game leaves the generator an objective that is zero where moments agree, and the natural
fast step goes there at once. In a stage with threshold b, with :math:`s = W^\top X` and :math:`W^D = W`:

* D4 (C.2), two equations in two unknowns a neuron: :math:`\Pr[s_r > b]` and :math:`E[(s_r - 2b)_+]` give
  :math:`\alpha_r = \|V_r\|` and :math:`b_{1,r}`. (They are met exactly, so o_k's preference between too large and too small,
  Remark 4.1, never acts; a rate is kept above one sample in N, so neurons do not die.)
* D5 (C.13): the softmax over pairs is least where :math:`E[(s_r - b)_+ (s_{r'} - b)_+]` agree for all of them. Each is increasing
  in :math:`\langle V_r, V_{r'}\rangle` with slope Pr[both > b]; the Gram matrix near all solutions is :mod:`.gram`'s.
* D1 (B.2): zero where :math:`M W^\top = R^*`, with :math:`R^*_r = E[1[s^*_r > \mathbb{b}] X^*]`,
  :math:`M_{rq} = E[1[s_r > \mathbb{b}] S_q]`: a linear solve, for any c. Then columns are normalised (line 4).
* D2 (D.7): the generator copies the discriminator, which regresses :math:`s^*_r` on :math:`S^*_{l-1}` over its active samples
  (:mod:`.regression`).

The generator's moments at level 1 are exact: one neuron's in closed form, pairs' by their Mehler series. They are those of S; the
cross-talk of W, :math:`s = W^\top W S`, is added as the difference of moments of s and S over the same sampled z. Above level
1, M is sampled.

====================  ==============  ================================================================================
paper                 default         reason
====================  ==============  ================================================================================
b at the start        m^-0.3          as written, in units of a channel's mean size while active
b a stage             x ``shrink``    0.5: the paper's m^-0.02 is asymptotic
the floor of b        2.5 x           the 99th percentile of -s over negative s, which only cross-talk and noise make, in
                      cross-talk      the worst channel: a smaller b counts cross-talk. Read from the learner's own data
                                      before every stage; b never exceeds its start
T'                    ``stages``      4: b has reached its floor by then
bold b                b m^0.152       as written: it exceeds b, so cross-talk of W^D opens no gate
zeta                  0               smoothing is for gradients; none are taken
7b (Algorithm 3)      0               raising b makes S <= S* in the limit; at finite b it would be the largest error
====================  ==============  ================================================================================
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from forwardsr.errors import UserError
from forwardsr.learn.gram import near_correlation, with_columns
from forwardsr.learn.latent_law import coefficients, invert_mehler, mehler, mehler_slope
from forwardsr.learn.regression import regress
from forwardsr.learn.stream import Stream, mix
from forwardsr.learn.warm_start import cumulant_warm_start, missing_features
from forwardsr.model.activations import RELU
from forwardsr.model.patch_generator import PatchGenerator

Outcome = tuple[dict[str, Tensor], dict[str, float], list[str]]

_FLOOR = 2.5  # of b, in cross-talks
_PROBE = 5_000  # samples from which b's floor and unit are read
_TERMS = 60  # of Mehler series: rho^60 is 2e-3 at 0.9, times coefficients of 1e-3
_SAMPLED = 50_000  # z drawn for the cross-talk's part of the generator's moments


def warm_start_stage(stream: Stream, level: int, m: int, n: int, seed: int, salt: int) -> Outcome:
    """Line 2 of Algorithm 4 for a level (0-based): W by :mod:`.warm_start` from ``n`` samples, and what no feature was found for.

    Raises ``UserError`` for patches narrower than ``m``, too few samples, or a level that is zero throughout.
    """
    l, n = level + 1, stream.available(n)
    x = torch.cat([chunk[level] for chunk in stream.chunks(n, l, salt)], 1).transpose(0, 1)
    if not bool(x.any()):
        raise UserError(f"{stream.source.name}: level {l} is zero in all of {n} samples; there is nothing to learn")
    W = cumulant_warm_start(x, m, torch.Generator().manual_seed(seed))
    missing = missing_features(x, W)
    notes = []
    if bool(missing.any()):
        pairs = ", ".join(f"({int(j)}, {int(r)})" for j, r in missing.nonzero()[:8])
        notes.append(f"level {l}: {int(missing.sum())} features are missing or doubled after the warm start: {pairs}")
    return {f"W{l}": W, f"W{l}.warm": W}, {"samples": float(n), "missing": float(missing.sum())}, notes


def threshold(
    stream: Stream, state: dict[str, Tensor], level: int, t: int, shrink: float, salt: int
) -> tuple[float, float]:
    """The stage's b, and its floor, both in the unit of the data; ``t`` counts stages from 0."""
    W = state[f"W{level + 1}"]
    s = torch.cat([W.mT @ chunk[level].mT for chunk in stream.chunks(_PROBE, level + 1, salt)], 2)
    negative = torch.where(s < 0, -s, torch.nan)
    cross_talk = negative.nanquantile(0.99, dim=2).nan_to_num(0.0)
    unit = s.square().mean(2) / s.clamp_min(0).mean(2).clamp_min(1e-30)
    start, floor = float(unit.median()) * W.shape[2] ** -0.3, _FLOOR * float(cross_talk.max())
    return min(max(start * shrink ** (t + 1), floor), start), floor


# ------------------------------------------------------------------------------------------------------------- level 1


def first_level_stage(
    stream: Stream, state: dict[str, Tensor], b: float, n: int, latent_dim: int | None, seed: int, salt: int
) -> Outcome:
    """One turn of the loop at level 1: Algorithms 2 and 1, from one pass over ``n`` samples."""
    W = state["W1"]
    k, _, m = W.shape
    p, bold = k * m, b * m**0.152
    rate, mean, pairs, moment, total = _true_moments(stream, W, b, bold, n, salt)
    latent_dim = latent_dim or p
    talk_rate, talk_mean, talk_pairs, talk_mass = (torch.zeros_like(x) for x in (rate, mean, pairs, moment[:, :, :m]))
    i, j = torch.triu_indices(p, p, 1)
    for _ in range(2):  # the second time with the cross-talk of the first one's network
        u, t, sigma = fit_two_moments((rate - talk_rate).clamp(0.5 / total, 1 - 0.5 / total), mean - talk_mean, b)
        _, ramp, _ = coefficients(u, _TERMS)
        scaled = ramp * sigma
        aim = (pairs - talk_pairs)[i, j]
        found = invert_mehler(scaled[:, i], scaled[:, j], aim)
        slope = mehler_slope(scaled[:, i], scaled[:, j], found).clamp_min(1e-12)
        spread = (second_ramp(u) * sigma.square() / total**0.5).sqrt()
        rho, se = torch.eye(p, dtype=torch.float64), torch.ones(p, p, dtype=torch.float64)
        rho[i, j] = rho[j, i] = found
        se[i, j] = se[j, i] = spread[i] * spread[j] / slope
        v = near_correlation(rho, se, min(latent_dim, p))
        V = with_columns(v * sigma[:, None], latent_dim)
        talk_rate, talk_mean, talk_pairs, talk_mass = cross_talk_moments(W, V, t * sigma, b, bold, seed)
    mass = exact_mass(t, sigma, v @ v.mT, bold, k) + talk_mass
    new = solve_output(mass, moment, W)
    moved = (new - W.double()).norm(dim=1)
    notes = _ill_posed(1, mass, state, b)
    metrics = {
        "samples": float(total),
        "b": b,
        "moved": float(moved.square().mean().sqrt()),
        "D4 gap": float((rate - talk_rate - torch.special.ndtr(-u)).abs().max()),
        # (one neuron has no pairs)
        "D5 gap": float((mehler(scaled[:, i], scaled[:, j], (v @ v.mT)[i, j]) - aim).abs().amax()) if p > 1 else 0.0,
    }
    tensors = {"W1": new.float(), "V1": V.view(k, m, -1).float(), "b1": (t * sigma).view(k, m).float()}
    tensors["samples1"] = torch.tensor(total)
    return tensors, metrics, notes


def _true_moments(
    stream: Stream, W: Tensor, b: float, bold: float, n: int, salt: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, int]:
    """Of the data: Pr[s > b], E(s - 2b)_+, E(s - b)_+(s' - b)_+ and R*, in float64."""
    k, d, m = W.shape
    rate, mean = torch.zeros(k * m, dtype=torch.float64), torch.zeros(k * m, dtype=torch.float64)
    pairs, moment = torch.zeros(k * m, k * m, dtype=torch.float64), torch.zeros(k, m, d, dtype=torch.float64)
    total = 0
    for chunk in stream.chunks(n, 1, salt):
        s = torch.bmm(W.mT, chunk[0].mT)
        moment += (s > bold).float() @ chunk[0]
        s = s.view(k * m, -1)
        rate += (s > b).sum(1)
        mean += torch.relu(s - 2 * b).sum(1)
        h = torch.relu(s - b)
        pairs += h @ h.T
        total += s.shape[1]
    return rate / total, mean / total, pairs / total, moment / total, total


def fit_two_moments(
    rate: Float[Tensor, " p"], mean: Float[Tensor, " p"], b: float
) -> tuple[Float[Tensor, " p"], Float[Tensor, " p"], Float[Tensor, " p"]]:
    r"""D4's equations :math:`\Pr[S > b] = rate`, :math:`E(S - 2b)_+ = mean` for :math:`S = \sigma (g - t)_+`: ``(t + b/sigma, t,
    sigma)``. The first gives ``u = t + b/sigma``; the second is then increasing in sigma, and solved by bisection."""
    u = -torch.special.ndtri(rate)
    low, high = torch.full_like(rate, 1e-3 * b), torch.full_like(rate, 1e4 * b)
    for _ in range(60):
        sigma = (low * high).sqrt()
        below = sigma * _ramp(u + b / sigma) < mean
        low, high = torch.where(below, sigma, low), torch.where(below, high, sigma)
    sigma = (low * high).sqrt()
    return u, u - b / sigma, sigma


def _ramp(t: Tensor) -> Tensor:
    """``E(g - t)_+``."""
    return torch.exp(-t.square() / 2) / (2 * torch.pi) ** 0.5 - t * torch.special.ndtr(-t)


def second_ramp(t: Float[Tensor, " p"]) -> Float[Tensor, " p"]:
    """``E (g - t)_+^2``."""
    return torch.special.ndtr(-t) - t * _ramp(t)


def exact_mass(
    t: Float[Tensor, " p"], sigma: Float[Tensor, " p"], rho: Float[Tensor, "p p"], bold: float, k: int
) -> Float[Tensor, "k m m"]:
    """``M_rq = E[1[S_r > bold] S_q]`` within every patch: Mehler's series off the diagonal, closed form on it."""
    gate, _, _ = coefficients(t + bold / sigma, _TERMS)
    _, ramp, _ = coefficients(t, _TERMS)
    ramp = ramp * sigma
    m = len(t) // k
    row = torch.arange(len(t)).view(k, m, 1).expand(k, m, m)
    column = row.mT
    series = mehler(gate[:, row.flatten()], ramp[:, column.flatten()], rho[row, column].flatten()).view(k, m, m)
    u = t + bold / sigma
    own = sigma * (_ramp(u) + (u - t) * torch.special.ndtr(-u))
    eye = torch.eye(m, dtype=torch.bool)
    return torch.where(eye, own.view(k, m, 1), series)


def cross_talk_moments(
    W: Tensor, V: Tensor, bias: Tensor, b: float, bold: float, seed: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Moments of ``s = W^T W S`` less those of S, over the same z: rate, mean, pairs, and mass ``(k, m, m)``."""
    k, _, m = W.shape
    gram = (W.mT @ W).float()
    z = torch.randn(_SAMPLED, V.shape[1], generator=torch.Generator().manual_seed(mix(seed, 1)))
    S = torch.relu(z @ V.T.float() - bias.float()).T.contiguous().view(k, m, -1)
    s = gram @ S
    flat, own = s.view(k * m, -1), S.view(k * m, -1)

    def moments(x: Tensor) -> list[Tensor]:
        h = torch.relu(x - b)
        return [(x > b).float().mean(1), torch.relu(x - 2 * b).mean(1), h @ h.T / h.shape[1]]

    rate, mean, pairs = ((a - c).double() for a, c in zip(moments(flat), moments(own), strict=True))
    mass = ((s > bold).float() - (S - bold > 0).float()) @ S.mT / S.shape[2]
    return rate, mean, pairs, mass.double()


def solve_output(
    mass: Float[Tensor, "k m m"], moment: Float[Tensor, "k m d"], old: Float[Tensor, "k d m"]
) -> Float[Tensor, "k d m"]:
    """``W`` of ``M W^T = R*``, its columns normalised; a column that comes out as zero stays the ``old`` one."""
    W = (torch.linalg.pinv(mass, rtol=1e-6) @ moment).mT
    length = W.norm(dim=1, keepdim=True)
    return torch.where(length > 1e-9, W / length.clamp_min(1e-30), old.double())


def _ill_posed(level: int, mass: Tensor, state: dict[str, Tensor], b: float) -> list[str]:
    """What keeps D1 and D4 from saying much at this stage."""
    notes = []
    scaled = mass / mass.diagonal(dim1=1, dim2=2).abs().clamp_min(1e-30)[:, :, None]
    if (condition := float(torch.linalg.cond(scaled).max())) > 1e3:
        notes.append(f"level {level}: M of D1 is near singular (condition {condition:.0f})")
    if float(state.get(f"floor{level}", torch.zeros(()))) > 2 * b:
        notes.append(
            f"level {level}: coordinates are as often negative as positive; these are no sparse non-negative features"
        )
    return notes


# ------------------------------------------------------------------------------------------------------ higher levels


def higher_level_stage(
    stream: Stream, state: dict[str, Tensor], level: int, parents: Sequence[Tensor | None], b: float, n: int,
    regression_samples: int, seed: int, salt: int,
) -> Outcome:  # fmt: skip
    """One turn of the loop at a level above the first (0-based): Algorithm 3, then Algorithm 1."""
    graph = parents[level]
    assert graph is not None
    l, W, below = level + 1, state[f"W{level + 1}"], state[f"W{level}"]
    (k, _, m), width = W.shape, below.shape[2]
    bold = b * m**0.152
    n = stream.available(n)
    # The lower level is finished, so its own cross-talk is the tolerance there.
    lower = float(state[f"floor{level}"])
    inputs, outputs = [], []
    for chunk in stream.chunks(min(n, regression_samples), l, salt):
        s = chunk[level - 1] @ below
        inputs.append(s * (s > lower))
        outputs.append(chunk[level] @ W)
    s, y = torch.cat(inputs, 1), torch.cat(outputs, 1)
    q = graph.shape[1] * width
    f = s[graph.flatten()].view(k, graph.shape[1], -1, width).transpose(1, 2).reshape(k, s.shape[1], q)
    fit = regress(f, y, torch.full((k, m), b), torch.zeros(k, q))
    V, bias = fit.V.view(k, m, graph.shape[1], width).transpose(1, 2).float().contiguous(), fit.b.float()

    moment, total = torch.zeros(k, m, W.shape[1], dtype=torch.float64), 0
    for chunk in stream.chunks(n, l, salt + 1):
        x = chunk[level]
        moment += (torch.bmm(W.mT, x.mT) > bold).float() @ x
        total += x.shape[1]
    upto = range(1, l)
    network = PatchGenerator(
        [state[f"W{i}"] for i in upto] + [W], [state[f"V{i}"] for i in upto] + [V], [state[f"b{i}"] for i in upto] + [bias],
        list(parents[:l]), RELU,
    )  # fmt: skip
    mass = sampled_mass(network, W, bold, 2 * n, seed)  # z is cheap beside images, and both noises count alike
    new = solve_output(mass, moment / total, W)
    notes = _ill_posed(l, mass, state, b)
    metrics = {
        "samples": float(total),
        "b": b,
        "moved": float((new - W.double()).norm(dim=1).square().mean().sqrt()),
        "residual": float(fit.residual.square().mean().sqrt()),
        "disagreement": float(fit.disagreement.max()),
    }
    return {f"W{l}": new.float(), f"V{l}": V, f"b{l}": bias}, metrics, notes


def sampled_mass(network: PatchGenerator, W: Tensor, bold: float, n: int, seed: int) -> Float[Tensor, "k m m"]:
    """``M`` of the top level of ``network`` over ``n`` fresh z."""
    k, _, m = W.shape
    gram, generator = W.mT @ W, torch.Generator().manual_seed(mix(seed, 2))
    mass, chunk = torch.zeros(k, m, m, dtype=torch.float64), max(256, 2**22 // (k * m))
    for start in range(0, n, chunk):
        S = network.hidden(network.latents(min(chunk, n - start), generator))[-1].transpose(0, 1)
        mass += ((S @ gram) > bold).to(S).mT @ S
    return mass / n
