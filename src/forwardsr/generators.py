"""Networks from disk: a generator of either family (a Run's, a snapshot, a planted target), or a Run's critic."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from safetensors import SafetensorError, safe_open

from forwardsr.errors import UserError
from forwardsr.learn.head_start import distil, latents
from forwardsr.model.critic import Critic
from forwardsr.model.deconv_generator import DeconvGenerator
from forwardsr.model.innovation_generator import InnovationGenerator
from forwardsr.model.patch_generator import PatchGenerator
from forwardsr.model.pooled_generator import PooledGenerator
from forwardsr.run import Run, read_weights


def load_generator(path: Path, weights: str = "best") -> DeconvGenerator | PatchGenerator:
    """The generator of a Run, or of a network file (``.safetensors``: a target, a snapshot, ``before.safetensors``).

    ``weights``: of a Run, its ``best`` (the last where it keeps no best) or its ``last``. Raises :class:`UserError` where
    ``path`` is neither, or has no weights yet.
    """
    if weights not in ("best", "last"):
        raise UserError(f"--weights {weights}: say best or last")
    if path.suffix == ".safetensors":
        return load_snapshot(path) if _is_deconv(path) else load_target(path)
    Run.read(path)
    best = weights == "best" and (path / "best.safetensors").exists()
    file = path / ("best.safetensors" if best else "model.safetensors")
    read_weights(file)  # says what to do where there are none yet
    return load_snapshot(file) if _is_deconv(file) else PatchGenerator.load(file)


def _is_deconv(file: Path) -> bool:
    try:
        with safe_open(file, "pt") as opened:
            return (opened.metadata() or {}).get("family") == "deconv"
    except (OSError, SafetensorError):
        return False


def load_target(path: Path) -> PatchGenerator:
    """A patch network, such as a planted target. Raises :class:`UserError` where ``path`` is none."""
    if not path.is_file():
        raise UserError(f"{path}: no such file; `forwardsr plant --out {path}` draws a target")
    return PatchGenerator.load(path)


def load_snapshot(path: Path) -> DeconvGenerator:
    """The generator in a weights file of an image learner's Run (of ``snapshots/``, or ``before.safetensors``), in evaluation
    mode. Raises :class:`UserError` where ``path`` is none.
    """
    tensors, metadata = read_weights(path)
    kind = PooledGenerator if metadata.get("coarse") == "pooled" else DeconvGenerator
    try:
        model = kind(
            _numbers(metadata["sides"]), width=int(metadata["width"]), latent=int(metadata["latent"]),
            channels=int(metadata["channels"]), innovations=int(metadata.get("innovations", 0)),
        )  # fmt: skip
        model.load_state_dict(tensors)
    except (KeyError, ValueError, RuntimeError):
        raise UserError(f"{path}: not a network of this package; train the run again") from None
    return model.eval()


def load_critic(run: Path) -> Critic:
    """The critic of an image learner's Run, as it was at the last report, in evaluation mode. Raises :class:`UserError`."""
    tensors, metadata = read_weights(run / "critic.safetensors")
    try:
        critic = Critic(
            _numbers(metadata["sides"]), width=int(metadata["width"]), channels=int(metadata["channels"]),
            heads=[bool(flag) for flag in _numbers(metadata["heads"])],
        )  # fmt: skip
        critic.load_state_dict(tensors)
    except (KeyError, ValueError, RuntimeError):
        raise UserError(f"{run / 'critic.safetensors'}: not a critic of this package; train the run again") from None
    return critic.eval()


def generator_metadata(model: DeconvGenerator) -> dict[str, str]:
    """What a weights file says of itself, so that :func:`load_snapshot` can rebuild the network."""
    return {
        "format": "forwardsr/1",
        "family": "deconv",
        "coarse": "pooled" if isinstance(model, PooledGenerator) else "own",
        "sides": ",".join(map(str, model.sides)),
        "width": str(model.width),
        "latent": str(model.latent),
        "channels": str(model.channels),
        "innovations": str(model.innovations),
    }


def critic_metadata(critic: Critic) -> dict[str, str]:
    """What ``critic.safetensors`` says of itself, so that :func:`load_critic` can rebuild it."""
    width, channels = next(critic.first.parameters()).shape[:2]
    return {
        "format": "forwardsr/1",
        "family": "critic",
        "sides": ",".join(map(str, critic.sides)),
        "width": str(width),
        "channels": str(channels),
        "heads": ",".join(str(int(level in critic.headed)) for level in range(len(critic.sides))),
    }


def start_sizes(run: Path) -> dict[str, Any]:
    """The ``latent`` and ``innovations`` of a generator that starts from the Run at ``run``, where that is of ``minmax`` on images;
    else nothing. Raises :class:`UserError` where there is no network.
    """
    other = load_generator(run)
    return dict(zip(("latent", "innovations"), latents(other))) if isinstance(other, InnovationGenerator) else {}


def copy_start(run: Path, generator: DeconvGenerator, precision: str = "float32") -> None:
    """Give ``generator`` the best weights of another Run's, of the same sizes, or what it can take from a ``minmax`` run of images
    (:mod:`forwardsr.learn.head_start`, in ``precision``). Raises :class:`UserError`.
    """
    other = load_generator(run)
    if isinstance(other, InnovationGenerator):
        console = Console(stderr=True, highlight=False, soft_wrap=True)
        distil(other, generator, precision=precision, note=console.print)
        return
    if not isinstance(other, DeconvGenerator) or isinstance(other, PooledGenerator):
        raise UserError(
            f"--init {run}: no run of images by minmax, joint, layerwise or backward-correction; give one of these"
        )
    for name in ("sides", "width", "latent", "channels", "innovations"):
        theirs, ours = getattr(other, name), getattr(generator, name)
        if theirs != ours:
            raise UserError(f"--init {run}: its {name} is {theirs}, here it is {ours}; make them equal")
    generator.load_state_dict(other.state_dict())


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]
