"""Find a slide's tissue: a mask at low resolution, bounding boxes, and the share of the tissue in a region.

Stain absorbs at least one of red, green and blue: a pixel is tissue if its largest absorption relative to glass exceeds Otsu's threshold
(https://doi.org/10.1109/TSMC.1979.4310076), on pixels the size of a nucleus, after a median filter, without specks and with small holes
filled.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from streamview.errors import SlideError
from streamview.geometry import Region
from streamview.slides import Slide
from streamview.slides.thumbnail import thumbnail

__all__ = ["Tissue", "covered", "find_tissue", "otsu", "tissue_boxes", "tissue_region", "tissue_regions", "tissue_share", "union_covered"]

_LARGEST = 2**22  # px of the mask
_PIXEL_UM = 8.0  # finer pixels tell nuclei from what lies between them, which is tissue too
_GLASS, _DARKEST_GLASS = 99, 210  # percentile of each channel; a slide full of tissue shows no glass
_MEDIAN = 5  # px
_LEAST, _MOST = 12, 25  # grey levels: below is noise of glass, above is tissue also where Otsu parts dark from pale tissue
_SPECK_UM, _HOLE_UM = 100.0, 250.0  # side of the square below whose area a part is a speck, a hole none
_SPECK_PX, _HOLE_PX = 16, 64  # the same in px of the mask at least, and all there is where the mpp is unknown


@dataclass(frozen=True, slots=True, eq=False)
class Tissue:
    """The tissue of a slide.

    Parameters
    ----------
    mask
        bool (h, w), the whole slide; True on tissue.
    shape
        ``(height, width)`` of the slide in level-0 pixels. Pixel (i, j) of the mask covers the level-0 rows ``i * step`` to
        ``(i + 1) * step`` where ``step = height / h`` (columns alike).
    threshold
        Grey levels lost against glass above which a pixel counts as tissue.
    """

    mask: NDArray[np.bool_]
    shape: tuple[int, int]
    threshold: int

    @property
    def step(self) -> tuple[float, float]:
        """Level-0 pixels per pixel of the mask, ``(y, x)``."""
        return self.shape[0] / self.mask.shape[0], self.shape[1] / self.mask.shape[1]


def find_tissue(slide: Slide) -> Tissue:
    """Find the tissue of a slide on pixels of 8 um (of level 0 where the mpp is unknown or coarser), at most 4 megapixels of them.

    Memory is bounded, and the same slide gives the same mask.

    Parameters
    ----------
    slide
        A brightfield slide; everything that absorbs light counts as tissue, including pen marks.

    Raises
    ------
    SlideError
        If that level cannot be read.
    """
    finest = max(1.0, math.sqrt(math.prod(slide.shape) / _LARGEST))
    steps = (finest, finest) if slide.mpp is None else (max(finest, _PIXEL_UM / slide.mpp[0]), max(finest, _PIXEL_UM / slide.mpp[1]))
    shape = max(1, math.floor(slide.shape[0] / steps[0])), max(1, math.floor(slide.shape[1] / steps[1]))
    rgb = thumbnail(slide, Region(0, 0, *slide.shape), shape)
    glass = np.percentile(rgb.reshape(-1, 3), _GLASS, axis=0, method="lower").clip(min=_DARKEST_GLASS).astype(np.uint8)
    loss = (np.maximum(glass, rgb) - rgb).max(axis=-1)
    loss = ndimage.median_filter(loss, _MEDIAN, mode="nearest")
    threshold = min(max(otsu(loss), _LEAST), _MOST)
    speck, hole = _SPECK_PX, _HOLE_PX
    if slide.mpp is not None:
        pixel = math.prod(slide.mpp) * math.prod(slide.shape) / math.prod(shape)  # um2
        speck, hole = max(speck, round(_SPECK_UM**2 / pixel)), max(hole, round(_HOLE_UM**2 / pixel))
    mask = _without_small(loss > threshold, speck)
    return Tissue(~_without_small(~mask, hole, open_to_edge=True), slide.shape, threshold)


def otsu(values: NDArray[np.uint8]) -> int:
    """Return the grey level that parts uint8 values best into two classes, the lower one up to and including it; see the module."""
    counts = np.bincount(values.ravel(), minlength=256).astype(np.float64)
    below, level = np.cumsum(counts), np.arange(256)
    above, mass = below[-1] - below, np.cumsum(counts * level)
    with np.errstate(divide="ignore", invalid="ignore"):
        between = below * above * (mass / below - (mass[-1] - mass) / above) ** 2
    return int(np.argmax(np.nan_to_num(between)))


def tissue_boxes(tissue: Tissue, margin: float = 0.0) -> tuple[Region, ...]:
    """Return the bounding boxes of the connected parts, in level-0 pixels, rounded outwards, those with most tissue first.

    Parameters
    ----------
    tissue
        From `find_tissue`.
    margin
        Parts whose boxes are no more than this many level-0 pixels apart share one box; boxes that overlap always do.
    """
    return tuple(box for box, _ in _parts(tissue, margin))


def tissue_regions(
    tissue: Tissue, name: str, near: float = 0.0, align: tuple[float, float] = (1.0, 1.0), least: tuple[float, float] = (0.0, 0.0)
) -> tuple[Region, ...]:
    """Return one region for each piece of tissue, none of which overlap, those with most tissue first.

    Parameters
    ----------
    tissue
        From `find_tissue`.
    name
        Of the slide, for messages.
    near
        Pieces whose boxes are no more than this many level-0 pixels apart share one region.
    align
        Level-0 pixels ``(y, x)`` to multiples of which regions are grown outwards; all are cut to the slide.
    least
        Level-0 pixels ``(y, x)`` that a region has at least, where the slide has them; smaller boxes grow about their centre.

    Raises
    ------
    SlideError
        When there is no tissue.
    """
    if not tissue.mask.any():
        raise SlideError(f"{name}: no tissue was found to crop to; answer whole slides, or name the part with --region")
    grown = [(_aligned(_at_least(box, least, tissue.shape), align, tissue.shape), size) for box, size in _parts(tissue, near)]
    return tuple(box for box, _ in _merged(grown, -1))


def tissue_region(tissue: Tissue, name: str, align: tuple[float, float] = (1.0, 1.0)) -> Region:
    """Return the bounding box of all tissue, grown outwards to multiples of `align` level-0 pixels ``(y, x)`` and cut to the slide.

    Raises
    ------
    SlideError
        When there is no tissue; the message names the slide `name`.
    """
    rows, columns = (np.flatnonzero(tissue.mask.any(axis)) for axis in (1, 0))
    if not rows.size:
        raise SlideError(f"{name}: no tissue was found to crop to; answer whole slides, or name the part with --region")
    box = _box(tissue, (slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)))
    return _aligned(box, align, tissue.shape)


def covered(tissue: Tissue, region: Region) -> float:
    """Return the share (0..1) of the slide's tissue that lies inside a level-0 region; 0 for a slide without tissue."""
    total = int(tissue.mask.sum())
    if not total:
        return 0.0
    rows = _shares_inside(tissue.mask.shape[0], tissue.step[0], region.y, region.y_stop)
    columns = _shares_inside(tissue.mask.shape[1], tissue.step[1], region.x, region.x_stop)
    return round(float(rows @ (tissue.mask @ columns)) / total, 9)  # all of it is 1 and not a rounding less


def union_covered(tissue: Tissue, regions: Sequence[Region]) -> float:
    """Return the share (0..1) of the slide's tissue that lies inside any of several level-0 regions, which may overlap."""
    total = int(tissue.mask.sum())
    if not total:
        return 0.0
    inside = 0.0
    edges = sorted({edge for region in regions for edge in (region.y, region.y_stop)})
    for top, bottom in pairwise(edges):  # bands of rows in which the same regions lie side by side
        spans = sorted((region.x, region.x_stop) for region in regions if region.y <= top and region.y_stop >= bottom)
        columns, reached = np.zeros(tissue.mask.shape[1]), 0
        for left, right in spans:
            if right > max(left, reached):
                columns += _shares_inside(tissue.mask.shape[1], tissue.step[1], max(left, reached), right)
                reached = right
        rows = _shares_inside(tissue.mask.shape[0], tissue.step[0], top, bottom)
        held = np.flatnonzero(rows)
        inside += float(rows[held] @ (tissue.mask[held] @ columns))
    return round(inside / total, 9)


def tissue_share(tissue: Tissue, region: Region) -> float:
    """Return the share (0..1) of a level-0 region that is tissue."""
    area = covered(tissue, region) * int(tissue.mask.sum()) * math.prod(tissue.step)
    return min(1.0, area / math.prod(region.shape))


def _shares_inside(count: int, step: float, start: float, stop: float) -> NDArray[np.float64]:
    """The share (0..1) of each of the mask's rows (or columns), `step` level-0 pixels high, that lies between two level-0 positions."""
    edges = np.arange(count + 1) * step
    shares: NDArray[np.float64] = (np.minimum(edges[1:], stop) - np.maximum(edges[:-1], start)).clip(min=0) / step
    return shares


def _box(tissue: Tissue, window: tuple[slice, slice]) -> Region:
    """A part of the mask in whole level-0 pixels, rounded outwards."""
    # a hair less, so that 3 * (10 / 3) is 10 and no pixel more
    top, left = (math.floor(part.start * step + 1e-6) for part, step in zip(window, tissue.step, strict=True))
    ends = (math.ceil(part.stop * step - 1e-6) for part, step in zip(window, tissue.step, strict=True))
    bottom, right = (min(end, side) for end, side in zip(ends, tissue.shape, strict=True))
    return Region(top, left, bottom - top, right - left)


def _aligned(box: Region, align: tuple[float, float], shape: tuple[int, int]) -> Region:
    """A box grown outwards to multiples of `align` and cut to the slide."""
    top, left = (math.floor(math.floor(edge / unit) * unit) for edge, unit in zip((box.y, box.x), align, strict=True))
    bottom, right = (
        min(math.ceil(math.ceil(edge / unit) * unit), side) for edge, unit, side in zip((box.y_stop, box.x_stop), align, shape, strict=True)
    )
    return Region(top, left, bottom - top, right - left)


def _at_least(box: Region, least: tuple[float, float], shape: tuple[int, int]) -> Region:
    """A box grown about its centre to sides of `least`, inside the slide."""
    height, width = (min(max(side, math.ceil(low)), whole) for side, low, whole in zip(box.shape, least, shape, strict=True))
    top, left = (
        min(max(start - (new - old) // 2, 0), whole - new)
        for start, old, new, whole in zip((box.y, box.x), box.shape, (height, width), shape, strict=True)
    )
    return Region(top, left, height, width)


def _parts(tissue: Tissue, margin: float) -> list[tuple[Region, int]]:
    """Boxes of the connected parts and their pixels of the mask, merged where no more than `margin` apart, largest first."""
    labels, count = ndimage.label(tissue.mask, np.ones((3, 3)))
    sizes = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    parts = [(_box(tissue, window), int(size)) for window, size in zip(ndimage.find_objects(labels), sizes, strict=True)]
    return _merged(parts, margin)


def _merged(parts: list[tuple[Region, int]], margin: float) -> list[tuple[Region, int]]:
    """Boxes no more than `margin` apart as one, with the sum of their sizes, largest first."""
    parts = list(parts)
    merged: list[tuple[Region, int]] = []
    while parts:
        box, size = parts.pop()
        near = [other for other in merged if _apart(box, other[0]) <= margin]
        if near:
            merged = [other for other in merged if _apart(box, other[0]) > margin]
            top, left = (min(box.y, *(o.y for o, _ in near)), min(box.x, *(o.x for o, _ in near)))
            bottom, right = (max(box.y_stop, *(o.y_stop for o, _ in near)), max(box.x_stop, *(o.x_stop for o, _ in near)))
            parts.append((Region(top, left, bottom - top, right - left), size + sum(other for _, other in near)))
        else:
            merged.append((box, size))
    return sorted(merged, key=lambda part: (-part[1], part[0]))


def _apart(one: Region, other: Region) -> int:
    """Level-0 pixels between two boxes, along the axis where they are further apart; negative where they overlap."""
    return max(max(one.y, other.y) - min(one.y_stop, other.y_stop), max(one.x, other.x) - min(one.x_stop, other.x_stop))


def _without_small(mask: NDArray[np.bool_], smallest: int, *, open_to_edge: bool = False) -> NDArray[np.bool_]:
    """The connected parts of at least so many pixels, and with `open_to_edge` all that reach the mask's edge."""
    labels, count = ndimage.label(mask)
    large = np.bincount(labels.ravel(), minlength=count + 1) >= smallest
    if open_to_edge:
        for side in (labels[0], labels[-1], labels[:, 0], labels[:, -1]):
            large[side] = True
    large[0] = False
    return np.asarray(large[labels], np.bool_)
