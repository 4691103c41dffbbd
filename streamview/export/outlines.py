"""The connected areas that a map shows, inside the lines of `streamview.results.contours`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from streamview.labels.annotations import Points, Polygon
from streamview.results.contours import DIGITS, contours, generator, just_below, shown_shares, within_border

__all__ = ["Areas", "contours", "find_areas", "shown_shares", "signed_area"]


@dataclass(frozen=True, slots=True, eq=False)
class Areas:
    """The connected areas that reach a threshold.

    Parameters
    ----------
    labels
        int64 (h, w): the number of each pixel's area, from 1; 0 in none.
    count
        How many there are.
    """

    labels: NDArray[np.int64]
    count: int
    _rings: tuple[tuple[Points, ...], ...]

    def polygon(self, number: int) -> Polygon:
        """Outline an area: the lines of `contours`, closed along the border; x turns towards y along the exterior."""
        exterior, *holes = (_corners(within_border(ring[:-1], self.labels.shape)) for ring in self._rings[number - 1])
        return Polygon(exterior, tuple(hole for hole in holes if len(hole) > 2))


def find_areas(shares: NDArray[np.float32], threshold: float) -> Areas:
    """Find the areas that the lines of `contours` surround; parameters as there."""
    parts, count = ndimage.label(np.pad(shares, 1, mode="edge") >= np.float32(threshold))
    found, offsets = generator(shares).filled(just_below(threshold), np.inf)
    rings = [tuple(np.split(points, ends[1:-1].astype(int))) for points, ends in zip(found, offsets, strict=True)]
    # areas that touch at a corner have one outline or two, as the values between them have it; each part borders on its own area's outline
    area_of = np.zeros(count + 1, np.int64)
    if rings:
        x, y = np.concatenate(found).round(DIGITS).T
        numbers = np.repeat(np.arange(1, len(found) + 1), [len(points) for points in found])
        for round_y, round_x in ((np.floor, np.floor), (np.ceil, np.ceil)):
            area_of[parts[round_y(y).astype(int), round_x(x).astype(int)]] = numbers
        area_of[0] = 0
    return Areas(area_of[parts[1:-1, 1:-1]], len(rings), tuple(rings))


def signed_area(ring: Points) -> float:
    """Area of a ring of corners ``(y, x)``, float64 (n, 2): positive where x turns towards y."""
    y, x = (ring - ring[0]).T
    return float(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2


def _corners(ring: Points) -> Points:
    """A ring without repeated points and without those on a straight edge."""
    ring = ring[(ring != np.roll(ring, 1, 0)).any(1)]
    before, after = ring - np.roll(ring, 1, 0), np.roll(ring, -1, 0) - ring
    return ring[np.abs(before[:, 0] * after[:, 1] - before[:, 1] * after[:, 0]) > 1e-12]
