"""Metrics with bootstrap intervals by patient.

Intervals are bootstrap percentiles (Efron, 1979, https://doi.org/10.1214/aos/1176344552) with patients as the units: regions of one
patient are alike, so resampling single regions would make the intervals too narrow. A resample draws n of n patients with replacement
and weights every region by how often its patient was drawn; every statistic is a function of these weights.
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
"""From weights (B, N) of N regions in B resamples to values (B,), NaN where undefined."""
_AT_ONCE = 1 << 22  # weights (resamples x regions) held in memory at once


@dataclass(frozen=True, slots=True)
class Figure:
    """A metric's value and its 95 % interval.

    Parameters
    ----------
    value
        NaN if undefined, such as an AUC when all regions are of one class.
    low, high
        2.5th and 97.5th percentile of the bootstrap by patient; NaN without resamples or with only one patient.
    defined
        Share (0..1) of the resamples in which the value was defined; the interval is computed from these.
    """

    value: float
    low: float = math.nan
    high: float = math.nan
    defined: float = 1.0

    def __str__(self) -> str:
        """``"0.835 (0.710 to 0.920)"``."""
        if math.isnan(self.low):
            return format_figure(self.value)
        basis = f", from {self.defined:.0%} of the resamples" if self.defined < 0.9 else ""
        return f"{format_figure(self.value)} ({format_figure(self.low)} to {format_figure(self.high)}{basis})"


def format_figure(value: float | None) -> str:
    """Format with three significant digits, ``"0.900"``; from a thousand on as a whole number."""
    if value is None or math.isnan(value):
        return "undefined"
    return f"{value:#.3g}" if abs(value) < 999.5 else f"{value:.0f}"


class Bootstrap:
    """Computes statistics with intervals, from the same resamples of patients for each.

    Parameters
    ----------
    patients
        N names, one per region.
    resamples
        Number of resamples; 0: no intervals.
    seed
        Seed of the draws.
    """

    def __init__(self, patients: Sequence[str], resamples: int, seed: int) -> None:
        names, self._of = np.unique(np.asarray(patients, str), return_inverse=True)
        self.patients = len(names)
        count = resamples if self.patients > 1 else 0  # with one patient all resamples are equal
        self._draws = np.random.default_rng(seed).multinomial(self.patients, np.full(self.patients, 1 / self.patients), count)

    def __call__(self, statistic: Statistic) -> Figure:
        """Compute a statistic of all regions and its interval."""
        value = float(statistic(np.ones((1, len(self._of))))[0])
        if not len(self._draws) or math.isnan(value):
            return Figure(value)
        step = max(1, _AT_ONCE // len(self._of))
        parts = [self._draws[start : start + step] for start in range(0, len(self._draws), step)]
        values = np.concatenate([statistic(part[:, self._of].astype(np.float64)) for part in parts])
        defined = values[np.isfinite(values)]
        if not len(defined):
            return Figure(value, defined=0.0)
        low, high = map(float, np.quantile(defined, (0.025, 0.975)))
        return Figure(value, low, high, len(defined) / len(values))


def mean(values: NDArray[Any]) -> Statistic:
    """Mean of (N,) values."""
    return lambda weights: ratio(weights @ values.astype(np.float64), weights.sum(1))


def balanced_mean(right: NDArray[np.bool_], targets: NDArray[Any]) -> Statistic:
    """Mean over classes of the share that is `right`, (N,); undefined if a class of the `targets`, int (N,), was not drawn."""
    member = (targets[:, None] == np.unique(targets)).astype(np.float64)
    return lambda weights: np.asarray(ratio(weights @ (member * right[:, None]), weights @ member).mean(1))


def area_under_curve(scores: Floats, positive: NDArray[np.bool_]) -> Statistic:
    """Area under the ROC curve of scores (N,): the share of (positive, negative) pairs in the right order, ties counting half.

    From midranks r, with P positive and M negative regions: (sum of r over the positives - P (P + 1) / 2) / (P M), after Mann and
    Whitney (1947, https://doi.org/10.1214/aoms/1177730491). Undefined if P or M is 0.
    """
    ranks = _ranking(scores)

    def area(weights: Floats) -> Floats:
        positive_weights = weights * positive
        positives = positive_weights.sum(1)
        negatives = weights.sum(1) - positives
        return ratio((positive_weights * ranks(weights)).sum(1) - positives * (positives + 1) / 2, positives * negatives)

    return area


def rank_correlation(values: Floats, truth: Floats) -> Statistic:
    """Spearman's rho: Pearson's correlation of the midranks of values and truth, each (N,). Undefined if either is constant."""
    rankings = _ranking(values), _ranking(truth)

    def correlation(weights: Floats) -> Floats:
        ranks = [ranking(weights) for ranking in rankings]
        # the mean midrank of n regions is (n + 1) / 2, with or without ties
        middle = (weights.sum(1, keepdims=True) + 1) / 2
        first, second = (rank - middle for rank in ranks)
        spread = (weights * first**2).sum(1) * (weights * second**2).sum(1)
        return ratio((weights * first * second).sum(1), np.sqrt(spread))

    return correlation


def ratio(part: NDArray[Any], whole: NDArray[Any]) -> Floats:
    """Divide elementwise; NaN where the whole is 0."""
    quotient: Floats = np.divide(part, whole, out=np.full(np.shape(part), np.nan), where=whole > 0)
    return quotient


def _ranking(values: Floats) -> Statistic:
    """A function from weights (B, N) to midranks (B, N), starting at 1, where each value is repeated by its weight."""
    _, group, sizes = np.unique(values, return_inverse=True, return_counts=True)
    order, starts = np.argsort(group, kind="stable"), np.cumsum(sizes) - sizes

    def ranks(weights: Floats) -> Floats:
        tied = np.add.reduceat(weights[:, order], starts, axis=1)
        midranks: Floats = (np.cumsum(tied, 1) - (tied - 1) / 2)[:, group]
        return midranks

    return ranks
