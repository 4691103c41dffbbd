"""One slide of a cohort: open it, choose its regions, answer those that are not answered yet, and record them."""

from __future__ import annotations

import math
import os
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import numpy as np

from streamview.cohort.policy import choose_regions
from streamview.cohort.settings import Settings, failure_key, work_key
from streamview.cohort.worklist import Case
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
from streamview.export.png import draw_png
from streamview.geometry import Region, RegionText
from streamview.inference.forecast import Forecast
from streamview.inference.identity import identify
from streamview.inference.patches import PatchPlan, patch_identity, plan_patches, predict_patches, write_patch_geojson, write_patch_table
from streamview.inference.prepared import PreparedRun, prepare
from streamview.inference.targets import find_targets
from streamview.jobs import Job, RegionResult, SlideRecord, SlideWork, StoredMap, by_policy, region_id
from streamview.jobs.maps import picture_path, slide_maps
from streamview.networks import Model
from streamview.progress import Report
from streamview.results import Identity, Prediction, Saliency, Target, save_saliency
from streamview.results.display import PRESETS, default_preset
from streamview.slides import Slide, open_slide
from streamview.slides.sampling import Sampler
from streamview.slides.tissue import Tissue, covered, find_tissue, tissue_share, union_covered
from streamview.streaming.memory import parse_bytes, return_freed_blocks
from streamview.system.machine import find_device, resident_memory

__all__ = ["Ahead", "Answer", "Opened", "Outcome", "Status", "Work", "fail", "find_id", "open_case", "plan_case", "process", "refusal"]

_PICTURE, _PICTURE_BYTES = (1100, 2048), 200 * 2**20  # px of the longest side, and memory for drawing the largest
_MOST_MAPS = 16  # classes up to which every class has a patch map
_OPTIONS = (RegionError, ModelError, NotStreamableError, MemoryBudgetError)  # errors that other options fix
_DEATHS = 3  # processes that may end in one run while they work on a slide, before it counts as the reason

Status = Literal["answered", "answered before", "failed", "failed before", "held"]


@dataclass(frozen=True, slots=True)
class Ahead:
    """What a slide will take, said before its long work.

    Parameters
    ----------
    first
        Forecast of its first region that is not answered yet.
    regions
        How many regions will be computed.
    answered
        How many were computed by an earlier run.
    seconds
        Of all regions, by the time of the first; None if it is not known.
    """

    first: Forecast | PatchPlan
    regions: int
    answered: int
    seconds: float | None


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """The results for one region.

    Parameters
    ----------
    prediction
        The prediction.
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
    maps: tuple[Saliency, ...] = ()
    pictures: tuple[Path, ...] = ()
    empty: tuple[str, ...] = ()
    tables: tuple[Path, ...] = ()


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one slide.

    Parameters
    ----------
    case
        The slide.
    slide_id
        Its name in the job.
    status
        ``"answered"`` or ``"failed"``, now or ``"... before"`` by an earlier run; ``"held"``: another process works on it.
    error
        Why it failed, with the remedy.
    regions
        How many regions were computed now.
    seconds
        What it took.
    """

    case: Case
    slide_id: str
    status: Status
    error: str = ""
    regions: int = 0
    seconds: float = 0.0

    @property
    def failed(self) -> bool:
        """Whether there is no answer."""
        return self.status in ("failed", "failed before")


def _nothing(*_: object) -> None:
    """Tell nobody."""


@dataclass(frozen=True, slots=True, eq=False)
class Work:
    """What all slides of a run share.

    Parameters
    ----------
    model
        The network.
    job, run_id
        The job and run that record the answers.
    settings
        What is asked.
    skip_errors
        Whether a slide that the options do not fit remains as a failed row; one that cannot be read always does.
    redo
        Whether to compute what is answered already.
    retry_failed
        Whether to try slides again that failed, though nothing has changed.
    announce
        Called with the forecast of each slide before its long work.
    answered
        Called with each region's answer.
    report
        Called after every step.
    """

    model: Model
    job: Job
    run_id: str
    settings: Settings = Settings()
    skip_errors: bool = False
    redo: bool = False
    retry_failed: bool = False
    announce: Callable[[Slide, Ahead], None] = _nothing
    answered: Callable[[Answer], None] = _nothing
    report: Report | None = None
    _forecasts: dict[tuple[object, ...], Forecast] = field(default_factory=dict)  # plans of earlier regions of the same shape

    def forecast(self, run: PreparedRun, targets: int = 0) -> Forecast:
        """The forecast of a region; regions of one shape share it."""
        key = run.sampler.shape, run.sampler.scale, run.inside, targets
        if key not in self._forecasts:
            self._forecasts[key] = run.forecast(targets, self.job.folder if targets else None)
        return self._forecasts[key]


@dataclass(frozen=True, slots=True, eq=False)
class Opened:
    """A slide that was opened before its turn.

    Parameters
    ----------
    slide
        The slide.
    tissue
        Its tissue; None where it was not looked for, or no level shows it.
    """

    slide: Slide
    tissue: Tissue | None


def open_case(work: Work, case: Case) -> Opened | None:
    """Open a slide and find its tissue, unless it is answered already; None if it cannot be opened, which `process` will say."""
    try:
        slide = open_slide(case.path, case.mpp or work.settings.mpp)
    except StreamviewError:
        return None
    try:
        key = work_key(work.settings, work.model, slide.identity, _placed(work, case, slide), slide.mpp)
        slide_id = find_id(work.job, case, slide.identity)
        done = not work.redo and _completed(work.job.record(slide_id), key)
        return Opened(slide, None if done else find_tissue(slide))
    except StreamviewError:
        return Opened(slide, None)
    except BaseException:
        slide.close()
        raise


def find_id(job: Job, case: Case, identity: str | None = None) -> str:
    """The slide's id in the job, given `Slide.identity` where it is known."""
    return job.slide_id(case.name, case.source, identity, shared=case.shares_name)


def process(work: Work, case: Case, opened: Opened | None = None) -> Outcome:
    """Answer for one slide and record it, unless that is done or under way; a slide that fails is recorded as failed.

    Parameters
    ----------
    work, case
        What is asked, and of which slide.
    opened
        From `open_case`, if it is open already; it is closed.

    Raises
    ------
    Cancelled
        If the user cancels.
    StreamviewError
        If the job cannot be written.
    """
    start, job = time.monotonic(), work.job
    failure = failure_key(work.settings, work.model, case.path, case.mpp)
    slide_id = find_id(job, case)
    before = job.record(slide_id)
    if before.error is not None and before.failed_work == failure and not work.retry_failed and not work.redo:
        if opened is not None:
            opened.slide.close()
        return Outcome(case, slide_id, "failed before", before.error)
    try:
        with open_slide(case.path, case.mpp or work.settings.mpp) if opened is None else opened.slide as slide:
            slide_id = find_id(job, case, slide.identity)
            region = _placed(work, case, slide)
            key = work_key(work.settings, work.model, slide.identity, region, slide.mpp)
            if not work.redo and _completed(job.record(slide_id), key):
                return Outcome(case, slide_id, "answered before")
            lease = job.claim(slide_id, work.run_id)
            if lease is None:
                return Outcome(case, slide_id, "held")
            with lease:
                if not work.redo and _completed(job.record(slide_id), key):  # by the process that held it
                    return Outcome(case, slide_id, "answered before")
                if lease.deaths >= _DEATHS:
                    raise SlideError(
                        f"{slide.name}: {lease.deaths} processes ended while they worked on it, perhaps for lack of memory; "
                        "give less --memory, or look at its region"
                    )
                count = _Slide(work, case, slide, slide_id, region, None if opened is None else opened.tissue).answer(key, start)
            return Outcome(case, slide_id, "answered", regions=count, seconds=time.monotonic() - start)
    except Cancelled:
        raise
    except StreamviewError as error:
        return fail(work, case, slide_id, error, start)


def plan_case(work: Work, case: Case, *, timed: bool) -> list[Forecast | PatchPlan] | None:
    """Forecast the regions of a slide that are not answered yet; None if all are.

    Parameters
    ----------
    work, case
        What is asked, and of which slide.
    timed
        Whether to measure the speed, on the first region.

    Raises
    ------
    StreamviewError
        If the slide cannot be processed.
    """
    with open_slide(case.path, case.mpp or work.settings.mpp) as slide:
        slide_id = find_id(work.job, case, slide.identity)
        region = _placed(work, case, slide)
        key = work_key(work.settings, work.model, slide.identity, region, slide.mpp)
        if not work.redo and _completed(work.job.record(slide_id), key):
            return None
        return _Slide(work, case, slide, slide_id, region, None).forecast(timed=timed)


def fail(work: Work, case: Case, slide_id: str, error: StreamviewError, start: float, *, row: bool | None = None) -> Outcome:
    """Record that a slide failed.

    A wrong option makes a row only with `Work.skip_errors`, a path that was named by hand and does not exist never. What may end by itself,
    such as a full disk, is not remembered as the slide's fault.

    Parameters
    ----------
    work, case, slide_id
        The slide.
    error
        Why.
    start
        When work on it began, of `time.monotonic`.
    row
        Whether the file is the reason; None to tell from the error.
    """
    row = not isinstance(error, _OPTIONS) if row is None else row
    if (row or work.skip_errors) and (case.listed or case.is_url or os.path.lexists(case.source)):
        lasting = isinstance(error, SlideError | RegionError | ModelError | NotStreamableError)
        key = failure_key(work.settings, work.model, case.path, case.mpp) if lasting else None
        work.job.fail(slide_id, str(error), work.run_id, work=key, patient_id=case.patient_id, label=case.label, source=case.source)
    return Outcome(case, slide_id, "failed", str(error), seconds=time.monotonic() - start)


def refusal(work: Work, case: Case) -> tuple[StreamviewError, bool] | None:
    """Why a slide cannot be processed, as far as a quick check shows, and whether its file is the reason; None if nothing is wrong."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SlideWarning)  # given when the slide is processed
        try:
            slide = open_slide(case.path, case.mpp or work.settings.mpp)
        except SlideError as error:
            return error, True
        with slide:
            try:
                region = _placed(work, case, slide)
                if region is None and work.settings.policy.kind != "whole":
                    Sampler(slide, None, work.model.card.mpp)
                else:
                    identify(work.model, slide, region, pad_to=work.settings.pad_to)
            except StreamviewError as error:
                return error, False
    return None


def _placed(work: Work, case: Case, slide: Slide) -> Region | None:
    """The requested region on this slide; None if none is named."""
    region = case.region or work.settings.region
    return region.on(slide.mpp, slide.name) if isinstance(region, RegionText) else region


def _completed(record: SlideRecord, key: str) -> bool:
    """Whether work is done, and its answers are still there and count."""
    valid = {result.prediction.identity.key for result in record.regions if record.superseded(result) is None}
    return record.error is None and any(work.key == key and valid.issuperset(work.regions) for work in record.completed)


@dataclass(frozen=True, slots=True, eq=False)
class _Slide:
    """A slide that this process has claimed."""

    work: Work
    case: Case
    slide: Slide
    slide_id: str
    region: Region | None
    tissue: Tissue | None

    def answer(self, key: str, start: float) -> int:
        """Answer for all regions that are not answered yet, record that the work is complete, and return how many were computed."""
        work, settings, slide = self.work, self.work.settings, self.slide
        tissue, regions, identities, to_do = self._regions()
        announced = False

        def announce(first: Forecast | PatchPlan) -> None:
            nonlocal announced
            if not announced:
                seconds = first.seconds
                if seconds is not None:
                    areas = [math.prod(regions[number].shape) for number in to_do]
                    seconds *= sum(areas) / areas[0]
                work.announce(slide, Ahead(first, len(to_do), len(regions) - len(to_do), seconds))
                announced = True

        answers = {"region": self._predict, "patch": self._predict_patches, "maps": self._explain}
        for number in to_do:
            result, answered = answers[settings.answer](regions[number], tissue, announce)
            work.job.add(result, slide_id=self.slide_id, patient_id=self.case.patient_id, label=self.case.label)
            work.answered(answered)
        chosen = self.region is None
        done = SlideWork(
            key,
            tuple(identity.key for identity in identities),
            policy=str(settings.policy) if chosen else None,
            aggregation=settings.aggregation or work.model.card.aggregation,
            tissue_covered=None if tissue is None else union_covered(tissue, regions),
            overlapping=chosen and settings.policy.kind == "grid",
            run_id=work.run_id,
            finished=datetime.now(UTC).isoformat(timespec="seconds"),
            seconds=round(time.monotonic() - start, 3),
        )
        work.job.complete(self.slide_id, done)
        if self._stitches:
            work.answered(self._draw_stitched(done))
        return len(to_do)

    @property
    def _stitches(self) -> bool:
        """Whether pictures show all regions as one."""
        settings = self.work.settings
        return settings.answer == "maps" and self.region is None and settings.policy.kind == "grid"

    def _draw_stitched(self, done: SlideWork) -> Answer:
        """Draw the maps of all regions as one."""
        job, settings = self.work.job, self.work.settings
        record = job.record(self.slide_id)
        of_work = replace(record, completed=(done,))
        whole = next(group for group in by_policy(of_work) if group.work is not None)
        pictures = []
        maps = slide_maps(job, replace(of_work, regions=whole.results))[0]
        for one in maps:
            for preset in settings.displays or (default_preset(one.saliency),):
                path = picture_path(job, one.stored, one.name, preset)
                pictures.append(draw_png(self.slide, one.saliency, PRESETS[preset], path, _picture_side(self.work)))
        empty = tuple(f"{picture.path.name}: {picture.empty}" for picture in pictures if picture.empty is not None)
        prediction = maps[0].saliency.prediction
        return Answer(prediction, tuple(one.saliency for one in maps), tuple(picture.path for picture in pictures), empty)

    def forecast(self, *, timed: bool) -> list[Forecast | PatchPlan]:
        """Forecast the regions that are not answered yet, the time of the first alone."""
        work = self.work
        tissue, regions, _, to_do = self._regions()
        if work.settings.answer == "patch":
            chosen = [regions[number] for number in to_do]
            return [plan_patches(work.model, self.slide, region, tissue=tissue, compute=work.settings.compute) for region in chosen]
        targets = len(self._stored(regions[0])) if work.settings.answer == "maps" else 0
        return [
            self._prepare(regions[number]).forecast(targets, work.job.folder if targets else None, timed=timed and number == to_do[0])
            for number in to_do
        ]

    def _regions(self) -> tuple[Tissue | None, tuple[Region, ...], list[Identity], list[int]]:
        """Tissue, regions, their identities, and the numbers of those that are not answered yet."""
        work, settings = self.work, self.work.settings
        tissue = self._tissue()
        if self.region is not None:
            regions: tuple[Region, ...] = (self.region,)
        else:
            regions = choose_regions(settings.policy, self.slide, tissue, work.model.card, padded=settings.pad_to is not None)
        identities = [self._identity(region) for region in regions]
        record = work.job.record(self.slide_id)
        to_do = [number for number, identity in enumerate(identities) if work.redo or not self._answered(record, regions[number], identity)]
        return tissue, regions, identities, to_do

    def _tissue(self) -> Tissue | None:
        """The slide's tissue; None without a level that shows it, which named regions and whole slides do not need."""
        try:
            return self.tissue or find_tissue(self.slide)
        except SlideError:
            if self.region is None and self.work.settings.policy.kind != "whole":
                raise
            return None

    def _identity(self, region: Region) -> Identity:
        settings, model = self.work.settings, self.work.model
        if settings.answer == "patch":
            return patch_identity(model, self.slide, region)
        return identify(model, self.slide, region, precision=settings.compute.precision, pad_to=settings.pad_to)

    def _answered(self, record: SlideRecord, region: Region, identity: Identity) -> bool:
        """Whether a region is answered with all that is asked for."""
        result = next((result for result in record.regions if result.prediction.identity.key == identity.key), None)
        if result is None or self.work.settings.answer == "region":
            return result is not None
        stored = {entry.path: entry for entry in result.maps if self._exists(entry)}
        if self.work.settings.answer == "patch":
            return bool(stored)
        for target, path in self._stored(region):
            entry = stored.get(path.relative_to(self.work.job.folder).as_posix())
            wanted = target.name if target is not None else result.prediction.label or result.prediction.class_names[0]
            if entry is None or entry.target is None or entry.target.name != wanted:
                return False
            if not self._stitches and not all(self._picture(region, preset, target).is_file() for preset in self.work.settings.displays):
                return False
        return True

    def _exists(self, entry: StoredMap) -> bool:
        folder = self.work.job.folder
        return (folder / entry.path).is_dir() and (entry.picture is None or (folder / entry.picture).is_file())

    def _stored(self, region: Region) -> list[tuple[Target | None, Path]]:
        """The targets to explain, None for the predicted class, and the places of their maps, which name it if there are several."""
        targets: list[Target | None] = [*find_targets(self.work.model, self.work.settings.targets)] or [None]
        several = len(targets) > 1
        return [(target, self.work.job.saliency_path(self._maps_id, region, target if several else None)) for target in targets]

    def _picture(self, region: Region, preset: str, target: Target | None) -> Path:
        several = len(self.work.settings.targets) > 1
        return self.work.job.picture_path(self._maps_id, region, preset, target if several else None)

    @property
    def _maps_id(self) -> str:
        return self.work.job.maps_id(self.slide_id, self.slide.identity)

    def _prepare(self, region: Region) -> PreparedRun:
        settings = self.work.settings
        return prepare(self.work.model, self.slide, region, compute=settings.compute, pad_to=settings.pad_to)

    def _predict(
        self, region: Region, tissue: Tissue | None, announce: Callable[[Forecast | PatchPlan], None]
    ) -> tuple[RegionResult, Answer]:
        run = self._prepare(region)
        ahead = self.work.forecast(run)
        announce(ahead)
        prediction = run.predict(ahead.plan, self.work.report)
        return self._result(tissue, prediction, _plan(self.work, ahead)), Answer(prediction)

    def _predict_patches(
        self, region: Region, tissue: Tissue | None, announce: Callable[[Forecast | PatchPlan], None]
    ) -> tuple[RegionResult, Answer]:
        """Predict for each patch; store tables, a coarse map and a picture of each class, with more than 16 only of the likeliest."""
        work, slide, job = self.work, self.slide, self.work.job
        plans: list[PatchPlan] = []

        def planned(plan: PatchPlan) -> None:
            plans.append(plan)
            announce(plan)

        patches = predict_patches(
            work.model, slide, region, tissue=tissue, compute=work.settings.compute, announce=planned, report=work.report
        )
        prediction = patches.prediction
        names = prediction.class_names
        targets = [Target(name, index) for index, name in enumerate(names)]
        targets = targets if len(names) <= _MOST_MAPS else [targets[int(np.argmax(prediction.logits))]]
        stored = [job.saliency_path(self._maps_id, patches.region, target) for target in targets]
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
            entries.append(self._entry(place / f"{name}.ome.zarr", target, pictures[-1].path))
        empty = tuple(f"{picture.path.name}: {picture.empty}" for picture in pictures if picture.empty is not None)
        result = self._result(tissue, prediction, _plan(work, plans[0]), tuple(entries))
        return result, Answer(prediction, tuple(maps), tuple(picture.path for picture in pictures), empty, tables)

    def _explain(
        self, region: Region, tissue: Tissue | None, announce: Callable[[Forecast | PatchPlan], None]
    ) -> tuple[RegionResult, Answer]:
        """Predict and explain; store maps and pictures."""
        stored = self._stored(region)
        run = self._prepare(region)
        self._check_free(run, [path for _, path in stored])
        ahead = self.work.forecast(run, len(stored))
        announce(ahead)
        targets, paths = [target for target, _ in stored], [path for _, path in stored]
        results = run.explain(targets, ahead.plan, paths, self.work.report)
        pictures, entries = [], []
        for maps, target, folder in zip(results, targets, paths, strict=True):
            presets = () if self._stitches else self.work.settings.displays or (default_preset(maps),)
            drawn = [draw_png(self.slide, maps, PRESETS[preset], self._picture(region, preset, target)) for preset in presets]
            entries.append(self._entry(folder, maps.target, drawn[0].path if drawn else None))
            pictures += drawn
        empty = tuple(f"{picture.path.name}: {picture.empty}" for picture in pictures if picture.empty is not None)
        prediction = results[0].prediction
        result = self._result(tissue, prediction, _plan(self.work, ahead), tuple(entries))
        return result, Answer(prediction, tuple(results), tuple(picture.path for picture in pictures), empty)

    def _entry(self, maps: Path, target: Target, picture: Path | None) -> StoredMap:
        folder = self.work.job.folder
        return StoredMap(maps.relative_to(folder).as_posix(), target, None if picture is None else picture.relative_to(folder).as_posix())

    def _result(
        self, tissue: Tissue | None, prediction: Prediction, plan: dict[str, object], maps: tuple[StoredMap, ...] = ()
    ) -> RegionResult:
        """An answer in the form that the job stores."""
        region = prediction.region
        return RegionResult(
            prediction,
            self.work.run_id,
            mpp=self.slide.mpp,
            tissue_covered=None if tissue is None else covered(tissue, region),
            maps=maps,
            source=self.case.source,
            tissue_share=None if tissue is None else tissue_share(tissue, region),
            aggregation=self.work.settings.aggregation or self.work.model.card.aggregation,
            plan=plan,
        )

    def _check_free(self, run: PreparedRun, stored: Sequence[Path]) -> None:
        """Refuse to overwrite maps of another identity, to which the table would then wrongly refer."""
        job, identity = self.work.job, run.identity
        for result in job.record(self.slide_id).regions:
            existing = [path for entry in result.maps for path in stored if job.folder / entry.path == path]
            if existing and result.prediction.identity.key != identity.key:
                raise StreamviewError(
                    f"{existing[0]}: holds maps of {result.prediction.slide_name} by {result.prediction.model_name} with other weights, "
                    "mpp, precision, padding or pixels, or by an earlier version; remove them with streamview jobs rm, or choose another "
                    "job folder"
                )


def _picture_side(work: Work) -> int:
    """Longest side of a picture that fits the remaining memory budget."""
    compute = work.settings.compute
    if compute.memory is None or find_device(compute.device).type == "cuda":
        return _PICTURE[1]
    room = max(parse_bytes(compute.memory) - resident_memory(), 0)
    return min(max(int(_PICTURE[1] * math.sqrt(room / _PICTURE_BYTES)), _PICTURE[0]), _PICTURE[1])


def _plan(work: Work, ahead: Forecast | PatchPlan) -> dict[str, object]:
    compute = work.settings.compute
    if isinstance(ahead, PatchPlan):
        counts = {"patches": ahead.count, "side": ahead.side, "batch": ahead.batch}
        return {**counts, "memory": compute.memory, "precision": "float32", "forecast_bytes": ahead.peak_bytes}
    return {
        "tile": list(ahead.plan.tile),
        "steps": ahead.plan.steps,
        "tapes": ahead.plan.tapes,
        "memory": compute.memory,
        "precision": compute.precision,
        "forecast_bytes": ahead.peak_bytes,
        "forecast_seconds": ahead.seconds,
        "maps": ahead.targets,
        "forecast_disk_bytes": ahead.disk_bytes,
    }
