"""Share the slides of a cohort among processes, of this machine or of a cluster, with Dask (the extra ``cluster``).

A task is one slide. Its results are files of the job, on a disk that all workers share; what travels back is a small `Outcome`. A slide
whose worker ends is done again by another one, from the region at which it ended.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streamview.cohort.run import Tables, recorded
from streamview.cohort.settings import Settings
from streamview.cohort.slide import fail, find_id, process
from streamview.cohort.work import Outcome, Work
from streamview.cohort.worklist import Case
from streamview.errors import SlideError, StreamviewError
from streamview.jobs import Job, Run
from streamview.networks import Model, load_model
from streamview.progress import Step
from streamview.streaming.cuda import free_memory_of
from streamview.streaming.memory import format_bytes, parse_bytes
from streamview.system.machine import find_device

if TYPE_CHECKING:
    import distributed

__all__ = ["ModelChoice", "run_on_cluster"]

_POLL = 0.5  # seconds between two looks at the tasks, at which a cancel is noticed
_ANSWERS_WITHIN = "10s"  # a scheduler that is there
_LEAST = 600 * 2**20  # bytes that a worker needs before its first step


@dataclass(frozen=True, slots=True)
class ModelChoice:
    """How a worker loads the network: the arguments of `load_model`, with paths that it can see.

    Parameters
    ----------
    spec, weights, card, untrained
        As for `load_model`.
    """

    spec: str
    weights: str | None = None
    card: str | None = None
    untrained: bool = False

    def load(self) -> Model:
        """Load it.

        Raises
        ------
        ModelError
            As `load_model`.
        """
        return load_model(self.spec, weights=self.weights, card=self.card, untrained=self.untrained)


@dataclass(frozen=True, slots=True)
class _Errand:
    """What a worker needs beside the slide."""

    choice: ModelChoice
    job: str
    run_id: str
    settings: Settings
    skip_errors: bool
    redo: bool
    retry_failed: bool


def run_on_cluster(
    work: Work,
    choice: ModelChoice,
    cases: Sequence[Case],
    *,
    workers: int | None = None,
    scheduler: str | None = None,
    command: Sequence[str],
    told: Callable[[Outcome], None],
    tell: Callable[[str], None],
) -> Run:
    """Process slides on workers and record the run; the results are those of `streamview.cohort.run.run_slides`, file by file.

    Parameters
    ----------
    work
        As for `run_slides`; its memory is that of all workers of this machine together, of a cluster that of each.
    choice
        How workers load the network.
    cases
        The slides.
    workers
        Processes to start on this machine.
    scheduler
        Address of a Dask scheduler, whose workers see the same paths.
    command, told
        As for `run_slides`.
    tell
        Called with a line about the cluster.

    Raises
    ------
    StreamviewError
        If Dask is not installed, there is no scheduler at the address, memory is too small for the workers, or the job cannot be written.
    Cancelled
        If the user cancels; workers of this machine end, those of a cluster finish the slide they have.
    """
    if find_spec("distributed") is None:
        raise StreamviewError('Dask is not installed: pip install "streamview[cluster]", or run without a cluster')
    settings = work.settings if scheduler is not None else _shared(work.settings, workers or 1)
    errand = _Errand(choice, os.path.abspath(work.job.folder), work.run_id, settings, work.skip_errors, work.redo, work.retry_failed)
    with recorded(work, command) as outcomes, _client(workers, scheduler) as client:
        _check_threads(client)
        tell(f"{len(client.scheduler_info()['workers'])} workers; dashboard: {client.dashboard_link or 'none'}")
        for outcome in _gather(client, errand, work, cases):
            outcomes.append(outcome)
            told(outcome)
            if outcome.failed and not work.skip_errors:
                break
    return outcomes.run


def _check_threads(client: distributed.Client) -> None:
    """Refuse workers that would work on several slides at once: each would take the memory, and the device, of one."""
    threads = max(client.nthreads().values(), default=1)
    if threads > 1:
        raise StreamviewError(
            f"a worker of the Dask scheduler has {threads} threads; start workers of one thread each, so that a slide has its memory"
        )


def _shared(settings: Settings, workers: int) -> Settings:
    """The settings of one of several workers of this machine: its share of the memory."""
    memory = settings.compute.memory
    whole = free_memory_of(find_device(settings.compute.device)) // 2 if memory is None else parse_bytes(memory)
    share = whole // workers
    if share < _LEAST:
        raise StreamviewError(
            f"--memory {format_bytes(whole)} for {workers} workers: each needs at least {format_bytes(_LEAST)}; give more, or fewer workers"
        )
    return replace(settings, compute=replace(settings.compute, memory=share))


@contextmanager
def _client(workers: int | None, scheduler: str | None) -> Iterator[distributed.Client]:
    """A client of the scheduler, or of a cluster on this machine that lives as long as the block."""
    import dask
    import distributed

    with ExitStack() as stack:
        stack.enter_context(dask.config.set({"distributed.scheduler.allowed-failures": 1000}))  # the leases count them, per slide
        if scheduler is not None:
            try:
                yield stack.enter_context(distributed.Client(scheduler, timeout=_ANSWERS_WITHIN))
            except OSError as error:
                raise StreamviewError(
                    f"--scheduler {scheduler}: no Dask scheduler answers there ({error}); start one, or name another"
                ) from None
            return
        count = workers or 1
        threads = max(1, (os.cpu_count() or 1) // count)
        environment = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        cluster = distributed.LocalCluster(
            n_workers=count, threads_per_worker=1, processes=True, memory_limit=0, dashboard_address=None, silence_logs=logging.ERROR,
            env=environment,
        )  # fmt: skip
        stack.enter_context(cluster)
        yield stack.enter_context(distributed.Client(cluster))


def _gather(client: distributed.Client, errand: _Errand, work: Work, cases: Sequence[Case]) -> Iterator[Outcome]:
    """Yield what becomes of the slides, as they are done."""
    import distributed

    waiting = list(reversed(cases))
    running: dict[Any, Case] = {}
    tables, start, total = Tables(work.job), time.monotonic(), len(cases)
    try:
        while waiting or running:
            slots = max(1, sum(client.nthreads().values()))
            while waiting and len(running) < slots:
                case = waiting.pop()
                future = client.submit(
                    _process, errand, case, key=f"streamview-{errand.run_id}-{len(waiting)}-{time.monotonic_ns()}", pure=False
                )
                running[future] = case
            try:
                done = distributed.wait(list(running), timeout=_POLL, return_when="FIRST_COMPLETED").done
            except TimeoutError:
                done = set()
            if work.report is not None:
                work.report(Step("slides", total - len(waiting) - len(running), total, time.monotonic() - start))
            held = False
            for future in done:
                case = running.pop(future)
                outcome = _outcome(future, work, case)
                if outcome.status == "held":
                    waiting.insert(0, case)
                    held = True
                else:
                    yield outcome
            tables.write_if_due()
            if held and not running:
                time.sleep(_POLL)
    finally:
        client.cancel(list(running))


def _outcome(future: Any, work: Work, case: Case) -> Outcome:
    """What a task returned; a slide with which worker after worker ended has failed."""
    import distributed

    try:
        outcome = future.result()
    except distributed.KilledWorker:
        error = SlideError(f"{case.name}: every worker that worked on it ended, perhaps for lack of memory; give more --memory per worker")
        return fail(work, case, find_id(work.job, case), error, time.monotonic())
    assert isinstance(outcome, Outcome)
    return outcome


def _process(errand: _Errand, case: Case) -> Outcome:
    """Process one slide in a worker."""
    return process(_work(errand), case)


@lru_cache(maxsize=1)
def _work(errand: _Errand) -> Work:
    """What all slides of a run share in this process, the forecasts of earlier slides included."""
    return Work(
        _loaded(errand.choice), Job(Path(errand.job)), errand.run_id, errand.settings, errand.skip_errors, errand.redo, errand.retry_failed
    )  # fmt: skip


@lru_cache(maxsize=1)
def _loaded(choice: ModelChoice) -> Model:
    """The network, loaded and captured once a process."""
    return choice.load()
