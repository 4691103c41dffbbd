"""Outline what a map shows: the same lines on the canvas, in pictures and around hotspots.

Between the centres of a map's pixels values are interpolated linearly, as displays do, and the lines run where they meet the threshold
(marching squares, https://doi.org/10.1145/37402.37422).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from contourpy import contour_generator
from numpy.typing import NDArray
from scipy import ndimage

from streamview.labels.annotations import Points, Polygon
from streamview.results.display import Glass, Shown

__all__ = ["Areas", "contours", "find_areas", "shown_shares", "signed_area"]

_LEAST = 1e-6  # share of the cap: a threshold of 0 hides what is not positive
_CLEAR = 0.01  # px: as near a line comes to a pixel's centre, so that it never meets itself there
_DIGITS = 9  # of points, one coordinate of which is a whole number but for rounding


def shown_shares(shown: Shown, glass: Glass | None = None) -> tuple[NDArray[np.float32], float]:
    """Return what a display shows of its overview as shares of the cap, float32 (h, w), and the threshold below which they are hidden.

    What was not computed is 0, and so is what lies on glass, where the recipe hides that.
    """
    level = shown.overview
    shares = np.nan_to_num(shown.levels[level].without_threshold()[:, :])
    if glass is not None and shown.recipe.glass:
        step, origin = shown.steps[level], shown.origins[level]
        rows, columns = (start + pitch * np.arange(size) for start, pitch, size in zip(origin, step, shares.shape, strict=True))
        shares[glass.over(rows, columns)] = 0
    return shares, max(shown.threshold, _LEAST)


def contours(shares: NDArray[np.float32], threshold: float) -> list[Points]:
    """Follow the edges of what reaches a threshold, to be drawn.

    Parameters
    ----------
    shares
        float32 (h, w).
    threshold
        Above 0.

    Returns
    -------
    list of numpy.ndarray
        Lines, float64 (n, 2) ``(y, x)`` in px, whose centres are whole numbers; a closed one repeats its first point. What the border cuts
        off stays open there: no line runs along the border.
    """
    return [_placed(line, shares.shape) for line in _generator(shares).lines(_just_below(threshold))]


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
        exterior, *holes = (_corners(_placed(ring[:-1], self.labels.shape)) for ring in self._rings[number - 1])
        return Polygon(exterior, tuple(hole for hole in holes if len(hole) > 2))


def find_areas(shares: NDArray[np.float32], threshold: float) -> Areas:
    """Find the areas that the lines of `contours` surround; parameters as there."""
    parts, count = ndimage.label(np.pad(shares, 1, mode="edge") >= np.float32(threshold))
    found, offsets = _generator(shares).filled(_just_below(threshold), np.inf)
    rings = [tuple(np.split(points, ends[1:-1].astype(int))) for points, ends in zip(found, offsets, strict=True)]
    # areas that touch at a corner have one outline or two, as the values between them have it; each part borders on its own area's outline
    area_of = np.zeros(count + 1, np.int64)
    if rings:
        x, y = np.concatenate(found).round(_DIGITS).T
        numbers = np.repeat(np.arange(1, len(found) + 1), [len(points) for points in found])
        for round_y, round_x in ((np.floor, np.floor), (np.ceil, np.ceil)):
            area_of[parts[round_y(y).astype(int), round_x(x).astype(int)]] = numbers
        area_of[0] = 0
    return Areas(area_of[parts[1:-1, 1:-1]], len(rings), tuple(rings))


def signed_area(ring: Points) -> float:
    """Area of a ring of corners ``(y, x)``, float64 (n, 2): positive where x turns towards y."""
    y, x = (ring - ring[0]).T
    return float(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2


def _generator(shares: NDArray[np.float32]) -> Any:  # its methods are typed for all forms of lines at once
    """What follows lines; half a pixel beyond the outermost centres is the border."""
    return contour_generator(z=np.pad(shares, 1, mode="edge"), line_type="Separate", fill_type="OuterOffset")


def _just_below(threshold: float) -> float:
    """A level that what equals the threshold lies above."""
    return float(np.nextafter(np.float32(threshold), np.float32(0)))


def _placed(line: NDArray[np.float64], shape: tuple[int, ...]) -> Points:
    """Points ``(y, x)`` of a line of the padded map, within the border."""
    line = line.round(_DIGITS)
    whole = np.floor(line)
    rest = line - whole
    clear = whole + np.where(rest > 0, rest.clip(_CLEAR, 1 - _CLEAR), 0)
    return (clear[:, ::-1] - 1).clip(-0.5, np.array(shape) - 0.5)


def _corners(ring: Points) -> Points:
    """A ring without repeated points and without those on a straight edge."""
    ring = ring[(ring != np.roll(ring, 1, 0)).any(1)]
    before, after = ring - np.roll(ring, 1, 0), np.roll(ring, -1, 0) - ring
    return ring[np.abs(before[:, 0] * after[:, 1] - before[:, 1] * after[:, 0]) > 1e-12]
