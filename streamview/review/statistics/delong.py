"""Areas under ROC curves of the same cases, with the covariances between them."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from streamview.evaluation.bootstrap import Floats, area_under_curve

__all__ = ["Method", "areas", "covariance"]

Method = Literal["delong", "jackknife"]


def areas(scores: Floats, positive: NDArray[np.bool_]) -> Floats:
    """Area under the ROC curve of each of M rows of scores, by Mann and Whitney: (M, N) and (N,) to (M,)."""
    once = np.ones((1, scores.shape[1]))
    return np.array([area_under_curve(row, positive)(once)[0] for row in scores])


def covariance(scores: Floats, positive: NDArray[np.bool_], method: Method = "delong") -> Floats:
    """Covariance matrix, (M, M), of the areas of M rows of scores of the same N cases.

    ``"delong"``: S1 / P + S0 / M, with S1 and S0 the sample covariances of the placements of the P positive and M negative cases: the
    share of the other class that a case is ranked right against, ties counting half. After DeLong, DeLong and Clarke-Pearson (1988,
    https://doi.org/10.2307/2531595), with placements from midranks as by Sun and Xu (2014, https://doi.org/10.1109/LSP.2014.2337313).

    ``"jackknife"``: (N - 1) / N times the sum of products of the deviations of the N areas that leave one case out.

    Parameters
    ----------
    scores
        (M, N), higher meaning more likely positive.
    positive
        (N,), whether a case is; two cases or more of each class.
    method
        The estimator.
    """
    if method == "jackknife":
        left_out = 1 - np.eye(scores.shape[1])
        values = np.stack([area_under_curve(row, positive)(left_out) for row in scores])
        spread: Floats = np.atleast_2d(np.cov(values, ddof=0)) * (scores.shape[1] - 1)
        return spread
    positives, negatives = int(positive.sum()), int((~positive).sum())
    everywhere = rankdata(scores, axis=1)
    above = (everywhere[:, positive] - rankdata(scores[:, positive], axis=1)) / negatives
    below = 1 - (everywhere[:, ~positive] - rankdata(scores[:, ~positive], axis=1)) / positives
    total: Floats = np.atleast_2d(np.cov(above)) / positives + np.atleast_2d(np.cov(below)) / negatives
    return total
