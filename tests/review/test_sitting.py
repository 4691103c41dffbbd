"""A reader at work: where they are led, what is in sight, how their time counts, and that nothing is seen before its stage."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streamview.errors import ReviewError
from streamview.review import Case, Design, Session, Vocabulary, create_session
from streamview.review.sitting import IDLE, Sitting

WORDS = Vocabulary(("normal", "lesion"))
NAMES = ["miller", "smith", "doe", "brown", "garcia"]
CASES = [
    Case(f"{name}.svs", f"/slides/{name}.svs", truth="lesion", answer=f"answer {name}", job="/jobs/j", slide_id=f"{name}.svs")
    for name in NAMES
]


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def make(folder: Path, design: Design = "staged", cases: list[Case] = CASES) -> Session:
    return create_session(folder / "s.sqlite", cases, ["a", "b"], design=design, vocabulary=WORDS, seed=3)


@pytest.fixture
def session(tmp_path: Path) -> Any:
    with make(tmp_path) as session:
        yield session


def test_a_staged_slide_takes_two_verdicts_and_one_reveal(session: Session) -> None:
    sitting = Sitting(session.reader("a"))
    for number in range(5):
        sheet = sitting.sheet()
        assert sheet.sight is not None
        assert (sheet.sight.title, sheet.sight.answer) == (f"slide {number + 1} of 5", None)
        assert (sheet.undone, sheet.confidence, sheet.revealing) == (5 - number, None, False)
        sitting.decide("normal", 4)
        assert sitting.sheet().revealing
        sitting.reveal()
        sheet = sitting.sheet()
        assert sheet.sight is not None
        assert sheet.sight.answer is not None
        assert sheet.sight.answer.startswith("answer ")
        assert (sheet.before, sheet.confidence, sheet.rows[number].answer) == ("normal", 4, sheet.sight.answer)
        sitting.decide("lesion", 4)
    sheet = sitting.sheet()
    assert (sheet.sight, sheet.message, sheet.undone) == (None, "All slides are read. Thank you.", 0)
    assert [row.verdict for row in sheet.rows] == ["lesion"] * 5


def test_a_verdict_can_be_corrected_until_the_answer_is_shown(session: Session) -> None:
    sitting = Sitting(session.reader("a"))
    sitting.decide("normal", 4)
    sitting.decide("lesion", 2)  # a correction: the slide stays
    assert sitting.undo()  # the correction is taken back
    reading = sitting.sheet().reading
    assert (reading.verdict, reading.confidence) == ("normal", 4)
    sitting.reveal()
    with pytest.raises(ReviewError, match="locked"):
        sitting.undo()
    sitting.decide("lesion", 3)
    assert sitting.sheet().sight.title == "slide 2 of 5"  # type: ignore[union-attr]
    assert sitting.undo()  # back at the slide whose final verdict it was
    sheet = sitting.sheet()
    assert sheet.sight is not None
    assert (sheet.sight.title, sheet.reading.verdict, sheet.before) == ("slide 1 of 5", None, "normal")


def test_a_note_can_be_written_before_and_after_the_verdict(session: Session) -> None:
    sitting = Sitting(session.reader("a"))
    sitting.remark("cells")
    assert sitting.sheet().reading.note == "cells"
    sitting.decide("normal", 4, "cells")
    sitting.remark("many cells")
    assert (sitting.sheet().reading.note, sitting.sheet().rows[0].noted) == ("many cells", True)
    step = sitting.step
    sitting.reveal()
    assert step is not None
    with pytest.raises(ReviewError, match="locked"):
        sitting.reader.remark(step, "late")
    with pytest.raises(ReviewError, match="2001 characters"):
        sitting.remark("x" * 2001)


def test_going_elsewhere_never_shows_the_answer(session: Session) -> None:
    sitting = Sitting(session.reader("a"))
    sitting.decide("normal", 4)
    sitting.move(1)
    sitting.move(-1)
    sheet = sitting.sheet()
    assert (sheet.sight.answer, sheet.reading.verdict, sheet.revealing) == (None, "normal", True)  # type: ignore[union-attr]
    sitting.open(3)
    sitting.next_undone()
    sitting.next_undone()
    sheet = sitting.sheet()  # the slide with a verdict of one's own is still undone, and still blind
    assert (sheet.rows[0].current, sheet.sight.answer, sheet.revealing) == (True, None, True)  # type: ignore[union-attr]
    upcoming = sitting.upcoming()
    assert upcoming is not None
    assert (upcoming.title, upcoming.answer, upcoming.job) == ("slide 2 of 5", None, None)


def test_it_begins_where_it_was_left(session: Session) -> None:
    sitting = Sitting(session.reader("a"))
    sitting.open(2)
    sitting.rest((1.0, 2.0, 30.0, 40.0))
    again = Sitting(session.reader("a")).sheet()  # as after a crash: nothing was closed
    assert again.sight is not None
    assert (again.sight.title, again.reading.view) == ("slide 3 of 5", (1.0, 2.0, 30.0, 40.0))
    sitting.decide("normal", 1)
    assert Sitting(session.reader("a")).sheet().revealing
    sitting.reveal()
    assert Sitting(session.reader("a")).sheet().sight.answer is not None  # type: ignore[union-attr]
    sitting.decide("normal", 1)
    assert Sitting(session.reader("a")).sheet().sight.title == "slide 4 of 5"  # type: ignore[union-attr]
    assert Sitting(session.reader("b")).sheet().sight.title == "slide 1 of 5"  # type: ignore[union-attr]


def test_time_counts_without_pauses(session: Session) -> None:
    clock = Clock()
    sitting = Sitting(session.reader("a"), clock)
    step = sitting.step
    assert step is not None
    clock.now += 20
    sitting.act()
    clock.now += 3600  # lunch
    sitting.act()
    sitting.rest(None)
    assert session.reader("a").readings()[step].seconds == 20 + IDLE
    clock.now -= 500  # no clock that only grows does so, and nothing may come of it
    sitting.act()
    clock.now += 5
    sitting.decide("normal", 1)
    assert session.reader("a").readings()[step].seconds == 20 + IDLE + 5
    clock.now += 7
    sitting.move(1)
    assert session.reader("a").readings()[step].seconds == 20 + IDLE + 5 + 7
    other = sitting.step
    assert other is not None
    clock.now += 9
    sitting.close()
    assert session.reader("a").readings()[other].seconds == 9
    assert sitting.step is None
    with pytest.raises(ReviewError, match="no slide"):
        sitting.decide("normal", 1)


def test_a_crossover_says_why_nothing_may_be_read(tmp_path: Path) -> None:
    with create_session(tmp_path / "s.sqlite", CASES, ["a"], design="crossover", vocabulary=WORDS, washout_days=14) as session:
        sitting = Sitting(session.reader("a"))
        for _ in CASES:
            sheet = sitting.sheet()
            assert sheet.sight is not None
            assert (sheet.sight.answer is None) == (sitting.step.modality == "unaided")  # type: ignore[union-attr]
            sitting.decide("normal", 3)
        sheet = sitting.sheet()
        assert sheet.sight is None
        assert "washout" in sheet.message
        assert (len(sheet.rows), sheet.undone) == (5, 0)
        assert Sitting(session.reader("a")).sheet().sight is None


ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("decide"), st.sampled_from(WORDS.verdicts), st.integers(1, 5)),
        st.tuples(st.sampled_from(["reveal", "undo", "next_undone"])),
        st.tuples(st.just("move"), st.sampled_from([-1, 1])),
        st.tuples(st.just("open"), st.integers(0, 2)),
        st.tuples(st.just("reopen")),
    ),
    max_size=30,
)


@pytest.mark.parametrize("design", ["staged", "concurrent", "crossover"])
@given(actions=ACTIONS)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_nothing_is_seen_before_its_stage(tmp_path_factory: pytest.TempPathFactory, design: Design, actions: list[Any]) -> None:
    """Whatever a reader does: an answer is in the sheet only for cases whose own verdict was given and locked, or that are read aided."""
    with make(tmp_path_factory.mktemp("s"), design, CASES[:3]) as session:
        reader = session.reader("a")
        sitting = Sitting(reader)
        for name, *arguments in actions:
            refusal = ""
            if name == "reopen":
                sitting = Sitting(reader)
            else:
                try:
                    getattr(sitting, name)(*arguments)
                except ReviewError as error:
                    refusal = str(error)
            sheet = sitting.sheet()
            shown = refusal + str({**asdict(sheet), "sight": None if sheet.sight is None else (sheet.sight.title, sheet.sight.answer)})
            upcoming = sitting.upcoming()
            if upcoming is not None:
                shown += str(upcoming.answer)
            readings = reader.readings()
            for case in session.cases.values():
                opened = any(reading.opened for step, reading in readings.items() if step.case == case.id and step.modality == "aided")
                own = any(reading.done for step, reading in readings.items() if step.case == case.id and step.modality == "unaided")
                assert case.name not in shown
                next_aided = design != "staged" and upcoming is not None and upcoming.answer == case.answer
                if case.answer in shown:
                    assert next_aided or (opened and (own or design != "staged"))
