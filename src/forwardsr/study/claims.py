"""What the paper says of Figures 1 to 8 (and Theorem 5.1), each as a rule that a study can hold or break.

A claim measures *effects*: numbers with a name, such as one a level, in every cell (a seed, or the pictures' run). It **holds in a
cell** where every effect keeps to the rule's bound, and is reported as *held* where it holds in all cells, *failed* where in none,
*mixed* otherwise. A bound that the paper does not give is a convention, the same for every data set and stated on the page. A claim
without a bound is a question that the paper leaves open: its numbers are reported, and no verdict.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from forwardsr.study.cell import Cell, Unmeasured
from forwardsr.study.effects import (
    FALLEN,
    Effects,
    before_after,
    changes,
    coherence,
    critic_loss,
    gains,
    lifts,
    moments_fall,
    moments_left,
    over_asked,
    over_floors,
    overlap,
    painted,
    pooling,
    radii,
    silent,
    times_as_far,
    windows,
)


@dataclass(frozen=True)
class Claim:
    """``says``: in one sentence. ``quote`` and ``where``: the paper's own words. ``effect``: what the numbers are.

    ``at_most``, ``at_least``: the bound; a question where both are ``None``. ``rule``: the bound in words.
    """

    figure: str
    says: str
    quote: str
    where: str
    effect: str
    rule: str
    measure: Callable[[Cell], Effects]
    at_most: float | None = None
    at_least: float | None = None

    @property
    def open(self) -> bool:
        """Whether this is a question without a verdict."""
        return self.at_most is None and self.at_least is None

    def keeps(self, value: float) -> bool:
        """Whether one effect keeps to the bound. NaN does not."""
        return (self.at_most is None or value <= self.at_most) and (self.at_least is None or value >= self.at_least)


@dataclass(frozen=True)
class Outcome:
    """A claim in every cell where it could be measured: effects by the cell's name; ``missing``: why not, likewise."""

    claim: Claim
    effects: dict[str, Effects]
    missing: dict[str, str] = field(default_factory=dict)

    def holds(self, cell: str) -> bool:
        """Whether every effect of that cell keeps to the bound."""
        return bool(self.effects[cell]) and all(self.claim.keeps(value) for value in self.effects[cell].values())

    @property
    def verdict(self) -> str:
        """held, failed, mixed, open (a question) or unmeasured."""
        if not self.effects:
            return "unmeasured"
        if self.claim.open:
            return "open"
        held = [self.holds(cell) for cell in self.effects]
        return "held" if all(held) else "mixed" if any(held) else "failed"

    def labels(self) -> list[str]:
        """The names of all effects."""
        return list(dict.fromkeys(label for effects in self.effects.values() for label in effects))

    def values(self, label: str, cells: Sequence[str]) -> list[float]:
        """One effect in these cells, where measured."""
        return [self.effects[cell][label] for cell in cells if label in self.effects.get(cell, {})]

    def to_json(self) -> dict[str, Any]:
        """Everything, numbers that are not finite as null."""
        claim = self.claim
        return {
            "figure": claim.figure, "claim": claim.says, "where": claim.where, "effect": claim.effect, "rule": claim.rule,
            "at_most": claim.at_most, "at_least": claim.at_least, "verdict": self.verdict,
            "held": None if claim.open or not self.effects else self.verdict == "held",
            "held_in": [] if claim.open else [cell for cell in self.effects if self.holds(cell)],
            "effects": {
                cell: {label: value if math.isfinite(value) else None for label, value in effects.items()}
                for cell, effects in self.effects.items()
            },
            "missing": self.missing,
        }  # fmt: skip


def examine(claim: Claim, cells: Sequence[Cell]) -> Outcome:
    """Measure a claim in every cell."""
    effects, missing = {}, {}
    for cell in cells:
        try:
            effects[cell.plan.name] = claim.measure(cell)
        except Unmeasured as reason:
            missing[cell.plan.name] = str(reason)
    return Outcome(claim, effects, missing)


CLAIMS = (
    Claim(
        "figure1", "Hidden layer l renders the pictures of resolution l, at every resolution.",
        "the distribution of images at resolution level ℓ is given by W_ℓ G_ℓ", "§1.1, Figure 1",
        "distance from real pictures, over the noise floor of real against real",
        "at every level at most 5 times the floor (raw and standardised distance, geometric mean)", over_floors, at_most=5.0,
    ),
    Claim(
        "figure1", "Coarser pictures are finer ones averaged down, though nothing in the training asks for it.",
        "Still, the generator learns to generate each X_ℓ using forward super-resolution.", "§3, remark",
        "error of the pooled finer picture, over that of pairs that do not belong together",
        "at every step at most half", pooling, at_most=0.5,
    ),
    Claim(
        "figure2", "The output layers paint with edges and colours.",
        "after training, the output layer of the generator network forms edge-color features", "§2.1, Figure 2",
        "share of features that are an edge (Gabor r² above 95 % of random filters) or a plain colour",
        "at every level at least half; of random filters about a twentieth", lambda c: painted(c, "generator"), at_least=0.5,
    ),
    Claim(
        "figure2", "The features are nearly orthogonal.",
        "such edge-color features are indeed a (nearly orthogonal) basis for images", "§2.1",
        "mean |cosine| between two features, over that of random ones",
        "at every level at most twice", coherence, at_most=2.0,
    ),
    Claim(
        "figure3", "Activations become sparser in training.",
        "The generator network does learn sparse, not-too-positively correlated hidden activations.", "Figure 3",
        "mean Pr[S_p > 0] after training, over that at initialisation",
        "at every level below 1", before_after("sparsity", ("single",)), at_most=1.0,
    ),
    Claim(
        "figure3", "Pairs and triples of channels are active together less often than before training.",
        "we did not regularize the sparsity or correlation during the training, it is rather an intrinsic property",
        "Figure 3", "mean joint probability after training, over that at initialisation",
        "at every level below 1", before_after("correlation", ("pair", "triple")), at_most=1.0,
    ),
    Claim(
        "figure3", "Channels of one patch are not positively correlated.",
        "the channels are pair-wise and three-wise “not-too-positively correlated”", "Assumption 2.2",
        "joint probability over that of independent channels, the median over pairs and triples",
        "at every level at most 1.1", lifts, at_most=1.1,
    ),
    Claim(
        "figure3", "Joint activations keep to the bounds of Assumption 2.2.",
        "we demonstrate that our assumptions are satisfied for the generator used in Figure 1", "§2.1",
        "mean joint probability, over what the assumption asks for (2 k / m² for pairs, m^-2.01 for triples)",
        "at every level at most 1, with constants as in `measure --what assumptions`", over_asked, at_most=1.0,
    ),
    Claim(
        "figure3", "No channel dies.",
        "All the neurons are still active after training, meaning Pr[S_p > 0] > 0", "Figure 3",
        "share of channels (at one position each) that fire in none of the samples", "at every level at most a hundredth",
        silent, at_most=0.01,
    ),
    Claim(
        "figure4", "A change of one hidden position stays local in the next resolution.",
        "Forward super-resolution is a local operation", "Figure 4",
        "radius that holds 90 % of the change, over that of a change spread evenly",
        "at every step at most half", radii, at_most=0.5,
    ),
    Claim(
        "figure4", "A patch is predicted from the window below it as well as from the whole coarser picture.",
        "the learning process can be separated to learning over individual patches", "§3",
        "held-out R² of the best window, minus that of the whole picture (linear predictions)",
        "at every step at least -0.01, in generated and in real pictures", windows, at_least=-0.01,
    ),
    Claim(
        "figure5", "The critic's first layer detects edges and colours.",
        "The first hidden layer in the discriminator is indeed learning edge color detectors", "Figure 5",
        "share of filters that are an edge or a plain colour, as above",
        "at every level at least half; of random filters about a twentieth", lambda c: painted(c, "critic"), at_least=0.5,
    ),
    Claim(
        "figure5", "The critic's filters are like the generator's features.",
        "Thus, setting W^D = W is a reasonable approximation", "§4.1",
        "mean best |cosine| of a feature with a filter, over that with random mixtures of the same filters",
        "at every level at least 1.1", overlap, at_least=1.1,
    ),
    Claim(
        "figure6", "Training matches the moments of patches, orders 1 to 4.",
        "part of GANs training is indeed to match moments", "§4.1, Figure 6",
        "squared difference of moments at the end, over that at initialisation",
        "for every order and level at most a tenth", moments_left, at_most=FALLEN,
    ),
    Claim(
        "figure6", "It does so early.",
        "GANs are indeed doing moment matching within each patch during the earlier stage of training", "§4.1",
        "share of the training after which the difference stays below a tenth",
        "for every order and level at most half", moments_fall, at_most=0.5,
    ),
    Claim(
        "figure7", "Learning layer by layer beats learning the last layer over random ones.",
        "layer-wise forward super-resolution can indeed learn features from lower resolution images that are much better than "
        "random features", "Figure 7",
        "distance of last-layer from real pictures, over that of layer-wise, at equal compute",
        "above 1 in both forms at the finest level, and over all levels", times_as_far("last-layer", "layerwise"), at_least=1.0,
    ),
    Claim(
        "figure7", "Over random layers the critic wins and learning ends.",
        "the discriminator loss quickly goes to zero and the generator no longer learns", "Figure 7",
        "critic's loss in the last tenth of training, over that of a critic which cannot tell (log 2)",
        "at most a tenth", critic_loss, at_most=0.1,
    ),
    Claim(
        "figure7", "How does layer by layer compare with all levels at once, at equal compute?",
        "forward super-resolution makes the learning much easier", "Figure 7",
        "distance of joint from real pictures, over that of layer-wise: above 1 where layer-wise is nearer",
        "the paper makes no claim", times_as_far("joint", "layerwise"),
    ),
    Claim(
        "figure8", "Training higher layers along improves lower levels.",
        "Through training higher-level layers altogether, the lower-level features get improved", "Figure 8",
        "distance from real pictures after the correction, over that before, at the levels below the finest",
        "at every one of them below 1", gains, at_most=1.0,
    ),
    Claim(
        "figure8", "The corrections of lower layers are small.",
        "the incremental changes (measured by vector corrections) in the neuron weights are small", "Figure 8",
        "median over neurons of |v' - v| / |v|, in the layers below the finest",
        "in every layer at most a half", changes("size", False), at_most=0.5,
    ),
    Claim(
        "figure8", "They are small beside what was learned before them.",
        "backward feature correction in GANs is also a local feature correction process", "§6",
        "median angle of the correction, over that of the learning before it",
        "in every layer at most a half", changes("angle", True), at_most=0.5,
    ),
    Claim(
        "figure8", "Is the compute of the correction better spent there than on more layer-wise learning?",
        "backward feature correction ... we believe it is a key step towards understanding GANs as well", "§6",
        "distance of layer-wise from real pictures, over that of backward-correction: above 1 where correcting pays",
        "the paper makes no claim", times_as_far("layerwise", "backward-correction"),
    ),
)  # fmt: skip
