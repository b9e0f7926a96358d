"""A generator from disk: a Run's weights, of either family, or a planted target."""

from __future__ import annotations

from pathlib import Path

from safetensors import safe_open

from forwardsr.errors import UserError
from forwardsr.learn.joint import load_network
from forwardsr.model.deconv_generator import DeconvGenerator
from forwardsr.model.patch_generator import PatchGenerator
from forwardsr.run import Run


def load_generator(path: Path, weights: str = "best") -> DeconvGenerator | PatchGenerator:
    """The generator of a Run, or of a network file (``.safetensors``).

    ``weights``: of a Run, its ``best`` (the last where it keeps no best) or its ``last``. Raises :class:`UserError` where
    ``path`` is neither, or has no weights yet.
    """
    if path.suffix == ".safetensors":
        return load_target(path)
    run = Run.read(path)
    if weights not in ("best", "last"):
        raise UserError(f"--weights {weights}: say best or last")
    name = "best.safetensors" if weights == "best" and (path / "best.safetensors").exists() else "model.safetensors"
    tensors = run.load_weights(name)
    with safe_open(path / name, "pt") as file:
        metadata = file.metadata() or {}
    if metadata.get("family") != "deconv":
        return PatchGenerator.load(path / name)
    try:
        return load_network(tensors, metadata)
    except (KeyError, ValueError, RuntimeError):
        raise UserError(f"{path / name}: not a network of this package; train the run again") from None


def load_target(path: Path) -> PatchGenerator:
    """A planted target's network. Raises :class:`UserError` where ``path`` is none."""
    if not path.is_file():
        raise UserError(f"{path}: no such file; `forwardsr plant --out {path}` draws a target")
    return PatchGenerator.load(path)
