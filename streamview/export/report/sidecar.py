"""The report's numbers as JSON, for programs."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any

from streamview.export.report.content import MapView, RegionView, ReportSlide, Spot
from streamview.geometry import Region
from streamview.results import RESEARCH_USE
from streamview.system.versions import versions

__all__ = ["FORMAT", "sidecar"]

FORMAT = "streamview report 1"


def sidecar(slides: Sequence[ReportSlide], written: datetime) -> str:
    """Return a report as JSON text without its pictures; values that are not finite are null."""
    document = {
        "format": FORMAT,
        "note": RESEARCH_USE,
        "written": written.isoformat(timespec="seconds"),
        "versions": versions(),
        "slides": [_slide(slide) for slide in slides],
    }
    return json.dumps(_finite(document), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _slide(slide: ReportSlide) -> dict[str, Any]:
    return {
        "slide_id": slide.slide_id,
        "patient_id": slide.patient_id or None,
        "label": slide.label or None,
        "status": slide.status,
        "error": slide.error,
        "prediction": None if slide.prediction is None else slide.prediction.to_dict(),
        "tissue_covered": slide.tissue_covered,
        "regions": [_place(region) for region in slide.regions],
        "maps": [_map(view, one) for view in slide.views for one in view.maps],
        "warnings": list(slide.warnings),
        "notes": list(slide.notes),
        "provenance": dict(slide.provenance),
        "certificates": [asdict(certified) for certified in slide.certificates],
    }


def _map(view: RegionView, one: MapView) -> dict[str, Any]:
    return {
        "region": _place(view.region),
        "mpp": None if view.mpp is None else list(view.mpp),
        "network": view.network,
        "identity": view.identity,
        "stitched_of": view.regions,
        "target": one.target.name,
        "method": one.recipe.method,
        "display": asdict(one.recipe),
        "cap": one.cap,
        "unit": one.unit,
        "threshold": one.threshold,
        "hotspots": [_spot(rank, spot) for rank, spot in enumerate(one.spots, 1)],
        "notes": list(one.notes),
        "faithfulness": None
        if one.checked is None
        else {
            "verdict": one.checked.line,
            "failed": one.checked.failed,
            "checks": dict(one.checked.checks),
            "details": one.checked.details,
        },
    }


def _spot(rank: int, spot: Spot) -> dict[str, Any]:
    hotspot, (y, x) = spot.hotspot, spot.hotspot.peak_at
    return {
        "rank": rank,
        "peak_at": {"y": y, "x": x},
        "area_px2": hotspot.area,
        "area_mm2": hotspot.area_mm2,
        "share_of_mass": hotspot.mass,
        "peak": hotspot.peak,
        "peak_raw": hotspot.peak_raw,
        "pictured": _place(spot.window),
    }


def _place(region: Region) -> dict[str, int]:
    return {"y": region.y, "x": region.x, "height": region.height, "width": region.width}


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
