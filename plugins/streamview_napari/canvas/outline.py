"""The outline of a shown map as napari draws it: yellow over a black halo, a few pixels wide on the screen at any zoom. Pure.

One layer of vectors: those of the halo first, on both sides of the line, then the line itself. Vectors are made at once in numpy, where
shapes are triangulated one by one.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamview.export import outlines
from streamview.results.display import HALO_COLOUR, OUTLINE_COLOUR
from streamview.results.shown_map import FULL, ShownMap

__all__ = ["contours", "line_width", "outline_layer", "vectors"]

_FINEST = 1024  # px a side of the level whose contours are followed
_MOST = 4000  # segments; beyond, lines take longer steps
_SPECK = 3.0  # widths of the line: smaller areas would be nothing but outline, and get theirs when one zooms in
_WIDTH = 3.4  # screen px of the line; the halo is twice as wide


def contours(shown: ShownMap) -> list[NDArray[np.float64]]:
    """Follow the edges of what a map shows, on its finest level of at most 1024 px a side, as pictures and hotspots do.

    Returns
    -------
    list of numpy.ndarray
        Lines, float64 (n, 2), in level-0 pixels ``(y, x)``: closed, or open where the border of the map cuts an area off.
    """
    level = next((n for n, level in enumerate(shown.levels) if max(level.shape) <= _FINEST), len(shown.levels) - 1)
    height, width = shown.levels[level].shape
    threshold = max(shown.shown.threshold, 1 / FULL)
    if shown.shown.cap <= 0:
        return []
    values = np.nan_to_num((shown.blurred(level, (0, height), (0, width)) / np.float32(shown.shown.cap)).clip(0, 1))
    values[shown.per_cent(level, (0, height), (0, width)) == 0] = 0  # glass
    step, origin = (np.array(pair) for pair in shown.map.placed(level))
    return [line * step + origin for line in outlines.contours(values, threshold)]


def line_width(zoom: float) -> float:
    """Width of the line in um (or px without mpp), for a zoom in screen px per um; the same within each quarter of an octave."""
    return _WIDTH / float(2 ** (round(4 * math.log2(max(zoom, 1e-9))) / 4))


def vectors(
    lines: list[NDArray[np.float64]], width: float, colour: str = OUTLINE_COLOUR
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Turn lines into vectors, without those of areas that are hardly larger than the line is wide.

    Parameters
    ----------
    lines
        As of `contours`, float64 (n, 2).
    width
        Of each vector, in the lines' unit.
    colour
        Of the line between its halos.

    Returns
    -------
    vectors
        float32 (m, 2, 2): start and extent, the halo's on both sides first.
    colours
        float32 (m, 4) RGBA.
    """
    lines = [line for line in lines if np.ptp(line, axis=0).max() >= _SPECK * width]
    stride = max(math.ceil(sum(map(len, lines)) / _MOST), 1)
    lines = [np.concatenate([line[:-1:stride], line[-1:]]) for line in lines]
    points = np.concatenate([*lines, np.zeros((1, 2))])
    starts, extents = points[:-1], np.diff(points, axis=0)
    lengths = np.hypot(*extents.T)
    inner = lengths > 0
    inner[np.cumsum([len(line) for line in lines], dtype=int) - 1] = False  # from one line to the next
    starts, extents, lengths = starts[inner], extents[inner], lengths[inner, None]
    along = extents / lengths
    starts, extents = starts - along * width / 4, extents + along * width / 2  # over the joints
    across = along[:, ::-1] * (width / 2, -width / 2)
    strokes = [np.stack([starts + side * across, extents], axis=1) for side in (-1, 1, 0)]
    colours = [_rgba(each) for each in (HALO_COLOUR, HALO_COLOUR, colour)]
    return np.concatenate(strokes).astype(np.float32), np.repeat(np.array(colours, np.float32), len(starts), axis=0)


def _rgba(colour: str) -> tuple[float, ...]:
    return (*(int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)), 1.0)


def outline_layer(
    lines: list[NDArray[np.float64]], width: float, name: str, in_um: bool, colour: str = OUTLINE_COLOUR
) -> tuple[Any, dict[str, Any], str]:
    """Return the layer tuple of lines in world units, um or level-0 pixels."""
    data, colours = vectors(lines, width, colour)
    unit = "um" if in_um else "pixel"
    options = {
        "name": name,
        "edge_width": width,
        "edge_color": colours if len(colours) else colour,
        "vector_style": "line",
        "opacity": 1.0,
        "blending": "translucent_no_depth",
        "units": (unit, unit),
        "axis_labels": ("y", "x"),
        "ndim": 2,
    }
    return data, options, "vectors"
