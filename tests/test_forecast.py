"""Forecasts: steady on a machine that is busy now and then, and a refusal where the network does not take the region's size."""

from __future__ import annotations

import pickle
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import nn

from streamview.errors import RegionError
from streamview.inference import forecast as forecasts
from streamview.inference.explain import forecast
from streamview.inference.forecast import reading_seconds
from streamview.inference.prepared import prepare
from streamview.networks import Model, load_model
from streamview.slides import as_slide
from streamview.slides.sampling import Sampler
from streamview.streaming.head import accepted_sides, head_takes
from streamview.streaming.run import timing
from streamview.streaming.run.timing import Timings, measure
from tests.support.inference import make_model

PIXELS = np.full((1024, 2048, 3), 200, np.uint8)


class Clock:
    """A clock that is asked before and after each piece of work, which takes the next of these many seconds; then as the last."""

    def __init__(self, seconds: Sequence[float]) -> None:
        self._seconds, self._now, self._asked = [*seconds], 0.0, 0

    def __call__(self) -> float:
        self._asked += 1
        if self._asked % 2 == 0:
            self._now += self._seconds.pop(0) if len(self._seconds) > 1 else self._seconds[0]
        return self._now


@pytest.fixture(scope="module")
def demo() -> Model:
    return load_model("demo")


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "SAMPLE", (64, 64))


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("quiet", range(4))
def test_the_least_of_several_samples_counts(demo: Model, quiet: int) -> None:
    run = prepare(demo, PIXELS, mpp=0.5)
    samples = [(0.01, 0.02) if sample == quiet else (0.06, 0.13) for sample in range(4)]  # forward and backward pass
    speed = measure(run.both, run.plan(1), Clock([seconds for sample in samples for seconds in sample]))
    assert (speed.forward, speed.backward) == pytest.approx((0.01 / 64**2, 0.02 / 64**2))


@pytest.mark.usefixtures("short")
def test_a_slow_network_is_timed_twice(demo: Model) -> None:
    run = prepare(demo, PIXELS, mpp=0.5)
    assert measure(run.forward, run.plan(), Clock([9.0, 8.0, 1.0])).forward == pytest.approx(8.0 / 64**2)


@pytest.mark.usefixtures("short")
def test_a_speed_is_measured_once_for_each_kind_of_run(demo: Model) -> None:
    run, timings = prepare(demo, PIXELS, mpp=0.5), Timings()
    plan = run.plan(1)
    first = timings.speed(run.both, plan, Clock([1.0]))
    assert timings.speed(run.both, plan, Clock([6.0])) is first
    other = prepare(demo, PIXELS[:, :1500], mpp=0.5)
    assert timings.speed(other.both, plan, Clock([6.0])) is first
    assert timings.speed(run.forward, plan, Clock([6.0])) != first
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        assert timings.speed(run.both, plan, Clock([6.0])) != first
    finally:
        torch.set_num_threads(threads)
    assert pickle.loads(pickle.dumps(timings)).speed(run.both, plan, Clock([6.0])) != first


def test_forecasts_of_one_region_agree(demo: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forecasts, "reading_seconds", lambda *_: 0.0)
    model = Model(demo.module, demo.card, demo.sha256)
    first, again = (forecast(model, PIXELS, targets=1, mpp=0.5).seconds for _ in range(2))
    assert first == again
    assert first is not None


def test_reading_is_timed_at_several_places() -> None:
    places = []

    class Watched(Sampler):
        def read(self, *bounds, **options):  # type: ignore[no-untyped-def]
            places.append(bounds)
            return super().read(*bounds, **options)

    sampler = Watched(as_slide(PIXELS, 0.5), None, 0.5)
    area = 1024 * 2048 / (256 * 512)
    assert reading_seconds(sampler, Clock([9.0, 0.25, 0.5, 0.25, 9.0])) == 0.5 * area
    assert len(set(places)) == 5
    small = Sampler(as_slide(PIXELS[:100, :100], 0.5), None, 0.5)
    assert reading_seconds(small, Clock([0.5])) == 0.5


def test_a_size_that_the_network_does_not_take_is_refused_before_it_runs(caplog: pytest.LogCaptureFixture) -> None:
    model = load_model("imagenette", untrained=True)
    prepare(model, PIXELS[:320, :320])
    with pytest.raises(
        RegionError, match=r"imagenette cannot answer for 2048 x 1024 px on its grid, as .* expected sides of 222 to 381 px: choose"
    ):
        prepare(model, PIXELS)
    assert not caplog.records


def test_a_network_of_one_unknown_size_says_so() -> None:
    network = nn.Sequential(nn.Conv2d(3, 2, 1), nn.AvgPool2d(16), nn.Flatten(), nn.Linear(2 * 70 * 70, 2))
    with pytest.raises(RegionError, match="choose a region of the size that it was made for"):
        prepare(make_model(network), PIXELS)


def test_heads_that_cannot_be_tried_count_as_fitting() -> None:
    class Head(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x[x > 0][:2][None]

    model = make_model(nn.Sequential(nn.Conv2d(3, 2, 3), nn.AdaptiveAvgPool2d(1), Head()))
    graph = model.captures.graph(model.module, channels=3)
    from streamview.streaming.graph import bind

    assert head_takes(bind(graph, (64, 64)))
    assert accepted_sides(graph)[0] == 3
