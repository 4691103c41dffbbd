"""Export the maps of a job in formats of other programs."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import Literal

from streamview.errors import StreamviewError
from streamview.export.dicom import Source, Storage, read_source, write_dicom
from streamview.export.dicom.provenance import run_time
from streamview.export.geojson import write_hotspots
from streamview.export.hotspots import no_hotspots
from streamview.export.ometiff import write_ome_tiff
from streamview.export.png import draw_png, find_glass
from streamview.files import atomic
from streamview.jobs import Job, RegionResult, SlideRecord
from streamview.jobs.maps import slide_maps
from streamview.progress import Progress, Report
from streamview.results import Method, Saliency, save_saliency
from streamview.results.display import DisplayChoice, Preset, Recipe, empty_reason, show
from streamview.results.glass import Glass
from streamview.slides import open_slide

__all__ = ["FORMATS", "Format", "export_job"]

Format = Literal["ome-zarr", "ome-tiff", "geojson", "png", "dicom"]
FORMATS: tuple[Format, ...] = ("ome-zarr", "ome-tiff", "geojson", "png")
"""Those of any slide, written by default; DICOM needs a DICOM slide."""
_LONGEST = 120  # characters of a slide's name in a file name


def export_job(
    job: Job,
    formats: Collection[Format] = FORMATS,
    *,
    slides: Collection[str] = (),
    out: str | os.PathLike[str] | None = None,
    display: DisplayChoice = DisplayChoice(),
    png_size: int = 2048,
    storage: Storage = Storage(),
    tell: Callable[[str], None] | None = None,
    report: Report | None = None,
) -> list[Path]:
    """Write every map of a job, as ``<out>/<slide>/<region>...``; existing files are never replaced.

    The maps of regions that were chosen together, such as a grid, are written as one: ``<out>/<slide>/slide-<work>...``.

    Parameters
    ----------
    job
        A job with maps from `streamview saliency`.
    formats
        ``"ome-zarr"``: a self-contained copy with all maps. ``"ome-tiff"``: one file per map. ``"geojson"``: hotspots, for maps of
        a class of interest. ``"png"``: a picture, for which the slide is read again. ``"dicom"``: a folder of maps, hotspots and
        report, for slides that are DICOM.
    slides
        Names of the slides to export; default all.
    out
        Default the folder ``export`` of the job.
    display
        How pictures and hotspots show the maps.
    png_size
        Longest side of a picture in px, 1100 to 16384.
    storage
        How DICOM stores maps.
    tell
        Called with the reason if a file shows nothing, or a map has no hotspots.
    report
        Called after every file; may raise `Cancelled`.

    Returns
    -------
    list of Path
        The written files.

    Raises
    ------
    StreamviewError
        If there is nothing to export, no map has hotspots and nothing else is asked for, a file exists, or the disk is full.
    SlideError
        If pictures or DICOM are exported and the slide has moved, or is another one.
    """
    folder = job.folder / "export" if out is None else Path(out)
    atomic.check_output(folder)
    tasks: dict[Path, Callable[[Path], str | None]] = {}
    left_out: list[str] = []
    for record in _chosen(job, slides):
        for slide_map in (one for maps in slide_maps(job, record) for one in maps):
            saliency = slide_map.saliency
            place = folder / _file_name(record.slide_id) / _file_name(slide_map.name)
            preset, recipe = display.recipe(saliency)
            reason = no_hotspots(saliency) if "geojson" in formats else None
            left_out += [] if reason is None else [f"{place.name}: {reason}"]
            if "dicom" in formats:
                source = _dicom_source(saliency, slide_map.result)
                tasks[_named(place, ".dicom")] = partial(_dicom, saliency, recipe, slide_map.result, source, storage)
            for form in FORMATS:
                if form in formats and (form != "geojson" or reason is None):
                    tasks |= _tasks(form, place, preset, recipe, saliency, slide_map.result, png_size)
    if not tasks and left_out:
        raise StreamviewError("\n".join(left_out))
    for path in tasks:
        if os.path.lexists(path):
            raise StreamviewError(f"{path}: exists already; remove it, or export to another folder with -o")
    progress = Progress("export", len(tasks), report)
    if tell is not None:
        for sentence in left_out:
            tell(sentence)
    for path, write in tasks.items():
        empty = write(path)
        if empty is not None and tell is not None:
            tell(f"{path}: {empty}")
        progress.advance()
    return list(tasks)


def _tasks(
    form: Format, place: Path, preset: Preset, recipe: Recipe, saliency: Saliency, result: RegionResult, png_size: int
) -> dict[Path, Callable[[Path], str | None]]:
    """The write functions for one format of one map, by path."""
    if form == "ome-zarr":
        return {_named(place, ".ome.zarr"): partial(_copy, saliency)}
    if form == "ome-tiff":
        return {_named(place, f"-{method}.ome.tif"): partial(_ome_tiff, saliency, method) for method in saliency.maps}
    if form == "geojson":
        return {_named(place, f"-{preset}.geojson"): partial(_hotspots, saliency, recipe, result)}
    return {_named(place, f"-{preset}.png"): partial(_picture, saliency, recipe, result, png_size)}


def _named(place: Path, ending: str) -> Path:
    return place.with_name(place.name + ending)


def _chosen(job: Job, names: Collection[str]) -> list[SlideRecord]:
    records = job.slides()
    known = {record.slide_id for record in records}
    for name in names:
        if name not in known:
            raise StreamviewError(f"{job.folder}: has no slide {name}, only {', '.join(sorted(known)) or 'none at all'}")
    records = [record for record in records if not names or record.slide_id in names]
    if not any(result.maps for record in records for result in record.regions):
        raise StreamviewError(f"{job.folder}: has no maps to export; compute them with `streamview saliency -o {job.folder}`")
    return records


def _file_name(name: str) -> str:
    """A file name that is valid on every system; a changed name gets a digest of the original, to stay unique."""
    plain = re.sub(r"[^\w.+ -]+", "_", name, flags=re.ASCII)[:_LONGEST].strip(". ") or "slide"
    return plain if plain == name else f"{plain}-{hashlib.sha256(name.encode(errors='surrogatepass')).hexdigest()[:8]}"


def _copy(saliency: Saliency, path: Path) -> None:
    if saliency.path is None:  # stitched
        save_saliency(saliency, path)
        return
    source = Path(str(saliency.path))
    links = [path for path in source.rglob("*") if path.is_symlink()]
    if links:
        raise StreamviewError(f"{links[0]}: is a link, which maps do not contain; run this slide again")
    with atomic.replacing(path) as temporary:
        shutil.copytree(source, temporary)


def _ome_tiff(saliency: Saliency, method: Method, path: Path) -> None:
    write_ome_tiff(saliency, method, path)


def _hotspots(saliency: Saliency, recipe: Recipe, result: RegionResult, path: Path) -> str | None:
    """Write hotspots, without those on glass if the slide is still there; return the reason if there are none."""
    write_hotspots(saliency, recipe, path, _glass(saliency, recipe, result))
    return empty_reason(saliency, show(saliency, recipe))


def _glass(saliency: Saliency, recipe: Recipe, result: RegionResult) -> Glass | None:
    if recipe.glass and result.source is not None and os.path.exists(result.source):
        with open_slide(result.source) as slide:
            if slide.identity == saliency.prediction.identity.source:
                return find_glass(slide, saliency.prediction.region)
    return None


def _dicom_source(saliency: Saliency, result: RegionResult) -> Source:
    """The slide of a map, checked before anything is written."""
    if result.source is None or not os.path.exists(result.source):
        name = saliency.prediction.slide_name if result.source is None else result.source
        raise StreamviewError(f"{name}: is missing, but DICOM files refer to the slide; put it back, or leave out the format dicom")
    source = read_source(result.source)
    source.check(saliency)
    return source


def _dicom(saliency: Saliency, recipe: Recipe, result: RegionResult, source: Source, storage: Storage, path: Path) -> None:
    write_dicom(saliency, recipe, source, path, run_time(result.run_id), storage=storage, glass=_glass(saliency, recipe, result))


def _picture(saliency: Saliency, recipe: Recipe, result: RegionResult, size: int, path: Path) -> str | None:
    """Draw a picture; return the reason if it is empty."""
    prediction = saliency.prediction
    if result.source is None:
        raise StreamviewError(f"{prediction.slide_name}: was not a file, so no picture can be drawn; leave out the format png")
    if not os.path.exists(result.source):
        raise StreamviewError(f"{result.source}: is missing, but a picture shows the slide; put it back, or leave out the format png")
    with open_slide(result.source) as slide:
        if slide.identity != prediction.identity.source:
            raise StreamviewError(f"{result.source}: is not the slide that the map explains; put that back, or leave out the format png")
        return draw_png(slide, saliency, recipe, path, size).empty
