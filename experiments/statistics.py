"""How the experiments compare networks: areas under the ROC curve with intervals, and permutation tests of their difference."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from streamview.evaluation.bootstrap import Bootstrap, Figure, Statistic

__all__ = ["compare", "measure"]

_RESAMPLES, _PERMUTATIONS = 2000, 2000


def measure(statistic: Statistic, count: int) -> Figure:
    """A statistic of `count` slides with its 95 % bootstrap interval, the same draws whatever the statistic."""
    return Bootstrap([f"{number:06d}" for number in range(count)], _RESAMPLES, seed=0)(statistic)


def compare(
    make_statistic: Callable[[NDArray[np.float64]], Statistic], one: NDArray[np.float64], other: NDArray[np.float64], seed: int = 0
) -> float:
    """Return the two-sided p of a permutation test that two networks are equally good on the same slides.

    In every permutation the answers of the two networks are exchanged on a random half of the slides, after ranking, so that their
    scales do not matter; p is the share of permutations, itself counted as one, in which the statistics differ at least as much.

    Parameters
    ----------
    make_statistic
        From answers (N,) to a `Statistic`.
    one, other
        Answers (N,) of the networks.
    seed
        Of the permutations.
    """
    ranks = np.stack([rankdata(values) for values in (one, other)])
    everything = np.ones((1, ranks.shape[1]))

    def difference(pair: NDArray[np.float64]) -> float:
        first, second = (float(make_statistic(values)(everything)[0]) for values in pair)
        return abs(first - second)

    swaps = np.random.default_rng(seed).random((_PERMUTATIONS, ranks.shape[1])) < 0.5
    observed = difference(ranks)
    larger = sum(difference(np.where(swap, ranks[::-1], ranks)) >= observed - 1e-12 for swap in swaps)
    return (larger + 1) / (_PERMUTATIONS + 1)
