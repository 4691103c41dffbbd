"""Slides, maps and runs in Jupyter: a widget that needs neither a second port nor the internet."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from streamview.results import Saliency
    from streamview.slides import Slide
    from streamview_jupyter.review_widget import Review
    from streamview_jupyter.widget import View

__all__ = ["compare", "link", "review", "view"]


def view(
    slide: Slide | str | os.PathLike[str] | NDArray[np.uint8], height: str = "480px", *, mpp: float | None = None, theme: str = "auto"
) -> View:
    """Show a slide of any size in a notebook.

    Parameters
    ----------
    slide
        An open slide, a file, or a uint8 (H, W, 3) array. A file is opened, and closed with the view.
    height
        Of the widget, in CSS units.
    mpp
        Micrometres per level-0 pixel, where the source does not say itself.
    theme
        "auto" (that of the notebook), "light" or "dark".

    Returns
    -------
    View

    Raises
    ------
    SlideError
        When the file cannot be opened.

    Examples
    --------
    >>> import streamview_jupyter
    >>> v = streamview_jupyter.view("slide.svs")
    >>> v.slide.shape
    (512, 768)
    >>> v.close()
    """
    from streamview_jupyter.widget import View, as_open_slide

    opened, owned = as_open_slide(slide, mpp)
    return View(opened, height, theme, owned=owned)


def review(session: str | os.PathLike[str], reader: str, height: str = "560px", *, theme: str = "auto") -> Review:
    """Read the slides of a review session in a notebook, from where the reader left off.

    Parameters
    ----------
    session
        The file that `streamview review new` made.
    reader
        One of its readers.
    height
        Of the slide, in CSS units.
    theme
        "auto" (that of the notebook), "light" or "dark".

    Returns
    -------
    Review

    Raises
    ------
    ReviewError
        When the file is no session, or it has no such reader.
    """
    from streamview_jupyter.review_widget import Review

    return Review(session, reader, height, theme)


def link(first: View, second: View) -> None:
    """Move two views together: both show the same part, in level-0 px, in the browser and without the kernel.

    Raises
    ------
    StreamviewError
        When their slides have another number of micrometres per pixel.
    """
    from ipywidgets import jslink

    from streamview.errors import StreamviewError

    mpps = first.slide.mpp, second.slide.mpp
    if mpps[0] is not None and mpps[1] is not None and abs(mpps[0][1] / mpps[1][1] - 1) > 0.01:
        raise StreamviewError(
            f"{first.slide.name} has {mpps[0][1]:g} um/px, {second.slide.name} {mpps[1][1]:g}: link views of one resolution"
        )
    jslink((first, "viewport"), (second, "viewport"))


def compare(slide: Slide, first: Saliency, second: Saliency, height: str = "360px") -> Any:
    """Show two results of one region side by side and, below, where the first exceeds the second; the views move together.

    Parameters
    ----------
    slide
        That both are of.
    first, second
        The results; both have the map that is usual for the first.
    height
        Of each view, in CSS units.

    Returns
    -------
    ipywidgets.VBox

    Raises
    ------
    StreamviewError
        When they are not of the same region, or have no map in common.
    """
    from ipywidgets import HBox, Layout, VBox

    from streamview.results import difference

    differences = difference(first, second), difference(second, first)
    views = [view(slide, height) for _ in range(3)]
    for each, saliency in zip(views, (first, second), strict=False):
        each.add_saliency(saliency)
    over, under = (views[2].add_saliency(each) for each in differences)
    under.colormap = "sky"
    over.cap = under.cap = max(over.cap, under.cap)
    for each in views[1:]:
        link(views[0], each)
    for each in views:
        each.layout = Layout(flex="1 1 0", min_width="0")
    return VBox([HBox(views[:2]), views[2]])
