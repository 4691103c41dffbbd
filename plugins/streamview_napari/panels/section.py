"""What every section of the dock is, and the small parts that several are built of, so that they look alike."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from qtpy.QtCore import Qt, Signal
from qtpy.QtWidgets import QFrame, QHBoxLayout, QLabel, QSizePolicy, QTableWidget, QVBoxLayout, QWidget

if TYPE_CHECKING:
    from napari.components import ViewerModel

    from streamview_napari.state import State

__all__ = [
    "BAR_STYLE",
    "ERROR_STYLE",
    "LABEL_WIDTH",
    "RUN_STYLE",
    "Section",
    "Shortcut",
    "error_label",
    "labelled",
    "plain_table",
    "quiet_label",
    "show_row",
]

ERROR_STYLE = "background: #5c3a1e; color: #ffffff; padding: 6px; border-radius: 3px;"
BAR_STYLE = """
QProgressBar { background: #3a3f49; border: 0; border-radius: 4px; }
QProgressBar::chunk { background: #4c86e0; border-radius: 4px; }
"""
RUN_STYLE = """
QPushButton { background: #3d74cc; color: #ffffff; font-weight: bold; padding: 5px; border-radius: 3px; }
QPushButton:hover { background: #4c86e0; }
QPushButton:disabled { background: #3a3f49; color: #7d828b; }
"""
LABEL_WIDTH = 96  # px: of the captions at the left of controls
_SPACING = 6  # px


@dataclass(frozen=True, slots=True)
class Shortcut:
    """Something a key does.

    Parameters
    ----------
    name
        Of the setting in ``napari.yaml``, under ``shortcuts``, that holds the key.
    text
        For the sheet of keys, in a few words.
    press
        Called without arguments.
    release
        Called when the key is let go; None where that means nothing.
    """

    name: str
    text: str
    press: Callable[[], Any]
    release: Callable[[], Any] | None = None


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
    folded: ClassVar[bool] = False
    """Whether only the title is shown until the user opens the section, by a click on it."""
    note_changed = Signal(str)
    """Emitted with what stands at the right of the section's title."""
    filled_changed = Signal(bool)
    """Emitted when the section gets something to show, or has nothing more to show; the dock hides it then."""

    unfold = Signal()
    """Emitted when a folded section has something for the user to see."""

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


def labelled(text: str, *widgets: QWidget) -> QHBoxLayout:
    """Return a row of a caption of fixed width and controls, the first of which takes the room that is left."""
    row = QHBoxLayout()
    row.setSpacing(_SPACING)
    caption = QLabel(text)
    caption.setFixedWidth(LABEL_WIDTH)
    row.addWidget(caption)
    for number, widget in enumerate(widgets):
        row.addWidget(widget, 0 if number else 1)
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
    label.setStyleSheet("color: #a0a4ab;")
    label.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
    label.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Minimum)
    return label


def error_label() -> QLabel:
    """Return a label for what went wrong, hidden."""
    label = QLabel()
    label.setWordWrap(True)
    label.setStyleSheet(ERROR_STYLE)
    label.hide()
    return label


def plain_table(columns: list[str]) -> QTableWidget:
    """Return a table of whole rows to choose from: no grid, no row numbers, columns stretched, rows of 24 px."""
    table = QTableWidget(0, len(columns))
    table.setHorizontalHeaderLabels(columns)
    table.setShowGrid(False)
    table.setFrameShape(QFrame.Shape.NoFrame)
    table.verticalHeader().setVisible(False)
    table.verticalHeader().setDefaultSectionSize(24)
    table.horizontalHeader().setSectionResizeMode(table.horizontalHeader().ResizeMode.Stretch)
    table.setSelectionBehavior(QTableWidget.SelectionBehavior.SelectRows)
    table.setSelectionMode(QTableWidget.SelectionMode.SingleSelection)
    table.setEditTriggers(QTableWidget.EditTrigger.NoEditTriggers)
    table.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
    return table
