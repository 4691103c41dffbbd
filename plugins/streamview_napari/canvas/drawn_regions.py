"""The rectangles of a slide: drawn by the user, or shown because they are computed."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from streamview_napari.records import RegionsLayer, record_of
from streamview_napari.requests.regions import corners

if TYPE_CHECKING:
    from napari.components import ViewerModel
    from napari.layers import Shapes

    from streamview.geometry import Region
    from streamview_napari.state import State

__all__ = ["Drawing", "regions_on", "thicken"]

_BLUE = "#4c8bf5"


class Drawing:
    """The layer of regions of the slide that is worked on; made when it is first needed, its outlines three screen px wide.

    Parameters
    ----------
    viewer, state
        Of the window.
    changed
        Called whenever a rectangle was added, moved or removed by the user.
    """

    def __init__(self, viewer: ViewerModel, state: State, *, changed: Callable[[], None]) -> None:
        self._viewer, self._state, self._changed = viewer, state, changed
        viewer.scene.camera.events.zoom.connect(self._zoomed)

    def release(self) -> None:
        """Follow the zoom no longer."""
        self._viewer.scene.camera.events.zoom.disconnect(self._zoomed)

    def start(self) -> None:
        """Let the user drag a rectangle."""
        layer = self._find() or self._add()
        self._viewer.layers.selection.active = layer
        layer.mode = "add_rectangle"

    def rectangle(self) -> NDArray[np.float64] | None:
        """Corners of the selected rectangle, else of the last, in the world; None where there is none."""
        layer = self._find()
        if layer is None or not len(layer.data):
            return None
        chosen = max(layer.selected_data) if layer.selected_data else len(layer.data) - 1
        return np.array([layer.data_to_world(corner) for corner in layer.data[chosen]])

    def outline(self, region: Region) -> None:
        """Show a region that is computed, unless it was drawn."""
        slide = self._state.slide
        layer = self._find() or self._add()
        rectangle = np.array([layer.world_to_data(corner) for corner in corners(region, None if slide is None else slide.mpp)])
        if not any(np.abs(np.asarray(shape)[:, -2:] - rectangle).max() < 1e-6 for shape in layer.data if len(shape) == len(rectangle)):
            with layer.events.data.blocker():
                layer.add_rectangles(rectangle, edge_color=_BLUE, face_color="transparent")
            thicken(layer, self._viewer)

    def _find(self) -> Shapes | None:
        slide = self._state.slide_layer
        return next((layer for layer, record in regions_on(self._viewer, labelled=False) if record.slide is slide), None)

    def _add(self) -> Shapes:
        from napari.layers import Shapes

        slide = self._state.slide_layer
        assert slide is not None
        layer = Shapes(
            name="Regions",
            ndim=2,
            edge_color=_BLUE,
            face_color="transparent",
            edge_width=1,
            units=slide.units,
            axis_labels=slide.axis_labels,
            metadata={"streamview": RegionsLayer(slide, labelled=False)},
        )
        layer.current_edge_color, layer.current_face_color = _BLUE, "transparent"
        self._viewer.add_layer(layer)
        layer.events.data.connect(lambda event: self._drawn(layer, event))
        thicken(layer, self._viewer)
        return layer

    def _drawn(self, layer: Shapes, event: Any) -> None:
        action = str(getattr(event.action, "value", event.action))
        if action not in ("added", "changed", "removed"):
            return
        if layer.mode == "add_rectangle" and action == "added":
            layer.mode = "select"
            if self._state.slide_layer is not None:
                self._viewer.layers.selection.active = self._state.slide_layer
        self._changed()

    def _zoomed(self, event: Any = None) -> None:
        for layer, _ in regions_on(self._viewer, labelled=False):
            thicken(layer, self._viewer)


def regions_on(viewer: ViewerModel, *, labelled: bool) -> list[tuple[Shapes, RegionsLayer]]:
    """Return the layers of rectangles, with or without classes, and their records."""
    records = [(layer, record_of(layer)) for layer in viewer.layers]
    return [(layer, record) for layer, record in records if isinstance(record, RegionsLayer) and record.labelled == labelled]


def thicken(layer: Shapes, viewer: ViewerModel) -> None:
    """Let the outlines of a layer be three screen px wide at the present zoom."""
    width = 3 / max(float(viewer.scene.camera.zoom), 1e-9) / float(layer.scale[0])
    layer.current_edge_width = width
    if len(layer.data):
        layer.edge_width = [width] * len(layer.data)
