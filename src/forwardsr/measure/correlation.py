r"""Correlation: how often channels of one patch are active together (paper, Assumption 2.2 and Figure 3, middle and right).

For all pairs p < q and triples p < q < r of the channels at one position j, exactly,

.. math:: \Pr[[S_{l,j}]_p > 0, [S_{l,j}]_q > 0] \le \epsilon_1 = \mathrm{poly}(k_l) / m_l^2, \qquad
          \Pr[[S_{l,j}]_p, [S_{l,j}]_q, [S_{l,j}]_r > 0] \le \epsilon_2 = m_l^{-2.01}.

Both bounds are about sparsity as much as about correlation. The *lift*, a probability over what it were if the channels were
independent with the same single probabilities, is about correlation alone: 1 for independent channels, and "not too positively
correlated" means that it is seldom much above 1. See :mod:`sparsity` for positions, for what "active" means and for the errors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rich.table import Table
from torch import Tensor

from forwardsr.measure.draws import plus_minus
from forwardsr.measure.sparsity import SAMPLES, Z95, Kind, LevelActivity, activity, in_time, moments_in_time, quantiles
from forwardsr.model.protocol import LayeredGenerator

EXPECTED = 5.0  # a lift is taken where independence predicts at least so many joint activations among the samples


def lift(level: LevelActivity, kind: Kind) -> Tensor:
    """Probabilities over those of independent channels, float64, of all subsets with :data:`EXPECTED` or more expected; 1-D."""
    joint, independent = getattr(level, kind).flatten(), level.independent(kind).flatten()
    seen = independent * level.n >= EXPECTED
    return joint[seen] / independent[seen]


@dataclass(frozen=True)
class Correlation:
    """Joint activation of pairs and triples at every level, of the generator and, where known, at its initialisation."""

    trained: tuple[LevelActivity, ...]
    initial: tuple[LevelActivity, ...] | None = None

    def table(self) -> Table:
        """Two rows a level and moment: pairs and triples."""
        table = Table(
            title=f"Correlation: Pr(all active) over positions and all pairs and triples of channels ({self.trained[0].n:,} samples)",
            title_justify="left",
        )
        table.add_column("level")
        table.add_column("")
        for heading in ("mean, 95 % CI", "95 %", "largest", "asked: <=", "lift: median", "95 %"):
            table.add_column(heading, justify="right")
        for name, a in moments_in_time(self.trained, self.initial):
            for kind in ("pair", "triple"):
                found = a.summary(kind)
                if "quantiles" not in found:
                    continue
                q = _lifts(a, kind)
                table.add_row(
                    str(a.level), f"{kind}s, {name}", plus_minus(found["mean"], Z95 * found["standard_error"]),
                    f"{found['quantiles']['0.95']:.3g}", f"{found['max']:.3g}", f"{found['asked']:.2g}",
                    *([f"{q[2]:.2f}", f"{q[4]:.2f}"] if q else ["-", "-"]),
                    end_section=name == "trained" and kind == "triple",
                )  # fmt: skip
        table.caption = (
            "lift: over what independent channels of the same single probabilities would give (1: independent)."
        )
        return table

    def to_json(self) -> dict[str, Any]:
        """By moment and level: k, m, the summaries of ``pair`` and ``triple``, each with the quantiles of its lift."""
        found = in_time(self.trained, self.initial, ("pair", "triple"))
        for name, levels in (("trained", self.trained), ("initial", self.initial)):
            for values, level in zip(found.get(name, []), levels or ()):
                for kind in ("pair", "triple"):
                    values[kind]["lift_quantiles"] = _lifts(level, kind)
        return found


def _lifts(level: LevelActivity, kind: Kind) -> list[float]:
    found = lift(level, kind)
    return quantiles(found) if len(found) else []


def correlation(
    generator: LayeredGenerator, initial: LayeredGenerator | None = None, n: int = SAMPLES, seed: int = 0
) -> Correlation:
    """Measure joint activation on ``n`` samples, of ``initial`` (the network before training) as well where given."""
    return Correlation(activity(generator, n, seed), None if initial is None else activity(initial, n, seed))
