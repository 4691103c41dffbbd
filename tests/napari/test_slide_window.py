"""The Slide section in a real window: a missing mpp, a wrong one, several slides."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from streamview_napari.requests.slide import describe_resolution, parse_mpp

from streamview.errors import SlideError
from streamview.slides import as_slide, open_slide
from streamview.slides.synthetic import write_synthetic_slide
from tests.support.dock import LIMIT, click, key, open_dock, section, settle
from tests.support.real_window import REAL_WINDOW


def slide_file(folder: Path, name: str = "planted.svs", seed: int = 3) -> Path:
    write_synthetic_slide(folder / name, size=(768, 1024), mpp=0.5, seed=seed)
    return folder / name


@pytest.mark.parametrize(
    ("text", "mpp"), [("0.25", 0.25), (" 0,5 ", 0.5), ("0.25 µm/px", 0.25), ("2um", 2.0), ("0.243 Um/pixel", 0.243), ("1e-1", 0.1)]
)
def test_what_is_taken_for_an_mpp(text: str, mpp: float) -> None:
    assert parse_mpp(text) == pytest.approx(mpp)


@pytest.mark.parametrize("text", ["", "40x", "0", "-0.25", "nan", "inf", "0.001", "250", "0.25 mm", "0.25 0.25"])
def test_what_is_no_mpp(text: str) -> None:
    with pytest.raises(SlideError, match=r"A number from 0\.02 to 100.* 0\.25"):
        parse_mpp(text)


def test_who_states_an_mpp(tmp_path: Path) -> None:
    with open_slide(slide_file(tmp_path)) as slide:
        assert describe_resolution(slide) == "0.5 µm/px (aperio.MPP)"
        assert describe_resolution(as_slide(slide, 0.25)) == "0.25 µm/px (given by you, the file says 0.5)"
        assert describe_resolution(as_slide(as_slide(slide, 0.25), 1)) == "1 µm/px (given by you, the file says 0.5)"


class TestWindow:
    """With mouse and keys."""

    pytestmark = REAL_WINDOW

    def test_enter_alone_gives_no_mpp(self, window: Callable[[Any], Any], tmp_path: Path, qtbot: Any) -> None:
        from qtpy.QtCore import Qt
        from qtpy.QtTest import QTest

        path = tmp_path / "plain.tif"
        tifffile.imwrite(path, np.random.default_rng(0).integers(0, 256, (512, 640, 3), np.uint8), photometric="rgb", tile=(128, 128))
        _, dock = open_dock(window, path, qtbot)
        panel = section(dock, "Slide")
        qtbot.waitUntil(lambda: panel._dialog is not None, timeout=LIMIT)
        dialog = panel._dialog
        for written in ("", "abc", "40"[:1] + "000"):
            dialog.line.clear()
            QTest.keyClicks(dialog.line, written)
            QTest.keyClick(dialog.line, Qt.Key.Key_Return)
            assert dialog.isVisible()
            assert "A number from 0.02 to 100" in dialog.hint.text()
            assert dock.state.slide.mpp is None
        dialog.line.clear()
        QTest.keyClicks(dialog.line, "0,25")
        QTest.keyClick(dialog.line, Qt.Key.Key_Return)
        assert not dialog.isVisible()
        assert dock.state.slide.mpp == (0.25, 0.25)
        assert panel.extent.text().endswith("0.25 µm/px (given by you)")

    @pytest.mark.slow
    def test_a_wrong_mpp_is_corrected_and_all_moves_along(self, window: Callable[[Any], Any], tmp_path: Path, qtbot: Any) -> None:
        from qtpy.QtCore import Qt
        from qtpy.QtTest import QTest
        from streamview_napari.records import OutlineLayer, map_on, record_of

        viewer, dock = open_dock(window, slide_file(tmp_path), qtbot)
        panel, run = section(dock, "Slide"), section(dock, "Model and region")
        run.region.setCurrentIndex(run.region.findData("whole"))
        qtbot.waitUntil(run.run.isEnabled, timeout=LIMIT)
        click(run.run)
        qtbot.waitUntil(lambda: bool(dock.state.answers) and not run.task.running, timeout=LIMIT)
        qtbot.waitUntil(lambda: any(isinstance(record_of(layer), OutlineLayer) for layer in viewer.layers), timeout=LIMIT)
        settle(qtbot)
        shown = [layer for layer in viewer.layers if map_on(layer) is not None or isinstance(record_of(layer), OutlineLayer)]
        before = [np.array(layer.extent.world) for layer in shown]
        assert panel.measure.isVisible()
        click(panel.measure)
        assert panel._dialog.line.text() == ""
        QTest.keyClick(panel._dialog.line, Qt.Key.Key_Return)
        assert dock.state.slide.mpp == (0.5, 0.5)
        QTest.keyClicks(panel._dialog.line, "0.25")
        click(panel._dialog.buttons.button(panel._dialog.buttons.StandardButton.Ok))
        assert dock.state.slide.mpp == (0.25, 0.25)
        assert panel.extent.text() == "1024 × 768 px · 0.26 × 0.19 mm\n0.25 µm/px (given by you, the file says 0.5)"
        settle(qtbot)
        for layer, extent in zip(shown, before, strict=True):
            # the extent of an outline holds its width, some screen px
            np.testing.assert_allclose(np.array(layer.extent.world), extent / 2, atol=1, err_msg=layer.name)
        np.testing.assert_allclose(dock.state.slide_layer.scale, (0.25, 0.25))
        qtbot.waitUntil(lambda: "too coarse" in run.forecast.text() or run.run.isEnabled(), timeout=LIMIT)

    @pytest.mark.slow
    def test_one_of_several_slides_is_chosen(self, window: Callable[[Any], Any], tmp_path: Path, qtbot: Any) -> None:
        from qtpy.QtCore import Qt
        from streamview_napari.view import add_layers

        viewer, dock = open_dock(window, slide_file(tmp_path), qtbot)
        panel = section(dock, "Slide")
        assert not panel.choice.isVisible()
        assert panel.name.isVisible()
        add_layers(viewer, str(slide_file(tmp_path, "a-name-much-longer-than-the-panel-is-wide-of-a-slide-that-came-second.svs", 5)))
        settle(qtbot)
        first, second = (viewer.layers[k] for k in range(2))
        assert panel.choice.isVisible()
        assert not panel.name.isVisible()
        assert panel.choice.currentText() == second.name
        np.testing.assert_allclose(viewer.scene.camera.center[1:], np.mean(second.extent.world, 0)[-2:], rtol=0.02)  # it is seen whole
        click(panel.choice)
        settle(qtbot)
        key(panel.choice.view(), Qt.Key.Key_Up)
        key(panel.choice.view(), Qt.Key.Key_Return)
        settle(qtbot)
        assert dock.state.slide_layer is first
        assert (first.visible, second.visible) == (True, False)
        assert panel.extent.text().startswith("1024 × 768 px")
        viewer.layers.selection.active = second  # as in napari's list of layers
        assert panel.choice.currentText() == second.name
        viewer.layers.remove(first)
        settle(qtbot)
        assert not panel.choice.isVisible()
        assert "…" in panel.name.text()
        assert panel.name.fontMetrics().horizontalAdvance(panel.name.text()) <= panel.name.width()
