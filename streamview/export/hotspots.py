"""Hotspots: the areas that a display shows, ranked, in level-0 pixels and mm2."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from streamview.export.outlines import outline, signed_area
from streamview.labels.annotations import Polygon
from streamview.results import Saliency
from streamview.results.display import Recipe, apply_recipe, blur, show

__all__ = ["Hotspot", "find_hotspots"]

_FINEST = 4096  # px a side of the finest grid for outlines


@dataclass(frozen=True, slots=True, eq=False)
class Hotspot:
    """A connected area in which the blurred map exceeds a display's threshold.

    Parameters
    ----------
    polygon
        Its outline in level-0 pixels; level-0 pixel k covers ``k`` to ``k + 1``.
    area
        In level-0 px2.
    area_mm2
        In mm2; None if the mpp is unknown.
    mass
        Share (0..1) of the map's positive mass inside.
    peak
        Largest raw value of the blurred map inside.
    """

    polygon: Polygon
    area: float
    area_mm2: float | None
    mass: float
    peak: float


def find_hotspots(saliency: Saliency, recipe: Recipe, most: int = 1000) -> tuple[Hotspot, ...]:
    """Find the areas that a recipe shows, those with most of the map's mass first.

    Outlines follow the edges of the map's pixels, on its finest level of at most 4096 px a side that still resolves the blur, and are
    clipped to the region. Pixels are connected by their sides.

    Parameters
    ----------
    saliency
        The map.
    recipe
        The map, its blur and its threshold.
    most
        Largest number of hotspots.

    Raises
    ------
    StreamviewError
        If the saliency has no such map.
    """
    shown = show(saliency, recipe)
    index = shown.fitting(_FINEST)
    level, step, origin = shown.levels[index], shown.steps[index], shown.origins[index]
    values = blur(np.asarray(level.raw[:, :], np.float32), level.sigma)
    labels, count = ndimage.label(apply_recipe(values, shown.cap, shown.threshold) > 0)
    if not count:
        return ()
    values = np.nan_to_num(np.maximum(values, 0))  # a copy: the stored map must not change
    masses = np.bincount(labels.ravel(), values.ravel())[1:]
    total = float(values.sum(dtype=np.float64))
    windows = ndimage.find_objects(labels)
    mpp = saliency.mpp
    hotspots = []
    for number in np.argsort(-masses, kind="stable")[:most].tolist():
        rows, columns = windows[number]
        inside = labels[rows, columns] == number + 1
        polygon = _placed(outline(inside), (rows.start, columns.start), step, origin, saliency)
        area = signed_area(polygon.exterior) + sum(signed_area(hole) for hole in polygon.holes)  # that of holes is negative
        peak = float(values[rows, columns][inside].max())
        hotspots.append(Hotspot(polygon, area, None if mpp is None else area * mpp[0] * mpp[1] / 1e6, float(masses[number]) / total, peak))
    return tuple(hotspots)


def _placed(
    polygon: Polygon, first: tuple[int, int], step: tuple[float, float], origin: tuple[float, float], saliency: Saliency
) -> Polygon:
    """Convert from the level's pixel corners to level-0 pixels, clipped to the region, which coarse pixels may exceed."""
    region = saliency.prediction.region
    corner = np.array(origin) - np.array(step) / 2 + 0.5

    def place(ring: NDArray[np.float64]) -> NDArray[np.float64]:
        placed = corner + (ring + first) * step
        return np.asarray(placed.clip((region.y, region.x), (region.y_stop, region.x_stop)), np.float64)

    holes = (place(hole) for hole in polygon.holes)
    return Polygon(place(polygon.exterior), tuple(hole for hole in holes if signed_area(hole)))
