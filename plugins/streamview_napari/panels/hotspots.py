"""The section of hotspots: the areas that the display shows, those with most of the map first, and flight from one to the next.

A flight ends at the magnification at which such an area is looked at: 20x, else 10x, where 10x is 1 um on a pixel of the screen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from qtpy.QtCore import Qt, QTimer
from qtpy.QtWidgets import QTableWidgetItem

from streamview.export.hotspots import Hotspot, find_hotspots, no_hotspots
from streamview_napari.panels.section import Section, Shortcut, error_label, plain_table, quiet_label, show_rows
from streamview_napari.records import map_on

if TYPE_CHECKING:
    from napari.components import ViewerModel
    from napari.layers import Image

    from streamview.results import Saliency
    from streamview.results.display import Recipe
    from streamview.results.glass import Glass
    from streamview_napari.state import State
    from streamview_napari.tasks import Work

__all__ = ["Field", "HotspotSection", "edges", "field_around"]

_PERIOD = 400  # ms that the display must rest before hotspots are looked for
_MOST = 200  # rows
_ROWS = 8  # before the table scrolls
_ROOM = 0.2  # of a hotspot's size, added around it in flight
_LEAST_UM = 250.0  # seen around one
_LEAST_PX = 128.0  # of level 0, the same where the mpp is unknown
_UM_AT_10X = 1.0  # on a pixel of the screen
_POWERS = (20.0, 10.0)  # those that are flown to, where the hotspot fits


@dataclass(frozen=True, slots=True)
class Field:
    """What is seen around a hotspot.

    Parameters
    ----------
    centre
        ``(y, x)`` in the world.
    zoom
        Screen px for each um (or for each level-0 px where the mpp is unknown).
    power
        Magnification; None where the mpp is unknown.
    side
        Of the square that the canvas shows at least, in the world's unit.
    """

    centre: tuple[float, float]
    zoom: float
    power: float | None
    side: float

    def __str__(self) -> str:
        return f"field {self.side:.0f} px" if self.power is None else f"{self.power:.2g}x, field {self.side:.0f} µm"


def field_around(hotspot: Hotspot, mpp: tuple[float, float] | None, canvas: float) -> Field:
    """Return what to show of a hotspot: at 20x, else at 10x, else as large as it fits, with at least 250 um around its centre.

    Parameters
    ----------
    hotspot
        The area.
    mpp
        ``(y, x)`` um/px of level 0.
    canvas
        Shorter side of the canvas in px of the screen.
    """
    corners = (hotspot.polygon.exterior - 0.5) * (mpp or (1.0, 1.0))  # level-0 pixel k has its centre at k
    low, high = corners.min(0), corners.max(0)
    y, x = ((low + high) / 2).tolist()
    size = float((high - low).max()) * (1 + _ROOM)
    if mpp is None:
        side = max(size, _LEAST_PX)
        return Field((y, x), canvas / side, None, side)
    least = max(size, _LEAST_UM)
    fitting = 10 * _UM_AT_10X * canvas / least
    power = next((power for power in _POWERS if power <= fitting), fitting)
    zoom = power / (10 * _UM_AT_10X)
    return Field((y, x), zoom, power, canvas / zoom)


class HotspotSection(Section):
    """The ranked list of connected areas above the threshold."""

    title = "Hotspots"
    opens = "room"

    def __init__(self, viewer: ViewerModel, state: State) -> None:
        super().__init__(viewer, state)
        self.table = plain_table(["#", "Peak", "Area mm²", "Share"])
        self.table.setAccessibleName("Hotspots")
        self.table.setToolTip(
            "Connected areas above the threshold. Peak: highest value, as a share of the cap. Share: of the map's positive mass.\n"
            "Click one, or press Return, to fly there: at 20x, or 10x for large ones (10x: 1 µm per screen pixel), at least 250 µm wide."
        )
        self.column.addWidget(self.table)
        self.message = quiet_label("Looking for hotspots…")
        self.column.addWidget(self.message)
        self.problem = error_label()
        self.column.addWidget(self.problem)
        self.hotspots: tuple[Hotspot, ...] = ()
        self._of: tuple[Saliency, Recipe, Glass | None] | None = None
        self._work: Work | None = None
        self._rest = QTimer(self, singleShot=True, interval=_PERIOD)
        self._rest.timeout.connect(self.search)
        self.table.cellClicked.connect(lambda row, column: self.fly(row))
        self.table.cellActivated.connect(lambda row, column: self.fly(row))  # by Return
        state.events.map_selected.connect(self._select)
        state.events.recipe_changed.connect(self._wait)
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
            self._wait()

    def _wait(self) -> None:
        if self.state.map is not None:
            self._rest.start()

    def search(self) -> None:
        """Look for the hotspots of the map worked on, in a thread."""
        record = self.state.map
        if record is None or self.state.closed:
            return
        if self._work is not None and self._work.running:
            self._wait()
            return
        saliency, recipe, glass = record.saliency, record.recipe, record.shown.glass
        if self._of is not None and self._of[0] is saliency and edges(self._of[1]) == edges(recipe) and self._of[2] is glass:
            return
        reason = no_hotspots(saliency)
        if reason is not None:
            self._of = (saliency, recipe, glass)
            self._list((), saliency, reason)
            return
        self.note("looking…")

        def done(hotspots: tuple[Hotspot, ...]) -> None:
            self._of = (saliency, recipe, glass)
            self.problem.hide()
            self._list(hotspots, saliency)

        def failed(text: str) -> None:
            self.note("")
            self.problem.setText(text)
            self.problem.show()

        self._work = self.state.start(lambda report: find_hotspots(saliency, recipe, glass=glass), done=done, failed=failed)

    def _list(self, hotspots: tuple[Hotspot, ...], saliency: Saliency, reason: str = "Nothing lies above the threshold.") -> None:
        self.hotspots = hotspots
        self.table.setVisible(bool(hotspots))
        self.table.setRowCount(min(len(hotspots), _MOST))
        self.table.setHorizontalHeaderLabels(["#", "Peak", "Area px²" if saliency.mpp is None else "Area mm²", "Share"])
        for row, hotspot in enumerate(hotspots[:_MOST]):
            area = f"{hotspot.area:.0f}" if hotspot.area_mm2 is None else f"{hotspot.area_mm2:.4f}"
            for column, text in enumerate((str(row + 1), f"{hotspot.peak:.2f}", area, f"{hotspot.mass:.1%}")):
                item = QTableWidgetItem(text)
                item.setTextAlignment(
                    Qt.AlignmentFlag.AlignVCenter | (Qt.AlignmentFlag.AlignRight if column else Qt.AlignmentFlag.AlignLeft)
                )
                item.setToolTip(f"peak {hotspot.peak:.3g} of the cap, raw {hotspot.peak_raw:.3g}")
                self.table.setItem(row, column, item)
        show_rows(self.table, _ROWS)
        self.message.setText(reason if not hotspots else "")
        self.message.setVisible(not hotspots)
        self.note(self._count())

    def _count(self) -> str:
        listed = f", {_MOST} listed" if len(self.hotspots) > _MOST else ""
        return f"{len(self.hotspots)} found{listed}"

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
            field = field_around(self.hotspots[row], self._of[0].mpp, min(self.viewer.canvas.size))
            self.viewer.scene.camera.center = (0.0, *field.centre)
            self.viewer.scene.camera.zoom = field.zoom
            self.note(f"{self._count()}; {field}")


def edges(recipe: Recipe) -> tuple[object, ...]:
    """What of a recipe decides which areas there are."""
    return recipe.method, recipe.blur_um, recipe.cap_percentile, recipe.threshold, recipe.floor_percentile, recipe.cap, recipe.glass
