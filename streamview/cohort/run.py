"""Process the slides of a job one at a time: open, forecast, predict, record. Shared by the command line and the demo."""

from __future__ import annotations

import math
import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath

import numpy as np

from streamview.errors import (
    Cancelled,
    MemoryBudgetError,
    ModelError,
    NotStreamableError,
    RegionError,
    SlideError,
    SlideWarning,
    StreamviewError,
)
from streamview.export.png import Picture, draw_png
from streamview.geometry import Region, RegionText
from streamview.inference.class_evidence import linear_head
from streamview.inference.compute import Compute
from streamview.inference.forecast import Forecast
from streamview.inference.identity import identify
from streamview.inference.patches import PatchPlan, predict_patches, write_patch_geojson, write_patch_table
from streamview.inference.prepared import PreparedRun, prepare
from streamview.inference.targets import find_targets
from streamview.jobs import Job, RegionResult, Run, StoredMap, region_id
from streamview.networks import Model
from streamview.progress import Report
from streamview.results import Prediction, Saliency, Target, save_saliency
from streamview.results.display import PRESETS, Preset, default_preset
from streamview.slides import Slide, open_slide
from streamview.slides.sampling import Sampler
from streamview.slides.slide import given_mpp
from streamview.slides.tissue import Tissue, covered, find_tissue, tissue_regions, tissue_share
from streamview.streaming.capture.capture import capture
from streamview.streaming.memory import parse_bytes, return_freed_blocks
from streamview.system.machine import describe_device, find_device, peak_memory, resident_memory

__all__ = ["Answer", "Work", "check_display", "explain_slide", "patch_slide", "predict_slide", "run_slides"]

_OPTIONS = (RegionError, ModelError, NotStreamableError, MemoryBudgetError)  # errors that other options fix
_CELL = 32  # px of the network's grid: the stride of most networks
_PIECE = 256  # px of the network's grid: smallest side of a region around a piece of tissue, unless the card states a smaller one
_PICTURE, _PICTURE_BYTES = (1100, 2048), 200 * 2**20  # px of the longest side, and memory for drawing the largest
_MOST_MAPS = 16  # classes up to which every class has a patch map
_NEAR_UM = 500.0  # pieces of tissue no further apart share a region


@dataclass(frozen=True, slots=True, eq=False)
class Work:
    """What all slides of a run share.

    Parameters
    ----------
    model
        The network.
    job, run_id
        The job and run that record the answers.
    announce
        Called with the forecast before each slide's long work.
    report
        Called after every step.
    region
        In level-0 pixels, or as the user's text, converted for each slide; None for the whole slide.
    compute, mpp, pad_to
        As for `streamview.predict`.
    crop_tissue
        Without a `region`: whether `run_slides` works on each piece of tissue, grown to whole cells of 32 px on the network's grid.
    """

    model: Model
    job: Job
    run_id: str
    announce: Callable[[Slide, Forecast | PatchPlan], None]
    report: Report | None = None
    region: Region | RegionText | None = None
    compute: Compute = Compute()
    mpp: float | None = None
    pad_to: int | None = None
    crop_tissue: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """The results for one slide.

    Parameters
    ----------
    prediction
        The prediction.
    ahead
        Its forecast.
    maps
        Its maps, stored in the job, one entry per target; empty if there is only a prediction.
    pictures
        The display PNGs.
    empty
        Why some of them show nothing, one sentence each.
    tables
        The predictions per patch, in the formats of other programs.
    """

    prediction: Prediction
    ahead: Forecast | PatchPlan
    maps: tuple[Saliency, ...] = ()
    pictures: tuple[Path, ...] = ()
    empty: tuple[str, ...] = ()
    tables: tuple[Path, ...] = ()


def predict_slide(work: Work, path: str | os.PathLike[str]) -> Answer:
    """Predict for one slide and record it.

    Raises
    ------
    StreamviewError
        As `streamview.predict`, or if the job cannot be written.
    """
    with open_slide(path, work.mpp) as slide:
        tissue, region = _choose(work, slide)
        run = prepare(work.model, slide, region, compute=work.compute, pad_to=work.pad_to)
        ahead = run.forecast()
        work.announce(slide, ahead)
        prediction = run.predict(ahead.plan, work.report)
        work.job.add(_result(work, path, slide, tissue, prediction))
    return Answer(prediction, ahead)


def patch_slide(work: Work, path: str | os.PathLike[str]) -> Answer:
    """Predict for each patch of one slide; store tables, a coarse map and a picture of each class, and record them.

    With more than 16 classes there is a map only of the likeliest one.

    Raises
    ------
    StreamviewError
        As `streamview.inference.patches.predict_patches`, or if the job cannot be written.
    """
    job = work.job
    with open_slide(path, work.mpp) as slide:
        tissue, region = _choose(work, slide)
        plans: list[PatchPlan] = []

        def announce(plan: PatchPlan) -> None:
            plans.append(plan)
            work.announce(slide, plan)

        patches = predict_patches(work.model, slide, region, tissue=tissue, compute=work.compute, announce=announce, report=work.report)
        prediction = patches.prediction
        names = prediction.class_names
        targets = [Target(name, index) for index, name in enumerate(names)]
        targets = targets if len(names) <= _MOST_MAPS else [targets[int(np.argmax(prediction.logits))]]
        maps_id = job.maps_id(job.slide_id(slide.name, _source(path), slide.identity), slide.identity)
        stored = [job.saliency_path(maps_id, patches.region, target) for target in targets]
        place, region_name = job.folder / "patches" / stored[0].parent.name, region_id(patches.region)
        tables = place / f"{region_name}.csv", place / f"{region_name}.geojson"
        write_patch_table(patches, tables[0])
        write_patch_geojson(patches, tables[1])
        entries, maps, pictures = [], [], []
        return_freed_blocks()  # the memory of the batches is needed for the pictures
        for target, file in zip(targets, stored, strict=True):
            name = file.name.removesuffix(".ome.zarr").replace(region_name, f"{region_name}-patches", 1)
            maps.append(save_saliency(patches.map_of(target), place / f"{name}.ome.zarr"))
            recipe = PRESETS["patches"]
            recipe = replace(recipe, cap=None) if prediction.task == "regression" else recipe
            pictures.append(draw_png(slide, maps[-1], recipe, place / f"{name}.png", _picture_side(work)))
            relative = [path.relative_to(job.folder).as_posix() for path in (place / f"{name}.ome.zarr", pictures[-1].path)]
            entries.append(StoredMap(relative[0], target, relative[1]))
        job.add(_result(work, path, slide, tissue, prediction, tuple(entries)))
    empty = tuple(f"{picture.path.name}: {picture.empty}" for picture in pictures if picture.empty is not None)
    return Answer(prediction, plans[0], tuple(maps), tuple(picture.path for picture in pictures), empty, tables)


def explain_slide(
    work: Work, path: str | os.PathLike[str], *, targets: Sequence[str] = (), displays: Sequence[Preset] | None = None
) -> Answer:
    """Predict for one slide, store its saliency maps and pictures, and record them.

    Parameters
    ----------
    work
        What all slides share.
    path
        The slide.
    targets
        What to explain, as for `streamview.inference.targets.find_targets`; default the predicted class.
    displays
        Presets to draw; the first is entered in the record; default the network's default preset.

    Raises
    ------
    StreamviewError
        As `streamview.explain`, or if the job holds maps of this region with another identity or cannot be written.
    """
    job = work.job
    with open_slide(path, work.mpp) as slide:
        tissue, region = _choose(work, slide)
        explained: list[Target | None] = [*find_targets(work.model, targets)] or [None]
        in_names = [target if len(explained) > 1 else None for target in explained]  # file names contain the target if there are several
        place = job.maps_id(job.slide_id(slide.name, _source(path), slide.identity), slide.identity)
        stored = [job.saliency_path(place, region, target) for target in in_names]
        run = prepare(work.model, slide, region, compute=work.compute, pad_to=work.pad_to)
        _check_free(work, run, stored)
        ahead = run.forecast(len(explained), job.folder)
        work.announce(slide, ahead)
        results = run.explain(explained, ahead.plan, stored, work.report)
        pictures: list[Picture] = []
        entries = []
        for maps, target, folder in zip(results, in_names, stored, strict=True):
            presets = displays or (default_preset(maps),)
            target_pictures = [draw_png(slide, maps, PRESETS[p], job.picture_path(place, region, p, target)) for p in presets]
            relative = [path.relative_to(job.folder).as_posix() for path in (folder, target_pictures[0].path)]
            entries.append(StoredMap(relative[0], maps.target, relative[1]))
            pictures += target_pictures
        prediction = results[0].prediction
        job.add(_result(work, path, slide, tissue, prediction, tuple(entries)))
    empty = tuple(f"{picture.path.name}: {picture.empty}" for picture in pictures if picture.empty is not None)
    return Answer(prediction, ahead, tuple(results), tuple(picture.path for picture in pictures), empty)


def run_slides(
    work: Work,
    paths: Sequence[str | os.PathLike[str]],
    answer: Callable[[Work, str | os.PathLike[str]], Answer],
    *,
    command: Sequence[str],
    answered: Callable[[Answer], None],
    failed: Callable[[str, StreamviewError], None],
    skip_errors: bool = False,
) -> Run:
    """Process slides and record the run; a slide that fails is recorded as failed.

    Parameters
    ----------
    work
        What all slides share.
    paths
        The slides.
    answer
        Processes one slide, such as `predict_slide`.
    command
        The command line's arguments, for the record.
    answered, failed
        Called after each slide: with its answer, or with its name and error.
    skip_errors
        Whether to continue after a slide that fails.

    Returns
    -------
    Run
        The run's record: what it took and which slides failed.

    Raises
    ------
    StreamviewError
        If a slide is named twice, or the job cannot be written.
    Cancelled
        If the user cancels; the record of the run then stays unfinished.

    All slides are checked before the first one's long work. Without `skip_errors` nothing starts if one cannot be opened or does not fit
    the options. A slide becomes a failed row if its file cannot be read or its result cannot be written; a wrong option makes a row only
    with `skip_errors`, a wrong path never.
    """
    places: dict[str, str | os.PathLike[str]] = {}
    for path in paths:
        place = os.fspath(path) if "://" in os.fspath(path) else os.path.realpath(path)
        if place in places:
            raise StreamviewError(f"{os.fspath(path)}: is the same slide as {os.fspath(places[place])}; name each slide once")
        places[place] = path
    if work.mpp is not None:
        given_mpp(work.mpp)
    start = time.monotonic()
    work.job.slides()  # warns of damaged records
    refused = {path: refusal for path in paths if (refusal := _refusal(work, path)) is not None}
    run = Run(work.run_id, tuple(command), describe_device(find_device(work.compute.device)), {}, _now())
    work.job.record_run(run)
    plan: dict[str, object] = {}
    missed: list[str] = []

    def miss(path: str | os.PathLike[str], error: StreamviewError, *, row: bool) -> None:
        name, source = _name(path), _source(path)
        if row and ("://" in source or os.path.lexists(source)):
            work.job.fail(work.job.slide_id(name, source), str(error), work.run_id, source=source)
        missed.append(name)
        failed(name, error)

    if refused and not skip_errors:
        for path, (error, unreadable) in refused.items():
            miss(path, error, row=unreadable)
    for path in paths if skip_errors or not refused else ():
        if path in refused:
            miss(path, refused[path][0], row=True)
            continue
        try:
            plans: dict[str, dict[str, object]] = {}
            slide_id = ""
            for part in _pieces(work, path):
                answer_of_part = answer(part, path)
                prediction = answer_of_part.prediction
                plans[region_id(prediction.region)] = _plan(part, answer_of_part.ahead)
                slide_id = work.job.slide_id(prediction.slide_name, _source(path), prediction.identity.source)
                answered(answer_of_part)
        except Cancelled:
            raise
        except StreamviewError as error:
            miss(path, error, row=skip_errors or not isinstance(error, _OPTIONS))
            if not skip_errors:
                break
        else:
            plan[slide_id] = next(iter(plans.values())) if len(plans) == 1 else plans
    took = time.monotonic() - start
    run = replace(run, plan=plan, finished=_now(), seconds=took, peak_bytes=peak_memory(), failed=tuple(missed))
    work.job.record_run(run)
    return run


def _name(path: str | os.PathLike[str]) -> str:
    """File name of a slide's path or URL, also of ``.``."""
    place = os.fspath(path)
    return PurePosixPath(place.partition("?")[0]).name if "://" in place else os.path.basename(os.path.abspath(place))


def _source(path: str | os.PathLike[str]) -> str:
    """Absolute path of a slide, or its URL."""
    place = os.fspath(path)
    return place if "://" in place else os.path.abspath(place)


def _refusal(work: Work, path: str | os.PathLike[str]) -> tuple[StreamviewError, bool] | None:
    """Why a slide cannot be processed, as far as a quick check shows, and whether its file is the reason; None if nothing is wrong."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SlideWarning)  # given when the slide is processed
        try:
            slide = open_slide(path, work.mpp)
        except SlideError as error:
            return error, True
        with slide:
            try:
                if work.crop_tissue and work.region is None:
                    Sampler(slide, None, work.model.card.mpp)
                else:
                    identify(work.model, slide, _placed(work, slide), pad_to=work.pad_to)
            except StreamviewError as error:
                return error, False
    return None


def check_display(model: Model, display: Preset | None) -> None:
    """Reject a display that the network does not support, before any long work.

    Raises
    ------
    StreamviewError
        If the display is class evidence and the network's head is not pooling and one linear layer.
    """
    if display == "evidence" and linear_head(capture(model.module)) is None:
        raise StreamviewError(
            f"--display evidence: the model {model.card.name} does not end in pooling and one linear layer, so it has no class evidence; "
            "use --display detail or paper"
        )


def _picture_side(work: Work) -> int:
    """Longest side of a picture that fits the remaining memory budget."""
    if work.compute.memory is None or find_device(work.compute.device).type == "cuda":
        return _PICTURE[1]
    room = max(parse_bytes(work.compute.memory) - resident_memory(), 0)
    return min(max(int(_PICTURE[1] * math.sqrt(room / _PICTURE_BYTES)), _PICTURE[0]), _PICTURE[1])


def _pieces(work: Work, path: str | os.PathLike[str]) -> Iterator[Work]:
    """Yield the work for each region of a slide: with `crop_tissue` one per piece of tissue."""
    if not work.crop_tissue or work.region is not None:
        yield work
        return
    with open_slide(path, work.mpp) as slide:
        scale, card = Sampler(slide, None, work.model.card.mpp).scale, work.model.card
        side = 0 if work.pad_to is not None else min(_PIECE, card.input_size[0]) if card.input_size else _PIECE
        near = 2 * _CELL * max(scale) if slide.mpp is None else _NEAR_UM / min(slide.mpp)
        align, least = (_CELL * scale[0], _CELL * scale[1]), (side * scale[0], side * scale[1])
        regions = tissue_regions(find_tissue(slide), slide.name, near, align, least)
    for region in regions:
        yield replace(work, region=region)


def _placed(work: Work, slide: Slide) -> Region | None:
    """The requested region on this slide; None for the whole slide."""
    return work.region.on(slide.mpp, slide.name) if isinstance(work.region, RegionText) else work.region


def _choose(work: Work, slide: Slide) -> tuple[Tissue | None, Region]:
    """The slide's tissue mask and the region to process; None without a tissue mask, which explicit regions do not need."""
    region = _placed(work, slide) or Region(0, 0, *slide.shape)
    try:
        return find_tissue(slide), region
    except SlideError:
        return None, region


def _result(
    work: Work,
    path: str | os.PathLike[str],
    slide: Slide,
    tissue: Tissue | None,
    prediction: Prediction,
    maps: tuple[StoredMap, ...] = (),
) -> RegionResult:
    """An answer in the form that the job stores."""
    region = prediction.region
    return RegionResult(
        prediction,
        work.run_id,
        mpp=slide.mpp,
        tissue_covered=None if tissue is None else covered(tissue, region),
        maps=maps,
        source=_source(path),
        tissue_share=None if tissue is None else tissue_share(tissue, region),
        aggregation=work.model.card.aggregation,
    )


def _check_free(work: Work, run: PreparedRun, stored: Sequence[Path]) -> None:
    """Refuse to overwrite maps of another identity, to which the table would then wrongly refer."""
    identity = run.identity
    for record in work.job.slides():
        for result in record.regions:
            existing = [path for entry in result.maps for path in stored if work.job.folder / entry.path == path]
            if existing and result.prediction.identity.key != identity.key:
                raise StreamviewError(
                    f"{existing[0]}: holds maps of {result.prediction.slide_name} by {result.prediction.model_name} with other weights, "
                    "mpp, precision, padding or pixels, or by an earlier version; remove them with streamview jobs rm, or choose another "
                    "job folder"
                )


def _plan(work: Work, ahead: Forecast | PatchPlan) -> dict[str, object]:
    if isinstance(ahead, PatchPlan):
        counts = {"patches": ahead.count, "side": ahead.side, "batch": ahead.batch}
        return {**counts, "memory": work.compute.memory, "precision": "float32", "forecast_bytes": ahead.peak_bytes}
    return {
        "tile": list(ahead.plan.tile),
        "steps": ahead.plan.steps,
        "tapes": ahead.plan.tapes,
        "memory": work.compute.memory,
        "precision": work.compute.precision,
        "forecast_bytes": ahead.peak_bytes,
        "forecast_seconds": ahead.seconds,
        "maps": ahead.targets,
        "forecast_disk_bytes": ahead.disk_bytes,
    }


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
