"""What all slides of a run share, and what is said of each: its forecast, its answers, and what became of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from streamview.cohort.settings import Settings
from streamview.cohort.worklist import Case
from streamview.inference.forecast import Forecast
from streamview.inference.patches import PatchPlan
from streamview.inference.prepared import PreparedRun
from streamview.jobs import Job
from streamview.networks import Model
from streamview.progress import Report
from streamview.results import Prediction, Saliency
from streamview.slides import Slide

__all__ = ["Ahead", "Answer", "Outcome", "Status", "Work"]

Status = Literal["answered", "answered before", "failed", "failed before", "held"]


@dataclass(frozen=True, slots=True)
class Ahead:
    """What a slide will take, said before its long work.

    Parameters
    ----------
    first
        Forecast of its first region that is not answered yet.
    regions
        How many regions will be computed.
    answered
        How many were computed by an earlier run.
    seconds
        Of all regions, by the time of the first; None if it is not known.
    """

    first: Forecast | PatchPlan
    regions: int
    answered: int
    seconds: float | None


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """The results for one region.

    Parameters
    ----------
    prediction
        The prediction.
    maps
        Its maps, stored in the job, one entry per target; empty if there is only a prediction.
    pictures
        The display PNGs.
    empty
        Why some of them show nothing, one sentence each.
    tables
        The predictions per patch, in the formats of other programs.
    """

    prediction: Prediction
    maps: tuple[Saliency, ...] = ()
    pictures: tuple[Path, ...] = ()
    empty: tuple[str, ...] = ()
    tables: tuple[Path, ...] = ()


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one slide.

    Parameters
    ----------
    case
        The slide.
    slide_id
        Its name in the job.
    status
        ``"answered"`` or ``"failed"``, now or ``"... before"`` by an earlier run; ``"held"``: another process works on it.
    error
        Why it failed, with the remedy.
    regions
        How many regions were computed now.
    seconds
        What it took.
    """

    case: Case
    slide_id: str
    status: Status
    error: str = ""
    regions: int = 0
    seconds: float = 0.0

    @property
    def failed(self) -> bool:
        """Whether there is no answer."""
        return self.status in ("failed", "failed before")


def _nothing(*_: object) -> None:
    """Tell nobody."""


@dataclass(frozen=True, slots=True, eq=False)
class Work:
    """What all slides of a run share.

    Parameters
    ----------
    model
        The network.
    job, run_id
        The job and run that record the answers.
    settings
        What is asked.
    skip_errors
        Whether a slide that the options do not fit remains as a failed row; one that cannot be read always does.
    redo
        Whether to compute what is answered already.
    retry_failed
        Whether to try slides again that failed, though nothing has changed.
    announce
        Called with the forecast of each slide before its long work.
    answered
        Called with each region's answer.
    report
        Called after every step.
    """

    model: Model
    job: Job
    run_id: str
    settings: Settings = Settings()
    skip_errors: bool = False
    redo: bool = False
    retry_failed: bool = False
    announce: Callable[[Slide, Ahead], None] = _nothing
    answered: Callable[[Answer], None] = _nothing
    report: Report | None = None
    _forecasts: dict[tuple[object, ...], Forecast] = field(default_factory=dict)  # plans of earlier regions of the same shape

    def forecast(self, run: PreparedRun, targets: int = 0) -> Forecast:
        """The forecast of a region; regions of one shape share it."""
        key = run.sampler.shape, run.sampler.scale, run.inside, targets
        if key not in self._forecasts:
            self._forecasts[key] = run.forecast(targets, self.job.folder if targets else None)
        return self._forecasts[key]
