"""Squares on the network's grid: a map averaged over each, and how much of each is tissue."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from streamview.geometry import Region
from streamview.inference.prepared import PreparedRun
from streamview.results import SaliencyMap

__all__ = ["Squares", "average", "cell_side", "patch_side", "tissue_shares"]

_CELL, _CELLS = 8, 512  # px, and how many a side at most
_PATCHES = 16  # a side, by default
_ROWS = 512  # read at a time
_STAINED = 22  # grey levels that tissue takes from glass at least, as where the display hides glass


@dataclass(frozen=True, slots=True)
class Squares:
    """Squares that a region is divided into; those at the right and below may be cut.

    Parameters
    ----------
    region
        Level-0 pixels.
    scale
        ``(y, x)`` level-0 pixels per px of the network's grid.
    pixels
        Height and width of the region on that grid, without padding.
    side
        Of a square, px of that grid.
    """

    region: Region
    scale: tuple[float, float]
    pixels: tuple[int, int]
    side: int

    @classmethod
    def of(cls, run: PreparedRun, side: int) -> Squares:
        """The squares of a run's region."""
        return cls(run.sampler.region, run.sampler.scale, run.inside, side)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of squares."""
        height, width = self.pixels
        return -(-height // self.side), -(-width // self.side)


def cell_side(pixels: tuple[int, int]) -> int:
    """Return the side in px of the cells in which maps are compared: 8, or more where that would give more than 512 a side."""
    side = _CELL
    while max(pixels) > _CELLS * side:
        side *= 2
    return side


def patch_side(pixels: tuple[int, int]) -> int:
    """Return the default side in px of the patches that are erased: whole eights, about a sixteenth of the region's side."""
    return max(_CELL, round(math.sqrt(pixels[0] * pixels[1]) / _PATCHES / _CELL) * _CELL)


def average(saliency_map: SaliencyMap, squares: Squares) -> NDArray[np.float64]:
    """Return the mean of a map over each square, float64 (rows, columns), reading it in strips.

    A pixel of the map counts in the square that holds its centre; a square without any has the value of the pixel nearest to it, as where
    the map is coarser than the squares.
    """
    rows, columns = (_weights(saliency_map, squares, axis) for axis in (0, 1))
    means = np.zeros(squares.shape)
    for y, strip in saliency_map.values.strips(_ROWS):
        means += rows[:, y : y + len(strip)] @ (columns @ strip.astype(np.float64).T).T
    return means


def _weights(saliency_map: SaliencyMap, squares: Squares, axis: int) -> sparse.csc_array:
    """Weights (squares, pixels of the map) that average along one axis."""
    count, squares_along = saliency_map.values.shape[axis], squares.shape[axis]
    start, scale = (squares.region.y, squares.region.x)[axis], squares.scale[axis]
    step, origin = saliency_map.step[axis], saliency_map.origin[axis]
    centres = (origin + step * np.arange(count) + 0.5 - start) / scale  # px of the grid, of which pixel k covers k to k + 1
    square = np.floor(centres / squares.side + 1e-9).astype(np.intp)
    pixel = np.flatnonzero((square >= 0) & (square < squares_along))
    square = square[pixel]
    empty = np.setdiff1d(np.arange(squares_along), square)
    middles = start + (empty + 0.5) * squares.side * scale - 0.5
    nearest = np.rint((middles - origin) / step).astype(np.intp).clip(0, count - 1)
    square, pixel = np.concatenate([square, empty]), np.concatenate([pixel, nearest])
    weights = 1 / np.bincount(square, minlength=squares_along)[square]
    return sparse.csc_array((weights, (square, pixel)), shape=(squares_along, count))


def tissue_shares(run: PreparedRun, squares: Squares) -> NDArray[np.float64]:
    """Return the share of each square (0..1) that is tissue: pixels darker than glass by 22 grey levels or more in a channel.

    Raises
    ------
    SlideError
        When a part of the slide cannot be read.
    """
    (height, width), side = run.inside, squares.side
    glass = np.array(run.slide.background, np.int16)
    rows, columns = squares.shape
    shares = np.empty((rows, columns))
    edges = np.arange(columns) * side
    widths = np.minimum(edges + side, width) - edges
    at_once = max(1, _ROWS // side)
    for first in range(0, rows, at_once):
        top, bottom = first * side, min((first + at_once) * side, height)
        stained = (glass - run.sampler.read(top, bottom, 0, width)).max(-1) >= _STAINED
        across = np.add.reduceat(stained, edges, axis=1, dtype=np.int64)
        starts = np.arange(0, bottom - top, side)
        heights = np.minimum(starts + side, bottom - top) - starts
        shares[first : first + len(starts)] = np.add.reduceat(across, starts, axis=0) / (heights[:, None] * widths)
    return shares
