from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from forwardsr.errors import UserError
from forwardsr.model.activations import Activation
from forwardsr.model.patch_generator import PatchGenerator, quad_tree
from forwardsr.model.protocol import LayeredGenerator


def network(seed=0, patches=(4, 16), m=(5, 3), d=12, parents=1, m_0=7, dtype=torch.float64, activation=None):
    g = torch.Generator().manual_seed(seed)
    randn = lambda *shape: torch.randn(*shape, generator=g, dtype=dtype)  # noqa: E731
    W = [randn(k, d, c) for k, c in zip(patches, m)]
    V = [randn(patches[0], m[0], m_0)] + [randn(k, parents, c, a) for k, c, a in zip(patches[1:], m[1:], m)]
    b = [randn(k, c) for k, c in zip(patches, m)]
    graph = [torch.stack([torch.randperm(a, generator=g)[:parents] for _ in range(k)]) for a, k in pairwise(patches)]
    return PatchGenerator(W, V, b, [None, *graph], activation or Activation())


def one_patch_at_a_time(g, z):
    """The formulas of §2.1, literally."""
    hidden, images = [], []
    for l in range(len(g.W)):
        S, X = [], []
        for j in range(g.W[l].shape[0]):
            if l == 0:
                pre = z @ g.V[0][j].T - g.b[0][j]
            else:
                pre = sum(hidden[-1][p] @ g.V[l][j, i].T for i, p in enumerate(g.parents[l][j])) - g.b[l][j]
            S.append(g.activation(pre))
            X.append(S[-1] @ g.W[l][j].T)
        hidden.append(S)
        images.append(X)
    return [torch.stack(S, 1) for S in hidden], [torch.stack(X, 1) for X in images]


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 1000),
    st.lists(st.tuples(st.integers(3, 6), st.integers(1, 4)), min_size=1, max_size=4),
    st.integers(1, 3),
    st.sampled_from([Activation(), Activation("leaky", 0.1)]),
)
def test_batched_equals_one_patch_at_a_time(seed, sizes, parents, activation):
    patches, m = zip(*sizes)
    g = network(seed, patches, m, parents=parents, activation=activation)
    z = g.latents(5, torch.Generator().manual_seed(seed))
    hidden, images = one_patch_at_a_time(g, z)
    ours = g.hidden(z)
    for a, b in zip([*ours, *g.render(ours)], [*hidden, *images]):
        torch.testing.assert_close(a, b)


def test_is_a_layered_generator_and_samples_by_seed():
    g = network()
    assert isinstance(g, LayeredGenerator)
    assert g.shapes == ((4, 12), (16, 12))
    assert g.channels == (5, 3)
    assert g.latent_dim == 7
    a, b = (g.sample(9, torch.Generator().manual_seed(3)) for _ in range(2))
    assert all(torch.equal(x, y) for x, y in zip(a, b))
    coarse = g.sample(9, torch.Generator().manual_seed(3), levels=1)
    assert len(coarse) == 1
    assert torch.equal(coarse[0], a[0])
    assert [tuple(x.shape) for x in a.fold()] == [(9, 3, 4, 4), (9, 3, 8, 8)]


def test_float32_and_float64_see_the_same_samples():
    g = network()
    double = g.sample(50, torch.Generator().manual_seed(1))
    single = g.map(dtype=torch.float32).sample(50, torch.Generator().manual_seed(1))
    for x, y in zip(single, double):
        assert x.dtype == torch.float32
        torch.testing.assert_close(x.double(), y, rtol=1e-5, atol=1e-5)


def test_gradients_reach_every_weight():
    g = network(activation=Activation("leaky", 0.1))
    weights = [*g.W, *g.V, *g.b]
    for t in weights:
        t.requires_grad_(True)
    z = torch.randn(4, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sum(x.square().sum() for x in g.render(g.hidden(z))).backward()
    assert all(t.grad is not None and t.grad.abs().sum() > 0 for t in weights)


def test_quad_tree():
    assert quad_tree(1, 4).flatten().tolist() == [0, 0, 0, 0]
    assert quad_tree(4, 16).view(4, 4).tolist() == [[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 3], [2, 2, 3, 3]]
    with pytest.raises(ValueError, match="no quad-tree"):
        quad_tree(4, 9)


@pytest.mark.parametrize("activation", [Activation(), Activation("leaky", 0.01)])
def test_save_and_load(tmp_path, activation):
    g = network(parents=2, activation=activation, dtype=torch.float32)
    g.save(tmp_path / "t.safetensors", {"note": "hello"})
    back = PatchGenerator.load(tmp_path / "t.safetensors")
    assert back.activation == activation
    assert g.tensors().keys() == back.tensors().keys() == {"W1", "W2", "V1", "V2", "b1", "b2", "parents2"}
    assert all(torch.equal(t, back.tensors()[name]) for name, t in g.tensors().items())
    assert list(tmp_path.iterdir()) == [tmp_path / "t.safetensors"]
    assert load_file(tmp_path / "t.safetensors")["V2"].shape == (16, 2, 3, 5)  # as another program sees it


def test_shared_weights_stay_shared(tmp_path):
    g = network().tie("W2", "b2")
    assert g.W[1].stride(0) == 0
    torch.testing.assert_close(g.W[1][3], network().W[1].mean(0))
    g.map(dtype=torch.float32).save(tmp_path / "t.safetensors")
    back = PatchGenerator.load(tmp_path / "t.safetensors")
    assert back.W[1].stride(0) == back.b[1].stride(0) == 0
    assert back.W[0].stride(0) != 0
    assert load_file(tmp_path / "t.safetensors")["W2"].shape == (
        16,
        12,
        3,
    )  # written out for programs that know no sharing


def good_file():
    return {name: t.numpy() for name, t in network(dtype=torch.float32).tensors().items()}


HEADER = {"format": "forwardsr/1", "activation": "relu", "zeta": "0.0"}


def test_reads_a_file_written_by_another_program(tmp_path):
    save_file(good_file(), tmp_path / "t.safetensors", HEADER)
    assert PatchGenerator.load(tmp_path / "t.safetensors").shapes == ((4, 12), (16, 12))


@pytest.mark.parametrize(
    ("change", "header", "says"),
    [
        ({}, {"format": "pt"}, "format is pt"),
        ({}, {}, "format is unnamed"),
        ({"V2": None}, HEADER, "V2 is missing"),
        ({"parents2": np.full((16, 1), 4)}, HEADER, "outside 0..3"),
        ({"parents2": np.full((16, 1), -1)}, HEADER, "outside 0..3"),
        ({"b1": np.zeros((4, 6), np.float32)}, HEADER, "b1 has shape"),
        ({"W1": np.zeros((4, 12, 5), np.float64)}, HEADER, "floating dtype"),
        ({}, HEADER | {"activation": "tanh"}, "relu or leaky"),
        ({}, HEADER | {"zeta": "small"}, "small"),
    ],
)
def test_a_wrong_file_is_one_line(tmp_path, change, header, says):
    tensors = {k: v for k, v in (good_file() | change).items() if v is not None}
    save_file(tensors, tmp_path / "t.safetensors", header)
    with pytest.raises(UserError) as error:
        PatchGenerator.load(tmp_path / "t.safetensors")
    message = str(error.value)
    assert says in message
    assert "t.safetensors" in message
    assert "\n" not in message


def test_no_file_and_no_place(tmp_path):
    (tmp_path / "text").write_text("not a network")
    for path in (tmp_path / "text", tmp_path / "none", tmp_path):
        with pytest.raises(UserError, match="not a readable"):
            PatchGenerator.load(path)
    with pytest.raises(UserError, match="cannot be written"):
        network().save(tmp_path / "no" / "such" / "folder.safetensors")
    with pytest.raises(UserError, match="cannot be written"):
        network().save(tmp_path)


def test_shapes_are_checked():
    g = network()
    with pytest.raises(ValueError, match="V1 has shape"):
        PatchGenerator(g.W, [g.V[0][:3], g.V[1]], g.b, g.parents)
    with pytest.raises(ValueError, match="as many"):
        PatchGenerator(g.W, g.V[:1], g.b, g.parents)


def test_chunk_keeps_tensors_small():
    g = network(dtype=torch.float32)
    assert 8e6 < g.chunk * 16 * 12 * 4 <= 2**24
