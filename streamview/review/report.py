"""The statistics of a session as a page to read and as a flat table, both from what `streamview.review.summary.summarise` returns."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from datetime import datetime
from typing import Any

from streamview.export.report.content import Picture
from streamview.export.report.markup import Markup, data_url, joined, tag
from streamview.export.report.page import document

__all__ = ["Figure", "figures", "statistics_page", "statistics_table"]

GENERATOR = "streamview review stats"
_SECTIONS = {
    "agreement": "Agreement",
    "change": "Change by the network",
    "accuracy": "Accuracy of each reader",
    "comparison": "Unaided against aided",
    "reading_time": "Reading time",
}
_MEASURES = {
    "agreed": "share of cases on which both agree",
    "kappa": "Cohen's kappa",
    "fleiss": "Fleiss' kappa",
    "alpha": "Krippendorff's alpha",
    "auc": "area under the curve",
    "automation_bias": "wrong answers followed against the own verdict",
    "ignored": "right answers ignored against the own verdict",
}


@dataclass(frozen=True, slots=True)
class Figure:
    """One number of the statistics.

    Parameters
    ----------
    section
        "agreement", "change", "accuracy", "comparison" or "reading_time".
    modality
        "unaided", "aided", or empty where both are compared.
    readers
        Of whom; empty: of all.
    measure
        What it is, in words.
    value, low, high
        The number and its 95 % interval; None where there is none. Reading times have the quartiles, in s.
    cases
        From how many cases, or reads; None where that is not said.
    note
        Why there is no value or interval.
    """

    section: str
    modality: str
    readers: str
    measure: str
    value: float | None
    low: float | None = None
    high: float | None = None
    cases: int | None = None
    note: str = ""


def figures(summary: Mapping[str, Any]) -> Iterator[Figure]:
    """Yield every number of the statistics; where a section could not be computed, one figure without a value says why."""
    for modality, agreement in summary["agreement"].items():
        if isinstance(agreement, str):
            yield Figure("agreement", modality, "", "agreement", None, note=agreement)
            continue
        for name in ("agreed", "fleiss", "alpha"):
            yield _estimate("agreement", modality, "", name, agreement[name])
        for pair in agreement["pairs"]:
            for name in ("agreed", "kappa"):
                yield _estimate("agreement", modality, f"{pair['first']}, {pair['second']}", name, pair[name])
    yield from _listed(summary, "change", _change)
    yield from _listed(summary, "accuracy", _accuracy)
    comparison = summary["comparison"]
    if isinstance(comparison, str):
        yield Figure("comparison", "", "", "comparison", None, note=comparison)
    else:
        yield from _comparison(comparison)
    yield from _listed(summary, "reading_time", lambda time: [_time("reading_time", "", time)])


def statistics_table(summary: Mapping[str, Any]) -> str:
    """Return the figures as CSV, one a row, by the names of `Figure`."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(field.name for field in fields(Figure))
    writer.writerows(("" if value is None else value for value in astuple(figure)) for figure in figures(summary))
    return text.getvalue()


def statistics_page(summary: Mapping[str, Any], charts: Iterable[tuple[Picture, str]], written: datetime) -> str:
    """Return the figures and charts as one HTML page that needs nothing else.

    Parameters
    ----------
    summary
        As `streamview.review.summary.summarise` returns it.
    charts
        Pictures, with a text for who does not see them.
    written
        When, in UTC.
    """
    listed = list(figures(summary))
    drawn = [
        tag("figure", tag("img", src=data_url(chart), alt=text, width=chart.shape[1], height=chart.shape[0]), class_="chart")
        for chart, text in charts
    ]
    sections = [_section(name, title, [figure for figure in listed if figure.section == name]) for name, title in _SECTIONS.items()]
    positive = f"; positive: {', '.join(summary['positive'])}" if summary["positive"] else ""
    counts = f"{len(summary['readers'])} readers, {summary['cases']} slides, {summary['reads']} verdicts"
    lead = f"{summary['design'].capitalize()}, {counts}{positive}."
    return document("What the reads are worth", lead, "To the figures", joined(*drawn, *sections), written, GENERATOR)


def _section(name: str, title: str, rows: Sequence[Figure]) -> Markup:
    heads = ("Measure", "Reading", "Readers", "Figure", "Quartiles, s" if name == "reading_time" else "95 % interval", "Cases", "Note")
    head = tag("tr", *(tag("th", text, scope="col") for text in heads))
    table = tag("table", tag("caption", title), tag("thead", head), tag("tbody", *map(_row, rows)), class_="figures")
    return tag("section", table, class_="scroll", tabindex="0", aria_label=title)


def _row(figure: Figure) -> Markup:
    interval = "" if figure.low is None or figure.high is None else f"{_number(figure.low)} to {_number(figure.high)}"
    cases = "" if figure.cases is None else str(figure.cases)
    cells = (figure.modality, figure.readers or "all", _number(figure.value), interval, cases, figure.note)
    return tag("tr", tag("th", figure.measure, scope="row"), *(tag("td", cell) for cell in cells))


def _number(value: float | None) -> str:
    return "–" if value is None else str(value) if isinstance(value, int) else f"{value:.3f}"


def _listed(summary: Mapping[str, Any], section: str, of: Any) -> Iterator[Figure]:
    values = summary[section]
    if isinstance(values, str):
        yield Figure(section, "", "", _SECTIONS[section].lower(), None, note=values)
    else:
        for value in values:
            yield from of(value)


def _estimate(section: str, modality: str, readers: str, name: str, value: Mapping[str, Any]) -> Figure:
    cases = value.get("cases", value.get("whole"))
    return Figure(section, modality, readers, _MEASURES.get(name, name), value["value"], value["low"], value["high"], cases, value["note"])


def _change(change: Mapping[str, Any]) -> Iterator[Figure]:
    reader, cases = change["reader"], change["cases"]
    names = {"changed": "verdicts changed", "helped": "became right", "harmed": "became wrong"}
    for name, words in names.items():
        yield Figure("change", "", reader, words, change[name], cases=cases)
    yield Figure("change", "", reader, "p of became right against became wrong (McNemar, exact)", change["p"], cases=cases)
    if change["ai"] is not None:
        for name in ("automation_bias", "ignored"):
            yield _estimate("change", "", reader, name, change["ai"][name])


def _accuracy(reader: Mapping[str, Any]) -> Iterator[Figure]:
    for name in ("sensitivity", "specificity", "auc"):
        yield _estimate("accuracy", reader["modality"], reader["reader"], name, reader[name])
    if reader["time"] is not None:
        yield _time("reading_time", reader["reader"], reader["time"])


def _time(section: str, reader: str, time: Mapping[str, Any]) -> Figure:
    note = "" if time["reads"] else "no reading has a time"
    measure = "median reading time, s"
    return Figure(section, time["modality"], reader, measure, time["median"], time["lower"], time["upper"], time["reads"], note)


def _comparison(comparison: Mapping[str, Any]) -> Iterator[Figure]:
    measure = _MEASURES.get(comparison["measure"], comparison["measure"])
    for line in comparison["lines"]:
        harmed = "; harmed" if line["harmed"] else ""
        yield _estimate("comparison", "", line["reader"], f"change of {measure}{harmed}", line["change"])
    for modality in ("unaided", "aided"):
        yield _estimate("comparison", modality, "", f"mean {measure}", comparison[modality])
    yield _estimate("comparison", "", "", f"mean change of {measure}", comparison["change"])
    if comparison["analysis"] is not None:
        yield Figure(
            "comparison",
            "",
            "",
            "p of the mean change (Obuchowski-Rockette, Hillis)",
            comparison["analysis"]["p"],
            cases=comparison["cases"],
        )
