"""A region laid into a larger grid of zeros, as the paper prepares its images: background cropped, the rest zero-padded to a fixed size."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from streamview.errors import RegionError
from streamview.slides.flat import FlatSampler
from streamview.slides.sampling import Sampler

__all__ = ["AnySampler", "PaddedSampler", "flat_part"]


class PaddedSampler:
    """A sampler's grid with black pixels right of it and below, up to a fixed size; read like a `Sampler`.

    What is padded is no place on the slide. The region's pixels keep their rows and columns.

    Parameters
    ----------
    sampler
        The region.
    shape
        ``(height, width)`` of the padded grid in px.

    Raises
    ------
    RegionError
        When the region is larger than that.
    """

    def __init__(self, sampler: Sampler | FlatSampler, shape: tuple[int, int]) -> None:
        if sampler.shape[0] > shape[0] or sampler.shape[1] > shape[1]:
            found = f"the region is {sampler.shape[1]} x {sampler.shape[0]} px on the network's grid"
            raise RegionError(f"{found}, more than the {shape[1]} x {shape[0]} px to pad it to; pad to more, or choose a smaller region")
        self.inner = sampler
        self.region, self.scale, self.mpp, self.shape = sampler.region, sampler.scale, sampler.mpp, shape
        self.level = sampler.level

    def read(self, y0: int, y1: int, x0: int, x1: int) -> npt.NDArray[np.uint8]:
        """Return rows ``y0:y1`` and columns ``x0:x1`` of the padded grid as uint8 (y1 - y0, x1 - x0, 3), C-contiguous RGB.

        Raises
        ------
        SlideError
            When a part of the slide cannot be read.
        """
        out = np.zeros((y1 - y0, x1 - x0, 3), np.uint8)
        bottom, right = min(y1, self.inner.shape[0]), min(x1, self.inner.shape[1])
        if bottom > y0 and right > x0:
            out[: bottom - y0, : right - x0] = self.inner.read(y0, bottom, x0, right)
        return out


AnySampler = Sampler | FlatSampler | PaddedSampler


def flat_part(sampler: AnySampler) -> FlatSampler | None:
    """The region with flat glass behind a sampler, where it has that."""
    inner = sampler.inner if isinstance(sampler, PaddedSampler) else sampler
    return inner if isinstance(inner, FlatSampler) else None
