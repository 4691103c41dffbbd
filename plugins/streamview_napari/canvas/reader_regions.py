"""The areas that a reader draws on a slide of a session: closed lines, stored with every change. Without Qt."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
from napari.layers import Layer
from numpy.typing import NDArray

from streamview_napari.records import slide_on

if TYPE_CHECKING:
    from napari.components import ViewerModel
    from napari.layers import Image, Shapes

__all__ = ["ReaderRegions"]

_COLOUR = "#3ad1ff"  # not that of the outline of a map
_WIDTH_PX = 3.0  # of the screen
_AREAS = {"polygon", "rectangle", "ellipse"}


class ReaderRegions:
    """A layer of areas on the slide on show, made when it is first drawn on.

    Parameters
    ----------
    viewer
        Gets the layer.
    changed
        Called with all areas, float64 (n, 2) corners ``(y, x)`` in level-0 px where pixel k covers ``k`` to ``k + 1``, whenever the
        reader has changed them.
    """

    def __init__(self, viewer: ViewerModel, changed: Callable[[list[NDArray[np.float64]]], None]) -> None:
        self._viewer, self._changed = viewer, changed
        self._layer: Shapes | None = None
        self._slide: Image | None = None

    def show(self, slide: Image, areas: Iterable[NDArray[np.float64]]) -> None:
        """Show what is stored of a slide, in place of what was shown."""
        self.clear()
        self._slide = slide
        corners = list(areas)
        if corners:
            layer = self._make()
            with layer.events.data.blocker(self._edited):
                for ring in corners:
                    layer.add(ring - 0.5, shape_type="polygon", edge_width=self._width())

    def clear(self) -> None:
        """Take the layer away."""
        layer, self._layer, self._slide = self._layer, None, None
        if layer is not None and layer in self._viewer.layers:
            self._viewer.layers.remove(layer)

    def draw(self, wanted: bool) -> None:
        """Have the reader draw with the mouse, held down around an area, or end it."""
        if self._slide is None:
            return
        layer = self._layer if self._layer is not None and self._layer in self._viewer.layers else self._make() if wanted else None
        if layer is None:
            return
        layer.mode = "add_polygon_lasso" if wanted else "pan_zoom"
        layer.current_edge_width = self._width()
        self._viewer.layers.selection.active = layer if wanted else self._slide

    def _make(self) -> Shapes:
        slide = self._slide
        assert slide is not None
        options = {
            "name": "Your regions",
            "scale": slide.scale,
            "translate": slide.translate,
            "units": slide.units,
            "axis_labels": ("y", "x"),
            "edge_color": _COLOUR,
            "face_color": "transparent",
        }
        layer: Shapes = Layer.create(np.zeros((0, 2)), {**options, "ndim": 2}, "shapes")
        layer.current_edge_color, layer.current_face_color = _COLOUR, "transparent"
        layer.events.data.connect(self._edited)
        self._layer = layer
        self._viewer.add_layer(layer)
        return layer

    def _width(self) -> float:
        """Width of a line in level-0 px that is seen well now."""
        mpp = 1.0 if self._slide is None else float(self._slide.scale[-1])
        return float(_WIDTH_PX / max(self._viewer.scene.camera.zoom * mpp, 1e-6))

    def _edited(self, event: Any) -> None:
        if self._layer is None or str(getattr(event, "action", "")).endswith("ing"):  # napari tells before and after
            return
        slide = slide_on(self._slide)
        if slide is None:
            return
        height, width = slide.source.shape
        pairs = zip(self._layer.data, self._layer.shape_type, strict=True)
        areas = [np.clip(np.asarray(ring, np.float64) + 0.5, 0, (height, width)) for ring, kind in pairs if kind in _AREAS]
        self._changed([ring for ring in areas if len(ring) > 2])
