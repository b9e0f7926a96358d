import pytest
import torch

from forwardsr.data.planted import PlantedSource, open_planted
from forwardsr.data.source import Epochs, FiniteSource, Source
from forwardsr.errors import UserError
from forwardsr.model.plant import PlantConfig, plant


@pytest.fixture(scope="module")
def target():
    return plant(PlantConfig(patches=(4, 16), channels=(8,), d=12))


def test_is_a_streamed_source(target):
    source = PlantedSource(target)
    assert isinstance(source, Source)
    assert not isinstance(source, FiniteSource)
    assert source.shapes == ((4, 12), (16, 12))
    assert source.channels == (8, 8)
    assert source.parents[0] is None
    x = source.draw(5, torch.Generator().manual_seed(0))
    assert [tuple(t.shape) for t in x] == [(5, 4, 12), (5, 16, 12)]
    batches = Epochs(source, 3, seed=1)
    assert not torch.equal(batches.next()[0], batches.next()[0])


def test_noise_has_the_size_asked_for(target):
    clean, noisy = PlantedSource(target), PlantedSource(target, noise=0.1)
    a, b = (s.draw(4000, torch.Generator().manual_seed(2)) for s in (clean, noisy))
    for x, y in zip(a, b):
        relative = (y - x).square().mean().sqrt() / x.square().mean().sqrt()
        assert relative == pytest.approx(0.1, rel=0.05)
    again = noisy.draw(4000, torch.Generator().manual_seed(2))
    assert all(torch.equal(x, y) for x, y in zip(b, again))
    with pytest.raises(ValueError, match="negative"):
        PlantedSource(target, noise=-1.0)


def test_coarse_levels_alone(target):
    source = PlantedSource(target, noise=0.1)
    a, b = (source.draw(50, torch.Generator().manual_seed(2), levels) for levels in (1, None))
    assert len(a) == 1
    assert torch.equal(a[0], b[0])


def test_opened_from_a_file(target, tmp_path):
    target.save(tmp_path / "star.safetensors")
    source = open_planted(tmp_path / "star.safetensors")
    assert source.name == "star"
    a, b = (s.draw(4, torch.Generator().manual_seed(7)) for s in (source, PlantedSource(target)))
    assert all(torch.equal(x, y) for x, y in zip(a, b))
    with pytest.raises(UserError, match=r"none\.safetensors"):
        open_planted(tmp_path / "none.safetensors")
