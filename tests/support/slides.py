"""Slides that tests share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

__all__ = ["SyntheticSlide"]


@dataclass(frozen=True, slots=True, eq=False)
class SyntheticSlide:
    """A slide file, its lesion mask (level 0) and its mpp."""

    path: Path
    lesion: npt.NDArray[np.bool_]
    mpp: float
