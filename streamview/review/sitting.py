"""A reader at work: at which slide they are, what is in their sight, and what they do. What every window of a session is a thin shell over.

::

    Sitting.move, decide, reveal, undo, ... ──> Reader ──> events
    Sitting.sheet ──> what the window shows
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from streamview.errors import ReviewError
from streamview.review.design import Step
from streamview.review.session import Reader, Reading, Sight
from streamview.review.vocabulary import Vocabulary

__all__ = ["GRACE", "IDLE", "Row", "Sheet", "Sitting"]

IDLE = 60.0
"""Seconds without any action after which the rest of the time until the next one is a pause."""
GRACE = 2.0
"""Seconds that a window waits between a reader's own verdict and `Sitting.reveal`, in which the verdict can be taken back."""


@dataclass(frozen=True, slots=True)
class Row:
    """A slide in the list of all.

    Parameters
    ----------
    title
        Such as "slide 7 of 20".
    verdict
        The reader's last of it; empty before.
    noted
        Whether there is a note.
    done
        Whether nothing is left to do for it in this period.
    answer
        The network's answer; empty where it must not be seen.
    current
        Whether it is the one in sight.
    """

    title: str
    verdict: str
    noted: bool
    done: bool
    answer: str
    current: bool


@dataclass(frozen=True, slots=True)
class Sheet:
    """All that a window shows beside the pixels.

    Parameters
    ----------
    sight
        Of the slide that is read; None when nothing may be read now.
    stage
        What the reader is to do, in a few words.
    message
        Why nothing may be read now, or why the verdict can no longer be changed; empty otherwise.
    reading
        What is stored of this step.
    confidence
        What goes with the next verdict unless another is chosen: in an aided step that of the verdict before; None if none was chosen.
    before
        The own verdict that an aided step follows; empty otherwise.
    revealing
        Whether the network's answer comes next: see `Sitting.reveal`.
    undone
        Slides with something left to do.
    rows
        All slides of this period, in their order.
    """

    sight: Sight | None
    stage: str
    message: str
    reading: Reading
    confidence: int | None
    before: str
    revealing: bool
    undone: int
    rows: tuple[Row, ...]


class Sitting:
    """What one reader does from opening the window until closing it; begins where they left off.

    Parameters
    ----------
    reader
        Of an open session.
    clock
        Seconds that only grow.
    """

    def __init__(self, reader: Reader, clock: Callable[[], float] = time.monotonic) -> None:
        self.reader = reader
        self._clock = clock
        self._acted = clock()
        self._seconds = 0.0
        self._steps: dict[tuple[str, int], list[Step]] = {}
        for step in reader.steps:
            self._steps.setdefault(_slide(step), []).append(step)
        self.step: Step | None = None
        """The step in sight; None when nothing may be read now."""
        self._go(self._left_off())

    @property
    def vocabulary(self) -> Vocabulary:
        """The verdicts of the session."""
        return self.reader.session.vocabulary

    def sheet(self) -> Sheet:
        """Return what is shown now."""
        readings = self.reader.readings()
        rows = tuple(self._row(slide, readings) for slide in self._slides(readings))
        undone = sum(not row.done for row in rows)
        if self.step is None:
            return Sheet(None, "", self._why_nothing(readings), Reading(), None, "", False, undone, rows)
        reading, own = readings[self.step], self._own(self.step, readings)
        confidence = reading.confidence if reading.confidence is not None else None if own is None else own.confidence
        return Sheet(
            self.reader.sight(self.step, readings),
            "Your own reading" if self.step.modality == "unaided" else "With the network's answer",
            self.reader.locked(self.step, readings) or "",
            reading,
            confidence,
            "" if own is None else own.verdict or "",
            self._follows(self.step, readings) is not None,
            undone,
            rows,
        )

    def act(self) -> None:
        """Note that the reader is there: moved the view, pressed a key. The time since the last action counts, at most `IDLE` seconds."""
        now = self._clock()
        self._seconds += min(max(now - self._acted, 0.0), IDLE)
        self._acted = now

    def decide(self, verdict: str, confidence: int | None = None, note: str = "") -> None:
        """Store a verdict and go on: to the next slide with something to do, unless the network's answer follows (see `reveal`).

        Parameters
        ----------
        verdict, confidence, note
            As `Reader.decide`.

        Raises
        ------
        ReviewError
            As `Reader.decide`; nothing is then stored, and the slide stays.
        """
        step = self._expect_step()
        self.act()
        changed = self.reader.readings()[step].done
        self.reader.decide(step, verdict, confidence, note=note, seconds=self._seconds)
        self._seconds = 0.0
        readings = self.reader.readings()
        if not changed and self._follows(step, readings) is None:
            self._go(self._next(readings))

    def reveal(self) -> None:
        """Lock the own verdict and show the network's answer, where it follows; windows call it `GRACE` seconds after the verdict.

        Raises
        ------
        ReviewError
            When it does not follow.
        """
        step = None if self.step is None else self._follows(self.step, self.reader.readings())
        if step is None:
            raise ReviewError("the network's answer is shown after your own verdict")
        self._leave()
        self._go(step)

    def undo(self) -> bool:
        """Take back the last verdict and return to its slide; False when there is none.

        Raises
        ------
        ReviewError
            When it is locked.
        """
        step = self.reader.undo()
        if step is None:
            return False
        if step != self.step:
            self._leave()
            self._go(step)
        return True

    def move(self, by: int) -> None:
        """Go to the next slide, or with -1 the one before; from the last to the first."""
        slides = self._slides(self.reader.readings())
        self.open(0 if self.step is None else (slides.index(_slide(self.step)) + by) % len(slides))

    def open(self, number: int) -> None:
        """Go to a slide by its number in `Sheet.rows`, from 0: to the step that was read last, or begins next."""
        readings = self.reader.readings()
        step = self._entry(self._slides(readings)[number], readings)
        if step is not None:
            self._leave()
            self._go(step)

    def next_undone(self) -> None:
        """Go to the next slide with something to do; where there is none, nothing is in sight."""
        self._leave()
        self._go(self._next(self.reader.readings()))

    def upcoming(self) -> Sight | None:
        """What `next_undone` would show, to have its pixels ready; without the network's answer where it was not seen yet."""
        readings = self.reader.readings()
        step = self._next(readings)
        return None if step is None or step == self.step else self.reader.sight(step, readings)

    def rest(self, view: Sequence[float] | None = None) -> None:
        """Store the time until now and what is in sight, ``(x, y, width, height)`` in level-0 px, so that nothing is lost by a crash."""
        if self.step is not None and (view is not None or self._seconds):
            self.reader.rest(self.step, self._seconds, view)
            self._seconds = 0.0

    def remark(self, note: str) -> None:
        """Store the note of this step, as `Reader.remark`."""
        self.act()
        self.reader.remark(self._expect_step(), note)

    def draw(self, regions: Iterable[Mapping[str, Any]]) -> None:
        """Store the regions of this step, as `Reader.draw`."""
        self.act()
        self.reader.draw(self._expect_step(), regions)

    def judge(self, hotspot: int, right: bool) -> None:
        """Store whether a hotspot is right, as `Reader.judge`."""
        self.act()
        self.reader.judge(self._expect_step(), hotspot, right)

    def close(self) -> None:
        """Store the time that was not stored yet; the session stays open."""
        self._leave()
        self.step = None

    def _go(self, step: Step | None) -> None:
        if step is not None:
            self.reader.open(step)
        self.step = step
        self._acted, self._seconds = self._clock(), 0.0

    def _leave(self) -> None:
        if self.step is not None:
            self.act()
            self.rest()

    def _expect_step(self) -> Step:
        if self.step is None:
            raise ReviewError("no slide is in sight: open one that is still to be read")
        return self.step

    def _left_off(self) -> Step | None:
        """The step that was opened last, if its slide has something to do; else the first that has."""
        readings = self.reader.readings()
        self.step = self.reader.last_opened()
        if self.step is None or self._done(_slide(self.step), readings):
            return self._next(readings)
        return self._entry(_slide(self.step), readings)

    def _next(self, readings: Mapping[Step, Reading]) -> Step | None:
        """The step that `_entry` has of the next slide with something to do, of any period; None where there is none that may be read."""
        slides = list(self._steps)
        start = 0 if self.step is None else slides.index(_slide(self.step)) + 1
        undone = (slide for slide in slides[start:] + slides[:start] if not self._done(slide, readings))
        return next((step for step in (self._entry(slide, readings) for slide in undone) if step is not None), None)

    def _slides(self, readings: Mapping[Step, Reading]) -> list[tuple[str, int]]:
        """Case and period of all slides of the period that is read now, in their order."""
        begun = [step.period for step, reading in readings.items() if reading.opened]
        period = self.step.period if self.step is not None else max(begun, default=1)
        return [slide for slide in self._steps if slide[1] == period]

    def _done(self, slide: tuple[str, int], readings: Mapping[Step, Reading]) -> bool:
        return all(readings[step].done for step in self._steps[slide])

    def _entry(self, slide: tuple[str, int], readings: Mapping[Step, Reading]) -> Step | None:
        """The step of a slide that is opened when one goes there: never one that would show the network's answer after an own verdict."""
        steps = self._steps[slide]
        step = next((step for step in reversed(steps) if readings[step].opened), steps[0])
        return step if self.reader.barred(step, readings) is None else None

    def _follows(self, step: Step, readings: Mapping[Step, Reading]) -> Step | None:
        """The aided step that may be opened next, of a staged design."""
        aided = replace(step, modality="aided")
        if step.modality == "aided" or aided not in readings or readings[aided].opened or not readings[step].done:
            return None
        return aided

    def _own(self, step: Step, readings: Mapping[Step, Reading]) -> Reading | None:
        """The reader's own verdict before an aided step of a staged design."""
        return readings.get(replace(step, modality="unaided")) if step.modality == "aided" else None

    def _row(self, slide: tuple[str, int], readings: Mapping[Step, Reading]) -> Row:
        steps = self._steps[slide]
        decided = [readings[step] for step in steps if readings[step].done]
        answers = [self.reader.sight(step, readings).answer for step in steps if readings[step].opened]
        return Row(
            self.reader.sight(steps[0], readings).title,
            decided[-1].verdict or "" if decided else "",
            any(readings[step].note for step in steps),
            self._done(slide, readings),
            next((answer for answer in answers if answer is not None), ""),
            self.step is not None and _slide(self.step) == slide,
        )

    def _why_nothing(self, readings: Mapping[Step, Reading]) -> str:
        waiting = next((step for step, reading in readings.items() if not reading.done), None)
        return "All slides are read. Thank you." if waiting is None else self.reader.barred(waiting, readings) or ""


def _slide(step: Step) -> tuple[str, int]:
    return step.case, step.period
