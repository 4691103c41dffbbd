"""Who reads what in which order, what may be seen when, and what is locked."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import streamview.review.session as sessions
from streamview.errors import StreamviewError
from streamview.review import Case, Session, Step, Vocabulary, create_session
from streamview.review.design import worklist

WORDS = Vocabulary(("normal", "lesion"))
NAMES = [f"patient-{name}.svs" for name in ("miller", "smith", "doe", "brown", "garcia")]
CASES = [Case(name, f"/slides/{name}", truth="lesion", answer="lesion (p = 0.98)", job="/jobs/j", slide_id=name) for name in NAMES]


@pytest.fixture
def session(tmp_path: Path) -> Any:
    with create_session(tmp_path / "s.sqlite", CASES, ["a", "b"], vocabulary=WORDS, seed=3) as session:
        yield session


@given(
    design=st.sampled_from(["staged", "concurrent", "crossover"]),
    cases=st.lists(st.text("abcdef", min_size=1), min_size=2, max_size=20, unique=True),
    readers=st.integers(1, 6),
    seed=st.integers(0, 2**40),
)
@settings(max_examples=150, deadline=None)
def test_worklists(design: Any, cases: list[str], readers: int, seed: int) -> None:
    lists = [worklist(design, cases, reader, readers, seed) for reader in range(readers)]
    for steps in lists:
        assert len(set(steps)) == len(steps)
        seen = Counter((step.case, step.modality) for step in steps)
        modalities = ["aided"] if design == "concurrent" else ["unaided", "aided"]
        assert seen == Counter((case, modality) for case in cases for modality in modalities)
        if design == "staged":
            assert all(
                first.case == second.case and first.modality == "unaided" for first, second in zip(steps[::2], steps[1::2], strict=True)
            )
        if design == "crossover":
            assert [step.period for step in steps] == [1] * len(cases) + [2] * len(cases)
            aided = sum(step.modality == "aided" for step in steps[: len(cases)])
            assert aided in (len(cases) // 2, len(cases) - len(cases) // 2)
            for step in steps[: len(cases)]:
                assert Step(step.case, "unaided" if step.modality == "aided" else "aided", 2) in steps
    assert lists == [worklist(design, cases[::-1], reader, readers, seed) for reader in range(readers)]  # the order given means nothing
    if design == "crossover" and readers > 1:
        first, second = ({step.case for step in steps if step.period == 1 and step.modality == "aided"} for steps in lists[:2])
        assert first.isdisjoint(second)
        assert first | second == set(cases)


def test_ids_say_nothing_of_names(tmp_path: Path) -> None:
    orders = set()
    for seed in range(6):
        with create_session(tmp_path / f"{seed}.sqlite", CASES, ["a"], vocabulary=WORDS, seed=seed) as session:
            orders.add(tuple(case.name for case in session.cases.values()))
            assert sorted(session.cases) == ["C001", "C002", "C003", "C004", "C005"]
    assert len(orders) > 3


def test_a_staged_reading_from_first_sight_to_the_end(session: Session) -> None:
    reader = session.reader("a")
    for _ in CASES:
        step = reader.current()
        assert step is not None
        assert step.modality == "unaided"
        blind = reader.open(step)
        assert (blind.answer, blind.job, blind.slide_id) == (None, None, None)
        aided = replace(step, modality="aided")
        with pytest.raises(StreamviewError, match="after your own verdict"):
            reader.open(aided)
        with pytest.raises(StreamviewError, match="after your own verdict"):
            reader.decide(aided, "lesion", 3)
        assert reader.sight(aided).answer is None
        reader.decide(step, "normal", 2, note="faint", seconds=12.5)
        reader.decide(step, "lesion", 4, seconds=2)  # thought better of, before the answer was seen
        assert reader.current(step) == aided
        shown = reader.open(aided)
        assert shown.answer == "lesion (p = 0.98)"
        with pytest.raises(StreamviewError, match="locked"):
            reader.decide(step, "normal", 1)
        reader.decide(aided, "lesion", 5, seconds=4)
        first, second = (reader.readings()[each] for each in (step, aided))
        assert (first.verdict, first.confidence, first.note, first.seconds) == ("lesion", 4, "", 14.5)
        assert (second.verdict, second.confidence, second.seconds) == ("lesion", 5, 4)
    assert reader.current() is None
    assert session.reader("b").current() is not None  # the other's is their own


def test_undo_is_an_event_and_stops_at_what_is_locked(session: Session) -> None:
    reader = session.reader("a")
    assert reader.undo() is None
    step = reader.current()
    assert step is not None
    reader.open(step)
    reader.decide(step, "normal", 2)
    assert reader.undo() == step
    assert not reader.readings()[step].done
    assert [event.kind for event in session.store.events()] == ["opened", "verdict", "undo"]
    reader.decide(step, "lesion", 3)
    aided = replace(step, modality="aided")
    reader.open(aided)
    with pytest.raises(StreamviewError, match="locked"):
        reader.undo()
    reader.decide(aided, "normal", 3)
    assert reader.undo() == aided
    assert reader.readings()[step].verdict == "lesion"
    assert session.reader("b").undo() is None


def test_it_goes_on_where_it_was(session: Session) -> None:
    reader = session.reader("a")
    step = reader.current()
    assert step is not None
    reader.open(step)
    reader.rest(step, 30.0, [10, 20, 300, 200])
    reader.draw(step, [{"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [[[0, 0], [9, 0], [9, 9], [0, 0]]]}}])
    with Session(session.path) as again:
        other = again.reader("a")
        assert other.current() == step
        reading = other.readings()[step]
        assert reading.view == (10, 20, 300, 200)
        assert reading.seconds == 30
        assert len(reading.regions) == 1
        other.decide(step, "normal", 1)
    assert reader.readings()[step].verdict == "normal"  # this window sees what the other stored


def test_a_crossover_has_its_washout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with create_session(tmp_path / "c.sqlite", CASES, ["a", "b"], design="crossover", washout_days=28, vocabulary=WORDS) as session:
        reader = session.reader("a")
        second = next(step for step in reader.steps if step.period == 2)
        with pytest.raises(StreamviewError, match="when all slides of the first are read"):
            reader.open(second)
        while (step := reader.current()) is not None:
            sight = reader.open(step)
            assert (sight.answer is None) == (step.modality == "unaided")
            reader.decide(step, "lesion", 3)
            assert step.period == 1
        with pytest.raises(StreamviewError, match="28 days of washout"):
            reader.open(second)
        assert reader.sight(second).answer is None

        class Later(datetime):
            @classmethod
            def now(cls, tz: Any = None) -> datetime:
                return datetime.now(UTC) + timedelta(days=29)

        monkeypatch.setattr(sessions, "datetime", Later)
        assert reader.current() == second
        reader.open(second)


def test_a_reader_may_judge_hotspots_once_they_are_shown(session: Session) -> None:
    reader = session.reader("a")
    step = reader.current()
    assert step is not None
    aided = replace(step, modality="aided")
    with pytest.raises(StreamviewError, match="shown"):
        reader.judge(aided, 1, True)
    reader.decide(step, "normal", 1)
    reader.open(aided)
    reader.judge(aided, 1, False)
    reader.judge(aided, 2, True)
    assert reader.readings()[aided].hotspots == {1: False, 2: True}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"cases": []}, "0 cases"),
        ({"readers": []}, "0 readers"),
        ({"readers": ["a", "a "]}, "different names"),
        ({"readers": ["a,b"]}, "without commas"),
        ({"cases": [CASES[0], CASES[0]]}, "twice"),
        ({"cases": [replace(CASES[0], answer="")]}, "compute the answers first"),
        ({"design": "best"}, "expected one of staged, concurrent, crossover"),
        ({"design": "crossover", "cases": CASES[:1]}, "two cases"),
        ({"washout_days": 3}, "a crossover"),
    ],
)
def test_what_makes_no_session(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    given: dict[str, Any] = {"cases": CASES, "readers": ["a"], "vocabulary": WORDS} | changes
    with pytest.raises(StreamviewError, match=said):
        create_session(tmp_path / "s.sqlite", given.pop("cases"), given.pop("readers"), **given)
    assert list(tmp_path.iterdir()) == []


def test_verdicts_are_checked_before_they_are_stored(session: Session) -> None:
    reader = session.reader("a")
    step = reader.current()
    assert step is not None
    for verdict, confidence, said in (("other", 1, "expected one of normal, lesion"), ("normal", None, "1 to 5"), ("normal", 6, "1 to 5")):
        with pytest.raises(StreamviewError, match=said):
            reader.decide(step, verdict, confidence)
    with pytest.raises(StreamviewError, match="2000"):
        reader.decide(step, "normal", 1, note="x" * 2001)
    with pytest.raises(StreamviewError, match="does not read"):
        reader.decide(Step("C999", "unaided"), "normal", 1)
    with pytest.raises(StreamviewError, match="no reader c, only a, b"):
        session.reader("c")
    assert session.store.events() == []


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"verdicts": []}, "0 verdicts"),
        ({"verdicts": ["a"] * 2}, "different"),
        ({"verdicts": [f"v{n}" for n in range(10)]}, "10 verdicts"),
        ({"verdicts": "ab"}, "a vocabulary"),
        ({"verdicts": ["a\nb"]}, "on one line"),
        ({"verdicts": ["a"], "confidence": 1}, "2 to 10"),
        ({"verdicts": ["a"], "ordinal": 1}, "true or false"),
        ({"words": ["a"]}, "a vocabulary"),
    ],
)
def test_vocabularies(values: dict[str, Any], said: str) -> None:
    with pytest.raises(StreamviewError, match=said):
        Vocabulary.from_dict(values)
    assert Vocabulary.from_dict(WORDS.to_dict()) == WORDS
