"""The dock in a real window, and what a person does to it with mouse, wheel and keys."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["LIMIT", "activate", "click", "key", "open_dock", "section", "settle", "turn_wheel"]

LIMIT = 60_000  # ms that anything may take on a busy machine


def open_dock(window: Callable[[Any], Any], path: Path, qtbot: Any, size: tuple[int, int] = (1280, 800)) -> tuple[Any, Any]:
    """Open a window of this size on a slide; return the viewer and its dock, with the demo's network loaded."""
    from qtpy.QtWidgets import QApplication
    from streamview_napari.view import view

    viewer = window(view(path))
    viewer.window._qt_window.resize(*size)
    dock = viewer.window.dock_widgets["Panel (streamview)"]
    qtbot.waitUntil(lambda: dock.state.loaded is not None, timeout=LIMIT)
    settle(qtbot)
    if QApplication.activeModalWidget() is None:
        activate(dock, qtbot)
    return viewer, dock


def section(dock: Any, title: str) -> Any:
    """Return a section of the dock."""
    return next(found for found in dock.sections if found.title == title)


def activate(dock: Any, qtbot: Any) -> None:
    """Make the dock's window the one that keys go to: without a window manager none is."""
    window = dock.window()

    def active() -> bool:
        if not window.isActiveWindow():
            window.activateWindow()  # again where the window of another test took the keys
        return bool(window.isActiveWindow())

    qtbot.waitUntil(active, timeout=LIMIT)


def settle(qtbot: Any) -> None:
    """Let the window lay itself out and draw."""
    qtbot.wait(300)


def click(widget: Any, at: tuple[int, int] | None = None) -> None:
    """Click with the left button, in the middle or at ``(x, y)``."""
    from qtpy.QtCore import QPoint, Qt
    from qtpy.QtTest import QTest

    QTest.mouseClick(widget, Qt.MouseButton.LeftButton, pos=widget.rect().center() if at is None else QPoint(*at))


def key(widget: Any, key: Any, modifiers: Any = None) -> None:
    """Press and release a key in the control that has the focus; `widget` is of the same window."""
    from qtpy.QtCore import Qt
    from qtpy.QtTest import QTest
    from qtpy.QtWidgets import QApplication

    window, stop = widget.window(), time.monotonic() + 10
    while QApplication.activeModalWidget() is None and not window.isActiveWindow() and time.monotonic() < stop:
        window.activateWindow()  # the window of another test may have taken the keys
        QApplication.processEvents()
    QTest.keyClick(widget.window().focusWidget() or widget, key, modifiers or Qt.KeyboardModifier.NoModifier)


def turn_wheel(widget: Any, notches: int = -1) -> None:
    """Turn the wheel over the middle of a control; the window gets it as from the system, and finds what lies there."""
    from qtpy.QtCore import QPoint, QPointF
    from qtpy.QtTest import QTest
    from qtpy.QtWidgets import QApplication

    place = QPointF(widget.mapTo(widget.window(), widget.rect().center()))
    QTest.wheelEvent(widget.window().windowHandle(), place, QPoint(0, 120 * notches))
    stop = time.monotonic() + 0.05
    while time.monotonic() < stop:
        QApplication.processEvents()
