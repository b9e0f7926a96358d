"""Figures 1 to 8 in the paper's layouts, of the cell that the pictures come from: their titles, and how they are drawn."""

from __future__ import annotations

from collections.abc import Callable

import matplotlib
from matplotlib.figure import Figure

from forwardsr.study.cell import Cell
from forwardsr.study.drawing import STYLE, Drawing
from forwardsr.study.pictures import figure1, figure2, figure4, figure5
from forwardsr.study.plots import figure3, figure6, figure7, figure8


def _styled(draw: Callable[[Cell], Figure]) -> Callable[[Cell], Figure]:
    def styled(cell: Cell) -> Figure:
        with matplotlib.rc_context(STYLE):
            return draw(cell)

    return styled


DRAWN = {
    "figure1": Drawing(
        "Forward super-resolution: each hidden layer renders one resolution",
        "Each hidden layer S_l is made from the one above it in the picture, and renders its own resolution by one linear map W_l. "
        "A column is one latent at every resolution.", _styled(figure1),
    ),
    "figure2": Drawing(
        "Edge-colour features in the output layers",
        "The 6 × 6 pictures that each output layer paints with, the most edge-like (best fit of a Gabor function) first. Each is on "
        "a scale of its own; mid-grey is 0.", _styled(figure2),
    ),
    "figure3": Drawing(
        "Sparsity and correlation of hidden activations, before and after training",
        "Histograms over positions and channels, pairs and triples of channels; the lines are means.", _styled(figure3),
    ),
    "figure4": Drawing(
        "Super-resolution is local",
        "Above: one position of a hidden layer is exchanged for that of another sample, and the next resolution rendered. Below: "
        "how well windows of the coarser picture predict a patch of the finer one, by linear regression.", _styled(figure4),
    ),
    "figure5": Drawing(
        "First-layer filters of the critic, beside the generator's features",
        "Sorted alike, the most edge-like first.", _styled(figure5),
    ),
    "figure6": Drawing(
        "Moments of patches through training",
        "Squared difference between the generator's and the data's moments within 6 × 6 patches, over that at initialisation. "
        "Dotted: what data score against other data; thin line: a tenth.", _styled(figure6),
    ),
    "figure7": Drawing(
        "Layer by layer, against the last layer over random ones, and against all at once",
        "All three learners spent the same compute. The last-layer network is wider, and only its last hidden layer and output are "
        "trained.", _styled(figure7),
    ),
    "figure8": Drawing(
        "Backward feature correction",
        "The learner goes layer by layer first, then trains all layers together, the generator at a fifth of its rate. The features "
        "shown are those that changed most; before, after and change share a scale. Samples have the same latents.", _styled(figure8),
    ),
}  # fmt: skip
