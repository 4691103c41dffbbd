"""The page of a report: one HTML file that needs nothing else, under a policy that lets nothing else in."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from datetime import datetime
from importlib.resources import files
from string import Template

from streamview.export.report.content import ReportSlide
from streamview.export.report.markup import Markup, joined, name, tag
from streamview.export.report.sections import STATUSES, chosen, per_cent, slide_section
from streamview.results import RESEARCH_USE
from streamview.system.versions import versions

__all__ = ["GENERATOR", "document", "page"]

GENERATOR = "streamview report"


def page(slides: Sequence[ReportSlide], title: str, written: datetime) -> str:
    """Return a report as HTML: a table of the slides, and a section for each."""
    places = [f"slide-{number}" for number in range(1, len(slides) + 1)]
    around = [None, *places, None]
    sections = [slide_section(slide, places[n], around[n], around[n + 2]) for n, slide in enumerate(slides)]
    first = tag("section", _table(slides, places), id="slides", aria_label="All slides")
    return document(title, _lead(slides), "To the table of slides", joined(first, *sections), written, GENERATOR, _read("report.js"))


def document(title: str, lead: str, skip: str, main: Markup, written: datetime, generator: str, script: str = "") -> str:
    """Return an HTML page that needs nothing else, in the look of a report.

    Parameters
    ----------
    title, lead
        Heading and first sentence.
    skip
        Text of the link past the heading, for who uses the keyboard.
    main
        What it shows.
    written
        When, in UTC.
    generator
        The command that writes it.
    script
        What runs in it.
    """
    style = _read("report.css")
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_hash(style)}'; script-src '{_hash(script)}'; base-uri 'none'; form-action 'none'"
    )
    return Template(_read("report.html")).substitute(
        policy=policy,
        generator=generator,
        title=joined(title),
        style=style,
        script=script,
        note=joined(RESEARCH_USE),
        lead=joined(lead),
        skip=joined(skip),
        main=main,
        written=joined(f"Written {written:%Y-%m-%d %H:%M} UTC by streamview {versions()['streamview']}."),
    )


def _read(file: str) -> str:
    return files("streamview.export.report").joinpath(file).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """The name of an inline style or script in a content security policy (https://www.w3.org/TR/CSP3/#grammardef-hash-source)."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode('ascii')}"


def _lead(slides: Sequence[ReportSlide]) -> str:
    answered = sum(slide.prediction is not None for slide in slides)
    many = "1 slide" if len(slides) == 1 else f"{len(slides)} slides"
    return f"{many}, {answered} with an answer. An answer covers only the regions that were read, not tissue outside them."


def _table(slides: Sequence[ReportSlide], places: Sequence[str]) -> Markup:
    """The table of slides, with buttons to sort by and fields to filter by, for where scripts run."""
    labelled, patients = any(slide.label for slide in slides), any(slide.patient_id for slide in slides)
    of_interest = {chosen(slide.prediction)[0] for slide in slides if slide.prediction is not None and slide.prediction.positive}
    likely = f"Probability of {of_interest.pop()}" if len(of_interest) == 1 else "Probability of the class of interest"
    heads = [("Slide", True), ("Patient", patients), ("True label", labelled), ("Status", True), ("Answer", True), (likely, True)]
    heads += [("Tissue covered", True), ("Regions", True)]
    head = tag(
        "tr", *(tag("th", tag("button", text, type="button", disabled=True), scope="col", aria_sort="none") for text, used in heads if used)
    )
    rows = [
        _row(slide, place, patients=patients, labelled=labelled, named=len(of_interest) > 0)
        for slide, place in zip(slides, places, strict=True)
    ]
    answers = sorted({_answer(slide) for slide in slides} - {""})
    options = [tag("option", "Any answer", value=""), *(tag("option", answer, value=answer) for answer in answers)]
    options.append(tag("option", "No answer", value="none"))
    filters = tag(
        "div",
        tag(
            "span",
            tag("label", "Filter", for_="filter-text"),
            tag("input", type="search", id="filter-text", placeholder="slide, patient, answer"),
        ),
        tag("span", tag("label", "Answer", for_="filter-answer"), tag("select", *options, id="filter-answer")),
        tag("span", "", id="filter-count", role="status"),
        class_="filters controls",
        hidden=True,
    )
    table = tag("table", tag("caption", "Slides"), tag("thead", head), tag("tbody", *rows), id="cohort")
    return joined(filters, tag("section", table, class_="scroll", tabindex="0", aria_label="Table of slides"))


def _row(slide: ReportSlide, place: str, *, patients: bool, labelled: bool, named: bool) -> Markup:
    prediction, answer = slide.prediction, _answer(slide)
    of, probability = (None, None) if prediction is None else chosen(prediction)
    shown = "" if probability is None else f"{probability:.3f}" if not named else f"{probability:.3f} {of}"
    status = tag("span", STATUSES.get(slide.status, slide.status), class_=f"status {'ok' if slide.status == 'ok' else 'failed'}")
    why = tag("span", slide.error, class_="small why") if slide.error else None
    cells = [tag("th", tag("a", name(slide.slide_id), href=f"#{place}"), scope="row", data_value=slide.slide_id)]
    cells += [tag("td", name(slide.patient_id), data_value=slide.patient_id)] if patients else []
    cells += [tag("td", name(slide.label), data_value=slide.label)] if labelled else []
    cells += [
        tag("td", status, why, data_value=slide.status),
        tag("td", name(answer), data_value=answer),
        tag("td", shown, class_="number", data_value="" if probability is None else f"{probability:.9g}"),
        tag(
            "td",
            "" if prediction is None else per_cent(slide.tissue_covered),
            class_="number",
            data_value="" if slide.tissue_covered is None else f"{slide.tissue_covered:.9g}",
        ),
        tag("td", str(len(slide.regions)) if slide.regions else "", class_="number", data_value=len(slide.regions) or ""),
    ]
    return tag("tr", *cells, data_answer=answer or "none")


def _answer(slide: ReportSlide) -> str:
    """The answer in short: the predicted class, or the values of a regression."""
    prediction = slide.prediction
    if prediction is None:
        return ""
    return prediction.answer if prediction.label is None else prediction.label or "none of the classes"
