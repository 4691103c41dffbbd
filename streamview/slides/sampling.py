"""Resample a region of a slide to a network's mpp."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from scipy import sparse

from streamview.errors import RegionError, SlideError
from streamview.geometry import Region, as_region
from streamview.slides.readahead import ReadAhead
from streamview.slides.slide import Slide

__all__ = ["SAMPLING_VERSION", "Sampler"]

SAMPLING_VERSION = 1
"""Part of every result's identity; increased when resampling may give other pixels for the same region of the same slide."""
_COARSER_ALLOWED = 1.10
_LEVEL_SLACK = 1.01  # vendors truncate odd sizes, so a level 4x coarser has a ratio such as 4.002
_BLOCK = 2048  # side of a block of source pixels processed at a time


class Sampler:
    """A level-0 region of a slide resampled to a target mpp: the network's grid.

    Pixel (i, j) of the grid covers level-0 rows ``region.y + i * scale`` to ``region.y + (i + 1) * scale`` (columns alike) and is
    the mean of the level's pixels weighted by the area they share with it, rounded half up. The grid depends only on the region
    and the scale, so reading it in pieces equals reading it whole, bit for bit. A grid pixel that exceeds the slide's edge is the mean
    of the part inside.

    Parameters
    ----------
    slide
        Source of the pixels.
    region
        In level-0 pixels; None for the whole slide.
    mpp
        Micrometres per pixel of the grid; None for level 0 unchanged. A slide up to 10 % coarser is read unchanged.

    Raises
    ------
    RegionError
        If the region is not inside level 0.
    SlideError
        If `mpp` is given but the slide's is unknown, or the slide is more than 10 % coarser.
    """

    def __init__(self, slide: Slide, region: Region | None = None, mpp: float | None = None) -> None:
        region = Region(0, 0, *slide.shape) if region is None else as_region(region)
        if region.level != 0 or not region.inside(slide.shape):
            height, width = slide.shape
            raise RegionError(
                f"{slide.name}: region {region} (X,Y,WIDTH,HEIGHT) of level {region.level}: expected one inside level 0,"
                f" which is {width} x {height} px; give a region inside it"
            )
        self._slide = slide
        self.region = region
        self.scale = (1.0, 1.0) if mpp is None else _scale(slide, mpp)
        self.mpp = slide.mpp if mpp is None or slide.mpp is None else (max(slide.mpp[0], mpp), max(slide.mpp[1], mpp))
        self.shape = max(1, round(region.height / self.scale[0])), max(1, round(region.width / self.scale[1]))
        self._level = _nearest_finer(slide, self.scale)
        self.level = slide.levels[0 if self.scale == (1.0, 1.0) else self._level].downsample

    def read(self, y0: int, y1: int, x0: int, x1: int) -> npt.NDArray[np.uint8]:
        """Return rows ``y0:y1`` and columns ``x0:x1`` of the grid as uint8 (y1 - y0, x1 - x0, 3), C-contiguous RGB.

        Raises
        ------
        RegionError
            When they are not inside the grid.
        SlideError
            When a part of the slide cannot be read.
        """
        if not (0 <= y0 < y1 <= self.shape[0] and 0 <= x0 < x1 <= self.shape[1]):
            raise RegionError(
                f"rows {y0}:{y1}, columns {x0}:{x1}: expected a part of the grid, {self.shape[0]} rows by {self.shape[1]} columns"
            )
        if self.scale == (1.0, 1.0):
            return self._slide.read(Region(self.region.y + y0, self.region.x + x0, y1 - y0, x1 - x0))
        out = np.empty((y1 - y0, x1 - x0, 3), np.uint8)
        downsample = self._slide.levels[self._level].downsample
        rows, columns = (max(1, int(_BLOCK * d / s)) for d, s in zip(downsample, self.scale, strict=True))
        for y in range(y0, y1, rows):
            for x in range(x0, x1, columns):
                out[y - y0 : y - y0 + rows, x - x0 : x - x0 + columns] = self._block(y, min(y + rows, y1), x, min(x + columns, x1))
        return out

    def strips(self, rows: int) -> Iterator[tuple[int, npt.NDArray[np.uint8]]]:
        """Yield the whole grid from top to bottom; each strip is read in a thread while the one before is processed.

        Parameters
        ----------
        rows
            Rows per strip; the last may have fewer.

        Yields
        ------
        tuple
            First row of the strip, and its pixels as from `read`.

        Raises
        ------
        SlideError
            When a part of the slide cannot be read.
        """
        height, width = self.shape
        order = [((y, min(y + rows, height)), (0, width)) for y in range(0, height, rows)]
        with ReadAhead(lambda down, across: self.read(*down, *across), order) as ahead:
            for down, across in order:
                yield down[0], ahead.read(down, across)

    def _block(self, y0: int, y1: int, x0: int, x1: int) -> npt.NDArray[np.uint8]:
        (top, rows), (left, columns) = self._weights(0, y0, y1), self._weights(1, x0, x1)
        height, width = rows.shape[1], columns.shape[1]
        pixels = self._slide.read(Region(top, left, height, width, self._level)).astype(np.float32)
        narrow = (rows @ pixels.reshape(height, width * 3)).reshape(y1 - y0, width, 3)
        across = np.ascontiguousarray(narrow.transpose(1, 0, 2)).reshape(width, -1)
        mean = (columns @ across).reshape(x1 - x0, y1 - y0, 3).transpose(1, 0, 2)
        rounded: npt.NDArray[np.uint8] = np.floor(mean + np.float32(0.5)).clip(0, 255).astype(np.uint8, order="C")
        return rounded

    def _weights(self, axis: int, start: int, stop: int) -> tuple[int, sparse.csr_array]:
        """First source pixel, and the weights (stop - start, source pixels) of float32 that average them, along one axis."""
        level = self._slide.levels[self._level]
        origin = (self.region.y, self.region.x)[axis]
        size, downsample, scale = level.shape[axis], level.downsample[axis], self.scale[axis]
        # Each edge is computed from its position on the whole grid, never from the requested piece.
        edges = ((origin + np.arange(start, stop + 1) * scale) / downsample).clip(0, size)
        low, high = np.minimum(edges[:-1], size - 1e-3), edges[1:]
        first = np.floor(low).astype(np.intp)
        last = np.maximum(np.ceil(high).astype(np.intp), first + 1).clip(max=size)
        counts = last - first
        output = np.repeat(np.arange(stop - start), counts)
        source = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts) + first[output]
        shared = np.minimum(source + 1, high[output].clip(min=low[output] + 1e-6)) - np.maximum(source, low[output])
        shared = shared.clip(min=0)
        weights = shared / np.bincount(output, shared)[output]
        begin = int(first[0])
        matrix = sparse.csr_array((weights.astype(np.float32), (output, source - begin)), shape=(stop - start, int(last.max()) - begin))
        return begin, matrix


def _nearest_finer(slide: Slide, scale: tuple[float, float]) -> int:
    """Index of the coarsest level that is not coarser than the grid."""
    levels = [level.downsample for level in slide.levels]
    return max(
        (k for k, (y, x) in enumerate(levels) if y <= scale[0] * _LEVEL_SLACK and x <= scale[1] * _LEVEL_SLACK), key=levels.__getitem__
    )


def _scale(slide: Slide, mpp: float) -> tuple[float, float]:
    """Level-0 pixels per grid pixel, (y, x), never below 1."""
    if slide.mpp is None:
        remedy = "" if "--mpp" in slide.mpp_source else "; state the slide's with --mpp"
        raise SlideError(f"{slide.name}: micrometres per pixel are {slide.mpp_source}, but {mpp:g} is asked for{remedy}")
    if not (math.isfinite(mpp) and mpp > 0):
        raise SlideError(f"{mpp} um/px asked for: expected a positive number such as 0.5")
    coarsest = max(slide.mpp)
    if coarsest > mpp * _COARSER_ALLOWED * (1 + 1e-9):
        raise SlideError(
            f"{slide.name}: {coarsest:g} um/px ({slide.mpp_source}) is more than 10% coarser than the {mpp:g} um/px asked for;"
            " use a finer scan or a model made for coarser ones"
        )
    return max(1.0, mpp / slide.mpp[0]), max(1.0, mpp / slide.mpp[1])
