"""The regions that readers draw: stored as GeoJSON features, exchanged with QuPath in both directions."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamview.errors import AnnotationWarning, ReviewError
from streamview.export.geojson import feature
from streamview.files import atomic
from streamview.labels.annotations import Polygon, read_annotations
from streamview.review.session import Session

__all__ = ["export_regions", "import_regions", "is_plain", "region_features", "region_ring"]

_COLOURS = ("#ffe14a", "#18c28c", "#4c8bf5", "#ff8a80", "#c792ea", "#f78c6c", "#89ddff", "#c3e88d", "#a0a0a0")  # by verdict


def region_features(polygons: Sequence[Polygon], kind: str, verdicts: Sequence[str] = (), first: int = 1) -> list[dict[str, Any]]:
    """Return regions as GeoJSON features, as QuPath reads them.

    Parameters
    ----------
    polygons
        In level-0 px, pixel k covers ``k`` to ``k + 1``.
    kind
        Their class: usually the reader's verdict.
    verdicts
        Those of the session, which decide the colour of a class.
    first
        Number in the name of the first.
    """
    colour = _COLOURS[verdicts.index(kind) if kind in verdicts else -1]
    return [
        feature(polygon, name=f"Region {number}", kind=kind, colour=colour, measurements={}, metadata={})
        for number, polygon in enumerate(polygons, first)
    ]


def is_plain(region: Mapping[str, Any]) -> bool:
    """Whether a feature is one closed line without holes."""
    geometry = region["geometry"]
    return geometry["type"] == "Polygon" and len(geometry["coordinates"]) == 1


def region_ring(region: Mapping[str, Any]) -> NDArray[np.float64]:
    """Return the corners of a plain feature, float64 (n, 2) ``(y, x)`` in level-0 px, the first not repeated."""
    return np.asarray(region["geometry"]["coordinates"][0], np.float64)[:-1, ::-1]


def export_regions(session: Session, folder: str | os.PathLike[str]) -> list[Path]:
    """Write what every reader has drawn, one GeoJSON file for each slide and reader, named by the slide's id: ``C007-a-aided.geojson``.

    Raises
    ------
    ReviewError
        When one of the files exists; nothing is then written.
    """
    folder = Path(folder)
    drawn = {
        folder / atomic.safe_stem(f"{step.case}-{reader}-{step.modality}{'-2' if step.period == 2 else ''}"): reading.regions
        for reader in session.readers
        for step, reading in session.reader(reader).readings().items()
        if reading.regions
    }
    files = {path.with_name(f"{path.name}.geojson"): regions for path, regions in drawn.items()}
    existing = next((path for path in files if path.exists()), None)
    if existing is not None:
        raise ReviewError(f"{existing}: exists; choose another folder")
    folder.mkdir(parents=True, exist_ok=True)
    for path, regions in files.items():
        document = {"type": "FeatureCollection", "features": list(regions)}
        atomic.write_text(path, json.dumps(document, ensure_ascii=False, allow_nan=False) + "\n")
    return list(files)


def import_regions(session: Session, reader: str, case: str, path: str | os.PathLike[str]) -> int:
    """Add the annotations of a file, QuPath's GeoJSON or ASAP's XML, to what a reader has drawn; return how many areas there were.

    They go to the step of the case that the reader opened last, else to the first.

    Raises
    ------
    ReviewError
        When the session has no such reader or case, or there would be too many points.
    AnnotationError
        When the file cannot be read.
    """
    own = session.reader(reader)
    steps = [step for step in own.steps if step.case == case]
    if not steps:
        raise ReviewError(f"{session.path.name}: has no slide {case}, only {', '.join(session.cases)}")
    readings = own.readings()
    step = next((step for step in reversed(steps) if readings[step].opened), steps[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AnnotationWarning)  # what encloses no area is left out
        annotations = read_annotations(path)
    regions, verdicts = list(readings[step].regions), session.vocabulary.verdicts
    before = len(regions)
    for annotation in annotations:
        regions += region_features(annotation.polygons, annotation.kind or "region", verdicts, len(regions) + 1)
    own.draw(step, regions)
    return len(regions) - before
