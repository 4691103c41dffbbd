"""What a person sees first: the window's size, the fitted slide, the panel beside a sample, dropped files, preferences."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamview.slides.synthetic import write_synthetic_slide
from tests.support.dock import LIMIT, open_dock, settle
from tests.support.real_window import REAL_WINDOW

pytestmark = REAL_WINDOW
PANEL = "Panel (streamview)"


@pytest.fixture
def slide_path(tmp_path: Path) -> Path:
    write_synthetic_slide(tmp_path / "planted.svs", size=(768, 1024), mpp=0.5, seed=3)
    return tmp_path / "planted.svs"


def filled(viewer: Any) -> tuple[float, float]:
    """How much of the canvas's height and width the slide takes, as it is drawn."""
    extent = np.diff(viewer.layers[0].extent.world, axis=0)[0]
    height, width = viewer.window._qt_viewer.canvas.native.height(), viewer.window._qt_viewer.canvas.native.width()
    zoom = viewer.scene.camera.zoom
    return float(extent[0] * zoom / height), float(extent[1] * zoom / width)


def drop(widget: Any, *paths: Path) -> None:
    """Drag files from elsewhere over a widget and let them go."""
    from qtpy.QtCore import QEvent, QMimeData, QPointF, Qt, QUrl
    from qtpy.QtGui import QDragEnterEvent, QDropEvent
    from qtpy.QtWidgets import QApplication

    data = QMimeData()
    data.setUrls([QUrl.fromLocalFile(str(path)) for path in paths])
    middle = widget.rect().center()
    how = (Qt.DropAction.CopyAction, data, Qt.MouseButton.LeftButton, Qt.KeyboardModifier.NoModifier)
    enter = QDragEnterEvent(middle, *how)
    QApplication.sendEvent(widget, enter)
    assert enter.isAccepted()
    QApplication.sendEvent(widget, QDropEvent(QPointF(middle), *how, QEvent.Type.Drop))


def test_the_window_is_as_large_as_the_screen_and_the_slide_fits_beside_the_dock(
    window: Callable[[Any], Any], slide_path: Path, qtbot: Any
) -> None:
    from streamview_napari.view import view

    viewer = window(view(slide_path))
    settle(qtbot)
    frame = viewer.window._qt_window
    screen = frame.screen().availableGeometry()
    assert (frame.width(), frame.height()) == (screen.width(), screen.height())
    assert 0.85 <= max(filled(viewer)) <= 1

    frame.resize(1100, 700)  # nobody has looked elsewhere: it is fitted again
    settle(qtbot)
    assert 0.85 <= max(filled(viewer)) <= 1

    viewer.scene.camera.zoom *= 4
    looked = viewer.scene.camera.zoom
    frame.resize(1200, 760)
    settle(qtbot)
    assert viewer.scene.camera.zoom == looked


@pytest.mark.slow
def test_a_sample_opens_with_its_panel(window: Callable[[Any], Any], qtbot: Any) -> None:
    import napari

    viewer = window(napari.Viewer())
    samples = next(action.menu() for action in viewer.window.file_menu.actions() if action.text() == "Open Sample")
    samples.aboutToShow.emit()
    action = next(action for action in samples.actions() if "streamview" in action.text())
    assert action.text().replace("&&", "&") == "Synthetic H&E slide with a planted lesion (streamview)"
    action.trigger()
    qtbot.waitUntil(lambda: PANEL in viewer.window.dock_widgets, timeout=LIMIT)
    settle(qtbot)
    assert [layer.name for layer in viewer.layers] == ["synthetic.svs", "planted lesion"]
    assert 0.85 <= max(filled(viewer)) <= 1
    ours = next(action.menu() for action in viewer.window.plugins_menu.actions() if action.text() == "streamview")
    assert "Panel" in [action.text().replace("&", "") for action in ours.actions()]
    guide = Path(__file__).parents[2] / "docs" / "napari.md"
    text = " ".join(guide.read_text(encoding="utf-8").split())
    assert "*Plugins > streamview > Panel*" in text
    assert "*File > Open Sample > Synthetic H&E slide with a planted lesion (streamview)*" in text


@pytest.mark.parametrize("onto", [pytest.param("canvas", marks=pytest.mark.slow), "panel"])
def test_a_dropped_slide_opens_at_once(
    window: Callable[[Any], Any], slide_path: Path, qtbot: Any, onto: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    viewer, dock = open_dock(window, slide_path, qtbot)
    asked: list[Any] = []
    monkeypatch.setattr("napari._qt.qt_viewer.handle_gui_reading", lambda *args, **options: asked.append(args))
    second = slide_path.with_name("second.svs")
    write_synthetic_slide(second, size=(512, 512), mpp=0.5, seed=4)
    drop(viewer.window._qt_viewer if onto == "canvas" else dock, second)
    assert asked == []
    assert [layer.name for layer in viewer.layers] == ["planted.svs", "second.svs"]
    assert dock.state.slide.name == "second.svs"

    # a reader that the user prefers is left its files
    from napari.settings import get_settings

    plugins = get_settings().plugins
    monkeypatch.setattr(plugins, "extension2reader", {"*.svs": "napari"})
    from streamview_napari.panels.drops import opens_here

    assert not opens_here(str(second))


@pytest.mark.slow
def test_preferences_open_and_hold_the_panel(window: Callable[[Any], Any], slide_path: Path, qtbot: Any) -> None:
    from napari._qt.dialogs.preferences_dialog import PreferencesDialog

    viewer, _ = open_dock(window, slide_path, qtbot)
    dialog = PreferencesDialog(parent=viewer.window._qt_window)
    try:
        assert "streamview" in [dialog._list.item(row).text() for row in range(dialog._list.count())]
    finally:
        dialog.close()
        dialog.deleteLater()
