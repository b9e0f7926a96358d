"""Curves as inline SVG, drawn by matplotlib and coloured by the page.

Every colour is drawn as a stand-in and replaced by a CSS variable, so one drawing is readable on light and dark pages.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

INK, FAINT, FLOOR = "#0a0b01", "#0a0b02", "#0a0b03"
_BINS = 160  # points drawn of a curve; more cannot be seen at this size
_STYLE: Any = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9.0,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.major.size": 3.0,
    "ytick.major.size": 3.0,
    "path.simplify": True,
}


@dataclass(frozen=True)
class Curve:
    """One line: ``colour`` counts the page's palette from 0. ``binned`` draws the mean and the range of many points."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    colour: int = 0
    binned: bool = False
    dashed: bool = False
    marked: float | None = None  # the x of a point to put a ring around


def _stand_in(colour: int) -> str:
    return f"#0a0c{colour % 8:02x}"


def compact(value: float, _position: object = None) -> str:
    """1200 as ``1.2k``, 0.0031 as ``0.0031``: a number for a tick or a fact."""
    for size, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{suffix}"
    return f"{value:.3g}"


def chart(
    title: str,
    curves: Sequence[Curve],
    *,
    x_label: str = "images seen",
    floors: Sequence[tuple[Sequence[float], Sequence[float]]] = (),
    log: bool = False,
    run: int | str | None = None,
    key: str = "",
) -> Markup:
    """One panel. ``floors`` are noise floors ``(x, y)``, drawn as bands; ``run`` names the slider that marks its
    moment here; ``key`` and ``title`` together must differ between the charts of a page (they keep inner references apart).
    """
    curves = [curve for curve in curves if len(curve.x)]
    if not curves:
        return Markup("")
    log = log and all(min(curve.y) > 0 for curve in curves)
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": f"{key}/{title}"}):
        figure = Figure(figsize=(4.0, 2.5))
        axes = figure.add_axes((0.135, 0.175, 0.845, 0.775))
        for curve in curves:
            _draw(axes, curve)
        _finish(axes, curves, floors, log, x_label)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
        low, high = axes.get_xlim()
        box = axes.get_position()
    return _for_page(buffer.getvalue(), title, run, (box.x0, box.x1, 1 - box.y1, 1 - box.y0), (low, high))


def _draw(axes: Axes, curve: Curve) -> None:
    x, y, colour = np.asarray(curve.x, dtype=float), np.asarray(curve.y, dtype=float), _stand_in(curve.colour)
    if curve.binned and len(x) > _BINS:
        parts = np.array_split(np.arange(len(x)), _BINS)
        low, high = ([float(f(y[p])) for p in parts] for f in (np.min, np.max))
        x, y = (np.array([v[p].mean() for p in parts]) for v in (x, y))
        axes.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0)
    few = len(x) <= 60 and not curve.binned
    axes.plot(
        x,
        y,
        color=colour,
        linewidth=1.6,
        linestyle=(0, (4, 2.5)) if curve.dashed else "-",
        marker="o" if len(x) == 1 or (few and not curve.dashed) else None,
        markersize=2.6,
        label=curve.label,
    )
    if curve.marked is not None and curve.marked in curve.x:
        at = list(curve.x).index(curve.marked)
        axes.plot(curve.x[at], curve.y[at], "o", markersize=8, markerfacecolor="none", markeredgecolor=INK)


def _finish(
    axes: Axes,
    curves: Sequence[Curve],
    floors: Sequence[tuple[Sequence[float], Sequence[float]]],
    log: bool,
    x_label: str,
) -> None:
    if log:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(base=10, subs=(1, 2, 5), numticks=8))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.minorticks_off()
    else:
        axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_formatter(FuncFormatter(compact))
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(FuncFormatter(compact))
    axes.set_xlabel(x_label)
    axes.grid(axis="y", color=FAINT, alpha=0.35, linewidth=0.6)
    handles = axes.get_legend_handles_labels()[0] if len(curves) > 1 else []
    if floors:
        bottom = min(min(ys) for ys in [*(y for _, y in floors), *(curve.y for curve in curves)])
        low = bottom * 0.8 if log else min(0.0, bottom)
        left, right = axes.get_xlim()
        for x, y in floors:
            axes.fill_between([left, *x, right], low, [y[0], *y, y[-1]], color=FLOOR, alpha=0.35, linewidth=0, zorder=0)
        axes.set_xlim(left, right)
        axes.set_ylim(bottom=low)
        handles += axes.plot([], [], color=FLOOR, alpha=0.6, linewidth=6, label="noise floor")
    if handles:
        axes.legend(handles=handles, frameon=False, loc="best", handlelength=1.4, borderpad=0.1, labelspacing=0.3)


def _for_page(
    svg: str, title: str, run: int | str | None, box: tuple[float, float, float, float], limits: tuple[float, float]
) -> Markup:
    """Strip what only a file needs, hand colours and fonts to the page, and add the slider's line."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<!--.*?-->\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", svg)
    svg = re.sub(r"font-family: [^;\"]*;? *", "", svg)
    svg = re.sub(r"#0a0c0(\d)", r"var(--c\1)", svg)
    for stand_in, name in ((INK, "ink"), (FAINT, "faint"), (FLOOR, "floor")):
        svg = svg.replace(stand_in, f"var(--{name})")
    size = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg)
    assert size is not None
    width, height = float(size[1]), float(size[2])
    left, right, top, bottom = box[0] * width, box[1] * width, box[2] * height, box[3] * height
    head = f'<svg class="chart" viewBox="0 0 {size[1]} {size[2]}" role="img" aria-label="{html.escape(title)}"'
    if run is not None:
        head += f' data-run="{html.escape(str(run))}" data-left="{left:.1f}" data-right="{right:.1f}"'
        head += f' data-min="{limits[0]:.6g}" data-max="{limits[1]:.6g}"'
        line = f'<line class="moment" x1="0" x2="0" y1="{top:.1f}" y2="{bottom:.1f}"/>'
        svg = svg.replace("</svg>", line + "</svg>")
    svg = re.sub(r"<svg[^>]*>", lambda _: head + ">", svg, count=1)
    return Markup(re.sub(r"\n\s*", "\n", svg))
