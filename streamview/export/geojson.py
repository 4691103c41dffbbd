"""GeoJSON for QuPath: level-0 pixels, closed rings, measurements, one annotation per hotspot."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from streamview.export.hotspots import Hotspot, find_hotspots
from streamview.files import atomic
from streamview.labels.annotations import Points, Polygon
from streamview.results import RESEARCH_USE, Saliency
from streamview.results.display import Recipe, show
from streamview.results.glass import Glass

__all__ = ["feature", "write_hotspots"]


def feature(
    polygon: Polygon, *, name: str, kind: str, colour: str, measurements: Mapping[str, float], metadata: Mapping[str, str]
) -> dict[str, Any]:
    """Return a GeoJSON Feature that QuPath shows as an annotation.

    Parameters
    ----------
    polygon
        In level-0 pixels.
    name, kind
        Names of the annotation and of its class.
    colour
        Colour of the class, such as ``"#18c28c"``.
    measurements
        Finite numbers by name, which includes the unit.
    metadata
        Texts by name.
    """
    coordinates = [_closed(ring) for ring in (polygon.exterior, *polygon.holes)]
    return {
        "type": "Feature",
        "id": str(uuid.uuid5(uuid.NAMESPACE_OID, json.dumps([kind, name, dict(metadata), coordinates], sort_keys=True))),
        "geometry": {"type": "Polygon", "coordinates": coordinates},
        "properties": {
            "objectType": "annotation",
            "name": name,
            "classification": {"name": kind, "color": [int(colour[i : i + 2], 16) for i in (1, 3, 5)]},
            "isLocked": False,
            "measurements": dict(measurements),
            "metadata": dict(metadata),
        },
    }


def write_hotspots(saliency: Saliency, recipe: Recipe, path: str | os.PathLike[str], glass: Glass | None = None) -> Path:
    """Write the areas that a recipe shows, ranked by their share of the map's mass.

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
    metadata = {"identity": prediction.identity.key, "note": RESEARCH_USE}
    if not prediction.trained:
        metadata["warning"] = "untrained network: the weights are random"
    features = [
        feature(
            hotspot.polygon,
            name=f"Hotspot {rank}",
            kind=saliency.target.name,
            colour=recipe.colours[-1],
            measurements=_measurements(hotspot, rank),
            metadata=metadata,
        )
        for rank, hotspot in enumerate(find_hotspots(saliency, recipe, glass=glass), 1)
    ]
    shown = show(saliency, recipe)
    document = {
        "type": "FeatureCollection",
        "features": features,
        "streamview": {
            "note": RESEARCH_USE,
            "slide": prediction.slide_name,
            "region": str(prediction.region),
            "network": prediction.model_name,
            "prediction": prediction.label,
            "mpp": saliency.mpp,
            "map": recipe.method,
            "blur_um": recipe.blur_um,
            "threshold": shown.cap * shown.threshold,
            "threshold_share_of_cap": shown.threshold,
            "target": saliency.target.name,
            "answer": prediction.answer_for(saliency.target),
            "warnings": list(prediction.warnings),
            "identity": prediction.identity.to_dict() | {"key": prediction.identity.key},
        },
    }
    atomic.write_text(path, json.dumps(document, ensure_ascii=False, allow_nan=False) + "\n")
    return path


def _measurements(hotspot: Hotspot, rank: int) -> dict[str, float]:
    area = {"Area px^2": hotspot.area} if hotspot.area_mm2 is None else {"Area mm^2": hotspot.area_mm2}
    return {
        "Rank": rank,
        **area,
        "Share of the map's mass": hotspot.mass,
        "Peak (share of cap)": hotspot.peak,
        "Peak (raw)": hotspot.peak_raw,
    }


def _closed(ring: Points) -> list[list[float]]:
    """Corners ``[x, y]`` in thousandths of a pixel, the first one repeated; whole numbers as int."""
    points = [[int(x) if x == int(x) else x, int(y) if y == int(y) else y] for y, x in ring.round(3).tolist()]
    return [*points, points[0]]
