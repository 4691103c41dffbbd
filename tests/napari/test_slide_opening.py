"""Slides come to a real window: of napari itself, without mpp, of one level, every real one."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from streamview.errors import StreamviewError
from streamview.geometry import Region
from tests.support.dock import LIMIT, open_dock, section
from tests.support.real_window import REAL_WINDOW

pytestmark = REAL_WINDOW


def test_a_slide_opened_by_napari_itself_brings_the_panel(window: Callable[[Any], Any], slide_path: Path, qtbot: Any) -> None:
    import napari

    viewer = window(napari.Viewer())
    viewer.open(str(slide_path), plugin="streamview")
    qtbot.waitUntil(lambda: "Panel (streamview)" in viewer.window.dock_widgets, timeout=LIMIT)
    dock = viewer.window.dock_widgets["Panel (streamview)"]
    assert dock.state.slide.name == "planted.svs"
    assert viewer.canvas.overlays.scale_bar.visible


def test_a_slide_without_mpp_is_asked_for(window: Callable[[Any], Any], tmp_path: Path, qtbot: Any) -> None:
    from streamview_napari.requests.regions import corners

    path = tmp_path / "plain.tif"
    tifffile.imwrite(path, np.random.default_rng(0).integers(0, 256, (512, 640, 3), np.uint8), photometric="rgb", tile=(128, 128))
    viewer, dock = open_dock(window, path, qtbot)
    slide_section = section(dock, "Slide")
    qtbot.waitUntil(lambda: slide_section._dialog is not None, timeout=LIMIT)
    slide_section._dialog.reject()
    qtbot.waitUntil(lambda: slide_section._dialog is None, timeout=LIMIT)
    layer = viewer.layers["plain.tif"]
    assert [str(unit) for unit in layer.units] == ["pixel", "pixel"]
    panel = section(dock, "Model and region")
    qtbot.waitUntil(lambda: "set them above" in panel.forecast.text(), timeout=LIMIT)
    assert not panel.run.isEnabled()
    panel.draw.click()
    viewer.layers["Regions"].add_rectangles(corners(Region(64, 128, 256, 320), None))
    slide_section.measure.click()
    slide_section._dialog.line.setText("0.5")
    slide_section._dialog.accept()
    assert [str(unit) for unit in layer.units] == ["micrometer", "micrometer"]
    np.testing.assert_allclose(layer.scale, (0.5, 0.5))
    assert slide_section.extent.text() == "640 × 512 px · 0.32 × 0.26 mm\n0.5 µm/px (given by you)"
    qtbot.waitUntil(lambda: panel.task.forecast is not None, timeout=LIMIT)
    assert dock.state.slide.mpp == (0.5, 0.5)
    assert panel.task.forecast.region == Region(64, 128, 256, 320), "what was drawn in pixels stays where it was"
    panel.maps.setChecked(False)
    qtbot.waitUntil(lambda: panel.task.forecast is not None, timeout=LIMIT)
    panel.run.click()
    qtbot.waitUntil(lambda: len(dock.state.answers) == 1, timeout=LIMIT)
    assert len(viewer.layers["Regions"].data) == 1


@pytest.mark.slow
def test_a_giant_of_one_level_is_converted_in_place(
    window: Callable[[Any], Any], tmp_path: Path, qtbot: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from streamview_napari.canvas import layers

    monkeypatch.setattr(layers, "_OVERVIEW", 256**2)  # what counts as a giant here
    path = tmp_path / "plain.tif"
    pixels = np.random.default_rng(0).integers(0, 256, (640, 768, 3), np.uint8)
    tifffile.imwrite(path, pixels, photometric="rgb", tile=(128, 128), resolution=(20_000, 20_000), resolutionunit="CENTIMETER")
    viewer, dock = open_dock(window, path, qtbot)
    slide_section = section(dock, "Slide")
    assert slide_section.convert.isVisibleTo(slide_section)
    monkeypatch.setattr(layers, "_OVERVIEW", 8192**2)
    slide_section.convert_to(tmp_path / "plain.ome.zarr")
    qtbot.waitUntil(lambda: dock.state.slide.name != "plain.tif", timeout=LIMIT)
    assert [layer.name for layer in viewer.layers] == ["plain.ome.zarr"]
    assert not slide_section.convert.isVisibleTo(slide_section)
    np.testing.assert_array_equal(np.asarray(viewer.layers[0].data[0][:64, :64]), pixels[:64, :64])


@pytest.mark.slow
def test_every_real_slide_opens_in_its_place(window: Callable[[Any], Any], shared_data: Path, slide_path: Path, qtbot: Any) -> None:
    from streamview_napari.view import add_layers

    viewer, dock = open_dock(window, slide_path, qtbot)
    slide_section = section(dock, "Slide")
    for path in sorted((shared_data / "slides").iterdir()):
        viewer.layers.clear()
        assert not slide_section.filled
        start = time.perf_counter()
        add_layers(viewer, str(path))
        picture = np.asarray(viewer.screenshot(canvas_only=True, flash=False))[..., :3]
        assert time.perf_counter() - start < 20, path  # 2 s where nothing else runs
        assert picture.std() > 2, path
        (layer,) = viewer.layers
        slide = dock.state.slide
        height, width = slide.shape
        unit = "pixel" if slide.mpp is None else "micrometer"
        assert [str(axis_unit) for axis_unit in layer.units] == [unit, unit]
        np.testing.assert_allclose(layer.extent.world[1], np.subtract((height, width), 1) * (slide.mpp or (1, 1)), rtol=1e-2)
        assert slide_section.name.text() == path.name
        assert slide_section.extent.text().startswith(f"{width} × {height} px")
        assert slide_section.measure.isVisibleTo(slide_section)
    for path in sorted((shared_data / "broken").iterdir()):
        with pytest.raises(StreamviewError, match=path.stem):
            add_layers(viewer, str(path))


@pytest.mark.slow
def test_a_scale_bar_that_the_user_hid_stays_hidden_with_the_next_slide(window: Callable[[Any], Any], slide_path: Path, qtbot: Any) -> None:
    viewer, dock = open_dock(window, slide_path, qtbot)
    bar = viewer.canvas.overlays.scale_bar
    assert bar.visible
    bar.visible = False
    dock.state.events.slide_changed.emit(dock.state.slide_layer)
    assert not bar.visible
