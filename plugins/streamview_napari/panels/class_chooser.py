"""The chooser of the class that a region gets, with a way to name a new one."""

from __future__ import annotations

from collections.abc import Sequence

from qtpy.QtCore import QSignalBlocker, Qt, Signal
from qtpy.QtGui import QColor
from qtpy.QtWidgets import QComboBox, QInputDialog, QWidget

from streamview_napari.requests.labels import colour_of

__all__ = ["ClassChooser"]

_NEW = "New class…"


class ClassChooser(QComboBox):
    """Classes in their colours; the last entry asks for a new one."""

    chosen_changed = Signal(str)
    """Emitted with the class when another is chosen."""
    named = Signal(str)
    """Emitted with the name of a new class."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.dialog: QInputDialog | None = None
        self.activated.connect(self._activated)
        self.editTextChanged.connect(lambda text: self.chosen_changed.emit(self.chosen))

    @property
    def chosen(self) -> str:
        """The class that is chosen; empty where there is none."""
        text = self.currentText().strip()
        return "" if text == _NEW else text

    def offer(self, names: Sequence[str], *, free: bool, chosen: str | None = None) -> None:
        """Offer these classes.

        Parameters
        ----------
        names
            In the order that decides their colours.
        free
            Whether anything may be written: values of a regression, or several classes joined by ``;``.
        chosen
            Which to choose; that of before where None.
        """
        chosen = self.chosen if chosen is None else chosen
        with QSignalBlocker(self):
            self.clear()
            for name in names:
                self.addItem(name)
                self.setItemData(self.count() - 1, QColor(colour_of(name, names)), Qt.ItemDataRole.DecorationRole)
            if not free:
                self.addItem(_NEW)
            self.setEditable(free)
            self.setCurrentIndex(max(0, self.findText(chosen)))
            if free and self.findText(chosen) < 0:
                self.setEditText(chosen)
        self.chosen_changed.emit(self.chosen)

    def ask(self) -> None:
        """Ask for the name of a new class."""
        if self.dialog is not None:
            return
        self.dialog = QInputDialog(self)
        self.dialog.setWindowTitle("New class")
        self.dialog.setLabelText("Name of the class. Where the network does not have it, a new last layer is trained:")
        self.dialog.textValueSelected.connect(lambda text: self.named.emit(text.strip()))
        self.dialog.finished.connect(self._asked)
        self.dialog.open()

    def _asked(self) -> None:
        if self.dialog is not None:
            self.dialog.deleteLater()
            self.dialog = None
        if self.currentText() == _NEW:
            self.setCurrentIndex(0)
        self.chosen_changed.emit(self.chosen)

    def _activated(self) -> None:
        if self.currentText() == _NEW:
            self.ask()
        self.chosen_changed.emit(self.chosen)
