"""A region whose glass is one flat colour: what a scanner saw beside the tissue, its noise and its dust, is not computed."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from streamview.slides.sampling import Sampler
from streamview.slides.slide import Slide
from streamview.slides.tissue import find_tissue

__all__ = ["FlatSampler"]

_MARGIN_UM, _MARGIN_PX = 64.0, 4  # about the tissue; px of its mask at least


class FlatSampler:
    """A sampler's grid whose pixels further than 64 um from the tissue have the slide's background colour; read like a `Sampler`.

    Where no tissue is, nothing is decoded.

    Parameters
    ----------
    slide
        Whose tissue is looked for, by `streamview.slides.tissue.find_tissue`.
    sampler
        The region.

    Raises
    ------
    SlideError
        When the slide cannot be read at low resolution.
    """

    def __init__(self, slide: Slide, sampler: Sampler) -> None:
        tissue = find_tissue(slide)
        # of tissue that is outside the region too, so that a region's edge changes nothing
        margin = [_MARGIN_PX] * 2
        if slide.mpp is not None:
            margin = [max(_MARGIN_PX, math.ceil(_MARGIN_UM / (step * mpp))) for step, mpp in zip(tissue.step, slide.mpp, strict=True)]
        near_mask = ndimage.maximum_filter(tissue.mask, [2 * n + 1 for n in margin])
        self._sampler, self._background, self._near_mask, self._step = sampler, slide.background, near_mask, tissue.step
        self.region, self.scale, self.mpp, self.shape = sampler.region, sampler.scale, sampler.mpp, sampler.shape
        self.level = sampler.level

    @property
    def plain(self) -> Sampler:
        """The region as it was scanned."""
        return self._sampler

    def read(self, y0: int, y1: int, x0: int, x1: int) -> npt.NDArray[np.uint8]:
        """Return rows ``y0:y1`` and columns ``x0:x1`` of the grid as uint8 (y1 - y0, x1 - x0, 3), C-contiguous RGB.

        Raises
        ------
        SlideError
            When a part of the slide cannot be read.
        """
        mask = self._mask(y0, y1, x0, x1)
        if mask.all():
            return self._sampler.read(y0, y1, x0, x1)
        out = np.empty((y1 - y0, x1 - x0, 3), np.uint8)
        # a grey is written at once, other colours value by value
        out[:] = self._background[0] if len(set(self._background)) == 1 else self._background
        if not mask.any():
            return out
        near = self.near_tissue(y0, y1, x0, x1)
        columns = np.flatnonzero(np.diff(near.any(0), prepend=False, append=False))
        for start, stop in columns.reshape(-1, 2).tolist():
            scanned = self._sampler.read(y0, y1, x0 + start, x0 + stop)
            np.copyto(out[:, start:stop], scanned, where=near[:, start:stop, None])
        return out

    def near_tissue(self, y0: int, y1: int, x0: int, x1: int) -> npt.NDArray[np.bool_]:
        """Where a part of the grid shows the slide itself, bool (y1 - y0, x1 - x0)."""
        rows, columns = self._places(0, np.arange(y0, y1)), self._places(1, np.arange(x0, x1))
        return np.asarray(self._near_mask[rows].take(columns, 1))

    def _mask(self, y0: int, y1: int, x0: int, x1: int) -> npt.NDArray[np.bool_]:
        """The pixels of the mask that lie on a part of the grid."""
        (top, bottom), (left, right) = self._places(0, np.array([y0, y1 - 1])), self._places(1, np.array([x0, x1 - 1]))
        return np.asarray(self._near_mask[top : bottom + 1, left : right + 1])

    @property
    def parts(self) -> npt.NDArray[np.bool_]:
        """Where the grid shows the slide itself, in cells that cover it evenly, bool (h, w): a cell is True if any of it does."""
        # no larger than a pixel of the mask, so that none lies between the first and the last that a cell meets
        cells = [max(1, math.floor(step / scale)) for step, scale in zip(self._step, self.scale, strict=True)]
        cell_mask = self._near_mask
        for axis, (cell, length) in enumerate(zip(cells, self.shape, strict=True)):
            edges = np.linspace(0, length, math.ceil(length / cell) + 1)
            spans = [(math.floor(start), math.ceil(stop) - 1) for start, stop in pairwise(edges.tolist())]
            first, last = (self._places(axis, np.array(ends)) for ends in zip(*spans, strict=True))
            cell_mask = np.logical_or(cell_mask.take(first, axis), cell_mask.take(last, axis))
        return np.asarray(cell_mask)

    def _places(self, axis: int, pixels: npt.NDArray[np.int_]) -> npt.NDArray[np.intp]:
        """Rows or columns of the mask in which pixels of the grid have their centres."""
        at = (self.region.y, self.region.x)[axis] + (pixels + 0.5) * self.scale[axis]
        return (at / self._step[axis]).astype(np.intp).clip(0, self._near_mask.shape[axis] - 1)
