"""The progress of many runs of the network as that of one task."""

from __future__ import annotations

import time
from collections.abc import Mapping

from streamview.progress import Report, Step

__all__ = ["EXPLANATION", "Together"]

EXPLANATION = 3
"""What an explanation takes, in forward passes."""
_PARTS = 100  # steps of a forward pass


class Together:
    """Counts runs that make up one task, and what is done of the present one.

    Parameters
    ----------
    task
        In the user's words.
    total
        Forward passes in all, an explanation counted as three.
    report
        Called after every step of the engine; may raise `Cancelled`.
    """

    def __init__(self, task: str, total: int, report: Report | None) -> None:
        self._task, self._total, self._report = task, total, report
        self._done, self._shown, self._start = 0, 0, time.monotonic()

    def forward(self) -> Report:
        """The report of the next run, a prediction."""
        return self._next(1, {})

    def explanation(self) -> Report:
        """The report of the next run, an explanation."""
        return self._next(EXPLANATION, {"forward pass": (0.0, 1.0), "backward pass": (1.0, float(EXPLANATION))})

    def _next(self, units: int, tasks: Mapping[str, tuple[float, float]]) -> Report:
        start = self._done
        self._done += units

        def report(step: Step) -> None:
            if self._report is None:
                return
            low, high = tasks.get(step.task, (0.0, float(units)))
            share = step.done / step.total if step.total else 0.0
            # a run that memory ran out for begins again, the bar stays where it is
            self._shown = max(self._shown, int(_PARTS * (start + low + (high - low) * share)))
            self._report(Step(self._task, self._shown, _PARTS * self._total, time.monotonic() - self._start))

        return report
