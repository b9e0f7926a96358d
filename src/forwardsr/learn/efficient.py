r"""The ``efficient`` learner: Algorithm 4 with every inner game replaced by the best estimator its structure allows.

================  ==========================================================================================  ================
stage             what it computes                                                                            takes the place of
================  ==========================================================================================  ================
features l        W_l: a cumulant warm start, then the silent-sample equations (:mod:`.features`)             Algorithms 5, 1
first hidden      V_1, b_1: maximum likelihood of censored Gaussians, alone and in pairs                      Algorithm 2
                  (:mod:`.latent_law`), nearest Gram matrix and its root (:mod:`.gram`)
super-resolution  V_l, b_l: regression on active samples (:mod:`.regression`)                                 Algorithm 3
================  ==========================================================================================  ================

The only error that does not vanish without noise is that of the latent law, which is at its Cramér-Rao bound. With noise of
standard deviation sigma_e on a decoded channel, active means above :math:`\tau = 4.5 \sigma_e`: what is above is
still Gaussian, censored at :math:`b + \tau` and of variance :math:`\sigma^2 + \sigma_e^2`, so the same likelihood holds with the
threshold shifted and the variance subtracted afterwards. Covariances need no correction.

With many processes (:mod:`forwardsr.parallel`) features and regressions are divided by patches, and the pass over level 1 by
chunks whose sums are added in order. Sums and regressions have the same bits as in one process. Features agree to rounding: a
patch is refined until all that are refined with it are done, and these are fewer.

Off the model (active values that are not those of a censored Gaussian) a neuron falls back to D4's two moments, probability
and mean, as the ``closed-form`` learner matches them, and the result says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from forwardsr.errors import UserError
from forwardsr.learn.features import FEW, Features, learn_features
from forwardsr.learn.gram import near_correlation, with_columns
from forwardsr.learn.joint_law import refine
from forwardsr.learn.latent_law import fit_neuron, fit_pairs, match_moments, neuron_errors
from forwardsr.learn.regression import Regression, regress
from forwardsr.learn.stream import PatchesOf, Stream
from forwardsr.parallel import PeerLost

SE_LIMIT = 0.05  # a correlation known less well than this is named: it is of no use to draw from
OFF_MODEL = 0.05  # relative error of the third moment of active values beyond which a neuron is no censored Gaussian
HELD = 2**27  # numbers of a level's samples that are looked at together: half a gigabyte
_AT_ONCE = 100_000  # samples a pass of the joint law sorts by how many neurons are active
_LEAST = 30  # active samples a neuron's law needs

Found = TypeVar("Found")


def names(mask: Tensor, limit: int = 8) -> str:
    """The ``(patch, channel)`` pairs where a ``(k, m)`` mask is true, 0-based, shortened."""
    found = [f"({int(j)}, {int(r)})" for j, r in mask.nonzero()[:limit]]
    more = int(mask.sum()) - len(found)
    return ", ".join(found) + (f" and {more} more" if more > 0 else "")


def _divided(stream: Stream, patches: int, work: Callable[[slice], Found]) -> Found:
    """``work(all patches)``, each process doing its part of them: a dataclass of tensors, patches first, and numbers.

    Where a process raises ``UserError``, all do the whole work, so that the error speaks of all patches.
    """
    world, every = stream.world, slice(0, patches)
    if world.size == 1:
        return work(every)
    own, found, failed = world.part(patches), None, False
    try:
        found = work(own) if own.start < own.stop else None
    except PeerLost:
        raise
    except UserError:
        failed = True
    answers = world.gather((found, failed))
    if any(failed for _, failed in answers):
        return work(every)
    return _joined([part for part, _ in answers if part is not None])


def _joined(parts: Sequence[Found]) -> Found:
    """Of dataclasses, each of its patches: that of all."""
    columns = [[getattr(part, field.name) for part in parts] for field in fields(parts[0])]  # type: ignore[arg-type]
    return type(parts[0])(*(torch.cat(x) if isinstance(x[0], Tensor) else max(x) for x in columns))


def _grouped(part: slice, most: int, work: Callable[[slice], Found]) -> Found:
    """``work(part)``, ``most`` patches at a time: the samples of all would not fit."""
    starts = range(part.start, part.stop, max(1, most))
    return _joined([work(slice(start, min(start + starts.step, part.stop))) for start in starts])


def feature_stage(
    stream: Stream, level: int, m: int, n: int, seed: int, salt: int
) -> tuple[dict[str, Tensor], dict[str, float], list[str]]:
    """W of a level (0-based): new state, metrics, notes."""
    (k, d), l = stream.sizes[level], level + 1

    def work(part: slice) -> Features:
        own = stream if part == slice(0, k) else PatchesOf(stream, level, part)
        return learn_features(own, level, m, n, torch.Generator().manual_seed(seed), salt)

    most = HELD // max(FEW * d, stream.available(n) * m)  # with noise the values of all samples are held, too
    found = _divided(stream, k, lambda part: _grouped(part, most, work))
    notes = []
    if bool(found.bad.any()):
        notes.append(f"level {l}: no feature was found for (patch, channel) {names(found.bad)}")
    state = {f"W{l}": found.W, f"W{l}.warm": found.warm, f"noise{l}": found.noise, f"rms{l}": found.rms}
    d = found.W.shape[1]
    metrics = {
        "samples": float(found.samples),
        "noise": float((found.noise * d**0.5 / found.rms).mean()),
        "bad": float(found.bad.sum()),
        "moved": float((found.W - found.warm).norm(dim=1).mean()),
    }
    return state, metrics, notes


def features_of(state: dict[str, Tensor], level: int) -> Features:
    """What :func:`feature_stage` left in the state."""
    l = level + 1
    W = state[f"W{l}"]
    bad = torch.zeros(W.shape[0], W.shape[2], dtype=torch.bool)
    return Features(W, state[f"noise{l}"], state[f"rms{l}"], state[f"W{l}.warm"], bad, 0)


def latent_sums(
    stream: Stream, features: Features, n: int, salt: int
) -> tuple[int, Float[Tensor, "p2 p3"], Float[Tensor, " p"]]:
    """One pass over level 1: the count, the products of (1, s) with (1, s, s^2), and the sums of s^3.

    ``s`` is what a decoded channel exceeds its threshold by, and zero below it; channels of all patches in a row (p of them).
    """
    decoder, threshold = features.decoder, features.threshold.reshape(-1, 1)
    p = len(threshold)
    products = torch.zeros(2 * p, 3 * p, dtype=torch.float64)
    cubes = torch.zeros(p, dtype=torch.float64)

    def of_chunks() -> Iterator[tuple[Tensor, Tensor]]:
        buffer = torch.empty(0)
        for chunk in stream.chunks(n, 1, salt, dealt=True):
            count = chunk[0].shape[1]
            if buffer.shape[1:] != (count,):
                buffer = torch.empty(3 * p, count)
            one, s, square = buffer.view(3, p, count)
            torch.bmm(decoder, chunk[0].mT, out=s.view(*decoder.shape[:2], count))
            torch.relu_(s.sub_(threshold))
            torch.gt(s, 0, out=one)
            torch.mul(s, s, out=square)
            yield buffer[: 2 * p] @ buffer.T, torch.linalg.vecdot(s, square)

    stream.world.add_in_turn(of_chunks(), (products, cubes))
    return stream.available(n), products, cubes


def first_hidden_stage(
    stream: Stream, state: dict[str, Tensor], n: int, latent_dim: int | None, salt: int
) -> tuple[dict[str, Tensor], dict[str, float], list[str]]:
    """V_1 and b_1 from one pass over ``n`` samples of level 1: new state, metrics, notes.

    Raises ``UserError`` where a channel is active in fewer than 30 of the samples (with the number that would do).
    """
    features = features_of(state, 0)
    k, m = features.W.shape[0], features.W.shape[2]
    total, sums, cubes = latent_sums(stream, features, n, salt)
    p = k * m
    ones, firsts, seconds = sums[:p, :p].diagonal(), sums[:p, p : 2 * p].diagonal(), sums[:p, 2 * p :].diagonal()
    _check_activity(stream, ones, total, m)
    rate = (ones / total).clamp(0.5 / total, 1 - 0.5 / total)
    first, second, third = firsts / ones, seconds / ones, cubes / ones
    t, sigma = fit_neuron(rate, first, second)
    off = _off_model(t, sigma, third, ones)
    plain_t, plain_sigma = match_moments(rate, rate * first)
    t, sigma = torch.where(off, plain_t, t), torch.where(off, plain_sigma, sigma)
    rho, se = _correlations(t, sigma, sums, total)
    decoded, threshold = features.decoded_noise.reshape(-1).double(), features.threshold.reshape(-1).double()
    bias = t * sigma - threshold
    true_sigma = (sigma.square() - decoded.square()).clamp_min(1e-4 * sigma.square()).sqrt()
    inflate = sigma / true_sigma
    # What noise takes from a correlation is put back, and with it the error grows; beyond 1 nothing is known of it.
    rho, se = rho * inflate[:, None] * inflate, se * inflate[:, None] * inflate
    se = torch.where(rho.abs() > 0.999, se.clamp_min(1.0), se)
    rho = rho.clamp(-0.999, 0.999).fill_diagonal_(1.0)
    blind = torch.triu(se > SE_LIMIT, 1)
    latent_dim = latent_dim or p
    v = near_correlation(rho, se, min(latent_dim, p))
    V = with_columns(v * true_sigma[:, None], latent_dim)
    notes = []
    if bool(off.any()):
        notes.append(
            f"level 1: (patch, channel) {names(off.view(k, m))} are no censored Gaussians; "
            "their activation probability and mean are matched instead, as closed-form does"
        )
    if bool(blind.any()):
        pairs = [f"({int(i) // m}, {int(i) % m})-({int(j) // m}, {int(j) % m})" for i, j in blind.nonzero()[:8]]
        more = int(blind.sum()) - len(pairs)
        tail = f" and {more} more" if more > 0 else ""
        notes.append(f"level 1: {total} samples do not determine the correlation of {', '.join(pairs)}{tail}")
    upper = torch.triu_indices(p, p, 1)
    t_error, sigma_error = neuron_errors(t)
    metrics = {
        "samples": float(total),
        "norm standard error": float((sigma_error / total**0.5).mean()),
        "bias standard error": float((t_error / total**0.5).mean()),
        "correlation standard error": float(se[upper[0], upper[1]].square().mean().sqrt()) if p > 1 else 0.0,
        "undetermined pairs": float(blind.sum()),
        "off-model neurons": float(off.sum()),
        "shift to a Gram matrix": float((v @ v.mT - rho).square().mean().sqrt()),
    }
    new = {"V1": V.view(k, m, -1).float(), "b1": bias.view(k, m).float(), "rho1": rho, "se1": se}
    new["samples1"] = torch.tensor(total)
    new["plain1"] = torch.tensor(not bool((decoded > 0).any() or off.any() or blind.any()))
    return new, metrics, notes


def joint_law_stage(
    stream: Stream, state: dict[str, Tensor], n: int, seed: int, salt: int
) -> tuple[dict[str, Tensor], dict[str, float], list[str]]:
    """V_1 once more, from all neurons together (:mod:`forwardsr.learn.joint_law`), from the same ``n`` samples.

    Where samples are noisy, or neurons off the model or undetermined, or the latent has fewer dimensions than there are neurons,
    V_1 stays the pairs', and a note says so.
    """
    features, V = features_of(state, 0), state["V1"].double().flatten(0, 1)
    m, (p, latent_dim) = features.W.shape[2], V.shape
    if not bool(state["plain1"]) or latent_dim < p:
        return (
            {},
            {},
            ["level 1: its law stays that of pairs; the joint one takes noiseless, determined, regular neurons"],
        )
    sigma = V.norm(dim=1)
    t, decoder, threshold = state["b1"].double().flatten() / sigma, features.decoder, features.threshold.reshape(-1, 1)

    def samples() -> Iterator[Tensor]:
        held: list[Tensor] = []
        for chunk in stream.chunks(n, 1, salt):
            s = torch.bmm(decoder, chunk[0].mT).view(p, -1).sub_(threshold).relu_() / sigma.float()[:, None]
            held.append(s.T)
            if sum(map(len, held)) >= _AT_ONCE:
                yield torch.cat(held)
                held = []
        if held:
            yield torch.cat(held)

    def pairs(sums: Tensor, total: int) -> tuple[Tensor, Tensor, Tensor]:
        ones, firsts, seconds = (sums[:p, k * p : (k + 1) * p].diagonal() for k in range(3))
        t, sigma = fit_neuron(ones / total, firsts / ones, seconds / ones)
        return t, sigma, _correlations(t, sigma, sums, total)[0]

    generator = torch.Generator().manual_seed(seed)
    rows = refine(V / sigma[:, None], t, samples(), state["rho1"], state["se1"], m, pairs, generator)
    moved = rows @ rows.mT - V @ V.mT / sigma[:, None] / sigma
    new = with_columns(rows * sigma[:, None], latent_dim).view(state["V1"].shape).float()
    return {"V1": new}, {"correlations moved": float(moved.square().mean().sqrt())}, []


def _check_activity(stream: Stream, ones: Tensor, total: int, m: int) -> None:
    if bool((ones < _LEAST).any()):
        worst = int(ones.argmin())
        fires = int(ones[worst])
        need = f"about {total * _LEAST // fires} samples are needed" if fires else "it is dead: ask for fewer channels"
        raise UserError(
            f"{stream.source.name}: level 1, patch {worst // m}, channel {worst % m} is active in {fires} of {total} samples, "
            f"fewer than the {_LEAST} its law takes; {need}"
        )


def _off_model(t: Tensor, sigma: Tensor, third: Tensor, count: Tensor) -> Tensor:
    """Where the third moment of active values differs from the fitted law's by more than 6 standard errors and 5 %."""
    density = torch.exp(-t.square() / 2) / (2 * torch.pi) ** 0.5
    tail = torch.special.ndtr(-t)
    moment = [tail, density - t * tail]
    for k in range(1, 6):  # E[x^(k+1)] = k E[x^(k-1)] - t E[x^k] for x = (g - t)_+
        moment.append(k * moment[k - 1] - t * moment[k])
    expected, spread = moment[3] / tail, (moment[6] / tail).sqrt() / count.sqrt()
    gap = (third / sigma**3 - expected).abs()
    return (gap > 6 * spread) & (gap > OFF_MODEL * expected)


def _correlations(t: Tensor, sigma: Tensor, sums: Tensor, total: int) -> tuple[Tensor, Tensor]:
    """Correlations and their standard errors, ``(p, p)``, from the products of :func:`latent_sums`."""
    p = len(t)
    i, j = torch.triu_indices(p, p, 1)
    means = sums / total
    both = means[i, j]
    # Sums over samples in which both are active of x_i, x_j, x_i^2, x_j^2, x_i x_j, with x = s / sigma = g - t.
    xi, xj = means[j, p + i] / sigma[i], means[i, p + j] / sigma[j]
    xxi, xxj = means[j, 2 * p + i] / sigma[i].square(), means[i, 2 * p + j] / sigma[j].square()
    xij = means[p + i, p + j] / (sigma[i] * sigma[j])
    ti, tj = t[i], t[j]
    product = xij + tj * xi + ti * xj + ti * tj * both
    squares = xxi + xxj + 2 * (ti * xi + tj * xj) + (ti.square() + tj.square()) * both
    rate = means[:p, :p].diagonal()
    mean = means[:p, p : 2 * p].diagonal() / sigma
    square = means[:p, 2 * p :].diagonal() / sigma.square()
    cells = {
        "11": torch.stack([both, product, squares], -1),
        "10": torch.stack([rate[i] - both, mean[i] - xi, square[i] - xxi], -1),
        "01": torch.stack([rate[j] - both, mean[j] - xj, square[j] - xxj], -1),
        "00": 1 - rate[i] - rate[j] + both,
    }
    found, information = fit_pairs(ti, tj, cells)
    rho = torch.eye(p, dtype=torch.float64)
    se = torch.zeros(p, p, dtype=torch.float64)
    rho[i, j] = rho[j, i] = found
    se[i, j] = se[j, i] = (information.clamp_min(1e-12) * total).rsqrt()
    return rho, se


def super_resolution_stage(
    stream: Stream, state: dict[str, Tensor], level: int, parents: Sequence[Tensor | None], n: int, salt: int
) -> tuple[dict[str, Tensor], dict[str, float], list[str]]:
    """V and b of a level (0-based, above the first) from ``n`` samples: new state, metrics, notes."""
    graph = parents[level]
    assert graph is not None
    below, here = features_of(state, level - 1), features_of(state, level)
    (k, _, m), width, l = here.W.shape, below.W.shape[2], level + 1
    exact = bool((here.noise == 0).all()) and bool((below.noise == 0).all())
    n = stream.available(min(n, max(10_000, 200 * graph.shape[1] * width)) if exact else n)
    q = graph.shape[1] * width

    def work(part: slice) -> Regression:
        sources, outputs = [], []
        used, wires = graph[part].unique(return_inverse=True)
        lower, decoder, upper = below.threshold[used, None, :], below.decoder[used], here.decoder[part]
        for chunk in stream.chunks(n, l, salt):
            s = chunk[level - 1][used] @ decoder.mT
            sources.append(s * (s > lower))
            outputs.append(chunk[level][part] @ upper.mT)
        s, y = torch.cat(sources, 1), torch.cat(outputs, 1)
        inputs = s[wires.reshape(-1)].view(len(wires), graph.shape[1], n, width).transpose(1, 2).reshape(-1, n, q)
        return regress(inputs, y, here.threshold[part], below.decoded_noise[graph[part].reshape(-1)].view(-1, q))

    fit = _divided(stream, k, lambda part: _grouped(part, HELD // (n * max(m, q)), work))
    V = fit.V.view(k, m, graph.shape[1], width).transpose(1, 2)
    bound = 0.05 + 3 * here.decoded_noise / here.rms[:, None]
    off = (fit.residual > bound) | (fit.disagreement > 0.05)
    notes = []
    if bool(off.any()):
        notes.append(
            f"level {l}: (patch, channel) {names(off)} are no rectified linear functions of their parents; the nearest is kept"
        )
    metrics = {
        "samples": float(n),
        "residual": float(fit.residual.square().mean().sqrt()),
        "disagreement": float(fit.disagreement.max()),
        "unseen inputs": float(fit.unseen.sum()),
        "off-model channels": float(off.sum()),
    }
    return {f"V{l}": V.float().contiguous(), f"b{l}": fit.b.float()}, metrics, notes
