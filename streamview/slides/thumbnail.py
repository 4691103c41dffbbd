"""A region of a slide at the size of a picture, in bounded memory."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from streamview.geometry import Region
from streamview.progress import Progress, Report
from streamview.slides import Slide

__all__ = ["pixels_read", "thumbnail"]

_STRIP_BYTES = 16 * 2**20


def pixels_read(slide: Slide, region: Region, shape: tuple[int, int]) -> int:
    """Count the pixels that `thumbnail` reads: many where a slide has no small level."""
    (y, x) = slide.levels[_level(slide, (region.height / shape[0], region.width / shape[1]))].downsample
    return math.ceil(region.height / y) * math.ceil(region.width / x)


def thumbnail(slide: Slide, region: Region, shape: tuple[int, int], report: Report | None = None) -> NDArray[np.uint8]:
    """Read a level-0 region as uint8 (h, w, 3) of exactly `shape`.

    The nearest finer level is averaged over each pixel's area (interpolated where even level 0 is coarser), a strip at a time.

    Raises
    ------
    SlideError
        When a part of the slide cannot be read.
    """
    step = region.height / shape[0], region.width / shape[1]
    index = _level(slide, step)
    level = slide.levels[index]
    ratio = step[0] / level.downsample[0], step[1] / level.downsample[1]
    start = region.y / level.downsample[0], region.x / level.downsample[1]
    reach = 0 if ratio[0] >= 1 else 3  # interpolation looks at its neighbours, averaging does not
    method = Image.Resampling.BOX if min(ratio) >= 1 else Image.Resampling.BICUBIC
    left = min(math.floor(start[1]), level.shape[1] - 1)
    right = min(math.ceil(start[1] + ratio[1] * shape[1]), level.shape[1])
    band = max(1, int(_STRIP_BYTES / (3 * (right - left) * ratio[0])))
    picture = np.empty((*shape, 3), np.uint8)
    progress = Progress("picture", shape[0], report)
    for row in range(0, shape[0], band):
        rows = min(band, shape[0] - row)
        first, last = start[0] + row * ratio[0], start[0] + (row + rows) * ratio[0]
        top = min(max(math.floor(first) - reach, 0), level.shape[0] - 1)
        bottom = min(math.ceil(last) + reach, level.shape[0])
        strip = slide.read(Region(top, left, bottom - top, right - left, index))
        edge = min(start[1] - left + ratio[1] * shape[1], right - left)
        box = (start[1] - left, max(first - top, 0), edge, min(last - top, bottom - top))
        picture[row : row + rows] = np.asarray(Image.fromarray(strip).resize((shape[1], rows), method, box))
        progress.advance(rows)
    return picture


def _level(slide: Slide, step: tuple[float, float]) -> int:
    """Index of the coarsest level that is as fine as a picture with this step, (y, x) in level-0 pixels; 0 if none is."""
    fine = [i for i, level in enumerate(slide.levels) if level.downsample[0] <= step[0] and level.downsample[1] <= step[1]]
    return max(fine, default=0)
