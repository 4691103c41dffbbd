"""What a cohort will take, said without running it: regions, time, memory and disk, and which slides will be refused."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from streamview.cohort.slide import plan_case
from streamview.cohort.work import Work
from streamview.cohort.worklist import Case
from streamview.errors import StreamviewError
from streamview.inference.forecast import Forecast
from streamview.progress import Progress
from streamview.streaming.memory import format_bytes
from streamview.streaming.run.timing import format_seconds
from streamview.system.machine import free_disk

__all__ = ["CohortForecast", "forecast_cohort"]

_TIMED = 3  # slides whose speed is measured; the others are taken to be as fast, pixel for pixel


@dataclass(frozen=True, slots=True)
class CohortForecast:
    """What a cohort will take.

    Parameters
    ----------
    slides, regions
        To be computed.
    answered
        Slides that are answered already.
    refused
        Slides that will fail, by name, with the reason.
    seconds
        Of the network and reading, on this machine with one process; None if nothing could be timed.
    peak_bytes
        Largest peak of the process's resident memory (on CUDA: of reserved device memory).
    disk_bytes
        What the maps will take at most.
    disk_free
        What is free there.
    """

    slides: int
    regions: int
    answered: int
    refused: tuple[tuple[str, str], ...]
    seconds: float | None
    peak_bytes: int
    disk_bytes: int
    disk_free: int

    def __str__(self) -> str:
        """One line for people."""
        done = f", {self.answered} answered already" if self.answered else ""
        refused = f", {len(self.refused)} will fail" if self.refused else ""
        time = "a few seconds a slide" if self.seconds is None else f"about {format_seconds(self.seconds)} with one process"
        disk = f"; writes at most {format_bytes(self.disk_bytes)}, {format_bytes(self.disk_free)} are free" if self.disk_bytes else ""
        return f"{self.slides} slides, {self.regions} regions{done}{refused}: {time}, peak memory {format_bytes(self.peak_bytes)}{disk}"


def forecast_cohort(work: Work, cases: Sequence[Case]) -> CohortForecast:
    """Look at every slide, choose its regions and forecast them; nothing is written.

    The speed is measured on the first slides and taken to be the same for the others, pixel for pixel.

    Parameters
    ----------
    work, cases
        As for `streamview.cohort.run.run_slides`.

    Raises
    ------
    Cancelled
        If the user cancels.
    """
    progress = Progress("slides", len(cases), work.report)
    refused: list[tuple[str, str]] = []
    slides = regions = answered = peak = disk = 0
    pixels, timed_pixels, timed_seconds, timed = 0, 0, 0.0, 0
    for case in cases:
        try:
            ahead = plan_case(work, case, timed=timed < _TIMED)
        except StreamviewError as error:
            refused.append((case.name, str(error)))
        else:
            if ahead is None:
                answered += 1
            else:
                slides, regions = slides + 1, regions + len(ahead)
                peak = max(peak, *(each.peak_bytes for each in ahead))
                disk += sum(each.disk_bytes for each in ahead)
                for each in ahead:
                    if isinstance(each, Forecast):
                        pixels += math.prod(each.shape)
                        if each.seconds is not None:
                            timed_pixels, timed_seconds = timed_pixels + math.prod(each.shape), timed_seconds + each.seconds
                timed += any(each.seconds is not None for each in ahead)
        progress.advance()
    seconds = timed_seconds / timed_pixels * pixels if timed_pixels else None
    return CohortForecast(slides, regions, answered, tuple(refused), seconds, peak, disk, free_disk(work.job.folder))
