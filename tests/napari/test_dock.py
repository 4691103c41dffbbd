"""The dock under a person's hands: wheel, tabs, titles, and what fits a small screen."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from streamview.slides.synthetic import write_synthetic_slide
from tests.support.dock import LIMIT, click, open_dock, section, settle, turn_wheel
from tests.support.real_window import REAL_WINDOW

pytestmark = REAL_WINDOW


@pytest.fixture(scope="module")
def slide_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("slide") / "planted.svs"
    write_synthetic_slide(path, size=(512, 640), mpp=0.5, seed=3)
    return path


def values(dock: Any) -> dict[str, Any]:
    """What the controls of the dock say that a wheel could change."""
    from qtpy.QtWidgets import QAbstractSlider, QAbstractSpinBox, QComboBox, QScrollBar

    said: dict[str, Any] = {}
    for kind in (QComboBox, QAbstractSpinBox, QAbstractSlider):
        for number, widget in enumerate(dock.findChildren(kind)):
            if not isinstance(widget, QScrollBar):
                said[f"{kind.__name__} {number}"] = widget.currentText() if kind is QComboBox else widget.value()
    return said


def run_whole(dock: Any, qtbot: Any) -> None:
    """Run the network on the whole slide."""
    panel = section(dock, "Model and region")
    panel.region.setCurrentIndex(panel.region.findData("whole"))
    qtbot.waitUntil(panel.run.isEnabled, timeout=LIMIT)
    panel.run.click()
    qtbot.waitUntil(lambda: bool(dock.state.answers) and not panel.task.running, timeout=LIMIT)
    qtbot.waitUntil(lambda: not section(dock, "Hotspots").isHidden() or bool(section(dock, "Hotspots").hotspots), timeout=LIMIT)
    qtbot.wait(1000)


def title_of(dock: Any, name: str) -> Any:
    from qtpy.QtWidgets import QToolButton

    return next(found for found in dock.findChildren(QToolButton) if found.text() == name)


def is_open(dock: Any, name: str) -> bool:
    return bool(section(dock, name).isVisible())


def too_high(dock: Any) -> int:
    """By how many px the tab on show can be scrolled."""
    return int(dock.tabs.currentWidget().verticalScrollBar().maximum())


@pytest.mark.slow
def test_the_wheel_changes_no_control_that_was_not_clicked(window: Callable[[Any], Any], slide_path: Path, qtbot: Any) -> None:
    from qtpy.QtCore import Qt
    from qtpy.QtTest import QTest
    from qtpy.QtWidgets import QAbstractSlider, QComboBox, QDoubleSpinBox, QScrollBar, QVBoxLayout, QWidget

    _, dock = open_dock(window, slide_path, qtbot, (1280, 560))
    run_whole(dock, qtbot)
    panel, display = section(dock, "Model and region"), section(dock, "Display")
    late = QDoubleSpinBox()  # made after the dock, inside something made after the dock
    late.setValue(5)
    holder = QWidget()
    QVBoxLayout(holder).addWidget(late)
    display.column.insertWidget(0, holder)
    for name in ("Model and region", "Display"):
        if not is_open(dock, name):
            click(title_of(dock, name))
        settle(qtbot)
        before = values(dock)
        area, turned = dock.tabs.currentWidget(), 0
        for kind in (QComboBox, QAbstractSlider, QDoubleSpinBox):
            for control in section(dock, name).findChildren(kind):
                if control.isVisible() and control.isEnabled() and not isinstance(control, QScrollBar):
                    for notches in (-1, 1, 1):
                        area.ensureWidgetVisible(control)
                        turn_wheel(control, notches)
                    turned += 1
        assert turned >= 3
        assert values(dock) == before
    assert late.value() == 5

    # over an untouched control the wheel scrolls the dock
    bar, target = area.verticalScrollBar(), section(dock, "Result").target
    assert bar.maximum() > 0
    bar.setValue(0)
    turn_wheel(target)
    assert bar.value() > 0

    # keys alone are no click either
    bar.setValue(0)
    target.setFocus(Qt.FocusReason.TabFocusReason)
    turn_wheel(target)
    assert values(dock) == before
    assert bar.value() > 0

    # a click makes it the one that the wheel turns, until another is clicked
    slider = display.opacity._slider
    area.ensureWidgetVisible(slider)
    QTest.mousePress(slider, Qt.MouseButton.LeftButton, pos=slider.rect().center())
    QTest.mouseRelease(slider, Qt.MouseButton.LeftButton, pos=slider.rect().center())
    clicked = display.opacity.value()
    turn_wheel(slider)
    assert display.opacity.value() != clicked
    area.ensureWidgetVisible(display.reset)
    click(display.reset)
    settle(qtbot)
    opacity = display.opacity.value()
    turn_wheel(slider)
    assert display.opacity.value() == opacity
    assert panel.model.currentText() == "demo"


def test_the_wheel_does_not_turn_tabs(window: Callable[[Any], Any], slide_path: Path, qtbot: Any) -> None:
    _, dock = open_dock(window, slide_path, qtbot)
    turn_wheel(dock.tabs.tabBar())
    assert dock.tabs.currentIndex() == 0


def test_at_1280_by_800_only_tables_scroll(window: Callable[[Any], Any], slide_path: Path, qtbot: Any, screenshots: Path) -> None:
    viewer, dock = open_dock(window, slide_path, qtbot)
    assert [dock.tabs.tabText(number) for number in range(dock.tabs.count())] == ["Analyse", "Train"]
    assert is_open(dock, "Slide")
    assert is_open(dock, "Model and region")
    run_whole(dock, qtbot)
    assert is_open(dock, "Display")  # opens with the map
    names = ["Slide", "Model and region", "Result", "Display", "Hotspots", "Export"]
    for name in ("Hotspots", "Export", "Model and region", "Display", "Hotspots", "Model and region", "Export", "Display"):
        if not is_open(dock, name):
            click(title_of(dock, name))
            settle(qtbot)
        assert is_open(dock, name)
        assert too_high(dock) == 0, (name, [each for each in names if is_open(dock, each)])
        assert is_open(dock, "Slide")
        assert is_open(dock, "Result")
    Image.fromarray(viewer.screenshot(canvas_only=False, flash=False)).save(screenshots / "dock-1280x800.png")

    # a folded title keeps its note
    if is_open(dock, "Hotspots"):
        click(title_of(dock, "Hotspots"))
    head = title_of(dock, "Hotspots").parentWidget()
    assert not is_open(dock, "Hotspots")
    assert any(label.isVisible() and "found" in label.text() for label in head.findChildren(type(dock.hint)))

    bar = dock.tabs.tabBar()
    click(bar, (bar.tabRect(1).center().x(), bar.tabRect(1).center().y()))
    settle(qtbot)
    for name in ("Labels", "Fine-tune"):
        assert is_open(dock, name)
    assert too_high(dock) == 0


@pytest.mark.slow
def test_on_a_tall_screen_all_that_fits_is_open(window: Callable[[Any], Any], slide_path: Path, qtbot: Any) -> None:
    _, dock = open_dock(window, slide_path, qtbot, (1600, 1400))
    run_whole(dock, qtbot)
    for name in ("Slide", "Model and region", "Result", "Display", "Hotspots", "Export"):
        assert is_open(dock, name), name
    assert too_high(dock) == 0
    dock.window().resize(1600, 800)
    qtbot.waitUntil(lambda: too_high(dock) == 0)
    assert not is_open(dock, "Export")
    assert is_open(dock, "Display")


@pytest.mark.slow
def test_what_runs_is_in_sight(window: Callable[[Any], Any], slide_path: Path, qtbot: Any) -> None:
    from qtpy.QtCore import Qt
    from qtpy.QtTest import QTest

    viewer, dock = open_dock(window, slide_path, qtbot)
    panel = section(dock, "Model and region")
    panel.region.setCurrentIndex(panel.region.findData("whole"))
    qtbot.waitUntil(panel.run.isEnabled, timeout=LIMIT)
    click(title_of(dock, "Model and region"))
    assert not is_open(dock, "Model and region")
    bar = dock.tabs.tabBar()
    click(bar, (bar.tabRect(1).center().x(), bar.tabRect(1).center().y()))
    QTest.keyClick(viewer.window._qt_viewer.canvas.native, Qt.Key.Key_R, Qt.KeyboardModifier.ShiftModifier)
    qtbot.waitUntil(lambda: panel.task.running, timeout=LIMIT)
    assert is_open(dock, "Model and region")
    assert panel.cancel.isVisible()
    qtbot.waitUntil(lambda: not panel.task.running, timeout=LIMIT)


def test_the_key_that_labels_shows_the_tab_where_labels_are(window: Callable[[Any], Any], slide_path: Path, qtbot: Any) -> None:
    from qtpy.QtCore import Qt
    from qtpy.QtTest import QTest

    viewer, dock = open_dock(window, slide_path, qtbot)
    QTest.keyClick(viewer.window._qt_viewer.canvas.native, Qt.Key.Key_L, Qt.KeyboardModifier.ShiftModifier)
    settle(qtbot)
    assert dock.tabs.tabText(dock.tabs.currentIndex()) == "Train"
    assert is_open(dock, "Labels")
