"""Where a viewer looks, and how it is made to look at a region or at all of a slide; without Qt."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from streamview_napari.requests.regions import corners

if TYPE_CHECKING:
    from napari.components import ViewerModel

    from streamview.geometry import Region

__all__ = ["centre_of", "fly_to", "keep_fitted"]

_MARGIN = 1.15  # of the view around a region that is flown to


def centre_of(viewer: ViewerModel) -> tuple[float, float]:
    """Return the world position ``(y, x)`` in the middle of the view."""
    _, y, x = viewer.scene.camera.center
    return float(y), float(x)


def fly_to(viewer: ViewerModel, region: Region, mpp: tuple[float, float] | None) -> None:
    """Show a level-0 region, whole and with a margin."""
    low, _, high, _ = corners(region, mpp)
    viewer.scene.camera.center = (0.0, *((low + high) / 2))
    viewer.scene.camera.zoom = float(min(np.asarray(viewer.canvas.size) / (high - low))) / _MARGIN


def keep_fitted(viewer: ViewerModel) -> None:
    """Show all layers now, and again whenever the canvas changes its size, until somebody looks elsewhere.

    A window gets its size, and its docks, only after the first layer was added and the view fitted to it.
    """
    camera = viewer.scene.camera
    fitted: tuple[Any, ...] = ()

    def fit(event: Any = None) -> None:
        nonlocal fitted
        if fitted and fitted != (*camera.center, camera.zoom):
            viewer.canvas.events.size.disconnect(fit)
            return
        viewer.reset_view()
        fitted = (*camera.center, camera.zoom)

    viewer.canvas.events.size.connect(fit)
    fit()
