"""Deletion and insertion curves: rankings of patches, areas under curves, and the comparison with random rankings.

Petsiuk, Das and Saenko, RISE, BMVC 2018, https://arxiv.org/abs/1806.07421. Patches are erased (or brought back) from the one that the map
ranks highest to the lowest; with f the share that is erased, s(f) the score, and s(0) and s(1) those of the region with all and with none
of its tissue, the curve is ``(s(f) - s(1)) / |s(0) - s(1)|``. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["area_under", "beats", "normalise", "ranking", "step_counts"]


def ranking(values: NDArray[np.floating], counted: NDArray[np.bool_], seed: int) -> NDArray[np.intp]:
    """Return flat indices of the counted patches from the highest value to the lowest; equal values in a random order.

    Parameters
    ----------
    values
        (rows, columns).
    counted
        bool (rows, columns).
    seed
        Of the order of equal values.
    """
    indices = np.flatnonzero(counted)
    indices = np.random.default_rng(seed).permutation(indices)
    return indices[np.argsort(-values.ravel()[indices], kind="stable")]


def step_counts(patches: int, steps: int) -> tuple[int, ...]:
    """Return how many patches are erased after each step, from none to all; fewer steps where there are fewer patches."""
    counts = np.rint(np.linspace(0, patches, steps + 1)).astype(int)
    return tuple(int(count) for count in np.unique(counts))


def normalise(scores: Sequence[float], full: float, empty: float) -> tuple[float, ...] | None:
    """Return scores as shares of what all tissue changes; None where that is nothing.

    Parameters
    ----------
    scores
        Of the steps.
    full, empty
        Those of the region with all and with none of its tissue. Where `full` is below `empty`, the curve ends at -1, so that erasing what
        speaks for the target lowers a curve always.
    """
    change = abs(full - empty)
    if not change > 1e-5 * max(abs(full), abs(empty)):
        return None
    return tuple((score - empty) / change for score in scores)


def area_under(shares: Sequence[float], values: Sequence[float]) -> float:
    """Return the area under a curve by the trapezoidal rule."""
    return float(np.trapezoid(np.asarray(values, np.float64), np.asarray(shares, np.float64)))


def beats(area: float, others: Sequence[float], share: float, *, lower: bool) -> tuple[int, bool]:
    """Return how many of the other areas an area is better than, and whether these are at least a share of them.

    Parameters
    ----------
    area, others
        Areas; equal ones are not better.
    share
        0..1.
    lower
        Whether the lower area is the better one, as of deletion.
    """
    count = sum(area < other if lower else area > other for other in others)
    return count, count >= math.ceil(share * len(others) - 1e-9)
