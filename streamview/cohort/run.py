"""The slides of a job, one at a time: open, say what it will take, answer, record. What the command line and the demo share."""

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

_OPTIONS = (RegionError, ModelError, NotStreamableError, MemoryBudgetError)  # what another command line mends
_CELL = 32  # px of the network's grid: what most networks reduce to one cell of their last features
_PIECE = 256  # px of the network's grid: sides of a region around a piece of tissue, where the card does not state smaller ones
_PICTURE, _PICTURE_BYTES = (1100, 2048), 200 * 2**20  # px of the longest side, and what drawing the largest takes
_MOST_MAPS = 16  # classes of which the patches are drawn
_NEAR_UM = 500.0  # pieces of tissue no further apart share a region


@dataclass(frozen=True, slots=True, eq=False)
class Work:
    """What all slides of a run share.

    Parameters
    ----------
    model
        The network.
    job, run_id
        Where answers are recorded, and under which run.
    announce
        Told the forecast before each slide's long work.
    report
        Called after every step.
    region
        In level-0 pixels, or as the user wrote it, which is placed on each slide; None for the whole slide.
    compute, mpp, pad_to
        As for `streamview.predict`.
    crop_tissue
        Whether `run_slides` works on each piece of tissue, grown to whole cells of 32 px on the network's grid, where no `region` is given.
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
    """What was made of one slide.

    Parameters
    ----------
    prediction
        The answer.
    ahead
        What was expected before.
    maps
        Its maps, stored in the job, one entry a target; none where only a prediction was asked for.
    pictures
        The display PNGs.
    empty
        Why some of them show nothing, a sentence each.
    tables
        The answers of patches, in the forms that other programs read.
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
        As `streamview.predict`, or when the job cannot be written.
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

    Maps are of every class where these are few, else of the likeliest.

    Raises
    ------
    StreamviewError
        As `streamview.inference.patches.predict_patches`, or when the job cannot be written.
    """
    job = work.job
    with open_slide(path, work.mpp) as slide:
        tissue, region = _choose(work, slide)
        plans: list[PatchPlan] = []

        def announce(plan: PatchPlan) -> None:
            plans.append(plan)
            work.announce(slide, plan)

        found = predict_patches(work.model, slide, region, tissue=tissue, compute=work.compute, announce=announce, report=work.report)
        prediction = found.prediction
        names = prediction.class_names
        targets = [Target(name, index) for index, name in enumerate(names)]
        targets = targets if len(names) <= _MOST_MAPS else [targets[int(np.argmax(prediction.logits))]]
        maps_id = job.maps_id(job.slide_id(slide.name, _source(path), slide.identity), slide.identity)
        stored = [job.saliency_path(maps_id, found.region, target) for target in targets]
        place = job.folder / "patches" / stored[0].parent.name
        tables = place / f"{region_id(found.region)}.csv", place / f"{region_id(found.region)}.geojson"
        write_patch_table(found, tables[0])
        write_patch_geojson(found, tables[1])
        entries, maps, pictures = [], [], []
        return_freed_blocks()  # what the batches had is room for the pictures
        for target, file in zip(targets, stored, strict=True):
            name = file.name.removesuffix(".ome.zarr").replace(region_id(found.region), f"{region_id(found.region)}-patches", 1)
            maps.append(save_saliency(found.map_of(target), place / f"{name}.ome.zarr"))
            recipe = PRESETS["patches"]
            recipe = replace(recipe, cap=None) if prediction.task == "regression" else recipe
            pictures.append(draw_png(slide, maps[-1], recipe, place / f"{name}.png", _picture_side(work)))
            inside = [made.relative_to(job.folder).as_posix() for made in (place / f"{name}.ome.zarr", pictures[-1].path)]
            entries.append(StoredMap(inside[0], target, inside[1]))
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
        Presets to draw, the first of which stands in the record; default the usual one for the network.

    Raises
    ------
    StreamviewError
        As `streamview.explain`, when the job holds maps of this region by another network, or when it cannot be written.
    """
    job = work.job
    with open_slide(path, work.mpp) as slide:
        tissue, region = _choose(work, slide)
        wanted: list[Target | None] = [*find_targets(work.model, targets)] or [None]
        apart = [target if len(wanted) > 1 else None for target in wanted]  # where there are several, each target is in the name
        place = job.maps_id(job.slide_id(slide.name, _source(path), slide.identity), slide.identity)
        stored = [job.saliency_path(place, region, target) for target in apart]
        run = prepare(work.model, slide, region, compute=work.compute, pad_to=work.pad_to)
        _check_free(work, run, stored)
        ahead = run.forecast(len(wanted), job.folder)
        work.announce(slide, ahead)
        found = run.explain(wanted, ahead.plan, stored, work.report)
        pictures: list[Picture] = []
        entries = []
        for maps, target, folder in zip(found, apart, stored, strict=True):
            presets = displays or (default_preset(maps),)
            drawn = [draw_png(slide, maps, PRESETS[p], job.picture_path(place, region, p, target)) for p in presets]
            inside = [made.relative_to(job.folder).as_posix() for made in (folder, drawn[0].path)]
            entries.append(StoredMap(inside[0], maps.target, inside[1]))
            pictures += drawn
        prediction = found[0].prediction
        job.add(_result(work, path, slide, tissue, prediction, tuple(entries)))
    empty = tuple(f"{picture.path.name}: {picture.empty}" for picture in pictures if picture.empty is not None)
    return Answer(prediction, ahead, tuple(found), tuple(picture.path for picture in pictures), empty)


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
    """Work through slides and keep the run's record; a slide that fails stays in the job as failed.

    Parameters
    ----------
    work
        What all slides share.
    paths
        The slides.
    answer
        What to do with each, such as `predict_slide`.
    command
        The command line's arguments, for the record.
    answered, failed
        Told of each slide as it ends, the latter with its name and why.
    skip_errors
        Whether to go on past a slide that fails.

    Returns
    -------
    Run
        As recorded: what it took and which slides failed.

    Raises
    ------
    StreamviewError
        When a slide is named twice, or the job cannot be written.
    Cancelled
        When the user stops it; the record of the run then stays unfinished.

    All slides are looked at before the first one's long work. Without `skip_errors` nothing starts if one cannot be opened or lacks what
    the run asks for. A slide becomes a failed row if its file cannot be read or its result not be written; an option that is wrong makes
    none without `skip_errors`, and a path that is wrong never.
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
    work.job.slides()  # damaged records are told of now
    refused = {path: found for path in paths if (found := _refusal(work, path)) is not None}
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
    """Why a slide cannot be worked on, and whether its file is at fault, as far as can be told at once; None where nothing is wrong."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SlideWarning)  # which will be given when the slide's turn comes
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
    """Refuse a display that the network cannot offer before anything long begins.

    Raises
    ------
    StreamviewError
        When class evidence is asked of a network whose head is not pooling and one linear layer.
    """
    if display == "evidence" and linear_head(capture(model.module)) is None:
        raise StreamviewError(
            f"--display evidence: the model {model.card.name} does not end in pooling and one linear layer, so it has no class evidence; "
            "use --display detail or paper"
        )


def _picture_side(work: Work) -> int:
    """Longest side of a picture that fits into what the budget leaves."""
    if work.compute.memory is None or find_device(work.compute.device).type == "cuda":
        return _PICTURE[1]
    room = max(parse_bytes(work.compute.memory) - resident_memory(), 0)
    return min(max(int(_PICTURE[1] * math.sqrt(room / _PICTURE_BYTES)), _PICTURE[0]), _PICTURE[1])


def _pieces(work: Work, path: str | os.PathLike[str]) -> Iterator[Work]:
    """The work on each region of a slide: with `crop_tissue` one for each piece of tissue."""
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
    """The region that was asked for on this slide; None for the whole slide."""
    return work.region.on(slide.mpp, slide.name) if isinstance(work.region, RegionText) else work.region


def _choose(work: Work, slide: Slide) -> tuple[Tissue | None, Region]:
    """The slide's tissue (None where it cannot be read, which spoils no answer for a region elsewhere) and the region to work on."""
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
    """An answer as the job keeps it."""
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
    """Refuse to write maps over those of an answer of another identity: the table would point at the wrong ones."""
    ours = run.identity
    for record in work.job.slides():
        for result in record.regions:
            held = [path for known in result.maps for path in stored if work.job.folder / known.path == path]
            if held and result.prediction.identity.key != ours.key:
                raise StreamviewError(
                    f"{held[0]}: holds maps of {result.prediction.slide_name} by {result.prediction.model_name} with other weights, mpp, "
                    "precision, padding or pixels, or by an earlier version; take them out with streamview jobs rm, or choose another job "
                    "folder"
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
