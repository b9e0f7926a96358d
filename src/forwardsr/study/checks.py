"""What is wrong with a study, said before anything long is begun."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from forwardsr.data.open import NAMES, open_source
from forwardsr.errors import UserError
from forwardsr.learning import is_images
from forwardsr.run import replacing
from forwardsr.study.plan import FIGURES, ReproduceConfig

SCHEMA = 1
BEYOND = frozenset({"agnostic"})


def resolve_targets(targets: Sequence[str], extras: Sequence[str]) -> list[str]:
    """The names meant, each once, in the paper's order, then of ``extras``. Raises :class:`UserError`.

    ``all`` is the paper's study: :data:`BEYOND` goes past it, and is named by itself.
    """
    known = [*FIGURES, *extras]
    for target in targets:
        if target not in (*known, "all"):
            raise UserError(f"{target}: nothing of that name is reproduced; say {', '.join(known)} or all")
    if not targets:
        raise UserError(f"name what to reproduce: {', '.join(known)} or all")
    return [name for name in known if name in targets or ("all" in targets and name not in BEYOND)]


def check_source(source: str | None, needed: bool) -> None:
    """One line for a source that is missing or holds no pictures, before anything long is begun."""
    if source is None:
        if needed:
            raise UserError("--source: name the pictures, an image folder or .zip, or photos")
        return
    if source not in NAMES and not Path(source).expanduser().exists():
        open_source(source)  # says what is wrong, and what was perhaps meant
    if needed and not is_images(source):
        raise UserError(f"--source {source}: the figures are of pictures; name an image folder or .zip, or photos")


def check_folder(out: Path, config: ReproduceConfig) -> None:
    """Whether the study can be written there, or goes on. Raises :class:`UserError`."""
    plan = out / "plan.json"
    if plan.exists():
        try:
            made = dict(json.loads(plan.read_text()))
        except ValueError:
            raise UserError(f"{plan}: damaged; choose another --out, or delete it") from None
        for key in ("source", "scale", "effort", "seed"):
            old, new = made.get(key), getattr(config, key)
            if old != new and None not in (old, new):
                raise UserError(f"--{key}: {out} was made with {old}, not {new}; give that, or another --out")
        return
    if out.is_dir() and any(out.iterdir()):
        raise UserError(f"--out {out}: the folder holds other things than a study; choose a new or empty one")
    there = next(p for p in (out, *out.absolute().parents) if p.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise UserError(f"--out {out}: {there} is no folder that can be written; choose another")


def write_plan(out: Path, config: ReproduceConfig) -> None:
    """Say in ``plan.json`` what this is a study of."""
    kept = {
        "schema": SCHEMA,
        "source": config.source,
        "scale": config.scale,
        "effort": config.effort,
        "seed": config.seed,
    }
    plan = out / "plan.json"
    if plan.exists():
        kept["source"] = config.source or json.loads(plan.read_text()).get("source")
    try:
        out.mkdir(parents=True, exist_ok=True)
        with replacing(plan) as temporary:
            temporary.write_text(json.dumps(kept) + "\n")
    except OSError as error:
        raise UserError(f"--out {out}: cannot be written ({error.strerror}); choose another") from None
