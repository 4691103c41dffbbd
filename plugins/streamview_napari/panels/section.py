"""What every section of the dock is, and the small parts that several are built of, so that they look alike."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from qtpy.QtCore import Qt, Signal
from qtpy.QtGui import QKeyEvent
from qtpy.QtWidgets import QFrame, QHBoxLayout, QLabel, QSizePolicy, QTableWidget, QVBoxLayout, QWidget

from streamview_napari.panels.theme import set_role

if TYPE_CHECKING:
    from napari.components import ViewerModel

    from streamview_napari.state import State

__all__ = [
    "LABEL_WIDTH",
    "Opens",
    "Section",
    "Shortcut",
    "Table",
    "error_label",
    "labelled",
    "plain_table",
    "quiet_label",
    "show_row",
    "show_rows",
]

LABEL_WIDTH = 96  # px: of the captions at the left of controls
Opens = Literal["stays", "first", "room"]
"""When a section opens by itself: as soon as it has something to show, and it stays open; then as well, and others close where the height
does not do for all; only where there is room."""
_SPACING = 6  # px
_ROW = 24  # px of a table's rows
_LEAST = 2  # rows of a table that is short of room


@dataclass(frozen=True, slots=True)
class Shortcut:
    """Something a key does.

    Parameters
    ----------
    name
        Of the setting in ``napari.yaml``, under ``keys``, that holds the key.
    text
        For the sheet of keys, in a few words; empty: it is not listed, as another says it too.
    press
        Called without arguments.
    release
        Called when the key is let go; None where that means nothing.
    key
        Fixed, and acts wherever the focus is but in a text that is written; empty: that of the setting, on the canvas.
    """

    name: str
    text: str
    press: Callable[[], Any]
    release: Callable[[], Any] | None = None
    key: str = ""


class Section(QWidget):
    """One section of the dock: a column of controls over core functions.

    Parameters
    ----------
    viewer
        Whose layers it works on.
    state
        What it shares with the others.
    """

    title: ClassVar[str] = ""
    opens: ClassVar[Opens] = "first"
    """When it opens by itself; a click on its title opens and closes it at any time."""
    note_changed = Signal(str)
    """Emitted with what stands at the right of the section's title."""
    filled_changed = Signal(bool)
    """Emitted when the section gets something to show, or has nothing more to show; the dock hides it then."""

    unfold = Signal()
    """Emitted when the user must see the section, whether it is open or not."""

    def __init__(self, viewer: ViewerModel, state: State) -> None:
        super().__init__()
        self.viewer, self.state = viewer, state
        self.filled = True
        self.column = QVBoxLayout(self)
        self.column.setContentsMargins(0, 0, 0, 0)
        self.column.setSpacing(_SPACING)

    def shortcuts(self) -> list[Shortcut]:
        """Return what keys do here; the dock binds them."""
        return []

    def release(self) -> None:
        """Let go of the viewer; called once, before the window or the dock closes."""

    def fill(self, filled: bool) -> None:
        """Say whether there is something to show."""
        if filled != self.filled:
            self.filled = filled
            self.filled_changed.emit(filled)

    def note(self, text: str) -> None:
        """Say something at the right of the title."""
        self.note_changed.emit(text)


class Table(QTableWidget):
    """A table of whole rows to choose from: Return acts on a row as a click does, and Tab goes on to the next control."""

    def keyPressEvent(self, event: QKeyEvent) -> None:
        """Take Return for a click."""
        if event.key() in (Qt.Key.Key_Return, Qt.Key.Key_Enter) and self.currentRow() >= 0:
            self.cellClicked.emit(self.currentRow(), max(self.currentColumn(), 0))
        else:
            super().keyPressEvent(event)


def labelled(text: str, *widgets: QWidget) -> QHBoxLayout:
    """Return a row of a caption of fixed width and controls, the first of which takes the room that is left and bears its name."""
    row = QHBoxLayout()
    row.setSpacing(_SPACING)
    caption = QLabel(text)
    caption.setFixedWidth(LABEL_WIDTH)
    row.addWidget(caption)
    for number, widget in enumerate(widgets):
        row.addWidget(widget, 0 if number else 1)
    if widgets:
        widgets[0].setAccessibleName(text)
    return row


def show_row(row: QHBoxLayout, shown: bool) -> None:
    """Show or hide all that a row holds."""
    for number in range(row.count()):
        item = row.itemAt(number)
        widget = None if item is None else item.widget()
        if widget is not None:
            widget.setVisible(shown)


def quiet_label(text: str = "") -> QLabel:
    """Return a label for facts: wrapped, dimmed, to be selected with the mouse."""
    label = QLabel(text)
    label.setWordWrap(True)
    set_role(label, "quiet")
    label.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
    label.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Minimum)
    return label


def error_label() -> QLabel:
    """Return a label for what went wrong, hidden until it did."""
    label = QLabel()
    label.setWordWrap(True)
    set_role(label, "error")
    label.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
    label.hide()
    return label


def plain_table(columns: list[str]) -> Table:
    """Return a table: no grid, no row numbers, columns stretched."""
    table = Table(0, len(columns))
    table.setHorizontalHeaderLabels(columns)
    table.setShowGrid(False)
    table.setFrameShape(QFrame.Shape.NoFrame)
    table.verticalHeader().setVisible(False)
    table.verticalHeader().setDefaultSectionSize(_ROW)
    table.horizontalHeader().setSectionResizeMode(table.horizontalHeader().ResizeMode.Stretch)
    table.setSelectionBehavior(QTableWidget.SelectionBehavior.SelectRows)
    table.setSelectionMode(QTableWidget.SelectionMode.SingleSelection)
    table.setEditTriggers(QTableWidget.EditTrigger.NoEditTriggers)
    table.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
    table.setTabKeyNavigation(False)
    show_rows(table, 1)
    return table


def show_rows(table: QTableWidget, most: int) -> None:
    """Let a table be as high as its rows, up to so many; where the dock is short of room, it scrolls earlier."""
    header, rows = table.horizontalHeader().sizeHint().height() + 4, min(max(table.rowCount(), 1), most)
    table.setMinimumHeight(header + _ROW * min(rows, _LEAST))
    table.setMaximumHeight(header + _ROW * rows)
