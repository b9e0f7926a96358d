"""Which device and precision are chosen, and what is said where they cannot be."""

import pytest
import torch

from forwardsr import device as module
from forwardsr.device import resolve_device, resolve_precision
from forwardsr.errors import UserError


def test_cpu() -> None:
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_precision("float32", torch.device("cpu")) == "float32"
    assert resolve_precision("bfloat16", torch.device("cpu")) == "bfloat16"


@pytest.mark.parametrize("name", ["tpu", "mps", "cuda:99"])
def test_devices_that_are_not_there(name: str) -> None:
    with pytest.raises(UserError, match=f"--device {name}"):
        resolve_device(name)


def test_unknown_precision() -> None:
    with pytest.raises(UserError, match="--precision half"):
        resolve_precision("half", torch.device("cpu"))


@pytest.mark.parametrize(("bfloat16", "chosen"), [(0.5, "bfloat16"), (0.95, "float32"), (20.0, "float32")])
def test_auto_takes_the_faster_one_though_single_timings_are_disturbed(
    bfloat16: float, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clock by which float32 takes 1 and bfloat16 a given time, each second call of float32 a hundred times as long."""
    moments = []
    for i in range(7):
        moments += [0.0, 100.0 if i % 2 == 0 else 1.0, 0.0, bfloat16]
    monkeypatch.setattr(module.time, "perf_counter", iter(moments).__next__)
    assert resolve_precision("auto", torch.device("cpu")) == chosen
