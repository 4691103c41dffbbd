"""Every display control changes what it must on the canvas, and nothing else; without a window."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from napari.components import ViewerModel
from napari.layers import Layer
from napari.utils.colormaps import ensure_colormap
from scipy import ndimage
from streamview_napari.canvas.captions import value_under
from streamview_napari.canvas.display import Canvas, recipe_of
from streamview_napari.canvas.layers import saliency_layers
from streamview_napari.records import expect_map, map_on
from streamview_napari.state import State

from streamview.export.png import find_glass
from streamview.results import Saliency, Target, difference
from streamview.results.display import PALETTES, PRESETS
from streamview.results.glass import Glass
from streamview.slides import as_slide
from tests.support.maps import make_maps

pytestmark = pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecatedSince20", "ignore::DeprecationWarning:napari")


@pytest.fixture(scope="module")
def saliency() -> Saliency:
    rng = np.random.default_rng(2)
    return make_maps(ndimage.gaussian_filter(rng.normal(size=(640, 800)), 25) * 50 + 0.02 * rng.normal(size=(640, 800)))


@pytest.fixture
def canvas(saliency: Saliency) -> Iterator[tuple[ViewerModel, Canvas, Any]]:
    viewer = ViewerModel()
    for data, options, kind in saliency_layers(saliency):
        viewer.add_layer(Layer.create(data, options, kind))
    canvas = Canvas(viewer, State(viewer))
    layer = viewer.layers["Gradient x input (detail): lesion"]
    layer.visible, viewer.layers["Class evidence (extent): lesion"].visible = True, False
    yield viewer, canvas, layer
    canvas.close()


def looks(viewer: ViewerModel, canvas: Canvas, layer: Any) -> dict[str, Any]:
    """All that a display decides on the canvas."""
    outline = canvas.outline_of(layer)
    return {
        "pixels": np.asarray(layer.data[0]).tobytes(),
        "colours": layer.colormap.colors.tobytes(),
        "opacity": layer.opacity,
        "outline": outline.visible and outline.data.tobytes(),
        "caption": viewer.canvas.overlays.text.text,
        "bar": layer.colorbar.visible,
        "place": (tuple(layer.scale), tuple(layer.translate), layer.data[0].shape),
        "limits": tuple(layer.contrast_limits),
        "visible": [other.visible for other in viewer.layers if map_on(other) is not None],
    }


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"blur_um": 8.0}, {"pixels", "outline", "caption"}),
        ({"cap_percentile": 95.0}, {"pixels", "outline", "caption"}),
        ({"cap": 0.123}, {"pixels", "outline", "caption"}),
        ({"threshold": 0.4}, {"colours", "outline", "caption"}),
        ({"opacity": 0.8}, {"opacity"}),
        ({"colours": PALETTES["viridis"]}, {"colours"}),
        ({"heat": False}, {"colours", "bar"}),
        ({"outline": False}, {"outline"}),
        ({"glass": False}, {"pixels", "outline"}),
        ({}, set()),
    ],
    ids=lambda value: next(iter(value), "nothing") if isinstance(value, dict) else "",
)
def test_a_control_changes_what_it_must_and_nothing_else(
    canvas: tuple[ViewerModel, Canvas, Any], changes: dict[str, Any], expected: set[str]
) -> None:
    viewer, shell, layer = canvas
    mask = np.zeros((64, 80), bool)
    mask[:, 40:] = True
    shell.mask(layer, Glass(mask, (10.0, 10.0), (4.5, 4.5)))
    before = looks(viewer, shell, layer)
    shell.show(layer, replace(recipe_of(layer), **changes))
    after = looks(viewer, shell, layer)
    assert {name for name in before if before[name] != after[name]} == expected
    assert expect_map(layer).recipe == recipe_of(layer)
    shell.show(layer, replace(PRESETS["detail"]))
    assert looks(viewer, shell, layer) == before


def test_the_record_stays_as_it_is(canvas: tuple[ViewerModel, Canvas, Any], saliency: Saliency) -> None:
    _, shell, layer = canvas
    before = {method: np.array(found.values) for method, found in saliency.maps.items()}
    shell.show(layer, replace(recipe_of(layer), blur_um=9.0, cap_percentile=91.0))
    for method, found in saliency.maps.items():
        np.testing.assert_array_equal(found.values, before[method])


def test_naparis_own_controls_are_taken_over(canvas: tuple[ViewerModel, Canvas, Any]) -> None:
    _, shell, layer = canvas
    heard: list[None] = []
    shell._state.events.recipe_changed.connect(lambda: heard.append(None))
    layer.opacity = 0.9
    assert recipe_of(layer).opacity == expect_map(layer).recipe.opacity == 0.9
    layer.colormap = "magma"
    assert len(recipe_of(layer).colours) == 9
    assert recipe_of(layer).colours[0] == "#000004"
    # still transparent where nothing is shown, which magma itself is not
    np.testing.assert_allclose(layer.colormap.map(np.array([0.1, 1.0]))[:, 3], [0, 1], atol=1e-6)
    np.testing.assert_allclose(layer.colormap.map(1.0)[0, :3], ensure_colormap("magma").map(1.0)[0, :3], atol=0.01)
    assert len(heard) == 2


def test_the_outline_keeps_its_width_on_the_screen(canvas: tuple[ViewerModel, Canvas, Any]) -> None:
    viewer, shell, layer = canvas
    outline = shell.outline_of(layer)
    for zoom in (0.5, 2.0, 9.0):
        viewer.scene.camera.zoom = zoom
        assert 3 <= outline.edge_width * zoom <= 4
    layer.visible = False
    assert not outline.visible
    viewer.scene.camera.zoom = 1.0
    layer.visible = True
    assert outline.visible
    assert 3 <= outline.edge_width <= 4
    viewer.layers.remove(layer)
    assert outline not in viewer.layers


def test_maps_can_be_looked_below(canvas: tuple[ViewerModel, Canvas, Any]) -> None:
    viewer, shell, _ = canvas
    before = [layer.visible for layer in viewer.layers]
    shell.hide()
    assert not any(layer.visible for layer in viewer.layers)
    shell.hide()  # a key that repeats
    shell.reveal()
    assert [layer.visible for layer in viewer.layers] == before


def test_the_value_under_the_cursor_is_the_raw_one(canvas: tuple[ViewerModel, Canvas, Any], saliency: Saliency) -> None:
    _, _, layer = canvas
    raw = float(saliency.maps["signed"].values[120, 340])
    said = value_under(layer, (120 * 0.5, 340 * 0.5))
    assert said.startswith(f"raw {raw:.3g} | blurred ")
    assert said.endswith("lesion: p = 0.881")
    assert value_under(layer, (-1.0, 0.0)) == ""


def test_glass_is_found_in_place() -> None:
    pixels = np.full((1600, 2400, 3), 245, np.uint8)
    pixels[400:1200, 600:1800] = (180, 90, 160)
    result = make_maps(np.ones((700, 800)), place=(200, 400), step=2)
    glass = find_glass(as_slide(pixels, mpp=0.5), result.prediction.region)
    rows, columns = np.arange(200, 1600), np.arange(400, 2000)
    truth = np.ones((1600, 2400), bool)
    truth[400:1200, 600:1800] = False
    assert (glass.over(rows, columns) != truth[200:1600, 400:2000]).mean() < 0.01


def test_a_difference_shows_where_the_first_is_larger(saliency: Saliency) -> None:
    other = make_maps(np.roll(saliency.maps["signed"].values, 100, axis=1), target=Target("normal", 0))
    found = difference(saliency, other)
    assert found.target.name == "lesion over normal"
    assert "minus normal" in found.prediction.warnings[-1]
    np.testing.assert_array_equal(found.maps["signed"].values[5:9], saliency.maps["signed"].values[5:9] - other.maps["signed"].values[5:9])
    viewer = ViewerModel()
    for data, options, kind in saliency_layers(found):
        viewer.add_layer(Layer.create(data, options, kind))
    assert np.asarray(viewer.layers[-1].data).any()
