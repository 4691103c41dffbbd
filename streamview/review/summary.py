"""What the reads of a session are worth: its events as reads, and all statistics of them as one JSON."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from streamview.errors import ReviewError
from streamview.evaluation.drawing import write_chart
from streamview.export.report.content import Picture
from streamview.files import atomic
from streamview.results import RESEARCH_USE
from streamview.review.reads import Modality, Read
from streamview.review.report import statistics_page, statistics_table
from streamview.review.session import Reading, Session
from streamview.review.statistics import (
    Change,
    Comparison,
    compare_modalities,
    format_imrmc,
    measure_accuracy,
    measure_agreement,
    measure_change,
    measure_times,
    pool_changes,
)
from streamview.review.statistics.charts import change_size, draw_change, draw_lines, lines_size

__all__ = ["session_reads", "summarise", "write_summary"]

_MODALITIES: tuple[Modality, ...] = ("unaided", "aided")


def session_reads(session: Session, positive: Collection[str] = ()) -> list[Read]:
    """Return the verdicts of a session as reads.

    The score, from which areas under the curve follow, is the verdict's place on an ordinal scale, or else the confidence, negative for a
    verdict that is not positive; without confidence, or without positive verdicts, there is none.

    Parameters
    ----------
    session
        The session.
    positive
        The verdicts that count as positive.

    Raises
    ------
    ReviewError
        When one of `positive` is no verdict of the session.
    """
    unknown = sorted(set(positive) - set(session.vocabulary.verdicts))
    if unknown:
        raise ReviewError(f"{unknown[0]} is no verdict of this session; expected some of {', '.join(session.vocabulary.verdicts)}")
    return [
        Read(reader, step.case, step.modality, reading.verdict, _score(session, reading, positive), reading.seconds or None)
        for reader in session.readers
        for step, reading in session.reader(reader).readings().items()
        if reading.verdict is not None
    ]


def summarise(session: Session, positive: Collection[str] = ()) -> dict[str, Any]:
    """Return all statistics of a session, as JSON can hold them; what cannot be computed is a text that says why.

    Parameters
    ----------
    session
        The session.
    positive
        The verdicts that count as positive; default the last of two, else none, without which there is no accuracy and no comparison.

    Raises
    ------
    ReviewError
        When there is no verdict yet, or one of `positive` is none of the session's.
    """
    reads, truth, positive = _input(session, positive)
    scale = session.vocabulary.verdicts if session.vocabulary.ordinal else ()
    return {
        "session": session.id,
        "design": session.design,
        "readers": list(session.readers),
        "cases": len(session.cases),
        "reads": len(reads),
        "positive": list(positive),
        "agreement": {modality: _tried(partial(_agreement, reads, modality, scale)) for modality in _MODALITIES},
        "change": _tried(lambda: _listed(_changes(session, reads))),
        "accuracy": _tried(lambda: _listed(measure_accuracy(reads, truth, positive))) if positive else _NO_POSITIVE,
        "reading_time": _tried(lambda: _listed(measure_times(reads))),
        "comparison": _tried(lambda: compare_modalities(reads, truth, positive=positive).to_dict()) if positive else _NO_POSITIVE,
        "note": RESEARCH_USE,
    }


def write_summary(session: Session, folder: str | os.PathLike[str], positive: Collection[str] = ()) -> list[Path]:
    """Write the statistics as JSON, CSV and HTML, and where they can be computed ``change.png``, ``readers.png`` and ``reads.imrmc``.

    Parameters
    ----------
    session, positive
        As for `summarise`.
    folder
        Where to; made where it is missing; earlier files of these names are replaced, each completely or not at all.

    Returns
    -------
    list of pathlib.Path
        What was written.

    Raises
    ------
    ReviewError
        As `summarise`.
    StreamviewError
        When the folder cannot be written.
    """
    summary = summarise(session, positive)
    reads, truth, positive = _input(session, positive)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    written = [folder / "statistics.json", folder / "statistics.csv"]
    atomic.write_text(written[0], json.dumps(summary, indent=2, ensure_ascii=False, allow_nan=False))
    atomic.write_text(written[1], statistics_table(summary))
    charts = []
    changes = _value(lambda: pool_changes(_changes(session, reads)))
    if isinstance(changes, Change):
        written.append(write_chart(folder / "change.png", partial(draw_change, change=changes), change_size(changes)))
        charts.append(
            (_picture(written[-1]), "Verdicts before and after the network's answer, all readers; the figures are in the tables below.")
        )
    comparison = _value(lambda: compare_modalities(reads, truth, positive=positive)) if positive else None
    if isinstance(comparison, Comparison):
        written.append(write_chart(folder / "readers.png", partial(draw_lines, comparison=comparison), lines_size(comparison)))
        charts.insert(0, (_picture(written[-1]), "A line for each reader from unaided to aided; the figures are in the tables below."))
    text = _value(lambda: format_imrmc(reads, truth, positive, title=f"streamview review session {session.id}")) if positive else None
    if isinstance(text, str):
        written.append(folder / "reads.imrmc")
        atomic.write_text(written[-1], text)
    written.append(folder / "statistics.html")
    atomic.write_text(written[-1], statistics_page(summary, charts, datetime.now(UTC)))
    return written


def _picture(path: Path) -> Picture:
    data = path.read_bytes()
    width, height = (int.from_bytes(data[place : place + 4]) for place in (16, 20))  # of the first chunk of every PNG
    return Picture(data, "png", (height, width))


_NO_POSITIVE = "no positive verdicts are named"


def _input(session: Session, positive: Collection[str]) -> tuple[list[Read], dict[str, str | None], tuple[str, ...]]:
    verdicts = session.vocabulary.verdicts
    positive = tuple(positive) or (verdicts[-1:] if len(verdicts) == 2 else ())
    reads = session_reads(session, positive)
    if not reads:
        raise ReviewError(f"{session.path.name}: there is no verdict yet")
    return reads, {case.id: case.truth or None for case in session.cases.values()}, positive


def _agreement(reads: list[Read], modality: Modality, scale: tuple[str, ...]) -> dict[str, Any]:
    return measure_agreement(reads, modality, scale=scale).to_dict()


def _changes(session: Session, reads: list[Read]) -> tuple[Change, ...]:
    truth = {case.id: case.truth or None for case in session.cases.values()}
    answers = {case.id: case.answered for case in session.cases.values() if case.answered in session.vocabulary.verdicts}
    return measure_change(reads, truth, answers or None, classes=session.vocabulary.verdicts)


def _score(session: Session, reading: Reading, positive: Collection[str]) -> float | None:
    vocabulary = session.vocabulary
    if vocabulary.ordinal and reading.verdict is not None:
        return float(vocabulary.verdicts.index(reading.verdict))
    if reading.confidence is None or not positive:
        return None
    return float(reading.confidence if reading.verdict in positive else -reading.confidence)


def _listed(values: Any) -> list[dict[str, Any]]:
    return [value.to_dict() for value in values]


def _value(compute: Callable[[], Any]) -> Any:
    """A value, or None where there are too few reads for it."""
    try:
        return compute()
    except ReviewError:
        return None


def _tried(compute: Callable[[], Any]) -> Any:
    """A value, or why there is none."""
    try:
        return compute()
    except ReviewError as error:
        return str(error)
