"""Process the slides of a worklist in this process: each once, whatever other processes do, with the tables written now and then."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import UTC, datetime

from streamview.cohort.slide import Opened, fail, find_id, open_case, process, refusal
from streamview.cohort.work import Outcome, Work
from streamview.cohort.worklist import Case
from streamview.errors import ModelError
from streamview.inference.class_evidence import linear_head
from streamview.jobs import Job, Run
from streamview.networks import Model
from streamview.progress import Step
from streamview.results import GRADIENT, ExplanationMethod
from streamview.results.display import Preset
from streamview.slides.slide import given_mpp
from streamview.streaming.capture.capture import capture
from streamview.system.machine import describe_device, find_device, peak_memory

__all__ = ["Tables", "check_display", "recorded", "run_slides"]

_TABLES_EVERY = 60.0  # seconds between two times that the tables are written
_TABLES_SHARE = 20  # and at least so many times what writing them takes
_WAIT = 1.0  # seconds between two looks at slides that other processes work on


class Tables:
    """Writes the tables of a job when it is time to, so that their cost is a small share of the whole however many slides there are."""

    def __init__(self, job: Job) -> None:
        self._job, self._next = job, 0.0  # at once after the first slide

    def write_if_due(self) -> None:
        """Write them if the last time is long enough ago.

        Raises
        ------
        StreamviewError
            If they cannot be written.
        """
        start = time.monotonic()
        if start >= self._next:
            self._job.write_tables()
            end = time.monotonic()
            self._next = end + max(_TABLES_EVERY, _TABLES_SHARE * (end - start))


def run_slides(work: Work, cases: Sequence[Case], *, command: Sequence[str], told: Callable[[Outcome], None]) -> Run:
    """Process slides and record the run; a slide that fails is recorded as failed.

    Parameters
    ----------
    work
        What all slides share.
    cases
        The slides.
    command
        The command line's arguments, for the record.
    told
        Called after each slide with what became of it.

    Returns
    -------
    Run
        The run's record: what it took, how many slides were answered, and which failed.

    Raises
    ------
    StreamviewError
        If the job cannot be written.
    Cancelled
        If the user cancels; the record of the run then stays unfinished.

    Without `Work.skip_errors` all slides are checked before the first one's long work, nothing starts if one cannot be opened or does not
    fit the options, and the run ends at the first that fails. Slides that other processes work on are waited for, and taken over from a
    process that has ended.
    """
    if work.settings.mpp is not None:
        given_mpp(work.settings.mpp)
    with recorded(work, command) as outcomes:

        def tell(outcome: Outcome) -> bool:
            outcomes.append(outcome)
            told(outcome)
            return work.skip_errors or not outcome.failed

        if not work.skip_errors:
            refused = [(case, reason) for case in cases if (reason := refusal(work, case)) is not None]
            for case, (error, unreadable) in refused:
                tell(fail(work, case, find_id(work.job, case), error, time.monotonic(), row=unreadable))
            cases = () if refused else cases
        tables, held = Tables(work.job), []
        with closing(_open_ahead(work, cases)) as opening:
            for case, opened in opening:
                outcome = process(work, case, opened)
                if outcome.status == "held":
                    held.append(case)
                elif not tell(outcome):
                    held = []
                    break
                tables.write_if_due()
        _await(work, held, tell)
    return outcomes.run


class _Outcomes:
    """Counts what becomes of the slides of a run."""

    def __init__(self, run: Run) -> None:
        self.run = run

    def append(self, outcome: Outcome) -> None:
        """Count one."""
        answered, skipped = outcome.status == "answered", outcome.status == "answered before"
        failed = (*self.run.failed, outcome.slide_id) if outcome.failed else self.run.failed
        self.run = replace(self.run, answered=self.run.answered + answered, skipped=self.run.skipped + skipped, failed=failed)


@contextmanager
def recorded(work: Work, command: Sequence[str]) -> Iterator[_Outcomes]:
    """Record a run at its start and end, and write the tables at its end, also after an error."""
    start = time.monotonic()
    outcomes = _Outcomes(Run(work.run_id, tuple(command), describe_device(find_device(work.settings.compute.device)), _now()))
    work.job.record_run(outcomes.run)
    try:
        yield outcomes
    finally:
        if (work.job.folder / "slides").is_dir():
            work.job.write_tables()
    outcomes.run = replace(outcomes.run, finished=_now(), seconds=time.monotonic() - start, peak_bytes=peak_memory())
    work.job.record_run(outcomes.run)


def check_display(model: Model, display: Preset | None, method: ExplanationMethod = GRADIENT) -> None:
    """Reject a display that the network or the method does not support, before any long work.

    Raises
    ------
    ModelError
        If the display is class evidence and the network's head is not pooling and one linear layer, or the method has no such map.
    """
    if display is not None and method.name != "gradient" and (display == "evidence") != (method.name == "grad-cam"):
        has = "one map, shown as class evidence is" if method.name == "grad-cam" else "no class evidence"
        other = "evidence" if method.name == "grad-cam" else "detail or paper"
        raise ModelError(f"--display {display}: {method.title} gives {has}; use --display {other}")
    if method.name == "grad-cam":
        return
    if display == "evidence" and linear_head(capture(model.module)) is None:
        raise ModelError(
            f"--display evidence: the model {model.card.name} does not end in pooling and one linear layer, so it has no class evidence; "
            "use --display detail or paper"
        )


def _open_ahead(work: Work, cases: Sequence[Case]) -> Generator[tuple[Case, Opened | None]]:
    """Yield slides, each opened in a thread while the one before is computed; None where it could not be."""
    with ThreadPoolExecutor(1, "streamview-next-slide") as thread:
        coming: Future[Opened | None] | None = None
        try:
            for number, case in enumerate(cases):
                opened = open_case(work, case) if coming is None else coming.result()
                coming = thread.submit(open_case, work, cases[number + 1]) if number + 1 < len(cases) else None
                yield case, opened
        finally:
            if coming is not None and (left := coming.result()) is not None:
                left.slide.close()


def _await(work: Work, held: Sequence[Case], tell: Callable[[Outcome], bool]) -> None:
    """Wait for slides that other processes work on, and take over what they leave."""
    total, start = len(held), time.monotonic()
    while held:
        left = []
        for case in held:
            outcome = process(work, case)
            if outcome.status == "held":
                left.append(case)
            elif not tell(outcome):
                return
        held = left
        if held:
            if work.report is not None:
                work.report(Step("slides of other processes", total - len(held), total, time.monotonic() - start))
            time.sleep(_WAIT)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
