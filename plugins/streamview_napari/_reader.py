"""Which paths the plugin opens, decided in milliseconds from names and small files, and how."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from streamview_napari._layers import LayerTuple

__all__ = ["get_reader"]

_SLIDES = {".svs", ".ndpi", ".mrxs", ".scn", ".bif", ".vms", ".vmu", ".svslide", ".dcm", ".czi"}
_TIFFS = {".tif", ".tiff"}
Reader = Callable[[Any], "list[LayerTuple]"]


def get_reader(path: str | list[str]) -> Reader | None:
    """Return what opens a slide, an RGB OME-Zarr, a saved saliency or a job folder; None for anything else. Never raises."""
    if not isinstance(path, str):
        return None
    place = Path(path)
    try:
        if place.is_dir():
            return _folder_reader(place)
        if place.suffix.lower() in _SLIDES or (place.suffix.lower() in _TIFFS and _is_slide(place)):
            return _read_slide
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError):  # metadata of any shape is no reason to fail
        return None
    return None


def _folder_reader(folder: Path) -> Reader | None:
    if (folder / "slides").is_dir() and (folder / "predictions.csv").is_file():
        return _read_job
    attributes = json.loads((folder / "zarr.json").read_text(encoding="utf-8"))["attributes"]
    if "target" in attributes.get("streamview", {}):
        return _read_saliency
    first = attributes["ome"]["multiscales"][0]
    array = json.loads((folder / first["datasets"][0]["path"] / "zarr.json").read_text(encoding="utf-8"))
    channels = array["shape"][[axis["name"] for axis in first["axes"]].index("c")]
    return _read_slide if array["data_type"] == "uint8" and channels == 3 else None


def _is_slide(path: Path) -> bool:
    """Whether a TIFF is 8-bit RGB in tiles or strips; other TIFFs are left to other readers."""
    import tifffile

    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages.first
        return page.samplesperpixel == 3 and page.bitspersample == 8


def _read_slide(path: str) -> list[LayerTuple]:
    from streamview.slides import open_slide
    from streamview_napari._layers import slide_layer

    _show_panel()
    return [slide_layer(open_slide(path), path=path)]


def _read_saliency(path: str) -> list[LayerTuple]:
    from streamview.results import open_saliency
    from streamview_napari._layers import saliency_layers

    _show_panel()
    return saliency_layers(open_saliency(path))


def _read_job(path: str) -> list[LayerTuple]:
    from streamview_napari._layers import job_layers

    _show_panel()
    return job_layers(path)


def _show_panel() -> None:
    """Have the panel open beside what is read, where there is a window and the settings say so."""
    if "napari._qt.qt_main_window" not in sys.modules:
        return
    from qtpy.QtCore import QTimer

    from streamview_napari._settings import settings

    if settings().panel.opens:
        QTimer.singleShot(0, _open_panel)


def _open_panel() -> None:
    from napari import current_viewer

    viewer = current_viewer()
    if viewer is not None and any("source" in layer.metadata.get("streamview", {}) for layer in viewer.layers):
        viewer.window.add_plugin_dock_widget("streamview", "Panel")
