"""The head start: a student that begins where the theorem's algorithm ended."""

import pytest
import torch

from forwardsr.data.pyramid import Pyramid, pool
from forwardsr.errors import UserError
from forwardsr.learn.head_start import distil, finest, latents, plant_features, restore_variance, teachers
from forwardsr.learn.photographs import learn_photographs
from forwardsr.learn.stream import Stream
from forwardsr.model.deconv_generator import DeconvGenerator
from forwardsr.model.innovation_generator import InnovationGenerator


class Blobs:
    """Smooth random images of 8 and 16 px, speckled."""

    name = "blobs"
    shapes = ((3, 8, 8), (3, 16, 16))

    def __init__(self) -> None:
        rng = torch.Generator().manual_seed(0)
        coarse = torch.nn.functional.interpolate(torch.randn(400, 3, 4, 4, generator=rng), size=16, mode="bilinear")
        speckle = torch.randn(400, 3, 16, 16, generator=rng)
        self.pyramid = pool(0.5 * coarse + 0.2 * torch.where(speckle > 1.0, speckle, 0.0), (8, 16))

    def __len__(self) -> int:
        return 400

    def take(self, index: torch.Tensor, levels: int | None = None) -> Pyramid:
        return Pyramid([x[index] for x in self.pyramid[:levels]])

    def draw(self, n: int, generator: torch.Generator, levels: int | None = None) -> Pyramid:
        return self.take(torch.randint(400, (n,), generator=generator), levels)


@pytest.fixture(scope="module")
def teacher() -> InnovationGenerator:
    return learn_photographs(Stream(Blobs(), 0, 4), 3, 0, level1="copula")


def _student(teacher: InnovationGenerator, **changes: int) -> DeconvGenerator:
    latent, innovations = latents(teacher)
    settings = {"width": 16, "latent": latent, "innovations": innovations} | changes
    return DeconvGenerator([8, 16], generator=torch.Generator().manual_seed(0), **settings)


def _unexplained(drawn: Pyramid, target: Pyramid) -> list[float]:
    both = [*zip(drawn, target), *((finest(a), finest(b)) for a, b in zip(drawn, target))]
    return [float(((a - b).square().mean() / b.var(0).mean()).detach()) for a, b in both]


def test_the_students_images_become_the_teachers(teacher: InnovationGenerator) -> None:
    student = _student(teacher)
    notes: list[str] = []
    distil(teacher, student, samples=3200, note=notes.append)
    assert notes
    student.eval()
    z = torch.randn(200, student.latent_dim, generator=torch.Generator().manual_seed(3))
    target = teacher.render(teacher.hidden(teachers(z, student, teacher)))
    found = _unexplained(student(z), target)
    assert max(found[:2]) < 0.25
    z[:, student.latent :] = 0.0
    without = _unexplained(student(z), target)
    assert found[3] < without[3] - 0.05  # part of the finest band is innovations, and the student has learned it


def test_both_have_the_same_latents_in_the_same_places(teacher: InnovationGenerator) -> None:
    student = _student(teacher)
    z = torch.zeros(2, student.latent_dim)
    first, (own,) = student.parts(z)
    assert own is not None
    own[1, 0, 2, 4] = 5.0  # a view: patch (1, 3) of the level, which has 4 x 4, behind a ring of one
    other = teachers(z, student, teacher)
    assert other.shape[1] == teacher.latent_dim
    torch.testing.assert_close(other[:, : student.latent], first)
    assert other[1].nonzero().flatten().tolist() == [student.latent + (2 * 6 + 4) * teacher.innovations[0][1]]
    images = teacher.render(teacher.hidden(other))[1]
    moved = (images[1] - images[0]).square().sum(0)
    assert float(moved[:12, 8:].sum()) == pytest.approx(float(moved.sum()))  # the patch and its neighbours
    assert float(moved.sum()) > 0
    images = student.eval()(z)[1]
    moved = (images[1] - images[0]).detach().square().sum(0)
    assert float(moved[:14, 6:].sum()) == pytest.approx(float(moved.sum()))  # and what deconvolutions of 6 x 6 add
    assert float(moved[4:8, 12:].sum()) > 0


def test_patches_without_places_in_the_student_leave_innovations_out() -> None:
    other = learn_photographs(Stream(Blobs(), 0, 8), 3, 0, level1="copula")
    assert latents(other)[1] == 0
    student = _student(other)
    z = torch.randn(3, student.latent_dim, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(teachers(z, student, other)[:, : student.latent], z)
    assert not teachers(z, student, other)[:, student.latent :].any()
    distil(other, student, samples=64)


def test_the_variance_that_a_regression_leaves_out_is_given_back(teacher: InnovationGenerator) -> None:
    student = _student(teacher).eval()
    restore_variance(teacher, student, torch.Generator().manual_seed(0))
    z = torch.randn(1000, student.latent_dim, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        for y, x in zip(student(z), teacher.render(teacher.hidden(teachers(z, student, teacher)))):
            for a, b in ((finest(y), finest(x)), (y - finest(y), x - finest(x))):
                assert float(a.var(0).mean() / b.var(0).mean()) == pytest.approx(1.0, abs=0.1)
            torch.testing.assert_close(y.mean((0, 2, 3)), x.mean((0, 2, 3)), atol=0.03, rtol=0)


def test_features_are_planted_in_pairs(teacher: InnovationGenerator) -> None:
    student = _student(teacher)
    plant_features(teacher, student)
    weight = student.outputs[1].weight.detach()
    torch.testing.assert_close(weight[:8], -weight[8:16])
    tile = weight[0][:, 1:5, 1:5].reshape(-1)
    assert float((tile @ teacher.features(1)[0] / tile.norm()).abs().max()) == pytest.approx(1.0, abs=1e-4)


def test_other_sizes_are_refused(teacher: InnovationGenerator) -> None:
    student = DeconvGenerator([8, 16, 32], width=16, latent=12)
    with pytest.raises(UserError, match="make them equal"):
        distil(teacher, student)
    with pytest.raises(ValueError, match="latents"):
        distil(teacher, _student(teacher, innovations=1))
