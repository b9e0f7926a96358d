"""The law of innovations, chosen by what is drawn."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from forwardsr.learn.innovation_law import RISE, STEP, choose_law
from forwardsr.learn.innovations import details

GRID, N, Q = 6, 2048, 9


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
    root = torch.zeros(9, Q, Q)
    root[4] = torch.eye(Q)
    seen: list[slice] = []

    def expected(at: Tensor, some: slice) -> Tensor:
        seen.append(some)
        return torch.zeros(len(at), N, 48)[:, some]

    silence, found = choose_law(real, expected, other, root, power, D, 3, 4, torch.Generator().manual_seed(1))
    assert silence + found == pytest.approx(typical, abs=2.5 * STEP)
    assert abs(RISE.index(found) - RISE.index(rise)) <= 1
    assert sorted((s.start, s.stop) for s in seen) == [(i * N // 4, (i + 1) * N // 4) for i in range(4)]


def test_what_is_predicted_counts() -> None:
    """Half of the power predicted, and that half Gaussian: the other half must be the sparser."""
    generator = torch.Generator().manual_seed(0)
    D = details(3, 4, torch.eye(3))[:, :Q]
    active = torch.ones(GRID**2, N, Q)
    root = torch.zeros(9, Q, Q)
    root[4] = torch.eye(Q)
    real, power = level(-0.7, 5.0, active, D, generator)
    known = torch.randn(GRID**2, N, Q, generator=generator) * (power / 2).sqrt()[:, None] @ D.T
    alone, half = (
        sum(
            choose_law(
                real,
                lambda at, some, base=base: base[at][:, some],  # type: ignore[misc]
                active,
                root,
                share * power,
                D,
                3,
                4,
                torch.Generator().manual_seed(1),
            )
        )
        for base, share in ((torch.zeros_like(real), 1.0), (known, 0.5))
    )
    assert alone == pytest.approx(-0.7, abs=1.5 * STEP)
    assert half < alone - 3 * STEP
