"""The widget: a slide, maps over it, and runs of a network, in a notebook."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anywidget
import numpy as np
import traitlets
from numpy.typing import NDArray

from streamview.errors import RegionError, StreamviewError
from streamview.export.hotspots import Hotspot, find_hotspots
from streamview.geometry import Region
from streamview.inference.compute import Compute
from streamview.inference.strips import Strip
from streamview.labels.annotations import Annotation, read_annotations
from streamview.networks import Model
from streamview.results import RESEARCH_USE, Method, Prediction, Saliency
from streamview.results.display import Preset, default_preset, usual_recipe
from streamview.results.overlay import find_glass
from streamview.slides import Slide, as_slide, open_slide
from streamview_jupyter.jobs import Job
from streamview_jupyter.layers import LiveLayer, MapLayer
from streamview_jupyter.messages import SLIDE, CancelJob, ChangeDisplay, Hello, MessageError, RawValue, Tiles, parse
from streamview_jupyter.server import TileServer
from streamview_jupyter.sources import LiveMap, SlidePixels

__all__ = ["View"]

_STATIC = Path(__file__).parent / "static"
_LOG = logging.getLogger(__name__)
_LIVE_PERIOD = 0.7  # s between two pictures of a map that is being computed
_POINTS = 20_000  # of outlines shown at most


class View(anywidget.AnyWidget):
    """A slide in a notebook; made by `streamview_jupyter.view`.

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
    layers
        The maps, bottom first.
    """

    _esm = _STATIC / "widget.js"
    _css = _STATIC / "widget.css"

    selection = traitlets.List(traitlets.Int(), None, allow_none=True, minlen=4, maxlen=4).tag(sync=True)
    viewport = traitlets.List(traitlets.Float(), None, allow_none=True, minlen=4, maxlen=4).tag(sync=True)
    cursor_value = traitlets.Float(None, allow_none=True)
    height = traitlets.Unicode("480px").tag(sync=True)
    theme = traitlets.Enum(["auto", "light", "dark"], "auto").tag(sync=True)
    _slide = traitlets.Dict().tag(sync=True)
    _layers: traitlets.List[Any] = traitlets.List().tag(sync=True)
    _regions: traitlets.List[Any] = traitlets.List().tag(sync=True)
    _job = traitlets.Dict(default_value=None, allow_none=True).tag(sync=True)
    _target = traitlets.Dict(default_value=None, allow_none=True).tag(sync=True)

    def __init__(self, slide: Slide, height: str = "480px", theme: str = "auto", *, owned: bool = False) -> None:
        self.slide = slide
        self.layers: tuple[MapLayer, ...] = ()
        self.predictions: tuple[Prediction, ...] = ()
        self._owned, self._number = owned, 0
        self._live: LiveLayer | None = None
        self._jobs: list[Job] = []
        self._sending, self._changing = threading.Lock(), threading.RLock()
        self._last_live = 0.0
        pixels = SlidePixels(slide)
        self._server = TileServer(self._post)
        self._server.set_source(SLIDE, 0, pixels)
        super().__init__(height=height, theme=theme, _slide=_describe(slide, pixels.levels))
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
        source = result.prediction.identity.source
        if source != self.slide.identity:
            raise StreamviewError(
                f"the result is of {result.prediction.slide_name}, the view shows {self.slide.name}: open a view of that slide"
            )
        recipe = usual_recipe(result, preset or default_preset(result))  # type: ignore[arg-type]
        unknown = sorted(set(display) - set(MapLayer.class_trait_names()))
        if unknown:
            names = ", ".join(sorted(MapLayer.class_trait_names()))
            raise StreamviewError(f"unknown display setting {', '.join(unknown)}: expected some of {names}")
        glass = find_glass(self.slide, result.prediction.region) if recipe.glass else None
        with self._changing:
            self._number += 1
            layer = MapLayer(self._number, result, self._layer_changed, recipe, glass)
            for name, value in display.items():
                setattr(layer, name, value)
            self._server.set_source(layer.number, layer.epoch, layer.source)
            self.layers = (*self.layers, layer)
            self._add_prediction(result.prediction)
            self._describe_layers()
        return layer

    def remove(self, layer: MapLayer) -> None:
        """Take a map off the view."""
        with self._changing:
            self.layers = tuple(each for each in self.layers if each is not layer)
            self._server.set_source(layer.number, layer.epoch, None)
            self._describe_layers()

    def add_regions(self, annotations: str | os.PathLike[str] | Sequence[Annotation], colour: str = "#4c8bf5") -> None:
        """Outline annotated regions.

        Parameters
        ----------
        annotations
            A GeoJSON or ASAP file, or what `streamview.labels.annotations.read_annotations` returned.
        colour
            As ``#rrggbb``.

        Raises
        ------
        StreamviewError
            When the file cannot be read, or holds more than 20,000 points.
        """
        if isinstance(annotations, str | os.PathLike):
            annotations = read_annotations(annotations, self.slide.shape)
        rings = [
            {"name": each.kind, "colour": colour, "points": np.round(ring[:, ::-1], 1).tolist()}
            for each in annotations
            for polygon in each.polygons
            for ring in (polygon.exterior, *polygon.holes)
        ]
        if sum(len(ring["points"]) for ring in rings) > _POINTS:
            raise StreamviewError(f"the annotations have more than {_POINTS} points: simplify them, or show fewer")
        self._regions = [*self._regions, *rings]

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

    def run(
        self,
        model: Model,
        region: Region | str | Sequence[int] | None = None,
        target: int | str | None = None,
        *,
        maps: bool = True,
        compute: Compute = Compute(),
    ) -> Job:
        """Run a network on a region in a thread, and show its map when it is finished; returns at once.

        Parameters
        ----------
        model
            From `streamview.load_model`.
        region
            In level-0 px: a `Region`, "X,Y,WIDTH,HEIGHT" or ``[x, y, width, height]``; None: the selection, without one the whole slide.
        target
            What the map explains; None: as `streamview.saliency`.
        maps
            Whether a map is wanted, or the prediction alone.
        compute
            Where and how.

        Raises
        ------
        RegionError
            When the region is not inside the slide.
        StreamviewError
            When another job of this view is running.
        """
        chosen = self._region(region)
        if any(not job.done for job in self._jobs):
            raise StreamviewError("a job of this view is running: cancel it, or wait for its result")
        job = Job(len(self._jobs) + 1, model, self.slide, chosen, target, maps, compute, self._job_changed, self._watch)
        self._jobs.append(job)
        job.start()
        return job

    def to_html(self, path: str | os.PathLike[str] = "review.html") -> Path:
        """Write slide, maps and answers as one HTML file that needs nothing else, with a JSON file beside it.

        Parameters
        ----------
        path
            Of the HTML. An earlier report there is replaced; another file is not.

        Returns
        -------
        pathlib.Path
            The HTML.

        Raises
        ------
        StreamviewError
            When the view has no result, or the file exists and is no report.
        """
        from streamview.export.report import write_results

        explained = {layer.saliency.prediction.identity for layer in self.layers}
        results = [layer.saliency for layer in self.layers] + [each for each in self.predictions if each.identity not in explained]
        if not results:
            raise StreamviewError("the view has no result to report: run a network, or add a map")
        return write_results(results, path, self.slide)[0]

    def close(self) -> None:
        """Stop its threads and remove it from the page; a slide that the view opened is closed."""
        for job in getattr(self, "_jobs", ()):
            job.cancel()
        if hasattr(self, "_server"):
            self._server.close()
        if getattr(self, "_owned", False):
            self.slide.close()
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
        except (StreamviewError, traitlets.TraitError) as error:
            return {"type": "error", "text": str(error)}
        except Exception:  # noqa: BLE001  # a shell's boundary: the browser is told, the log has the rest
            _LOG.exception("unexpected internal error")
            return {"type": "error", "text": "unexpected internal error; the log of the kernel has the details"}

    def _answer(self, content: Any) -> dict[str, Any] | None:
        request = parse(content)
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
            case CancelJob():
                for job in self._jobs:
                    if job.number == request.job:
                        job.cancel()
        return None

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

    def _region(self, region: Region | str | Sequence[int] | None) -> Region:
        if region is None:
            region = self.selection
        if isinstance(region, str):
            region = Region.parse(region)
        if isinstance(region, Region):
            chosen = region
        elif region is None:
            chosen = Region(0, 0, *self.slide.shape)
        else:
            if len(region) != 4:
                raise RegionError(f"region {list(region)}: expected [x, y, width, height]")
            x, y, width, height = region
            chosen = Region(y, x, height, width)
        if chosen.level != 0 or not chosen.inside(self.slide.shape):
            height, width = self.slide.shape
            raise RegionError(f"region {chosen}: expected one inside level 0 of {self.slide.name}, which is {width} x {height} px")
        return chosen

    # what has changed in the kernel

    def _layer_changed(self, layer: MapLayer, blurred: bool) -> None:
        with self._changing:
            if blurred:
                self._server.set_source(layer.number, layer.epoch, layer.source)
            self._describe_layers()

    def _describe_layers(self) -> None:
        shown: list[MapLayer | LiveLayer] = [*self.layers] if self._live is None else [*self.layers, self._live]
        self._layers = [layer.description for layer in shown]

    def _job_changed(self, job: Job) -> None:
        description = job.description
        if job.state in ("done", "failed", "cancelled"):
            with self._changing:
                if self._live is not None:
                    self._server.set_source(self._live.number, self._live.epoch, None)
                    self._live = None
                    self._describe_layers()
        result = job.finished
        try:
            if isinstance(result, Saliency):
                self.add_saliency(result)
            elif result is not None:
                self._add_prediction(result)
        except StreamviewError as error:  # the result is there, but a part of the slide cannot be read to show it
            description |= {"state": "failed", "text": str(error)}
        self._job = description

    def _add_prediction(self, prediction: Prediction) -> None:
        self.predictions = (*(each for each in self.predictions if each.identity != prediction.identity), prediction)
        self._slide = self._slide | {"predictions": [_bars(each) for each in self.predictions[-3:]]}

    def _watch(self, strip: Strip) -> None:
        """Show finished rows."""
        signed = strip.rows[1]
        with self._changing:
            if not len(signed):  # all begins, or begins anew
                self._number += 1
                live = LiveMap((strip.prediction.shape[0], signed.shape[1]), strip.step, strip.origin)
                self._live = LiveLayer(self._number, live, strip.target.name)
                self._server.set_source(self._number, 0, live)
                return
            if self._live is None:
                return
            self._live.source.add(strip.y, signed)
            now = time.monotonic()
            if now - self._last_live >= _LIVE_PERIOD:
                self._last_live = now
                self._live.epoch += 1
                self._server.set_source(self._live.number, self._live.epoch, self._live.source)
                self._describe_layers()

    @traitlets.validate("selection")
    def _inside(self, proposal: traitlets.Bunch) -> list[int] | None:
        """Cut a selection to the slide."""
        value = proposal.value
        if value is None or not hasattr(self, "slide"):
            return None if value is None else list(value)
        height, width = self.slide.shape
        x, y, across, down = value
        left, top, right, bottom = max(x, 0), max(y, 0), min(x + across, width), min(y + down, height)
        if right <= left or bottom <= top:
            raise traitlets.TraitError(f"selection {value}: expected [x, y, width, height] inside {width} x {height} px")
        return [left, top, right - left, bottom - top]

    def _repr_mimebundle_(self, **options: Any) -> Any:
        """The widget, and a picture for where no kernel runs: a saved notebook, GitHub, nbconvert."""
        bundle = super()._repr_mimebundle_(**options)
        data, metadata = bundle if isinstance(bundle, tuple) else (bundle, {})
        if data is None:
            return bundle
        picture = self._picture()
        return (data if picture is None else data | {"image/png": picture}), metadata

    def _picture(self) -> bytes | None:
        visible = [layer for layer in self.layers if layer.visible]
        shown: Any = self.slide if not visible else visible[-1].saliency
        picture: bytes | None = shown._repr_png_() if hasattr(shown, "_repr_png_") else None
        return picture


def _describe(slide: Slide, levels: int) -> dict[str, Any]:
    height, width = slide.shape
    return {
        "name": slide.name,
        "height": height,
        "width": width,
        "levels": levels,
        "mpp": None if slide.mpp is None else list(slide.mpp),
        "background": list(slide.background),
        "predictions": [],
        "notice": RESEARCH_USE,
    }


def _bars(prediction: Prediction) -> dict[str, Any]:
    probabilities = prediction.probabilities
    return {
        "model": prediction.model_name,
        "answer": prediction.answer,
        "trained": prediction.trained,
        "region": str(prediction.region),
        "classes": list(prediction.class_names[:20]),
        "values": [float(value) for value in (prediction.logits if probabilities is None else probabilities)[:20]],
        "shares": probabilities is not None,
    }


def as_open_slide(source: Slide | str | os.PathLike[str] | NDArray[np.uint8], mpp: float | None) -> tuple[Slide, bool]:
    """Return a slide, and whether it was opened here."""
    if isinstance(source, str | os.PathLike):
        return open_slide(source, mpp), True
    return as_slide(source, mpp), False
