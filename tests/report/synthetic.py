"""A Run folder as a trainer leaves it, made of coloured noise that sharpens towards smooth pictures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from forwardsr.data.pyramid import pool
from forwardsr.report.figures import grid, save_png

SIDES = (8, 16, 32, 64)


def smooth_pictures(n: int, seed: int, side: int = 64) -> torch.Tensor:
    """``(n, 3, side, side)`` in [-1, 1]: a few plane waves a picture, in colour."""
    g = torch.Generator().manual_seed(seed)
    axis = torch.linspace(0, 1, side)
    waves = torch.randn(n, 3, 4, 3, generator=g) * torch.tensor([6.0, 6.0, 3.0])
    phase = waves[..., 0, None, None] * axis[:, None] + waves[..., 1, None, None] * axis + waves[..., 2, None, None]
    return torch.sin(phase).mean(2).mul(1.5).clamp(-1, 1)


def save_sheet(folder: Path, stem: str, pictures: torch.Tensor, sides: Sequence[int], columns: int = 16) -> None:
    for level in pool(pictures, sides):
        save_png(grid(level, columns), folder / "samples" / f"{stem}-{level.shape[-1]:03d}.png")


def make_run(
    folder: Path,
    *,
    reports: int = 3,
    sides: Sequence[int] = SIDES,
    seed: int = 0,
    source: str = "faces.zip",
    method: str = "joint",
    pictures: torch.Tensor | None = None,
    train_lines: int = 30,
    sheets: bool = True,
    final: bool = False,
    message: str = "diversity at 32 px fell to 40 % of that of real pictures",
) -> Path:
    """Write the folder and return it. ``pictures`` (64 of them) are what training converges to, then the real ones."""
    folder.mkdir(parents=True)
    real = smooth_pictures(64, seed, sides[-1]) if pictures is None else pictures
    config = {
        "schema": 1,
        "method": method,
        "source": source,
        "command": f"forwardsr learn {source} --method {method} --resolution {sides[-1]} --out {folder.name}",
        "resolution": sides[-1],
        "width": 64,
        "seed": seed,
        "budget": {"seconds": 2400, "steps": None},
    }
    (folder / "config.json").write_text(json.dumps(config))
    rng = np.random.default_rng(seed)
    lines: list[dict[str, Any]] = [{"kind": "note", "message": "9,000 pictures, 1 unreadable one skipped"}]
    noise = torch.randn(real[:32].shape, generator=torch.Generator().manual_seed(seed))
    floor = [1.1 * (i + 1) for i in range(len(sides))]
    for step in range(1, train_lines + 1):
        progress = step / train_lines
        at = {"step": 100 * step, "images": 6400 * step, "seconds": 55.0 * step}
        lines.append(
            {
                "kind": "train",
                **at,
                "images_per_second": 118 + 6 * rng.standard_normal(),
                "loss_g": 1.2 - 0.3 * progress + 0.1 * rng.standard_normal(),
                "loss_d": 0.9 + 0.2 * progress + 0.1 * rng.standard_normal(),
                "r1": 0.05 + 0.01 * rng.standard_normal(),
            }
        )
        if reports and step % max(1, train_lines // reports) == 0:
            error = np.exp(-3 * progress)
            lines.append(
                {
                    "kind": "distance",
                    **at,
                    "sides": list(sides),
                    "standardised": [f * (1.3 + 12 * error) for f in floor],
                    "raw": [f * (1.6 + 20 * error) for f in floor],
                    "floor_standardised": floor,
                    "floor_raw": [1.1 * f for f in floor],
                    "diversity": [0.22 - 0.18 * error for _ in sides],
                    "real_diversity": [0.2 for _ in sides],
                    "n": 2048,
                    "score": 2.7 * error + 0.5,
                    "best": True,
                }
            )
            if sheets:
                mixed = (real[:32] * (1 - error) + noise * error).clamp(-1, 1)
                save_sheet(folder, f"{100 * step:08d}", mixed, sides)
    lines.append({"kind": "alarm", "step": 100 * train_lines, "message": message})
    lines.append({"kind": "end", "step": 100 * train_lines, "reason": "budget"})
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if sheets:
        save_sheet(folder, "best", real[:32], sides)
        save_sheet(folder, "real", real[32:64], sides)
        weights = torch.linspace(0, 1, 16).reshape(1, 16, 1, 1, 1)
        steps = (real[:4, None] * (1 - weights) + real[4:8, None] * weights).flatten(0, 1)
        save_sheet(folder, "walk", steps, sides, columns=16)
    if final:
        again = next(line for line in reversed(lines) if line["kind"] == "distance") | {"n": 8192}
        (folder / "distance.json").write_text(
            json.dumps({k: v for k, v in again.items() if k not in {"kind", "step", "best"}})
        )
    return folder
