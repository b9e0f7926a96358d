"""Figures 1, 2, 4 and 5: samples, features, and what a change of the hidden layer does to them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyBboxPatch, Rectangle
from torch import Tensor

from forwardsr.generators import load_critic
from forwardsr.measure.features import critic_filters, output_features
from forwardsr.measure.gabor import fit_gabors
from forwardsr.measure.locality import next_layer
from forwardsr.report.figures import grid
from forwardsr.report.story import read_story
from forwardsr.study.cell import Cell
from forwardsr.study.drawing import (
    AFTER,
    QUIET,
    SAMPLES,
    THIRD,
    generator_of,
    new_figure,
    picture,
    side_name,
    strip,
    tiles,
)


def _box(axis: Axes, x: float, text: str, colour: str) -> None:
    style = "round,pad=0.02,rounding_size=0.08"
    axis.add_patch(FancyBboxPatch((x - 0.21, 0.3), 0.42, 0.4, boxstyle=style, facecolor="white", edgecolor=colour))
    axis.text(x, 0.5, text, ha="center", va="center", fontsize=7.5)


def figure1(cell: Cell) -> Figure:
    """A row a level: the hidden layer, what it renders, and real pictures."""
    story = read_story(cell.run("joint").path)
    made, real = story.pictures("best"), story.pictures("real")
    model = generator_of(cell, "joint")
    levels = len(cell.sides)
    figure = new_figure(10.4, 0.35 + 1.0 * levels)
    axes = figure.subplots(levels, 3, squeeze=False, gridspec_kw={"width_ratios": [2.6, SAMPLES, SAMPLES / 2]})
    for l, (row, sheet, truth) in enumerate(zip(axes, made, real)):
        scheme, shown, beside = row
        scheme.set_axis_off()
        scheme.set(xlim=(0, 1), ylim=(0, 1))
        side = cell.sides[l] // 2
        _box(scheme, 0.33, f"$S_{l + 1}$\n{model.width} × {side} × {side}", AFTER)
        arrow: dict[str, Any] = {"arrowstyle": "-|>", "color": QUIET, "shrinkA": 0, "shrinkB": 0}
        scheme.annotate("", (0.33, 0.73), (0.33, 1.12), arrowprops=arrow, annotation_clip=False)
        below = f"$V_1$, from $z$ in $R^{{{model.latent}}}$" if l == 0 else f"$V_{l + 1}$, ReLU"
        scheme.text(0.37, 0.9, below, fontsize=7, color=QUIET)
        scheme.annotate("", (0.99, 0.5), (0.57, 0.5), arrowprops=arrow, annotation_clip=False)
        scheme.text(0.77, 0.56, f"$W_{l + 1}$", fontsize=8, color=QUIET, ha="center")
        picture(shown, strip(sheet, SAMPLES), "generated: a column, a latent" if l == 0 else "")
        picture(beside, strip(truth, SAMPLES // 2), "real" if l == 0 else "")
        beside.set_ylabel(f"{cell.sides[l]} px", rotation=0, labelpad=14, va="center")
    return figure


def _by_edge(filters: Tensor) -> Tensor:
    return filters[fit_gabors(filters).r2.argsort(descending=True)]


def _rows(found: dict[int, Tensor]) -> int:
    """Of a sheet of tiles, eight in a row."""
    return max(-(-min(len(filters), 64) // 8) for filters in found.values())


def figure2(cell: Cell) -> Figure:
    """A sheet a level: the columns of W_l as pictures, the most edge-like first."""
    found = output_features(generator_of(cell, "joint"))
    figure = new_figure(2.6 * len(found), 0.3 + 2.6 * _rows(found) / 8)
    for axis, (level, filters) in zip(np.ravel(figure.subplots(1, len(found))), found.items()):
        picture(axis, tiles(_by_edge(filters)), f"$W_{level}$, {side_name(cell, level)}")
    return figure


def figure5(cell: Cell) -> Figure:
    """The generator's features over the critic's filters, a column a level."""
    ours, theirs = output_features(generator_of(cell, "joint")), critic_filters(load_critic(cell.run("joint").path))
    figure = new_figure(2.6 * len(ours), 0.6 + 2.6 * (_rows(ours) + _rows(theirs)) / 8)
    axes = figure.subplots(2, len(ours), squeeze=False)
    for column, level in enumerate(ours):
        picture(axes[0][column], tiles(_by_edge(ours[level])), f"generator, {side_name(cell, level)}", AFTER)
        picture(axes[1][column], tiles(_by_edge(theirs[level])), f"critic, {side_name(cell, level)}", THIRD)
    return figure


@torch.no_grad()
def figure4(cell: Cell) -> Figure:
    """A column a step: the next level before and after one position of the hidden layer is exchanged, the change, windows."""
    model, found = generator_of(cell, "joint"), cell.measured("locality")
    hidden = model.hidden(torch.randn(2, model.latent_dim, generator=torch.Generator().manual_seed(1)))
    steps = len(hidden) - 1
    figure = new_figure(3.3 * steps, 3.7)
    axes = figure.subplots(2, steps, squeeze=False, gridspec_kw={"height_ratios": [1, 1.5]})
    share = found["shares"].index(0.9)
    for level in range(1, steps + 1):
        S = hidden[level - 1]
        at = S.shape[-1] // 2
        changed = S[:1].clone()
        changed[:, :, at, at] = S[1:, :, at, at]
        before, after = (
            model.render([*(h[:1] for h in hidden[: level - 1]), s, next_layer(model, level, s)])[level]
            for s in (S[:1], changed)
        )
        difference = (after - before) / (after - before).abs().amax().clamp(min=1e-12)
        above, below = axes[0][level - 1], axes[1][level - 1]
        picture(above, grid(torch.cat([before, after, difference]), 3, gap=1), f"step {level} to {level + 1}")
        side = before.shape[-1]
        radius = next(r["radius"][share] for r in found["responses"] if r["level"] == level)
        middle = (at + 0.5) * side / S.shape[-1] - 0.5
        for k in range(3):
            ring = Circle((middle + k * (side + 1), middle), radius, fill=False, color="white", linewidth=1.0)
            above.add_patch(ring)
            frame = Rectangle((k * (side + 1) - 0.5, -0.5), side, side, visible=False)
            above.add_patch(frame)
            ring.set_clip_path(frame)
        above.set_xlabel("before, after, change (circle: 90 % on average)", fontsize=7)
        _windows(below, [p for p in found["predictions"] if p["level"] == level])
    axes[1][0].set_ylabel("R² of the next level's patch")
    axes[1][0].legend()
    return figure


def _windows(axis: Axes, predictions: list[dict[str, Any]]) -> None:
    for of, colour in (("generated", AFTER), ("real", THIRD)):
        local = [p for p in predictions if p["of"] == of and p["radius"] is not None]
        whole = [p for p in predictions if p["of"] == of and p["radius"] is None]
        axis.plot([p["pixels"] for p in local], [p["r2"] for p in local], "o-", color=colour, markersize=3, label=of)
        for p in whole:
            axis.axhline(p["r2"], color=colour, linestyle=":", linewidth=1)
    axis.set_xlabel("window, px (dotted: whole picture)")
