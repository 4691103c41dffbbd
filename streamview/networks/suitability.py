"""Whether a region is what a network was trained for, judged by its pixels: glass, stain, and the scale that was stated.

None of it changes an answer; what does not fit becomes a warning that stays with the result. Optical density is
``log10(glass / pixel)``, which adds up with the amount of stain (https://doi.org/10.1109/ISBI.2009.5193250). In hematoxylin and eosin
green is absorbed most; the brown of diaminobenzidine absorbs blue most, and with a blue counterstain red and blue are absorbed as much.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from streamview.networks.cards import ModelCard

__all__ = ["Overview", "contradicted_scale", "holds_tissue", "tissue_density", "unsuitable"]

_SIDE = 256  # px of an overview at most
_GLASS, _DARKEST_GLASS = 99, 210  # as in `streamview.slides.tissue`
_LOSS = 20  # grey levels lost against glass above which a pixel counts as tissue
_DARK = 50  # grey level of the median pixel below which a region is no bright-field scan; the darkest H&E measured has 90
_BLACK, _BLACK_SHARE = (
    40,
    1 / 3,
)  # a pixel with two channels below this is dark whatever its hue, up to 3% of real H&E; so many are too many
_STRONG = 0.3  # summed optical density above which the hue of a pixel is clear
_LEAST_GREEN = 0.355  # share of green in the optical density: 0.37 to 0.52 in 256 px windows of real H&E, 0.31 to 0.335 in Ki-67
_MOST_BROWN = 0.04  # share of clear pixels that absorb blue most: up to 0.01 in real H&E, 0.18 in the median window of Ki-67
_STAIN_SLACK, _STAIN_SPREAD = 0.1, 3.0  # allowed difference of a colour's share: so much, and so many standard deviations
_INTENSITY_SLACK = 2.5  # allowed factor between the optical densities
_LEAST_PIXELS = 100  # of tissue, before its colour is judged
_LEAST_SHARE, _LEAST_MM2 = 0.01, 0.1  # less tissue than both is none
_SCALE_SLACK = 1.25  # factor between the mpp given and the file's own


class Overview:
    """Pixels of a region at every n-th row and column of the network's grid, gathered while the region is read.

    Which they are depends on the region alone, not on the pieces it is read in. At most 256 a side.

    Parameters
    ----------
    shape
        ``(height, width)`` of the region on the network's grid in px, without padding.
    """

    def __init__(self, shape: tuple[int, int]) -> None:
        self._shape = shape
        self._step = max(1, math.ceil(max(shape) / _SIDE))
        size = -(-shape[0] // self._step), -(-shape[1] // self._step)
        self._pixels = np.zeros((*size, 3), np.uint8)
        self._read = np.zeros(size, np.bool_)

    def add(self, pixels: NDArray[np.uint8], rows: tuple[int, int], cols: tuple[int, int]) -> None:
        """Take the pixels (h, w, 3) of these rows and columns of the grid, padding included."""
        spans = zip((rows, cols), self._shape, strict=True)
        (top, bottom), (left, right) = ((-(-first // self._step), -(-min(last, side) // self._step)) for (first, last), side in spans)
        if top < bottom and left < right:
            part = pixels[top * self._step - rows[0] :: self._step, left * self._step - cols[0] :: self._step]
            self._pixels[top:bottom, left:right] = part[: bottom - top, : right - left]
            self._read[top:bottom, left:right] = True

    @property
    def pixels(self) -> NDArray[np.uint8]:
        """uint8 (n, 3): what was read so far."""
        return self._pixels[self._read]


def holds_tissue(share: float, area_mm2: float | None) -> bool:
    """Whether so much of a region is tissue that an answer can be about tissue.

    Parameters
    ----------
    share
        Of the region (0..1) that is tissue.
    area_mm2
        Of that tissue; None where the mpp is unknown.
    """
    return share >= _LEAST_SHARE or (area_mm2 is not None and area_mm2 >= _LEAST_MM2)


def tissue_density(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return the optical density, float64 (n, 3), of those of the pixels uint8 (m, 3) that show tissue on bright glass."""
    if not len(pixels):
        return np.empty((0, 3))
    glass = np.percentile(pixels, _GLASS, axis=0, method="lower").astype(np.float64).clip(min=_DARKEST_GLASS)
    tissue = pixels[(glass - pixels).max(axis=1) > _LOSS]
    density: NDArray[np.float64] = np.log10(glass / tissue.clip(min=1)).clip(min=0)
    return density


def unsuitable(pixels: NDArray[np.uint8], card: ModelCard, area_mm2: float | None) -> tuple[str, ...]:
    """Say how a region's pixels differ from what a network was trained for, one sentence each; nothing where they fit.

    Parameters
    ----------
    pixels
        uint8 (n, 3) RGB, evenly spread over the region.
    card
        Of the network. Without a stain on it the stain is not judged; bright glass is expected unless the stain is fluorescence.
    area_mm2
        Of the region; None where the mpp is unknown.
    """
    if not len(pixels):
        return ()
    stain = card.stain
    fluorescence = stain is not None and "fluor" in stain.name.lower()
    black = np.sort(pixels, axis=1)[:, 1] < _BLACK
    dark = bool(np.median(pixels.mean(axis=1)) < _DARK or black.mean() > _BLACK_SHARE)
    if dark != fluorescence:
        found, expected = (
            ("dark, as fluorescence is", "stained tissue on bright glass") if dark else ("bright", "fluorescence on a dark ground")
        )
        return (f"The region is {found}, where {expected} is expected: the answer means nothing there.",)
    if fluorescence:
        return ()
    density = tissue_density(pixels)
    share = len(density) / len(pixels)
    if not holds_tissue(share, None if area_mm2 is None else share * area_mm2):
        return ("The region holds only glass: hardly any tissue was seen in it, and the answer says nothing of tissue.",)
    if stain is None or len(density) < _LEAST_PIXELS:
        return ()
    total = density.mean(axis=0)
    colour = total / total.sum()
    clear = density[density.sum(axis=1) > _STRONG]
    brown = float((clear[:, 2] > 1.1 * clear[:, :2].max(axis=1)).mean()) if len(clear) else 0.0
    differs = stain.name.upper().replace(" ", "") in ("H&E", "HE", "HES") and (colour[1] < _LEAST_GREEN or brown > _MOST_BROWN)
    if stain.od_mean is not None and stain.od_std is not None:
        mean, std = np.array(stain.od_mean), np.array(stain.od_std)
        differs |= bool((abs(colour - mean / mean.sum()) > _STAIN_SLACK + _STAIN_SPREAD * std / mean.sum()).any())
        ratio = float(total.sum() / mean.sum())
        if not differs and not 1 / _INTENSITY_SLACK <= ratio <= _INTENSITY_SLACK:
            depth = "darker" if ratio > 1 else "paler"
            return (f"The tissue is stained much {depth} than that of the training data: the answer may not hold.",)
    return (f"The stain is not like the {stain.name} that the network was trained on: the answer may mean nothing.",) if differs else ()


def contradicted_scale(given: tuple[float, float] | None, stated: tuple[float, float] | None) -> str | None:
    """Say that the mpp given for a slide contradicts its file; None where it does not.

    Parameters
    ----------
    given
        ``(y, x)`` um/px of level 0 as used.
    stated
        As the file states it; None: it states nothing, or nothing else was given.
    """
    if given is None or stated is None:
        return None
    factor = max(max(used / own, own / used) for used, own in zip(given, stated, strict=True))
    if factor <= _SCALE_SLACK:
        return None
    return (
        f"The slide was read at {given[1]:.4g} um/px, as given, but its file states {stated[1]:.4g}: if the file is right, the network "
        f"sees tissue at a scale wrong by a factor of {factor:.3g}."
    )
