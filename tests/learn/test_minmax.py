"""Algorithm 4 end to end on small targets: solvers, resuming, sources, bad input."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor

from forwardsr.data.planted import PlantedSource
from forwardsr.data.pyramid import Pyramid
from forwardsr.errors import UserError
from forwardsr.learn.minmax import MinmaxConfig, StageRecord, State, learn_minmax
from forwardsr.learn.minmax_sgda import MinmaxSGDASettings
from forwardsr.learn.sgda import SGDASettings
from forwardsr.measure.certificate import Certificate, certify, match
from forwardsr.model.patch_generator import PatchGenerator
from forwardsr.model.plant import PlantConfig, plant

SMALL = PlantConfig(patches=(4, 16), channels=(6,), d=10, p=(0.08, 0.15))
PLAY = SGDASettings(steps=3, samples=256)
QUICK = MinmaxConfig(samples=100_000, feature_samples=10_000)


class Finite:
    """A finite source of given tensors."""

    name = "finite"

    def __init__(self, levels: list[Tensor]) -> None:
        self.levels = levels
        self.shapes = tuple(tuple(x.shape[1:]) for x in levels)

    def __len__(self) -> int:
        return len(self.levels[0])

    def take(self, index: Tensor, levels: int | None = None) -> Pyramid:
        return Pyramid([x[index] for x in self.levels[:levels]])

    def draw(self, n: int, generator: torch.Generator, levels: int | None = None) -> Pyramid:
        return self.take(torch.randint(len(self), (n,), generator=generator), levels)


@pytest.fixture(scope="module")
def target() -> PatchGenerator:
    return plant(SMALL)


def worst(certificate: Certificate, lemma: str) -> float:
    return max(row.worst for row in certificate.rows if row.lemma == lemma)


def test_efficient_is_exact_but_for_the_latent_law(target: PatchGenerator) -> None:
    result = learn_minmax(PlantedSource(target), [6], settings=QUICK)
    certificate = certify(result.generator, target, 2000, warm=result.state, samples=100_000)
    assert worst(certificate, "B.2") < 1e-5
    assert worst(certificate, "D.10") < 1e-5
    assert worst(certificate, "A.1") < 0.2
    assert not certificate.unmatched
    assert not result.notes
    # 276 pairs: the ratio to the bound is known to 5 %.
    assert certificate.find("C.10", 1, "<V, V'>, in Cramér-Rao bounds").rms < 1.2
    assert certificate.total.quantile(0.5) < 0.1


def test_errors_fall_as_the_inverse_root_of_samples(target: PatchGenerator) -> None:
    def error(samples: int) -> float:
        settings = MinmaxConfig(samples=samples, feature_samples=10_000)
        result = learn_minmax(PlantedSource(target), [6], settings=settings, seed=1)
        return certify(result.generator, target, 1000).total.quantile(0.5)

    assert 2 < error(20_000) / error(320_000) < 8  # 4 but for luck


def test_noise_shifts_thresholds_and_biases_nothing(target: PatchGenerator) -> None:
    settings = MinmaxConfig(samples=100_000, feature_samples=20_000)
    result = learn_minmax(PlantedSource(target, noise=0.1), [6], settings=settings)
    certificate = certify(result.generator, target, 2000, samples=100_000)
    assert worst(certificate, "B.2") < 0.02
    assert certificate.find("C.6", 1, "norms of V_1, relative").rms < 0.02
    assert certificate.find("C.10", 1, "<V, V'>, in Cramér-Rao bounds").rms < 1.5
    assert certificate.total.quantile(0.5) < 0.12


def test_closed_form_agrees(target: PatchGenerator) -> None:
    settings = MinmaxConfig(
        solver="closed-form", samples=60_000, level_samples=30_000, feature_samples=10_000, stages=3
    )
    result = learn_minmax(PlantedSource(target), [6], settings=settings)
    certificate = certify(result.generator, target, 2000)
    assert worst(certificate, "B.2") < 0.1
    assert certificate.find("C.6", 1, "norms of V_1, relative").rms < 0.03
    assert certificate.find("C.10", 1, "<V, V'> across patches, relative to norms").rms < 0.03
    assert worst(certificate, "D.10") < 0.15
    assert certificate.total.quantile(0.5) < 0.15


@pytest.mark.parametrize("solver", ["efficient", "closed-form", "sgda"])
def test_a_learning_goes_on_bit_for_bit(target: PatchGenerator, solver: str) -> None:
    settings = MinmaxConfig(
        solver=solver,  # type: ignore[arg-type]
        samples=20_000,
        level_samples=5_000,
        feature_samples=5_000,
        stages=1,
        sgda=MinmaxSGDASettings("cumulant", stages=1, neurons=PLAY, pairs=PLAY, level=PLAY, output=PLAY),
    )
    states: list[tuple[StageRecord, State]] = []
    whole = learn_minmax(PlantedSource(target), [6], None, settings, 3, lambda r, s: states.append((r, s)))
    middle = len(states) // 2
    rest = learn_minmax(PlantedSource(target), [6], None, settings, 3, resume=states[middle][1])
    assert len(rest.trace) == len(states) - middle - 1
    for name, tensor in whole.generator.tensors().items():
        assert torch.equal(tensor, rest.generator.tensors()[name]), name
    records = [record.to_json() for record, _ in states]
    assert [r["index"] for r in json.loads(json.dumps(records))] == list(range(states[0][0].total))


def test_a_finite_source_is_read_once_and_suffices(target: PatchGenerator) -> None:
    levels = [x.clone() for x in target.sample(30_000, torch.Generator().manual_seed(5))]
    result = learn_minmax(Finite(levels), [6], settings=QUICK)
    certificate = certify(result.generator, target, 1000)
    assert worst(certificate, "B.2") < 1e-5
    assert worst(certificate, "D.10") < 1e-5
    assert next(r for r in result.trace if r.name == "first hidden").metrics["samples"] == 30_000


def test_pairs_the_data_cannot_see_are_named() -> None:
    target = plant(PlantConfig(patches=(2,), channels=(4,), d=8, p=(0.06, 0.1), violate="identifiability", amount=0.93))
    result = learn_minmax(PlantedSource(target), [4], settings=QUICK)
    assert any("do not determine the correlation" in note for note in result.notes)


def test_off_the_model_the_two_moments_are_matched_and_it_is_said() -> None:
    W = torch.linalg.qr(torch.randn(2, 8, 4, generator=torch.Generator().manual_seed(0)))[0]
    generator = torch.Generator().manual_seed(1)
    active = torch.rand(2, 4, 40_000, generator=generator) < 0.1
    s = active * (1 + 0.2 * torch.rand(2, 4, 40_000, generator=generator))  # nearly constant: no Gaussian tail
    result = learn_minmax(Finite([(W @ s).permute(2, 0, 1)]), [4], settings=QUICK)
    assert any("no censored Gaussians" in note for note in result.notes)
    learned = result.generator.hidden(result.generator.latents(40_000, generator))[0]
    assert float((learned > 0).float().mean()) == pytest.approx(0.1, rel=0.05)
    assert float(learned.mean()) == pytest.approx(float(s.mean()), rel=0.05)


@pytest.mark.parametrize(
    ("channels", "parents", "message"),
    [
        ([6, 6, 6], None, "3 numbers for 2 levels"),
        ([11], None, "only 10 numbers"),
        ([0], None, "must be positive"),
        ([6], [None], "1 graphs for 2 levels"),
        ([6], [None, torch.full((16, 1), 4)], "outside 0..3"),
        ([6], [None, torch.zeros(3, 1, dtype=torch.int64)], r"\(16, \|P\|\)"),
        ([8], None, "dead"),
    ],
)
def test_bad_input_is_named(target: PatchGenerator, channels: list[int], parents: object, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        learn_minmax(PlantedSource(target), channels, parents, QUICK)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_rare_channels_ask_for_samples() -> None:
    target = plant(PlantConfig(patches=(1,), channels=(4,), d=8, p=(0.1, 0.2)))
    target.b[0][0, 2] *= 2.5
    settings = MinmaxConfig(samples=1_000, feature_samples=10_000)
    with pytest.raises(UserError, match="samples are needed"):
        learn_minmax(PlantedSource(target), [4], settings=settings)


def test_what_noise_takes_from_correlations_is_put_back() -> None:
    planted = plant(PlantConfig(patches=(4,), channels=(6,), d=12, p=(0.1, 0.15)))
    settings = MinmaxConfig(samples=200_000)
    learned = learn_minmax(PlantedSource(planted, noise=0.5), planted.channels, None, settings).generator
    order, _ = match(learned.W[0].double(), planted.W[0].double())
    index = (order + 6 * torch.arange(4)[:, None]).flatten()
    found, truth = (
        v / v.norm(dim=1, keepdim=True) for v in (learned.V[0].flatten(0, 1)[index], planted.V[0].flatten(0, 1))
    )
    i, j = torch.triu_indices(24, 24, 1)
    x, y = (found @ found.T)[i, j], (truth @ truth.T)[i, j]
    assert float((x * y).sum() / y.square().sum()) == pytest.approx(1, abs=0.006)  # 0.986 without
