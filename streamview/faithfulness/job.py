"""Measure the maps of a job, result by result; what was finished is not measured again."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from streamview.errors import ModelError, SlideError, StreamviewError
from streamview.faithfulness.forecast import Forecast, forecast_faithfulness
from streamview.faithfulness.localisation import read_area
from streamview.faithfulness.measure import measure_faithfulness
from streamview.faithfulness.parts import Parts
from streamview.faithfulness.result import Faithfulness
from streamview.faithfulness.settings import Settings
from streamview.faithfulness.store import FILE, faithfulness_folder, read_faithfulness
from streamview.files import atomic
from streamview.files.resumable import discard_unfinished, resumable
from streamview.inference.compute import Compute
from streamview.inference.prepared import PreparedRun, prepare
from streamview.jobs import Job, RegionResult, SlideRecord
from streamview.networks import Model
from streamview.progress import Report
from streamview.results import Identity, Saliency, open_saliency
from streamview.slides import open_slide

__all__ = ["JobMaps", "Telling", "measure_job", "measure_maps", "stored_maps"]


@dataclass(frozen=True, slots=True, eq=False)
class JobMaps:
    """Stored maps of one target of a region of a job.

    Parameters
    ----------
    slide_id
        Of the slide in the job.
    result
        The answer that they explain.
    saliency
        The maps.
    """

    slide_id: str
    result: RegionResult
    saliency: Saliency

    def __str__(self) -> str:
        """Slide, region and target."""
        return f"{self.slide_id}, region {self.saliency.prediction.region}, maps of {self.saliency.target}"


@dataclass(frozen=True, slots=True)
class Telling:
    """Who is told what.

    Parameters
    ----------
    announce
        Called with maps and the forecast before they are measured.
    tell
        Called with messages: that work resumes, or what was kept.
    report
        Called after every step of the engine; may raise `Cancelled`.
    """

    announce: Callable[[JobMaps, Forecast], None] = lambda maps, forecast: None
    tell: Callable[[str], None] = lambda line: None
    report: Report | None = None


def stored_maps(job: Job, slides: Sequence[str] = (), targets: Sequence[str] = ()) -> list[JobMaps]:
    """Return the maps of a job that count, by slide, region and target.

    Parameters
    ----------
    job
        The job.
    slides, targets
        Names of those wanted; empty: all.

    Raises
    ------
    StreamviewError
        When the job has no such slide or no such maps, or maps are damaged.
    """
    records = job.slides()
    missing = [name for name in slides if name not in {record.slide_id for record in records}]
    if missing:
        names = ", ".join(record.slide_id for record in records)
        raise StreamviewError(f"{job.folder}: has no slide {missing[0]}, only {names or 'none at all'}")
    every = [maps for record in records if not slides or record.slide_id in slides for maps in _maps_of(job, record)]
    chosen = [maps for maps in every if not targets or str(maps.saliency.target) in targets]
    if not chosen:
        of = f" of {', '.join(targets)}" if targets else ""
        raise StreamviewError(f"{job.folder}: has no maps{of}; compute some with `streamview saliency -o {job.folder}`")
    return chosen


def _maps_of(job: Job, record: SlideRecord) -> Iterator[JobMaps]:
    for result in record.regions:
        if record.superseded(result) is None:
            for stored in result.maps:
                path = job.folder / stored.path
                if not path.resolve().is_relative_to(job.folder.resolve() / "saliency"):
                    raise StreamviewError(
                        f"{stored.path}: a map that this job's record names lies outside {job.folder}; run this slide again"
                    )
                saliency = open_saliency(path)
                if set(saliency.maps) != {"patches"}:
                    yield JobMaps(record.slide_id, result, saliency)


def measure_job(
    job: Job,
    load: Callable[[str], Model],
    settings: Settings = Settings(),
    *,
    maps: Sequence[JobMaps] | None = None,
    annotations: Path | None = None,
    compute: Compute = Compute(),
    restart: bool = False,
    telling: Telling = Telling(),
) -> Iterator[tuple[JobMaps, Faithfulness]]:
    """Measure the maps of a job, and store what was measured beside them.

    What was finished with the same settings is read; what was stopped goes on from its last finished measurement.

    Parameters
    ----------
    job
        With maps.
    load
        Gives the network of a name, that of a prediction.
    settings
        What is measured.
    maps
        Some of `stored_maps`; None: all.
    annotations
        File or folder, as for `streamview.faithfulness.localisation.read_area`.
    compute
        Where and how to run; the precision is that of the maps.
    restart
        Whether to measure anew what was measured, and to start unfinished work over.
    telling
        Who is told what.

    Yields
    ------
    tuple
        The maps and what was measured.

    Raises
    ------
    StreamviewError
        When maps cannot be measured; what was measured before stays.
    """
    for one in stored_maps(job) if maps is None else maps:
        yield one, measure_maps(one, load, settings, annotations=annotations, compute=compute, restart=restart, telling=telling)


def measure_maps(
    maps: JobMaps,
    load: Callable[[str], Model],
    settings: Settings = Settings(),
    *,
    annotations: Path | None = None,
    compute: Compute = Compute(),
    restart: bool = False,
    telling: Telling = Telling(),
) -> Faithfulness:
    """Measure the maps of one target, as `measure_job`; parameters and errors as there."""
    saliency = maps.saliency
    assert saliency.path is not None  # stored maps have one
    folder, name = faithfulness_folder(saliency.path), "" if annotations is None else str(annotations)
    before = read_faithfulness(saliency)
    if before is not None and not restart and before.settings == settings and before.annotations == name:
        return before
    prediction = saliency.prediction
    making = {
        "identity": prediction.identity.key,
        "target": asdict(saliency.target),
        "settings": json.loads(json.dumps(asdict(settings))),
        "annotations": name,
        "maps": list(saliency.maps),
    }
    with _prepared(maps, load(prediction.model_name), compute) as run:
        area = None if annotations is None else read_area(annotations, run.slide, prediction.region, run.sampler.scale)
        telling.announce(maps, forecast_faithfulness(run, settings, len(saliency.maps), telling.report))
        with atomic.disk_errors(folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
            staged = folder.with_name(f"{folder.name}.new")  # what was measured before stays until it is replaced
            if restart:
                discard_unfinished(staged)
            atomic.discard(staged)
            with resumable(staged, making, telling.tell) as journal:
                parts = Parts(journal)
                measured = measure_faithfulness(
                    run, saliency, settings, annotated=None if area is None else (name, area), parts=parts, report=telling.report
                )
                parts.write(FILE, measured.to_dict())
            atomic.replace(staged, folder)
    return measured


@contextmanager
def _prepared(maps: JobMaps, model: Model, compute: Compute) -> Iterator[PreparedRun]:
    """A run of the network over the region of stored maps.

    Raises
    ------
    StreamviewError
        When the slide is not where it was, or slide or network are others.
    """
    identity, source = maps.saliency.prediction.identity, maps.result.source
    if model.sha256 != identity.weights_sha256 or model.card.sha256 != identity.card_sha256:
        raise ModelError(f"{maps}: the network {model.card.name} has other weights or another card; name that of the maps with -m")
    if source is None or ("://" not in source and not Path(source).exists()):
        raise SlideError(f"{maps}: the slide is no longer at {source or 'a file'}; put it back, or compute the maps again")
    mpp = identity.slide_mpp[1] if identity.slide_mpp_source == "given" and identity.slide_mpp is not None else None
    with open_slide(source, mpp) as slide:
        run = prepare(
            model, slide, identity.region, compute=_with_precision(compute, identity), pad_to=identity.padded and identity.padded[0]
        )
        if run.identity != identity:
            raise SlideError(f"{maps}: the slide at {source} is another one, or is read in another way; compute the maps again")
        yield run


def _with_precision(compute: Compute, identity: Identity) -> Compute:
    return replace(compute, precision=identity.precision)  # type: ignore[arg-type]  # checked where the map was computed
