"""Results of a window kept in a job folder, which opens like any other; pure."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from streamview.files import atomic
from streamview.jobs import Job, RegionResult, Run, new_run_id
from streamview.jobs.records import StoredMap
from streamview.progress import Progress, Report
from streamview.results.display import usual_recipe
from streamview.system.machine import describe_device, find_device
from streamview_napari.requests.answers import Answer
from streamview_napari.requests.script import command, find_origin

__all__ = ["describe_unsaved", "keep_results"]


def describe_unsaved(results: int, *, running: bool) -> str:
    """Say what closing the window would lose; empty where that is nothing."""
    parts = ["A run is under way."] if running else []
    if results:
        one = results == 1
        parts.append(f"{results} result{' is' if one else 's are'} neither exported nor kept, and would be deleted.")
    return " ".join(parts)


def keep_results(answers: Sequence[Answer], folder: Path, report: Report | None = None) -> Path:
    """Copy answers that were computed in a window, and their maps, into a job folder; return that.

    Parameters
    ----------
    answers
        Each with the facts of its run.
    folder
        The job; what is there already stays.
    report
        Called after every answer.

    Raises
    ------
    StreamviewError
        When the disk is full, or the folder is something else or may not be written.
    Cancelled
        When the user cancels; what was copied so far stays.
    """
    atomic.check_output(folder)
    job = Job(folder)
    progress = Progress("results", len(answers), report)
    for answer in answers:
        job.record_run(_run(answer, run_id := new_run_id(), job))
        _keep(job, answer, run_id)
        progress.advance()
    job.write_tables()
    return folder


def _run(answer: Answer, run_id: str, job: Job) -> Run:
    """The record of the run that made an answer, its command the one that recomputes it."""
    now = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    words: tuple[str, ...] = ()
    if answer.saliency is not None:
        origin = find_origin(answer.saliency, answer.run)
        words = tuple(shlex.split(command(answer.saliency, origin, usual_recipe(answer.saliency), str(job.folder)))[1:])
    device = "auto" if answer.run is None else answer.run.compute.device
    return Run(run_id, words, describe_device(find_device(device)), now, now, answer.seconds, answered=1)


def _keep(job: Job, answer: Answer, run_id: str) -> None:
    prediction, saliency = answer.prediction, answer.saliency
    path = None if answer.run is None else answer.run.slide
    maps: tuple[StoredMap, ...] = ()
    if saliency is not None and saliency.path is not None:
        slide_id = job.slide_id(prediction.slide_name, path, prediction.identity.source)
        place = job.saliency_path(slide_id, prediction.region, saliency.target)
        if not place.exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            with atomic.disk_errors(place), atomic.replacing(place) as temporary:
                shutil.copytree(saliency.path, temporary)
        maps = (StoredMap(place.relative_to(job.folder).as_posix(), saliency.target),)
    plan = None if answer.tile is None else {"tile": list(answer.tile)}
    result = RegionResult(prediction, run_id, None if saliency is None else saliency.mpp, maps=maps, source=path, plan=plan)
    job.add(result)
