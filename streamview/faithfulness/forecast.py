"""What the measurements of a result will take, said before they start."""

from __future__ import annotations

import time
from dataclasses import dataclass

from streamview.faithfulness.measure import forward_passes
from streamview.faithfulness.settings import Settings
from streamview.inference.prepared import PreparedRun
from streamview.progress import Report
from streamview.streaming.memory import format_bytes
from streamview.streaming.run.timing import format_seconds

__all__ = ["Forecast", "forecast_faithfulness"]


@dataclass(frozen=True, slots=True)
class Forecast:
    """What the measurements of a result will take.

    Parameters
    ----------
    passes
        Forward passes, an explanation counted as three.
    seconds
        Time on this machine, at most: steps on erased tissue are skipped.
    peak_bytes
        Peak of the process's resident memory (on CUDA: of reserved device memory).
    """

    passes: int
    seconds: float
    peak_bytes: int

    def __str__(self) -> str:
        """One line for people."""
        about = f"about {format_seconds(self.seconds)} or less"
        return f"the work of {self.passes} forward passes: peak memory {format_bytes(self.peak_bytes)}, {about}"


def forecast_faithfulness(run: PreparedRun, settings: Settings, maps: int, report: Report | None = None) -> Forecast:
    """Say what the measurements of a result will take.

    Parameters
    ----------
    run
        Prepared for it.
    settings
        What is measured.
    maps
        How many maps it has.
    report
        Called while a region too small for a timed sample is answered once; may raise `Cancelled`.

    Raises
    ------
    SlideError, MemoryBudgetError
        When a sample cannot be read, or no step fits the memory.
    """
    explained, predicted = run.forecast(1), run.forecast()
    passes = forward_passes(settings, maps)
    if predicted.seconds is None or explained.seconds is None:
        start = time.monotonic()
        run.predict(predicted.plan, report)
        seconds = passes * (time.monotonic() - start)
    else:
        explanations = settings.shuffles + settings.noises + 3
        seconds = (passes - 3 * explanations) * predicted.seconds + explanations * explained.seconds
    return Forecast(passes, seconds, max(predicted.peak_bytes, explained.peak_bytes))
