"""Labelled regions on the slides: one layer of outlined rectangles a slide, coloured by class, to be drawn, moved and removed there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from os.path import realpath
from typing import TYPE_CHECKING, Any

from streamview.errors import RegionError
from streamview.labels.regions import Example
from streamview_napari.canvas.region_layers import RegionLayers, regions_on, source_of
from streamview_napari.records import RegionsLayer, record_of, slide_on
from streamview_napari.requests.labels import colour_of, of_slide, path_of, replace_drawn
from streamview_napari.requests.regions import within

if TYPE_CHECKING:
    from napari.components import ViewerModel
    from napari.layers import Image, Shapes
    from pandas import DataFrame

    from streamview_napari.state import State

__all__ = ["LabelledLayers"]

_FEATURES = ("label", "patient", "split")


class LabelledLayers(RegionLayers):
    """Keeps the labels and the layers that show them alike, whichever of them the user changes.

    A layer is made when its slide has labelled regions and is worked on; the class, patient and split of a rectangle are features of the
    layer.

    Parameters
    ----------
    viewer, state, told
        As for `RegionLayers`.
    names
        Returns the classes, whose order decides their colours.
    drawing_changed
        Called with whether the user draws on a layer.
    """

    name, labelled = "Labelled regions", True

    def __init__(
        self,
        viewer: ViewerModel,
        state: State,
        *,
        names: Callable[[], tuple[str, ...]],
        drawing_changed: Callable[[bool], None],
        told: Callable[[str], None],
    ) -> None:
        super().__init__(viewer, state, told=told)
        self._names, self._drawing_changed = names, drawing_changed
        self._reading = False
        self.label, self.patient = "", ""  # of the next rectangle

    def next(self, label: str, patient: str) -> None:
        """Give the rectangles that are drawn from now on this class and patient."""
        self.label, self.patient = label, patient
        layer = self.find()
        if layer is not None:
            self._prepare(layer)

    def draw(self, on: bool) -> None:
        """Let the user drag one labelled rectangle after the other, or no more."""
        super().draw(on)
        layer = self.find()
        if on and layer is not None:
            self._prepare(layer)

    def show(self) -> None:
        """Show the labels as they are now, on all slides that are open."""
        if self._reading:
            return
        slide = self._state.slide_layer
        if slide is not None:
            known, mpp = _path(slide), _users_mpp(slide)
            if mpp is not None and any(example.mpp != mpp for example in self._state.labels if path_of(example) == known):
                self._state.label(tuple(replace(e, mpp=mpp) if path_of(e) == known else e for e in self._state.labels))
            if self.find(slide) is None and of_slide(self._state.labels, known):
                self.add()
        for layer, record in regions_on(self._viewer, labelled=True):
            self._fill(layer, record.slide)

    def add(self, **options: Any) -> Shapes:
        """Make the layer of the slide worked on."""
        layer = super().add(features=_table(()), feature_defaults=dict.fromkeys(_FEATURES, ""), **options)
        record = record_of(layer)
        assert isinstance(record, RegionsLayer)
        self._fill(layer, record.slide)
        layer.events.features.connect(lambda event: self.changed(layer, record.slide))
        layer.events.mode.connect(lambda event: self._drawing_changed(layer.mode == "add_rectangle"))
        return layer

    def changed(self, layer: Shapes, slide: Image) -> None:
        """Take over what the user has drawn, moved, removed or written into the features."""
        if self._reading or self._dragged is layer or len(layer.features) != len(layer.data):
            return
        self._reading = True
        try:
            self._read(layer, slide)
        finally:
            self._reading = False

    def _fill(self, layer: Shapes, slide: Image) -> None:
        """Put a slide's labelled regions into its layer."""
        examples, names = of_slide(self._state.labels, _path(slide)), self._names()
        self.put(layer, [example.region for example in examples if example.region is not None])
        with layer.events.features.blocker():
            layer.features = _table(examples)
            if examples:
                layer.edge_color = [colour_of(example.label, names) for example in examples]
                layer.face_color = "transparent"
        self._prepare(layer)

    def _prepare(self, layer: Shapes) -> None:
        """Set what the next rectangle will be."""
        with layer.events.features.blocker():
            layer.selected_data = set()
            layer.current_edge_color, layer.current_face_color = colour_of(self.label, self._names()), "transparent"
            layer.feature_defaults = {"label": self.label, "patient": self.patient, "split": ""}

    def _read(self, layer: Shapes, owner: Image) -> None:
        shape, path, mpp = source_of(owner).shape, _path(owner), _users_mpp(owner)
        before = of_slide(self._state.labels, path)
        known = {_content(example): example for example in before}
        drawn = []
        for vertices, (label, patient, split) in zip(layer.data, layer.features[list(_FEATURES)].astype(str).to_numpy(), strict=True):
            try:
                region = within(vertices, shape, None)
            except RegionError:  # beside the slide: it is no region until it is moved there
                continue
            example = Example(path, label, region, patient, mpp=mpp, split=split)
            drawn.append(known.get(_content(example), example))
        if tuple(drawn) != before:
            self._state.change_labels(replace_drawn(self._state.labels, path, drawn))

    def _activated(self, event: Any) -> None:
        super()._activated(event)
        record = record_of(event.value)
        if not (isinstance(record, RegionsLayer) and record.labelled):
            self._drawing_changed(False)


def _content(example: Example) -> tuple[object, ...]:
    """What the user can change of a region."""
    return example.region, example.label, example.patient, example.split


def _table(examples: Sequence[Example]) -> DataFrame:
    """The features of a layer; of texts also where there is none."""
    from pandas import DataFrame

    return DataFrame({name: [getattr(example, name) for example in examples] for name in _FEATURES}, dtype=object)


def _users_mpp(slide: Image) -> float | None:
    """The mpp that the user gave a slide whose file states none."""
    source = source_of(slide)
    return source.mpp[0] if source.mpp is not None and source.mpp_source.startswith("given") else None


def _path(slide: Image) -> str:
    """The one absolute path of a slide's layer; empty where it has no file."""
    record = slide_on(slide)
    return "" if record is None or record.path is None else realpath(record.path)
