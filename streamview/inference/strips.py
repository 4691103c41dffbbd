"""Finished rows of saliency maps, for whoever watches while the rest is computed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from streamview.results import Prediction, SaliencyMap, Target

__all__ = ["Strip", "Watch"]


@dataclass(frozen=True, slots=True, eq=False)
class Strip:
    """Finished rows of the maps of one target, for whoever watches while the rest is computed.

    The first of every target has no rows: it says that prediction and evidence are known. Rows come from the last to the first. Where
    memory ran out all begins anew, in smaller steps.

    Parameters
    ----------
    prediction
        The answer that the maps explain.
    target
        What they explain.
    y
        First row, px of the network's grid.
    rows
        float32 (2, n, width) of the maps ``"absolute"`` and ``"signed"``; not to be changed.
    step, origin
        ``(y, x)`` in level-0 pixels, of the whole maps; see `SaliencyMap`.
    evidence
        The evidence map, where the network offers it.
    """

    prediction: Prediction
    target: Target
    y: int
    rows: NDArray[np.float32]
    step: tuple[float, float]
    origin: tuple[float, float]
    evidence: SaliencyMap | None


Watch = Callable[[Strip], None]
