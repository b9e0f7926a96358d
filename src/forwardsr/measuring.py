"""``measure``: measurements of a generator (a Run's, or a planted target's) against a source."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from rich.console import Console
from rich.table import Table

from forwardsr.data.pyramid import Pyramid
from forwardsr.data.source import FiniteSource, Source
from forwardsr.errors import UserError
from forwardsr.generators import load_generator
from forwardsr.learning import LearnConfig, open_images_source
from forwardsr.measure.assumptions import audit
from forwardsr.measure.distance import Reference
from forwardsr.measure.fid import feature_distances
from forwardsr.model.patch_generator import PatchGenerator
from forwardsr.model.protocol import LayeredGenerator
from forwardsr.run import Run


@runtime_checkable
class Result(Protocol):
    """What every measurement returns."""

    def table(self) -> Table: ...

    def to_json(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Subject:
    """What is measured: a generator, the Run it came from (if any), the real data to hold it against (if named)."""

    generator: LayeredGenerator
    run: Run | None
    source: str | None
    n: int
    seed: int
    fid: Path | None

    def real(self) -> Source:
        """The real data, in image form. Raises :class:`UserError` where none is known."""
        settings = {} if self.run is None else self.run.config
        if self.run is None and self.source is None:
            raise UserError("--source: a distance needs real data; name a source")
        names = {f.name for f in fields(LearnConfig)}
        kept = {key: value for key, value in settings.items() if key in names and key != "precision"}
        kept["channels"] = None if kept.get("channels") is None else str(kept["channels"])
        config = LearnConfig(**kept | ({"source": self.source} if self.source else {}))
        return open_images_source(config, Console(stderr=True))

    def images(self, n: int) -> Pyramid:
        """``n`` real images, or all there are."""
        source = self.real()
        if isinstance(source, FiniteSource):
            order = torch.randperm(len(source), generator=torch.Generator().manual_seed(self.seed))
            return source.take(order[:n])
        return source.draw(n, torch.Generator().manual_seed(self.seed))

    def generated(self, n: int) -> Pyramid:
        """``n`` generated samples."""
        return self.generator.sample(n, torch.Generator().manual_seed(self.seed))


def _distance(subject: Subject) -> Result:
    source = subject.real()
    reference = Reference.from_source(source, subject.n, seed=subject.seed, channels=source.shapes[0][0])
    try:
        return reference.compare(subject.generated(reference.n))
    except ValueError as error:
        raise UserError(f"--source: {error}") from None


def _assumptions(subject: Subject) -> Result:
    return audit(subject.generator, seed=subject.seed)


def _fid(subject: Subject) -> Result:
    if subject.fid is None:
        raise UserError("--fid: give the TorchScript file of your Inception network")
    real, generated = subject.images(subject.n), subject.generated(subject.n)
    return feature_distances(generated[-1], real[-1], subject.fid, seed=subject.seed)


MEASUREMENTS: dict[str, Callable[[Subject], Result]] = {
    "distance": _distance,
    "fid": _fid,
    "assumptions": _assumptions,
}


def measure(
    path: Path, source: str | None, what: Sequence[str], n: int, weights: str, seed: int, fid: Path | None
) -> Mapping[str, Result]:
    """The measurements named in ``what`` (by default the distance of a Run, the assumptions of a target), by name.

    ``source``: the real data, by default the Run's own. Raises :class:`UserError`.
    """
    if n < 2:
        raise UserError(f"-n {n}: must be at least 2")
    for name in what:
        if name not in MEASUREMENTS:
            raise UserError(f"--what {name}: no such measurement; say {', '.join(MEASUREMENTS)}")
    run = None if path.suffix == ".safetensors" else Run.read(path)
    subject = Subject(load_generator(path, weights), run, source, n, seed, fid)
    theorem = isinstance(subject.generator, PatchGenerator)
    chosen = what or (["assumptions"] if theorem else ["distance"]) + (["fid"] if fid else [])
    return {name: MEASUREMENTS[name](subject) for name in chosen}
