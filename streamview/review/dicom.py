"""The verdicts of a session as DICOM reports, one for each slide."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path

from streamview.errors import ReviewError
from streamview.export.dicom import Verdict, read_source, write_report
from streamview.export.dicom.provenance import run_time
from streamview.files import atomic
from streamview.jobs import Job
from streamview.jobs.aggregation import aggregate, by_policy
from streamview.review.session import Case, Session

__all__ = ["write_reports"]


def write_reports(session: Session, folder: str | os.PathLike[str]) -> list[Path]:
    """Write ``<case>.dcm`` for each slide: the network's answer, and what its readers have decided so far; they name the patients.

    Parameters
    ----------
    session
        Of DICOM slides.
    folder
        Must not exist; written completely or not at all.

    Raises
    ------
    ReviewError
        If the folder exists, or a slide is not in its job any more.
    StreamviewError
        If highdicom is missing, a slide is not DICOM, is another one than was answered, or the disk is full.
    SlideError
        If a slide cannot be opened.
    """
    folder = Path(folder)
    if os.path.lexists(folder):
        raise ReviewError(f"{folder}: exists; choose another name")
    verdicts: dict[str, list[Verdict]] = {case: [] for case in session.cases}
    times: dict[str, list[datetime]] = {case: [] for case in session.cases}
    for reader in session.readers:
        for step, reading in session.reader(reader).readings().items():
            if reading.verdict is not None:
                verdicts[step.case].append(Verdict(reader, step.modality, reading.verdict, reading.confidence))
                times[step.case].append(datetime.fromisoformat(reading.decided_at).astimezone(UTC).replace(tzinfo=None))
    with atomic.replacing(folder) as temporary:
        temporary.mkdir()
        for number, case in session.cases.items():
            _write(case, verdicts[number], times[number], temporary / f"{number}.dcm")
    return [folder / f"{number}.dcm" for number in session.cases]


def _write(case: Case, verdicts: list[Verdict], times: list[datetime], path: Path) -> None:
    records = [record for record in Job(case.job).slides() if record.slide_id == case.slide_id] if case.job else []
    groups = by_policy(records[0]) if records else []
    prediction = aggregate(groups[-1]).prediction if groups else None
    if prediction is None:
        raise ReviewError(f"{case.name}: the job {case.job or '(none)'} has no answer for it; put the job back where it was")
    created = max([run_time(groups[-1].results[-1].run_id), *times])
    write_report(prediction, read_source(case.source), path, created, verdicts=verdicts)
