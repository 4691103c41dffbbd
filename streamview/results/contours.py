"""Outline what a map shows: the same lines on the canvas, in pictures, in reports and around hotspots.

Between the centres of a map's pixels values are interpolated linearly, as displays do, and the lines run where they meet the threshold
(marching squares, https://doi.org/10.1145/37402.37422).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from contourpy import contour_generator
from numpy.typing import NDArray

from streamview.results.display import Shown
from streamview.results.glass import Glass

__all__ = ["DIGITS", "contours", "generator", "just_below", "shown_shares", "within_border"]

Points = NDArray[np.float64]
_LEAST = 1e-6  # share of the cap: a threshold of 0 hides what is not positive
_CLEAR = 0.01  # px: as near a line comes to a pixel's centre, so that it never meets itself there
DIGITS = 9  # of points, one coordinate of which is a whole number but for rounding


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
    return [within_border(line, shares.shape) for line in generator(shares).lines(just_below(threshold))]


def generator(shares: NDArray[np.float32]) -> Any:  # its methods are typed for all forms of lines at once
    """What follows lines; half a pixel beyond the outermost centres is the border."""
    return contour_generator(z=np.pad(shares, 1, mode="edge"), line_type="Separate", fill_type="OuterOffset")


def just_below(threshold: float) -> float:
    """A level that what equals the threshold lies above."""
    return float(np.nextafter(np.float32(threshold), np.float32(0)))


def within_border(line: NDArray[np.float64], shape: tuple[int, ...]) -> Points:
    """Points ``(y, x)`` of a line of the padded map, within the border."""
    line = line.round(DIGITS)
    whole = np.floor(line)
    rest = line - whole
    clear = whole + np.where(rest > 0, rest.clip(_CLEAR, 1 - _CLEAR), 0)
    return (clear[:, ::-1] - 1).clip(-0.5, np.array(shape) - 0.5)
