"""Sections below each other under titles, of which as many are open as the height can hold."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from qtpy.QtCore import QEvent, QSize, Qt, QTimer, Signal
from qtpy.QtGui import QResizeEvent, QShowEvent
from qtpy.QtWidgets import QFrame, QHBoxLayout, QLabel, QScrollArea, QToolButton, QVBoxLayout, QWidget

from streamview_napari.panels.section import Section
from streamview_napari.panels.theme import set_role

__all__ = ["Column"]


class Column(QScrollArea):
    """One tab of the dock.

    Opening a section closes those opened longest ago until what is open fits; sections that stay are left open. Only where even that is
    too high, or the user's window very low, the column scrolls.

    Parameters
    ----------
    sections
        From top to bottom.
    """

    wanted = Signal()
    """Emitted when the user must see one of the sections."""

    def __init__(self, sections: Sequence[Section]) -> None:
        super().__init__()
        self.setWidgetResizable(True)
        self.setFrameShape(QFrame.Shape.NoFrame)
        self.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.setFocusPolicy(Qt.FocusPolicy.NoFocus)
        self._stack = _Stack()
        self._open: list[_Titled] = []  # the one that must close first comes first
        for section in sections:
            titled = _Titled(section)
            titled.title.toggled.connect(partial(self._toggled, titled))
            section.filled_changed.connect(partial(self._fill, titled))
            section.unfold.connect(partial(self._want, titled))
            self._stack.column.addWidget(titled)
            self._fill(titled, section.filled)
        self._stack.column.addStretch()
        self._stack.laid_out.connect(self._fit)
        self.setWidget(self._stack)

    def resizeEvent(self, event: QResizeEvent) -> None:
        """Close what no longer fits."""
        super().resizeEvent(event)
        self._fit()

    def showEvent(self, event: QShowEvent) -> None:
        """Close what does not fit."""
        super().showEvent(event)
        self._fit()

    def _fill(self, titled: _Titled, filled: bool) -> None:
        titled.setVisible(filled)
        if filled and not titled.opened:
            titled.opened = True
            titled.title.setChecked(True)
            if titled.section.opens == "room":
                self._open.insert(0, self._open.pop())

    def _toggled(self, titled: _Titled, shown: bool) -> None:
        if titled in self._open:
            self._open.remove(titled)
        if shown:
            self._open.append(titled)

    def _want(self, titled: _Titled) -> None:
        titled.title.setChecked(True)
        self._toggled(titled, True)
        self.wanted.emit()

    def _fit(self) -> None:
        """Close one section where the open ones are too high; the layout changes with that, and what follows is looked at then."""
        shown = [titled for titled in self._open if not titled.isHidden()]
        closable = [titled for titled in shown[:-1] if titled.section.opens != "stays"]
        if self.isVisible() and closable and self._stack.heightForWidth(self.viewport().width()) > self.viewport().height():
            closable[0].title.setChecked(False)


class _Stack(QWidget):
    """What scrolls: as high as it must be, so that tables give way before anything scrolls."""

    laid_out = Signal()

    def __init__(self) -> None:
        super().__init__()
        self.column = QVBoxLayout(self)
        self.column.setContentsMargins(10, 2, 12, 8)
        self.column.setSpacing(2)

    def hasHeightForWidth(self) -> bool:
        """Its texts are wrapped."""
        return True

    def heightForWidth(self, width: int) -> int:
        """Return the least height that shows everything."""
        return self.column.totalMinimumHeightForWidth(width)

    def minimumSizeHint(self) -> QSize:
        """Return the least size, at the present width."""
        return QSize(0, self.heightForWidth(self.width()))

    def event(self, event: QEvent) -> bool:
        """Tell when something in it has changed its size."""
        done = bool(super().event(event))
        if event.type() == QEvent.Type.LayoutRequest:
            self.laid_out.emit()
            QTimer.singleShot(0, self, self._grow)
        return done

    def resizeEvent(self, event: QResizeEvent) -> None:
        """Wrap texts anew: a scroll bar that has appeared leaves less room for them."""
        super().resizeEvent(event)
        if event.size().width() != event.oldSize().width():
            QTimer.singleShot(0, self, self._grow)

    def _grow(self) -> None:
        """Ask for what is needed when all that is inside has been laid out: what the area asked for before may have been less."""
        if self.height() < self.heightForWidth(self.width()):
            self.updateGeometry()


class _Titled(QWidget):
    """A section under its title, a note and a line."""

    def __init__(self, section: Section) -> None:
        super().__init__()
        self.section = section
        self.opened = False  # whether it opened by itself, which it does once
        self.title = QToolButton()
        self.title.setText(section.title)
        self.title.setToolTip("Click to open or close this section.")
        self.title.setAccessibleName(section.title)
        self.title.setCheckable(True)
        self.title.setToolButtonStyle(Qt.ToolButtonStyle.ToolButtonTextBesideIcon)
        set_role(self.title, "title")
        note = QLabel()
        set_role(note, "quiet")
        section.note_changed.connect(note.setText)
        line = QFrame()
        line.setFixedHeight(1)
        set_role(line, "line")
        head = QHBoxLayout()
        head.addWidget(self.title)
        head.addStretch()
        head.addWidget(note)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 4, 0, 2)
        column.setSpacing(4)
        column.addLayout(head)
        column.addWidget(line)
        column.addWidget(section)
        self.title.toggled.connect(self._show)
        self._show(False)

    def _show(self, shown: bool) -> None:
        self.title.setArrowType(Qt.ArrowType.DownArrow if shown else Qt.ArrowType.RightArrow)
        self.section.setVisible(shown)
