"""What is asked before a window closes that would lose something, by the click on its cross."""

from __future__ import annotations

from collections.abc import Callable
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

pytestmark = REAL_WINDOW
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
def opened(window: Callable[[Any], Any], computed: tuple[Path, Path], tmp_path: Path) -> Any:
    """A dock in whose window a result was computed."""
    from napari import settings
    from streamview_napari.requests.answers import Answer, RunFacts
    from streamview_napari.view import view

    settings._PLUGIN_SETTINGS.clear()
    settings.get_plugin_settings(path_dir=tmp_path)
    settings.get_settings().application.confirm_close_window = False
    viewer = window(view(computed[0]))
    dock = viewer.window.dock_widgets["Panel (streamview)"]
    saliency = open_saliency(computed[1])
    run = RunFacts("demo", False, str(computed[0]), None, Compute(tile=(64, 64)))
    dock.state.answer(Answer(saliency.prediction, saliency, 1.0, (64, 64), run))
    return dock


def click_the_cross(dock: Any, qtbot: Any, button: str) -> list[str]:
    """Close the window as its cross does, and click on a button of what is asked; return what is asked."""
    from qtpy.QtCore import Qt, QTimer
    from qtpy.QtTest import QTest
    from qtpy.QtWidgets import QApplication, QMessageBox

    asked: list[str] = []

    def answer() -> None:
        box = next((box for box in QApplication.topLevelWidgets() if isinstance(box, QMessageBox) and box.isVisible()), None)
        if box is not None:
            asked.append(box.text())
            QTest.mouseClick(next(each for each in box.buttons() if each.text() == button), Qt.MouseButton.LeftButton)

    QTimer.singleShot(300, answer)
    dock.window().windowHandle().close()
    qtbot.wait(500)
    return asked


def test_a_window_with_results_that_are_not_kept_asks_once(
    opened: Any, computed: tuple[Path, Path], qtbot: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qtpy.QtWidgets import QFileDialog

    dock, window = opened, opened.window()
    assert click_the_cross(dock, qtbot, "Cancel") == ["1 result is neither exported nor kept, and would be deleted."]
    assert window.isVisible()
    assert not dock.state.closed

    monkeypatch.setattr(QFileDialog, "getSaveFileName", lambda *a, **k: (str(tmp_path / "kept"), ""))
    assert len(click_the_cross(dock, qtbot, "Keep…")) == 1
    assert not window.isVisible()
    (record,) = Job(tmp_path / "kept").slides()
    (result,) = record.regions
    assert result.source == str(computed[0])
    kept = open_saliency(tmp_path / "kept" / result.maps[0].path)
    assert kept.prediction.identity == open_saliency(computed[1]).prediction.identity


def test_what_was_exported_or_opened_closes_without_a_word(opened: Any, qtbot: Any, tmp_path: Path) -> None:
    section = next(section for section in opened.sections if section.title == "Export")
    written: list[Path] = []
    section.export("csv", tmp_path / "hotspots.csv", done=written.append)
    qtbot.waitUntil(lambda: bool(written), timeout=LIMIT)
    window = opened.window()
    assert click_the_cross(opened, qtbot, "Cancel") == []
    assert not window.isVisible()


def test_a_run_under_way_is_named(opened: Any, qtbot: Any) -> None:
    opened.state.saved(opened.state.answers)
    opened.state.analyse(opened.state.source, Region(0, 0, 64, 64))
    window = opened.window()
    assert click_the_cross(opened, qtbot, "Cancel") == ["A run is under way."]
    assert window.isVisible()
    assert click_the_cross(opened, qtbot, "Close") == ["A run is under way."]
    assert not window.isVisible()
