"""Sorted rows and their order."""

from __future__ import annotations

import torch

from forwardsr.sorting import argsort_rows, sort_rows


def test_sorted_rows_are_those_of_pytorch() -> None:
    x = torch.randn(3, 4, 500, generator=torch.Generator().manual_seed(0))
    assert torch.equal(sort_rows(x.clone()), x.sort(-1).values)
    turned = x.mT  # not contiguous: the numbers stay where they are
    assert torch.equal(sort_rows(turned), turned.sort(-1).values)
    assert not torch.equal(turned, turned.sort(-1).values)


def test_numbers_are_put_in_order_by_their_first_half() -> None:
    x = torch.randn(20, 5000, generator=torch.Generator().manual_seed(0))
    order = argsort_rows(x)
    assert torch.equal(order.sort(1).values, torch.arange(5000).expand(20, -1))
    rows = x.gather(1, order)
    assert float(((rows.sort(1).values - rows).abs() / rows.abs()).max()) < 2**-7
    x = x.bfloat16().float()  # nothing is lost
    assert torch.equal(x.gather(1, argsort_rows(x)), x.sort(1).values)


def test_long_rows_are_put_in_their_exact_order() -> None:
    x = torch.randn(2, 70_000, generator=torch.Generator().manual_seed(0))
    assert torch.equal(argsort_rows(x), x.argsort(-1))


def test_what_is_no_number_goes_last() -> None:
    found = sort_rows(torch.tensor([[2.0, float("nan"), 1.0]]))
    assert torch.equal(found[:, :2], torch.tensor([[1.0, 2.0]]))
    assert bool(found[0, 2].isnan())
