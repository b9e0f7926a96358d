"""The head start: a student that begins where the theorem's algorithm ended."""

import pytest
import torch

from forwardsr.data.pyramid import Pyramid, pool
from forwardsr.errors import UserError
from forwardsr.learn.head_start import directions, distil, plant_features
from forwardsr.learn.photographs import learn_photographs
from forwardsr.learn.stream import Stream
from forwardsr.model.deconv_generator import DeconvGenerator
from forwardsr.model.innovation_generator import InnovationGenerator


class Blobs:
    """Smooth random images of 8 and 16 px."""

    name = "blobs"
    shapes = ((3, 8, 8), (3, 16, 16))

    def __init__(self) -> None:
        coarse = torch.randn(400, 3, 4, 4, generator=torch.Generator().manual_seed(0))
        self.pyramid = pool(0.5 * torch.nn.functional.interpolate(coarse, size=16, mode="bilinear"), (8, 16))

    def __len__(self) -> int:
        return 400

    def take(self, index: torch.Tensor, levels: int | None = None) -> Pyramid:
        return Pyramid([x[index] for x in self.pyramid[:levels]])

    def draw(self, n: int, generator: torch.Generator, levels: int | None = None) -> Pyramid:
        return self.take(torch.randint(400, (n,), generator=generator), levels)


@pytest.fixture(scope="module")
def teacher() -> InnovationGenerator:
    return learn_photographs(Stream(Blobs(), 0, 4), 3, 0)


def _student(**changes: int) -> DeconvGenerator:
    settings = {"width": 16, "latent": 12} | changes
    return DeconvGenerator([8, 16], generator=torch.Generator().manual_seed(0), **settings)


def test_the_students_images_become_the_teachers(teacher: InnovationGenerator) -> None:
    student = _student()
    notes: list[str] = []
    distil(teacher, student, samples=3200, note=notes.append)
    assert notes
    z = torch.randn(200, 12, generator=torch.Generator().manual_seed(3))
    latent = torch.zeros(200, teacher.latent_dim)
    R = directions(teacher, 12)
    latent[:, : len(R)] = z @ R.T
    target = teacher.render(teacher.hidden(latent))
    student.eval()
    for drawn, x in zip(student(z), target):
        unexplained = (drawn - x).square().mean() / x.var(0).mean()
        assert float(unexplained.detach()) < 0.25


def test_directions_are_those_that_move_the_image_most(teacher: InnovationGenerator) -> None:
    R = directions(teacher, 12)
    torch.testing.assert_close(R.T @ R, torch.eye(12), atol=1e-4, rtol=0)
    z = torch.randn(500, len(R), generator=torch.Generator().manual_seed(0))
    seen = z @ R @ R.T

    def spread(first: torch.Tensor) -> float:
        latent = torch.zeros(500, teacher.latent_dim)
        latent[:, : len(R)] = first
        return float(teacher.render(teacher.hidden(latent))[0].var(0).sum())

    assert spread(seen) / 12 > 2 * spread(z - seen) / (len(R) - 12)


def test_features_are_planted_in_pairs(teacher: InnovationGenerator) -> None:
    student = _student()
    plant_features(teacher, student)
    weight = student.outputs[1].weight.detach()
    torch.testing.assert_close(weight[:8], -weight[8:16])
    tile = weight[0][:, 1:5, 1:5].reshape(-1)
    assert float((tile @ teacher.features(1)[0] / tile.norm()).abs().max()) == pytest.approx(1.0, abs=1e-4)


def test_other_sizes_are_refused(teacher: InnovationGenerator) -> None:
    student = DeconvGenerator([8, 16, 32], width=16, latent=12)
    with pytest.raises(UserError, match="make them equal"):
        distil(teacher, student)
