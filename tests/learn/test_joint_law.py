"""The joint refinement of the first layer's law: its algebra, its information, and what it gains."""

import pytest
import torch
from torch import Tensor

from forwardsr.data.planted import PlantedSource
from forwardsr.errors import UserError
from forwardsr.learn import joint_law
from forwardsr.learn.efficient import _correlations
from forwardsr.learn.gram import near_correlation
from forwardsr.learn.joint_law import block_weights, nearest, products, refine, simulated
from forwardsr.learn.joint_score import Information, Law, coordinates, law_of, mean_score, score_sums
from forwardsr.learn.latent_law import fit_neuron
from forwardsr.learn.minmax import MinmaxConfig, learn_minmax
from forwardsr.model.plant import PlantConfig, plant

PATCHES, CHANNELS = 3, 4
P = PATCHES * CHANNELS


def planted(seed: int) -> tuple[Tensor, Tensor]:
    """Unit rows, independent within a patch, and thresholds."""
    generator = torch.Generator().manual_seed(seed)
    A = torch.randn(PATCHES, P, P, generator=generator, dtype=torch.float64) / P**0.5
    rows = torch.linalg.matrix_exp(0.7 * (A - A.mT))[:, :CHANNELS].flatten(0, 1)
    return rows, 1.0 + 0.4 * torch.rand(P, generator=generator, dtype=torch.float64)


def pairs(sums: Tensor, n: int) -> tuple[Tensor, Tensor, Tensor]:
    return with_errors(sums, n)[:3]


def with_errors(sums: Tensor, n: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    p = len(sums) // 2
    ones, firsts, seconds = (sums[:p, k * p : (k + 1) * p].diagonal() for k in range(3))
    t, sigma = fit_neuron(ones / n, firsts / ones, seconds / ones)
    return t, sigma, *_correlations(t, sigma, sums, n)


def matrix(law: Law, n: int, seed: int) -> Tensor:
    """The information as a matrix."""
    J = Information(law, torch.randn(n, P, generator=torch.Generator().manual_seed(seed)) @ law.single().root.T)
    return torch.stack([J @ x for x in torch.eye(P * (P + 3) // 2, dtype=torch.float64)])


def test_sums_are_those_of_a_dense_computation_of_every_sample() -> None:
    law = law_of(*planted(0))
    g = torch.randn(60, P, generator=torch.Generator().manual_seed(1), dtype=torch.float64) @ law.root.T
    g[0] = law.t - 1  # a sample in which all are silent
    total, mean = torch.zeros(P, P, dtype=torch.float64), torch.zeros(P, dtype=torch.float64)
    normal = torch.distributions.Normal(0.0, 1.0)
    for x in g:
        A, S = (x > law.t).nonzero()[:, 0], (x <= law.t).nonzero()[:, 0]
        K = law.C0[A][:, A] + 1e-6 * torch.eye(len(A), dtype=torch.float64)
        gain = torch.linalg.solve(K, law.C0[A]).T
        m, C = law.m0 + gain @ (x - law.m0)[A], law.C0 - gain @ law.C0[A]
        start, first = m.clone(), C.clone()
        for i in S:
            v = first[i, i]
            cavity = 1 / (1 / v - law.precision[i])
            centre = cavity * (start[i] / v - law.shift[i])
            u = (law.t[i] - centre) / cavity.sqrt()
            h = normal.log_prob(u).exp() / normal.cdf(u)
            m = m + first[:, i] * (centre - cavity.sqrt() * h - start[i]) / v
            C = C - torch.outer(first[:, i], first[:, i]) * (v - cavity * (1 - h * (h + u))) / v**2
        total += torch.outer(m, m) + C
        mean += m
    expected = law.whiten @ (total / len(g)) @ law.whiten.T - torch.eye(P, dtype=torch.float64)
    i, j = torch.triu_indices(P, P)
    expected = torch.cat([expected[i, j] * torch.where(i == j, 0.5, 1.0), law.whiten @ mean / len(g)])
    torch.testing.assert_close(mean_score(law, score_sums(law, g)), expected, atol=1e-4, rtol=1e-4)
    halves = score_sums(law, g[:25]) + score_sums(law, g[25:])
    torch.testing.assert_close(mean_score(law, halves), mean_score(law, score_sums(law, g)))


def test_information_is_the_scores_covariance() -> None:
    law = law_of(*planted(11))
    g = torch.randn(20_000, P, generator=torch.Generator().manual_seed(12)) @ law.single().root.T
    few = torch.stack([mean_score(law, score_sums(law.single(), part)) for part in g.split(50)])
    J = Information(law, g)
    for k in (0, 5, 40, -1):  # variances of means of 50, to 7 %
        own = J @ torch.eye(few.shape[1], dtype=torch.float64)[k]
        assert 0.7 < float(few[:, k].var() * 50 / own[k]) < 1.4


def test_information_is_the_slope_of_the_mean_score() -> None:
    law = law_of(*planted(2))
    one, z = law.single(), torch.randn(200_000, P, generator=torch.Generator().manual_seed(3))
    noise = torch.randn(P, P + 1, generator=torch.Generator().manual_seed(4)) * 0.02
    moved = one.root @ (torch.eye(P) + noise[:, :P])
    mu = one.root @ noise[:, P]
    here = mean_score(law, score_sums(one, z @ one.root.T))
    there = mean_score(law, score_sums(one, z @ moved.T + mu))
    x = coordinates(law, moved.double() @ moved.double().T, mu.double())
    J = matrix(law, 50_000, 5)
    torch.testing.assert_close(J, J.T, atol=1e-6, rtol=1e-3)
    assert torch.linalg.eigvalsh(J)[0] > 0
    miss = there - here - J @ x
    assert float(miss @ torch.linalg.solve(J, miss)) < 0.05 * float(x @ J @ x)


def test_simulated_score_is_a_bias_and_its_pairs_are_near_the_law() -> None:
    law = law_of(*planted(5))
    expected, moved = simulated(law, 200_000, pairs, torch.Generator().manual_seed(6))
    again, _ = simulated(law, 200_000, pairs, torch.Generator().manual_seed(7))
    J = matrix(law, 50_000, 8)
    energy = [float(y @ torch.linalg.solve(J, y)) * 200_000 / len(J) for y in (expected - again, J @ moved)]
    assert 1.4 < energy[0] < 2.7  # two means' noise
    assert 0.7 < energy[1] < 2.5  # the pairs are a little less efficient


def test_blocks_learn_their_correlations_size() -> None:
    rows, _ = planted(9)
    rho, se = rows @ rows.T, torch.full((P, P), 0.01, dtype=torch.float64)
    noise = torch.triu(torch.randn(P, P, generator=torch.Generator().manual_seed(10), dtype=torch.float64), 1) * 0.01
    weights = block_weights(rho + noise + noise.T, se, CHANNELS)
    assert weights.diagonal().abs().max() == 0
    assert weights[0, 1] > 0.3 / 0.01**2  # within a patch
    assert weights[0, CHANNELS] < 0.1 / 0.01**2  # across patches


def test_the_barrier_keeps_the_estimate_from_the_edge() -> None:
    rows, t = planted(9)
    law, n = law_of(rows, t), 2000
    J = Information(law, torch.randn(20_000, P, generator=torch.Generator().manual_seed(1)) @ law.single().root.T)
    none = torch.zeros(P * (P + 3) // 2, dtype=torch.float64)
    size = [
        float(torch.linalg.slogdet(v @ v.T)[1])
        for v in (
            nearest(law, J, none, n, torch.zeros(P, P, dtype=torch.float64), barrier) for barrier in (1e-6, 3.0, 30.0)
        )
    ]
    assert size[0] == pytest.approx(
        float(torch.linalg.slogdet(law.R)[1]), abs=1e-2
    )  # no score, no barrier: nothing moves
    assert size[0] + 0.01 < size[1] < size[2] - 0.01


def test_refining_brings_the_law_nearer_the_truth() -> None:
    n, before, after = 60_000, 0.0, 0.0
    for seed in range(3):
        rows, t = planted(20 + seed)
        truth = law_of(rows + 1e-3 * torch.eye(P, dtype=torch.float64), t)
        generator = torch.Generator().manual_seed(seed)
        s = (torch.randn(n, P, generator=generator) @ rows.float().T - t.float()).relu()
        found_t, sigma, rho, se = with_errors(products(s), n)
        start = near_correlation(rho, se)
        chunks = (s / sigma.float()).split(20_000)
        better = refine(start, found_t, chunks, rho, se, CHANNELS, pairs, generator)
        torch.testing.assert_close(better.norm(dim=1), torch.ones(P, dtype=torch.float64))
        J = matrix(truth, 20_000, seed)
        size = P * (P + 1) // 2
        for v, which in ((start, 0), (better, 1)):
            e = coordinates(truth, v @ v.T, torch.zeros(P, dtype=torch.float64))[:size]
            energy = float(e @ J[:size, :size] @ e) * n / size
            before, after = (before + energy, after) if which == 0 else (before, after + energy)
    assert after < 0.9 * before, (before, after)


SMALL = PlantConfig(patches=(4, 16), channels=(5,), d=12, p=(0.1, 0.15))


def test_the_learner_refines_directions_alone_and_goes_on_from_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joint_law, "INFORMED", 30_000)
    target, states = plant(SMALL), []
    settings = MinmaxConfig(samples=40_000, law="joint")
    found = learn_minmax(PlantedSource(target), (5,), settings=settings, on_stage=lambda _, state: states.append(state))
    assert [record.name for record in found.trace][:4] == ["features", "first hidden", "joint law", "features"]
    before, after = states[1]["V1"], states[2]["V1"]
    torch.testing.assert_close(after.norm(dim=2), before.norm(dim=2), rtol=1e-5, atol=0)
    assert torch.equal(states[1]["b1"], found.generator.b[0])
    # The latent's rotation is free, and which one is found may depend on the number of threads: correlations do not.
    was, now = (V.flatten(0, 1) @ V.flatten(0, 1).T for V in (before, after))
    assert 1e-4 < float((now - was).norm() / was.norm()) < 0.1
    again = learn_minmax(PlantedSource(target), (5,), settings=settings, resume=states[1])
    for ours, theirs in zip(again.generator.V, found.generator.V, strict=True):
        assert torch.equal(ours, theirs)


def test_where_it_has_no_use_it_says_so() -> None:
    target = plant(SMALL)
    settings = MinmaxConfig(samples=20_000, law="joint")
    noisy = learn_minmax(PlantedSource(target, 0.03), (5,), settings=settings)
    assert any("stays that of pairs" in note for note in noisy.notes)
    plain = learn_minmax(PlantedSource(target, 0.03), (5,), settings=MinmaxConfig(samples=20_000))
    assert torch.equal(noisy.generator.V[0], plain.generator.V[0])
    with pytest.raises(UserError, match="--law joint: 192 neurons"):
        learn_minmax(PlantedSource(plant(PlantConfig(patches=(16,), channels=(12,), d=12))), (12,), settings=settings)
    with pytest.raises(UserError, match="--law joint"):
        MinmaxConfig(law="joint", solver="closed-form")
