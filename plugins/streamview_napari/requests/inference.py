"""What the dock asks of the core, and what it says of the answers; pure, so that everything here is tested without a window."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from streamview.errors import RegionError
from streamview.geometry import Region
from streamview.progress import Report, Step
from streamview_napari.requests.answers import Answer
from streamview_napari.requests.networks import describe_fit
from streamview_napari.requests.regions import describe_size, grid_scale, square, within

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from streamview.inference.forecast import Forecast
    from streamview.inference.prepared import PreparedRun
    from streamview.inference.strips import Watch
    from streamview.slides import Slide
    from streamview_napari.requests.networks import Loaded

__all__ = ["REGIONS", "Outlook", "RegionChoice", "Request", "compute", "describe_progress", "find_region", "foresee"]

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
class Request:
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
    device, memory
        As for `streamview.explain`.
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
    device: str
    memory: str | None
    maps: bool
    target: str | None = None
    region: Region | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Outlook:
    """What is known before a run.

    Parameters
    ----------
    region
        In level-0 px.
    size
        Of the region, on the network's grid and in mm.
    fits
        Whether the slide's resolution fits the network.
    resolution
        How the slide's resolution meets the network's.
    run, forecast
        The run prepared, and what it will take; None where the resolution does not fit.
    """

    region: Region
    size: str
    fits: bool
    resolution: str
    run: PreparedRun | None = None
    forecast: Forecast | None = None

    def __str__(self) -> str:
        from streamview.streaming.memory import format_bytes
        from streamview.streaming.run.timing import format_seconds

        if self.forecast is None:
            return ""
        ahead, tile = self.forecast, self.forecast.plan.tile
        rows, columns = (min(n, side) for n, side in zip(tile, ahead.shape, strict=True))
        duration = "a few seconds" if ahead.seconds is None else f"about {format_seconds(ahead.seconds)}"
        steps = "1 step" if ahead.plan.steps == 1 else f"{ahead.plan.steps} steps of {columns} × {rows} px"
        disk = "" if ahead.disk_free is None or ahead.disk_bytes <= ahead.disk_free else "; the disk may not hold the maps"
        return f"{duration[0].upper()}{duration[1:]}, peak memory {format_bytes(ahead.peak_bytes)}\n{steps} on {ahead.device}{disk}"


def find_region(request: Request) -> Region:
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


def foresee(request: Request, folder: Path) -> Outlook:
    """Say what a run will take, written to `folder`; times a sample, so it takes seconds.

    Raises
    ------
    StreamviewError
        As `find_region` and `streamview.inference.forecast.forecast`.
    """
    from streamview.inference.compute import Compute
    from streamview.inference.prepared import prepare

    model, slide = request.loaded.model, request.slide
    region = find_region(request)
    fits, said = describe_fit(model.card, slide)
    mpp = slide.mpp
    scale = grid_scale(mpp, model.card.mpp)
    grid = max(1, round(region.height / scale[0])), max(1, round(region.width / scale[1]))
    size = describe_size(grid, None if mpp is None else (mpp[0] * scale[0], mpp[1] * scale[1]))
    if not fits:
        return Outlook(region, size, fits, said)
    run = prepare(model, slide, region, compute=Compute(request.device, request.memory))
    return Outlook(region, size, fits, said, run, run.forecast(int(request.maps), folder if request.maps else None))


def compute(request: Request, outlook: Outlook, out: Path, report: Report, watch: Watch | None = None) -> Answer:
    """Run what was prepared, by the plan that was forecast, and store its maps in `out` where they are wanted.

    Raises
    ------
    StreamviewError
        As `streamview.explain`; RegionError where the slide's resolution does not fit the network.
    """
    start = time.perf_counter()
    run, expected = outlook.run, outlook.forecast
    if run is None or expected is None:
        raise RegionError(outlook.resolution)
    if not request.maps:
        prediction = run.predict(expected.plan, report)
        return Answer(prediction, None, time.perf_counter() - start, expected.plan.tile)
    (saliency,) = run.explain([request.target], expected.plan, [out], report, watch)
    return Answer(saliency.prediction, saliency, time.perf_counter() - start, expected.plan.tile)


def describe_progress(step: Step, *, maps: bool, format_seconds: Callable[[float], str]) -> str:
    """Say what is being done and how long it will take."""
    share = f"{step.task[0].upper()}{step.task[1:]}, {step.done / step.total:.0%}" if step.total else step.task
    left = "" if step.remaining is None or not step.done else f" · {format_seconds(step.remaining)} left"
    then = ", then the backward pass" if maps and step.task == "forward pass" else ""
    return f"{share}{left}{then}"
