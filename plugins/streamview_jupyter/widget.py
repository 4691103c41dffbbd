"""The widget: a slide, maps over it, and runs of a network, in a notebook."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamview.errors import RegionError, StreamviewError
from streamview.geometry import Region
from streamview.inference.compute import Compute
from streamview.inference.strips import Strip
from streamview.labels.annotations import Annotation, read_annotations
from streamview.networks import Model
from streamview.results import Prediction, Saliency
from streamview.slides import Slide, as_slide, open_slide
from streamview_jupyter.jobs import Job
from streamview_jupyter.layers import LiveLayer, MapLayer
from streamview_jupyter.messages import CancelJob, Request
from streamview_jupyter.slide_widget import SlideWidget
from streamview_jupyter.sources import LiveMap, SlidePixels

__all__ = ["View"]

_LIVE_PERIOD = 0.7  # s between two pictures of a map that is being computed
_POINTS = 20_000  # of outlines shown at most


class View(SlideWidget):
    """A slide in a notebook; made by `streamview_jupyter.view`. Attributes as `streamview_jupyter.slide_widget.SlideWidget` has them.

    Parameters
    ----------
    slide
        An open slide.
    height, theme
        As `streamview_jupyter.view`.
    owned
        Whether the slide is closed with the view.
    """

    def __init__(self, slide: Slide, height: str = "480px", theme: str = "auto", *, owned: bool = False) -> None:
        self.predictions: tuple[Prediction, ...] = ()
        self._owned = owned
        self._live: LiveLayer | None = None
        self._jobs: list[Job] = []
        self._last_live = 0.0
        super().__init__(height, theme)
        self._show(slide, SlidePixels(slide))

    # what users call

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
        super().close()
        if getattr(self, "_owned", False):
            self.slide.close()

    def _do(self, request: Request) -> dict[str, Any] | None:
        if isinstance(request, CancelJob):
            for job in self._jobs:
                if job.number == request.job:
                    job.cancel()
        return super()._do(request)

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

    def _attach(self, layer: MapLayer) -> None:
        with self._changing:
            super()._attach(layer)
            self._add_prediction(layer.saliency.prediction)

    def _shown_layers(self) -> tuple[Any, ...]:
        return self.layers if self._live is None else (*self.layers, self._live)

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
