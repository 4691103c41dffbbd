"""The loss curves of a training that is under way, in the dock."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qtpy.QtCore import QEvent
from qtpy.QtWidgets import QVBoxLayout, QWidget

from streamview_napari.panels.theme import as_hex, colours, contrast

if TYPE_CHECKING:
    from napari.components import ViewerModel

    from streamview.finetuning.history import History

__all__ = ["Curves"]

_HEIGHT = 170  # px


class Curves(QWidget):
    """A canvas of matplotlib, made when there is something to draw: who only looks never loads it.

    Parameters
    ----------
    viewer
        Whose theme it follows.
    """

    def __init__(self, viewer: ViewerModel) -> None:
        super().__init__()
        self._viewer = viewer
        self._canvas: Any = None
        self.history: History | None = None
        self.setToolTip("Loss while training, and on the validation regions after each epoch; the ring marks what is kept.")
        self._column = QVBoxLayout(self)
        self._column.setContentsMargins(0, 0, 0, 0)
        self.hide()

    def draw(self, history: History) -> None:
        """Show how training goes."""
        from streamview.finetuning.curves import DARK, LIGHT, draw_history

        if self._canvas is None:
            from matplotlib.backends.backend_qtagg import FigureCanvasQTAgg
            from matplotlib.figure import Figure

            self._canvas = FigureCanvasQTAgg(Figure(layout="constrained"))
            self._canvas.setFixedHeight(_HEIGHT)
            self._canvas.setMinimumWidth(1)
            self._column.addWidget(self._canvas)
        self.history = history
        shown = colours(self._viewer.theme)
        usual = DARK if contrast(shown.ground, (255, 255, 255)) > contrast(shown.ground, (0, 0, 0)) else LIGHT
        palette = {**usual, "back": as_hex(shown.ground), "text": as_hex(shown.text), "grid": as_hex(shown.line)}
        draw_history(self._canvas.figure, history, palette)
        (axes,) = self._canvas.figure.axes
        for label in (axes.xaxis.label, axes.yaxis.label):
            label.set_size(8)
        if axes.get_legend() is not None:  # beside the curves: here it would cover half of them
            place = {"loc": "lower center", "bbox_to_anchor": (0.5, 1.0), "ncols": 4, "columnspacing": 1.2, "handlelength": 1.4}
            axes.legend(frameon=False, labelcolor=palette["text"], fontsize=7, **place)
        self._canvas.draw_idle()
        self.show()

    def changeEvent(self, event: QEvent) -> None:
        """Draw it anew in another theme."""
        super().changeEvent(event)
        if event.type() == QEvent.Type.StyleChange and self.history is not None:
            self.draw(self.history)
