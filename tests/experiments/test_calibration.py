"""Platt scaling: probabilities as often right as they say, a finite fit without overlap, and a layer that answers by it."""

import numpy as np
import pytest
import torch
from scipy.special import expit
from torch import nn

from experiments.camelyon16_tiles.calibrate import platt_scaling, scale_margin


def test_the_fit_finds_the_factor_and_shift_that_labels_were_drawn_by() -> None:
    rng = np.random.default_rng(0)
    margins = rng.normal(1.0, 2.0, 20_000)
    labels = rng.random(20_000) < expit(0.7 * margins - 1.2)
    assert platt_scaling(margins, labels) == pytest.approx((0.7, -1.2), abs=0.05)


def test_classes_that_do_not_overlap_have_a_finite_fit_between_them() -> None:
    margins = np.array([-1.0, -0.8, 2.0, 2.5])
    factor, shift = platt_scaling(margins, margins > 0)
    assert 0 < factor < 100
    assert -1 < -shift / factor < 2


def test_the_layer_answers_by_the_scaled_margin() -> None:
    linear = nn.Linear(3, 2)
    inputs = torch.randn(5, 3)
    before = linear(inputs).detach().diff(dim=1)
    scale_margin(linear, 1.5, -0.4)
    assert torch.allclose(linear(inputs).diff(dim=1), 1.5 * before - 0.4, atol=1e-6)
