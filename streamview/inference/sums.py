"""Maps that several passes are summed in, in place, and the differences of scores that hidden patches make; pure but for the sums."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from streamview.streaming.step import Span

__all__ = ["Sums", "legendre_points", "patch_rows", "patches_over"]

FloatMaps = NDArray[np.float32]


class Sums:
    """A weighted sum of the maps of several passes, of one target; rows in any order, each once a pass.

    Parameters
    ----------
    channels
        Of the maps.
    inside
        Height and width of the region; what is padded is counted in `total` alone.

    Attributes
    ----------
    values
        float32 (channels, h, w).
    total
        Sum over all of `values`, in double precision.
    """

    def __init__(self, channels: int, inside: tuple[int, int]) -> None:
        self.values = np.zeros((channels, *inside), np.float32)
        self.total = 0.0

    def add(self, weight: float, y: int, rows: FloatMaps) -> None:
        """Add the rows ``y .. y + n`` of a pass, (channels, n, w), times its weight."""
        _, height, width = self.values.shape
        self.total += weight * float(rows.sum(dtype=np.float64))
        if y < height:
            self.values[:, y : y + rows.shape[1]] += np.float32(weight) * rows[:, : height - y, :width]

    def reduce_channels(self, rows: int = 512) -> FloatMaps:
        """Turn attributions of channels, in place, into "absolute", their largest size, and "signed", their sum: float32 (2, h, w)."""
        for y in range(0, self.values.shape[1], rows):
            part = self.values[:, y : y + rows]
            part[0], part[1] = np.abs(part).max(0), part.sum(0)
        return self.values[:2]


def legendre_points(steps: int) -> list[tuple[float, float]]:
    """Places from 0 to 1 and weights, which sum to 1, of the Gauss-Legendre quadrature with so many points."""
    places, weights = np.polynomial.legendre.leggauss(steps)
    return [(float(1 + place) / 2, float(weight) / 2) for place, weight in zip(places, weights, strict=True)]


def patches_over(side: int, patch: int, stride: int, count: int) -> list[Span]:
    """Rows or columns that each of so many patches hides of a side in px."""
    return [(stride * n, min(stride * n + patch, side)) for n in range(count)]


def patch_rows(differences: NDArray[np.float64], spans: tuple[Sequence[Span], Sequence[Span]], rows: Span) -> FloatMaps:
    """The maps "absolute" and "signed" of an occlusion: of each pixel the mean difference of the patches that hide it.

    Parameters
    ----------
    differences
        (rows, columns) of the score to that with each patch hidden.
    spans
        Rows and columns that the patches hide.
    rows
        Of the maps.

    Returns
    -------
    numpy.ndarray
        float32 (2, n, w).
    """
    down, across = (_shares(each) for each in spans)
    signed = across @ (down[rows[0] : rows[1]] @ differences).T
    signed = np.asarray(signed.T, np.float32)
    return np.stack([np.abs(signed), signed])


def _shares(spans: Sequence[Span]) -> sparse.csr_array:
    """(pixels, patches): what each patch contributes to the mean of a pixel along one axis."""
    places = np.concatenate([np.arange(*span) for span in spans])
    patches = np.repeat(np.arange(len(spans)), [stop - start for start, stop in spans])
    counts = np.bincount(places, minlength=max(stop for _, stop in spans))
    return sparse.csr_array((1 / counts[places], (places, patches)), shape=(len(counts), len(spans)))
