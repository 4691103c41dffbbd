"""Layers of rectangles on slides, to be drawn, moved and removed there; one a slide at most, shown while that slide is worked on."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from streamview_napari.records import RegionsLayer, record_of, slide_on
from streamview_napari.requests.regions import corners, describe_too_small, grid_scale

if TYPE_CHECKING:
    from collections.abc import Sequence

    from napari.components import ViewerModel
    from napari.layers import Image, Shapes

    from streamview.geometry import Region
    from streamview.slides import Slide
    from streamview_napari.state import State

__all__ = ["RegionLayers", "regions_on", "source_of"]

_WIDTH = 3  # px of the screen: of the outlines


class RegionLayers:
    """The layers of one kind; each is made when it is first needed, and goes with its slide.

    Their data are level-0 px of the slide, which float32 holds exactly at the edges of pixels: a rectangle that nobody touches stays what
    it is. The slide's scale places them.

    Parameters
    ----------
    viewer, state
        Of the window.
    told
        Called with a word to the user, empty when that is settled.
    """

    name: ClassVar[str]
    labelled: ClassVar[bool]

    def __init__(self, viewer: ViewerModel, state: State, *, told: Callable[[str], None]) -> None:
        self._viewer, self._state, self._told = viewer, state, told
        self._dragged: Shapes | None = None  # where a rectangle is being dragged that does not count yet
        viewer.scene.camera.events.zoom.connect(self._zoomed)
        viewer.layers.selection.events.active.connect(self._activated)
        viewer.layers.events.removed.connect(self._removed)
        state.events.slide_changed.connect(self._slide_changed)

    def release(self) -> None:
        """Follow the viewer no longer."""
        self._viewer.scene.camera.events.zoom.disconnect(self._zoomed)
        self._viewer.layers.selection.events.active.disconnect(self._activated)
        self._viewer.layers.events.removed.disconnect(self._removed)
        self._state.events.slide_changed.disconnect(self._slide_changed)

    def draw(self, on: bool) -> None:
        """Let the user drag rectangles on the slide worked on, or no more; one that is being dragged then does not count."""
        layer = self.find()
        if on:
            layer = layer or self.add()
            layer.visible = True
            self._viewer.layers.selection.active = layer
            layer.mode = "add_rectangle"
        elif layer is not None:
            if self._dragged is layer:
                self._drop_latest(layer)
                self._dragged = None
            layer.mode = "select"
            self._viewer.layers.selection.active = self._state.slide_layer

    def find(self, slide: Image | None = None) -> Shapes | None:
        """Return the layer of a slide, of the one worked on where None; None where it has no layer."""
        slide = slide or self._state.slide_layer
        return next((layer for layer, record in regions_on(self._viewer, labelled=self.labelled) if record.slide is slide), None)

    def add(self, **options: Any) -> Shapes:
        """Make the layer of the slide worked on, with these options of napari."""
        from napari.layers import Shapes

        slide = self._state.slide_layer
        assert slide is not None
        placed = {"scale": slide.scale, "units": slide.units, "axis_labels": slide.axis_labels}
        record = RegionsLayer(slide, labelled=self.labelled)
        layer = Shapes(name=self.name, ndim=2, face_color="transparent", metadata={"streamview": record}, **placed, **options)
        self._viewer.add_layer(layer)
        self._viewer.layers.selection.active = slide  # another slide made active here would become the one worked on
        layer.bind_key("Escape", lambda layer: self.draw(False), overwrite=True)
        layer.events.data.connect(lambda event: self._changed(layer, slide, event))
        return layer

    def put(self, layer: Shapes, regions: Sequence[Region]) -> None:
        """Put rectangles into a layer in place of those that are there, as no change of the user."""
        shapes = np.array([corners(region, None) for region in regions])
        with layer.events.data.blocker(), layer.events.features.blocker():
            layer.selected_data = set()
            if len(shapes) != len(layer.data) or not all(map(np.array_equal, shapes, layer.data)):  # to make them anew takes a ms each
                layer.data = list(shapes)
        self.thicken(layer)

    def thicken(self, layer: Shapes) -> None:
        """Let the outlines of a layer be three px of the screen wide at the present zoom."""
        width = _WIDTH * self._pixel(layer)
        layer.current_edge_width = width
        if len(layer.data):
            layer.edge_width = [width] * len(layer.data)

    def changed(self, layer: Shapes, slide: Image) -> None:
        """Take over what the user has drawn, moved or removed."""
        raise NotImplementedError

    def removed(self, layer: Shapes) -> None:
        """A layer is gone."""

    def _changed(self, layer: Shapes, slide: Image, event: Any) -> None:
        action = str(getattr(event.action, "value", event.action))
        if action in ("adding", "changing", "removing"):
            self._dragged = layer if action == "adding" else self._dragged
            return
        if action == "added":
            self._dragged = None
            word = self._too_small(layer) if layer.mode == "add_rectangle" else None
            self._told(word or "")
            if word is not None:
                self._drop_latest(layer)
                return
        if self._dragged is None:
            self.changed(layer, slide)

    def _drop_latest(self, layer: Shapes) -> None:
        with layer.events.data.blocker(), layer.events.features.blocker():
            layer.remove([len(layer.data) - 1])

    def _too_small(self, layer: Shapes) -> str | None:
        """Say why the latest rectangle is none."""
        record, loaded = record_of(layer), self._state.loaded
        assert isinstance(record, RegionsLayer)
        source = source_of(record.slide)
        height, width = np.ptp(layer.data[-1][:, -2:], axis=0)
        sides = None if loaded is None else loaded.streaming.sides
        side = 0 if sides is None else sides.smallest
        y, x = grid_scale(source.mpp, None if loaded is None else loaded.model.card.mpp)
        return describe_too_small((float(height), float(width)), self._pixel(layer), (side * y, side * x), source.mpp)

    def _pixel(self, layer: Shapes) -> float:
        """Level-0 px per px of the screen."""
        return float(1 / max(self._viewer.scene.camera.zoom, 1e-9) / layer.scale[0])

    def _slide_changed(self, slide: Image | None) -> None:
        for layer, record in regions_on(self._viewer, labelled=self.labelled):
            layer.visible = record.slide is slide

    def _activated(self, event: Any) -> None:
        """Who turns to another layer draws no more."""
        for layer, _ in regions_on(self._viewer, labelled=self.labelled):
            if layer is not event.value and layer.mode == "add_rectangle":
                layer.mode = "select"

    def _removed(self, event: Any) -> None:
        """A slide takes its layer along."""
        record = record_of(event.value)
        if isinstance(record, RegionsLayer) and record.labelled == self.labelled:
            self.removed(event.value)
        elif slide_on(event.value) is not None and (layer := self.find(event.value)) is not None:
            self._viewer.layers.remove(layer)

    def _zoomed(self, event: Any = None) -> None:
        for layer, _ in regions_on(self._viewer, labelled=self.labelled):
            self.thicken(layer)


def regions_on(viewer: ViewerModel, *, labelled: bool) -> list[tuple[Shapes, RegionsLayer]]:
    """Return the layers of rectangles, with or without classes, and their records."""
    records = [(layer, record_of(layer)) for layer in viewer.layers]
    return [(layer, record) for layer, record in records if isinstance(record, RegionsLayer) and record.labelled == labelled]


def source_of(slide: Image) -> Slide:
    """Return the open slide of its layer."""
    record = slide_on(slide)
    assert record is not None
    return record.source
