"""The figures of ``theorem.py``, each drawn from the lines of its JSON alone."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from theorem_trial import Line, slope, straight

matplotlib.rcParams.update(
    {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 9.5}
)

COLOURS = {"W": "#0072b2", "V_l": "#56b4e9", "b_l": "#999999", "Gram": "#d55e00", "median": "#111111",
           "95th": "#777777", "norms": "#009e73", "biases": "#cc79a7"}  # fmt: skip
NAMES = {"W": "W, worst column", "V_l": "V_l, l > 1, worst", "Gram": "Gram of V_1, r.m.s.", "median": "Theorem 5.1, median",
         "95th": "Theorem 5.1, 95th percentile", "norms": "norms of V_1, r.m.s.", "biases": "biases of layer 1, r.m.s."}  # fmt: skip
FLOOR = 1e-8  # errors are drawn no lower: float32 has 1e-7


def _value(line: Line, name: str) -> float:
    """An error as a fraction, not in percent."""
    value: float = line[f"{name} %"] / 100 if name in ("median", "95th") else line[name]
    return max(value, FLOOR)


def _save(figure: Figure, path: Path) -> None:
    figure.savefig(path, dpi=100, metadata={"Software": None})


def _numbers(n: float) -> str:
    exponent = int(np.floor(np.log10(n) + 1e-9))
    digit = n / 10**exponent
    return f"$10^{exponent}$" if abs(digit - 1) < 0.01 else f"{digit:.2g}$\\cdot 10^{exponent}$"


def slopes(lines: list[Line], path: Path) -> None:
    """Left: errors against samples, with their slopes. Right: processor seconds against samples, with the straight line."""
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    x = [line["samples"] for line in lines]
    ends = np.array([min(x), max(x)])
    for name in ("95th", "median", "biases", "norms", "Gram"):
        y = [_value(line, name) for line in lines]
        k = slope(x, y)
        a = np.exp(np.mean(np.log(y)) - k * np.mean(np.log(x)))
        left.loglog(x, y, "o", color=COLOURS[name], ms=4)
        left.loglog(ends, a * ends**k, color=COLOURS[name], lw=1, label=f"{NAMES[name]}: slope {k:.2f}")
    left.set(xlabel="samples of level 1, N", ylabel="relative error", title="Errors fall as $N^{-1/2}$")
    left.legend(fontsize=7.5, frameon=False, loc="lower left")
    left.set_ylim(bottom=min(_value(line, "Gram") for line in lines) / 9)
    y = [line["cpu s"] for line in lines]
    a, b = straight(x, y)
    grid = np.geomspace(*ends, 100)
    right.loglog(x, y, "o", color=COLOURS["W"], ms=4)
    right.loglog(grid, a + b * grid, color=COLOURS["W"], lw=1, label=f"{a:.1f} s + {1e6 * b:.1f} s a million samples")
    right.set(xlabel="samples of level 1, N", ylabel="processor seconds", title="Time is linear in N", ylim=(1, None))
    right.legend(fontsize=8, frameon=False, loc="upper left")
    _save(figure, path)


def patches(lines: list[Line], path: Path) -> None:
    """Processor seconds against the number of patches, for deeper and for wider networks."""
    figure = Figure(figsize=(5.4, 3.6), layout="constrained")
    axes = figure.subplots()
    what = {"levels": "1 to 4 levels", "wide": "2 levels, the second wider"}
    for (series, name), colour, mark in zip(what.items(), (COLOURS["W"], COLOURS["Gram"]), "os"):
        own = [line for line in lines if line["series"] == series]
        x, y = [line["patches"] for line in own], [line["cpu s"] for line in own]
        a, b = straight(x, y)
        grid = np.linspace(0, max(x), 50)
        axes.plot(grid, a + b * grid, color=colour, lw=1)
        axes.plot(x, y, mark, color=colour, ms=5, label=f"{name}: {a:.1f} s + {1e3 * b:.0f} ms a patch")
    axes.set(xlabel="patches, all levels", ylabel="processor seconds", xlim=(0, None), ylim=(0, None))
    axes.set_title("Time is linear in the number of patches (N = 100,000, m = 24, d = 108)")
    axes.legend(fontsize=8, frameon=False)
    _save(figure, path)


def noise(lines: list[Line], path: Path) -> None:
    """Every error against the noise; no noise stands at the left end."""
    figure = Figure(figsize=(5.8, 3.8), layout="constrained")
    axes = figure.subplots()
    zero = min(line["noise"] for line in lines if line["noise"]) / 4
    x = [line["noise"] or zero for line in lines]
    for name in ("95th", "median", "V_l", "W", "biases", "norms", "Gram"):
        axes.loglog(
            x, [_value(line, name) for line in lines], "o-", color=COLOURS[name], ms=4, lw=1.2, label=NAMES[name]
        )
    axes.set_xticks(x, ["0" if v == zero else f"{v:g}" for v in x])
    axes.minorticks_off()
    axes.set(
        xlabel="noise, of the patch r.m.s.", ylabel="relative error", title="Noise: a curve, no collapse (N = $10^6$)"
    )
    axes.legend(fontsize=7.5, frameon=False, loc="lower right")
    _save(figure, path)


ASSUMPTIONS = {
    "density": "Sparsity\nPr[S > 0]",
    "positive-correlation": "Not-too-positive correlation\nof latent pairs in a patch",
    "orthonormality": "Orthonormal W\ncosine of column pairs",
    "non-degeneracy": "Non-degeneracy\nsize of channel 0",
    "anti-concentration": "Anti-concentration\nsize of a faint second parent",
    "identifiability": "Non-degeneracy on l = 1\ncorrelation of one pair",
}
LEARNERS = {
    ("closed-form", 0.0): "the paper's objectives\n(closed-form)",
    ("efficient", 0.0): "efficient",
    ("efficient", 0.03): "efficient,\nnoise 0.03",
}
VERDICT = {"holds": ("#009e73", "o"), "unresolved": ("#e69f00", "D"), "fails": ("#d62728", "X")}
CEILING = 1e2


def assumptions(lines: list[Line], path: Path) -> None:
    """A column an assumption, a row a learner; the audit's verdict under every size of the violation."""
    figure = Figure(figsize=(14.5, 7.2), layout="constrained")
    grid = figure.subplots(len(LEARNERS), len(ASSUMPTIONS), sharex="col", sharey=True)
    for column, (violate, title) in enumerate(ASSUMPTIONS.items()):
        for row, ((solver, noise), learner) in enumerate(LEARNERS.items()):
            own = [
                line for line in lines if (line["violate"], line["solver"], line["noise"]) == (violate, solver, noise)
            ]
            _panel(grid[row, column], own, last=row == len(LEARNERS) - 1)
            if column == 0:
                grid[row, column].set_ylabel(f"{learner}\nrelative error")
        grid[0, column].set_title(title)
    keys = [
        Line2D([], [], color=COLOURS[name], marker="o", ms=4, label=NAMES[name])
        for name in ("W", "V_l", "Gram", "median")
    ]
    keys += [Line2D([], [], ls="", color="#d62728", marker="$\\mathsf{R}$", ms=8, label="refused, in one line")]
    keys += [
        Line2D([], [], ls="", color=colour, marker=mark, ms=6, label=f"audit: {verdict}")
        for verdict, (colour, mark) in VERDICT.items()
    ]
    figure.legend(handles=keys, loc="outside lower center", ncols=8, frameon=False)
    _save(figure, path)


def _panel(axes: Axes, lines: list[Line], last: bool) -> None:
    at = np.arange(len(lines))
    learned = np.array(["refused" not in line for line in lines], dtype=bool)
    for name in ("W", "V_l", "Gram", "median"):
        y = [min(_value(line, name), CEILING) if ok else np.nan for line, ok in zip(lines, learned)]
        axes.semilogy(at, y, "o-", color=COLOURS[name], ms=3.5, lw=1.2)
    axes.plot(at[~learned], np.full((~learned).sum(), 10.0), ls="", color="#d62728", marker="$\\mathsf{R}$", ms=8)
    for x, line in zip(at, lines):
        colour, mark = VERDICT[line["audit"]]
        axes.plot(x, 0.03, mark, color=colour, ms=6, transform=axes.get_xaxis_transform(), clip_on=False)
    axes.set(ylim=(FLOOR / 6, 2 * CEILING), xlim=(-0.4, len(lines) - 0.6))
    axes.grid(axis="y", lw=0.4, alpha=0.5)
    if last:
        sign = -1 if lines[0]["violate"] == "identifiability" else 1
        axes.set_xticks(at, ["none" if line["amount"] is None else f"{sign * line['amount']:g}" for line in lines])


OUTSIDE = {
    "noise": "Noise\ns.d., of the patch r.m.s.",
    "foreign": "Foreign samples\nshare",
    "layer": "A further hidden layer\nits weight",
    "activation": "Activation ReLU$^{1+x}$\nx",
}


def outside(lines: list[Line], path: Path) -> None:
    """A column a violation; both solvers in one panel."""
    figure = Figure(figsize=(11.5, 3.6), layout="constrained")
    grid = figure.subplots(1, len(OUTSIDE), sharey=True)
    for axes, (violate, title) in zip(grid, OUTSIDE.items()):
        for solver, style in (("efficient", "o-"), ("closed-form", "s--")):
            own = [line for line in lines if (line["violate"], line["solver"]) == (violate, solver)]
            at = np.arange(len(own))
            learned = np.array(["refused" not in line for line in own], dtype=bool)
            for name in ("W", "median"):
                y = [min(_value(line, name), CEILING) if ok else np.nan for line, ok in zip(own, learned)]
                axes.semilogy(at, y, style, color=COLOURS[name], ms=3.5, lw=1.2, label=f"{NAMES[name]}, {solver}")
            axes.plot(
                at[~learned], np.full((~learned).sum(), 10.0), ls="", color="#d62728", marker="$\\mathsf{R}$", ms=8
            )
        axes.set_xticks(at, [f"{line['amount']:g}" for line in own])
        axes.set(title=title, ylim=(FLOOR, CEILING))
        axes.grid(axis="y", lw=0.4, alpha=0.5)
    at_1_over_d = np.interp(np.log(1 / 24), np.log([0.03, 0.1]), [2, 3])
    grid[0].axvline(at_1_over_d, color="#999999", lw=0.8, ls=":")
    grid[0].text(at_1_over_d, 3e-8, " 1/d", color="#777777", fontsize=8)
    grid[0].set_ylabel("relative error")
    handles, labels = grid[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    _save(figure, path)
