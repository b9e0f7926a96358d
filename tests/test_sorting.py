"""Sorted rows and their order, by NumPy."""

from __future__ import annotations

import torch

from forwardsr.sorting import argsort_rows, sort_rows


def test_rows_and_their_order_are_those_of_pytorch() -> None:
    x = torch.randn(3, 4, 500, generator=torch.Generator().manual_seed(0))
    order = argsort_rows(x)
    assert torch.equal(order, x.argsort(-1))
    assert torch.equal(sort_rows(x.clone()), x.gather(-1, order))
    turned = x.mT  # not contiguous: the numbers stay where they are
    assert torch.equal(sort_rows(turned), turned.sort(-1).values)
    assert not torch.equal(turned, turned.sort(-1).values)


def test_what_is_no_number_goes_last() -> None:
    found = sort_rows(torch.tensor([[2.0, float("nan"), 1.0]]))
    assert torch.equal(found[:, :2], torch.tensor([[1.0, 2.0]]))
    assert bool(found[0, 2].isnan())
