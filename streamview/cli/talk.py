"""What a run over many slides says while it goes on: for people at a terminal, for logs, and for workflow engines."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from streamview.cli.console import Bars, amount, complain, say, warn
from streamview.progress import Step

if TYPE_CHECKING:
    from streamview.cohort.forecast import CohortForecast
    from streamview.cohort.work import Ahead, Answer, Outcome
    from streamview.jobs import Run
    from streamview.slides import Slide

__all__ = ["JsonLines", "Talk", "Terse", "show_answer", "show_cost", "show_forecast"]

_STEP_EVERY = 1.0  # seconds between two steps told as JSON


def show_forecast(slide: Slide, ahead: Ahead) -> None:
    """Print the next slide and its forecast."""
    from streamview.streaming.run.timing import format_seconds

    scale = slide.mpp_source if slide.mpp is None else f"{slide.mpp[1]:.4g} um/px, {slide.mpp_source}"
    say(f"\n{slide.name}: {slide.shape[1]} x {slide.shape[0]} px ({scale})")
    if ahead.regions + ahead.answered > 1:
        before = f", {ahead.answered} answered before" if ahead.answered else ""
        time = "" if ahead.seconds is None else f": about {format_seconds(ahead.seconds)}"
        say(f"{ahead.regions + ahead.answered} regions{before}{time}")
    say(f"forecast{' of the first' if ahead.regions > 1 else ''}: {ahead.first}")
    if ahead.first.disk_free is not None and ahead.first.disk_bytes * ahead.regions > ahead.first.disk_free:
        warn("the disk may be too small for the maps: free some space, write to another disk, or name fewer targets")


def show_answer(answer: Answer, said: Collection[str] = (), *, place: bool = False) -> None:
    """Print the answer (with its region if `place`), its warnings except those already `said`, and the paths of its files."""

    prediction = answer.prediction
    for warning in prediction.warnings:
        if warning not in said:
            warn(warning)
    say(f"prediction{f' for the region {prediction.region}' if place else ''}: {prediction.answer}")
    for maps in answer.maps:
        explained = f"{maps.target}, {prediction.answer_for(maps.target)}" if len(answer.maps) > 1 else maps.target
        if maps.path is not None:
            say(f"maps of {explained}: {', '.join(maps.maps)} in {os.path.relpath(maps.path)}")
    for table in answer.tables:
        say(f"patches: {os.path.relpath(table)}")
    for picture in answer.pictures:
        say(f"picture: {os.path.relpath(picture)}")
    for reason in answer.empty:
        warn(reason)


def show_cost(seconds: float) -> None:
    """Print the time and memory that the command took."""
    from streamview.system.machine import peak_device_memory, peak_memory

    device = peak_device_memory()
    reserved = "" if device is None else f", {amount(device)} on the device"
    say(f"took {seconds:.1f} s, peak memory {amount(peak_memory())}{reserved}")


class Talk:
    """Says everything, in lines and bars; a context manager, inside which Ctrl-C cancels.

    Parameters
    ----------
    bars
        The progress bars.
    notes
        Of the network, said once at the start.
    place
        Whether to name the region of each answer.
    """

    def __init__(self, bars: Bars, notes: Collection[str], *, place: bool) -> None:
        self._bars, self._notes, self._place = bars, notes, place
        self._total, self._start, self._counts = 0, time.monotonic(), Counter[str]()

    def start(self, total: int) -> None:
        """The worklist has so many slides."""
        self._total, self._start = total, time.monotonic()

    def say(self, line: str) -> None:
        """A line that is no result."""
        say(line)

    def announce(self, slide: Slide, ahead: Ahead) -> None:
        """A slide begins."""
        show_forecast(slide, ahead)

    def answered(self, answer: Answer) -> None:
        """A region is answered."""
        show_answer(answer, self._notes, place=self._place)

    def report(self, step: Step) -> None:
        """A step is done.

        Raises
        ------
        Cancelled
            After Ctrl-C.
        """
        self._bars(step)

    def told(self, outcome: Outcome) -> None:
        """A slide is done."""
        self._count(outcome)
        self._bars.close()
        if outcome.failed:
            complain(f"error: {' '.join(outcome.error.split())}")
        if self._total > 1:
            left = self._seconds_left()
            about = "" if left is None else f", about {_time(left)} left"
            complain(f"{sum(self._counts.values())} of {self._total} slides done ({self._in_words()}){about}")

    def foresee(self, ahead: CohortForecast) -> None:
        """The forecast of all slides."""
        self._bars.close()
        for name, reason in ahead.refused:
            named = reason if reason.startswith(f"{name}: ") else f"{name}: {reason}"  # most reasons name their slide
            complain(f"will fail: {' '.join(named.split())}")
        say(f"forecast: {ahead}")
        if ahead.disk_bytes > ahead.disk_free:
            warn("the disk may be too small for the maps: free some space, write to another disk, or name fewer targets")

    def end(self, run: Run, job: Path) -> int:
        """The run is over; return the exit status."""
        written = job / "predictions.csv"
        before = f", {run.skipped} of them before (--redo computes them again)" if run.skipped else ""
        answered = run.answered + run.skipped
        say(f"\n{answered} of {self._total} slides answered{before}{f': {os.path.relpath(written)}' if written.exists() else ''}")
        left = self._total - answered - len(run.failed)
        if left and not answered:
            warn(f"nothing was computed, {left} slides left: --skip-errors continues after a slide that fails")
        elif left:
            warn(f"stopped at {run.failed[-1]} with {left} slides left: --skip-errors continues after a slide that fails")
        if self._counts["failed before"]:
            count = self._counts["failed before"]
            failed = "1 slide" if count == 1 else f"{count} slides"
            warn(f"{failed} failed before and nothing has changed: --retry-failed tries again")
        show_cost(run.seconds or 0.0)
        return 1 if run.failed else 0

    def _count(self, outcome: Outcome) -> None:
        self._counts[outcome.status] += 1

    def _seconds_left(self) -> float | None:
        """Seconds left, by the slides that were computed."""
        computed = self._counts["answered"] + self._counts["failed"]
        left = self._total - sum(self._counts.values())
        return (time.monotonic() - self._start) / computed * left if computed and left else None

    def _in_words(self) -> str:
        return ", ".join(f"{count} {status}" for status, count in self._counts.items())

    def __enter__(self) -> Self:
        self._bars.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bars.__exit__(kind, error, trace)


class Terse(Talk):
    """Says errors and the outcome alone."""

    def say(self, line: str) -> None:
        """Nothing."""

    def announce(self, slide: Slide, ahead: Ahead) -> None:
        """Nothing."""

    def answered(self, answer: Answer) -> None:
        """Nothing."""

    def report(self, step: Step) -> None:
        """Only cancel."""
        self._bars.check()

    def told(self, outcome: Outcome) -> None:
        """Errors alone."""
        self._count(outcome)
        if outcome.status == "failed":
            complain(f"error: {' '.join(outcome.error.split())}")


class JsonLines(Talk):
    """Says everything as JSON, one object a line on standard output; ``event`` says what it is."""

    def start(self, total: int) -> None:
        """The worklist has so many slides."""
        super().start(total)
        self._last = 0.0
        self._tell("start", slides=total)

    def say(self, line: str) -> None:
        """Nothing."""

    def announce(self, slide: Slide, ahead: Ahead) -> None:
        """A slide begins."""
        self._tell("slide", slide=slide.name, regions=ahead.regions, answered_before=ahead.answered, forecast_seconds=ahead.seconds)

    def answered(self, answer: Answer) -> None:
        """A region is answered."""
        prediction = answer.prediction
        self._tell("answer", slide=prediction.slide_name, region=str(prediction.region), prediction=prediction.label)

    def report(self, step: Step) -> None:
        """At most one step a second."""
        self._bars.check()
        if step.done == step.total or time.monotonic() - self._last > _STEP_EVERY:
            self._last = time.monotonic()
            self._tell("step", task=step.task, done=step.done, total=step.total, seconds_left=step.remaining)

    def told(self, outcome: Outcome) -> None:
        """A slide is done."""
        self._count(outcome)
        counts = dict(self._counts) | {"of": self._total, "seconds_left": self._seconds_left()}
        facts = {"status": outcome.status, "regions": outcome.regions, "seconds": outcome.seconds, "error": outcome.error or None}
        self._tell("done", slide_id=outcome.slide_id, **facts, counts=counts)

    def foresee(self, ahead: CohortForecast) -> None:
        """The forecast of all slides."""
        self._tell("forecast", **asdict(ahead))

    def end(self, run: Run, job: Path) -> int:
        """The run is over."""
        self._tell("end", answered=run.answered, answered_before=run.skipped, failed=list(run.failed), seconds=run.seconds, job=str(job))
        return 1 if run.failed else 0

    def _tell(self, event: str, **values: Any) -> None:
        print(json.dumps({"event": event, **values}), flush=True)


def _time(seconds: float) -> str:
    from streamview.streaming.run.timing import format_seconds

    return format_seconds(seconds)
