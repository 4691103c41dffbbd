"""Lay a map on pictures of its slide: heat and outline, the same in PNGs, reports, notebooks and figures."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage

from streamview.geometry import Region
from streamview.results.contours import contours, shown_shares
from streamview.results.display import HALO_COLOUR, OUTLINE_COLOUR, Shown, colours
from streamview.results.glass import Glass, glass_mask
from streamview.results.maps import Saliency
from streamview.slides import Slide
from streamview.slides.thumbnail import thumbnail

__all__ = ["MapLayer", "blend", "find_glass", "glass_on", "mean_colour", "overlay"]

_GLASS_SIDE = 1024  # px a side of the thumbnail that glass is looked for on
_BAND_PX = 2**18  # px of a picture coloured at a time
_FINE = 3  # px of the grid that outlines are drawn on, along each side of a pixel of the picture
_HOLE = 0.0005  # share of the picture below which a clear spot counts as a hole in the tissue, not as glass
_FINEST = 2048  # px a side of a whole picture up to which its values come from the same level


def find_glass(slide: Slide, region: Region) -> Glass:
    """Find the empty glass of a region, on a thumbnail of at most 1024 px a side.

    Raises
    ------
    SlideError
        If a part of the slide cannot be read.
    """
    factor = min(1.0, _GLASS_SIDE / max(region.shape))
    shape = max(round(region.height * factor), 1), max(round(region.width * factor), 1)
    return Glass.over_region(glass_on(thumbnail(slide, region, shape), slide.background), region)


def glass_on(tissue: NDArray[np.uint8], background: tuple[int, int, int]) -> NDArray[np.bool_]:
    """Mask of the empty glass on a thumbnail, uint8 (h, w, 3); `background` is the RGB of glass."""
    return glass_mask(tissue, background, max(int(_HOLE * tissue.shape[0] * tissue.shape[1]), 16))


@dataclass(frozen=True, slots=True, eq=False)
class MapLayer:
    """A shown map, ready to be laid on pictures of any part of its region.

    Parameters
    ----------
    saliency, shown
        The map and how it is shown.
    glass
        Where the region is empty; None: not known.
    lines
        Its outlines in level-0 pixels ``(y, x)``, whose pixel k covers k to k + 1; none where the recipe draws none.
    """

    saliency: Saliency
    shown: Shown
    glass: Glass | None
    lines: tuple[NDArray[np.float64], ...]

    @classmethod
    def prepare(cls, saliency: Saliency, shown: Shown, glass: Glass | None) -> MapLayer:
        """Follow the outlines of a map, where its recipe draws them."""
        lines: tuple[NDArray[np.float64], ...] = ()
        if shown.recipe.outline:
            step, origin = shown.steps[shown.overview], shown.origins[shown.overview]
            lines = tuple(np.array(origin) + 0.5 + line * step for line in contours(*shown_shares(shown, glass)))
        return cls(saliency, shown, glass, lines)

    def values(self, window: Region, shape: tuple[int, int], rows: tuple[int, int] | None = None) -> NDArray[np.float32]:
        """Resample what is shown onto a picture: shares of the cap, 0 where nothing is shown.

        Parameters
        ----------
        window
            The pictured part of the region, level-0 pixels.
        shape
            Height and width of the picture in px.
        rows
            The first row and the one behind the last; default all.

        Returns
        -------
        numpy.ndarray
            float32 (rows, width).
        """
        rows = rows or (0, shape[0])
        shown = _resampled(self.saliency, self.shown, window, shape, rows)
        if self.glass is None or not self.shown.recipe.glass:
            return shown
        pitch = window.height / shape[0], window.width / shape[1]
        y = window.y + (np.arange(*rows, dtype=np.float64) + 0.5) * pitch[0] - 0.5
        x = window.x + (np.arange(shape[1], dtype=np.float64) + 0.5) * pitch[1] - 0.5
        return np.where(self.glass.over(y, x), np.float32(0), shown)

    def outlines(self, window: Region, shape: tuple[int, int]) -> list[NDArray[np.float64]]:
        """Outlines ``(y, x)`` in px of a picture, whose pixel k covers k to k + 1; parameters as of `values`."""
        pitch = np.array(window.shape) / shape
        return [(line - (window.y, window.x)) / pitch for line in self.lines]

    def draw(self, tissue: NDArray[np.uint8], window: Region) -> NDArray[np.uint8]:
        """Draw heat and outline over a picture, uint8 (h, w, 3), of a part of the region."""
        (height, width), recipe = tissue.shape[:2], self.shown.recipe
        picture = np.empty((height, width, 3), np.uint8)
        line = max(1.5, max(height, width) / 1000)  # half width of the outline: 3 px, or 4 on a picture of 2000
        lines = self.outlines(window, (height, width))
        # in bands, since colours and distances take many times the memory of the picture
        rows = max(_BAND_PX // width, 1)
        for first in range(0, height, rows):
            stop = min(first + rows, height)
            rgb, alpha = colours(recipe, self.values(window, (height, width), (first, stop)))
            band = blend(tissue[first:stop], rgb * 255, alpha * recipe.opacity * recipe.heat)
            if recipe.outline:
                band = _outlined(band, lines, first, line)
            picture[first:stop] = np.rint(band)
        return picture


def overlay(
    tissue: NDArray[np.uint8], saliency: Saliency, shown: Shown, background: tuple[int, int, int]
) -> tuple[NDArray[np.uint8], tuple[int, int, int]]:
    """Draw a map over a thumbnail of its region.

    Parameters
    ----------
    tissue
        uint8 (h, w, 3), the whole region of `saliency`.
    saliency, shown
        The map.
    background
        RGB of glass, on which nothing is shown.

    Returns
    -------
    picture
        uint8 (h, w, 3).
    behind
        Mean RGB of the tissue, the background of the colour bar.
    """
    region, glass = saliency.prediction.region, glass_on(tissue, background)
    layer = MapLayer.prepare(saliency, shown, Glass.over_region(glass, region))
    return layer.draw(tissue, region), mean_colour(tissue, glass, background)


def mean_colour(tissue: NDArray[np.uint8], glass: NDArray[np.bool_], background: tuple[int, int, int]) -> tuple[int, int, int]:
    """Mean RGB of a thumbnail outside the glass; that of glass where there is nothing else."""
    total, count = np.zeros(3), 0
    rows = max(_BAND_PX // tissue.shape[1], 1)
    for first in range(0, tissue.shape[0], rows):
        there = ~glass[first : first + rows]
        total += tissue[first : first + rows][there].sum(axis=0, dtype=np.int64)
        count += int(np.count_nonzero(there))
    red, green, blue = (int(value) for value in (total / count if count else background))
    return red, green, blue


def blend(below: NDArray[np.uint8] | NDArray[np.float32], rgb: NDArray[np.float32], alpha: NDArray[np.float32]) -> NDArray[np.float32]:
    """Lay colours, float32 (h, w, 3), with opacities, float32 (h, w), over a picture."""
    share = alpha[..., None]
    return np.asarray(below * (1 - share) + rgb * share, np.float32)


def _resampled(saliency: Saliency, shown: Shown, window: Region, shape: tuple[int, int], rows: tuple[int, int]) -> NDArray[np.float32]:
    """Resample the displayed map linearly onto rows of a picture of a part of its region; values below the threshold stay hidden."""
    region = saliency.prediction.region
    ty, tx = window.height / shape[0], window.width / shape[1]
    whole = round(region.height / ty), round(region.width / tx)  # size of a picture of the whole region on this scale
    index = shown.fitting(max(_FINEST, *whole))
    (sy, sx), (oy, ox) = shown.steps[index], shown.origins[index]
    # Picture pixel i is centred at level-0 position window.y + (i + 0.5) * t - 0.5; see SaliencyMap for the map's pixels.
    y, x = (window.y + (rows[0] + 0.5) * ty - 0.5 - oy) / sy, (window.x + 0.5 * tx - 0.5 - ox) / sx
    level = shown.levels[index].without_threshold()
    count = rows[1] - rows[0]
    top, bottom = _span(y, count * ty / sy, level.shape[0])
    left, right = _span(x, shape[1] * tx / sx, level.shape[1])
    part = level[top:bottom, left:right]
    order = 0 if shown.recipe.method == "patches" else 1  # a patch has one value
    values = ndimage.affine_transform(part, (ty / sy, tx / sx), (y - top, x - left), (count, shape[1]), order=order, mode="nearest")
    return np.where(values >= max(shown.threshold, np.float32(1e-6)), values, np.float32(0))


def _span(start: float, length: float, size: int) -> tuple[int, int]:
    """The pixels of a level that interpolation between a start and an end looks at."""
    first = min(max(math.floor(start) - 1, 0), size - 1)
    return first, min(max(math.ceil(start + length) + 2, first + 1), size)


def _outlined(band: NDArray[np.float32], lines: list[NDArray[np.float64]], first: int, half: float) -> NDArray[np.float32]:
    """Draw outlines on the rows of a picture from `first`: a line over a halo of double width, both with soft edges."""
    height, width = band.shape[:2]
    near = [line for line in lines if line[:, 0].max() > first - 3 * half and line[:, 0].min() < first + height + 3 * half]
    for colour, reach in ((HALO_COLOUR, 2 * half), (OUTLINE_COLOUR, half)):
        mask = Image.new("L", (width * _FINE, height * _FINE))
        draw = ImageDraw.Draw(mask)
        for line in near:
            draw.line(((line[:, ::-1] - (0, first)) * _FINE).ravel().tolist(), 255, round(2 * reach * _FINE), joint="curve")
        share = np.asarray(mask.resize((width, height), Image.Resampling.BOX), np.float32) / np.float32(255)
        rgb = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)], np.float32)
        band = blend(band, rgb, share)
    return band
