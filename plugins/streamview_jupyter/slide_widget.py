"""The widget that all of ours are: a slide of any size in a notebook, and maps over it."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import anywidget
import traitlets

from streamview.errors import StreamviewError
from streamview.export.hotspots import Hotspot, find_hotspots
from streamview.results import RESEARCH_USE, Method, Saliency
from streamview.results.display import Preset, default_preset, usual_recipe
from streamview.results.overlay import find_glass
from streamview.slides import Slide
from streamview_jupyter.layers import MapLayer
from streamview_jupyter.messages import SLIDE, ChangeDisplay, Hello, MessageError, RawValue, Request, Tiles, parse
from streamview_jupyter.server import TileServer, explain
from streamview_jupyter.sources import SlidePixels

__all__ = ["SlideWidget"]

_STATIC = Path(__file__).parent / "static"


class SlideWidget(anywidget.AnyWidget):
    """A slide, and maps over it.

    Parameters
    ----------
    height, theme
        As `streamview_jupyter.view`.

    Attributes
    ----------
    selection
        The region that was drawn, ``[x, y, width, height]`` in level-0 px; None where none is. May be set.
    viewport
        What is in sight, ``[x, y, width, height]`` in level-0 px.
    cursor_value
        Raw value of the topmost visible map under the cursor; None elsewhere.
    height
        Of the widget, in CSS units.
    theme
        "auto", "light" or "dark".
    slide
        What is shown; None where nothing is.
    layers
        The maps, bottom first.
    """

    _esm = _STATIC / "widget.js"
    _css = _STATIC / "widget.css"

    selection: Any = traitlets.List(traitlets.Int(), None, allow_none=True, minlen=4, maxlen=4).tag(sync=True)
    viewport: Any = traitlets.List(traitlets.Float(), None, allow_none=True, minlen=4, maxlen=4).tag(sync=True)
    cursor_value = traitlets.Float(None, allow_none=True)
    height = traitlets.Unicode("480px").tag(sync=True)
    theme = traitlets.Enum(["auto", "light", "dark"], "auto").tag(sync=True)
    _slide = traitlets.Dict().tag(sync=True)
    _layers: traitlets.List[Any] = traitlets.List().tag(sync=True)
    _regions: traitlets.List[Any] = traitlets.List().tag(sync=True)
    _job = traitlets.Dict(default_value=None, allow_none=True).tag(sync=True)
    _target = traitlets.Dict(default_value=None, allow_none=True).tag(sync=True)
    _review = traitlets.Dict(default_value=None, allow_none=True).tag(sync=True)

    slide: Any = None

    def __init__(self, height: str, theme: str) -> None:
        self.layers: tuple[MapLayer, ...] = ()
        self._number, self._epoch = 0, -1
        self._sending, self._changing = threading.Lock(), threading.RLock()
        self._server = TileServer(self._post, self._explain)
        super().__init__(height=height, theme=theme)
        self.on_msg(self._receive)

    # what users call

    def add_saliency(self, result: Saliency, preset: Preset | Method | None = None, **display: Any) -> MapLayer:
        """Show a map over the slide.

        Parameters
        ----------
        result
            Of this slide.
        preset
            How it is shown at first: a preset's name; None: the usual one.
        display
            Attributes of the layer, such as ``opacity=0.6, colormap="viridis"``.

        Returns
        -------
        MapLayer
            With live attributes.

        Raises
        ------
        StreamviewError
            When the result is of another slide, or has no such map, or a part of the slide cannot be read.
        traitlets.TraitError
            When a value of `display` is out of its range.
        """
        layer = self._make_layer(self.slide, result, preset, display)
        self._attach(layer)
        return layer

    def remove(self, layer: MapLayer) -> None:
        """Take a map off the view."""
        with self._changing:
            self.layers = tuple(each for each in self.layers if each is not layer)
            self._server.set_source(layer.number, layer.epoch, None)
            self._describe_layers()

    @property
    def hotspots(self) -> tuple[Hotspot, ...]:
        """Areas that the topmost visible map shows, ranked; empty without one."""
        visible = [layer for layer in self.layers if layer.visible]
        return find_hotspots(visible[-1].saliency, visible[-1].recipe, glass=visible[-1].source.shown.glass) if visible else ()

    def goto(self, *, x: float, y: float, mpp: float | None = None) -> None:
        """Centre the view on a level-0 position.

        Parameters
        ----------
        x, y
            In level-0 px.
        mpp
            Micrometres per screen pixel, such as 0.5 for a 20x objective; None: as it is.

        Raises
        ------
        StreamviewError
            When `mpp` is given but the slide's is unknown.
        """
        scale = None
        if mpp is not None:
            if self.slide.mpp is None:
                raise StreamviewError(f"{self.slide.name}: its mpp is unknown; open it with one to go to a magnification")
            scale = mpp / self.slide.mpp[1]
        previous = 0 if self._target is None else self._target["number"]
        self._target = {"number": previous + 1, "x": float(x), "y": float(y), "scale": scale}

    def close(self) -> None:
        """Stop its threads and remove it from the page."""
        if hasattr(self, "_server"):
            self._server.close()
        super().close()

    # what the browser asks

    def handle(self, content: Any) -> dict[str, Any] | None:
        """Do what a message asks, and return the answer to send, if any; no message makes this raise.

        Parameters
        ----------
        content
            As it came from the browser.
        """
        try:
            return self._answer(content)
        except Exception as error:  # noqa: BLE001  # a shell's boundary
            return {"type": "error", "text": self._explain(error)}

    def _answer(self, content: Any) -> dict[str, Any] | None:
        """Do what a message asks, and return the answer."""
        return self._do(parse(content))

    def _do(self, request: Request) -> dict[str, Any] | None:
        """What every widget answers."""
        match request:
            case Hello():
                return {"type": "welcome", "client": request.client}
            case Tiles():
                self._server.wait_for(request.client, request.needed, request.dropped)
            case RawValue():
                value = self._layer(request.layer).source.raw(request.y, request.x)
                self.cursor_value = value
                return {"type": "value", "client": request.client, "layer": request.layer, "y": request.y, "x": request.x, "value": value}
            case ChangeDisplay():
                layer = self._layer(request.layer)
                with self._changing:
                    for name, value in request.changes.items():
                        setattr(layer, name, value)
        return None

    def _explain(self, error: Exception) -> str:
        """What the browser is told of an error that is being handled."""
        return str(error) if isinstance(error, traitlets.TraitError) else explain(error)

    def set_state(self, sync_data: dict[str, Any]) -> None:
        """Take over what the browser has changed; not while another thread changes something, which would not reach the browser."""
        with self._changing:
            super().set_state(sync_data)

    def _receive(self, _: Any, content: Any, buffers: Any) -> None:
        answer = self.handle(content)
        if answer is not None:
            self._post(answer, [])

    def _post(self, content: dict[str, Any], buffers: list[bytes]) -> None:
        with self._sending:
            self.send(content, buffers)

    def _layer(self, number: int) -> MapLayer:
        for layer in self.layers:
            if layer.number == number:
                return layer
        raise MessageError(f"layer {number}: the view has no such map")

    # what has changed in the kernel

    def _make_layer(self, slide: Slide, result: Saliency, preset: Preset | Method | None, display: dict[str, Any]) -> MapLayer:
        """A layer that is not shown yet; what takes long of `add_saliency`."""
        source = result.prediction.identity.source
        if source != slide.identity:
            raise StreamviewError(
                f"the result is of {result.prediction.slide_name}, the view shows {slide.name}: open a view of that slide"
            )
        recipe = usual_recipe(result, preset or default_preset(result))  # type: ignore[arg-type]
        unknown = sorted(set(display) - set(MapLayer.class_trait_names()))
        if unknown:
            names = ", ".join(sorted(MapLayer.class_trait_names()))
            raise StreamviewError(f"unknown display setting {', '.join(unknown)}: expected some of {names}")
        glass = find_glass(slide, result.prediction.region) if recipe.glass else None
        with self._changing:
            self._number += 1
            number = self._number
        layer = MapLayer(number, result, self._layer_changed, recipe, glass)
        for name, value in display.items():
            setattr(layer, name, value)
        return layer

    def _attach(self, layer: MapLayer) -> None:
        with self._changing:
            self._server.set_source(layer.number, layer.epoch, layer.source)
            self.layers = (*self.layers, layer)
            self._describe_layers()

    def _show(self, slide: Slide | None, pixels: SlidePixels | None, title: str = "") -> None:
        """Show a slide in place of another and of its maps; None: nothing, under a title."""
        with self._changing, self.hold_sync():
            self._epoch += 1
            self.slide = slide
            for layer in self.layers:
                self._server.set_source(layer.number, layer.epoch, None)
            self.layers = ()
            self._server.set_source(SLIDE, self._epoch, pixels)
            self._slide = _describe(slide, pixels, title) | {"epoch": self._epoch}
            self._layers, self._regions, self.selection = [], [], None

    def _layer_changed(self, layer: MapLayer, blurred: bool) -> None:
        with self._changing:
            if blurred:
                self._server.set_source(layer.number, layer.epoch, layer.source)
            self._describe_layers()

    def _describe_layers(self) -> None:
        self._layers = [layer.description for layer in self._shown_layers()]

    def _shown_layers(self) -> tuple[Any, ...]:
        return self.layers

    @traitlets.validate("selection")
    def _inside(self, proposal: traitlets.Bunch) -> list[int] | None:
        """Cut a selection to the slide."""
        value = proposal.value
        if value is None or self.slide is None:
            return None if value is None else list(value)
        height, width = self.slide.shape
        x, y, across, down = value
        left, top, right, bottom = max(x, 0), max(y, 0), min(x + across, width), min(y + down, height)
        if right <= left or bottom <= top:
            raise traitlets.TraitError(f"selection {value}: expected [x, y, width, height] inside {width} x {height} px")
        return [left, top, right - left, bottom - top]


def _describe(slide: Slide | None, pixels: SlidePixels | None, title: str) -> dict[str, Any]:
    common = {"predictions": [], "notice": RESEARCH_USE}
    if slide is None or pixels is None:
        return common | {"name": title, "height": 0, "width": 0, "levels": 0, "mpp": None, "background": [255, 255, 255]}
    height, width = slide.shape
    return common | {
        "name": slide.name,
        "height": height,
        "width": width,
        "levels": pixels.levels,
        "mpp": None if slide.mpp is None else list(slide.mpp),
        "background": list(slide.background),
    }
