"""Hotspots as Microscopy Bulk Simple Annotations (PS3.3, A.87): polygons in pixels of the slide's level 0."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from streamview.export.dicom.provenance import date, describe_algorithm, description, instance, make_uid, named_here, short
from streamview.export.dicom.source import Source, as_stated
from streamview.export.hotspots import Hotspot
from streamview.files import atomic
from streamview.results import Saliency
from streamview.results.display import Recipe

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

__all__ = ["write_annotations"]


def write_annotations(
    saliency: Saliency, recipe: Recipe, hotspots: Sequence[Hotspot], source: Source, path: Path, created: datetime
) -> Dataset:
    """Write hotspots as one group of polygons with area, share of the map's mass and peak, those with most mass first.

    Coordinates are columns and rows of level 0's total pixel matrix, whose first pixel covers 0 to 1. Polygons have no holes here: the
    areas are without them, the outlines are those around all.

    Parameters
    ----------
    saliency, recipe
        What the hotspots were found in, and by.
    hotspots
        At least one, from `streamview.export.hotspots.find_hotspots`.
    source
        The slide.
    path
        The file.
    created
        UTC, see `streamview.export.dicom.provenance.instance`.

    Raises
    ------
    StreamviewError
        If the maps are of another slide, or the disk is full.
    """
    from highdicom import ann
    from pydicom.sr.codedict import codes

    source.check(saliency)
    prediction = saliency.prediction
    outlines = [hotspot.polygon.exterior[:, ::-1].astype(np.float32) for hotspot in hotspots]
    pixel = source.spacing[0] * source.spacing[1]
    measurements = [
        ann.Measurements(codes.SCT.Area, np.array([hotspot.area * pixel for hotspot in hotspots]), codes.UCUM.SquareMillimeter),
        ann.Measurements(named_here("Share of the map's mass"), np.array([hotspot.mass for hotspot in hotspots]), codes.UCUM.NoUnits),
        ann.Measurements(named_here("Peak, share of the display's cap"), np.array([one.peak for one in hotspots]), codes.UCUM.NoUnits),
        ann.Measurements(named_here("Peak, raw"), np.array([hotspot.peak_raw for hotspot in hotspots]), codes.UCUM.NoUnits),
    ]
    parts = (source.header.SOPInstanceUID, prediction.identity.key, str(saliency.target), astuple(recipe), [o.tolist() for o in outlines])
    with as_stated():
        group = ann.AnnotationGroup(
            number=1,
            uid=make_uid("group", *parts),
            label=short(f"Hotspots of {saliency.target}"),
            annotated_property_category=codes.SCT.SpatialAndRelationalConcept,
            annotated_property_type=codes.DCM.SelectedRegion,
            graphic_type=ann.GraphicTypeValues.POLYGON,
            graphic_data=outlines,
            algorithm_type=ann.AnnotationGroupGenerationTypeValues.AUTOMATIC,
            algorithm_identification=describe_algorithm(prediction),
            measurements=measurements,
            description=f"{recipe.method}, blur {recipe.blur_um:g} um, threshold {recipe.threshold:g} of the cap",
        )
        annotations = ann.MicroscopyBulkSimpleAnnotations(
            source_images=[source.header],
            annotation_coordinate_type=ann.AnnotationCoordinateTypeValues.SCOORD,
            annotation_groups=[group],
            content_label="HOTSPOTS",
            content_description=description(f"Hotspots of {saliency.target}", prediction),
            **instance("Hotspots", 1, 812, created, *parts),
        )
        date(annotations, created)
        with atomic.disk_errors(path):
            annotations.save_as(path, enforce_file_format=True)
    return annotations
