import json
import math

import pytest
import torch
from scipy.stats import binomtest, multivariate_normal

from forwardsr.data.pyramid import Pyramid
from forwardsr.measure import coactivation
from forwardsr.measure.assumptions import AuditSettings, audit
from forwardsr.measure.coactivation import LevelCounts, patch_form
from forwardsr.measure.intervals import both_active, wilson
from forwardsr.model.plant import PlantConfig, plant

# At m = 12 the bounds leave room: E[S] (1 - p) >= 12^-1.15 = 0.057, p^3 <= 12^-2.01 = 0.0068, few samples above m / 2 active.
SMALL = {"patches": (4, 16), "channels": (12,), "d": 12, "p": (0.075, 0.1)}
N = 40_000


def test_wilson_agrees_with_scipy():
    low, high = wilson(torch.tensor([3.0, 0.0, 50.0], dtype=torch.float64), 50, 1.959963984540054)
    for k, lo, hi in zip((3, 0, 50), low.tolist(), high.tolist()):
        ci = binomtest(k, 50).proportion_ci(method="wilson")
        assert (lo, hi) == pytest.approx((ci.low, ci.high), abs=1e-9)


@pytest.mark.parametrize("rho", [-0.95, -0.5, 0.0, 0.3, 0.9])
def test_bivariate_normal_agrees_with_scipy(rho):
    t_1, t_2 = 1.2, 1.7
    ours = both_active(*(torch.tensor([x], dtype=torch.float64) for x in (t_1, t_2, rho)))
    theirs = multivariate_normal.cdf([-t_1, -t_2], cov=[[1, rho], [rho, 1]])
    assert float(ours) == pytest.approx(theirs, abs=1e-7)


def test_counts_by_hand():
    S = torch.tensor(
        [[[1.0, 0.02, 0.0], [2.0, 3.0, 1.0], [0.0, 0.0, 0.0], [0.0, 0.5, 0.01]]]
    )  # one patch, four samples
    counts = LevelCounts(1, 3, (0.1,))
    counts.add(S)
    assert counts.active.tolist() == [[2, 3, 2]]
    assert counts.pair[0].tolist() == [[2, 2, 1], [2, 3, 2], [1, 2, 2]]
    assert counts.triple.tolist() == [[1]]
    assert counts.l0.tolist() == [[1, 0, 2, 1]]
    assert counts.small.tolist() == [[[0, 1, 1]]]
    assert counts.small_pair[0, 0].tolist() == [[0, 0, 0], [1, 1, 0], [0, 1, 1]]
    torch.testing.assert_close(counts.mu.sum(0)[0, 0], torch.tensor([3.0, 3.02, 1.0], dtype=torch.float64))


@pytest.mark.parametrize("density", [0.1, 0.5])
def test_triples_listed_and_multiplied_agree(density):
    A = (torch.rand(3, 500, 9, generator=torch.Generator().manual_seed(0)) < density).float()
    index = torch.combinations(torch.arange(9), 3)
    listed = coactivation._listed_triples(A, A.sum(2).long(), index)
    assert torch.equal(listed, coactivation._multiplied_triples(A, index))
    p, q, r = index[17]
    assert listed[1, 17] == (A[1, :, p] * A[1, :, q] * A[1, :, r]).sum()


def test_a_planted_target_passes():
    result = audit(plant(PlantConfig(**SMALL)), N, seed=1)
    assert result.holds, result.failed() | result.failed("unresolved")
    assert result.levels[0].k == pytest.approx(5, abs=1)
    top = result.levels[0].epsilon_1
    assert 0.005 < top < 0.015  # independent: p^2 with p up to 0.1


def test_intervals_cover_the_exact_value():
    g = plant(PlantConfig(**SMALL))
    V, b = g.V[0].double(), g.b[0].double()
    p = torch.special.ndtr(-b / V.norm(dim=-1)).max()
    row = next(r for r in audit(g, 20_000, seed=2).rows if (r.level, r.name) == (1, "probability"))
    assert row.low < p < row.high


@pytest.mark.parametrize(
    ("violation", "amount", "more", "rows"),
    [
        # more than m / 2 active at once is no rarity at 0.3, and triples follow: 0.3^3 > 12^-2.01
        ("density", 0.35, {}, {(1, "sparsity"), (2, "sparsity"), (1, "triples"), (2, "triples")}),
        (
            "anti-concentration",
            0.005,
            {"parents": 2},
            {(2, "anti-concentration"), (2, "anti-concentration 2")},
        ),
        (
            "non-degeneracy",
            0.4,
            {},
            {(1, "non-degeneracy"), (2, "non-degeneracy")},
        ),
        ("orthonormality", 0.1, {}, {(1, "orthonormal"), (2, "orthonormal")}),
        ("identifiability", 0.95, {}, {(1, "pair floor")}),
    ],
)
def test_a_violation_fails_its_row_and_no_other(violation, amount, more, rows):
    settings = SMALL | {"calibration": 20_000} | more
    if more:
        assert audit(plant(PlantConfig(**settings)), N, seed=1).failed() == set()
    result = audit(plant(PlantConfig(**settings, violate=violation, amount=amount)), N, seed=1)
    assert result.failed() == rows
    assert not result.holds


def test_positive_correlation_fails_pairs_and_no_other_row():
    # Two correlated channels also bring triples and a smaller sigma_min: only a stricter epsilon_1 sees the pairs first.
    strict = AuditSettings(pair_factor=1.0)
    sizes = {"patches": (4, 16), "channels": (16,), "d": 16, "p": (0.098, 0.1)}
    assert audit(plant(PlantConfig(**sizes)), N, seed=1, settings=strict).failed() == set()
    violated = plant(PlantConfig(**sizes, violate="positive-correlation", amount=0.55))
    assert audit(violated, N, seed=1, settings=strict).failed() == {(1, "pairs"), (2, "pairs")}


class Convolutional:
    """A planted target in image form: positions as patches."""

    def __init__(self, g):
        self.g, self.latent_dim = g, g.latent_dim

    def hidden(self, z):
        layers = self.g.hidden(z)
        return [s.permute(0, 2, 1).reshape(len(z), s.shape[2], math.isqrt(s.shape[1]), -1) for s in layers]

    def render(self, hidden):
        return Pyramid(list(hidden))

    def sample(self, n, generator):
        return self.render(self.hidden(torch.randn(n, self.latent_dim, generator=generator)))


def test_image_form_gives_the_same_numbers():
    g = plant(PlantConfig(**SMALL))
    a, b = audit(g, 5000, seed=3), audit(Convolutional(g), 5000, seed=3)
    names = {r.name for r in a.rows} - {
        "orthonormal",
        "pair floor",
        "pair ceiling",
    }  # exact, or not of the hidden layers
    pick = lambda x: [(r.level, r.name, r.value, r.status) for r in x.rows if r.name in names]  # noqa: E731
    assert pick(a) == pick(b)
    exact, sampled = ({r.name: r for r in x.rows} for x in (a, b))
    for name in ("pair floor", "pair ceiling"):
        assert sampled[name].low <= exact[name].value * 1.5
        assert "(exact)" in exact[name].where


def test_patches_are_limited():
    S = torch.randn(3, 5, 8, 8)
    assert patch_form(S, 256).shape == (64, 3, 5)
    few = patch_form(S, 10)
    assert few.shape == (10, 3, 5)
    assert torch.equal(few[0], S[:, :, 0, 0])
    assert torch.equal(few[-1], S[:, :, -1, -1])


def test_table_and_json():
    result = audit(plant(PlantConfig(**SMALL)), 2000)
    read = json.loads(json.dumps(result.to_json()))
    assert read["n"] == 2000
    assert len(read["rows"]) == len(result.rows)
    assert result.table().row_count == len(result.rows) + 2
