"""How the controls of the dock take the wheel and the keys: one event filter for all of them, also for those made later."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from itertools import pairwise

from qtpy.QtCore import QChildEvent, QEvent, QObject, Qt
from qtpy.QtGui import QFocusEvent, QPainter, QPaintEvent, QPen, QResizeEvent
from qtpy.QtWidgets import QAbstractSlider, QAbstractSpinBox, QComboBox, QLayout, QScrollBar, QTabBar, QWidget

from streamview_napari.panels.theme import set_role

__all__ = ["Focus", "order_tabs"]

_TURNED_BY_WHEEL = (QAbstractSlider, QAbstractSpinBox, QComboBox, QTabBar)
_BY_KEYS = (Qt.FocusReason.TabFocusReason, Qt.FocusReason.BacktabFocusReason, Qt.FocusReason.ShortcutFocusReason)
_UNASKED = (Qt.FocusReason.PopupFocusReason, Qt.FocusReason.ActiveWindowFocusReason, Qt.FocusReason.MenuBarFocusReason)


class Focus(QObject):
    """Watches all controls below a widget.

    The wheel changes only a control that was clicked; over any other it scrolls what the control lies in. The control that keys act on
    has a frame. A control whose maker gave it no name for screen readers is named by the first words of its tip, or like the
    control that it is a part of.

    Parameters
    ----------
    root
        The widget.
    """

    def __init__(self, root: QWidget) -> None:
        super().__init__(root)
        self._clicked: QObject | None = None
        self._frame: _Frame | None = None
        self._framed: QWidget | None = None
        self._watch(root)

    def _watch(self, root: QWidget) -> None:
        for widget in (root, *root.findChildren(QWidget)):
            if widget.window() is not root.window():  # dialogs and lists that open look after themselves
                continue
            widget.installEventFilter(self)
            if _turned_by_wheel(widget) and widget.focusPolicy() == Qt.FocusPolicy.WheelFocus:
                widget.setFocusPolicy(Qt.FocusPolicy.StrongFocus)  # or the wheel would count as a click
            if widget.focusPolicy() & Qt.FocusPolicy.TabFocus and not widget.accessibleName():
                widget.setAccessibleName(_first_words(widget.toolTip()) or _name_around(widget))

    def eventFilter(self, watched: QObject, event: QEvent) -> bool:
        """Keep the wheel from controls that were not clicked; follow the focus, and controls that are added."""
        kind = event.type()
        if kind == QEvent.Type.Wheel and _turned_by_wheel(watched) and watched is not self._clicked:
            event.ignore()  # Qt then offers it to the parents, up to the scroll area
            return True
        if isinstance(event, QChildEvent) and kind == QEvent.Type.ChildPolished:
            child = event.child()
            if isinstance(child, QWidget) and not child.isWindow():
                self._watch(child)
        elif isinstance(event, QFocusEvent) and isinstance(watched, QWidget):
            self._follow(watched, event)
        elif isinstance(event, QResizeEvent) and self._frame is not None and watched is self._framed:
            self._frame.resize(event.size())
        return False

    def _follow(self, widget: QWidget, event: QFocusEvent) -> None:
        reason = event.reason()
        if reason in _UNASKED:  # of a window or a list that opens or closes: the control is the same
            return
        if self._frame is not None and (event.gotFocus() or widget is self._framed):
            with suppress(RuntimeError):  # it went with its control
                self._frame.deleteLater()
            self._frame = self._framed = None
        self._clicked = widget if event.gotFocus() and reason == Qt.FocusReason.MouseFocusReason else None
        if event.gotFocus() and reason in _BY_KEYS and widget.focusPolicy() & Qt.FocusPolicy.TabFocus:  # dialogs get it, too, once
            self._frame, self._framed = _Frame(widget), widget
            self._frame.show()


class _Frame(QWidget):
    """A frame around a control; it is the control's child, so that it moves and goes with it."""

    def __init__(self, control: QWidget) -> None:
        super().__init__(control)
        set_role(self, "focus")
        self.setAttribute(Qt.WidgetAttribute.WA_TransparentForMouseEvents)
        self.setGeometry(control.rect())

    def paintEvent(self, event: QPaintEvent) -> None:
        """Draw it."""
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        painter.setPen(QPen(self.palette().color(self.foregroundRole()), 2))
        painter.drawRoundedRect(self.rect().adjusted(1, 1, -1, -1), 2, 2)


def order_tabs(root: QWidget) -> None:
    """Let Tab go through the controls as they stand, from the top left."""
    for one, other in pairwise(_controls(root)):
        QWidget.setTabOrder(one, other)


def _controls(widget: QWidget) -> Iterator[QWidget]:
    if widget.focusPolicy() & Qt.FocusPolicy.TabFocus and widget.focusProxy() is None:
        yield widget
    elif (layout := widget.layout()) is not None:
        yield from _controls_in(layout)


def _controls_in(layout: QLayout) -> Iterator[QWidget]:
    for number in range(layout.count()):
        item = layout.itemAt(number)
        widget, inner = (None, None) if item is None else (item.widget(), item.layout())
        if widget is not None:
            yield from _controls(widget)
        elif inner is not None:
            yield from _controls_in(inner)


def _turned_by_wheel(watched: QObject) -> bool:
    return isinstance(watched, _TURNED_BY_WHEEL) and not isinstance(watched, QScrollBar)


def _name_around(part: QWidget) -> str:
    """Return the name of the control that a slider or a list is part of."""
    around = part.parentWidget()
    while around is not None and not around.accessibleName() and around.focusPolicy() == Qt.FocusPolicy.NoFocus:
        around = around.parentWidget()
    return "" if around is None else around.accessibleName()


def _first_words(tip: str) -> str:
    """Return a tip up to its first stop."""
    for stop in (". ", "; ", ": ", ", "):
        tip = tip.partition(stop)[0]
    return tip.strip().rstrip(".")
