"""Figures 3, 6, 7 and 8: histograms, moments through training, learners side by side, corrections."""

from __future__ import annotations

import numpy as np
import torch
from matplotlib.figure import Figure

from forwardsr.generators import load_snapshot
from forwardsr.measure.features import output_features
from forwardsr.report.charts import compact
from forwardsr.report.figures import grid
from forwardsr.report.story import read_story
from forwardsr.study.cell import Cell, Unmeasured
from forwardsr.study.drawing import (
    AFTER,
    BEFORE,
    COLOURS,
    INK,
    QUIET,
    SAMPLES,
    bars,
    generator_of,
    new_figure,
    picture,
    side_name,
    strip,
)
from forwardsr.study.effects import over_floor

NEURONS = 8  # of a layer, in Figure 8

KINDS = (("single", "Pr[$S_p$ > 0]"), ("pair", "Pr[$S_p, S_q$ > 0]"), ("triple", "Pr[$S_p, S_q, S_r$ > 0]"))


def figure3(cell: Cell) -> Figure:
    """A row a level: histograms over channels, pairs and triples, before and after training."""
    found = [cell.measured("sparsity"), cell.measured("correlation"), cell.measured("correlation")]
    levels = len(found[0]["trained"])
    figure = new_figure(10.2, 1.45 * levels + 0.4)
    axes = figure.subplots(levels, 3, squeeze=False)
    for (kind, name), values, column in zip(KINDS, found, range(3)):
        for l in range(levels):
            axis = axes[l][column]
            for when, colour, label in (("initial", BEFORE, "at initialisation"), ("trained", AFTER, "after training")):
                if when in values:
                    of = values[when][l][kind]
                    counts = np.array(of["histogram"]["counts"], dtype=float)
                    width = of["histogram"]["top"] / len(counts)
                    edges = np.arange(len(counts) + 1) * width
                    filled = kind == "single" or when == "initial"  # a filled area means nothing on a logarithmic scale
                    axis.stairs(
                        counts / counts.sum() / width, edges, color=colour, fill=filled, alpha=0.7 if filled else 1,
                        linewidth=1.3, label=label,
                    )  # fmt: skip
                    axis.axvline(of["mean"], color=colour, linewidth=1.2)
            axis.set_xlim(0, 1 if kind == "single" else 0.6 if kind == "pair" else 0.4)
            if kind != "single":  # most are near 0: see the others as well
                axis.set_yscale("log")
                axis.minorticks_off()
            axis.set_yticks([])
            axis.spines["left"].set_visible(False)
            if l == 0:
                axis.set_title(name)
    for l in range(levels):
        axes[l][0].set_ylabel(side_name(cell, l + 1), color=INK)
    axes[0][2].legend(loc="upper right")
    return figure


def figure6(cell: Cell) -> Figure:
    """A panel a level: the squared difference of moments over that at initialisation, a curve an order."""
    found = cell.measured("moments")
    levels = sorted({row["level"] for row in found["rows"]})
    figure = new_figure(2.75 * len(levels), 2.7)
    for axis, level in zip(np.ravel(figure.subplots(1, len(levels), sharey=True)), levels):
        rows = [row for row in found["rows"] if row["level"] == level]
        if any(row["to_initial"] is None for row in rows):
            raise Unmeasured("the run keeps no initialisation")
        seen = [row["images"] for row in rows]
        first = min(s for s in seen if s) if any(seen) else 1
        x = [s or first / 3 for s in seen]
        for order, colour in enumerate(COLOURS):
            floor = abs(found["floor_to_initial"][level - 1][order])
            y = [max(row["to_initial"][order], 1e-4) for row in rows]
            axis.plot(x, y, "o-", color=colour, markersize=3, linewidth=1.4, label=f"order {order + 1}")
            axis.axhline(max(floor, 1e-4), color=colour, linestyle=":", linewidth=0.9)
        axis.axhline(0.1, color=QUIET, linewidth=0.6)
        axis.set(xscale="log", yscale="log", title=side_name(cell, level), xlabel="images seen")
        axis.minorticks_off()
        marks = sorted({1, len(seen) // 2, len(seen) - 1} & set(range(1, len(seen))))
        axis.set_xticks([x[0], *(x[k] for k in marks)], ["0", *(compact(float(seen[k])) for k in marks)])
    figure.axes[0].set_ylabel("squared difference / initial")
    figure.axes[0].legend()
    return figure


def figure7(cell: Cell) -> Figure:
    """Layer by layer at every level, over the last layer only and all levels at once; distances beside."""
    methods = ("layerwise", "last-layer", "joint")
    sheets = {method: read_story(cell.run(method).path).pictures("best") for method in methods}
    levels = len(cell.sides)
    rows = [("layerwise", l) for l in range(levels)] + [("last-layer", levels - 1), ("joint", levels - 1)]
    figure = new_figure(10.4, 0.95 * len(rows) + 0.3)
    outer = figure.add_gridspec(1, 2, width_ratios=[SAMPLES, 4])
    left = outer[0].subgridspec(len(rows), 1)
    for k, (method, l) in enumerate(rows):
        axis = figure.add_subplot(left[k])
        name = {"layerwise": "layer by layer", "last-layer": "last layer over random ones", "joint": "all at once"}[
            method
        ]
        picture(axis, strip(sheets[method][l], SAMPLES), name if l == levels - 1 or k == 0 else "")
        axis.set_ylabel(f"{cell.sides[l]} px", rotation=0, labelpad=14, va="center")
    right = outer[1].subgridspec(2, 1)
    names = [f"{side}" for side in cell.sides]
    axis = figure.add_subplot(right[0])
    shown = [(m, [over_floor(cell.distance(m), l) for l in range(levels)], c) for m, c in zip(methods, COLOURS)]
    bars(axis, names, shown, floor=1.0)
    axis.set(title="distance / noise floor", xlabel="px", yscale="log")
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.yaxis.set_minor_formatter("")
    axis.set_ylim(top=axis.get_ylim()[1] * 3)
    axis.legend(loc="upper center", ncols=3, columnspacing=1, handlelength=1)
    losses = figure.add_subplot(right[1])
    for method, colour in zip(methods, COLOURS):
        lines = [line for line in cell.run(method).lines("train") if "loss_d" in line]
        end = max([line["step"] for line in lines], default=1)
        losses.plot(
            [line["step"] / end for line in lines], [line["loss_d"] for line in lines], color=colour, linewidth=1.1
        )
    losses.axhline(np.log(2), color=INK, linestyle=":", linewidth=1)
    losses.set(title="critic's loss (dotted: cannot tell)", xlabel="share of the training", ylim=(0, None))
    return figure


@torch.no_grad()
def figure8(cell: Cell) -> Figure:
    """Features before and after, their change; samples before and after; sizes and angles; distances."""
    found, run = cell.measured("corrections"), cell.run("backward-correction")
    before, after = load_snapshot(run.path / "before.safetensors"), generator_of(cell, "backward-correction")
    old, new = output_features(before), output_features(after)
    levels = len(cell.sides)
    wide = 10.4 / levels * 3 / NEURONS
    figure = new_figure(10.4, wide + 1.7 + 2.5)
    rows = figure.add_gridspec(3, 1, height_ratios=[wide + 0.2, 1.7, 2.3])
    top, middle, bottom = rows[0], rows[1], rows[2]
    row = top.subgridspec(1, levels)
    for level in old:
        change = new[level] - old[level]
        chosen = (change.flatten(1).norm(dim=1) / old[level].flatten(1).norm(dim=1)).argsort(descending=True)[:NEURONS]
        triple = torch.stack([old[level][chosen], new[level][chosen], change[chosen]])
        triple = triple / triple.abs().amax((0, 2, 3, 4), keepdim=True).clamp(min=1e-12)
        axis = figure.add_subplot(row[level - 1])
        picture(axis, grid(triple.flatten(0, 1), NEURONS, gap=1), f"$W_{level}$: before, after, change")
    z = torch.randn(SAMPLES, after.latent_dim, generator=torch.Generator().manual_seed(3))
    pair = middle.subgridspec(2, 2)
    for column, level in enumerate((levels - 2, levels - 1) if levels > 1 else (0,)):
        for k, (name, model) in enumerate((("before", before), ("after", after))):
            axis = figure.add_subplot(pair[k, column])
            images = model.eval().render(model.hidden(z))[level]
            picture(axis, grid(images, SAMPLES, gap=max(1, images.shape[-1] // 8)), f"{name}, {cell.sides[level]} px")
    parts = bottom.subgridspec(1, 3)
    size, angle, gain = (figure.add_subplot(parts[0, k]) for k in range(3))
    layers = [c["layer"] for c in found["correction"]]
    for axis, quantity, title in ((size, "size", "relative size of the change"), (angle, "angle", "angle, degrees")):
        groups = [("correction", [c[quantity] for c in found["correction"]], AFTER)]
        if found["learning"] is not None:
            groups.insert(0, ("learning before it", [c[quantity] for c in found["learning"]], BEFORE))
        bars(axis, layers, groups)
        axis.set_title(title)
    if max((c["size"] for c in found["learning"] or []), default=0) > 3:
        size.set_yscale("log")
    else:
        size.set_ylim(top=size.get_ylim()[1] * 1.25)
    size.legend(ncols=2, columnspacing=1)
    if found["before"] is not None:
        names = [f"{side} px" for side in cell.sides]
        bars(gain, names, [(w, found[w]["raw"], c) for w, c in (("before", BEFORE), ("after", AFTER))])
        gain.plot(range(levels), found["before"]["floor_raw"], "_", color=INK, markersize=20, label="real vs real")
        gain.set_title("distance from real pictures, raw")
        gain.set_ylim(top=gain.get_ylim()[1] * 1.35)
        gain.legend(ncols=3, columnspacing=1, handlelength=1)
    return figure
