"""What the dock asks of the core and says of it, without a window."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import streamview_napari
from hypothesis import given, settings
from hypothesis import strategies as st
from napari.components import ViewerModel
from npe2 import PluginManifest
from streamview_napari.canvas.camera import centre_of, fly_to
from streamview_napari.canvas.layers import SlideLevel, has_overview, slide_layer
from streamview_napari.canvas.live_map import LiveMap
from streamview_napari.reader import get_reader
from streamview_napari.requests.inference import InferenceRequest, compute, describe_progress, find_region, forecast_run
from streamview_napari.requests.models import describe_card, describe_fit, describe_streaming, known_models, load
from streamview_napari.requests.regions import corners, describe_size, grid_scale, square, within

from streamview.errors import Cancelled, ModelError, RegionError
from streamview.geometry import Region
from streamview.inference.compute import Compute
from streamview.inference.prepared import PreparedRun, prepare
from streamview.inference.strips import Strip
from streamview.networks import load_model
from streamview.progress import Step
from streamview.results import Identity, Prediction, Target
from streamview.slides import as_slide, open_slide
from streamview.slides.slide import Level, SlideBase

pytestmark = pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecatedSince20", "ignore::DeprecationWarning:napari")
SHAPES = st.tuples(st.integers(1, 5000), st.integers(1, 5000))
MPPS = st.none() | st.tuples(st.floats(0.05, 20), st.floats(0.05, 20))


@st.composite
def regions(draw: Any) -> tuple[Region, tuple[int, int]]:
    shape = draw(SHAPES)
    y, x = (draw(st.integers(0, side - 1)) for side in shape)
    return Region(y, x, draw(st.integers(1, shape[0] - y)), draw(st.integers(1, shape[1] - x))), shape


@given(regions(), MPPS)
def test_a_region_drawn_around_itself_is_itself(found: tuple[Region, tuple[int, int]], mpp: tuple[float, float] | None) -> None:
    region, shape = found
    assert within(corners(region, mpp), shape, mpp) == region


@given(SHAPES, st.integers(1, 6000), st.tuples(st.floats(-9e4, 9e4), st.floats(-9e4, 9e4)), MPPS, st.floats(1, 8))
def test_squares_lie_inside_and_are_as_large_as_can_be(
    shape: tuple[int, int], side: int, centre: tuple[float, float], mpp: tuple[float, float] | None, scale: float
) -> None:
    region = square(side, centre, shape, mpp, (scale, scale))
    assert region.inside(shape)
    assert region.shape == tuple(min(round(side * scale), n) for n in shape)


def test_a_square_is_centred_where_there_is_room() -> None:
    # the world position 255.75 um is the centre of the pixels around the edge between 511 and 512, at 0.5 um/px
    assert square(256, (255.75, 255.75), (2048, 2048), (0.5, 0.5), (2.0, 2.0)) == Region(256, 256, 512, 512)


def test_what_is_drawn_outside_is_refused() -> None:
    assert within([[-50, -50], [-50, 10.2], [20.2, 10.2], [20.2, -50]], (100, 100), None) == Region(0, 0, 21, 11)
    with pytest.raises(RegionError, match="outside the slide"):
        within([[-50, -50], [-20, -20]], (100, 100), None)


def test_sizes_in_words() -> None:
    assert describe_size((1024, 2048), (0.5, 0.5)) == "2048 × 1024 px · 1.02 × 0.51 mm"
    assert describe_size((80_000, 100_000), (0.25, 0.25)) == "100000 × 80000 px · 25.0 × 20.0 mm"
    assert describe_size((64, 64), (0.25, 0.25)) == "64 × 64 px · 0.016 × 0.016 mm"
    assert describe_size((64, 64), None) == "64 × 64 px"
    assert grid_scale((0.25, 0.5), 0.5) == (2.0, 1.0)
    assert grid_scale(None, 0.5) == (1.0, 1.0)


def test_flying_shows_the_whole_region() -> None:
    viewer = ViewerModel()
    viewer.canvas.size = (600, 800)
    fly_to(viewer, Region(1000, 2000, 1200, 1600), (0.5, 0.5))
    assert centre_of(viewer) == pytest.approx((799.75, 1399.75))
    assert viewer.scene.camera.zoom == pytest.approx(1 / 1.15)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 3000), st.integers(1, 3000), st.data())
def test_a_live_map_is_the_block_mean_of_what_is_computed(height: int, width: int, data: Any) -> None:
    values = np.arange(height * width, dtype=np.float32).reshape(height, width) % 251
    identity = Identity("ab", "cd", "ef", Region(0, 0, height, width), None, "float32")
    prediction = Prediction(
        "a.svs", Region(0, 0, height, width), (height, width), None, "class", ("a",), np.zeros(1, np.float32), identity, "m", True
    )
    live = LiveMap()

    def tell(y: int, rows: np.ndarray) -> None:
        live.watch(Strip(prediction, Target("a", 0), y, rows, (2.0, 2.0), (0.5, 0.5), None))

    assert live.peak == 1.0
    tell(height, np.empty((2, 0, width), np.float32))
    stop = height
    for start in sorted({0, *data.draw(st.lists(st.integers(0, height - 1), max_size=5))}, reverse=True):
        tell(start, np.stack([values[start:stop]] * 2))
        stop = start
    factor = -(-max(height, width) // 1024)
    padded = np.pad(values, [(0, -size % factor) for size in values.shape])
    expected = padded.reshape(padded.shape[0] // factor, factor, -1, factor).mean((1, 3))
    assert live.values is not None
    np.testing.assert_allclose(live.values, expected, rtol=1e-4, atol=1e-4)
    assert max(live.values.shape) <= 1024
    assert live.step == (2.0 * factor, 2.0 * factor)
    # its first pixel covers the same level-0 pixels as the first block of the record: from -0.5 on
    assert live.origin[0] - live.step[0] / 2 == pytest.approx(0.5 - 1.0)


def test_the_engine_tells_of_every_row_once_and_of_the_answer_first() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (320, 256, 3), np.uint8)
    strips: list[Strip] = []
    run = prepare(load_model("demo"), as_slide(pixels, 0.5), compute=Compute(tile=(64, 256)))
    (saliency,) = run.explain(["lesion"], watch=strips.append)
    first, *rest = strips
    assert first.rows.shape == (2, 0, 256)
    assert first.evidence is not None
    assert [strip.y + strip.rows.shape[1] for strip in rest] == [320, *(strip.y for strip in rest[:-1])]
    assert rest[-1].y == 0
    for channel, method in enumerate(("absolute", "signed")):
        told = np.concatenate([strip.rows[channel] for strip in reversed(rest)])
        np.testing.assert_array_equal(told, np.asarray(saliency.maps[method].values))  # type: ignore[index]
    np.testing.assert_array_equal(first.prediction.logits, saliency.prediction.logits)


def make_request(slide: Any, **changes: Any) -> InferenceRequest:
    values: dict[str, Any] = {
        "loaded": load("demo", untrained=False),
        "slide": slide,
        "choice": "drawn",
        "centre": (300.0, 300.0),
        "drawn": corners(Region(128, 256, 256, 320), slide.mpp),
        "compute": Compute("cpu"),
        "maps": True,
    }
    return InferenceRequest(**(values | changes))


@pytest.mark.parametrize("maps", [True, False])
def test_a_run_is_prepared_once_and_runs_by_the_plan_of_its_forecast(
    synthetic_slide: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, maps: bool
) -> None:
    prepared: list[Region] = []
    executed: list[Any] = []
    complete = PreparedRun._complete

    def counted(model: Any, slide: Any, region: Region, **options: Any) -> PreparedRun:
        prepared.append(region)
        return prepare(model, slide, region, **options)

    def recorded(self: PreparedRun, call: Any, plan: Any, *rest: Any) -> Any:
        executed.append(plan)
        return complete(self, call, plan, *rest)

    monkeypatch.setattr("streamview.inference.prepared.prepare", counted)
    monkeypatch.setattr(PreparedRun, "_complete", recorded)
    with open_slide(synthetic_slide.path) as slide:
        request = make_request(slide, maps=maps)
        forecast = forecast_run(request, tmp_path)
        assert forecast.forecast is not None
        answer = compute(request, forecast.region, tmp_path / "map.ome.zarr", lambda step: None, forecast=forecast)
        assert prepared == [forecast.region]
        assert len(executed) == 1
        assert executed[0] is forecast.forecast.plan
        assert answer.tile == forecast.forecast.plan.tile
        if maps:  # another class on the same region needs nothing more
            other = replace(request, target="normal", region=forecast.region)
            compute(other, forecast.region, tmp_path / "other.ome.zarr", lambda step: None, forecast=forecast)
            assert prepared == [forecast.region]

        # where the view has moved, the new place is prepared, and the plan stays
        moved = replace(forecast.region, y=forecast.region.y + 8)
        compute(request, moved, tmp_path / "moved.ome.zarr", lambda step: None, forecast=forecast)
        assert prepared == [forecast.region, moved]
        assert all(plan is forecast.forecast.plan for plan in executed)


def test_a_request_from_forecast_to_answer(synthetic_slide: Any, tmp_path: Path) -> None:
    with open_slide(synthetic_slide.path) as slide:
        request = make_request(slide)
        forecast = forecast_run(request, tmp_path)
        assert forecast.region == Region(128, 256, 256, 320)
        assert forecast.size == "320 × 256 px · 0.16 × 0.13 mm"
        assert forecast.fits
        assert str(forecast).startswith("A few seconds, peak memory ")
        steps: list[Step] = []
        answer = compute(request, forecast.region, tmp_path / "map.ome.zarr", steps.append)
        assert answer.saliency is not None
        assert answer.saliency.path == tmp_path / "map.ome.zarr"
        assert answer.seconds is not None
        assert {step.task for step in steps} == {"forward pass", "backward pass"}
        alone = compute(make_request(slide, maps=False), forecast.region, tmp_path / "none.ome.zarr", steps.append)
        assert alone.saliency is None
        assert not (tmp_path / "none.ome.zarr").exists()
        np.testing.assert_array_equal(alone.prediction.logits, answer.prediction.logits)

        def stop(step: Step) -> None:
            raise Cancelled("enough")

        with pytest.raises(Cancelled):
            compute(request, forecast.region, tmp_path / "never.ome.zarr", stop)
        assert [path.name for path in tmp_path.iterdir()] == ["map.ome.zarr"]


def test_which_region_is_meant(synthetic_slide: Any) -> None:
    with open_slide(synthetic_slide.path) as slide:
        assert find_region(make_request(slide, choice="whole")) == Region(0, 0, *slide.shape)
        assert find_region(make_request(slide, choice="2048")) == Region(0, 0, 1501, 2048)
        assert find_region(make_request(slide, region=Region(1, 2, 3, 4))) == Region(1, 2, 3, 4)
        with pytest.raises(RegionError, match="press Draw"):
            find_region(make_request(slide, drawn=None))


def test_all_tissue(synthetic_slide: Any) -> None:
    pytest.importorskip("streamview.slides.tissue")
    with open_slide(synthetic_slide.path) as slide:
        assert find_region(make_request(slide, choice="tissue")).inside(slide.shape)


def test_a_resolution_that_does_not_fit_is_said_before_running(tmp_path: Path) -> None:
    pixels = np.full((64, 64, 3), 200, np.uint8)
    for mpp, said in ((None, "set them above"), (0.9, "too coarse")):
        forecast = forecast_run(make_request(as_slide(pixels, mpp), choice="whole"), tmp_path)
        assert not forecast.fits
        assert forecast.forecast is None
        assert said in forecast.resolution
    card = load_model("demo").card
    assert describe_fit(card, as_slide(pixels, 0.25)) == (True, "Read at 0.5 µm/px, as the network was made for.")
    assert describe_fit(card, as_slide(pixels, 0.5)) == (True, "")


def test_the_networks_on_offer() -> None:
    known = {entry.spec: entry for entry in known_models()}
    assert known["demo"].trained
    assert not known["camelyon17-8192"].trained
    assert known["camelyon17-8192"].name == "camelyon17-8192 (random weights)"
    loaded = load("camelyon17-8192", untrained=True)
    assert "Random weights: answers mean nothing" in describe_card(loaded.model.card)
    assert describe_streaming(loaded.streaming).startswith("Streams exactly")
    demo = load("demo", untrained=False)
    assert describe_card(demo.model.card) == ("normal, lesion · 0.5 µm/px · Apache-2.0\nResearch use only. Not for diagnosis.")
    with pytest.raises(ModelError):
        load("no such network", untrained=False)


def test_progress_in_words() -> None:
    def seconds(value: float) -> str:
        return f"{value:.0f} s"

    said = describe_progress(Step("forward pass", 25, 100, 10.0), maps=True, format_seconds=seconds)
    assert said == "Forward pass, 25% · 30 s left, then the backward pass"
    assert describe_progress(Step("backward pass", 0, 100, 0.0), maps=True, format_seconds=seconds) == "Backward pass, 0%"


class Giant(SlideBase):
    """One level of 100,000 x 80,000 px that counts what is read."""

    def __init__(self) -> None:
        super().__init__("giant.tif", (Level((80_000, 100_000), (1.0, 1.0)),), ((0.25, 0.25), "test"), "ab")
        self.pixels_read = 0

    def read(self, region: Region) -> np.ndarray:
        self.pixels_read += region.height * region.width
        return np.zeros((region.height, region.width, 3), np.uint8)


def test_a_giant_of_one_level_is_never_read_whole() -> None:
    slide = Giant()
    assert not has_overview(slide)
    levels: list[SlideLevel] = slide_layer(slide)[0]
    overview = np.asarray(levels[-1])
    assert max(overview.shape) <= 2048
    assert slide.pixels_read == 0
    assert (overview == overview[0, 0, 0]).all()
    assert not np.asarray(levels[2][100:600, 100:600]).any()
    assert 0 < slide.pixels_read <= 4096**2


def test_the_manifest_names_what_there_is() -> None:
    manifest = PluginManifest.from_file(str(Path(streamview_napari.__file__).with_name("napari.yaml")))
    manifest.validate_imports()
    assert [widget.display_name for widget in manifest.contributions.widgets or ()] == ["Panel", "Review"]
    groups = manifest.contributions.configurations or {}
    assert set(groups) == {"panel", "keys"}
    keys = [found.default for found in groups["keys"].properties.values()]
    assert len(set(keys)) == len(keys), "two things on one key"


def test_a_slide_knows_where_it_was_opened(synthetic_slide: Any) -> None:
    reader = get_reader(str(synthetic_slide.path))
    assert reader is not None
    ((_, options, _),) = reader(str(synthetic_slide.path))
    record = options["metadata"]["streamview"]
    assert record.path == str(synthetic_slide.path)
    assert record.source.name == "synthetic.svs"
    record.source.close()


def test_settings_without_an_installed_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    from streamview_napari import settings as stored_settings

    def absent(name: str) -> Any:
        raise KeyError(name)

    monkeypatch.setattr("napari.settings.get_plugin_settings", absent)
    found = stored_settings.settings()
    assert isinstance(found, SimpleNamespace)
    assert found.panel.model == "demo"
    assert found.keys.sheet == "?"
