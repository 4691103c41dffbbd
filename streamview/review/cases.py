"""The slides of a session, with the network's answers: those of a job, or a part of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from streamview.errors import ReviewError, StreamviewError
from streamview.files.tables import read_table
from streamview.jobs import Job
from streamview.jobs.aggregation import aggregate, by_policy
from streamview.review.session import Case
from streamview.review.vocabulary import DISAGREEMENT, Vocabulary
from streamview.slides import open_slide

__all__ = ["class_names", "job_cases", "read_truth", "slide_cases", "usual_vocabulary"]


def job_cases(job: Job, truth: Mapping[str, str] | None = None) -> list[Case]:
    """Return the slides of a job that have an answer.

    Parameters
    ----------
    job
        With answers; slides that failed are left out.
    truth
        The true class by slide id, in place of the labels of the job's own table; slides that it does not name are left out.

    Raises
    ------
    ReviewError
        When no slide is left, or the truth names one that the job does not have.
    """
    records, _ = job.records()
    known = {record.slide_id for record in records}
    missing = sorted(set(truth or ()) - known)
    if missing:
        raise ReviewError(f"{job.folder}: has no slide {missing[0]}, which the table of the truth names")
    cases = []
    for record in records:
        groups = by_policy(record) if record.error is None else []
        prediction = aggregate(groups[-1]).prediction if groups else None
        if prediction is None or (truth is not None and record.slide_id not in truth):
            continue
        cases.append(
            Case(
                name=record.slide_id,
                source=record.source or "",
                truth=record.label if truth is None else truth[record.slide_id],
                answer=prediction.answer,
                answered=prediction.label or "",
                job=str(job.folder.resolve()),
                slide_id=record.slide_id,
                network=f"{prediction.model_name} {prediction.identity.weights_sha256[:12]}",
            )
        )
    if not cases:
        raise ReviewError(f"{job.folder}: no slide has an answer; compute some with `streamview saliency -i SLIDES -o {job.folder}`")
    return cases


def slide_cases(cases: Sequence[Case], truth: Mapping[str, str] | None = None) -> list[Case]:
    """Return slides without a network's answer, each of which can be opened.

    Parameters
    ----------
    cases
        With names and sources.
    truth
        The true class by name, in place of theirs; slides that it does not name are left out.

    Raises
    ------
    ReviewError
        When the truth names a slide that is not there, or a slide cannot be opened.
    """
    missing = sorted(set(truth or ()) - {case.name for case in cases})
    if missing:
        raise ReviewError(f"there is no slide {missing[0]}, which the table of the truth names")
    chosen = cases if truth is None else [replace(case, truth=truth[case.name]) for case in cases if case.name in truth]
    for case in chosen:
        try:
            open_slide(case.source, mpp=case.mpp).close()
        except StreamviewError as error:
            raise ReviewError(f"{error}; a session is made of a job folder, or of slides that can all be opened") from error
    return list(chosen)


def read_truth(path: str) -> dict[str, str]:
    """Read a CSV table with the columns ``slide_id`` and ``label``.

    Raises
    ------
    ReviewError
        When the file cannot be read, or lacks a column.
    """
    columns = ("slide_id", "label")
    _, rows = read_table(Path(path), columns, columns)
    return {row.cells["slide_id"]: row.cells["label"] for row in rows}


def class_names(job: Job) -> tuple[str, ...]:
    """The classes of the network that answered last in a job; none for regression."""
    predictions = [result.prediction for record in job.slides() for result in record.regions]
    return () if not predictions or predictions[-1].task == "regression" else predictions[-1].class_names


def usual_vocabulary(names: tuple[str, ...]) -> Vocabulary:
    """The classes of a network, up to nine, as verdicts; else agree, disagree and unsure."""
    return Vocabulary(names if 2 <= len(names) <= 9 else DISAGREEMENT)
