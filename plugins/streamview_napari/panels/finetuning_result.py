"""What fine-tuning has brought: figures and answers before and after, and which of the two networks is used."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from qtpy.QtCore import QEvent, Qt
from qtpy.QtGui import QColor
from qtpy.QtWidgets import QHBoxLayout, QHeaderView, QPushButton, QTableWidget, QTableWidgetItem, QVBoxLayout, QWidget

from streamview_napari.panels.section import plain_table, quiet_label, show_rows
from streamview_napari.panels.theme import colours
from streamview_napari.requests.comparison import Answers, compare, describe_result, measured

if TYPE_CHECKING:
    from streamview.finetuning import FinetuneResult
    from streamview_napari.requests.models import Loaded
    from streamview_napari.state import State

__all__ = ["Outcome"]

_ROWS = 8  # of the table before it scrolls
_WIDEST = 104  # px, of a column
_MARKS = {"right": "✓ ", "wrong": "✗ ", "": ""}
_LEFT, _RIGHT = (side | Qt.AlignmentFlag.AlignVCenter for side in (Qt.AlignmentFlag.AlignLeft, Qt.AlignmentFlag.AlignRight))


class Outcome(QWidget):
    """Tables of figures and of validation regions, and the two networks to choose from.

    Parameters
    ----------
    state
        Is told which network or region the user wants.
    """

    def __init__(self, state: State) -> None:
        super().__init__()
        self._rows: list[Answers] = []
        self._state = state
        self.message = quiet_label()
        self.figures = plain_table(["Validation", "Base", "Tuned", "No network"])
        self.figures.setAccessibleName("Figures of base and tuned network")
        self.figures.setToolTip("Of the validation regions. No network: what the same answer for every region reaches.")
        self.figures.setSelectionMode(QTableWidget.SelectionMode.NoSelection)
        self.figures.setFocusPolicy(Qt.FocusPolicy.NoFocus)
        self.regions = plain_table(["Region of", "Truth", "Base", "Tuned"])
        self.regions.setAccessibleName("Validation regions")
        self.regions.setToolTip("The validation regions. ✓: became right; ✗: became wrong. Click one to go there.")
        for number in range(4):
            for table, side in ((self.figures, _RIGHT if number else _LEFT), (self.regions, _LEFT)):
                title = table.horizontalHeaderItem(number)
                if title is not None:
                    title.setTextAlignment(side)
        header = self.regions.horizontalHeader()
        header.setMaximumSectionSize(_WIDEST)
        for number in (1, 2, 3):
            header.setSectionResizeMode(number, QHeaderView.ResizeMode.ResizeToContents)
        self.use_tuned = QPushButton("Use tuned")
        self.use_tuned.setToolTip("Run the tuned network from now on; it appears among the models above.")
        self.use_base = QPushButton("Use base")
        self.use_base.setToolTip("Go back to the network that was tuned; it is unchanged.")
        row = QHBoxLayout()
        row.addWidget(self.use_tuned, 1)
        row.addWidget(self.use_base, 1)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(6)
        for widget in (self.message, self.figures, self.regions):
            column.addWidget(widget)
        column.addLayout(row)
        self._base, self._tuned = "", ""
        self.regions.cellClicked.connect(lambda row, column: state.events.example_wanted.emit(self._rows[row].example))
        self.use_tuned.clicked.connect(lambda: state.events.model_wanted.emit(self._tuned))
        self.use_base.clicked.connect(lambda: state.events.model_wanted.emit(self._base))
        state.events.model_changed.connect(self._model_changed)
        self.hide()

    def show_result(self, result: FinetuneResult, base: str, tuned: Path) -> None:
        """Show what came out.

        Parameters
        ----------
        result
            What fine-tuning returned.
        base
            As for `streamview.load_model`.
        tuned
            Folder of the tuned network.
        """
        self._base, self._tuned = base, str(tuned)
        self._rows = compare(result)
        self.message.setText(describe_result(result, self._rows, tuned))
        self.message.setToolTip(self._tuned)
        figures = measured(result.before, result.after)
        _fill(self.figures, [(figure.name, figure.before, figure.after, figure.baseline) for figure in figures], right=True)
        answers = [(Path(row.example.name).stem, row.truth, row.before, _MARKS[row.became] + row.after) for row in self._rows]
        _fill(self.regions, answers)
        for row, region in enumerate(self._rows):
            for column in range(4):
                cell = self.regions.item(row, column)
                if cell is not None:
                    became = f"\nBecame {region.became}" if region.became else ""
                    cell.setToolTip(f"{region.example}\nTruth: {region.truth}\nBase: {region.before}\nTuned: {region.after}{became}")
        self._colour()
        self._model_changed(self._state.loaded)
        self.show()

    def changeEvent(self, event: QEvent) -> None:
        """Colour the answers anew in another theme."""
        super().changeEvent(event)
        if event.type() == QEvent.Type.StyleChange:
            self._colour()

    def _colour(self) -> None:
        shown = colours(self._state.viewer.theme)
        for row, region in enumerate(self._rows):
            item = self.regions.item(row, 3)
            if item is not None and region.became:
                item.setForeground(QColor(*(shown.right if region.became == "right" else shown.wrong)))

    def _model_changed(self, loaded: Loaded | None) -> None:
        used = "" if loaded is None else loaded.spec
        self.use_tuned.setEnabled(used != self._tuned)
        self.use_base.setEnabled(used != self._base)


def _fill(table: QTableWidget, rows: Sequence[tuple[str, ...]], *, right: bool = False) -> None:
    table.setRowCount(len(rows))
    for row, texts in enumerate(rows):
        for column, text in enumerate(texts):
            item = QTableWidgetItem(text)
            item.setTextAlignment(_RIGHT if right and column else _LEFT)
            table.setItem(row, column, item)
    show_rows(table, _ROWS)
    table.setVisible(bool(rows))
