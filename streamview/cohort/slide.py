"""One slide of a cohort, from opening to record: claimed by one process, answered once, or recorded as failed."""

from __future__ import annotations

import os
import time
import warnings
from dataclasses import dataclass

from streamview.cohort.regions import ClaimedSlide
from streamview.cohort.settings import failure_key, work_key
from streamview.cohort.work import Outcome, Work
from streamview.cohort.worklist import Case
from streamview.errors import (
    Cancelled,
    MemoryBudgetError,
    ModelError,
    NotStreamableError,
    RegionError,
    SlideError,
    SlideWarning,
    StreamviewError,
)
from streamview.geometry import Region, RegionText
from streamview.inference.forecast import Forecast
from streamview.inference.identity import identify
from streamview.inference.patches import PatchPlan
from streamview.jobs import Job
from streamview.slides import Slide, open_slide
from streamview.slides.sampling import Sampler
from streamview.slides.tissue import Tissue, find_tissue

__all__ = ["Opened", "fail", "find_id", "open_case", "plan_case", "process", "refusal"]

_OPTIONS = (RegionError, ModelError, NotStreamableError, MemoryBudgetError)  # errors that other options fix
_DEATHS = 3  # processes that may end in one run while they work on a slide, before it counts as the reason


@dataclass(frozen=True, slots=True, eq=False)
class Opened:
    """A slide that was opened before its turn.

    Parameters
    ----------
    slide
        The slide.
    tissue
        Its tissue; None where it was not looked for, or no level shows it.
    """

    slide: Slide
    tissue: Tissue | None


def open_case(work: Work, case: Case) -> Opened | None:
    """Open a slide and find its tissue, unless it is answered already; None if it cannot be opened, which `process` will say."""
    try:
        slide = open_slide(case.path, case.mpp or work.settings.mpp)
    except StreamviewError:
        return None
    try:
        key = work_key(work.settings, work.model, slide.identity, _placed(work, case, slide), slide.mpp)
        slide_id = find_id(work.job, case, slide.identity)
        done = not work.redo and _completed(work.job, slide_id, key)
        return Opened(slide, None if done else find_tissue(slide))
    except StreamviewError:
        return Opened(slide, None)
    except BaseException:
        slide.close()
        raise


def find_id(job: Job, case: Case, identity: str | None = None) -> str:
    """The slide's id in the job, given `Slide.identity` where it is known."""
    return job.slide_id(case.name, case.source, identity, shared=case.shares_name)


def process(work: Work, case: Case, opened: Opened | None = None) -> Outcome:
    """Answer for one slide and record it, unless that is done or under way; a slide that fails is recorded as failed.

    Parameters
    ----------
    work, case
        What is asked, and of which slide.
    opened
        From `open_case`, if it is open already; it is closed.

    Raises
    ------
    Cancelled
        If the user cancels.
    StreamviewError
        If the job cannot be written.
    """
    start, job = time.monotonic(), work.job
    failure = failure_key(work.settings, work.model, case)
    slide_id = find_id(job, case)
    before = job.record(slide_id)
    if before.error is not None and before.failed_work == failure and not work.retry_failed and not work.redo:
        if opened is not None:
            opened.slide.close()
        return Outcome(case, slide_id, "failed before", before.error)
    try:
        with open_slide(case.path, case.mpp or work.settings.mpp) if opened is None else opened.slide as slide:
            slide_id = find_id(job, case, slide.identity)
            region = _placed(work, case, slide)
            key = work_key(work.settings, work.model, slide.identity, region, slide.mpp)
            if not work.redo and _completed(job, slide_id, key):
                return Outcome(case, slide_id, "answered before")
            lease = job.claim(slide_id, work.run_id)
            if lease is None:
                return Outcome(case, slide_id, "held")
            with lease:
                if not work.redo and _completed(job, slide_id, key):  # by the process that held it
                    return Outcome(case, slide_id, "answered before")
                if lease.deaths >= _DEATHS:
                    raise SlideError(
                        f"{slide.name}: {lease.deaths} processes ended while they worked on it, perhaps for lack of memory; "
                        "give less --memory, or look at its region"
                    )
                count = ClaimedSlide(work, case, slide, slide_id, region, None if opened is None else opened.tissue).answer(key, start)
            return Outcome(case, slide_id, "answered", regions=count, seconds=time.monotonic() - start)
    except Cancelled:
        raise
    except StreamviewError as error:
        return fail(work, case, slide_id, error, start)


def plan_case(work: Work, case: Case, *, timed: bool) -> list[Forecast | PatchPlan] | None:
    """Forecast the regions of a slide that are not answered yet; None if all are.

    Parameters
    ----------
    work, case
        What is asked, and of which slide.
    timed
        Whether to measure the speed, on the first region.

    Raises
    ------
    StreamviewError
        If the slide cannot be processed.
    """
    with open_slide(case.path, case.mpp or work.settings.mpp) as slide:
        slide_id = find_id(work.job, case, slide.identity)
        region = _placed(work, case, slide)
        key = work_key(work.settings, work.model, slide.identity, region, slide.mpp)
        if not work.redo and _completed(work.job, slide_id, key):
            return None
        return ClaimedSlide(work, case, slide, slide_id, region, None).forecast(timed=timed)


def fail(work: Work, case: Case, slide_id: str, error: StreamviewError, start: float, *, row: bool | None = None) -> Outcome:
    """Record that a slide failed.

    A wrong option makes a row only with `Work.skip_errors`, a path that was named by hand and does not exist never. What may end by itself,
    such as a full disk, is not remembered as the slide's fault.

    Parameters
    ----------
    work, case, slide_id
        The slide.
    error
        Why.
    start
        When work on it began, of `time.monotonic`.
    row
        Whether the file is the reason; None to tell from the error.
    """
    row = not isinstance(error, _OPTIONS) if row is None else row
    if (row or work.skip_errors) and (case.listed or case.is_url or os.path.lexists(case.source)):
        lasting = isinstance(error, SlideError | RegionError | ModelError | NotStreamableError)
        key = failure_key(work.settings, work.model, case) if lasting else None
        work.job.fail(slide_id, str(error), work.run_id, work=key, patient_id=case.patient_id, label=case.label, source=case.source)
    return Outcome(case, slide_id, "failed", str(error), seconds=time.monotonic() - start)


def refusal(work: Work, case: Case) -> tuple[StreamviewError, bool] | None:
    """Why a slide cannot be processed, as far as a quick check shows, and whether its file is the reason; None if nothing is wrong."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SlideWarning)  # given when the slide is processed
        try:
            slide = open_slide(case.path, case.mpp or work.settings.mpp)
        except SlideError as error:
            return error, True
        with slide:
            try:
                region = _placed(work, case, slide)
                if region is None and work.settings.policy.kind != "whole":
                    Sampler(slide, None, work.model.card.mpp)
                else:
                    identify(work.model, slide, region, pad_to=work.settings.pad_to)
            except StreamviewError as error:
                return error, False
    return None


def _placed(work: Work, case: Case, slide: Slide) -> Region | None:
    """The requested region on this slide; None if none is named."""
    region = case.region or work.settings.region
    return region.on(slide.mpp, slide.name) if isinstance(region, RegionText) else region


def _completed(job: Job, slide_id: str, key: str) -> bool:
    """Whether work is done, and its answers still count and have their maps."""
    record = job.record(slide_id)
    work = next((work for work in record.completed if work.key == key), None)
    if work is None or record.error is not None:
        return False
    valid = {result.prediction.identity.key: result for result in record.regions if record.superseded(result) is None}
    stored = (entry for key in work.regions if key in valid for entry in valid[key].maps)
    return valid.keys() >= set(work.regions) and all((job.folder / entry.path).is_dir() for entry in stored)
