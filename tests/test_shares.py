"""How many steps a run computes, estimated before it: on even background, and behind a global maximum."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from streamview.inference import forecast as forecasts
from streamview.inference.compute import Compute
from streamview.inference.explain import forecast
from streamview.inference.prepared import prepare
from streamview.inference.shares import step_shares
from streamview.networks import Model
from streamview.slides.array import ArraySlide
from streamview.slides.synthetic import synthetic_region
from streamview.streaming.run import passes as execute
from streamview.streaming.run import timing
from streamview.streaming.run.timing import Speed
from tests.support.inference import make_model

SIDE, TILE = 1024, (64, 64)


def pooled(pool: nn.Module) -> Model:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for inputs, outputs in ((3, 8), (8, 12), (12, 16)):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    return make_model(nn.Sequential(*layers, pool, nn.Flatten(), nn.Linear(16, 2)).eval())


def slide(noise: bool) -> ArraySlide:
    """A slide of which 7% is tissue, on glass of one colour or with the noise of a scanner."""
    pixels = np.full((SIDE, SIDE, 3), 243, np.uint8)
    if noise:
        pixels -= np.random.default_rng(0).integers(0, 2, pixels.shape, np.uint8)
    pixels[350:625, 450:725] = synthetic_region(275, 275, seed=1, lesion_share=0.2)[0]
    return ArraySlide(pixels)


@pytest.mark.parametrize(
    ("pool", "noise"),
    [
        pytest.param(lambda: nn.AdaptiveMaxPool2d(1), True, id="max-noisy"),
        pytest.param(lambda: nn.AdaptiveAvgPool2d(1), False, id="mean-even"),
        pytest.param(lambda: nn.AdaptiveMaxPool2d(1), False, id="max-even", marks=pytest.mark.slow),
        pytest.param(lambda: nn.AdaptiveAvgPool2d(1), True, id="mean-noisy", marks=pytest.mark.slow),
    ],
)
def test_estimated_shares_are_near_what_is_computed(pool: Callable[[], nn.Module], noise: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model, source = pooled(pool()), slide(noise)
    run = prepare(model, source, compute=Compute("cpu", "4GB", TILE))
    plan = run.plan(targets=1, stored=True)
    shares = step_shares(run.slide, run.sampler, run.inside, run.both, plan)
    counts = {"run_step": 0, "backward_step": 0}

    def counted(name: str) -> Callable[..., Any]:
        original = getattr(execute, name)

        def call(*args: Any) -> Any:
            counts[name] += 1
            return original(*args)

        return call

    for name in counts:
        monkeypatch.setattr(execute, name, counted(name))
    run.explain(plan=plan)
    assert plan.saved_steps == plan.steps
    computed, reversed_ = (count / plan.steps for count in counts.values())
    assert abs(shares.computed - computed) <= 0.3 * computed
    assert abs(shares.differentiated - reversed_) <= 0.4 * reversed_ + 0.02


def test_a_forecast_counts_what_is_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forecasts, "SAMPLE", (64, 128))
    monkeypatch.setattr(timing, "measure", lambda *_: Speed(1e-6, 2e-6))
    model = pooled(nn.AdaptiveMaxPool2d(1))
    even, noisy = (forecast(model, slide(noise), targets=1, compute=Compute(memory="4GB", tile=TILE)).seconds for noise in (False, True))
    assert even is not None
    assert noisy is not None
    assert even < 0.7 * noisy
