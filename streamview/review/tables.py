"""The verdicts of a session as a table, without names unless they are asked for."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator

from streamview.jobs.tables import text_cell
from streamview.review.session import Reading, Session

__all__ = ["COLUMNS", "verdict_rows", "write_verdicts"]

COLUMNS = {
    "reader": "the reader",
    "case": "id of the slide in the session",
    "name": "name of the slide; only where names were asked for",
    "truth": "the true class; only where names were asked for",
    "answer": "the network's answer; only once every reader of the slide is done with it, or where names were asked for",
    "modality": "`unaided`, or `aided` with the network's answer in sight",
    "period": "1, or in a crossover also 2",
    "position": "place of the reading in the reader's order, from 1",
    "verdict": "the verdict; empty if there is none yet",
    "confidence": "the confidence, from 1",
    "seconds": "attention in s, without pauses",
    "decided_at": "when, in UTC",
    "note": "in the reader's words",
    "regions": "number of regions drawn",
    "hotspots_right": "number of hotspots that the reader called right",
    "hotspots_wrong": "number of hotspots that the reader called wrong",
}
"""What each column holds."""


def verdict_rows(session: Session, *, names: bool = False) -> Iterator[dict[str, str]]:
    """Yield one row for each step of each reader, as texts by the names of `COLUMNS`.

    Parameters
    ----------
    session
        The session.
    names
        Whether to write the slides' names and truth, and the network's answers before all readers are done.
    """
    readings = {reader: session.reader(reader).readings() for reader in session.readers}
    undone = {step.case for each in readings.values() for step, reading in each.items() if not reading.done}
    for reader, each in readings.items():
        for position, (step, reading) in enumerate(each.items(), 1):
            case = session.cases[step.case]
            row = {"reader": reader, "case": step.case, "modality": step.modality, "period": str(step.period), "position": str(position)}
            if names:
                row |= {"name": case.name, "truth": case.truth}
            if names or step.case not in undone:
                row["answer"] = case.answer
            yield {column: (row | _said(reading)).get(column, "") for column in COLUMNS}


def write_verdicts(session: Session, *, names: bool = False) -> str:
    """Return the table as CSV, safe against formulas; parameters as `verdict_rows`."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(COLUMNS), lineterminator="\n")
    writer.writeheader()
    for row in verdict_rows(session, names=names):
        writer.writerow({column: text_cell(value) for column, value in row.items()})
    return text.getvalue()


def _said(reading: Reading) -> dict[str, str]:
    return {
        "verdict": reading.verdict or "",
        "confidence": "" if reading.confidence is None else str(reading.confidence),
        "seconds": f"{reading.seconds:.1f}",
        "decided_at": reading.decided_at,
        "note": reading.note,
        "regions": str(len(reading.regions)),
        "hotspots_right": str(sum(reading.hotspots.values())),
        "hotspots_wrong": str(len(reading.hotspots) - sum(reading.hotspots.values())),
    }
