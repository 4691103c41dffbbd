"""Write a report: of a job's slides, or of results that a script or a notebook holds."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from streamview.errors import StreamviewError
from streamview.export.report.content import ReportSlide
from streamview.export.report.gather import job_slides, result_slides
from streamview.export.report.page import GENERATOR, page
from streamview.export.report.sidecar import FORMAT, sidecar
from streamview.files import atomic
from streamview.jobs import Job
from streamview.progress import Progress, Report
from streamview.results import Prediction, Saliency
from streamview.results.display import DisplayChoice
from streamview.slides import Slide

__all__ = ["render_results", "write_report", "write_results"]

_MARKED = 4096  # bytes at the beginning of a report that say whose it is


def write_report(
    job: Job,
    path: str | os.PathLike[str] | None = None,
    *,
    slides: Sequence[str] = (),
    display: DisplayChoice = DisplayChoice(),
    report: Report | None = None,
) -> list[Path]:
    """Write the report of a job: one HTML file that needs nothing else, and a JSON file beside it.

    Slides that failed, and answers without maps, are part of it. Where a slide's file is missing, its maps stand on white. Label and macro
    images are never shown.

    Parameters
    ----------
    job
        A job with answers.
    path
        The HTML; default ``review.html`` in the job's folder. The JSON has the same name with the suffix ``.json``. An earlier report
        there is replaced, each file completely or not at all.
    slides
        Ids of the slides to show; default all.
    display
        How maps are shown.
    report
        Called after every slide; may raise `Cancelled`.

    Returns
    -------
    list of pathlib.Path
        The HTML and the JSON.

    Raises
    ------
    StreamviewError
        If the job has no slide, or lacks one of those named, the maps cannot be shown in that way, a file exists that is no report, or the
        disk is full.
    """
    path = Path(job.folder / "review.html" if path is None else path)
    _check(path)
    records, damaged = job.records()
    names = [*(record.slide_id for record in records), *damaged]
    missing = [name for name in slides if name not in names]
    if missing:
        raise StreamviewError(f"{job.folder}: has no slide {missing[0]}, only {', '.join(names) or 'none at all'}")
    if not names:
        raise StreamviewError(f"{job.folder}: has no slides to report; predict some with `streamview predict -o {job.folder}`")
    progress = Progress("report", len(slides) or len(names), report)
    shown = []
    for slide in job_slides(job, slides, display):
        shown.append(slide)
        progress.advance()
    return _write(path, shown, f"Report of {job.folder.resolve().name}")


def write_results(
    results: Sequence[Prediction | Saliency],
    path: str | os.PathLike[str],
    slide: Slide | None = None,
    *,
    display: DisplayChoice = DisplayChoice(),
    report: Report | None = None,
) -> list[Path]:
    """Write a report of results, one section for each region.

    Parameters
    ----------
    results
        Predictions and saliencies; those of one region belong together.
    path
        The HTML; the JSON has the same name with the suffix ``.json``.
    slide
        Their slide, open; None: the one that saliencies were computed on, if it is still open.
    display, report
        As for `write_report`.

    Returns
    -------
    list of pathlib.Path
        The HTML and the JSON.

    Raises
    ------
    StreamviewError
        If there are no results, or as `write_report`.
    """
    path = Path(path)
    _check(path)
    return _write(path, _shown(results, slide, display, report), _title(results))


def render_results(
    results: Sequence[Prediction | Saliency],
    slide: Slide | None = None,
    *,
    display: DisplayChoice = DisplayChoice(),
    report: Report | None = None,
) -> str:
    """Return the HTML that `write_results` writes; parameters as there."""
    return page(_shown(results, slide, display, report), _title(results), datetime.now(UTC))


def _shown(
    results: Sequence[Prediction | Saliency], slide: Slide | None, display: DisplayChoice, report: Report | None
) -> list[ReportSlide]:
    if not results:
        raise StreamviewError("there are no results to report: expected predictions or saliencies")
    progress, shown = Progress("report", len(results), report), []
    for one in result_slides(results, slide, display):
        shown.append(one)
        progress.advance()
    return shown


def _title(results: Sequence[Prediction | Saliency]) -> str:
    names = dict.fromkeys((result.prediction if isinstance(result, Saliency) else result).slide_name for result in results)
    return f"Report of {', '.join(names)}"


def _sidecar(path: Path) -> Path:
    return path.with_suffix(".json")


def _check(path: Path) -> None:
    """Refuse to replace files that are no report, before anything is drawn."""
    if path.suffix.lower() == ".json" or not path.name:
        raise StreamviewError(f"{path}: is the name of the JSON beside a report; expected a name that ends in .html")
    atomic.check_output(path.parent)
    for file, mark in ((path, GENERATOR), (_sidecar(path), FORMAT)):
        if file.is_dir():
            raise StreamviewError(f"{file}: is a folder, but a report is a file; choose another name with -o")
        if not os.path.lexists(file):
            continue
        with atomic.disk_errors(file), file.open("rb") as existing:
            ours = mark.encode() in existing.read(_MARKED)
        if not ours:
            raise StreamviewError(f"{file}: exists already and is not a report; remove it, or write to another file with -o")


def _write(path: Path, slides: Sequence[ReportSlide], title: str) -> list[Path]:
    written = datetime.now(UTC)
    atomic.write_text(path, page(slides, title, written))
    atomic.write_text(_sidecar(path), sidecar(slides, written))
    return [path, _sidecar(path)]
