"""The rectangles that the user draws to run a network on."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from streamview.errors import RegionError
from streamview_napari.canvas.region_layers import RegionLayers, source_of
from streamview_napari.requests.regions import within

if TYPE_CHECKING:
    from napari.components import ViewerModel
    from napari.layers import Image, Shapes

    from streamview.geometry import Region
    from streamview_napari.state import State

__all__ = ["Drawing"]

_BLUE = "#4c8bf5"


class Drawing(RegionLayers):
    """The regions drawn on slides.

    Parameters
    ----------
    viewer, state, told
        As for `RegionLayers`.
    changed
        Called whenever a rectangle was added, moved or removed by the user.
    """

    name, labelled = "Regions", False

    def __init__(self, viewer: ViewerModel, state: State, *, changed: Callable[[], None], told: Callable[[str], None]) -> None:
        super().__init__(viewer, state, told=told)
        self._drawn: dict[Shapes, tuple[Region, ...]] = {}
        self._told_of_change = changed

    def rectangle(self) -> NDArray[np.float64] | None:
        """Corners of the selected rectangle, else of the last, in the world; None where there is none. One being dragged is none yet."""
        layer = self.find()
        count = 0 if layer is None else len(layer.data) - (self._dragged is layer)
        if layer is None or count == 0:
            return None
        chosen = max((index for index in layer.selected_data if index < count), default=count - 1)
        return np.array([layer.data_to_world(corner) for corner in layer.data[chosen]])

    def add(self, **options: Any) -> Shapes:
        """Make the layer of the slide worked on."""
        layer = super().add(edge_color=_BLUE, **options)
        layer.current_edge_color, layer.current_face_color = _BLUE, "transparent"
        self._drawn[layer] = ()
        self.thicken(layer)
        return layer

    def changed(self, layer: Shapes, slide: Image) -> None:
        """Keep what is drawn now, and what was, to be undone; one rectangle ends the drawing."""
        before, self._drawn[layer] = self._drawn[layer], _regions(layer, source_of(slide).shape)
        if self._drawn[layer] != before:
            self._state.history.add(lambda: self._restore(layer, before), layer)
        if layer.mode == "add_rectangle" and len(self._drawn[layer]) > len(before):
            self.draw(False)
        self._told_of_change()

    def removed(self, layer: Shapes) -> None:
        """Forget what was drawn there."""
        self._drawn.pop(layer, None)
        self._state.history.forget(layer)
        self._told_of_change()

    def _restore(self, layer: Shapes, regions: tuple[Region, ...]) -> None:
        self._drawn[layer] = regions
        self.put(layer, regions)
        self._told_of_change()


def _regions(layer: Shapes, shape: tuple[int, int]) -> tuple[Region, ...]:
    """What is drawn, in level-0 px; not what lies beside the slide."""
    regions = []
    for vertices in layer.data:
        try:
            regions.append(within(vertices, shape, None))
        except RegionError:  # it is none until it is moved onto the slide
            continue
    return tuple(regions)
