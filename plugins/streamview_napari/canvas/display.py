"""What happens on the canvas when the display of a map changes: pixels, colours, outline, captions. Without Qt."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from napari.layers import Layer
from napari.utils.colormaps import Colormap

from streamview.results.display import PALETTES, Recipe, glass_mask
from streamview.slides import Slide
from streamview_napari.canvas.captions import describe, place_overlays
from streamview_napari.canvas.layers import caption, map_colormap, thumbnail
from streamview_napari.canvas.outline import contours, line_width, outline_layer, vectors
from streamview_napari.records import MapLayer, OutlineLayer, expect_map, map_on, note, record_of
from streamview_napari.shown_map import Glass

if TYPE_CHECKING:
    from napari.components import ViewerModel
    from napari.layers import Image, Vectors
    from numpy.typing import NDArray

    from streamview.results import Saliency

__all__ = ["Canvas", "find_glass", "recipe_of"]

_GLASS = 1024  # px a side of the thumbnail that glass is looked for on
_HOLE = 0.0005  # share of it below which a clear spot is a hole in the tissue, not glass
_STOPS = 9  # colours taken of a colour map chosen in napari's own controls


def recipe_of(layer: Image) -> Recipe:
    """How a map layer is shown."""
    return expect_map(layer).recipe


def find_glass(slide: Slide, saliency: Saliency) -> Glass:
    """Look for empty glass in the region of a result, on a thumbnail of at most 1024 px a side.

    Raises
    ------
    SlideError
        When a part of the slide cannot be read.
    """
    region = saliency.prediction.region
    factor = max(1.0, max(region.shape) / _GLASS)
    height, width = (max(round(size / factor), 1) for size in region.shape)
    picture = thumbnail(slide, region, (height, width))
    mask = glass_mask(picture, slide.background, max(int(_HOLE * height * width), 16))
    step = region.height / height, region.width / width
    return Glass(mask, step, (region.y + (step[0] - 1) / 2, region.x + (step[1] - 1) / 2))


class Canvas:
    """Keeps outlines, captions and colour bar of a viewer in step with its map layers.

    Parameters
    ----------
    viewer
        Its map layers are watched from now on.
    """

    def __init__(self, viewer: ViewerModel) -> None:
        self._viewer = viewer
        self._lines: dict[Layer, list[NDArray[Any]]] = {}  # in world units, of each outline layer
        self._width = line_width(viewer.scene.camera.zoom)
        self._hidden: list[Layer] | None = None
        self._changing = False
        place_overlays(viewer)
        viewer.layers.events.inserted.connect(self._inserted)
        viewer.layers.events.removed.connect(self._removed)
        viewer.scene.camera.events.zoom.connect(self._zoomed)
        for layer in list(viewer.layers):
            self._watch(layer)
        describe(viewer)

    def close(self) -> None:
        """Let go of the viewer."""
        self._viewer.layers.events.inserted.disconnect(self._inserted)
        self._viewer.layers.events.removed.disconnect(self._removed)
        self._viewer.scene.camera.events.zoom.disconnect(self._zoomed)
        for layer in self._viewer.layers:
            self._unwatch(layer)

    def show(self, layer: Image, recipe: Recipe) -> None:
        """Show a map layer by another recipe of the same method, doing no more than that takes."""
        record = expect_map(layer)
        shown = record.shown
        before, edge = shown.shown, (shown.shown.cap, shown.shown.threshold)
        redrawn = shown.set(recipe)
        note(layer, replace(record, caption=caption(record.saliency, shown.shown)))
        self._changing = True
        try:
            colours = (recipe.colours, recipe.heat, shown.shown.threshold)
            if colours != (before.recipe.colours, before.recipe.heat, before.threshold):
                layer.colormap = map_colormap(shown.shown)
            layer.opacity = recipe.opacity
            if redrawn:
                layer.refresh(extent=False)
        finally:
            self._changing = False
        if redrawn or edge != (shown.shown.cap, shown.shown.threshold) or recipe.outline != before.recipe.outline:
            self._outline(layer)
        describe(self._viewer)
        shown.changed.emit()

    def mask(self, layer: Image, glass: Glass) -> None:
        """Hide what a map layer has on glass, where its recipe asks for that."""
        shown = expect_map(layer).shown
        shown.glass = glass
        if shown.shown.recipe.glass:
            layer.refresh(extent=False)
            self._outline(layer)

    def outline_of(self, layer: Layer) -> Vectors | None:
        """The layer of a map layer's outline."""
        records = ((other, record_of(other)) for other in self._viewer.layers)
        return next((other for other, record in records if isinstance(record, OutlineLayer) and record.map is layer), None)

    def hide(self) -> None:
        """Hide maps and outlines until `reveal`."""
        if self._hidden is None:
            self._hidden = [
                layer for layer in self._viewer.layers if layer.visible and isinstance(record_of(layer), MapLayer | OutlineLayer)
            ]
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
        self._watch(event.value)
        describe(self._viewer)

    def _removed(self, event: Any) -> None:
        layer = event.value
        if self._lines.pop(layer, None) is not None:
            layer.events.visible.disconnect(self._outline_visible)
        if map_on(layer) is not None:
            self._unwatch(layer)
            outline = self.outline_of(layer)
            if outline is not None:
                self._viewer.layers.remove(outline)
            describe(self._viewer)

    def _visible(self, event: Any) -> None:
        if self._hidden is None:
            self._outline(event.source)
        describe(self._viewer)

    def _recoloured(self, event: Any) -> None:
        """Take over what was chosen in napari's own controls."""
        layer = event.source
        if self._changing or layer not in self._viewer.layers:
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
            self._changing = True
            try:
                layer.colormap = map_colormap(replace(shown, recipe=recipe))
            finally:
                self._changing = False
        self.show(layer, recipe)

    def _outline(self, layer: Image) -> None:
        """Draw, move or hide the outline of a map layer."""
        shown = expect_map(layer).shown
        outline = self.outline_of(layer)
        if not (layer.visible and shown.shown.recipe.outline):
            if outline is not None:
                outline.visible = False
            return
        saliency = expect_map(layer).saliency
        lines = [line * (saliency.mpp or (1.0, 1.0)) for line in contours(shown)]
        if outline is None:
            active = self._viewer.layers.selection.active
            data, options, kind = outline_layer(lines, self._width, f"Outline: {layer.name}", saliency.mpp is not None)
            outline = Layer.create(data, options | {"metadata": {"streamview": OutlineLayer(layer)}}, kind)
            if hasattr(outline, "_max_vectors_thumbnail"):
                outline._max_vectors_thumbnail = 128  # drawn one by one at every change, and no outline can be made out in 32 px
            self._viewer.layers.insert(self._viewer.layers.index(layer) + 1, outline)
            self._viewer.layers.selection.active = active
            outline.events.visible.connect(self._outline_visible)
        else:
            outline.visible = True
            _redraw(outline, lines, self._width)
        self._lines[outline] = lines

    def _outline_visible(self, event: Any) -> None:
        layer = event.source
        if layer.visible and layer in self._lines and layer.edge_width != self._width:
            _redraw(layer, self._lines[layer], self._width)

    def _zoomed(self, event: Any = None) -> None:
        width = line_width(self._viewer.scene.camera.zoom)
        if width != self._width:
            self._width = width
            for layer, lines in self._lines.items():
                if layer.visible:  # napari keeps the view of a hidden layer as it was, and redrawing it fails
                    _redraw(layer, lines, width)


def _redraw(layer: Vectors, lines: list[NDArray[Any]], width: float) -> None:
    """Replace the vectors of an outline."""
    data, colours = vectors(lines, width)
    layer.data = data
    if width != layer.edge_width:
        layer.edge_width = width
    if len(data):
        layer.edge_color = colours


def _stops(colormap: Colormap) -> tuple[str, ...]:
    """Hex colours of a colour map, evenly spaced."""
    rgb = colormap.map(np.linspace(0, 1, _STOPS))[:, :3]
    return tuple(f"#{red:02x}{green:02x}{blue:02x}" for red, green, blue in np.rint(rgb * 255).astype(int).tolist())
