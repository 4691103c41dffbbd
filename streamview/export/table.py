"""Hotspots as a table: CSV for spreadsheets and statistics."""

from __future__ import annotations

import csv
import io
import os
from pathlib import Path

from streamview.export.hotspots import find_hotspots
from streamview.files import atomic
from streamview.results import RESEARCH_USE, Saliency
from streamview.results.display import Recipe
from streamview.results.glass import Glass

__all__ = ["write_hotspot_table"]


def write_hotspot_table(saliency: Saliency, recipe: Recipe, path: str | os.PathLike[str], glass: Glass | None = None) -> Path:
    """Write the areas that a recipe shows as a CSV, one row each, those with most of the map's mass first.

    Positions are the bounding box in level-0 pixels; ``area_mm2`` is empty if the mpp is unknown; ``peak`` is a share of the cap.

    Parameters
    ----------
    saliency
        The map.
    recipe
        Its blur and threshold.
    path
        The file; written completely or not at all.
    glass
        As for `find_hotspots`.

    Raises
    ------
    StreamviewError
        As `find_hotspots`, or if the disk is full.
    """
    path, prediction = Path(path), saliency.prediction
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = "slide target answer map rank x y width height area_px2 area_mm2 share_of_mass peak peak_raw trained identity note"
    writer.writerow(names.split())
    for rank, hotspot in enumerate(find_hotspots(saliency, recipe, glass=glass), 1):
        (top, left), (bottom, right) = hotspot.polygon.exterior.min(0), hotspot.polygon.exterior.max(0)
        writer.writerow(
            [
                *(prediction.slide_name, saliency.target.name, prediction.answer_for(saliency.target), recipe.method, rank),
                *(f"{value:.9g}" for value in (left, top, right - left, bottom - top, hotspot.area)),
                "" if hotspot.area_mm2 is None else f"{hotspot.area_mm2:.6g}",
                *(f"{hotspot.mass:.6g}", f"{hotspot.peak:.6g}", f"{hotspot.peak_raw:.6g}", "yes" if prediction.trained else "no"),
                *(prediction.identity.key, RESEARCH_USE),
            ]
        )
    atomic.write_text(path, text.getvalue())
    return path
