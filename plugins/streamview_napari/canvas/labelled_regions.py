"""Labelled regions on the slides: one layer of outlined rectangles a slide, coloured by class, to be drawn, moved and removed there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from os.path import realpath
from typing import TYPE_CHECKING, Any

import numpy as np

from streamview.errors import RegionError
from streamview.labels.regions import Example
from streamview_napari.canvas.drawn_regions import regions_on, thicken
from streamview_napari.records import RegionsLayer, record_of, slide_on
from streamview_napari.requests.labels import colour_of, of_slide, path_of, replace_drawn
from streamview_napari.requests.regions import corners, within

if TYPE_CHECKING:
    from napari.components import ViewerModel
    from napari.layers import Image, Shapes
    from pandas import DataFrame

    from streamview.slides import Slide
    from streamview_napari.state import State

__all__ = ["LabelledLayers"]

_FEATURES = ("label", "patient", "split")


class LabelledLayers:
    """Keeps the labels and the layers that show them alike, whichever of them the user changes.

    A layer is made when its slide has labelled regions and is worked on; the class, patient and split of a rectangle are features of the
    layer. Only the layer of the slide that is worked on is visible.

    Parameters
    ----------
    viewer, state
        Of the window.
    names
        Returns the classes, whose order decides their colours.
    drawing_changed
        Called with whether the user draws on a layer.
    """

    def __init__(
        self, viewer: ViewerModel, state: State, *, names: Callable[[], tuple[str, ...]], drawing_changed: Callable[[bool], None]
    ) -> None:
        self._viewer, self._state, self._names, self._drawing_changed = viewer, state, names, drawing_changed
        self._reading = False
        self.label, self.patient = "", ""  # of the next rectangle
        viewer.scene.camera.events.zoom.connect(self._zoomed)
        viewer.layers.selection.events.active.connect(self._activated)
        viewer.layers.events.removed.connect(self._removed)

    def release(self) -> None:
        """Follow the viewer no longer."""
        self._viewer.scene.camera.events.zoom.disconnect(self._zoomed)
        self._viewer.layers.selection.events.active.disconnect(self._activated)
        self._viewer.layers.events.removed.disconnect(self._removed)

    def next(self, label: str, patient: str) -> None:
        """Give the rectangles that are drawn from now on this class and patient."""
        self.label, self.patient = label, patient
        layer = self._find(self._state.slide_layer)
        if layer is not None:
            self._prepare(layer)

    def draw(self, on: bool) -> None:
        """Let the user drag one labelled rectangle after the other, or no more."""
        layer = self._find(self._state.slide_layer)
        if not on:
            if layer is not None:
                layer.mode = "select"
                self._viewer.layers.selection.active = self._state.slide_layer
            return
        layer = layer or self._add()
        layer.visible = True
        self._viewer.layers.selection.active = layer
        layer.mode = "add_rectangle"

    def show(self) -> None:
        """Show the labels as they are now, on all slides that are open."""
        if self._reading:
            return
        slide = self._state.slide_layer
        if slide is not None:
            known, mpp = _path(slide), _users_mpp(slide)
            if mpp is not None and any(path_of(example) == known and example.mpp is None for example in self._state.labels):
                examples = (replace(e, mpp=mpp) if path_of(e) == known and e.mpp is None else e for e in self._state.labels)
                self._state.label(tuple(examples))
            if self._find(slide) is None and of_slide(self._state.labels, known):
                self._add()
        for layer, record in regions_on(self._viewer, labelled=True):
            layer.visible = record.slide is slide
            self._fill(layer, record.slide)

    def _find(self, slide: Image | None) -> Shapes | None:
        return next((layer for layer, record in regions_on(self._viewer, labelled=True) if record.slide is slide), None)

    def _add(self) -> Shapes:
        from napari.layers import Shapes

        slide = self._state.slide_layer
        assert slide is not None
        layer = Shapes(
            name="Labelled regions",
            ndim=2,
            face_color="transparent",
            features=_table(()),
            feature_defaults=dict.fromkeys(_FEATURES, ""),
            units=slide.units,
            axis_labels=slide.axis_labels,
            metadata={"streamview": RegionsLayer(slide, labelled=True)},
        )
        self._viewer.add_layer(layer)
        self._viewer.layers.selection.active = slide  # another slide made active here would become the one worked on
        self._fill(layer, slide)
        for emitter in (layer.events.data, layer.events.features):
            emitter.connect(lambda event: self._changed(layer, slide, event))
        layer.events.mode.connect(lambda event: self._drawing_changed(layer.mode == "add_rectangle"))
        return layer

    def _fill(self, layer: Shapes, slide: Image) -> None:
        """Put a slide's labelled regions into its layer."""
        examples = of_slide(self._state.labels, _path(slide))
        source = _source(slide)
        rectangles = [
            np.array([layer.world_to_data(corner) for corner in corners(example.region, source.mpp)])
            for example in examples
            if example.region is not None
        ]
        with layer.events.data.blocker(), layer.events.features.blocker():
            layer.selected_data = set()
            layer.data = rectangles
            layer.features = _table(examples)
            if rectangles:
                layer.edge_color = [colour_of(example.label, self._names()) for example in examples]
                layer.face_color = "transparent"
        self._prepare(layer)
        thicken(layer, self._viewer)

    def _prepare(self, layer: Shapes) -> None:
        """Set what the next rectangle will be."""
        with layer.events.features.blocker():
            layer.selected_data = set()
            layer.current_edge_color, layer.current_face_color = colour_of(self.label, self._names()), "transparent"
            layer.feature_defaults = {"label": self.label, "patient": self.patient, "split": ""}

    def _changed(self, layer: Shapes, slide: Image, event: Any) -> None:
        """Take over what the user has drawn, moved, removed or written into the features."""
        action = str(getattr(getattr(event, "action", ""), "value", getattr(event, "action", "")))
        if self._reading or action in ("adding", "changing", "removing") or len(layer.features) != len(layer.data):
            return
        self._reading = True
        try:
            self._read(layer, slide)
        finally:
            self._reading = False

    def _read(self, layer: Shapes, owner: Image) -> None:
        slide, path = _source(owner), _path(owner)
        drawn = []
        for shape, (label, patient, split) in zip(layer.data, layer.features[list(_FEATURES)].astype(str).to_numpy(), strict=True):
            try:
                region = within([layer.data_to_world(corner) for corner in shape], slide.shape, slide.mpp)
            except RegionError:  # beside the slide: it is no region until it is moved there
                continue
            drawn.append(Example(path, label, region, patient, mpp=_users_mpp(owner), split=split))
        self._state.label(replace_drawn(self._state.labels, path, drawn))

    def _removed(self, event: Any) -> None:
        """A slide takes the layer of its labels along; the labels stay."""
        layer = self._find(event.value)
        if layer is not None:
            self._viewer.layers.remove(layer)

    def _activated(self, event: Any) -> None:
        record = record_of(event.value)
        if not (isinstance(record, RegionsLayer) and record.labelled):
            self._drawing_changed(False)

    def _zoomed(self, event: Any = None) -> None:
        for layer, _ in regions_on(self._viewer, labelled=True):
            thicken(layer, self._viewer)


def _table(examples: Sequence[Example]) -> DataFrame:
    """The features of a layer; of texts also where there is none."""
    from pandas import DataFrame

    return DataFrame({name: [getattr(example, name) for example in examples] for name in _FEATURES}, dtype=object)


def _users_mpp(slide: Image) -> float | None:
    """The mpp that the user gave a slide whose file states none."""
    source = _source(slide)
    return source.mpp[0] if source.mpp is not None and source.mpp_source.startswith("given") else None


def _path(slide: Image) -> str:
    """The one absolute path of a slide's layer; empty where it has no file."""
    record = slide_on(slide)
    return "" if record is None or record.path is None else realpath(record.path)


def _source(slide: Image) -> Slide:
    """The open slide of its layer."""
    record = slide_on(slide)
    assert record is not None
    return record.source
