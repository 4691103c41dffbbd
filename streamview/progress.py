"""The one seam between long work and whoever watches it: progress out, cancel in.

A long operation takes ``report: Report | None`` and calls it after every step. Whoever watches draws the `Step`; to cancel,
the callable raises `streamview.errors.Cancelled`, which leaves the operation at that step with nothing half-written.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["Progress", "Report", "Step", "format_steps"]


@dataclass(frozen=True, slots=True)
class Step:
    """State of a long operation after one of its steps.

    Parameters
    ----------
    task
        What is being done, in the user's words ("forward pass", "level 2").
    done, total
        Units of work finished and in all.
    elapsed
        Seconds since the task began.
    """

    task: str
    done: int
    total: int
    elapsed: float

    @property
    def remaining(self) -> float | None:
        """Seconds left at the present rate; None before anything is done."""
        return self.elapsed / self.done * (self.total - self.done) if self.done else None


Report = Callable[[Step], None]


def format_steps(count: int) -> str:
    """A number of steps for people: ``"1 step"``, ``"24 steps"``."""
    return f"{count} {'step' if count == 1 else 'steps'}"


class Progress:
    """Counts the units of one task and reports each; does nothing without a listener.

    Parameters
    ----------
    task
        Name shown to the user.
    total
        Units of work in all.
    report
        Called with a `Step` at once and after every `advance`; may raise `Cancelled`.
    """

    def __init__(self, task: str, total: int, report: Report | None) -> None:
        self._task, self._total, self._report = task, total, report
        self._done, self._start = 0, time.monotonic()
        self.advance(0)

    def advance(self, units: int = 1) -> None:
        """Count finished units and tell the listener, who may raise `Cancelled`."""
        self._done += units
        if self._report is not None:
            self._report(Step(self._task, self._done, self._total, time.monotonic() - self._start))
