import math

import pytest
import torch
from scipy.stats import norm

from forwardsr.errors import UserError
from forwardsr.measure.intervals import both_active
from forwardsr.model.edge_colour import edge_colour_features
from forwardsr.model.patch_generator import quad_tree
from forwardsr.model.plant import RHO, PlantConfig, nearest_parents, plant, rectified_gaussian

SMALL = {"patches": (4, 16), "channels": (8,), "d": 12}
N = 60_000


def hidden(g, n=N, seed=9):
    return g.hidden(g.latents(n, torch.Generator().manual_seed(seed)))


def latent_law(g):
    """Unit rows and thresholds of level 1, float64."""
    V = g.V[0].double()
    return V / V.norm(dim=-1, keepdim=True), g.b[0].double() / V.norm(dim=-1)


def test_rectified_gaussian_against_quadrature():
    p = torch.tensor([0.01, 0.05, 0.1, 0.3], dtype=torch.float64)
    a, t = rectified_gaussian(p)
    for scale, threshold, chance in zip(a.tolist(), t.tolist(), p.tolist()):
        assert norm.sf(threshold) == pytest.approx(chance, rel=1e-10)
        assert norm.expect(lambda g, s=scale, c=threshold: s * max(g - c, 0), lb=threshold, ub=12) == pytest.approx(
            chance, rel=1e-6
        )


def test_level_1_closed_form_against_samples():
    g = plant(PlantConfig(**SMALL))
    u, t = latent_law(g)
    S = hidden(g)[0].double()
    p = torch.special.ndtr(-t)
    error = (p * (1 - p) / N).sqrt()
    assert (((S > 0).double().mean(0) - p).abs() / error).max() < 5
    assert ((S.mean(0) - p).abs() / (2 * p / N).sqrt()).max() < 5  # E[S] = p and Var[S] < 2 p
    A = (S > 0).double().flatten(1)
    u, t = u.flatten(0, 1), t.flatten()
    pair = both_active(t[:, None].expand(32, 32), t.expand(32, 32), (u @ u.T).clamp(-0.999, 0.999))
    off = ~torch.eye(32, dtype=torch.bool)
    deviation = ((A.T @ A / N - pair).abs() / (pair / N).sqrt())[off]
    assert deviation.max() < 6


def test_level_1_law():
    u, _ = latent_law(plant(PlantConfig(**SMALL)))
    torch.testing.assert_close(u @ u.mT, torch.eye(8, dtype=torch.float64).expand(4, 8, 8), atol=1e-6, rtol=0)
    gram = u.flatten(0, 1) @ u.flatten(0, 1).T
    across = gram[~torch.block_diag(*[torch.ones(8, 8, dtype=torch.bool)] * 4)]
    assert across.min() >= RHO[0] - 1e-6
    assert across.max() <= RHO[1] + 1e-6
    assert across.std() > 0.1
    u, _ = latent_law(plant(PlantConfig(**SMALL, within=0.3)))
    off = (u @ u.mT)[:, ~torch.eye(8, dtype=torch.bool)]
    assert 0.05 < off.std() < 0.3


@pytest.mark.parametrize(
    "more", [{}, {"parents": 2}, {"mixing": 0.1}, {"channels": (12, 8)}, {"channels": (6, 8), "parents": 2}]
)
def test_probabilities_and_means(more):
    config = PlantConfig(**(SMALL | {"d": 12} | more), calibration=20_000)
    for S in hidden(plant(config)):
        p, mean = (S > 0).double().mean(0), S.double().mean(0)
        assert p.min() > 0.045 * 0.85
        assert p.max() < 0.1 * 1.1
        # the stated errors of calibration and of this sample, sqrt(2 / (p n)), five times
        assert (mean / p - 1).abs().max() < 5 * math.sqrt(2 / 0.045 * (1 / 20_000 + 1 / N))


def test_disjoint_supports_are_exact_and_siblings_differ():
    g = plant(PlantConfig(**SMALL))
    assert ((g.V[1] != 0).sum(-1) == 1).all()
    assert ((g.V[1] != 0).sum(-2) == 1).all()
    assert (g.b[1] >= 0).all()
    sources = g.V[1][:, 0].argmax(-1)
    assert len({tuple(s.tolist()) for s in sources}) == 16
    S = hidden(g)[1].double()
    A = (S > 0).double().transpose(0, 1)
    p = A.mean(1)
    independent = p[:, :, None] * p[:, None, :]
    off = ~torch.eye(8, dtype=torch.bool)
    assert (((A.mT @ A / N - independent).abs() / (independent / N).sqrt())[:, off]).max() < 5


def test_features_are_orthonormal():
    for more in ({}, {"features": "photographs"}, {"shared": True}):
        g = plant(PlantConfig(patches=(1, 4), channels=(8,), d=12, calibration=1000, **more))
        for W in g.W:
            torch.testing.assert_close(W.mT @ W, torch.eye(8).expand(len(W), 8, 8), atol=1e-5, rtol=0)
            assert (W.stride(0) == 0) == (more.get("shared", False) and len(W) > 1)


def test_photographs_features_are_sparser_than_random_ones():
    from forwardsr.model.edge_colour import photograph_patches

    generator = torch.Generator().manual_seed(0)
    W = edge_colour_features(12, 6, 1, generator)
    x = photograph_patches(4000, 6, 1, generator)
    x = x - x.mean(0)
    kurtosis = lambda y: ((y**4).mean(0) / (y**2).mean(0) ** 2).mean()  # noqa: E731
    mix = torch.linalg.qr(torch.randn(12, 12, generator=generator, dtype=torch.float64))[0]
    assert kurtosis(x @ W) > 1.2 * kurtosis(x @ W @ mix)


def test_nearest_parents():
    assert torch.equal(nearest_parents(4, 16, 1), quad_tree(4, 16))
    assert nearest_parents(3, 6, 1).flatten().tolist() == [0, 0, 1, 1, 2, 2]
    assert nearest_parents(4, 16, 3)[0].tolist() == [0, 1, 2]
    g = plant(PlantConfig(**SMALL, parents=3, graph="random", calibration=2000))
    assert g.parents[1].shape == (16, 3)
    assert all(len(set(row)) == 3 for row in g.parents[1].tolist())


def test_seed_decides_everything():
    a, b, c = (plant(PlantConfig(**SMALL, seed=s)) for s in (1, 1, 2))
    assert all(torch.equal(t, b.tensors()[k]) for k, t in a.tensors().items())
    assert not torch.equal(a.W[0], c.W[0])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"patches": ()}, "--patches"),
        ({"channels": (8, 8, 8)}, "--channels"),
        ({"d": 7}, "narrower"),
        ({"p": (0.2, 0.1)}, "--p"),
        ({"parents": 5}, "--parents"),
        ({"latent": 3}, "--latent"),
        ({"violate": "density"}, "--amount"),
        ({"features": "photographs", "d": 13}, "--d 13"),
        ({"channels": (4, 8)}, "raise --parents"),
        ({"violate": "anti-concentration", "amount": 0.1}, "--parents 2"),
        ({"patches": (1, 4), "violate": "identifiability", "amount": 0.9}, "two patches"),
        ({"patches": (4,), "violate": "anti-concentration", "amount": 0.1}, "two levels"),
        ({"violate": "positive-correlation", "amount": 0.9, "within": 0.5}, "--within 0.5"),
    ],
)
def test_what_cannot_be_planted_is_one_line(change, says):
    with pytest.raises(UserError, match=says) as error:
        plant(PlantConfig(**(SMALL | change)))
    assert "\n" not in str(error.value)
