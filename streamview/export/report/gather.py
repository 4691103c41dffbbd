"""Gather what a report shows: from the records of a job, or from results that a script or a notebook holds."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from streamview.errors import SlideError, StreamviewError
from streamview.export.report.content import Certified, Picture, RegionView, ReportSlide
from streamview.export.report.drawing import draw_overview, draw_region
from streamview.jobs import Aggregate, Group, Job, SlideRecord, aggregate, by_policy
from streamview.jobs.maps import SlideMap, slide_maps
from streamview.jobs.tables import slide_row
from streamview.results import Prediction, Saliency
from streamview.results.display import DisplayChoice
from streamview.results.maps import reduction_of
from streamview.slides import Slide, open_slide

__all__ = ["job_slides", "result_slides"]

_MOST_VIEWS = 6  # regions with maps that are pictured
_DAMAGED = (OSError, ValueError, LookupError, TypeError, AttributeError)


def job_slides(job: Job, slides: Sequence[str], display: DisplayChoice) -> Iterator[ReportSlide]:
    """Yield the slides of a job by name, failed ones too; `slides` names some of them, none being all.

    Raises
    ------
    StreamviewError
        If the folder cannot be read, or its maps cannot be shown as `display` says.
    """
    records, damaged = job.records()
    for number, record in enumerate(record for record in records if not slides or record.slide_id in slides):
        yield _of_record(job, record, display, f"map-{number}")
    for stem, error in damaged.items():
        if not slides or stem in slides:
            yield ReportSlide(stem, status="failed", error=error)


def _of_record(job: Job, record: SlideRecord, display: DisplayChoice, name: str) -> ReportSlide:
    row, groups = slide_row(record), by_policy(record)
    plain = ReportSlide(record.slide_id, record.patient_id, record.label, str(row["status"]), _text(row.get("error")))
    if record.error is not None or not groups:
        return plain
    group, whole = groups[-1], aggregate(groups[-1])
    notes: list[str] = []
    try:
        maps = [of_region for of_region in slide_maps(job, record) if record.superseded(of_region[0].result) is None]
    except StreamviewError as error:  # damaged maps; the answer stands without them
        maps = []
        notes.append(f"The maps cannot be shown: {error}")
    order = {result.prediction.identity.key: number for number, result in enumerate(record.regions)}
    maps.sort(key=lambda of_region: -order[of_region[0].result.prediction.identity.key])  # the newest first
    if len(maps) > _MOST_VIEWS:
        notes.append(f"Maps of {len(maps)} regions; the newest {_MOST_VIEWS} are shown.")
    with ExitStack() as open_while:
        slide = _open(group, open_while, notes)
        overview, shape = _overview(slide, notes)
        views = _views([[one.saliency for one in of_region] for of_region in maps], slide, display, name, notes, _counts(maps))
    answer = whole.prediction or group.results[-1].prediction
    return ReportSlide(
        slide_id=record.slide_id,
        patient_id=record.patient_id,
        label=record.label,
        status=plain.status,
        error=plain.error,
        prediction=whole.prediction,
        tissue_covered=whole.tissue_covered,
        regions=tuple(result.prediction.region for result in group.results),
        shape=shape,
        overview=overview,
        views=views,
        warnings=_warnings(whole.regions or group.results),
        notes=tuple(notes),
        provenance=(*_provenance(answer, views), *_of_run(job, group, whole)),
        certificates=_certificates(job, answer.identity.weights_sha256),
    )


def _counts(maps: Sequence[Sequence[SlideMap]]) -> list[int]:
    return [len(of_region[0].stored) for of_region in maps]


def _views(
    maps: Sequence[Sequence[Saliency]], slide: Slide | None, display: DisplayChoice, name: str, notes: list[str], counts: Sequence[int]
) -> tuple[RegionView, ...]:
    """Draw the first regions; where the slide's pixels cannot be read, the maps alone."""
    shown = maps[:_MOST_VIEWS]
    views = []
    for number, (of_region, count) in enumerate(zip(shown, counts, strict=False)):
        place = f"{name}-{number}"
        try:
            views.append(draw_region(of_region, slide, display, place, regions=count, share=1 / len(shown)))
        except SlideError as error:
            notes.append(f"The slide cannot be read, so its map is shown alone: {error}")
            views.append(draw_region(of_region, None, display, place, regions=count, share=1 / len(shown)))
    return tuple(views)


def _open(group: Group, open_while: ExitStack, notes: list[str]) -> Slide | None:
    """Open the slide that was answered, or note why it is not shown."""
    result = group.results[-1]
    missing = "The slide's pixels are not shown, and maps stand on white"
    if result.source is None:
        notes.append(f"{missing}: it was not a file.")
        return None
    if "://" not in result.source and not Path(result.source).exists():
        notes.append(f"{missing}: its file is no longer where it was.")
        return None
    try:
        slide = open_while.enter_context(open_slide(result.source))
    except SlideError as error:
        notes.append(f"{missing}: {error}")
        return None
    if slide.identity != result.prediction.identity.source:
        notes.append(f"{missing}: another slide lies in its place.")
        return None
    return slide


def _overview(slide: Slide | None, notes: list[str]) -> tuple[Picture | None, tuple[int, int] | None]:
    if slide is None:
        return None, None
    try:
        picture = draw_overview(slide)
        if picture is None:
            notes.append("The slide as a whole is not shown: it has no small level; `streamview convert` makes some.")
        return picture, slide.shape
    except SlideError as error:
        notes.append(f"The slide as a whole cannot be shown: {error}")
        return None, None


def result_slides(results: Sequence[Prediction | Saliency], slide: Slide | None, display: DisplayChoice) -> Iterator[ReportSlide]:
    """Yield a slide for each region of results, in their order; maps of several targets of one region belong together.

    Raises
    ------
    StreamviewError
        If maps cannot be shown as `display` says.
    """
    by_region: dict[str, list[Prediction | Saliency]] = {}
    for result in results:
        prediction = result.prediction if isinstance(result, Saliency) else result
        by_region.setdefault(prediction.identity.key, []).append(result)
    for number, same in enumerate(by_region.values()):
        yield _of_results(same, slide, display, f"map-{number}", alone=len(by_region) == 1)


def _of_results(
    results: Sequence[Prediction | Saliency], slide: Slide | None, display: DisplayChoice, name: str, *, alone: bool
) -> ReportSlide:
    maps = [result for result in results if isinstance(result, Saliency)]
    prediction = maps[0].prediction if maps else next(result for result in results if isinstance(result, Prediction))
    source = slide or next((one.slide for one in maps if one.slide is not None), None)
    notes: list[str] = []
    if source is not None and source.identity != prediction.identity.source:
        notes.append("The slide's pixels are not shown, and maps stand on white: the slide given is another one.")
        source = None
    overview, shape = _overview(source, notes)
    views = _views([maps] if maps else [], source if shape else None, display, name, notes, [1])
    return ReportSlide(
        slide_id=prediction.slide_name if alone else f"{prediction.slide_name} {prediction.region}",
        prediction=prediction,
        regions=(prediction.region,),
        shape=shape,
        overview=overview,
        views=views,
        warnings=prediction.warnings,
        notes=tuple(notes),
        provenance=_provenance(prediction, views),
    )


def _warnings(results: Sequence[Any]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(warning for result in results for warning in result.prediction.warnings))


def _provenance(prediction: Prediction, views: Sequence[RegionView]) -> tuple[tuple[str, str], ...]:
    """How the answer and its maps came about, from the answer itself."""
    identity = prediction.identity
    maps = dict.fromkeys((one.title, one.recipe.method) for view in views for one in view.maps)
    facts = [
        ("Network", prediction.model_name if prediction.trained else f"{prediction.model_name} (untrained: its weights are random)"),
        *((f"Map: {title}", reduction_of(kind, identity.method)) for title, kind in maps),
        ("Weights, SHA-256", identity.weights_sha256),
        ("Card, SHA-256", identity.card_sha256),
        ("Network's grid", "mpp unknown" if prediction.mpp is None else f"{_pair(prediction.mpp)} um/px"),
        ("Precision", identity.precision),
    ]
    if identity.slide_mpp is not None:
        facts.append(
            (
                "Slide's mpp",
                f"{_pair(identity.slide_mpp)} um/px, {'as given' if identity.slide_mpp_source == 'given' else 'as in its file'}",
            )
        )
    if identity.pixel_source is not None:
        facts.append(("Pixels read by", identity.pixel_source))
    if identity.glass is not None:
        facts.append(("Glass", f"{identity.glass}: away from tissue the slide's background colour, not the scanned pixels"))
    return (*facts, ("Result identity", identity.key))


def _pair(mpp: tuple[float, float]) -> str:
    """An mpp ``(y, x)`` in words."""
    y, x = mpp
    return f"{x:.4g}" if x == y else f"{x:.4g} x {y:.4g}"


def _of_run(job: Job, group: Group, whole: Aggregate) -> tuple[tuple[str, str], ...]:
    """How the answer came about, from the job."""
    run_id = group.results[-1].run_id if group.work is None else group.work.run_id
    run = _read_run(job, run_id)
    versions = run.get("versions") if isinstance(run.get("versions"), Mapping) else {}
    facts = [("Regions", group.policy), ("Aggregation", whole.method or "none"), ("Run", run_id)]
    finished = _text(run.get("finished")) if group.work is None else group.work.finished
    facts += [("Answered", finished)] if finished else []
    facts += [("Device", str(run["device"]))] if "device" in run else []
    facts += [(f"Version of {name}", str(versions[name])) for name in ("streamview", "torch") if name in versions]  # type: ignore[index, operator]
    return tuple(facts)


def _read_run(job: Job, run_id: str) -> Mapping[str, Any]:
    """The record of a run; empty where there is none that can be read."""
    if not re.fullmatch(r"[\w-]+", run_id):  # a damaged record may name any path
        return {}
    try:
        run = json.loads((job.folder / "runs" / f"{run_id}.json").read_text(encoding="utf-8"))
    except _DAMAGED:
        return {}
    return run if isinstance(run, dict) else {}


def _certificates(job: Job, weights_sha256: str) -> tuple[Certified, ...]:
    """What the job's certificates say of these weights; those that cannot be read are left out."""
    certificates = []
    for path in sorted((job.folder / "certificates").glob("*.json")):
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            if values["weights_sha256"] == weights_sha256:
                certificates.append(Certified(values["passed"] is True, str(values["verdict"]), str(values["pixels"])))
        except _DAMAGED:
            continue
    return tuple(certificates)


def _text(value: object) -> str | None:
    return None if value is None else str(value)
