"""The network with innovations: it is the paper's where it has none, and what it draws is what its file says."""

import pytest
import torch

from forwardsr.errors import UserError
from forwardsr.learn.windows import ring, window
from forwardsr.model.innovation_generator import InnovationGenerator
from forwardsr.model.patch_generator import PatchGenerator
from forwardsr.model.protocol import LayeredGenerator


def _network(innovation: float = 1.0, shared: bool = True) -> InnovationGenerator:
    random = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=random)

    parents, _ = window(2)
    return InnovationGenerator(
        [draw(4, 12, 5), draw(16, 12, 6)],
        [draw(4, 5, 7), draw(16, 4, 6, 5)],
        [draw(4, 5), draw(16, 6)],
        [None, parents],
        [draw(4, 12), draw(16, 12)],
        [None, innovation * draw(1 if shared else 16, 9, 6, 3)],
        [None, ring(4)],
        image_channels=3,
    )


def test_without_innovations_and_means_it_is_the_papers_network() -> None:
    g = _network(innovation=0.0)
    paper = PatchGenerator(g.W, g.V, g.b, g.parents)
    z = g.latents(3, torch.Generator().manual_seed(1))
    for ours, theirs in zip(g.hidden(z), paper.hidden(z[:, :7])):
        torch.testing.assert_close(ours, theirs)
    images = g.render(g.hidden(z))
    patches = paper.render(paper.hidden(z[:, :7]))
    for image, x, mu in zip(images, patches, g.mean):
        torch.testing.assert_close(image, type(patches)([x + mu]).fold(3)[0])


@pytest.mark.parametrize("shared", [True, False])
def test_a_level_is_the_formula(shared: bool) -> None:
    g = _network(shared=shared)
    z = g.latents(2, torch.Generator().manual_seed(1))
    below, here = g.hidden(z)
    assert g.latent_dim == 7 + 36 * 3
    assert z.shape == (2, g.latent_dim)
    noise = z[:, 7:].view(2, 36, 3)
    parents, around, U = g.parents[1], g.around[1], g.U[1]
    assert parents is not None
    assert around is not None
    assert U is not None
    j = 9
    pre = -g.b[1][j].expand(2, -1)
    for i in range(4):
        pre = pre + below[:, parents[j, i]] @ g.V[1][j, i].T
    for i in range(9):
        pre = pre + noise[:, around[j, i]] @ U[0 if shared else j, i].T
    torch.testing.assert_close(here[:, j], pre.relu())


def test_the_file_holds_all_of_it(tmp_path) -> None:
    g = _network()
    g.save(tmp_path / "g.safetensors", {"command": "x"})
    again = PatchGenerator.load(tmp_path / "g.safetensors")
    assert isinstance(again, InnovationGenerator)
    assert isinstance(again, LayeredGenerator)
    for ours, theirs in zip(
        g.sample(5, torch.Generator().manual_seed(2)), again.sample(5, torch.Generator().manual_seed(2))
    ):
        assert torch.equal(ours, theirs)
    with pytest.raises(UserError, match="cannot be written"):
        g.save(tmp_path / "missing" / "g.safetensors")


def test_shapes_that_do_not_fit_are_named() -> None:
    g = _network()
    U = g.U[1]
    assert U is not None
    with pytest.raises(ValueError, match="U2"):
        InnovationGenerator(g.W, g.V, g.b, g.parents, g.mean, [None, U[:, :8]], g.around, 3)
    with pytest.raises(ValueError, match="mean1"):
        InnovationGenerator(g.W, g.V, g.b, g.parents, [g.mean[1], g.mean[1]], g.U, g.around, 3)


def test_windows_are_the_nearest_parents_and_rings_the_nearest_innovations() -> None:
    parents, kinds = window(4)
    assert parents.shape == (64, 4)
    assert int(parents.min()) == 0
    assert int(parents.max()) == 15
    grid = 8
    for y, x in ((0, 0), (3, 4), (7, 2)):
        seen = parents[y * grid + x]
        assert y // 2 * 4 + x // 2 in seen.tolist()  # its own parent
        rows = (seen // 4).unique()
        assert len(rows) == 2
        assert int(rows[1] - rows[0]) == 1
    # A patch in the upper half of its parent looks up, one in the lower half down.
    assert set((parents[2 * grid + 3] // 4).tolist()) == {0, 1}
    assert set((parents[3 * grid + 3] // 4).tolist()) == {1, 2}
    assert len(kinds.unique()) == 16
    assert window(1)[0].tolist() == [[0]] * 4
    around = ring(3)
    assert around[4].tolist() == [6, 7, 8, 11, 12, 13, 16, 17, 18]
    assert int(around.max()) == 24
