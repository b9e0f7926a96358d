"""``measure``: measurements of a generator (a Run's, or a planted target's) against a source."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from rich.console import Console
from rich.table import Table

from forwardsr.data.open import open_source
from forwardsr.data.pyramid import Pyramid
from forwardsr.data.source import FiniteSource, Source
from forwardsr.errors import UserError
from forwardsr.generators import load_critic, load_generator, load_snapshot
from forwardsr.learning import LearnConfig, open_images_source
from forwardsr.measure.assumptions import AuditSettings, audit
from forwardsr.measure.corrections import corrections
from forwardsr.measure.correlation import Correlation
from forwardsr.measure.distance import Reference
from forwardsr.measure.draws import channels_of
from forwardsr.measure.features import features
from forwardsr.measure.fid import feature_distances
from forwardsr.measure.forward_super_resolution import forward_super_resolution
from forwardsr.measure.locality import locality
from forwardsr.measure.moments import RealMoments, moments
from forwardsr.measure.novelty import novelty
from forwardsr.measure.sparsity import LevelActivity, Sparsity, activity
from forwardsr.model.innovation_generator import InnovationGenerator
from forwardsr.model.patch_generator import PatchGenerator
from forwardsr.model.protocol import LayeredGenerator
from forwardsr.run import Run

SNAPSHOTS = (
    6  # at which moments are taken: the first, the last, and evenly between them in the logarithm of images seen
)


class Inapplicable(UserError):
    """A measurement that has no meaning, or lacks what it needs, here: ``--what all`` leaves it out."""


@runtime_checkable
class Result(Protocol):
    """What every measurement returns."""

    def table(self) -> Table: ...

    def to_json(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Subject:
    """What is measured: a generator, the Run it came from (if any), the real data to hold it against (if named).

    ``n``: samples, each measurement's own default where ``None``.
    """

    generator: LayeredGenerator
    run: Run | None
    source: str | None
    n: int | None
    seed: int
    fid: Path | None

    def size(self, default: int) -> int:
        """How many samples to take."""
        return default if self.n is None else self.n

    @property
    def latent_seed(self) -> int:
        """Of generated samples that are held against real ones: a planted source and its own network share no latents."""
        return self.seed + 10_007

    @functools.cached_property
    def real(self) -> Source:
        """The real data, in the generator's own form. Raises :class:`Inapplicable` where none is known."""
        settings = {} if self.run is None else self.run.config
        spec = self.source or settings.get("source")
        if spec is None:
            raise Inapplicable("--source: this needs real data; name a source")
        if of_the_theorem(self.generator):
            return open_source(str(spec))
        names = {f.name for f in fields(LearnConfig)}
        kept = {key: value for key, value in settings.items() if key in names and key != "precision"}
        kept["channels"] = None if kept.get("channels") is None else str(kept["channels"])
        return open_images_source(LearnConfig(**kept | {"source": str(spec)}), Console(stderr=True))

    @property
    def real_if_known(self) -> Source | None:
        """The real data, or ``None`` where none is known."""
        return self.real if self.source or (self.run is not None and self.run.config.get("source")) else None

    @functools.cached_property
    def initial(self) -> LayeredGenerator | None:
        """The generator before training, where the run keeps it."""
        snapshots = [] if self.run is None else self.run.snapshots()
        return load_snapshot(snapshots[0][1]) if snapshots and snapshots[0][0] == 0 else None

    @functools.cached_property
    def activity(self) -> tuple[tuple[LevelActivity, ...], tuple[LevelActivity, ...] | None]:
        """Activation counts of the generator and, where it is known, of its initialisation; counted once."""
        n = self.size(4096)
        ours = activity(self.generator, n, self.seed)
        return ours, None if self.initial is None else activity(self.initial, n, self.seed)

    def images(self, n: int) -> Pyramid:
        """``n`` real images, or all there are."""
        source = self.real
        if isinstance(source, FiniteSource):
            order = torch.randperm(len(source), generator=torch.Generator().manual_seed(self.seed))
            return source.take(order[:n])
        return source.draw(n, torch.Generator().manual_seed(self.seed))

    def generated(self, n: int) -> Pyramid:
        """``n`` generated samples."""
        return self.generator.sample(n, torch.Generator().manual_seed(self.latent_seed))


def of_the_theorem(generator: LayeredGenerator) -> bool:
    """Whether this is the paper's network, of patches alone: not one of images, whichever way learned."""
    return isinstance(generator, PatchGenerator) and not isinstance(generator, InnovationGenerator)


def _distance(subject: Subject) -> Result:
    source = subject.real
    reference = Reference.from_source(source, subject.size(2048), seed=subject.seed, channels=channels_of(source))
    try:
        return reference.compare(subject.generated(reference.n))
    except ValueError as error:
        raise UserError(f"--source: {error}") from None


def _assumptions(subject: Subject) -> Result:
    if of_the_theorem(subject.generator):
        return audit(subject.generator, subject.size(300_000), subject.seed)
    # Far from the bounds, which few samples at some positions show as well.
    return audit(subject.generator, subject.size(2048), subject.seed, AuditSettings(max_patches=16), chunk=256)


def _fid(subject: Subject) -> Result:
    if subject.fid is None:
        raise Inapplicable("--fid: give the TorchScript file of your Inception network")
    n = subject.size(2048)
    if of_the_theorem(subject.generator):
        raise Inapplicable("fid is of images; this is a network of patches")
    real, generated = subject.images(n), subject.generated(n)
    return feature_distances(generated[-1], real[-1], subject.fid, seed=subject.seed)


def _sparsity(subject: Subject) -> Result:
    return Sparsity(*subject.activity)


def _correlation(subject: Subject) -> Result:
    return Correlation(*subject.activity)


def _moments(subject: Subject) -> Result:
    real = RealMoments.from_source(subject.real, subject.size(1024), subject.seed)
    kept = [] if subject.run is None else thinned(subject.run.snapshots(), SNAPSHOTS)
    stages = [(images, load_snapshot(file)) for images, file in kept]
    known = bool(stages) and stages[0][0] == 0
    return moments(stages or [(None, subject.generator)], real, subject.latent_seed, initial=known)


def thinned(snapshots: Sequence[tuple[int, Path]], most: int) -> list[tuple[int, Path]]:
    """At most ``most`` (3 or more) snapshots: the first, the last, and others evenly in the logarithm of images seen."""
    if len(snapshots) <= most:
        return list(snapshots)
    seen = torch.tensor([images for images, _ in snapshots], dtype=torch.float64).clamp(min=1).log()
    wanted = torch.linspace(float(seen[1]), float(seen[-1]), most - 1, dtype=torch.float64)
    nearest = {int((seen[1:] - w).abs().argmin()) + 1 for w in wanted}
    return [snapshots[i] for i in sorted({0, *nearest})]


def _features(subject: Subject) -> Result:
    critic = None if subject.run is None else subject.run.path / "critic.safetensors"
    return features(
        subject.generator, None if critic is None or not critic.exists() else load_critic(critic.parent), subject.seed
    )


def _locality(subject: Subject) -> Result:
    return locality(subject.generator, subject.real_if_known, subject.size(3584), seed=subject.seed)


def _corrections(subject: Subject) -> Result:
    before = None if subject.run is None else subject.run.path / "before.safetensors"
    if before is None or not before.exists():
        raise Inapplicable("corrections are of a run made by --method backward-correction, past its layer-wise stages")
    return corrections(
        load_snapshot(before), subject.generator, subject.initial, subject.real, subject.size(2048), subject.seed
    )


def _forward_super_resolution(subject: Subject) -> Result:
    return forward_super_resolution(subject.generator, subject.real_if_known, subject.size(1024), subject.seed)


def _novelty(subject: Subject) -> Result:
    source = subject.real
    if of_the_theorem(subject.generator) or not isinstance(source, FiniteSource) or len(source.shapes[0]) != 3:
        raise Inapplicable(
            "novelty is of images learned from a folder, a .zip or a named set: here nothing could be copied"
        )
    return novelty(list(subject.generated(subject.size(512))), source, subject.seed)


MEASUREMENTS: dict[str, Callable[[Subject], Result]] = {
    "distance": _distance,
    "sparsity": _sparsity,
    "correlation": _correlation,
    "moments": _moments,
    "features": _features,
    "locality": _locality,
    "corrections": _corrections,
    "forward-super-resolution": _forward_super_resolution,
    "novelty": _novelty,
    "assumptions": _assumptions,
    "fid": _fid,
}


def measure(
    path: Path,
    source: str | None,
    what: Sequence[str],
    n: int | None,
    weights: str,
    seed: int,
    fid: Path | None,
    note: Callable[[str], None] = lambda message: None,
) -> Mapping[str, Result]:
    """The measurements named in ``what`` (by default the distance of a Run, the assumptions of a target), by name.

    ``all`` stands for every one that has a meaning for this generator; ``note`` is told of those left out. ``source``: the real
    data, by default the Run's own. ``n``: samples, by default each measurement's own number. Raises :class:`UserError`.
    """
    if n is not None and n < 16:
        raise UserError(f"-n {n}: must be at least 16")
    for name in what:
        if name not in MEASUREMENTS and name != "all":
            raise UserError(f"--what {name}: no such measurement; say all, {', '.join(MEASUREMENTS)}")
    run = None if path.suffix == ".safetensors" else Run.read(path)
    subject = Subject(load_generator(path, weights), run, source, n, seed, fid)
    chosen = what or (["assumptions"] if of_the_theorem(subject.generator) else ["distance"]) + (["fid"] if fid else [])
    everything = "all" in chosen
    found: dict[str, Result] = {}
    for name in MEASUREMENTS if everything else chosen:
        try:
            found[name] = MEASUREMENTS[name](subject)
        except (Inapplicable, ValueError) as error:
            reason = str(error) if isinstance(error, Inapplicable) else f"--what {name}: {error}"
            if not everything:
                raise UserError(reason) from None
            if name != "fid":
                note(f"{name} left out: {error}")
    return found
