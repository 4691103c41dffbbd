"""A map that is being computed, small enough to be drawn again and again; pure."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from streamview.inference.strips import Strip
    from streamview.results import Prediction, SaliencyMap

__all__ = ["LiveMap"]

_SIDE = 1024  # px
_PEAK = 99.5  # percentile of the positive values that is drawn at full strength


class LiveMap:
    """Block means of the largest \\|gradient\\|, at most 1024 px a side, filled strip by strip.

    `watch` is called in the thread that computes; whoever draws reads the attributes, which are only ever replaced or written to.
    """

    def __init__(self) -> None:
        self.prediction: Prediction | None = None
        """The answer, as soon as it is known."""
        self.evidence: SaliencyMap | None = None
        """The evidence map, which is known at the same time."""
        self.target = ""
        self.values: NDArray[np.float32] | None = None
        """float32 (h, w); zero where nothing is computed yet."""
        self.step = self.origin = (1.0, 1.0)
        """``(y, x)`` in level-0 pixels of `values`; see `streamview.results.SaliencyMap`."""
        self._factor = 1

    def watch(self, strip: Strip) -> None:
        """Take a strip; one without rows begins anew."""
        rows = strip.rows[0]
        height, width = strip.prediction.shape
        if not len(rows):
            self._factor = factor = math.ceil(max(height, width) / _SIDE)
            self.step = strip.step[0] * factor, strip.step[1] * factor
            self.origin = strip.origin[0] + strip.step[0] * (factor - 1) / 2, strip.origin[1] + strip.step[1] * (factor - 1) / 2
            self.values = np.zeros((-(-height // factor), -(-width // factor)), np.float32)
            self.target, self.evidence, self.prediction = strip.target.name, strip.evidence, strip.prediction
            return
        if self.values is None:
            return
        columns = np.add.reduceat(rows, np.arange(0, width, self._factor), axis=1)
        index = np.arange(strip.y, strip.y + len(rows)) // self._factor
        first = np.flatnonzero(np.diff(index, prepend=-1))
        self.values[index[first]] += np.add.reduceat(columns, first, axis=0) / np.float32(self._factor**2)

    @property
    def peak(self) -> float:
        """Value drawn at full strength; above 0."""
        known = np.empty(0) if self.values is None else self.values[self.values > 0]
        return float(np.percentile(known, _PEAK)) if known.size else 1.0
