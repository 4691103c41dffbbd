"""Which paths the plugin opens, decided in milliseconds from names and small files, and how."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streamview.errors import ChannelError, SlideError, SlideWarning

if TYPE_CHECKING:
    from streamview_napari.canvas.layers import LayerTuple

__all__ = ["get_reader", "show_panel"]

# What bears these names is taken for a slide, so that one that cannot be opened is named with the reason.
_SLIDES = {".svs", ".ndpi", ".mrxs", ".scn", ".bif", ".vms", ".vmu", ".svslide", ".dcm"}
Reader = Callable[[Any], "list[LayerTuple]"]


def get_reader(path: str | list[str]) -> Reader | None:
    """Return what opens a slide, a saved saliency or a job folder; None for anything else. Never raises.

    A slide is whatever `streamview.open_slide` opens, and a tiled TIFF of other channels, which it refuses with help.
    """
    if not isinstance(path, str):
        return None
    try:
        place = Path(path)
        if place.is_dir():
            reader = _result_reader(place)
            if reader is not None:
                return reader
        elif place.is_file() and place.suffix.lower() in _SLIDES:
            return _read_slide
        from streamview.slides import open_slide

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SlideWarning)
            open_slide(path).close()
        return _read_slide
    except ChannelError:
        return _read_slide  # which says what to do
    except (SlideError, OSError, ValueError):
        return None


def _result_reader(folder: Path) -> Reader | None:
    if (folder / "slides").is_dir() and (folder / "predictions.csv").is_file():
        return _read_job
    try:
        attributes = json.loads((folder / "zarr.json").read_text(encoding="utf-8"))["attributes"]
        return _read_saliency if "target" in attributes.get("streamview", {}) else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # metadata of any shape is no reason to fail
        return None


def _read_slide(path: str) -> list[LayerTuple]:
    from streamview.slides import open_slide
    from streamview_napari.canvas.layers import slide_layer

    show_panel()
    return [slide_layer(open_slide(path), path=path)]


def _read_saliency(path: str) -> list[LayerTuple]:
    from streamview.results import open_saliency
    from streamview_napari.canvas.layers import saliency_layers

    show_panel()
    return saliency_layers(open_saliency(path))


def _read_job(path: str) -> list[LayerTuple]:
    from streamview_napari.canvas.layers import job_layers

    show_panel()
    return job_layers(path)


def show_panel() -> None:
    """Have the panel open beside what is read, where there is a window and the settings say so."""
    if "napari._qt.qt_main_window" not in sys.modules:
        return
    from qtpy.QtCore import QTimer

    from streamview_napari.settings import settings

    if settings().panel.opens:
        QTimer.singleShot(0, _open_panel)


def _open_panel() -> None:
    from napari import current_viewer

    from streamview_napari.canvas.camera import keep_fitted
    from streamview_napari.records import slide_on

    viewer = current_viewer()
    if viewer is not None and any(slide_on(layer) is not None for layer in viewer.layers):
        if not any(name.endswith("(streamview)") for name in viewer.window.dock_widgets):
            keep_fitted(viewer)
        viewer.window.add_plugin_dock_widget("streamview", "Panel")
