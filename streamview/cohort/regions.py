"""The regions of one slide: chosen, answered where they are not answered yet, recorded, and drawn."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from streamview.cohort.policy import choose_regions
from streamview.cohort.work import Ahead, Answer, Work
from streamview.cohort.worklist import Case
from streamview.errors import SlideError, StreamviewError
from streamview.export.png import draw_png
from streamview.geometry import Region
from streamview.inference.forecast import Forecast
from streamview.inference.identity import identify
from streamview.inference.patches import PatchPlan, patch_identity, plan_patches, predict_patches, write_patch_geojson, write_patch_table
from streamview.inference.prepared import PreparedRun, prepare
from streamview.inference.targets import find_targets
from streamview.jobs import RegionResult, SlideRecord, SlideWork, StoredMap, by_policy, region_id
from streamview.jobs.maps import picture_path, slide_maps
from streamview.results import GRADIENT, Identity, Prediction, Target, save_saliency
from streamview.results.display import default_preset, usual_recipe
from streamview.slides import Slide
from streamview.slides.tissue import Tissue, covered, find_tissue, tissue_share, union_covered
from streamview.streaming.memory import parse_bytes, return_freed_blocks
from streamview.system.machine import find_device, resident_memory

__all__ = ["ClaimedSlide"]

_PICTURE, _PICTURE_BYTES = (1100, 2048), 200 * 2**20  # px of the longest side, and memory for drawing the largest
_MOST_MAPS = 16  # classes up to which every class has a patch map


@dataclass(frozen=True, slots=True, eq=False)
class ClaimedSlide:
    """A slide that this process has claimed, and how its regions are answered.

    Parameters
    ----------
    work, case
        What is asked, and of which slide.
    slide, slide_id
        The open slide, and its name in the job.
    region
        The region that was named; None: those of the policy.
    tissue
        The slide's tissue, where it is known already.
    """

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
        if self._stitches:
            work.answered(self._draw_stitched(done))
        work.job.complete(self.slide_id, done)
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
                pictures.append(draw_png(self.slide, one.saliency, usual_recipe(one.saliency, preset), path, _picture_side(self.work)))
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
        method = settings.compute.method if settings.answer == "maps" else GRADIENT
        compute = settings.compute
        return identify(model, self.slide, region, precision=compute.precision, pad_to=settings.pad_to, method=method, glass=compute.glass)

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
            name = (target or result.prediction.usual_target).name
            if entry is None or entry.target is None or entry.target.name != name:
                return False
            if not self._stitches and not all(self._picture(region, preset, target).is_file() for preset in self.work.settings.displays):
                return False
        return True

    def _exists(self, entry: StoredMap) -> bool:
        folder = self.work.job.folder
        return (folder / entry.path).is_dir() and (entry.picture is None or (folder / entry.picture).is_file())

    def _stored(self, region: Region) -> list[tuple[Target | None, Path]]:
        """The targets to explain, None for the usual one, and the places of their maps, which name it if there are several."""
        targets: list[Target | None] = [*find_targets(self.work.model, self.work.settings.targets)] or [None]
        return [
            (target, self.work.job.saliency_path(self._maps_id, region, target if len(targets) > 1 else None, self._tag))
            for target in targets
        ]

    def _picture(self, region: Region, preset: str, target: Target | None) -> Path:
        several = len(find_targets(self.work.model, self.work.settings.targets)) > 1
        return self.work.job.picture_path(self._maps_id, region, preset, target if several else None, self._tag)

    @property
    def _tag(self) -> str:
        return self.work.settings.compute.method.tag

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
            pictures.append(draw_png(slide, maps[-1], usual_recipe(maps[-1]), place / f"{name}.png", _picture_side(work)))
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
            drawn = [draw_png(self.slide, maps, usual_recipe(maps, preset), self._picture(region, preset, target)) for preset in presets]
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
        job, identity = self.work.job, run.maps_identity
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
        "saved_steps": ahead.plan.saved_steps,
        "memory": compute.memory,
        "precision": compute.precision,
        "glass": compute.glass,
        "forecast_bytes": ahead.peak_bytes,
        "forecast_seconds": ahead.seconds,
        "maps": ahead.targets,
        "forecast_disk_bytes": ahead.disk_bytes,
    }
