"""Weights on disk come back as the networks they were, and what is no network is named."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from forwardsr.errors import UserError
from forwardsr.generators import (
    copy_start,
    critic_metadata,
    generator_metadata,
    load_critic,
    load_generator,
    load_snapshot,
)
from forwardsr.model.critic import Critic
from forwardsr.model.deconv_generator import DeconvGenerator
from forwardsr.model.pooled_generator import PooledGenerator
from forwardsr.run import Run

Z = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))


def run_with(path: Path, model: DeconvGenerator) -> Run:
    run = Run.create(path, {}, frozenset())
    run.close()
    run.save_weights("model.safetensors", model.state_dict(), generator_metadata(model))
    return run


@pytest.mark.parametrize("kind", [DeconvGenerator, PooledGenerator])
def test_a_generator_comes_back_of_its_own_kind(tmp_path: Path, kind: type[DeconvGenerator]) -> None:
    model = kind((8, 16), width=4, latent=6, generator=torch.Generator().manual_seed(1)).eval()
    run_with(tmp_path / "run", model)
    file = tmp_path / "run" / "model.safetensors"
    for loaded in (load_generator(tmp_path / "run"), load_generator(file), load_snapshot(file)):
        assert type(loaded) is kind
        assert not loaded.training
        for a, b in zip(loaded(Z), model(Z)):
            assert torch.equal(a, b)


@pytest.mark.parametrize("heads", [[False], [True, False, True], [False, False]])
def test_a_critic_comes_back(tmp_path: Path, heads: list[bool]) -> None:
    sides = (8, 16, 32)[: len(heads)]
    critic = Critic(sides, width=4, channels=1, heads=heads, generator=torch.Generator().manual_seed(1))
    run = run_with(tmp_path / "run", DeconvGenerator((8,), width=4, latent=6))
    run.save_weights("critic.safetensors", critic.state_dict(), critic_metadata(critic))
    images = [torch.randn(2, 1, side, side, generator=torch.Generator().manual_seed(2)) for side in sides]
    assert torch.equal(load_critic(tmp_path / "run")(images), critic(images))


def test_what_is_no_network_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"critic\.safetensors: no weights yet"):
        load_critic(tmp_path)
    save_file({"x": torch.zeros(1)}, tmp_path / "critic.safetensors")
    with pytest.raises(UserError, match="not a critic"):
        load_critic(tmp_path)
    with pytest.raises(UserError, match="not a network"):
        load_snapshot(tmp_path / "critic.safetensors")
    (tmp_path / "x.safetensors").write_bytes(b"junk")
    with pytest.raises(UserError, match="cannot be read"):
        load_snapshot(tmp_path / "x.safetensors")


def test_a_start_is_copied_only_from_a_network_of_the_same_sizes(tmp_path: Path) -> None:
    def model(width: int = 4, kind: type[DeconvGenerator] = DeconvGenerator, seed: int = 0) -> DeconvGenerator:
        return kind((8, 16), width=width, latent=6, generator=torch.Generator().manual_seed(seed)).eval()

    theirs, ours = model(seed=1), model()
    run_with(tmp_path / "run", theirs)
    copy_start(tmp_path / "run", ours)
    for a, b in zip(ours(Z), theirs(Z)):
        assert torch.equal(a, b)
    with pytest.raises(UserError, match="its width is 4, here it is 5"):
        copy_start(tmp_path / "run", model(width=5))
    run_with(tmp_path / "pooled", model(kind=PooledGenerator))
    with pytest.raises(UserError, match="no run of images by"):
        copy_start(tmp_path / "pooled", model())
