"""The hotspots of a map in a session, which the reader calls right or wrong."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from qtpy.QtCore import Signal
from qtpy.QtWidgets import QHBoxLayout, QPushButton

from streamview_napari.canvas.layers import first_recipe
from streamview_napari.panels.hotspots import HotspotSection, edges
from streamview_napari.panels.section import show_row

if TYPE_CHECKING:
    from napari.components import ViewerModel

    from streamview_napari.state import State

__all__ = ["ReviewedHotspots"]


class ReviewedHotspots(HotspotSection):
    """The list of hotspots, with two buttons for the one that was flown to."""

    called = Signal(int, bool)
    """Emitted with the number of a hotspot, from 1, and whether the reader calls it right."""

    def __init__(self, viewer: ViewerModel, state: State) -> None:
        self._calls: Mapping[int, bool] = {}
        super().__init__(viewer, state)
        self._buttons = row = QHBoxLayout()
        for text, right in (("Right", True), ("Wrong", False)):
            button = QPushButton(text)
            button.setToolTip(f"Call the hotspot that you flew to {text.lower()}, and fly to the next.")
            button.clicked.connect(partial(self.call, right))
            row.addWidget(button)
        self.column.insertLayout(self.column.indexOf(self.table) + 1, row)

    def call(self, right: bool) -> None:
        """Call the hotspot that was flown to right or wrong, and fly to the next."""
        row = self.table.currentRow()
        if self._of is not None and edges(self._of[1]) != edges(first_recipe(self._of[0], self._of[1].method)):
            self.problem.setText("Press Reset under Display first: hotspots are numbered as the usual display of the map shows them.")
            self.problem.show()
        elif 0 <= row < len(self.hotspots):
            self.called.emit(row + 1, right)
            self.step(1)

    def show_calls(self, calls: Mapping[int, bool]) -> None:
        """Show what the reader called right and wrong, by number from 1."""
        self._calls = calls
        for row in range(self.table.rowCount()):
            item = self.table.item(row, 0)
            if item is not None:
                item.setText(f"{row + 1}{ {True: ' ✓', False: ' ✗', None: ''}[calls.get(row + 1)] }")

    def _list(self, *arguments: Any, **options: Any) -> None:
        super()._list(*arguments, **options)
        show_row(self._buttons, bool(self.hotspots))
        self.show_calls(self._calls)
