"""Which steps depend on a part of the image: what lies beside it is one even colour whose gradient nobody asks for.

A forward pass repeats the other steps from earlier ones, and a backward pass leaves them out: neither changes what is wanted.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

from streamview.streaming.graph import Bound, Program
from streamview.streaming.step import Grid

__all__ = ["Reach", "busy_steps", "summed"]


class Reach:
    """How far back in the image the steps of a pass over it see.

    Parameters
    ----------
    bound
        The network for one size of image.
    program
        The pass, whose first source is the image.
    """

    def __init__(self, bound: Bound, program: Program) -> None:
        self._bound, self._sinks = bound, [(value, program.values[value]) for value, _ in program.sinks]
        self._first = cache(self._first_needed)

    def steps(self, grid: Grid, axis: int) -> list[int]:
        """First row (axis 0) or column (axis 1) of the image on which what each step makes depends."""
        schedule = grid.rows if axis == 0 else grid.cols
        first_seen = []
        for step in range(schedule.steps):
            # what was made of this step's pixels before the last value has it is part of what the last value will need
            ahead = [self._first(value, min(schedule.new(local, step)[0], schedule.sizes[local] - 1), axis) for local, value in self._sinks]
            first_seen.append(min(schedule.new(0, step)[0], *ahead))
        return first_seen

    def first(self, value: int, element: int, axis: int) -> int:
        """First row or column of the image that an element of a value depends on."""
        return self._first(value, element, axis)

    def _first_needed(self, value: int, element: int, axis: int) -> int:
        bound = self._bound
        ranges = {value: (element, element + 1)}
        for earlier in range(value, 0, -1):
            if earlier not in ranges or earlier not in bound.graph.nodes:
                continue
            op = bound.ops[earlier]
            for source in bound.graph.nodes[earlier].inputs:
                low, high, _, _ = (op.rows if axis == 0 else op.cols).need(*ranges[earlier], bound.sizes[source][axis])
                known = ranges.get(source, (low, high))
                ranges[source] = min(low, known[0]), max(high, known[1], low + 1)
        return ranges.get(0, (0, 1))[0]


def summed(parts: NDArray[np.bool_]) -> NDArray[np.int64]:
    """How many cells are set above and left of every corner of a cell, (h + 1, w + 1) for bool (h, w)."""
    total = np.zeros((parts.shape[0] + 1, parts.shape[1] + 1), np.int64)
    total[1:, 1:] = parts.cumsum(0).cumsum(1)
    return total


def busy_steps(reach: Reach, grid: Grid, total: NDArray[np.int64]) -> NDArray[np.bool_]:
    """The steps that depend on parts of the image.

    Parameters
    ----------
    reach
        Of the pass.
    grid
        Its steps.
    total
        The parts, in cells that cover the image evenly, as `summed` gives them.

    Returns
    -------
    numpy.ndarray
        bool (rows of steps, columns of steps).
    """
    height, width = grid.size(0)
    rows = _cells(reach.steps(grid, 0), [grid.rows.new(0, i)[1] for i in range(grid.rows.steps)], height, total.shape[0] - 1)
    columns = _cells(reach.steps(grid, 1), [grid.cols.new(0, j)[1] for j in range(grid.cols.steps)], width, total.shape[1] - 1)
    (top, bottom), (left, right) = rows, columns
    inside = total[np.ix_(bottom, right)] - total[np.ix_(top, right)] - total[np.ix_(bottom, left)] + total[np.ix_(top, left)]
    return np.asarray(inside > 0)


def _cells(starts: Sequence[int], stops: Sequence[int], length: int, count: int) -> tuple[NDArray[np.int_], NDArray[np.int_]]:
    """The cells that rows or columns of the image touch: first, and the one behind the last."""
    return np.array(starts) * count // length, -(-np.array(stops) * count // length)
