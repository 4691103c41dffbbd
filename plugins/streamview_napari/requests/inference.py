"""What the dock asks of the core, and what it says of the answers; pure, so that everything here is tested without a window."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from streamview.errors import RegionError
from streamview.geometry import Region
from streamview.progress import Report, Step, format_steps
from streamview_napari.requests.answers import Answer
from streamview_napari.requests.models import describe_fit
from streamview_napari.requests.regions import describe_size, grid_scale, square, within

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from streamview.inference.compute import Compute
    from streamview.inference.forecast import Forecast
    from streamview.inference.prepared import PreparedRun
    from streamview.inference.strips import Watch
    from streamview.slides import Slide
    from streamview.streaming.plan.plan import Plan
    from streamview_napari.requests.models import Loaded

__all__ = ["REGIONS", "RunForecast", "RegionChoice", "InferenceRequest", "compute", "describe_progress", "find_region", "forecast_run"]

RegionChoice = Literal["2048", "4096", "8192", "drawn", "tissue", "whole"]
REGIONS: dict[RegionChoice, str] = {
    "2048": "View centre, 2048 px",
    "4096": "View centre, 4096 px",
    "8192": "View centre, 8192 px",
    "drawn": "Drawn rectangle",
    "tissue": "All tissue",
    "whole": "Whole slide",
}


@dataclass(frozen=True, slots=True, eq=False)
class InferenceRequest:
    """A run as the user has set it up.

    Parameters
    ----------
    loaded
        The network.
    slide
        Where the pixels come from.
    choice
        Which region.
    centre
        ``(y, x)`` of the view in the world.
    drawn
        (4, 2) corners of the rectangle in the world; None where none is drawn.
    compute
        Where and how.
    maps
        Whether maps are wanted, or the prediction alone.
    target
        What they explain, by name; None: the predicted class.
    region
        In level-0 px, in place of `choice`.
    """

    loaded: Loaded
    slide: Slide
    choice: RegionChoice
    centre: tuple[float, float]
    drawn: NDArray[np.float64] | None
    compute: Compute
    maps: bool
    target: str | None = None
    region: Region | None = None


@dataclass(frozen=True, slots=True, eq=False)
class RunForecast:
    """What is known before a run.

    Parameters
    ----------
    request
        What was asked.
    region
        In level-0 px.
    size
        Of the region, on the network's grid and in mm.
    resolution
        How the slide's resolution meets the network's.
    run
        Ready to run; None where the resolution does not fit.
    forecast
        What `run` will take, and its plan; None where there is none.
    """

    request: InferenceRequest
    region: Region
    size: str
    resolution: str
    run: PreparedRun | None = None
    forecast: Forecast | None = None

    @property
    def fits(self) -> bool:
        """Whether the slide's resolution fits the network."""
        return self.run is not None

    def __str__(self) -> str:
        from streamview.streaming.memory import format_bytes
        from streamview.streaming.run.timing import format_seconds

        if self.forecast is None:
            return ""
        forecast = self.forecast
        rows, columns = (min(n, side) for n, side in zip(forecast.plan.tile, forecast.shape, strict=True))
        duration = "a few seconds" if forecast.seconds is None else f"about {format_seconds(forecast.seconds)}"
        steps = format_steps(forecast.plan.steps) + ("" if forecast.plan.steps == 1 else f" of {columns} × {rows} px")
        disk = "" if forecast.disk_free is None or forecast.disk_bytes <= forecast.disk_free else "; the disk may not hold the maps"
        passes = f", {forecast.passes}" if forecast.passes.all > 1 + forecast.targets else ""
        time_and_memory = f"{duration[0].upper()}{duration[1:]}, peak memory {format_bytes(forecast.peak_bytes)}"
        return f"{time_and_memory}\n{steps} on {forecast.device}{passes}{disk}"


def find_region(request: InferenceRequest) -> Region:
    """Return the region that a request means, in level-0 px.

    Raises
    ------
    RegionError
        When no rectangle is drawn, or it lies outside the slide.
    SlideError
        When there is no tissue, or the slide cannot be read.
    """
    slide = request.slide
    if request.region is not None:
        return request.region
    if request.choice == "whole":
        return Region(0, 0, *slide.shape)
    if request.choice == "tissue":
        from streamview.slides.tissue import find_tissue, tissue_region

        return tissue_region(find_tissue(slide), slide.name)
    if request.choice == "drawn":
        if request.drawn is None:
            raise RegionError("no rectangle is drawn: press Draw, then drag one over the tissue")
        return within(request.drawn, slide.shape, slide.mpp)
    return square(int(request.choice), request.centre, slide.shape, slide.mpp, grid_scale(slide.mpp, request.loaded.model.card.mpp))


def forecast_run(request: InferenceRequest, folder: Path) -> RunForecast:
    """Prepare a run and forecast what it takes, with maps written to `folder`; times a sample, so it takes seconds.

    Raises
    ------
    StreamviewError
        As `find_region`, `streamview.prepare` and `streamview.forecast`.
    """
    model, slide = request.loaded.model, request.slide
    region = find_region(request)
    fits, resolution = describe_fit(model.card, slide)
    mpp = slide.mpp
    scale = grid_scale(mpp, model.card.mpp)
    grid = max(1, round(region.height / scale[0])), max(1, round(region.width / scale[1]))
    size = describe_size(grid, None if mpp is None else (mpp[0] * scale[0], mpp[1] * scale[1]))
    if not fits:
        return RunForecast(request, region, size, resolution)
    run = _prepare(request, region)
    forecast = run.forecast(int(request.maps), folder if request.maps else None)
    return RunForecast(request, region, size, resolution, run, forecast)


def compute(
    request: InferenceRequest, region: Region, out: Path, report: Report, watch: Watch | None = None, forecast: RunForecast | None = None
) -> Answer:
    """Run the network on a region, and store its maps in `out` where they are wanted.

    What was prepared for the forecast runs, by the plan that was shown; where the view has moved since, the new region is prepared, and
    the plan stays.

    Parameters
    ----------
    request, region, out
        What is computed, and where maps go.
    report, watch
        As for `streamview.PreparedRun.explain`.
    forecast
        The forecast that was shown; None: there was none.

    Raises
    ------
    StreamviewError
        As `streamview.explain`.
    """
    start = time.perf_counter()
    run, plan = _ready(request, region, forecast)
    if not request.maps:
        prediction = run.predict(plan, report)
        return Answer(prediction, None, time.perf_counter() - start, plan.tile)
    (saliency,) = run.explain([request.target], plan, [out], report, watch)
    return Answer(saliency.prediction, saliency, time.perf_counter() - start, plan.tile)


def _prepare(request: InferenceRequest, region: Region) -> PreparedRun:
    from streamview.inference.prepared import prepare

    return prepare(request.loaded.model, request.slide, region, compute=request.compute)


def _ready(request: InferenceRequest, region: Region, forecast: RunForecast | None) -> tuple[PreparedRun, Plan]:
    """What runs a request on a region, and its plan: those of the forecast as far as they serve."""
    if forecast is None or forecast.run is None or forecast.forecast is None or _machine(forecast.request) != _machine(request):
        run = _prepare(request, region)
        return run, run.plan(int(request.maps), stored=True)
    run = forecast.run if forecast.region == region else _prepare(request, region)
    if run.sampler.shape == forecast.forecast.shape and forecast.request.maps == request.maps:
        return run, forecast.forecast.plan
    return run, run.plan(int(request.maps), stored=True)


def _machine(request: InferenceRequest) -> tuple[object, ...]:
    """What of a request the region and its target do not change."""
    return request.loaded, request.slide, request.compute


def describe_progress(step: Step, *, maps: bool, format_seconds: Callable[[float], str]) -> str:
    """Say what is being done and how long it will take."""
    share = f"{step.task[0].upper()}{step.task[1:]}, {step.done / step.total:.0%}" if step.total else step.task
    left = "" if step.remaining is None or not step.done else f" · {format_seconds(step.remaining)} left"
    then = ", then the backward pass" if maps and step.task == "forward pass" else ""
    return f"{share}{left}{then}"
