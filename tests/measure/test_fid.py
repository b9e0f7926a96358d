"""FID and KID through torchmetrics, with a stand-in network whose features make the values derivable by hand."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from forwardsr.errors import UserError
from forwardsr.measure.fid import feature_distances

needs_torchmetrics = pytest.mark.skipif(
    importlib.util.find_spec("torchmetrics") is None, reason="torchmetrics is not installed (extra [fid])"
)

# Scripting is deprecated in new torch, and still the form that feature networks are published in.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")


class MeanColour(nn.Module):
    """Features: the mean of each channel, in grey values; ten times that without ``return_features``."""

    def forward(self, images: Tensor, return_features: bool = False) -> Tensor:
        features = images.float().mean((2, 3))
        return features if return_features else 10 * features


class Flat(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.float().mean()


@pytest.fixture
def network(tmp_path: Path) -> Path:
    torch.jit.script(MeanColour()).save(tmp_path / "network.pt")
    return tmp_path / "network.pt"


def images(n: int, seed: int = 0) -> Tensor:
    """Constant images of whole grey values 60 to 190, in [-1, 1]."""
    grey = torch.randint(60, 190, (n, 3, 1, 1), generator=torch.Generator().manual_seed(seed))
    return (grey / 127.5 - 1).expand(-1, -1, 8, 8)


@needs_torchmetrics
def test_a_shift_of_the_features_is_its_square(network: Path) -> None:
    """Equal covariances leave the squared distance of the means: 10 grey values in each of 3 channels, 300."""
    x = images(50)
    assert feature_distances(x, x, network).fid == pytest.approx(0, abs=1e-2)
    found = feature_distances(x + 10 / 127.5, x, network, batch=7)
    assert found.fid == pytest.approx(300, rel=1e-3)
    assert found.kid > 0
    assert (found.n, found.n_real) == (50, 50)


@needs_torchmetrics
def test_numbers_repeat_and_leave_the_global_generator_alone(network: Path) -> None:
    before = torch.random.get_rng_state()
    first, again = (feature_distances(images(40, 1), images(30, 2), network, subset=10) for _ in range(2))
    assert first == again
    assert torch.equal(before, torch.random.get_rng_state())


@needs_torchmetrics
def test_grey_images_count_as_three_equal_channels(network: Path) -> None:
    x, y = images(20)[:, :1], images(20, 1)[:, :1]
    three = feature_distances(x.repeat(1, 3, 1, 1), y.repeat(1, 3, 1, 1), network)
    assert feature_distances(x, y, network) == three


@needs_torchmetrics
@pytest.mark.parametrize("what", ["missing", "text", "scalar"])
def test_what_is_no_network_is_refused_by_name(tmp_path: Path, what: str) -> None:
    path = tmp_path / f"{what}.pt"
    if what == "text":
        path.write_text("not a network")
    if what == "scalar":
        torch.jit.script(Flat()).save(path)
    with pytest.raises(UserError, match=rf"{what}\.pt.*TorchScript") as caught:
        feature_distances(images(4), images(4), path)
    assert "\n" not in str(caught.value)


def test_without_torchmetrics_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "torchmetrics", None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'forwardsr\[fid\]'"):
        feature_distances(images(4), images(4), tmp_path / "any.pt")
