"""A session: who reads which cases in which order, what each may see at which moment, and what they decided."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from streamview.errors import ReviewError
from streamview.review.design import Design, Step, worklist
from streamview.review.store import Event, Store, new_event
from streamview.review.vocabulary import Vocabulary

__all__ = ["Case", "Reader", "Reading", "Session", "Sight", "create_session", "fold"]

_FORMAT = 1
_NOTE = 2000  # characters
_POINTS = 20_000  # of the regions of one step


@dataclass(frozen=True, slots=True)
class Case:
    """A slide of a session.

    Parameters
    ----------
    name
        Of the slide; hidden from readers.
    source
        Path of the slide.
    mpp
        Um per level-0 pixel, where the slide does not state it.
    truth
        The true class; empty if unknown.
    answer, answered
        The network's answer in words, and the class that it names; empty if there is none.
    job, slide_id
        The job that holds the answer and its maps, and the slide's id there; empty if there is none.
    network
        What the answer is of: name and hash of the weights.
    id
        Given by `create_session`, without any relation to names and their order, such as "C007".
    """

    name: str
    source: str
    mpp: float | None = None
    truth: str = ""
    answer: str = ""
    answered: str = ""
    job: str = ""
    slide_id: str = ""
    network: str = ""
    id: str = ""


@dataclass(frozen=True, slots=True)
class Reading:
    """What a reader has done in one step, as its events say.

    Parameters
    ----------
    opened
        Whether it was ever in sight; in an aided step: whether the network's answer was.
    verdict, confidence, note
        The last that was not undone; None and empty before.
    decided_at
        When the verdict was given.
    seconds
        Of attention, without pauses.
    view
        ``[x, y, width, height]`` in level-0 px that was last in sight.
    regions
        GeoJSON features that were drawn.
    hotspots
        What the reader said of the network's hotspots, by their number: whether they are right.
    """

    opened: bool = False
    verdict: str | None = None
    confidence: int | None = None
    note: str = ""
    decided_at: str = ""
    seconds: float = 0.0
    view: tuple[float, ...] | None = None
    regions: tuple[Mapping[str, Any], ...] = ()
    hotspots: Mapping[int, bool] = field(default_factory=dict)

    @property
    def done(self) -> bool:
        """Whether there is a verdict."""
        return self.verdict is not None


@dataclass(frozen=True, slots=True)
class Sight:
    """What a reader may see in a step; what is None must not appear in any output.

    Parameters
    ----------
    title
        What stands for the case in titles, layers, files and logs: "slide 7 of 20".
    source, mpp
        Where the pixels come from; for the reader of files alone, never shown.
    answer
        The network's answer; None before its stage.
    job, slide_id
        Where its maps are; None before its stage.
    """

    title: str
    source: str
    mpp: float | None
    answer: str | None = None
    job: str | None = None
    slide_id: str | None = None


def create_session(
    path: str | os.PathLike[str],
    cases: Sequence[Case],
    readers: Sequence[str],
    *,
    design: Design = "staged",
    seed: int = 0,
    vocabulary: Vocabulary,
    washout_days: float = 0,
) -> Session:
    """Make a session and open it.

    Parameters
    ----------
    path
        Of the file; must not exist.
    cases
        The slides, each once.
    readers
        Their names, which are pseudonyms where the readers shall not be known.
    design
        "staged", "concurrent", "crossover" or "unaided", which needs no answers; see `streamview.review.design.worklist`.
    seed
        Decides every order.
    vocabulary
        The verdicts.
    washout_days
        Of a crossover: days between a reader's first period and the second.

    Raises
    ------
    ReviewError
        When there are no cases or readers, two are alike, a case lacks the network's answer, or the file exists.
    """
    readers = [reader.strip() for reader in readers]
    if not cases or not readers:
        raise ReviewError(f"{len(cases)} cases and {len(readers)} readers: expected one of each or more")
    if len(set(readers)) != len(readers) or not all(reader and reader.isprintable() and "," not in reader for reader in readers):
        raise ReviewError(f"the readers {', '.join(readers)}: expected different names without commas")
    twice = {(case.source, case.slide_id) for case in cases}
    if len(twice) != len(cases):
        raise ReviewError("a slide is there twice: expected each once")
    without = [case.name for case in cases if not case.answer]
    if without and design != "unaided":
        raise ReviewError(
            f"{without[0]} has no answer of a network, which the design {design} shows: compute the answers first, with"
            " `streamview saliency -i SLIDES -o JOB`, and make the session of the job"
        )
    if washout_days < 0 or (washout_days and design != "crossover"):
        raise ReviewError(f"a washout of {washout_days:g} days: expected 0 or more, and a crossover")
    order = worklist("concurrent", [f"{case.source}\n{case.slide_id}" for case in cases], 0, 1, seed)
    numbers = {step.case: number for number, step in enumerate(order, 1)}
    digits = max(3, len(str(len(cases))))
    numbered = [replace(case, id=f"C{numbers[f'{case.source}{chr(10)}{case.slide_id}']:0{digits}d}") for case in cases]
    for reader in range(len(readers)):
        worklist(design, [case.id for case in numbered], reader, len(readers), seed)  # refuses what cannot be read
    settings = {
        "format": _FORMAT,
        "id": uuid.uuid4().hex,
        "design": design,
        "seed": seed,
        "washout_days": washout_days,
        "readers": readers,
        "vocabulary": vocabulary.to_dict(),
        "cases": [asdict(case) for case in sorted(numbered, key=lambda case: case.id)],
    }
    Store.create(path, settings).close()
    return Session(path)


class Session:
    """An open session; a context manager, of one thread.

    Parameters
    ----------
    path
        Of its file.

    Raises
    ------
    ReviewError
        As `streamview.review.store.Store`.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.store = Store(path)
        settings = self.store.settings
        self.path = Path(path)
        self.id: str = settings["id"]
        self.design: Design = settings["design"]
        self.seed: int = settings["seed"]
        self.washout = timedelta(days=settings["washout_days"])
        self.readers: tuple[str, ...] = tuple(settings["readers"])
        self.vocabulary = Vocabulary.from_dict(settings["vocabulary"])
        self.cases: dict[str, Case] = {values["id"]: Case(**values) for values in settings["cases"]}

    def reader(self, name: str) -> Reader:
        """Return what one reader has to do and has done.

        Raises
        ------
        ReviewError
            When the session has no such reader.
        """
        if name not in self.readers:
            raise ReviewError(f"{self.path.name}: has no reader {name}, only {', '.join(self.readers)}")
        return Reader(self, name)

    def close(self) -> None:
        """Release the file."""
        self.store.close()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Reader:
    """One reader's part of a session. What it says is read from the file each time, so that several windows agree.

    Parameters
    ----------
    session
        The session.
    name
        One of its readers.
    """

    def __init__(self, session: Session, name: str) -> None:
        self.session, self.name = session, name
        number = session.readers.index(name)
        self.steps = worklist(session.design, list(session.cases), number, len(session.readers), session.seed)
        """In the order in which they are read."""
        self._places = {case: place for place, case in enumerate(dict.fromkeys(step.case for step in self.steps), 1)}

    def readings(self) -> dict[Step, Reading]:
        """What was done, by step, those not begun too."""
        return fold(self.session.store.events(self.name), self.steps)

    def current(self, after: Step | None = None) -> Step | None:
        """The first step without a verdict that may be read now, beginning behind `after`; None when there is none."""
        readings = self.readings()
        start = 0 if after is None else self.steps.index(after) + 1
        order = self.steps[start:] + self.steps[:start]
        return next((step for step in order if not readings[step].done and self.barred(step, readings) is None), None)

    def sight(self, step: Step, readings: Mapping[Step, Reading] | None = None) -> Sight:
        """What may be seen in a step: the network's answer only if it is aided and, in a staged design, the verdict before is given."""
        case = self.session.cases[step.case]
        blind = Sight(f"slide {self._places[step.case]} of {len(self._places)}", case.source, case.mpp)
        if step.modality == "unaided" or self.barred(step, readings or self.readings()) is not None:
            return blind
        return replace(blind, answer=case.answer, job=case.job or None, slide_id=case.slide_id or None)

    def open(self, step: Step) -> Sight:
        """Begin or go on with a step. In a staged design, to open the aided step locks the verdict before it.

        Raises
        ------
        ReviewError
            When it may not be read yet: its unaided verdict is missing, or the washout is not over.
        """
        with self.session.store.writing():
            reason = self.barred(step, self.readings())
            if reason is not None:
                raise ReviewError(reason)
            self._insert(step, "opened")
        return self.sight(step)

    def last_opened(self) -> Step | None:
        """The step that was opened last; None before the first."""
        return next((_step(event) for event in reversed(self.session.store.events(self.name)) if event.kind == "opened"), None)

    def barred(self, step: Step, readings: Mapping[Step, Reading]) -> str | None:
        """Say why a step may not be read yet; None if it may. `readings` as `readings` returns them."""
        if step not in readings:
            return f"{self.name} does not read {step.case} {step.modality}"
        if self.session.design == "staged" and step.modality == "aided" and not readings[replace(step, modality="unaided")].done:
            return "the network's answer is shown after your own verdict"
        if step.period == 2:
            first = [reading for other, reading in readings.items() if other.period == 1]
            if not all(reading.done for reading in first):
                return "the second period begins when all slides of the first are read"
            until = max(datetime.fromisoformat(reading.decided_at) for reading in first) + self.session.washout
            if datetime.now(UTC) < until:
                return f"the second period begins on {until:%Y-%m-%d}: {self.session.washout.days} days of washout after the first"
        return None

    def locked(self, step: Step, readings: Mapping[Step, Reading]) -> str | None:
        """Say why a verdict can no longer be changed; None if it can."""
        if self.session.design != "staged" or step.modality == "aided":
            return None
        return "this verdict is locked: the network's answer has been seen" if readings[replace(step, modality="aided")].opened else None

    def decide(self, step: Step, verdict: str, confidence: int | None = None, *, note: str = "", seconds: float = 0.0) -> None:
        """Store a verdict; when this returns it is on the disk.

        Parameters
        ----------
        step
            An opened one.
        verdict, confidence
            As the vocabulary has them.
        note
            In the reader's words.
        seconds
            Of attention since the last event of this step.

        Raises
        ------
        ReviewError
            When the vocabulary has no such verdict, the step may not be read, or its verdict is locked. Nothing is then stored.
        """
        self.session.vocabulary.check(verdict, confidence)
        self._check_note(note)
        with self.session.store.writing():
            readings = self.readings()
            reason = self.barred(step, readings) or self.locked(step, readings)
            if reason is not None:
                raise ReviewError(reason)
            self._insert(step, "verdict", verdict=verdict, confidence=confidence, note=note, seconds=max(0.0, float(seconds)))

    def undo(self) -> Step | None:
        """Take back this reader's last verdict, if it is not locked; return its step, or None when there is nothing to undo.

        Raises
        ------
        ReviewError
            When the last verdict is locked, because the network's answer has been seen since.
        """
        with self.session.store.writing():
            events = self.session.store.events(self.name)
            gone = {str((event.values or {}).get("of")) for event in events if event.kind == "undo"}
            last = next((event for event in reversed(events) if event.kind == "verdict" and event.id not in gone), None)
            if last is None:
                return None
            step = _step(last)
            reason = self.locked(step, fold(events, self.steps))
            if reason is not None:
                raise ReviewError(reason)
            self._insert(step, "undo", of=last.id)
        return step

    def rest(self, step: Step, seconds: float, view: Sequence[float] | None = None) -> None:
        """Store the time spent with a step, and what was in sight, for when it is opened again."""
        self._store(step, "rest", seconds=max(0.0, float(seconds)), view=None if view is None else [float(number) for number in view])

    def remark(self, step: Step, note: str) -> None:
        """Store the note of a step, in place of the one before.

        Raises
        ------
        ReviewError
            When it is too long, or the step may not be read or is locked.
        """
        self._check_note(note)
        with self.session.store.writing():
            readings = self.readings()
            reason = self.barred(step, readings) or self.locked(step, readings)
            if reason is not None:
                raise ReviewError(reason)
            self._insert(step, "note", note=note)

    def draw(self, step: Step, regions: Iterable[Mapping[str, Any]]) -> None:
        """Store the regions of a step, all of them, as GeoJSON features in level-0 px.

        Raises
        ------
        ReviewError
            When they have more than 20,000 points.
        """
        features = [dict(region) for region in regions]
        points = sum(len(ring) for feature in features for ring in feature.get("geometry", {}).get("coordinates", ()))
        if points > _POINTS:
            raise ReviewError(f"regions of {points} points: expected {_POINTS} at most; simplify them")
        self._store(step, "regions", features=features)

    def judge(self, step: Step, hotspot: int, right: bool) -> None:
        """Store whether a hotspot of the network is right, by its number in the list of the usual display, from 1."""
        if self.sight(step).answer is None:
            raise ReviewError("hotspots are judged when they have been shown")
        self._store(step, "hotspot", hotspot=int(hotspot), right=bool(right))

    def _check_note(self, note: str) -> None:
        if len(note) > _NOTE:
            raise ReviewError(f"a note of {len(note)} characters: expected {_NOTE} at most")

    def _store(self, step: Step, kind: str, **values: Any) -> None:
        if step not in self.steps:
            raise ReviewError(f"{self.name} does not read {step.case} {step.modality}")
        self.session.store.add(new_event(self.name, kind, step.case, step.period, step.modality, **values))

    def _insert(self, step: Step, kind: str, **values: Any) -> None:
        """Add an event within the transaction that is open."""
        self.session.store.insert(new_event(self.name, kind, step.case, step.period, step.modality, **values))


def fold(events: Iterable[Event], steps: Sequence[Step]) -> dict[Step, Reading]:
    """Return what one reader's events come to, by step. Pure.

    Parameters
    ----------
    events
        Of one reader, in order.
    steps
        The reader's.
    """
    events = list(events)
    gone = {str((event.values or {}).get("of")) for event in events if event.kind == "undo"}
    readings = {step: Reading() for step in steps}
    for event in events:
        step, values = _step(event), event.values or {}
        if step not in readings:
            continue
        reading = readings[step]
        reading = replace(reading, seconds=reading.seconds + float(values.get("seconds", 0.0)))
        if event.kind == "opened":
            reading = replace(reading, opened=True)
        elif event.kind == "verdict" and event.id not in gone:
            confidence = values["confidence"]
            reading = replace(reading, verdict=values["verdict"], confidence=confidence, note=values["note"], decided_at=event.at)
        elif event.kind == "note":
            reading = replace(reading, note=values["note"])
        elif event.kind == "rest" and values["view"] is not None:
            reading = replace(reading, view=tuple(values["view"]))
        elif event.kind == "regions":
            reading = replace(reading, regions=tuple(values["features"]))
        elif event.kind == "hotspot":
            reading = replace(reading, hotspots={**reading.hotspots, values["hotspot"]: values["right"]})
        readings[step] = reading
    return readings


def _step(event: Event) -> Step:
    return Step(event.case, event.modality, event.period)  # type: ignore[arg-type]  # a modality that is unknown is no step of anyone
