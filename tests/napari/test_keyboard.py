"""The panel with the keyboard alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamview.geometry import Region
from streamview.labels.regions import Example
from streamview.slides.synthetic import write_synthetic_slide
from tests.support.dock import LIMIT, activate, click, key, open_dock, section, settle
from tests.support.real_window import REAL_WINDOW

pytestmark = REAL_WINDOW


@pytest.fixture
def opened(window: Callable[[Any], Any], tmp_path: Path, qtbot: Any) -> tuple[Any, Any]:
    path = tmp_path / "planted.svs"
    write_synthetic_slide(path, size=(768, 1024), mpp=0.5, seed=3)
    return open_dock(window, path, qtbot)


def tab_to(dock: Any, control: Any, most: int = 80) -> None:
    """Press Tab until a control has the focus."""
    from qtpy.QtCore import Qt

    for _ in range(most):
        if dock.window().focusWidget() is control:
            return
        key(dock, Qt.Key.Key_Tab)
    raise AssertionError(f"Tab does not reach {control.accessibleName()!r}: it stays at {dock.window().focusWidget()}")


def run_by_keys(viewer: Any, dock: Any, qtbot: Any) -> None:
    """From the canvas, with Tab, arrows and the space bar: choose the whole slide, and run."""
    from qtpy.QtCore import Qt

    panel = section(dock, "Model and region")
    viewer.window._qt_viewer.canvas.native.setFocus()
    tab_to(dock, panel.region)
    for _ in range(panel.region.count()):
        if panel.region.currentData() == "whole":
            break
        key(dock, Qt.Key.Key_Down)
    assert panel.region.currentData() == "whole"
    qtbot.waitUntil(panel.run.isEnabled, timeout=LIMIT)
    tab_to(dock, panel.run)
    key(dock, Qt.Key.Key_Space)
    qtbot.waitUntil(lambda: bool(dock.state.answers) and not panel.task.running, timeout=LIMIT)
    settle(qtbot)


@pytest.mark.slow
def test_the_question_mark_opens_the_sheet(opened: tuple[Any, Any], qtbot: Any) -> None:
    from qtpy.QtCore import Qt
    from qtpy.QtTest import QTest

    viewer, dock = opened
    canvas = viewer.window._qt_viewer.canvas.native
    for modifiers in (Qt.KeyboardModifier.ShiftModifier, Qt.KeyboardModifier.NoModifier):
        activate(dock, qtbot)
        canvas.setFocus()
        QTest.keyClick(canvas, Qt.Key.Key_Question, modifiers)
        settle(qtbot)
        assert dock.sheet is not None
        assert dock.sheet.isVisible()
        QTest.keyClick(dock.sheet, Qt.Key.Key_Escape)
        assert not dock.sheet.isVisible()
    activate(dock, qtbot)
    for other in (Qt.Key.Key_Exclam, Qt.Key.Key_AsciiTilde, Qt.Key.Key_Slash):  # napari has one name for all it does not know
        QTest.keyClick(canvas, other, Qt.KeyboardModifier.ShiftModifier)
        assert not dock.sheet.isVisible()
    memory = section(dock, "Model and region").memory
    click(memory)
    QTest.keyClicks(memory, "?")
    assert memory.text() == "?"
    assert not dock.sheet.isVisible()


def test_every_control_has_a_name(opened: tuple[Any, Any], qtbot: Any) -> None:
    from qtpy.QtCore import Qt
    from qtpy.QtGui import QAccessible
    from qtpy.QtWidgets import QWidget

    viewer, dock = opened
    run_by_keys(viewer, dock, qtbot)
    section(dock, "Model and region").setVisible(True)
    dock.tabs.setCurrentIndex(1)
    settle(qtbot)
    named: dict[str, str] = {}
    for widget in dock.findChildren(QWidget):
        inside = widget.window() is dock.window() and not widget.objectName().startswith("qt_")
        if inside and widget.focusPolicy() & Qt.FocusPolicy.TabFocus and widget.focusProxy() is None:
            said = QAccessible.queryAccessibleInterface(widget)
            named[f"{type(widget).__name__} {widget.toolTip()[:40]}"] = widget.accessibleName() or said.text(QAccessible.Text.Name)
    assert len(named) > 40
    assert [what for what, name in named.items() if not name.strip()] == []


def test_a_whole_run_with_the_keyboard_alone(opened: tuple[Any, Any], qtbot: Any) -> None:
    from qtpy.QtCore import Qt

    viewer, dock = opened
    run_by_keys(viewer, dock, qtbot)
    result = section(dock, "Result")
    assert result.table.rowCount() == 1

    # on to the table, where Return flies to the answer, and out of it again
    viewer.scene.camera.center = (0, 0, 0)
    tab_to(dock, result.table)
    key(dock, Qt.Key.Key_Return)
    np.testing.assert_allclose(viewer.scene.camera.center[-2:], (768 / 4, 1024 / 4), atol=0.5)
    key(dock, Qt.Key.Key_Tab)
    assert dock.window().focusWidget() is not result.table
    assert not result.table.isAncestorOf(dock.window().focusWidget())

    # the other tab
    tab_to(dock, dock.tabs.tabBar(), 200)
    key(dock, Qt.Key.Key_Right)
    assert dock.tabs.tabText(dock.tabs.currentIndex()) == "Train"


def test_tab_goes_down_the_panel(opened: tuple[Any, Any], qtbot: Any) -> None:
    from qtpy.QtCore import QPoint, Qt

    viewer, dock = opened
    panel = section(dock, "Model and region")
    qtbot.waitUntil(panel.run.isEnabled, timeout=LIMIT)
    viewer.window._qt_viewer.canvas.native.setFocus()
    tab_to(dock, panel.model)
    passed = []
    while panel.isAncestorOf(dock.window().focusWidget()):
        passed.append(dock.window().focusWidget())
        key(dock, Qt.Key.Key_Tab)
    assert [
        panel.model,
        panel.browse,
        panel.region,
        panel.draw,
        panel.device,
        panel.precision,
        panel.memory,
        panel.even_glass,
        panel.method,
        panel.maps,
        panel.run,
    ] == passed
    places = [widget.mapTo(dock, QPoint(0, widget.height())) for widget in passed]
    assert [place.y() // 12 for place in places] == sorted(place.y() // 12 for place in places)


@pytest.mark.slow
def test_the_control_that_keys_act_on_is_framed(opened: tuple[Any, Any], qtbot: Any) -> None:
    from streamview_napari.panels.theme import colours

    viewer, dock = opened
    panel = section(dock, "Model and region")
    qtbot.waitUntil(panel.run.isEnabled, timeout=LIMIT)
    for theme in ("light", "dark"):
        viewer.theme = theme
        settle(qtbot)
        focus = np.array(colours(theme).focus)

        def framed(control: Any, focus: Any = focus) -> int:
            shown = control.grab().toImage().convertToFormat(control.grab().toImage().Format.Format_RGB888)
            width, height = shown.width(), shown.height()
            pixels = np.frombuffer(shown.constBits(), np.uint8)[: shown.bytesPerLine() * height].reshape(height, -1)[:, : 3 * width]
            near = np.abs(pixels.reshape(height, width, 3).astype(int) - focus).sum(-1) < 12
            return int(near[:2].sum() + near[-2:].sum())

        viewer.window._qt_viewer.canvas.native.setFocus()
        before = None
        for control in (panel.model, panel.browse, panel.region, panel.memory, panel.maps):
            tab_to(dock, control)
            settle(qtbot)
            assert framed(control) > control.width(), (theme, control.accessibleName() or control.text())
            assert before is None or framed(before) < before.width() / 2
            before = control
        click(panel.memory)  # the mouse needs none
        settle(qtbot)
        assert framed(panel.memory) < panel.memory.width() / 2


@pytest.mark.slow
def test_return_acts_on_rows_like_a_click(opened: tuple[Any, Any], qtbot: Any) -> None:
    from qtpy.QtCore import Qt

    viewer, dock = opened
    labels = tuple(Example(dock.state.slide_path, "lesion", Region(y, x, 64, 64)) for y, x in ((0, 0), (512, 768)))
    dock.state.label(labels)
    dock.tabs.setCurrentIndex(1)
    settle(qtbot)
    table = section(dock, "Labels").table
    dock.tabs.tabBar().setFocus()
    tab_to(dock, table)
    key(dock, Qt.Key.Key_Down)
    if table.currentRow() != 1:
        key(dock, Qt.Key.Key_Down)
    assert table.currentRow() == 1
    key(dock, Qt.Key.Key_Return)
    np.testing.assert_allclose(viewer.scene.camera.center[-2:], ((512 + 32) * 0.5, (768 + 32) * 0.5), atol=0.5)
    key(dock, Qt.Key.Key_Up)
    key(dock, Qt.Key.Key_Enter)
    np.testing.assert_allclose(viewer.scene.camera.center[-2:], (16, 16), atol=0.5)
