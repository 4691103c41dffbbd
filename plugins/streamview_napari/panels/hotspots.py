"""The section of hotspots: the areas that the display shows, those with most of the map first, and flight from one to the next."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qtpy.QtCore import Qt, QTimer
from qtpy.QtWidgets import QTableWidgetItem

from streamview.export.hotspots import Hotspot, find_hotspots
from streamview_napari.panels.section import Section, Shortcut, error_label, plain_table, quiet_label, show_rows
from streamview_napari.records import map_on

if TYPE_CHECKING:
    from napari.components import ViewerModel
    from napari.layers import Image

    from streamview.results import Saliency
    from streamview.results.display import Recipe
    from streamview_napari.state import State
    from streamview_napari.tasks import Work

__all__ = ["HotspotSection", "view_around"]

_PERIOD = 400  # ms that the display must rest before hotspots are looked for
_MOST = 200  # rows
_ROWS = 8  # before the table scrolls
_ROOM = 0.6  # of a hotspot's size, added around it in flight
_SMALLEST = 128  # level-0 px seen around one at least


def view_around(hotspot: Hotspot) -> tuple[float, float, float]:
    """Return what to show to see a hotspot with some room around it: y, x of the centre and the side, in level-0 px."""
    corners = hotspot.polygon.exterior - 0.5  # level-0 pixel k has its centre at k
    (top, left), (bottom, right) = corners.min(0), corners.max(0)
    side = max((bottom - top) * (1 + _ROOM), (right - left) * (1 + _ROOM), _SMALLEST)
    return float(top + bottom) / 2, float(left + right) / 2, float(side)


class HotspotSection(Section):
    """The ranked list of connected areas above the threshold."""

    title = "Hotspots"
    opens = "room"

    def __init__(self, viewer: ViewerModel, state: State) -> None:
        super().__init__(viewer, state)
        self.table = plain_table(["#", "Peak", "Area mm²", "Share"])
        self.table.setAccessibleName("Hotspots")
        self.table.setToolTip("Connected areas above the threshold. Share: of the map's positive mass. Click one to fly there.")
        self.column.addWidget(self.table)
        self.message = quiet_label("Looking for hotspots…")
        self.column.addWidget(self.message)
        self.problem = error_label()
        self.column.addWidget(self.problem)
        self.hotspots: tuple[Hotspot, ...] = ()
        self._of: tuple[Saliency, Recipe] | None = None
        self._work: Work | None = None
        self._rest = QTimer(self, singleShot=True, interval=_PERIOD)
        self._rest.timeout.connect(self.search)
        self.table.cellClicked.connect(lambda row, column: self.fly(row))
        state.events.map_selected.connect(self._select)
        self._select(state.map_layer)

    def shortcuts(self) -> list[Shortcut]:
        """Keys to go through the list."""
        return [
            Shortcut("next_hotspot", "Next hotspot", lambda: self.step(1)),
            Shortcut("previous_hotspot", "Previous hotspot", lambda: self.step(-1)),
        ]

    def release(self) -> None:
        """Look for nothing more."""
        self._rest.stop()
        if self._work is not None:
            self._work.cancel()

    def _select(self, layer: Image | None) -> None:
        record = map_on(layer)
        self.fill(record is not None)
        if record is not None:
            record.shown.changed.connect(self._wait, unique=True)
            self._wait()

    def _wait(self) -> None:
        self._rest.start()

    def search(self) -> None:
        """Look for the hotspots of the map worked on, in a thread."""
        record = self.state.map
        if record is None or self.state.closed:
            return
        if self._work is not None and self._work.running:
            self._wait()
            return
        saliency, recipe = record.saliency, record.recipe
        if self._of is not None and self._of[0] is saliency and _edges(self._of[1]) == _edges(recipe):
            return
        self.note("looking…")

        def done(hotspots: tuple[Hotspot, ...]) -> None:
            self._of = (saliency, recipe)
            self.problem.hide()
            self._list(hotspots, saliency)

        def failed(text: str) -> None:
            self.note("")
            self.problem.setText(text)
            self.problem.show()

        self._work = self.state.start(lambda report: find_hotspots(saliency, recipe), done=done, failed=failed)

    def _list(self, hotspots: tuple[Hotspot, ...], saliency: Saliency) -> None:
        self.hotspots = hotspots
        cap = max((hotspot.peak for hotspot in hotspots), default=1.0)
        self.table.setRowCount(min(len(hotspots), _MOST))
        self.table.setHorizontalHeaderLabels(["#", "Peak", "Area px²" if saliency.mpp is None else "Area mm²", "Share"])
        for row, hotspot in enumerate(hotspots[:_MOST]):
            area = f"{hotspot.area:.0f}" if hotspot.area_mm2 is None else f"{hotspot.area_mm2:.4f}"
            for column, text in enumerate((str(row + 1), f"{hotspot.peak / cap:.2f}", area, f"{hotspot.mass:.1%}")):
                item = QTableWidgetItem(text)
                item.setTextAlignment(
                    Qt.AlignmentFlag.AlignVCenter | (Qt.AlignmentFlag.AlignRight if column else Qt.AlignmentFlag.AlignLeft)
                )
                self.table.setItem(row, column, item)
        show_rows(self.table, _ROWS)
        self.message.setText("Nothing lies above the threshold." if not hotspots else "")
        self.message.setVisible(not hotspots)
        shown = f", {_MOST} listed" if len(hotspots) > _MOST else ""
        self.note(f"{len(hotspots)} found{shown}")

    def step(self, by: int) -> None:
        """Fly to the next hotspot, or the one before; from the last to the first."""
        count = self.table.rowCount()
        if count:
            row = self.table.currentRow()
            self.fly(0 if row < 0 else (row + by) % count)

    def fly(self, row: int) -> None:
        """Show a hotspot."""
        if self._of is not None and row < len(self.hotspots):
            self.table.selectRow(row)
            self.table.setCurrentCell(row, 0)
            (y, x, side), (my, mx) = view_around(self.hotspots[row]), self._of[0].mpp or (1.0, 1.0)
            self.viewer.scene.camera.center = (0.0, y * my, x * mx)
            self.viewer.scene.camera.zoom = min(self.viewer.canvas.size) / (side * max(my, mx))


def _edges(recipe: Recipe) -> tuple[object, ...]:
    """What of a recipe decides which areas there are."""
    return recipe.method, recipe.blur_um, recipe.cap_percentile, recipe.threshold, recipe.floor_percentile, recipe.cap
