"""Estimates and proportions with 95 % intervals, or the reason why there is no interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from scipy.special import ndtri

from streamview.evaluation.bootstrap import Bootstrap, Statistic, format_figure
from streamview.evaluation.metrics import plain

__all__ = ["FEWEST", "NORMAL", "Estimate", "Proportion", "bootstrap", "few_cases", "wilson"]

FEWEST = 10
"""Cases (of a class, where a figure speaks of one class) below which no interval is given."""
NORMAL = float(ndtri(0.975))
"""The 97.5th percentile of the normal distribution."""
_OFTEN = 0.9  # share of resamples below which a figure says in how many it was defined


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure and its 95 % interval.

    Parameters
    ----------
    value
        None if undefined.
    cases
        Number of cases that it is computed from.
    low, high
        Ends of the interval; None if there is none.
    note
        Why there is no value or interval, or what limits it; empty otherwise.
    """

    value: float | None
    cases: int
    low: float | None = None
    high: float | None = None
    note: str = ""

    def __str__(self) -> str:
        """``"0.835 (0.710 to 0.920)"``, or the value with the note."""
        text = format_figure(self.value)
        if self.low is not None and self.high is not None:
            text += f" ({format_figure(self.low)} to {format_figure(self.high)})"
        return f"{text}; {self.note}" if self.note else text

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain JSON values."""
        return dict(plain(asdict(self)))


@dataclass(frozen=True, slots=True)
class Proportion:
    """A number of cases out of a whole, and Wilson's 95 % interval of the proportion.

    Parameters
    ----------
    part, whole
        Numbers of cases.

    Examples
    --------
    >>> from streamview.review.statistics import Proportion
    >>> str(Proportion(18, 20)), str(Proportion(7, 8))
    ('0.900 (0.699 to 0.972)', '7 of 8; no interval: fewer than 10 cases')
    """

    part: int
    whole: int

    @property
    def value(self) -> float | None:
        """The proportion (0..1); None if the whole is 0."""
        return self.part / self.whole if self.whole else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """Ends of Wilson's interval; None below ten cases."""
        return wilson(self.part, self.whole) if self.whole >= FEWEST else None

    @property
    def note(self) -> str:
        """Why there is no interval; empty if there is one."""
        return few_cases(self.whole)

    def __str__(self) -> str:
        """The proportion with its interval, or the counts."""
        if self.interval is None:
            return f"{self.part} of {self.whole}; {self.note}"
        low, high = self.interval
        return f"{format_figure(self.value)} ({format_figure(low)} to {format_figure(high)})"

    def to_dict(self) -> dict[str, Any]:
        """Return counts, proportion, interval and note as plain JSON values."""
        low, high = self.interval or (None, None)
        return {"part": self.part, "whole": self.whole, "value": self.value, "low": low, "high": high, "note": self.note}


def wilson(part: int, whole: int) -> tuple[float, float]:
    """Return the ends of Wilson's 95 % interval of part / whole.

    With p = part / whole, n = whole and z = 1.96: (p + z^2 / 2n +- z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n), after Wilson
    (1927, https://doi.org/10.1080/01621459.1927.10502953).

    Parameters
    ----------
    part, whole
        Numbers of cases; the whole is 1 or more.
    """
    share, square = part / whole, NORMAL**2
    middle = share + square / (2 * whole)
    reach = NORMAL * math.sqrt(share * (1 - share) / whole + square / (4 * whole**2))
    scale = 1 + square / whole
    # of none and of all the ends are 0 and 1, which rounding may miss
    return (max(0.0, (middle - reach) / scale) if part else 0.0, min(1.0, (middle + reach) / scale) if part < whole else 1.0)


def few_cases(cases: int, what: str = "cases") -> str:
    """Say that there is no interval because there are fewer than ten cases; empty if there are ten or more."""
    return f"no interval: fewer than {FEWEST} {what}" if cases < FEWEST else ""


def bootstrap(cases: Sequence[str], statistic: Statistic, resamples: int, seed: int) -> Estimate:
    """Compute a statistic of cases and its percentile interval from resamples of the cases.

    Parameters
    ----------
    cases
        N different ids; the interval does not depend on their order.
    statistic
        From weights (B, N) of the cases to values (B,).
    resamples, seed
        Number of resamples, and seed of the draws.
    """
    if not cases:
        return Estimate(None, 0, note="undefined: no cases")
    figure = Bootstrap(cases, resamples if len(cases) >= FEWEST else 0, seed)(statistic)
    if math.isnan(figure.value):
        return Estimate(None, len(cases), note="undefined: all verdicts are the same")
    if math.isnan(figure.low) or figure.low == figure.high:
        note = few_cases(len(cases)) or "no interval: all resamples give one value"
        return Estimate(figure.value, len(cases), note=note if resamples else "")
    note = f"interval from {figure.defined:.0%} of the resamples" if figure.defined < _OFTEN else ""
    return Estimate(figure.value, len(cases), figure.low, figure.high, note)
