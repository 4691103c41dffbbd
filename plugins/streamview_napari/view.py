"""A window with a slide, its maps and the dock: what ``streamview view`` opens."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from streamview.errors import StreamviewError
from streamview_napari.canvas.camera import keep_fitted
from streamview_napari.canvas.captions import describe, place_overlays
from streamview_napari.reader import get_reader
from streamview_napari.records import map_on

if TYPE_CHECKING:
    from napari import Viewer
    from napari.components import ViewerModel

__all__ = ["add_layers", "fill_screen", "review", "run", "run_review", "view"]


def view(path: str | os.PathLike[str], *, show: bool = True) -> Viewer:
    """Open a window as large as the screen on a slide, a pyramid, a saved saliency or a job folder; the caller runs ``napari.run()``.

    Raises
    ------
    StreamviewError
        When the path is none of these, or is damaged.
    """
    import napari

    path = os.fspath(path)
    check(path)
    viewer = napari.Viewer(title=f"streamview: {Path(path).name}", show=show)
    if show:
        fill_screen(viewer)
    try:
        add_layers(viewer, path)
    except StreamviewError:
        viewer.close()
        raise
    keep_fitted(viewer)
    viewer.window.add_plugin_dock_widget("streamview", "Panel")
    return viewer


def fill_screen(viewer: Viewer) -> None:
    """Give a window the whole screen, whatever size napari remembers."""
    window = viewer.window._qt_window
    window.setGeometry(window.screen().availableGeometry())  # where no window manager maximises
    window.showMaximized()


def check(path: str) -> None:
    """Refuse what cannot be shown before a window opens.

    Raises
    ------
    StreamviewError
        When the path is missing or nothing that this program shows.
    """
    if get_reader(path) is not None:
        return
    from streamview.slides import open_slide

    try:
        open_slide(path).close()
    except StreamviewError as error:
        reason = str(error)
    else:
        reason = f"{path}: no slide"
    known = "expected a slide, an OME-Zarr, a saved saliency map or a job folder"
    raise StreamviewError(reason if "://" not in path and not os.path.lexists(path) else f"{reason}: nothing to show, {known}")


def add_layers(viewer: ViewerModel, path: str) -> None:
    """Add all that a path holds to a viewer, with a scale bar and a caption of the map on show."""
    reader = get_reader(path)
    if reader is None:
        check(path)
        return
    from napari.layers import Layer

    for data, options, kind in reader(path):
        layer = viewer.add_layer(Layer.create(data, options, kind))
        if map_on(layer) is not None:
            layer.events.visible.connect(lambda event: describe(viewer))
    place_overlays(viewer)
    viewer.reset_view()
    describe(viewer)


def review(path: str | os.PathLike[str], reader: str | None = None, *, show: bool = True) -> Viewer:
    """Open a window as large as the screen on a review session; the caller runs ``napari.run()``.

    Parameters
    ----------
    path
        The session's file.
    reader
        Who reads; None: asked for in the window where there are several.
    show
        Whether the window is shown.

    Raises
    ------
    ReviewError
        When the file is no session, or has no such reader.
    """
    from streamview.review import Session

    with Session(path) as session:
        if reader is not None:
            session.reader(reader)
    import napari

    viewer = napari.Viewer(title="streamview review", show=show)
    if show:
        fill_screen(viewer)
    _, dock = viewer.window.add_plugin_dock_widget("streamview", "Review")
    dock.reading.open_session(path, reader)
    return viewer


def run_review(path: str | os.PathLike[str], reader: str | None = None) -> None:
    """Open the window of `review` and return when it is closed.

    Raises
    ------
    ReviewError
        As `review`.
    """
    import napari

    viewer = review(path, reader)
    del viewer  # napari keeps it
    napari.run()


def run(path: str | os.PathLike[str]) -> None:
    """Open the window of `view` and return when it is closed.

    Raises
    ------
    StreamviewError
        As `view`.
    """
    import napari

    viewer = view(path)
    del viewer  # napari keeps it
    napari.run()
