"""``measure``: the measurements of a Run's generator against a source."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from rich.console import Console
from rich.table import Table

from forwardsr.errors import UserError
from forwardsr.generators import load_generator
from forwardsr.learning import LearnConfig, open_images_source
from forwardsr.measure.distance import Reference
from forwardsr.run import Run


@runtime_checkable
class Result(Protocol):
    """What every measurement returns."""

    def table(self) -> Table: ...

    def to_json(self) -> dict[str, Any]: ...


def measure(
    path: Path, source: str | None, n: int, weights: str, seed: int, fid: Path | None, console: Console
) -> Mapping[str, Result]:
    """The measurements of the Run at ``path``, by name. ``source``: the real data, by default the Run's own."""
    if n < 2:
        raise UserError(f"-n {n}: must be at least 2")
    settings = Run.read(path).config
    model = load_generator(path, weights)
    names = {f.name for f in fields(LearnConfig)}
    config = LearnConfig(
        **{key: value for key, value in settings.items() if key in names} | ({"source": source} if source else {})
    )
    real = open_images_source(config, Console(stderr=True))
    reference = Reference.from_source(real, n, seed=seed, channels=model.channels)
    generated = model.sample(reference.n, torch.Generator().manual_seed(seed))
    try:
        results: dict[str, Result] = {"distance": reference.compare(generated)}
    except ValueError as error:
        raise UserError(f"--source {config.source}: {error}") from None
    return results
