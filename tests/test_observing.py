"""Alarms: silent on healthy samples, raised on collapse, on repetition and on a fall after the best weights."""

import torch

from forwardsr.data.pyramid import Pyramid, pool
from forwardsr.measure.distance import Reference
from forwardsr.observing import GRACE, alarms, walks


def pictures(n: int, seed: int) -> Pyramid:
    """Random smooth pictures."""
    coarse = torch.rand(n, 3, 4, 4, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return pool(torch.nn.functional.interpolate(coarse, size=16, mode="bilinear"), (8, 16))


def test_alarms() -> None:
    reference = Reference(pictures(64, 0), pictures(64, 1))
    healthy = reference.compare(pictures(64, 2))
    assert alarms(healthy, None, GRACE) == []
    assert alarms(healthy, healthy.score() - 0.5, GRACE) == []

    one = pictures(1, 3)
    copies = reference.compare(Pyramid([x.expand(64, -1, -1, -1).contiguous() for x in one]))
    assert any("have collapsed" in message for message in alarms(copies, None, GRACE))
    assert alarms(copies, None, GRACE - 1) == []

    few = pictures(8, 4)
    repeated = reference.compare(Pyramid([x.repeat(8, 1, 1, 1) for x in few]))
    assert all("over and over" in message for message in alarms(repeated, None, GRACE))
    assert len(alarms(repeated, None, GRACE)) == 2
    assert any("best weights are kept" in message for message in alarms(copies, healthy.score(), GRACE))


def test_a_walk_starts_and_ends_at_the_fixed_latents_and_keeps_their_length() -> None:
    latents = torch.nn.functional.normalize(torch.randn(32, 9, generator=torch.Generator().manual_seed(0)))
    rows = walks(latents).view(4, 16, 9)
    torch.testing.assert_close(rows[:, 0], latents[0:8:2])
    torch.testing.assert_close(rows[:, -1], latents[1:8:2])
    torch.testing.assert_close(rows.norm(dim=2), torch.ones(4, 16))
