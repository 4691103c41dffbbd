"""Hotspots: the areas that a display shows for a class of interest, ranked, in level-0 pixels and mm2."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from streamview.errors import StreamviewError
from streamview.export.outlines import find_areas, shown_shares, signed_area
from streamview.labels.annotations import Polygon
from streamview.results import Saliency
from streamview.results.blurring import blur
from streamview.results.display import Recipe, show
from streamview.results.glass import Glass

__all__ = ["Hotspot", "find_hotspots", "no_hotspots"]


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
        Largest value of the blurred map inside, as a share of the display's cap; above 1 where the map exceeds the cap.
    peak_raw
        The same value in the raw map's unit.
    peak_at
        ``(y, x)`` of the peak in level-0 pixels.
    """

    polygon: Polygon
    area: float
    area_mm2: float | None
    mass: float
    peak: float
    peak_raw: float
    peak_at: tuple[float, float]


def no_hotspots(saliency: Saliency) -> str | None:
    """Return a sentence saying why a map has no hotspots: its target is not a class of interest; None where it may have some."""
    prediction, target = saliency.prediction, saliency.target
    if prediction.is_of_interest(target):
        return None
    classes = " or ".join(prediction.positive)
    named = f"the class{'es' if len(prediction.positive) > 1 else ''} of interest on the card of {prediction.model_name}"
    return f"Hotspots are of {classes}, {named}, and this map explains {target}: explain {classes} for hotspots."


def find_hotspots(saliency: Saliency, recipe: Recipe, most: int = 1000, glass: Glass | None = None) -> tuple[Hotspot, ...]:
    """Find the areas that a recipe shows, those with most of the map's mass first.

    Outlines are those of pictures and of the canvas (see `streamview.export.outlines`), on the level that the cap comes from (at most
    2048 px a side), closed along the region's border.

    Parameters
    ----------
    saliency
        The map.
    recipe
        The map, its blur and its threshold.
    most
        Largest number of hotspots.
    glass
        Where the region is empty, which displays hide; None: not known.

    Raises
    ------
    StreamviewError
        If the saliency has no such map, or the map explains a class that is not of interest, where the card names those that are.
    """
    reason = no_hotspots(saliency)
    if reason is not None:
        raise StreamviewError(reason)
    shown = show(saliency, recipe)
    level, step, origin = shown.levels[shown.overview], shown.steps[shown.overview], shown.origins[shown.overview]
    areas = find_areas(*shown_shares(shown, glass))
    if not areas.count:
        return ()
    values = np.nan_to_num(np.maximum(blur(np.asarray(level.raw[:, :], np.float32), level.sigma), 0))
    numbers = np.arange(1, areas.count + 1)
    masses = np.bincount(areas.labels.ravel(), values.ravel(), areas.count + 1)[1:]
    peaks = ndimage.maximum(values, areas.labels, numbers)
    places = np.array(ndimage.maximum_position(values, areas.labels, numbers)) * step + origin
    total = float(values.sum(dtype=np.float64))
    mpp = saliency.mpp
    hotspots = []
    for index in np.argsort(-masses, kind="stable")[:most].tolist():
        polygon = _placed(areas.polygon(index + 1), step, origin, saliency)
        area = signed_area(polygon.exterior) + sum(signed_area(hole) for hole in polygon.holes)  # that of holes is negative
        area_mm2 = None if mpp is None else area * mpp[0] * mpp[1] / 1e6
        peak = float(peaks[index])
        peak_at = float(places[index, 0]), float(places[index, 1])
        hotspots.append(Hotspot(polygon, area, area_mm2, float(masses[index]) / total, peak / shown.cap, peak, peak_at))
    return tuple(hotspots)


def _placed(polygon: Polygon, step: tuple[float, float], origin: tuple[float, float], saliency: Saliency) -> Polygon:
    """Convert from the level's pixels to level-0 pixels, clipped to the region, which coarse pixels may exceed."""
    region = saliency.prediction.region

    def place(ring: NDArray[np.float64]) -> NDArray[np.float64]:
        placed = np.array(origin) + 0.5 + ring * step
        return np.asarray(placed.clip((region.y, region.x), (region.y_stop, region.x_stop)), np.float64)

    holes = (place(hole) for hole in polygon.holes)
    return Polygon(place(polygon.exterior), tuple(hole for hole in holes if signed_area(hole)))
