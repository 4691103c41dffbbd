"""The statistics as a page and as a flat table: every number of the JSON is in both, and nothing that a page must not have."""

from __future__ import annotations

import csv
import io
import json
import re
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, ClassVar

import pytest

from streamview.review import Case, Vocabulary, create_session
from streamview.review.report import Figure, figures, statistics_page, statistics_table
from streamview.review.sitting import Sitting
from streamview.review.summary import summarise


@pytest.fixture(scope="module")
def summary(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Of three readers, one of whom has a name that would be markup."""
    cases = [Case(f"patient{n}.svs", f"/s/{n}", truth="ab"[n % 2], answer="b (p = 1)", answered="ab"[(n // 3) % 2]) for n in range(24)]
    path = tmp_path_factory.mktemp("s") / "s.sqlite"
    with create_session(path, cases, ["<b>&", "x", "y"], vocabulary=Vocabulary(("a", "b"))) as session:
        for number, name in enumerate(session.readers):
            sitting = Sitting(session.reader(name))
            place = 0
            while sitting.sheet().sight is not None:
                case = session.cases[sitting.step.case]  # type: ignore[union-attr]
                own = case.truth if (place * 7 + number) % 5 else "ab"["ba".index(case.truth)]
                sitting.decide(own, 1 + (place + number) % 5)
                sitting.reveal()
                sitting.decide(case.answered if (place + number) % 3 == 0 else own, 1 + (place * 3) % 5)
                place += 1
        return summarise(session, ["b"])


def numbers(value: Any) -> list[float]:
    """All floats of the JSON that are figures: values and ends of intervals."""
    if isinstance(value, dict):
        return [
            number for key, each in value.items() for number in (numbers(each) if isinstance(each, dict | list) else _figure(key, each))
        ]
    return [number for each in value for number in numbers(each)] if isinstance(value, list) else []


def _figure(key: str, value: Any) -> list[float]:
    return (
        [value]
        if key in {"value", "low", "high", "p", "helped", "harmed", "median"}
        and isinstance(value, int | float)
        and not isinstance(value, bool)
        else []
    )


def test_every_figure_is_in_the_table(summary: dict[str, Any]) -> None:
    rows = list(csv.DictReader(io.StringIO(statistics_table(summary))))
    listed = {float(row[name]) for row in rows for name in ("value", "low", "high") if row[name]}
    analysed = {key: value for key, value in summary.items() if key != "comparison"}
    expected = numbers(analysed) + numbers({k: v for k, v in summary["comparison"].items() if k != "analysis"})
    assert len(expected) > 60
    assert set(expected) <= listed
    assert summary["comparison"]["analysis"]["p"] in listed
    assert {row["readers"] for row in rows} >= {"", "x", "y", "<b>&", "x, y"}


def test_the_page_shows_every_figure_and_escapes_names(summary: dict[str, Any]) -> None:
    page = statistics_page(summary, [], datetime(2026, 1, 2, tzinfo=UTC))

    class Cells(HTMLParser):
        cells: ClassVar[list[str]] = []

        def handle_data(self, data: str) -> None:
            self.cells.append(data)

    parser = Cells()
    parser.feed(page)
    shown = set(parser.cells)
    for figure in figures(summary):
        assert figure.measure in shown
        if isinstance(figure.value, float):
            assert f"{figure.value:.3f}" in shown
        if figure.low is not None:
            assert f"{figure.low:.3f} to {figure.high:.3f}" in shown
    assert "<b>&" in shown
    assert "<b>&" not in page
    assert "patient" not in page
    assert re.search(r"default-src 'none'.*script-src 'sha256-", page)
    assert "Research use only" in page
    assert page.count("<table") == page.count("</table>") == 5


def test_what_cannot_be_computed_says_why(tmp_path: Path) -> None:
    with create_session(tmp_path / "s.sqlite", [Case("n", "/s", answer="a")], ["r"], vocabulary=Vocabulary(("a", "b", "c"))) as session:
        Sitting(session.reader("r")).decide("a", 1)
        summary = summarise(session)
    assert json.loads(json.dumps(summary)) == summary
    why = [figure for figure in figures(summary) if figure.value is None]
    assert {figure.section for figure in why} >= {"agreement", "change", "accuracy", "comparison"}
    assert all(figure.note for figure in why)
    assert all(figure.note in statistics_page(summary, [], datetime.now(UTC)).replace("&#x27;", "'") for figure in why)
    assert isinstance(why[0], Figure)
