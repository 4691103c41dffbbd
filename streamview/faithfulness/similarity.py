"""How alike two maps are. Pure."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, stats

__all__ = ["rank_correlation", "relative_change", "structural_similarity"]

_SIGMA = 1.5  # px, the window of the authors
_K1, _K2 = 0.01, 0.03
_CAP = 99.9  # percentile


def rank_correlation(a: NDArray[np.floating], b: NDArray[np.floating]) -> float:
    """Return Spearman's rank correlation of two arrays of one shape, ties having their mean rank; 0 where either is the same everywhere."""
    first, second = (stats.rankdata(values.ravel()) for values in (a, b))
    first, second = first - first.mean(), second - second.mean()
    scale = np.sqrt((first @ first) * (second @ second))
    return float(first @ second / scale) if scale > 0 else 0.0


def structural_similarity(a: NDArray[np.floating], b: NDArray[np.floating], counted: NDArray[np.bool_]) -> float:
    """Return the mean structural similarity of two maps' absolute values, each blurred and as shares of its 99.9th percentile.

    Wang et al., IEEE Transactions on Image Processing 13 (2004) 600, with a Gaussian window of 1.5 px, K1 = 0.01 and K2 = 0.03.

    Parameters
    ----------
    a, b
        (h, w).
    counted
        bool (h, w): where it is averaged.
    """
    x, y = (_share_of_cap(np.abs(values)) for values in (a, b))
    mean_x, mean_y = _window(x), _window(y)
    var_x, var_y = _window(x * x) - mean_x**2, _window(y * y) - mean_y**2
    covariance = _window(x * y) - mean_x * mean_y
    c1, c2 = _K1**2, _K2**2
    local = (2 * mean_x * mean_y + c1) * (2 * covariance + c2) / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
    return float(local[counted].mean())


def relative_change(before: NDArray[np.floating], after: NDArray[np.floating]) -> float:
    """Return ``|after - before| / |before|`` in the Euclidean norm: one sample of max-sensitivity (Yeh et al., NeurIPS 2019).

    https://arxiv.org/abs/1901.09392; NaN where `before` is zero everywhere.
    """
    norm = float(np.linalg.norm(before))
    return float(np.linalg.norm(after - before)) / norm if norm > 0 else float("nan")


def _share_of_cap(values: NDArray[np.floating]) -> NDArray[np.float64]:
    blurred = _window(values.astype(np.float64))
    cap = float(np.percentile(blurred, _CAP))
    return blurred.clip(max=cap) / cap if cap > 0 else blurred


def _window(values: NDArray[np.float64]) -> NDArray[np.float64]:
    filtered: NDArray[np.float64] = ndimage.gaussian_filter(values, _SIGMA, truncate=3.5)
    return filtered
