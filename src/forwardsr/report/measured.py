"""A picture of every measurement, in the layout of the paper's figure where it has one (Figures 2 to 6 and 8)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from forwardsr.errors import UserError
from forwardsr.measure.corrections import Corrections
from forwardsr.measure.correlation import Correlation
from forwardsr.measure.distance import Distance
from forwardsr.measure.features import Features
from forwardsr.measure.forward_super_resolution import ForwardSuperResolution
from forwardsr.measure.locality import Locality
from forwardsr.measure.moments import Moments
from forwardsr.measure.novelty import Novelty
from forwardsr.measure.sparsity import KINDS, Kind, LevelActivity, Sparsity
from forwardsr.report.charts import compact
from forwardsr.report.figures import grid

BEFORE, AFTER, THIRD, FAINT = "#9aa1a8", "#2f6fb5", "#d2691e", "#c9ced3"
ORDERS = ("#2f6fb5", "#3f9b6c", "#d2691e", "#8a4fae")
DPI = 130
TILES = 64  # filters shown of a set
BINS = [i / 50 for i in range(51)]
_STYLE: Any = {
    "font.size": 8.5,
    "axes.titlesize": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": BEFORE,
    "xtick.color": "#555b61",
    "ytick.color": "#555b61",
    "legend.frameon": False,
}
_SAID: dict[Kind, str] = {"single": "Pr[S_p > 0]", "pair": "Pr[S_p, S_q > 0]", "triple": "Pr[S_p, S_q, S_r > 0]"}


def _panels(rows: int, columns: int, width: float = 2.9, height: float = 2.1) -> tuple[Figure, list[list[Axes]]]:
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    return figure, [list(row) for row in figure.subplots(rows, columns, squeeze=False)]


def _histograms(
    trained: Sequence[LevelActivity], initial: Sequence[LevelActivity] | None, kinds: Sequence[Kind]
) -> Figure:
    """Figure 3: a row a level, a column a kind; initialisation in grey, after training in colour."""
    figure, axes = _panels(len(trained), len(kinds), 3.3, 1.75)
    for i, level in enumerate(trained):
        for axis, kind in zip(axes[i], kinds):
            sets = [(level, AFTER, "after training")]
            if initial is not None:
                sets.insert(0, (initial[i], BEFORE, "at initialisation"))
            for of, colour, label in sets:
                values = getattr(of, kind).flatten().numpy()
                axis.hist(values, bins=BINS, color=colour, alpha=0.75, label=label, density=True)
                axis.axvline(of.means[KINDS.index(kind)][0], color=colour, linewidth=1.2)
            axis.axvline(level.asked(kind), color=THIRD, linestyle=(0, (3, 2)), linewidth=1.2, label="asked: at most")
            axis.set_xlim(0, 1)
            axis.set_yticks([])
            axis.spines["left"].set_visible(False)
            if kind != "single":  # joint probabilities crowd at 0: see the tail as well
                axis.set_yscale("log")
                axis.minorticks_off()
            axis.set_title(f"level {level.level}: {_SAID[kind]}", loc="left")
    axes[0][0].legend(loc="upper right", fontsize=7)
    return figure


def sparsity(result: Sparsity) -> Figure:
    """Figure 3, left: the histogram of Pr[S_p > 0] over positions and channels."""
    return _histograms(result.trained, result.initial, ("single",))


def correlation(result: Correlation) -> Figure:
    """Figure 3, middle and right: the histograms over pairs and triples, on a logarithmic scale."""
    return _histograms(result.trained, result.initial, ("pair", "triple"))


def moments(result: Moments) -> Figure:
    """Figure 6: the squared difference of moments through training, a panel a level, a curve an order; floors dotted.

    Values at or below the floor's twentieth are drawn there: an unbiased estimate of nothing may be negative.
    """
    levels = result.levels()
    figure, axes = _panels(1, len(levels), 2.9, 2.5)
    floors = result.floor_to_initial or result.floor
    for axis, rows, floor in zip(axes[0], levels, floors):
        # Images seen on a logarithmic axis, with a place for 0 left of the first; orders side by side where there is one moment.
        seen = [float(row.images or 0) for row in rows]
        start = min([s for s in seen if s], default=1.0) / 3
        for order, colour in enumerate(ORDERS):
            values = np.array([(row.to_initial or row.relative)[order] for row in rows])
            errors = 1.96 * np.array([(row.to_initial_error or row.relative_error)[order] for row in rows])
            bottom = floor[order] / 20
            shown = np.maximum(values, bottom)
            below = shown - np.maximum(values - errors, bottom)
            x = [s or start for s in seen] if len(rows) > 1 else [order + 1]
            axis.errorbar(
                x, shown, yerr=[np.maximum(below, 0), errors], color=colour, marker="o", markersize=3, linewidth=1.4,
                elinewidth=0.8, label=f"order {order + 1}",
            )  # fmt: skip
            axis.axhline(floor[order], color=colour, linestyle=":", linewidth=0.9)
        axis.set_yscale("log")
        axis.set_title(f"level {rows[0].level}", loc="left")
        if len(rows) > 1:
            axis.set_xscale("log")
            middle = seen[1:] if len(seen) < 4 else [seen[1], seen[len(seen) // 2], seen[-1]]
            axis.set_xticks([seen[0] or start, *middle], [compact(s) for s in (seen[0], *middle)])
            axis.set_xlabel("images seen")
        else:
            axis.set_xticks(range(1, len(ORDERS) + 1))
            axis.set_xlabel("order")
        axis.minorticks_off()
    against = "initialisation" if result.floor_to_initial else "the data's moments"
    axes[0][0].set_ylabel(f"squared difference / {against}")
    axes[0][0].legend(fontsize=7)
    return figure


def _tiles(filters: Tensor, columns: int = 8) -> np.ndarray:
    """Filters as a sheet, each on a scale of its own on which 0 is mid-grey."""
    shown = filters[:: max(1, -(-len(filters) // TILES))][:TILES].float()
    scale = shown.abs().amax((1, 2, 3), keepdim=True).clamp(min=1e-12)
    channels = shown.shape[1]
    return grid((shown / scale) if channels in (1, 3) else (shown / scale)[:, :1], columns, gap=1)


def _picture(axis: Axes, pixels: np.ndarray, title: str) -> None:
    axis.imshow(pixels, interpolation="nearest")
    axis.set_title(title, loc="left", fontsize=8)
    axis.set_axis_off()


def features(result: Features) -> Figure:
    """Figures 2 and 5: the generator's features over the critic's filters, best Gabor first, and the Gabor r^2 of both."""
    levels = sorted({s.level for s in result.sets})
    owners = [owner for owner in ("generator", "critic") if any(s.owner == owner for s in result.sets)]
    figure, axes = _panels(len(owners) + 1, len(levels), 2.6, 2.6)
    for column, level in enumerate(levels):
        below = axes[-1][column]
        for row, owner in enumerate(owners):
            of = next((s for s in result.sets if (s.level, s.owner) == (level, owner)), None)
            if of is None:
                axes[row][column].set_axis_off()
                continue
            edges = float(of.edge.double().mean())
            _picture(axes[row][column], _tiles(of.filters), f"level {level}, {owner}: {edges:.0%} edges")
            below.hist(of.r2.numpy(), bins=BINS[::2], color=(AFTER, THIRD)[row], alpha=0.65, label=owner)
        below.axvline(result.random_r2[2], color="#555b61", linestyle=":", label="95 % of random filters")
        below.set_xlabel("Gabor r²")
        below.set_yticks([])
    axes[-1][0].legend(fontsize=7)
    return figure


def locality(result: Locality) -> Figure:
    """Figure 4 in numbers: how far a change reaches, and how well windows predict the next level's detail."""
    steps = sorted({p.level for p in result.predictions} | {r.level for r in result.responses})
    figure, axes = _panels(2, max(len(steps), 1), 2.9, 2.2)
    for column, level in enumerate(steps):
        above, below = axes[0][column], axes[1][column]
        for r in (r for r in result.responses if r.level == level):
            above.plot(range(len(r.profile)), r.profile, color=AFTER, linewidth=1.6)
            above.axvline(r.radius[1], color=AFTER, linestyle=":", linewidth=1)
            above.axvline(r.even[1], color=BEFORE, linestyle=":", linewidth=1)
            above.text(r.radius[1], 0.05, f" 90 % in {r.radius[1]:.1f} px", fontsize=7, color=AFTER)
            above.text(r.even[1], 0.2, f"if even: {r.even[1]:.0f} ", fontsize=7, color="#555b61", ha="right")
            above.set_xlim(0, max(r.even[1] * 1.15, r.radius[2]))
            above.set_xlabel(f"px of level {level + 1} ({r.side} px)")
        above.set_title(f"change of S_{level} seen in X_{level + 1}", loc="left")
        for of, colour in (("generated", AFTER), ("real", THIRD)):
            found = [p for p in result.predictions if (p.level, p.of) == (level, of)]
            local, whole = [p for p in found if p.radius is not None], [p for p in found if p.radius is None]
            below.errorbar(
                [p.pixels for p in local], [p.detail for p in local], yerr=[1.96 * p.detail_error for p in local],
                color=colour, marker="o", markersize=3, label=of,
            )  # fmt: skip
            for p in whole:
                below.axhline(p.detail, color=colour, linestyle=":", linewidth=1)
        below.set_title(f"R² of X_{level + 1}'s detail from a window of X_{level}", loc="left", fontsize=8)
        below.set_xlabel("window, px (dotted: the whole image)")
    if steps:
        axes[0][0].set_ylabel("share of the change")
        axes[1][0].legend(fontsize=7)
    return figure


def corrections(result: Corrections) -> Figure:
    """Figure 8: features before, after and their change, on one scale; below, sizes and angles by layer, and the gain."""
    columns = max(len(result.pictures), 3)
    rows = 2 if result.pictures else 1
    figure, axes = _panels(rows, columns, 3.2, 3.2)
    for column, axis in enumerate(axes[0] if result.pictures else []):
        if column >= len(result.pictures):
            axis.set_axis_off()
            continue
        before, after = result.pictures[column]
        change = result.correction[2 * column + 1].size if len(result.correction) > 2 * column + 1 else None
        order = (
            torch.arange(len(before))
            if change is None or len(change) != len(before)
            else change.argsort(descending=True)
        )
        shown = order[:8]
        triple = torch.stack([before[shown], after[shown], (after - before)[shown]], 1)
        # Before, after and change of one neuron share a scale, so a small change looks small.
        scale = triple.abs().amax((1, 2, 3, 4), keepdim=True).clamp(min=1e-12)
        tiles = (triple / scale).flatten(0, 1)
        _picture(axis, grid(tiles, 6, gap=1), f"W_{column + 1}: before, after, change (largest)")
    by_size, by_angle, gain, *others = axes[-1]
    names = [c.name for c in result.correction]
    for axis, quantity, label in ((by_size, "size", "relative size of change"), (by_angle, "angle", "angle, degrees")):
        for i, c in enumerate(result.correction):
            axis.boxplot(
                getattr(c, quantity).numpy(), positions=[i], widths=0.5, showfliers=False,
                medianprops={"color": AFTER}, boxprops={"color": AFTER},
            )  # fmt: skip
        if result.learning:
            medians = [float(getattr(c, quantity).median()) for c in result.learning]
            axis.plot(range(len(medians)), medians, "_", color=THIRD, markersize=12, label="initialisation to before")
            axis.legend(fontsize=7)
        axis.set_xticks(range(len(names)), names)
        axis.set_title(label, loc="left")
        axis.set_ylim(bottom=0)
    if result.before is not None and result.after is not None:
        x = np.arange(len(result.before.sides))
        gain.bar(x - 0.2, result.before.raw, 0.38, color=BEFORE, label="before")
        gain.bar(x + 0.2, result.after.raw, 0.38, color=AFTER, label="after")
        gain.plot(x, result.before.floor_raw, "_", color="#333", markersize=22, label="real vs real")
        gain.set_xticks(x, [f"{s} px" for s in result.before.sides])
        gain.set_title("distance from real data (raw)", loc="left")
        gain.legend(fontsize=7)
    else:
        gain.set_axis_off()
    for axis in others:
        axis.set_axis_off()
    return figure


def forward_super_resolution(result: ForwardSuperResolution) -> Figure:
    """The errors of both claims by level."""
    figure, axes = _panels(1, 2, 3.6, 2.5)
    linear, pooling = axes[0]
    levels = [s.level for s in result.steps]
    x = np.arange(len(levels))
    linear.bar(x - 0.2, [max(s.from_own, 1e-9) for s in result.steps], 0.38, color=AFTER, label="from S_l")
    linear.bar(x + 0.2, [s.from_below for s in result.steps], 0.38, color=BEFORE, label="from S_(l-1)")
    linear.set_yscale("log")
    linear.set_ylim(1e-8, 100)
    linear.set_yticks([1e-8, 1e-6, 1e-4, 1e-2, 1])
    linear.set_title("best linear map to X_l", loc="left")
    with_pool = [s for s in result.steps if s.pooled is not None]
    names = [f"{s.level} to {s.level - 1}" for s in with_pool]
    y = np.arange(len(with_pool))
    for offset, name, colour, label in (
        (-0.27, "pooled", AFTER, "generated"), (0.0, "shuffled", BEFORE, "shuffled pairs"), (0.27, "real", THIRD, "real data"),
    ):  # fmt: skip
        values = [getattr(s, name) for s in with_pool]
        if any(v is not None for v in values):
            pooling.bar(y + offset, [v or 0 for v in values], 0.26, color=colour, label=label)
    pooling.set_title("pooling X_l against X_(l-1)", loc="left")
    for axis, at, labels, title in ((linear, x, [str(l) for l in levels], "level"), (pooling, y, names, "levels")):
        axis.set_xticks(at, labels)
        axis.set_xlabel(title)
        if labels:
            axis.legend(fontsize=7, ncols=3, loc="upper left", columnspacing=0.8, handlelength=1.2)
    pooling.set_ylim(0, 1.8)
    linear.set_ylabel("relative error")
    return figure


def distance(result: Distance) -> Figure:
    """Distances of both forms by level over their floors."""
    figure, axes = _panels(1, 2, 3.2, 2.4)
    x = np.arange(len(result.sides))
    for axis, values, floor, title in (
        (axes[0][0], result.standardised, result.floor_standardised, "standardised"),
        (axes[0][1], result.raw, result.floor_raw, "raw"),
    ):  # fmt: skip
        axis.bar(x, values, 0.6, color=AFTER, label="generated vs real")
        axis.bar(x, floor, 0.6, color=FAINT, label="real vs real")
        axis.set_xticks(x, [f"{s} px" for s in result.sides])
        axis.set_title(f"distance x 1,000, {title}", loc="left")
    axes[0][0].legend(fontsize=7)
    return figure


def novelty(result: Novelty) -> Figure:
    """How far drawn images, and real ones, are from the nearest (other) training image."""
    figure, axes = _panels(1, 1, 4.2, 2.4)
    axis = axes[0][0]
    drawn, real = result.drawn.numpy(), result.real.numpy()
    edges = np.linspace(0, 1.05 * max(drawn.max(), real.max(), 1e-6), 40).tolist()
    axis.hist(real, edges, color=FAINT, label="real, to the others")
    axis.hist(drawn, edges, histtype="step", color=AFTER, linewidth=1.5, label="drawn")
    axis.set_title(f"nearest training image, r.m.s. of pixels at {result.side} px", loc="left")
    axis.legend(fontsize=7)
    return figure


FIGURES: dict[str, Callable[[Any], Figure]] = {
    "distance": distance,
    "sparsity": sparsity,
    "correlation": correlation,
    "moments": moments,
    "features": features,
    "locality": locality,
    "corrections": corrections,
    "forward-super-resolution": forward_super_resolution,
    "novelty": novelty,
}


def draw(name: str, result: object) -> Figure:
    """The figure of the measurement of that name (one of :data:`FIGURES`)."""
    with matplotlib.rc_context(_STYLE):
        return FIGURES[name](result)


def save_figures(results: Mapping[str, object], folder: Path) -> Iterator[Path]:
    """Write ``folder/NAME.png`` for every result that has a figure. Raises :class:`UserError` where it cannot be written."""
    for name, result in results.items():
        if name not in FIGURES:
            continue
        path = folder / f"{name}.png"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with matplotlib.rc_context(_STYLE):
                draw(name, result).savefig(path, dpi=DPI)
        except OSError as error:
            raise UserError(f"--figures {folder}: cannot be written ({error.strerror}); choose another") from None
        yield path
