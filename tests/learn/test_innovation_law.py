"""The law of innovations, chosen by what is drawn."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from forwardsr.data.pyramid import fold, unfold
from forwardsr.data.scale import double, halve
from forwardsr.learn import innovation_law
from forwardsr.learn.innovation_law import RISE, _views, choose_law
from forwardsr.learn.innovations import details

GRID, N, Q = 6, 2048, 9


ALONE = torch.zeros(9, Q, Q)  # every innovation from its own patch's noise
ALONE[4] = torch.eye(Q)


def level(typical: float, rise: float, active: Tensor, D: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Images ``(j, n, d)`` whose innovations have the law, and their power."""
    M = typical + rise * (active - 1)
    g = torch.randn(M.shape, generator=generator)
    y = (M + g).relu() - (M - g).relu()
    return y @ D.T, y.square().mean(1)


@pytest.mark.parametrize(("typical", "rise"), [(-0.3, 3.0), (-1.2, 5.0)])
def test_the_law_that_made_the_images_is_found(typical: float, rise: float) -> None:
    generator = torch.Generator().manual_seed(0)
    D = details(3, 4, torch.eye(3))[:, :Q]
    # Activity as pictures have it: what a patch's details share, and of all sizes.
    active, other = (torch.randn(GRID**2, N, 1, generator=generator).mul(0.6).exp().expand(-1, -1, Q) for _ in range(2))
    active, other = active / active.mean(), other / other.mean()
    real, power = level(typical, rise, active, D, generator)
    seen: list[slice] = []

    def expected(at: Tensor, some: slice) -> Tensor:
        seen.append(some)
        return torch.zeros(len(at), N, 48)[:, some]

    silence, found = choose_law(real, expected, other, ALONE, power, D, 3, 4, torch.Generator().manual_seed(1))
    assert silence + found == pytest.approx(typical, abs=0.25)
    assert abs(RISE.index(found) - RISE.index(rise)) <= 1
    assert sorted((s.start, s.stop) for s in seen) == [(i * N // 4, (i + 1) * N // 4) for i in range(4)]


def test_what_is_predicted_counts() -> None:
    """Half of the power predicted, and that half Gaussian: the other half must be the sparser."""
    generator = torch.Generator().manual_seed(0)
    D = details(3, 4, torch.eye(3))[:, :Q]
    active = torch.ones(GRID**2, N, Q)
    real, power = level(-0.7, 5.0, active, D, generator)
    known = torch.randn(GRID**2, N, Q, generator=generator) * (power / 2).sqrt()[:, None] @ D.T
    alone, half = (
        sum(
            choose_law(
                real,
                lambda at, some, base=base: base[at][:, some],  # type: ignore[misc]
                active,
                ALONE,
                share * power,
                D,
                3,
                4,
                torch.Generator().manual_seed(1),
            )
        )
        for base, share in ((torch.zeros_like(real), 1.0), (known, 0.5))
    )
    assert alone == pytest.approx(-0.7, abs=0.15)
    assert half < alone - 0.3


def test_what_is_predicted_and_the_activity_are_of_the_same_samples() -> None:
    """Both are large together, which alone makes half of the tails: taken from different samples they would ask for a sparser law."""
    generator = torch.Generator().manual_seed(0)
    D = details(3, 4, torch.eye(3))[:, :Q]
    active, other = (torch.randn(GRID**2, N, 1, generator=generator).mul(0.6).exp().expand(-1, -1, Q) for _ in range(2))
    active, other = active / active.mean(), other / other.mean()
    fresh, power = level(-0.3, 3.0, active, D, generator)
    known, drawn = (a * torch.randn(a.shape, generator=generator) @ D.T for a in (active, other))
    silence, rise = choose_law(
        known + fresh,
        lambda at, some: drawn[at][:, some],
        other,
        ALONE,
        power,
        D,
        3,
        4,
        torch.Generator().manual_seed(1),
    )
    assert silence + rise == pytest.approx(-0.3, abs=0.25)


def test_noise_is_turned_as_the_network_turns_it() -> None:
    """All details of a patch have one g: the root's columns, which make them, are of unit length, and its rows are not."""
    generator = torch.Generator().manual_seed(0)
    D = details(3, 4, torch.eye(3))[:, :Q]
    root = torch.zeros(9, Q, Q)
    root[4, 0] = 1.0
    M = torch.full((GRID**2, N, Q), -0.9)
    g = torch.randn(GRID**2, N, 1, generator=generator)
    y = (M + g).relu() - (M - g).relu()
    silence, rise = choose_law(
        y @ D.T, lambda at, some: torch.zeros(len(at), N, 48)[:, some], torch.ones_like(M), root, y.square().mean(1), D, 3, 4,
        torch.Generator().manual_seed(1),
    )  # fmt: skip
    assert silence + rise == pytest.approx(-0.9, abs=0.15)


def test_directions_are_contrasts_in_squares_of_the_window_of_what_is_finest(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = _views(3, 4, torch.Generator().manual_seed(0))
    monkeypatch.setattr(innovation_law, "of_finest", lambda theta: theta)
    images = fold(_views(3, 4, torch.Generator().manual_seed(0)).permute(2, 0, 1), 3)
    torch.testing.assert_close(images.sum((2, 3)), torch.zeros(len(images), 3), atol=1e-4, rtol=0)
    on = (images != 0).any(1)
    height, width = on.any(2).sum(1), on.any(1).sum(1)
    assert torch.equal(height, width)
    assert torch.equal(on.sum((1, 2)), height * width)
    assert set(height.tolist()) == {2, 4, 8}
    x = torch.randn(20, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    finest = (x - double(halve(x))).flatten(1) @ images.flatten(1).T
    torch.testing.assert_close(unfold(x, 4).flatten(1) @ weights.flatten(0, 1), finest, rtol=1e-4, atol=1e-4)
