"""Figures with intervals by patient.

Intervals are percentiles of the bootstrap (Efron, 1979, https://doi.org/10.1214/aos/1176344552) whose units are patients: regions of one
patient resemble each other, and resampled one by one they would count as more evidence than they are. A resample that draws n of n patients
with replacement is a weight for every region, how often its patient was drawn; every figure is a function of weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Bootstrap",
    "Figure",
    "Floats",
    "Statistic",
    "area_under_curve",
    "balanced_mean",
    "format_figure",
    "mean",
    "ratio",
    "rank_correlation",
]

Floats = NDArray[np.float64]
Statistic = Callable[[Floats], Floats]
"""Of weights (B, N) of N regions in B resamples to values (B,), NaN where undefined."""
_AT_ONCE = 1 << 22  # weights held in memory: resamples x regions


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure and its 95 % interval.

    Parameters
    ----------
    value
        NaN where it is undefined: an AUC when all regions are of one class.
    low, high
        2.5th and 97.5th percentile of the bootstrap by patient; NaN where it was left out or there is but one patient.
    defined
        Share (0..1) of the resamples in which the figure was defined: the interval rests on these.
    """

    value: float
    low: float = math.nan
    high: float = math.nan
    defined: float = 1.0

    def __str__(self) -> str:
        """``"0.835 (0.710 to 0.920)"``."""
        if math.isnan(self.low):
            return format_figure(self.value)
        few = f", from {self.defined:.0%} of the resamples" if self.defined < 0.9 else ""
        return f"{format_figure(self.value)} ({format_figure(self.low)} to {format_figure(self.high)}{few})"


def format_figure(value: float | None) -> str:
    """Three digits, ``"0.900"``; whole numbers from a thousand on."""
    if value is None or math.isnan(value):
        return "undefined"
    return f"{value:#.3g}" if abs(value) < 999.5 else f"{value:.0f}"


class Bootstrap:
    """Draws patients with replacement, the same draws for every figure.

    Parameters
    ----------
    patients
        N names, one a region.
    resamples
        How many to draw; 0: figures have no intervals.
    seed
        The same gives the same draws.
    """

    def __init__(self, patients: Sequence[str], resamples: int, seed: int) -> None:
        names, self._of = np.unique(np.asarray(patients, str), return_inverse=True)
        self.patients = len(names)
        drawn = resamples if self.patients > 1 else 0  # of one patient every resample is the same
        self._draws = np.random.default_rng(seed).multinomial(self.patients, np.full(self.patients, 1 / self.patients), drawn)

    def __call__(self, statistic: Statistic) -> Figure:
        """The figure of all regions, and its interval."""
        value = float(statistic(np.ones((1, len(self._of))))[0])
        if not len(self._draws) or math.isnan(value):
            return Figure(value)
        step = max(1, _AT_ONCE // len(self._of))
        parts = [self._draws[start : start + step] for start in range(0, len(self._draws), step)]
        found = np.concatenate([statistic(part[:, self._of].astype(np.float64)) for part in parts])
        kept = found[np.isfinite(found)]
        if not len(kept):
            return Figure(value, defined=0.0)
        low, high = map(float, np.quantile(kept, (0.025, 0.975)))
        return Figure(value, low, high, len(kept) / len(found))


def mean(values: NDArray[Any]) -> Statistic:
    """Mean of (N,) values."""
    return lambda weights: ratio(weights @ values.astype(np.float64), weights.sum(1))


def balanced_mean(right: NDArray[np.bool_], targets: NDArray[Any]) -> Statistic:
    """Mean over classes of the share that is `right`, (N,); undefined where a class of the `targets`, int (N,), was not drawn."""
    there = np.unique(targets)
    of = (targets[:, None] == there).astype(np.float64)
    return lambda weights: np.asarray(ratio(weights @ (of * right[:, None]), weights @ of).mean(1))


def area_under_curve(scores: Floats, positive: NDArray[np.bool_]) -> Statistic:
    """Area under the ROC curve of scores (N,): the share of pairs, one positive and one not, that they order right, ties as half.

    From midranks r, with P positive and M other regions: (sum of r over the positive - P (P + 1) / 2) / (P M), after Mann and Whitney
    (1947, https://doi.org/10.1214/aoms/1177730491). Undefined where P or M is 0.
    """
    ranks = _ranking(scores)

    def area(weights: Floats) -> Floats:
        chosen = weights * positive
        found = chosen.sum(1)
        others = weights.sum(1) - found
        return ratio((chosen * ranks(weights)).sum(1) - found * (found + 1) / 2, found * others)

    return area


def rank_correlation(values: Floats, truth: Floats) -> Statistic:
    """Spearman's rho: Pearson's correlation of the midranks of values and truth, each (N,). Undefined where either is constant."""
    rankings = _ranking(values), _ranking(truth)

    def correlation(weights: Floats) -> Floats:
        ranks = [ranking(weights) for ranking in rankings]
        # the mean midrank of n regions is (n + 1) / 2, whatever the ties
        middle = (weights.sum(1, keepdims=True) + 1) / 2
        first, second = (rank - middle for rank in ranks)
        spread = (weights * first**2).sum(1) * (weights * second**2).sum(1)
        return ratio((weights * first * second).sum(1), np.sqrt(spread))

    return correlation


def ratio(part: NDArray[Any], whole: NDArray[Any]) -> Floats:
    """Divide element by element; NaN where the whole is 0."""
    found: Floats = np.divide(part, whole, out=np.full(np.shape(part), np.nan), where=whole > 0)
    return found


def _ranking(values: Floats) -> Statistic:
    """A function of weights (B, N) to midranks (B, N), from 1, of the values where each stands as often as its weight says."""
    _, group, sizes = np.unique(values, return_inverse=True, return_counts=True)
    order, starts = np.argsort(group, kind="stable"), np.cumsum(sizes) - sizes

    def ranks(weights: Floats) -> Floats:
        tied = np.add.reduceat(weights[:, order], starts, axis=1)
        found: Floats = (np.cumsum(tied, 1) - (tied - 1) / 2)[:, group]
        return found

    return ranks
