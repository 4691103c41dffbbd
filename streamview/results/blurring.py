"""Blurs of a raw map: on which of its levels, how wide, and the blur itself. Pure functions.

Everything up to the blur is linear, so a map is blurred on the coarsest level that still resolves the blur (standard deviation of at
least four pixels). Block means over f pixels already blur with a variance of ``(f**2 - 1) / 12`` px**2, which is subtracted from the
requested blur.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from streamview.errors import StreamviewError
from streamview.results.maps import Method, Plane, Saliency, SaliencyMap, halve

__all__ = ["Raws", "block_means", "blur", "blurs_of", "resolving", "um_per_px"]

_RESOLVED = 4.0  # px: standard deviation from which sampling a blur loses nothing visible
_THREADED, _BANDS = 2**19, 4  # px from which a blur uses threads, and how many
_PAPER_WIDTH_UM = 8192 * 2.0  # the paper's region: 8192 px at 2 um/px, where 100 um are 50 px

Raws = tuple[NDArray[np.float32] | Plane, ...]
"""All levels of a map, the finest first."""


def blur(values: NDArray[np.float32], sigma: tuple[float, float]) -> NDArray[np.float32]:
    """Gaussian blur of a float32 (h, w) map, truncated at four standard deviations, with replicated edges.

    NaN, where a map was not computed, stays NaN; beside it the blur is the weighted mean of the known values.
    """
    absent = np.isnan(values)
    if absent.any():
        known = blur((~absent).astype(np.float32), sigma)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(absent, np.float32(np.nan), blur(np.where(absent, np.float32(0), values), sigma) / known)
    for axis, width in enumerate(sigma):
        if width > 0 and values.size < _THREADED:
            values = ndimage.gaussian_filter1d(values, width, axis, mode="nearest", truncate=4.0)
        elif width > 0:
            bands, out = np.array_split(values, _BANDS, 1 - axis), np.empty(values.shape, np.float32)
            into = np.array_split(out, _BANDS, 1 - axis)

            def filtered(part: NDArray[np.float32], place: NDArray[np.float32], axis: int = axis, width: float = width) -> None:
                ndimage.gaussian_filter1d(part, width, axis, output=place, mode="nearest", truncate=4.0)

            with ThreadPoolExecutor(_BANDS) as threads:
                list(threads.map(filtered, bands, into))
            values = out
    return values


def blurs_of(saliency: Saliency, method: Method, blur_um: float) -> tuple[Raws, list[tuple[float, float]]]:
    """All levels of a map, and for each the (y, x) standard deviation in px that blurs it by `blur_um`.

    Raises
    ------
    StreamviewError
        If the saliency has no such map.
    """
    if method not in saliency.maps:
        raise StreamviewError(
            f"there is no {method} map here, only {', '.join(saliency.maps)}; class evidence requires a network that ends in pooling "
            "and one linear layer: choose another display"
        )
    saliency_map, unit = saliency.maps[method], um_per_px(saliency)
    raws = saliency_map.levels if saliency_map.coarser else block_means(saliency_map.values)
    return raws, [_sigma(saliency_map, blur_um, unit, level) for level in range(len(raws))]


def resolving(sigmas: list[tuple[float, float]]) -> int:
    """Index of the coarsest level that still resolves the blur."""
    return max((level for level, sigma in enumerate(sigmas) if min(sigma) >= _RESOLVED), default=0)


def um_per_px(saliency: Saliency) -> tuple[float, float]:
    """``(y, x)`` um per px of the network's grid; where it is unknown, the region's longer side is taken to be the paper's 16.4 mm."""
    region = saliency.prediction.region
    assumed = _PAPER_WIDTH_UM / max(region.height, region.width)
    return saliency.mpp or (assumed, assumed)


def _sigma(saliency_map: SaliencyMap, blur_um: float, unit: tuple[float, float], level: int) -> tuple[float, float]:
    factor = 2**level
    variances = [(blur_um / (step * um)) ** 2 - (factor**2 - 1) / 12 for step, um in zip(saliency_map.step, unit, strict=True)]
    y, x = (math.sqrt(max(variance, 0.0)) / factor for variance in variances)
    return y, x


def block_means(values: NDArray[np.float32] | Plane) -> Raws:
    """Return a map and its coarser levels, as in the stored form: block means down to at most 512 px."""
    levels = [values]
    while max(levels[-1].shape) > 512:
        levels.append(halve(np.asarray(levels[-1])))
    return tuple(levels)
