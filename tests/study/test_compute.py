"""Equal compute is equal: multiplications by hand, and budgets that add up."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import nn

from forwardsr.learn.joint import JointConfig, Stage
from forwardsr.learn.schedules import schedule
from forwardsr.learning import LearnConfig
from forwardsr.model.deconv_generator import DeconvGenerator
from forwardsr.study.compute import multiplications, step_cost
from forwardsr.study.plan import FIGURES, SCALES, Size, cells, find_scale, run_plan


def test_multiplications_of_each_kind_of_layer_by_hand() -> None:
    layers = nn.Sequential(
        nn.Conv2d(3, 5, 6, 2, 2), nn.ConvTranspose2d(5, 7, 6, 2, 2), nn.Flatten(), nn.Linear(7 * 64, 2)
    )
    found = multiplications(layers, torch.zeros(1, 3, 8, 8))
    # A convolution: 4 x 4 outputs of 5 channels, 3 x 36 each; transposed: 4 x 4 inputs of 5 channels sent to 7 x 36 each.
    assert found == {"0": 16 * 5 * 108, "1": 16 * 5 * 7 * 36, "3": 2 * 7 * 64}


def test_one_level_of_the_generator_by_hand() -> None:
    model = DeconvGenerator((8,), width=4, latent=10)
    found = multiplications(model.eval(), torch.zeros(1, 10))
    assert found == {"layers.0.V": 10 * 4 * 16, "outputs.0": 16 * 4 * 3 * 36}


def test_a_frozen_layer_costs_its_forward_pass_only() -> None:
    config, sides = JointConfig(width=8), (8, 16)
    both = step_cost(sides, Stage("both", 0, 2), config)
    upper = step_cost(sides, Stage("upper", 1, 2), config)
    first = 128 * 8 * 16 + 16 * 8 * 108  # V_1 and W_1
    head = 16 * 9 * 8 * 8 + 8 * 16  # of level 1 in the critic: 3 x 3 to 8 channels on 4 x 4, and the linear map
    # Frozen images have no logit of their own, so their head goes as well.
    assert both - upper == pytest.approx(2 * first + (6 + 10 / 16) * head)


@pytest.mark.parametrize("method", ["layerwise", "last-layer", "backward-correction"])
def test_every_learner_of_a_cell_spends_what_joint_spends(method: str) -> None:
    size, scale, sides = Size(32, 10_000), SCALES["cpu"], (8, 16, 32)
    config = LearnConfig(width=scale.width, batch=scale.batch)
    plan, joint = run_plan(method, size, 0, scale), run_plan("joint", size, 0, scale)
    shares = [float(s) for s in (plan.shares or "1").split(",")]
    spent = [
        plan.images * share / sum(shares) * step_cost(sides, stage, config, plan.random_width)
        for share, stage in zip(shares, schedule(method, sides), strict=True)
    ]
    assert sum(spent) == pytest.approx(10_000 * step_cost(sides, Stage("", 0, 3), config), rel=1e-3)
    assert plan.compute == joint.compute
    # A stage has twice the compute of the one below it, and a correction as much as the finest.
    ratios = [b / a for a, b in pairwise(spent)]
    assert ratios == pytest.approx([2, 2, 1][: len(ratios)], rel=2e-3)


def test_figures_share_runs_and_pictures_share_those_of_numbers_where_sizes_agree() -> None:
    everything = cells(list(FIGURES), SCALES["cpu"], 5)
    assert [(c.role, c.side, c.seed) for c in everything] == [
        ("pictures", 64, 5), ("numbers", 32, 5), ("numbers", 32, 6), ("numbers", 32, 7),
    ]  # fmt: skip
    assert set(everything[0].runs) == {"joint", "layerwise", "last-layer", "backward-correction"}
    assert set(cells(["figure6"], SCALES["cpu"], 0)[0].runs) == {"joint"}
    assert [(c.role, c.seed) for c in cells(["figure7"], SCALES["gpu"], 0)] == [("both", 0), ("both", 1), ("both", 2)]


def test_effort_scales_the_images_of_all_learners_alike() -> None:
    whole, third = (cells(["figure7"], find_scale("cpu", effort), 0)[0].runs for effort in (1.0, 0.3))
    for method, plan in whole.items():
        assert third[method].images == pytest.approx(0.3 * plan.images, abs=1)
        assert third[method].shares == plan.shares
