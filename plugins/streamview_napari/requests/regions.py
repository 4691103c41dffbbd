"""Regions between a slide's pixels and a viewer's world; pure, so that everything here is tested without a window.

World positions are in um, or in level-0 pixels where the mpp is unknown; the centre of level-0 pixel (0, 0) is at the origin.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from streamview.errors import RegionError
from streamview.geometry import Region

__all__ = ["corners", "describe_size", "describe_too_small", "grid_scale", "square", "within"]

_ULPS = 4  # of float32 that an edge which napari leaves in place may be off
_SMALLEST = 32  # px of the screen that a rectangle has at least on each side


def grid_scale(mpp: tuple[float, float] | None, target: float | None) -> tuple[float, float]:
    """Return level-0 pixels per pixel of the network's grid, ``(y, x)``, never below 1; 1 where either mpp is unknown."""
    if mpp is None or target is None:
        return 1.0, 1.0
    return max(1.0, target / mpp[0]), max(1.0, target / mpp[1])


def square(
    side: int, centre: tuple[float, float], shape: tuple[int, int], mpp: tuple[float, float] | None, scale: tuple[float, float]
) -> Region:
    """Return the level-0 region of `side` pixels of the network's grid around a position, moved and cut to lie inside the slide.

    Parameters
    ----------
    side
        In px of the grid.
    centre
        ``(y, x)`` in the world.
    shape
        ``(height, width)`` of the slide in level-0 px.
    mpp
        ``(y, x)`` um per level-0 px; None where the world is in px.
    scale
        ``(y, x)`` level-0 px per px of the grid; see `grid_scale`.
    """
    spans = []
    for middle, size, unit, step in zip(centre, shape, mpp or (1.0, 1.0), scale, strict=True):
        extent = min(round(side * step), size)
        first = round(middle / unit + 0.5 - extent / 2)
        spans.append((min(max(first, 0), size - extent), extent))
    (y, height), (x, width) = spans
    return Region(y, x, height, width)


def within(vertices: Sequence[Sequence[float]] | NDArray[np.floating], shape: tuple[int, int], mpp: tuple[float, float] | None) -> Region:
    """Return the whole level-0 pixels nearest to the bounding box of what was drawn, as far as they are on the slide.

    What is a region's own corners gives that region again, also from napari's float32; one that was moved keeps its size, and one of
    which an edge was dragged keeps the edge opposite.

    Parameters
    ----------
    vertices
        (n, 2) positions ``(y, x)`` in the world.
    shape, mpp
        As for `square`.

    Raises
    ------
    RegionError
        When it lies outside the slide.
    """
    positions = np.asarray(vertices, float)[:, -2:] / (mpp or (1.0, 1.0)) + 0.5  # the edges of pixel k are at k and k + 1
    low, high = positions.min(axis=0), positions.max(axis=0)
    precision = _ULPS * np.spacing(np.float32(np.abs(positions).max()))
    first = np.floor(low + 0.5)
    last = first + np.ceil(high - low - 0.5 - precision)  # a half, rounded up in the first, is rounded down in the extent
    last = np.where(np.abs(high - np.round(high)) <= precision, np.round(high), last)  # an edge that was left in place stays
    (top, left), (bottom, right) = (np.clip(edge, 0, shape).astype(int) for edge in (first, last))
    if bottom <= top or right <= left:
        raise RegionError("the rectangle lies outside the slide; draw one on it")
    return Region(int(top), int(left), int(bottom - top), int(right - left))


def describe_too_small(
    shape: tuple[float, float], pixel: float, smallest: tuple[float, float], mpp: tuple[float, float] | None
) -> str | None:
    """Say why a rectangle is too small to be a region, and what to do; None where it is not.

    Parameters
    ----------
    shape
        ``(height, width)`` of the rectangle in level-0 px.
    pixel
        Level-0 px per px of the screen.
    smallest
        ``(height, width)`` in level-0 px that the network takes at least; 0 where that is not known.
    mpp
        ``(y, x)`` um per level-0 px.
    """
    if min(shape) < _SMALLEST * pixel:
        return f"Too small to be meant: drag over at least {_SMALLEST} × {_SMALLEST} px of the screen, or zoom in first."
    if shape[0] < smallest[0] or shape[1] < smallest[1]:
        return f"Too small for the network: it takes {describe_size((math.ceil(smallest[0]), math.ceil(smallest[1])), mpp)} or more."
    return None


def corners(region: Region, mpp: tuple[float, float] | None) -> NDArray[np.float64]:
    """Return the outer corners of a level-0 region in the world, float64 (4, 2) as napari's rectangles take them."""
    (top, left), (bottom, right) = (
        np.subtract(edge, 0.5) * (mpp or (1.0, 1.0)) for edge in ((region.y, region.x), (region.y_stop, region.x_stop))
    )
    return np.array([[top, left], [top, right], [bottom, right], [bottom, left]])


def describe_size(shape: tuple[int, int], mpp: tuple[float, float] | None) -> str:
    """Say how large something is, width first: ``"2048 × 1024 px · 1.02 × 0.51 mm"``."""
    text = f"{shape[1]} × {shape[0]} px"
    if mpp is None:
        return text
    width, height = (pixels * unit / 1000 for pixels, unit in zip(reversed(shape), reversed(mpp), strict=True))
    digits = 2 if max(width, height) < 10 else 1
    if min(width, height) < 0.1:
        digits = max(digits, 1 - math.floor(math.log10(min(width, height))))
    return f"{text} · {width:.{digits}f} × {height:.{digits}f} mm"
