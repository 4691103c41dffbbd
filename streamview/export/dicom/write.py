"""All DICOM files of one result, in a folder of their own."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from streamview.export.dicom.annotations import write_annotations
from streamview.export.dicom.parametric_map import Storage, write_parametric_maps
from streamview.export.dicom.report import Verdict, write_report
from streamview.export.dicom.source import Source
from streamview.export.hotspots import find_hotspots, no_hotspots
from streamview.files import atomic
from streamview.results import Saliency
from streamview.results.display import Recipe
from streamview.results.glass import Glass

__all__ = ["write_dicom"]


def write_dicom(
    saliency: Saliency,
    recipe: Recipe,
    source: Source,
    folder: Path,
    created: datetime,
    *,
    storage: Storage = Storage(),
    glass: Glass | None = None,
    verdicts: Sequence[Verdict] = (),
) -> Path:
    """Write a result's maps, hotspots and report; the same arguments give the same bytes.

    Parameters
    ----------
    saliency
        The maps and the prediction that they explain.
    recipe
        Its blur and threshold decide the hotspots.
    source
        From `streamview.export.dicom.read_source`.
    folder
        Written completely or not at all: ``<map>-<level>.dcm``; ``hotspots.dcm``, if there are any; ``report.dcm``.
    created
        UTC, see `streamview.export.dicom.provenance.instance`.
    storage
        As for `streamview.export.dicom.write_parametric_maps`.
    glass
        As for `streamview.export.hotspots.find_hotspots`.
    verdicts
        As for `streamview.export.dicom.write_report`.

    Raises
    ------
    StreamviewError
        If the maps are of another slide, a level is larger than DICOM stores, or the disk is full.
    """
    with atomic.replacing(folder) as temporary:
        temporary.mkdir()
        maps = []
        for method in saliency.maps:
            maps += write_parametric_maps(saliency, method, source, temporary, created, storage)
        hotspots = () if no_hotspots(saliency) else find_hotspots(saliency, recipe, glass=glass)
        if hotspots:
            write_annotations(saliency, recipe, hotspots, source, temporary / "hotspots.dcm", created)
        write_report(saliency.prediction, source, temporary / "report.dcm", created, maps=maps, verdicts=verdicts)
    return folder
