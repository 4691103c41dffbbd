"""How well a map finds a lesion whose mask is known."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Localisation", "average_precision", "localise"]


@dataclass(frozen=True, slots=True)
class Localisation:
    """Figures of one map.

    Parameters
    ----------
    pointing
        Whether the largest value lies on the lesion (pointing game, Zhang et al. 2016, https://arxiv.org/abs/1608.00507).
    energy
        Share (0..1) of the map's positive mass that lies on the lesion; NaN for a map without any.
    area
        Share (0..1) of the map's area that is lesion: the energy of a map that is the same everywhere.
    precision
        Average precision of the map's pixels, the area under the curve of precision and recall; `area` for a random map.
    """

    pointing: bool
    energy: float
    area: float
    precision: float

    @property
    def ratio(self) -> float:
        """Energy as a multiple of the area."""
        return self.energy / self.area


def localise(values: NDArray[np.floating], lesion: NDArray[np.bool_]) -> Localisation:
    """Compare a map with a lesion.

    Parameters
    ----------
    values
        (h, w); negative values count as 0, and of several largest values the first counts.
    lesion
        bool (h, w), with both kinds of pixels.

    Raises
    ------
    ValueError
        If the shapes differ, or the lesion is nowhere or everywhere.
    """
    if values.shape != lesion.shape or not 0 < lesion.mean() < 1:
        raise ValueError(
            f"map {values.shape} and lesion {lesion.shape} on {lesion.mean():.3g} of it: expected equal shapes, and a part of it"
        )
    positive = np.maximum(values, 0)
    total = positive.sum(dtype=np.float64)
    energy = float(positive[lesion].sum(dtype=np.float64) / total) if total > 0 else float("nan")
    pointing = bool(lesion.flat[int(positive.argmax())]) if total > 0 else False
    return Localisation(pointing, energy, float(lesion.mean()), average_precision(positive, lesion))


def average_precision(scores: NDArray[np.floating], positive: NDArray[np.bool_]) -> float:
    """Return ``sum_n (R_n - R_(n-1)) P_n`` over thresholds n, with recall R and precision P of the scores that reach them; ties are one."""
    values, group = np.unique(scores, return_inverse=True)
    hits, counts = (np.bincount(group.ravel(), weights, len(values))[::-1] for weights in (positive.ravel().astype(float), None))
    return float((hits / hits.sum() * np.cumsum(hits) / np.cumsum(counts)).sum())
