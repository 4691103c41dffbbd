"""What the panel asks of an export, and the files that it writes."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from PIL import Image as Picture
from PIL.PngImagePlugin import PngInfo

from streamview.errors import StreamviewError
from streamview.files import atomic
from streamview.results import RESEARCH_USE

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from streamview.progress import Report
    from streamview.results import Saliency
    from streamview.results.display import Recipe
    from streamview.results.glass import Glass
    from streamview.slides import Slide

__all__ = ["FORMATS", "ExportControls", "Format", "write"]

Format = Literal["view", "picture", "ome-tiff", "ome-zarr", "geojson", "csv"]


@dataclass(frozen=True, slots=True)
class _Format:
    title: str
    ending: str
    tip: str


FORMATS: dict[Format, _Format] = {
    "view": _Format("PNG, as seen", ".png", "The canvas as it is now, with its captions and bars."),
    "picture": _Format("PNG of the region", ".png", "The whole region with the map, its bars and what a reader must know."),
    "ome-tiff": _Format("OME-TIFF", ".ome.tif", "This map, raw float32, as a pyramid that QuPath opens at the right size."),
    "ome-zarr": _Format("OME-Zarr", ".ome.zarr", "All maps of the result, raw float32; opens here again with its display."),
    "geojson": _Format("GeoJSON hotspots", ".geojson", "The areas above the threshold as annotations for QuPath."),
    "csv": _Format("CSV of hotspots", ".csv", "The areas above the threshold as a table."),
}


@dataclass(frozen=True, slots=True)
class ExportControls:
    """What is written of the map worked on.

    Parameters
    ----------
    format
        The canvas as it is now, with its captions and bars.
    """

    format: Annotated[Format, {"label": "Format"}] = "view"


def write(
    format: Format,
    path: str | os.PathLike[str],
    saliency: Saliency,
    recipe: Recipe,
    *,
    slide: Slide | None = None,
    canvas: NDArray[np.uint8] | None = None,
    glass: Glass | None = None,
    report: Report | None = None,
) -> Path:
    """Write a map; the file appears whole or not at all, and replaces one that was there.

    Parameters
    ----------
    format
        See `FORMATS`.
    path
        The file.
    saliency, recipe
        What, and how it is shown.
    slide
        The source of `saliency`, for ``"picture"``.
    canvas
        uint8 (h, w, 3 or 4), for ``"view"``.
    glass
        Where the region is empty, for the hotspots.
    report
        Called after every step; may raise `Cancelled`, which leaves no file.

    Raises
    ------
    StreamviewError
        When the disk is full, the place may not be written, or the slide that is needed is not at hand.
    """
    path = Path(path)
    if format == "view" and canvas is not None:
        facts = PngInfo()
        facts.add_text("streamview", f"identity {saliency.prediction.identity.key}; target {saliency.target}; {recipe}; {RESEARCH_USE}")
        with atomic.replacing(path) as temporary:
            Picture.fromarray(canvas).save(temporary, "PNG", pnginfo=facts)
    elif format == "picture":
        from streamview.export.png import render_png

        if slide is None or slide.identity != saliency.prediction.identity.source:
            raise StreamviewError(f"{saliency.prediction.slide_name}: is not open, and the picture shows it; open that slide first")
        render_png(slide, saliency, recipe, path, report=report)
    elif format == "ome-tiff":
        from streamview.export.ometiff import write_ome_tiff

        write_ome_tiff(saliency, recipe.method, path, report)
    elif format == "ome-zarr":
        from streamview.export.omezarr import write_ome_zarr

        write_ome_zarr(saliency, recipe, path, report)
    elif format == "geojson":
        from streamview.export.geojson import write_hotspots

        write_hotspots(saliency, recipe, path, glass)
    elif format == "csv":
        from streamview.export.table import write_hotspot_table

        write_hotspot_table(saliency, recipe, path, glass)
    return path
