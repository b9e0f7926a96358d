"""Samples at right angles and in pairs."""

from __future__ import annotations

import pytest
import torch

from forwardsr.learn import even


@pytest.mark.parametrize("n", [40, 50, 100])
def test_even_samples_are_gaussians_at_right_angles(n: int) -> None:
    generator = torch.Generator().manual_seed(0)
    Q, R = even.rotation(50, generator), even.rotation(50, generator)
    draws = torch.stack([even.even(n, Q, R, generator) for _ in range(1000)])
    gram = draws[:, :50] @ draws[:, :50].mT
    assert float((gram - torch.diag_embed(gram.diagonal(dim1=1, dim2=2))).abs().max()) < 1e-3
    assert float(draws[:, :40].flatten(0, 1).T.cov().sub(torch.eye(50)).abs().max()) < 0.05
    length = draws.square().sum(2).flatten()  # chi-squared, 50 degrees of freedom
    assert float(length.mean()) == pytest.approx(50, rel=0.01)
    assert float(length.var()) == pytest.approx(100, rel=0.1)
    assert float(draws.pow(4).mean()) == pytest.approx(3, rel=0.05)
    if n == 100:  # the second fifty are others
        assert float((draws[:, 50:] @ draws[:, :50].mT).abs().mean()) > 3


def test_pairs_have_no_first_moment_and_no_order() -> None:
    z = even.even_pairs(200, 30, torch.Generator().manual_seed(0))
    assert z.shape == (200, 30)
    assert float(z.sum(0).abs().max()) < 1e-4
    assert not torch.equal(z[:100], -z[100:])
    gram = z[:100] @ z[:100].mT
    assert (
        20 < int((gram < -0.999 * gram.diagonal()).sum()) < 90
    )  # about half of the first hundred have their pair among them
    odd = even.even_pairs(7, 30, torch.Generator().manual_seed(0))
    assert odd.shape == (7, 30)
