"""Moments: brute force over index sets, Gaussians whose moments are known, no bias, and errors that are the spread."""

import itertools
import json
import math
from collections.abc import Sequence

import pytest
import torch

from forwardsr.data.pyramid import Pyramid, pool
from forwardsr.errors import UserError
from forwardsr.measure import moments as module
from forwardsr.measure.moments import RealMoments, Side, elementary, moments, patches_of


class Linear:
    """X_1 = A z + shift, one patch: Gaussian, with every moment known; generator and source in one."""

    name = "linear"

    def __init__(self, A: torch.Tensor, shift: float = 0.0) -> None:
        self.A, self.shift = A, shift
        self.shapes: tuple[tuple[int, ...], ...] = ((1, len(A)),)

    @property
    def latent_dim(self) -> int:
        return self.A.shape[1]

    def hidden(self, z: torch.Tensor) -> list[torch.Tensor]:
        return [z[:, None]]

    def render(self, hidden: Sequence[torch.Tensor]) -> Pyramid:
        return Pyramid([hidden[0] @ self.A.T + self.shift])

    def sample(self, n: int, generator: torch.Generator) -> Pyramid:
        return self.render(self.hidden(torch.randn(n, self.latent_dim, generator=generator)))

    def draw(self, n: int, generator: torch.Generator, levels: int | None = None) -> Pyramid:
        return self.sample(n, generator)

    def true_moments(self, order: int) -> torch.Tensor:
        """Over i_1 < ... < i_r, by Isserlis' theorem; the mean for order 1."""
        C = (self.A @ self.A.T).double()
        d = len(C)
        if order == 1:
            return torch.full((d,), self.shift, dtype=torch.float64)
        sets = list(itertools.combinations(range(d), order))
        if order == 2:
            return torch.stack([C[i, j] for i, j in sets])
        if order == 3:
            return torch.zeros(len(sets), dtype=torch.float64)
        return torch.stack([C[i, j] * C[k, l] + C[i, k] * C[j, l] + C[i, l] * C[j, k] for i, j, k, l in sets])


def mixing(d: int, seed: int, scale: float = 1.0) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return scale * (torch.eye(d) + 0.4 * torch.randn(d, d, generator=g))


def test_newtons_identities() -> None:
    u = torch.randn(7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = elementary(*(u.pow(k).sum()[None] for k in range(1, 5)))
    for r, e in enumerate(found, start=1):
        brute = sum(math.prod(c) for c in itertools.combinations(u.tolist(), r))
        assert float(e) == pytest.approx(brute, rel=1e-10)


def test_kernel_means_are_the_u_statistic_over_all_index_sets() -> None:
    g = torch.Generator().manual_seed(1)
    n, d = 32, 5
    x, y = torch.randn(2, n, d, generator=g), torch.randn(2, n, d, generator=g)
    a, b = Side.of(x, x.mean(1)), Side.of(y, y.mean(1))
    for one, two, same in ((a, b, False), (a, a, True)):
        sums = module._kernel_means(one, two, same)
        assert sums.shape == (4, 16, 16)
        for r in range(1, 5):
            of = (one.raw, two.raw) if r == 1 else (one.centred, two.centred)
            total = 0.0
            for patch in range(2):
                products = [
                    torch.stack([s[patch].double()[:, list(c)].prod(1) for c in itertools.combinations(range(d), r)], 1)
                    for s in of
                ]
                pairs = products[0] @ products[1].T
                total += float(pairs.sum() - (pairs.diagonal().sum() if same else 0)) / math.comb(d, r) / 2
            assert float(sums[r - 1].sum()) == pytest.approx(total, rel=1e-4, abs=1e-4)


def test_gaussians_differ_by_what_isserlis_says() -> None:
    data, generator = Linear(mixing(6, 0)), Linear(mixing(6, 1), shift=0.5)
    real = RealMoments.from_source(data, 2048, seed=0)
    (row,) = moments([(None, generator)], real, seed=5).rows
    for r in range(1, 5):
        truth = float((data.true_moments(r) - generator.true_moments(r)).square().mean())
        assert abs(row.difference[r - 1] - truth) < 4 * row.error[r - 1] + 1e-12, r
        if r != 3:
            assert row.error[r - 1] < 0.3 * truth
            own = float(data.true_moments(r).square().mean())
            assert r == 1 or row.relative[r - 1] == pytest.approx(truth / own, rel=0.4)


def test_no_bias_and_an_error_that_is_the_spread() -> None:
    data = Linear(mixing(5, 2))
    values, errors = [], []
    for seed in range(30):
        real = RealMoments.from_source(data, 256, seed)
        (row,) = moments([(None, data)], real, seed=1000 + seed).rows
        values.append(row.difference)
        errors.append(row.error)
    value, error = torch.tensor(values), torch.tensor(errors)
    spread = value.std(0)
    assert (value.mean(0).abs() < 3.5 * spread / 30**0.5).all()
    assert (value < 0).any(0).all()  # an estimate that cannot be negative would be biased
    assert (error.mean(0) / spread).min() > 0.6
    assert (error.mean(0) / spread).max() < 1.8


def test_ratios_to_initialisation_and_floors() -> None:
    data, start, end = Linear(mixing(6, 0)), Linear(mixing(6, 3, 2.0)), Linear(mixing(6, 0) * 1.02)
    real = RealMoments.from_source(data, 1024, seed=0)
    result = moments([(0, start), (640, end)], real, initial=True)
    first, last = result.rows
    assert first.to_initial == (1.0, 1.0, 1.0, 1.0)
    assert first.to_initial_error is not None
    assert max(first.to_initial_error) == 0
    assert last.to_initial is not None
    assert last.to_initial[1] < 0.05
    assert result.floor_to_initial is not None
    for r in (1, 3):  # what separates data from data is small beside what separates the initialisation
        assert 0 < result.floor_to_initial[0][r] < 0.2
    assert result.table().row_count == 3
    assert json.loads(json.dumps(result.to_json()))["rows"][1]["images"] == 640
    assert moments([(None, end)], real).rows[0].to_initial is None


def test_patches_lie_on_an_even_grid_and_cover_the_image() -> None:
    x = torch.arange(64.0).view(1, 1, 8, 8)
    found = patches_of(x)
    assert found.shape == (4, 1, 36)
    assert found[:, 0, 0].tolist() == [0, 2, 16, 18]
    for side, count in ((6, 1), (12, 4), (16, 9), (32, 36), (64, 36), (4, 1)):
        y = torch.arange(float(side * side)).view(1, 1, side, side)
        patches = patches_of(y)
        assert len(patches) == count, side
        assert {0.0, float(side * side - 1)} <= set(patches.flatten().tolist())
    own = torch.randn(3, 100, 7)
    assert torch.equal(patches_of(own, limit=100), own.transpose(0, 1))
    assert patches_of(own, limit=4).shape == (4, 3, 7)


class Finite:
    """Images of a law of its own, finitely many."""

    name = "finite"

    def __init__(self, n: int) -> None:
        self.x = torch.randn(n, 3, 16, 16, generator=torch.Generator().manual_seed(0))
        self.shapes: tuple[tuple[int, ...], ...] = ((3, 8, 8), (3, 16, 16))

    def __len__(self) -> int:
        return len(self.x)

    def take(self, index: torch.Tensor, levels: int | None = None) -> Pyramid:
        return pool(self.x[index], (8, 16))

    def draw(self, n: int, generator: torch.Generator, levels: int | None = None) -> Pyramid:
        return self.take(torch.randint(len(self.x), (n,), generator=generator))


def test_a_finite_source_is_cut_into_disjoint_halves() -> None:
    real = RealMoments.from_source(Finite(100), 1024)
    assert real.n == 48  # a multiple of the groups
    assert [side.raw.shape for side in real.levels] == [(4, 48, 108), (9, 48, 108)]
    with pytest.raises(UserError, match="8 samples"):
        RealMoments.from_source(Finite(7))
    assert RealMoments.from_source(Finite(10)).n == 5
