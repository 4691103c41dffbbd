"""What is on the canvas beside the slide: the map of the answer worked on, its outline, what was analysed, captions. Without Qt."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from napari.layers import Layer
from napari.utils.colormaps import Colormap
from napari.utils.notifications import show_info

from streamview.export.png import find_glass
from streamview.results.display import OUTLINE_COLOUR, PALETTES, Recipe
from streamview.results.glass import Glass
from streamview.results.shown_map import FULL, ShownMap
from streamview.slides import Slide
from streamview_napari.canvas.captions import describe, place_overlays
from streamview_napari.canvas.layers import caption, first_recipe, layer_of, map_colormap
from streamview_napari.canvas.outline import contours, line_width, outline_layer, vectors
from streamview_napari.records import AnalysedLayer, MapLayer, OutlineLayer, SlideLayer, expect_map, map_on, note, record_of
from streamview_napari.requests.regions import corners

if TYPE_CHECKING:
    from napari.components import ViewerModel
    from napari.layers import Image, Vectors
    from numpy.typing import NDArray

    from streamview.results import Method, Saliency
    from streamview_napari.requests.answers import Answer
    from streamview_napari.state import State

__all__ = ["Canvas", "ReadyMap", "make_ready", "recipe_of"]

ANALYSED_COLOUR = "#4c8bf5"
_STOPS = 9  # colours taken of a colour map chosen in napari's own controls


@dataclass(frozen=True, slots=True, eq=False)
class ReadyMap:
    """A map with all that takes time already computed, in whichever thread.

    Parameters
    ----------
    shown
        The map, by its recipe, glass looked for.
    lines
        Its outline, closed lines in level-0 px; None where the recipe has none.
    saliency
        The result.
    """

    saliency: Saliency
    shown: ShownMap
    lines: list[NDArray[np.float64]] | None


def make_ready(saliency: Saliency, recipe: Recipe, slide: Slide | None = None, glass: Glass | None = None) -> ReadyMap:
    """Compute what the canvas needs of a map, so that to show it takes the window's thread no time; glass is looked for on `slide`.

    Raises
    ------
    SlideError
        When a part of the slide cannot be read.
    StreamviewError
        When the saliency has no such map.
    """
    shown = ShownMap(saliency, recipe)
    if glass is None and slide is not None and slide.identity == saliency.prediction.identity.source:
        glass = find_glass(slide, saliency.prediction.region)
    shown.glass = glass
    shown.warm()
    return ReadyMap(saliency, shown, contours(shown) if recipe.outline else None)


def recipe_of(layer: Image) -> Recipe:
    """How a map layer is shown."""
    return expect_map(layer).recipe


class Canvas:
    """Shows the map of the answer worked on, and keeps outlines, captions and colour bar in step with all map layers.

    One image layer is taken over from answer to answer: to remove a layer and add another takes napari a second. Maps that were opened
    have layers of their own. What belongs to another slide than the one worked on is hidden.

    Parameters
    ----------
    viewer, state
        Of the window; the viewer's map layers are watched from now on.
    """

    def __init__(self, viewer: ViewerModel, state: State) -> None:
        self._viewer, self._state = viewer, state
        self.glass: dict[str, Glass] = {}
        """By identity of the result, where it was looked for."""
        self._shared: Image | None = None
        self._lines: dict[Layer, tuple[list[NDArray[Any]], str]] = {}  # in world units and their colour, of each layer of lines
        self._width = line_width(viewer.scene.camera.zoom)
        self._hidden: list[Layer] | None = None
        self._changing = False
        place_overlays(viewer)
        viewer.layers.events.inserted.connect(self._inserted)
        viewer.layers.events.removed.connect(self._removed)
        viewer.scene.camera.events.zoom.connect(self._zoomed)
        state.events.slide_changed.connect(self._slide_changed)
        state.events.answers_changed.connect(self._answers_changed)
        state.events.answer_selected.connect(self.present)
        for layer in list(viewer.layers):
            self._watch(layer)
        self._outline_analysed()
        describe(viewer)

    def close(self) -> None:
        """Let go of the viewer."""
        self._viewer.layers.events.inserted.disconnect(self._inserted)
        self._viewer.layers.events.removed.disconnect(self._removed)
        self._viewer.scene.camera.events.zoom.disconnect(self._zoomed)
        for layer in self._viewer.layers:
            self._unwatch(layer)

    def present(self, answer: Answer | None, ready: ReadyMap | None = None, method: Method | None = None) -> None:
        """Show the map of an answer, alone: in its own layer where it was opened, else in the one that answers share.

        Parameters
        ----------
        answer
            The answer; one without maps, or None, leaves no map on show.
        ready
            Its map, made ready in a thread; None: it is made ready here.
        method
            Which of its maps; None: the usual one, or the one that is on show already.
        """
        saliency = None if answer is None else answer.saliency
        own = [] if saliency is None else self._state.maps_of(saliency)
        fitting = [layer for layer in own if method in (None, recipe_of(layer).method)]
        chosen = next((layer for layer in reversed(fitting) if layer.visible), fitting[-1] if fitting else None)
        if chosen is not None and chosen.visible and method is None:
            self._state.select_map(chosen)
            return
        if answer is not None and saliency is not None and chosen is None:
            recipe = first_recipe(saliency, method)
            cap = self._state.caps.get(recipe.method)
            glass = self.glass.get(saliency.prediction.identity.key)
            ready = ready or make_ready(saliency, recipe if cap is None else replace(recipe, cap=cap), glass=glass)
            chosen = self._put(answer, ready)
        with self._quiet():
            for layer in self._viewer.layers:
                if map_on(layer) is not None and layer.visible != (layer is chosen):
                    layer.visible = layer is chosen
                    self._outline(layer)
        describe(self._viewer)
        self._state.select_map(chosen)

    def _put(self, answer: Answer, ready: ReadyMap) -> Image:
        """Put a map into the layer that answers share."""
        data, options, _ = layer_of(ready.saliency, ready.shown)
        record = replace(options["metadata"]["streamview"], run=answer.run, certificate=answer.certificate)
        if ready.shown.glass is not None:
            self.glass[ready.saliency.prediction.identity.key] = ready.shown.glass
        layer = self._shared
        if layer is None or layer not in self._viewer.layers:
            layer = self._make_shared()
        with self._quiet():
            layer.visible = False
            note(layer, record)
            layer.data_level = 0
            layer.data = data
            _place(layer, options)
            layer.visible = True
            self._outline(layer, ready.lines)
        return layer

    def _make_shared(self) -> Image:
        """Make the layer that answers share, empty and hidden, and that of its outline."""
        slide = self._state.slide_layer
        options = {
            "name": "Map",
            "visible": False,
            "multiscale": True,
            "contrast_limits": (0, FULL),
            "blending": "translucent_no_depth",
            "interpolation2d": "linear",
            "units": ("pixel", "pixel") if slide is None else slide.units,
            "axis_labels": ("y", "x"),
        }
        layer: Image = Layer.create([np.zeros((1, 1), np.uint8)], options, "image")
        self._shared = layer
        active = self._viewer.layers.selection.active
        self._viewer.add_layer(layer)
        self._viewer.layers.selection.active = active
        for emitter in (layer.events.opacity, layer.events.colormap):
            emitter.connect(self._recoloured)
        layer.events.visible.connect(self._visible)
        return layer

    def _make_layers(self) -> None:
        """Make the layers that the end of a run needs, while it runs: one at a time, since each takes a tenth of a second."""
        if self._shared is None or self._shared not in self._viewer.layers:
            self._make_shared()
            self._state.post("layers", self._make_layers)
        elif self.outline_of(self._shared) is None:
            self._show_lines(None, [], "Outline", OUTLINE_COLOUR, str(self._shared.units[0]) != "pixel", OutlineLayer(self._shared))
            outline = self.outline_of(self._shared)
            if outline is not None:
                outline.visible = False

    @contextmanager
    def _quiet(self) -> Iterator[None]:
        """Do not take what this class changes for what the user changes."""
        before, self._changing = self._changing, True
        try:
            yield
        finally:
            self._changing = before

    def _slide_changed(self, slide: Layer | None) -> None:
        """Hide what belongs to other slides; what belongs to this one comes back, its map with the answer worked on there."""
        for layer in list(self._viewer.layers):
            record = record_of(layer)
            if isinstance(record, MapLayer) and not self._state.concerns(record.source):
                layer.visible = False
            elif isinstance(record, SlideLayer) and slide is not None:
                layer.visible = layer is slide

    def show(self, layer: Image, recipe: Recipe) -> None:
        """Show a map layer by another recipe of the same method, doing no more than that takes."""
        record = expect_map(layer)
        shown = record.shown
        before, edge = shown.shown, (shown.shown.cap, shown.shown.threshold)
        redrawn = shown.set(recipe)
        note(layer, replace(record, caption=caption(record.saliency, shown.shown)))
        with self._quiet():
            colours = (recipe.colours, recipe.heat, shown.shown.threshold)
            if colours != (before.recipe.colours, before.recipe.heat, before.threshold):
                layer.colormap = map_colormap(shown.shown)
            layer.opacity = recipe.opacity
            if redrawn:
                layer.refresh(extent=False)
        if redrawn or edge != (shown.shown.cap, shown.shown.threshold) or recipe.outline != before.recipe.outline:
            self._outline(layer)
        describe(self._viewer)
        self._state.events.recipe_changed.emit()

    def mask(self, layer: Image, glass: Glass) -> None:
        """Hide what a map layer has on glass, where its recipe asks for that."""
        record = expect_map(layer)
        self.glass[record.saliency.prediction.identity.key] = glass
        shown = record.shown
        shown.glass = glass
        if shown.shown.recipe.glass:
            layer.refresh(extent=False)
            self._outline(layer)
            self._state.events.recipe_changed.emit()

    def outline_of(self, layer: Layer) -> Vectors | None:
        """The layer of a map layer's outline."""
        records = ((other, record_of(other)) for other in self._viewer.layers)
        return next((other for other, record in records if isinstance(record, OutlineLayer) and record.map is layer), None)

    def hide(self) -> None:
        """Hide maps and all outlines until `reveal`."""
        if self._hidden is None:
            hidden = MapLayer | OutlineLayer | AnalysedLayer
            self._hidden = [layer for layer in self._viewer.layers if layer.visible and isinstance(record_of(layer), hidden)]
            for layer in self._hidden:
                layer.visible = False

    def reveal(self) -> None:
        """Show again what `hide` hid."""
        for layer in self._hidden or ():
            if layer in self._viewer.layers:
                layer.visible = True
        self._hidden = None

    def _watch(self, layer: Layer) -> None:
        if map_on(layer) is not None:
            layer.events.visible.connect(self._visible)
            layer.events.opacity.connect(self._recoloured)
            layer.events.colormap.connect(self._recoloured)
            self._outline(layer)

    def _unwatch(self, layer: Layer) -> None:
        if map_on(layer) is not None:
            layer.events.visible.disconnect(self._visible)
            layer.events.opacity.disconnect(self._recoloured)
            layer.events.colormap.disconnect(self._recoloured)

    def _inserted(self, event: Any) -> None:
        layer, record = event.value, map_on(event.value)
        if record is not None and layer.visible and not self._state.concerns(record.source):
            layer.visible = False
            show_info(f"{layer.name}: of {record.saliency.prediction.slide_name}, and shown when that slide is open")
        self._watch(layer)
        describe(self._viewer)

    def _removed(self, event: Any) -> None:
        layer = event.value
        if self._lines.pop(layer, None) is not None:
            layer.events.visible.disconnect(self._lines_shown)
        if map_on(layer) is not None:
            self._unwatch(layer)
            outline = self.outline_of(layer)
            if outline is not None:
                self._viewer.layers.remove(outline)
            describe(self._viewer)

    def _visible(self, event: Any) -> None:
        if map_on(event.source) is None:
            return
        if self._changing:
            return
        if self._hidden is None:
            self._outline(event.source)
        describe(self._viewer)

    def _recoloured(self, event: Any) -> None:
        """Take over what was chosen in napari's own controls."""
        layer = event.source
        if self._changing or layer not in self._viewer.layers or map_on(layer) is None:
            return
        shown = expect_map(layer).shown.shown
        recipe = replace(shown.recipe, opacity=layer.opacity)
        if not np.array_equal(layer.colormap.colors, map_colormap(shown).colors):
            # one of this plugin's may come back by its name alone, which maps of other thresholds share
            named, fading, _ = layer.colormap.name.partition(" (fading)")
            if not fading:
                recipe = replace(recipe, colours=_stops(layer.colormap))
            elif named in PALETTES:
                recipe = replace(recipe, colours=PALETTES[named])
            with self._quiet():
                layer.colormap = map_colormap(replace(shown, recipe=recipe))
        self.show(layer, recipe)

    def _outline(self, layer: Image, found: list[NDArray[np.float64]] | None = None) -> None:
        """Draw, move or hide the outline of a map layer; `found` are its lines in level-0 px, where they are known."""
        record, outline = expect_map(layer), self.outline_of(layer)
        if not (layer.visible and record.recipe.outline):
            if outline is not None:
                outline.visible = False
            return
        mpp = record.saliency.mpp
        lines = [line * (mpp or (1.0, 1.0)) for line in (contours(record.shown) if found is None else found)]
        self._show_lines(outline, lines, f"Outline: {layer.name}", OUTLINE_COLOUR, mpp is not None, OutlineLayer(layer))

    def _answers_changed(self) -> None:
        self._outline_analysed()
        if self._state.running:
            self._state.post("layers", self._make_layers)

    def _outline_analysed(self) -> None:
        """Outline the regions of the answers that may be shown, so that "not computed" and "no evidence" do not look alike."""
        regions, slide = self._state.regions, self._state.slide
        layer = next((layer for layer in self._viewer.layers if isinstance(record_of(layer), AnalysedLayer)), None)
        if not regions:
            if layer is not None:
                layer.visible = False
            return
        known = (answer.saliency.mpp for answer in self._state.answers_here if answer.saliency is not None)
        mpp = next(known, None) if slide is None else slide.mpp
        lines = [corners(region, mpp)[[0, 1, 2, 3, 0]] for region in regions]
        self._show_lines(layer, lines, "Analysed", ANALYSED_COLOUR, mpp is not None, AnalysedLayer())

    def _show_lines(
        self,
        layer: Vectors | None,
        lines: list[NDArray[Any]],
        name: str,
        colour: str,
        in_um: bool,
        record: OutlineLayer | AnalysedLayer,
    ) -> None:
        """Show lines in world units in a layer; None: in a new one, which leaves the active one active."""
        if layer is None:
            active = self._viewer.layers.selection.active
            data, options, kind = outline_layer(lines, self._width, name, in_um, colour)
            layer = Layer.create(data, options | {"metadata": {"streamview": record}}, kind)
            if hasattr(layer, "_max_vectors_thumbnail"):
                layer._max_vectors_thumbnail = 128  # drawn one by one at every change, and no outline can be made out in 32 px
            above = self._viewer.layers.index(record.map) + 1 if isinstance(record, OutlineLayer) else len(self._viewer.layers)
            self._viewer.layers.insert(above, layer)
            self._viewer.layers.selection.active = active
        before = self._lines.get(layer)
        if before is None:
            layer.events.visible.connect(self._lines_shown)
        self._lines[layer] = lines, colour
        unit = "um" if in_um else "pixel"
        _place(layer, {"name": name, "units": (unit, unit)})
        if not layer.visible:
            layer.visible = True  # which draws them
        elif before is None or len(before[0]) != len(lines) or not all(map(np.array_equal, before[0], lines)):
            self._redraw(layer)

    def _lines_shown(self, event: Any) -> None:
        layer = event.source
        if layer.visible and layer in self._lines:
            self._redraw(layer)

    def _zoomed(self, event: Any = None) -> None:
        width = line_width(self._viewer.scene.camera.zoom)
        if width != self._width:
            self._width = width
            for layer in self._lines:
                if layer.visible:  # napari keeps the view of a hidden layer as it was, and redrawing it fails
                    self._redraw(layer)

    def _redraw(self, layer: Vectors) -> None:
        lines, colour = self._lines[layer]
        data, colours = vectors(lines, self._width, colour)
        layer.data = data
        if self._width != layer.edge_width:
            layer.edge_width = self._width
        if len(data):
            layer.edge_color = colours


def _place(layer: Layer, options: Mapping[str, Any]) -> None:
    """Give a layer place, colours and name, those that it does not have: each has the canvas drawn anew, and colours their shader built."""
    for name in ("units", "scale", "translate", "colormap", "opacity", "name"):
        if name not in options:
            continue
        now, then = getattr(layer, name), options[name]
        if name == "colormap":
            same = np.array_equal(now.colors, then.colors)
        elif name == "units":
            same = [str(unit) for unit in now] == [{"um": "micrometer"}.get(str(unit), str(unit)) for unit in then]
        else:
            same = np.array_equal(now, then)
        if not same:
            setattr(layer, name, then)


def _stops(colormap: Colormap) -> tuple[str, ...]:
    """Hex colours of a colour map, evenly spaced."""
    rgb = colormap.map(np.linspace(0, 1, _STOPS))[:, :3]
    return tuple(f"#{red:02x}{green:02x}{blue:02x}" for red, green, blue in np.rint(rgb * 255).astype(int).tolist())
