"""What is asked before a window closes that would lose something, by the click on its cross."""

from __future__ import annotations

import ctypes
import ctypes.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import streamview
from streamview.geometry import Region
from streamview.inference.compute import Compute
from streamview.jobs import Job
from streamview.results import open_saliency
from streamview.slides.synthetic import write_synthetic_slide
from tests.support.real_window import REAL_WINDOW

pytestmark = [*REAL_WINDOW, pytest.mark.skipif(ctypes.util.find_library("X11") is None, reason="the cross is clicked by X11")]
LIMIT = 60_000  # ms


@pytest.fixture(scope="module")
def computed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A slide, and a saved saliency of it."""
    folder = tmp_path_factory.mktemp("slides")
    write_synthetic_slide(folder / "a.svs", size=(512, 512), mpp=0.5, seed=1)
    with streamview.open_slide(folder / "a.svs") as slide:
        streamview.saliency(streamview.load_model("demo"), slide, Region(0, 0, 256, 256), out=folder / "a.ome.zarr")
    return folder / "a.svs", folder / "a.ome.zarr"


@pytest.fixture
def opened(qapp: Any, own_settings: Path, computed: tuple[Path, Path]) -> Iterator[Any]:
    """A dock in whose window a result was computed."""
    from napari import settings
    from streamview_napari.requests.answers import Answer, RunFacts
    from streamview_napari.view import view

    settings.get_settings().application.confirm_close_window = False
    viewer = view(computed[0])
    dock = viewer.window.dock_widgets["Panel (streamview)"]
    saliency = open_saliency(computed[1])
    run = RunFacts("demo", False, str(computed[0]), None, Compute(tile=(64, 64)))
    dock.state.answer(Answer(saliency.prediction, saliency, 1.0, (64, 64), run))
    state = dock.state
    yield dock
    if not state.closed:
        viewer.close()
    qapp.processEvents()


def click_the_cross(dock: Any, qtbot: Any, button: str, close: Callable[[Any], None] | None = None) -> list[str]:
    """Close the window as its cross does, or otherwise, and click on a button of what is asked; return what is asked."""
    close = close or (lambda dock: ask_to_close(int(dock.window().winId())))
    from qtpy.QtCore import Qt, QTimer
    from qtpy.QtTest import QTest
    from qtpy.QtWidgets import QApplication, QMessageBox

    asked: list[str] = []

    def answer() -> None:
        box = next((box for box in QApplication.topLevelWidgets() if isinstance(box, QMessageBox) and box.isVisible()), None)
        if box is not None:
            asked.append(box.text())
            QTest.mouseClick(next(each for each in box.buttons() if each.text() == button), Qt.MouseButton.LeftButton)

    QTimer.singleShot(400, answer)
    close(dock)
    qtbot.wait(800)
    return asked


def by_the_menu(dock: Any) -> None:
    """What File > Close Window calls, if the window is the active one, which takes a window manager."""
    dock.window().close(quit_app=False, confirm_need=True)


class _ClientMessage(ctypes.Structure):
    """Xlib's XClientMessageEvent, as long as its XEvent."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("serial", ctypes.c_ulong),
        ("send_event", ctypes.c_int),
        ("display", ctypes.c_void_p),
        ("window", ctypes.c_ulong),
        ("message_type", ctypes.c_ulong),
        ("format", ctypes.c_int),
        ("data", ctypes.c_long * 5),
        ("rest", ctypes.c_long * 12),
    )


def ask_to_close(window: int) -> None:
    """Send a window what its manager sends when the cross is clicked; nothing in Qt can send it."""
    xlib = ctypes.CDLL("libX11.so.6")
    xlib.XOpenDisplay.restype, xlib.XInternAtom.restype = ctypes.c_void_p, ctypes.c_ulong
    display = ctypes.c_void_p(xlib.XOpenDisplay(None))
    protocols, delete = (xlib.XInternAtom(display, name, 0) for name in (b"WM_PROTOCOLS", b"WM_DELETE_WINDOW"))
    message = _ClientMessage(33, 0, 1, display, window, protocols, 32, (ctypes.c_long * 5)(delete))
    xlib.XSendEvent(display, ctypes.c_ulong(window), 0, ctypes.c_long(0), ctypes.byref(message))
    xlib.XCloseDisplay(display)


def test_a_window_with_results_that_are_not_kept_asks_once(
    opened: Any, computed: tuple[Path, Path], qtbot: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qtpy.QtWidgets import QFileDialog

    dock, state = opened, opened.state
    assert click_the_cross(dock, qtbot, "Cancel") == ["1 result is neither exported nor kept, and would be deleted."]
    assert not state.closed

    monkeypatch.setattr(QFileDialog, "getSaveFileName", lambda *a, **k: (str(tmp_path / "kept"), ""))
    assert len(click_the_cross(dock, qtbot, "Keep…")) == 1
    assert state.closed
    (record,) = Job(tmp_path / "kept").slides()
    (result,) = record.regions
    assert result.source == str(computed[0])
    kept = open_saliency(tmp_path / "kept" / result.maps[0].path)
    assert kept.prediction.identity == open_saliency(computed[1]).prediction.identity


@pytest.mark.slow
def test_the_menu_asks_too_and_a_program_does_not(opened: Any, qtbot: Any) -> None:
    state = opened.state
    assert click_the_cross(opened, qtbot, "Cancel", by_the_menu) == ["1 result is neither exported nor kept, and would be deleted."]
    assert not state.closed
    assert len(click_the_cross(opened, qtbot, "Close", by_the_menu)) == 1
    assert state.closed


@pytest.mark.slow
def test_a_program_that_closes_the_viewer_is_not_asked(opened: Any, qtbot: Any) -> None:
    state = opened.state
    assert click_the_cross(opened, qtbot, "Cancel", lambda dock: dock.viewer.close()) == []
    assert state.closed


@pytest.mark.slow
def test_another_answer_is_followed_by_the_whole_panel(opened: Any, computed: tuple[Path, Path], tmp_path: Path, qtbot: Any) -> None:
    """Display and hotspots are those of the answer whose row was clicked, although all answers share a layer."""
    from qtpy.QtCore import Qt
    from qtpy.QtTest import QTest
    from streamview_napari.canvas.display import recipe_of
    from streamview_napari.requests.answers import Answer, RunFacts

    dock, sections = opened, {section.title: section for section in opened.sections}
    with streamview.open_slide(computed[0]) as slide:
        for number, target in enumerate(("lesion", "normal")):
            region = Region(128 * number, 128, 256, 256)
            saliency = streamview.saliency(streamview.load_model("demo"), slide, region, target=target, out=tmp_path / f"{target}.ome.zarr")
            run = RunFacts("demo", False, str(computed[0]), target, Compute(tile=(64, 64)))
            dock.state.answer(Answer(saliency.prediction, saliency, 1.0, (64, 64), run))
    table, display, hotspots = sections["Result"].table, sections["Display"], sections["Hotspots"]
    noted: list[str] = []
    display.note_changed.connect(noted.append)
    targets = [table.item(row, 2).text() for row in range(table.rowCount())]
    for target in ("lesion", "normal", "lesion"):
        row = max(row for row, text in enumerate(targets) if text == target)
        at = table.visualItemRect(table.item(row, 0)).center()
        QTest.mouseClick(table.viewport(), Qt.MouseButton.LeftButton, Qt.KeyboardModifier.NoModifier, at)
        qtbot.waitUntil(lambda: dock.state.map.saliency.target.name == target, timeout=LIMIT)  # noqa: B023
        qtbot.waitUntil(lambda: noted[-1:] == [target], timeout=LIMIT)  # noqa: B023
        assert display.kind.checkedId() == (2 if recipe_of(dock.state.map_layer).outline else 1) == (2 if target == "lesion" else 1)
        qtbot.waitUntil(lambda: (hotspots._of is not None) and hotspots._of[0] is dock.state.map.saliency, timeout=LIMIT)


def test_what_was_exported_or_opened_closes_without_a_word(opened: Any, qtbot: Any, tmp_path: Path) -> None:
    section = next(section for section in opened.sections if section.title == "Export")
    written: list[Path] = []
    section.export("csv", tmp_path / "hotspots.csv", done=written.append)
    qtbot.waitUntil(lambda: bool(written), timeout=LIMIT)
    state = opened.state
    assert click_the_cross(opened, qtbot, "Cancel") == []
    assert state.closed


@pytest.mark.slow
def test_a_run_under_way_is_named(opened: Any, qtbot: Any) -> None:
    opened.state.saved(opened.state.answers)
    opened.state.analyse(opened.state.source, Region(0, 0, 64, 64))
    state = opened.state
    assert click_the_cross(opened, qtbot, "Cancel") == ["A run is under way."]
    assert not state.closed
    assert click_the_cross(opened, qtbot, "Close") == ["A run is under way."]
    assert state.closed
