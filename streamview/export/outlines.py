"""Outline a mask along the edges of its pixels: areas are exact, and rasterising the outline gives the same mask."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from streamview.labels.annotations import Points, Polygon

__all__ = ["outline", "signed_area"]

_RIGHT, _DOWN, _LEFT, _UP = range(4)


def outline(part: NDArray[np.bool_]) -> Polygon:
    """Trace one part of a mask.

    Parameters
    ----------
    part
        bool (h, w); its pixels are connected by their sides.

    Returns
    -------
    Polygon
        Integer corners; pixel (i, j) covers ``i`` to ``i + 1`` and ``j`` to ``j + 1``. Rings are simple: if the part touches itself at a
        corner, it has two rings that meet there.

    Raises
    ------
    ValueError
        If no pixel is set, or they are not connected.
    """
    exterior: list[Points] = []
    holes: list[Points] = []
    for ring in _rings(part):
        (exterior if signed_area(ring) > 0 else holes).append(ring)
    if len(exterior) != 1:
        raise ValueError(f"{len(exterior)} parts: expected one whose pixels are connected by their sides")
    return Polygon(exterior[0], tuple(holes))


def signed_area(ring: Points) -> float:
    """Area of a ring of corners ``(y, x)``, float64 (n, 2): positive where x turns towards y, as an exterior of `outline` does."""
    y, x = (ring - ring[0]).T
    return float(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2


def _rings(part: NDArray[np.bool_]) -> Iterator[Points]:
    """Yield all rings, with the part on the right-hand side of each edge."""
    height, width = part.shape
    around = np.pad(part, 1)
    # bit mask of the directions in which edges leave each pixel corner; corner (i, j) is the top left one of pixel (i, j)
    leaving = np.zeros((height + 1, width + 1), np.uint8)
    leaving[:-1, :-1] |= (part & ~around[:-2, 1:-1]).astype(np.uint8) << _RIGHT
    leaving[:-1, 1:] |= (part & ~around[1:-1, 2:]).astype(np.uint8) << _DOWN
    leaving[1:, 1:] |= (part & ~around[2:, 1:-1]).astype(np.uint8) << _LEFT
    leaving[1:, :-1] |= (part & ~around[1:-1, :-2]).astype(np.uint8) << _UP
    edges, left = leaving.tobytes(), bytearray(leaving.tobytes())
    moves = (1, width + 1, -1, -width - 1)
    for start in np.flatnonzero(leaving).tolist():
        while left[start]:
            yield from _follow(start, edges, left, moves, width + 1)


def _follow(start: int, edges: bytes, left: bytearray, moves: tuple[int, ...], pitch: int) -> Iterator[Points]:
    """Follow the edges from a corner until they close, and split the path into simple rings."""
    first = (left[start] & -left[start]).bit_length() - 1
    corner, direction = start, first
    path, seen = [start], {start: 0}
    while True:
        left[corner] &= ~(1 << direction)
        corner += moves[direction]
        here = edges[corner]
        # right turns first: the path stays at its pixel, and pixels that only touch at a corner are not joined
        turn = next(turn for turn in (1, 0, 3) if here >> ((direction + turn) & 3) & 1)
        closed = corner == start and (direction + turn) & 3 == first
        if turn or closed:
            if corner in seen:
                since = seen[corner]
                yield np.array([divmod(other, pitch) for other in path[since:]], np.float64)
                for other in path[since + 1 :]:
                    del seen[other]
                del path[since + 1 :]
            else:
                seen[corner] = len(path)
                path.append(corner)
        if closed:
            return
        direction = (direction + turn) & 3
