"""How a slide looks in a notebook: its facts and a thumbnail, never its label or macro image."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, cast

from streamview.errors import SlideError, StreamviewError
from streamview.notebook import card, image, png, table

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from streamview.slides.slide import Slide

__all__ = ["MOST_READ", "NotebookSlide"]

_SIDE = 256  # px of the thumbnail's longer side
MOST_READ = 2**24  # px of a level that are read for a picture at most


class NotebookSlide:
    """What a class that is a `streamview.slides.Slide` inherits to be shown by notebooks."""

    __slots__ = ()

    def view(self, height: str = "480px") -> Any:
        """Show the slide as a widget to zoom and to run networks in; see `streamview_jupyter.view`.

        Parameters
        ----------
        height
            Of the widget, in CSS units.

        Raises
        ------
        StreamviewError
            When the packages of the extra ``jupyter`` are missing.
        """
        try:
            jupyter = import_module("streamview_jupyter")
            return jupyter.view(self, height)
        except ModuleNotFoundError as error:
            raise StreamviewError(
                f"slide.view() needs {error.name}: pip install 'streamview[jupyter]', and start the kernel anew"
            ) from None

    def _repr_html_(self) -> str:
        slide = cast("Slide", self)
        picture, note = _picture(slide)
        return card(
            slide.name,
            table(_facts(slide)),
            "" if picture is None else image(picture, f"thumbnail of {slide.name}", "jpeg"),
            notes=() if note is None else (note,),
        )

    def _repr_png_(self) -> bytes | None:
        picture, _ = _picture(cast("Slide", self))
        return None if picture is None else png(picture)


def _facts(slide: Slide) -> list[tuple[str, str]]:
    height, width = slide.shape
    facts = [("size", f"{width} x {height} px")]
    if slide.mpp is None:
        facts.append(("mpp", "unknown"))
    else:
        (y, x) = slide.mpp
        facts[0] = ("size", f"{width} x {height} px, {width * x / 1000:.3g} x {height * y / 1000:.3g} mm")
        facts.append(("mpp", f"{x:.4g} um/px ({slide.mpp_source})" if x == y else f"{x:.4g} x {y:.4g} um/px ({slide.mpp_source})"))
    facts.append(("levels", ", ".join(f"{level.shape[1]} x {level.shape[0]}" for level in slide.levels)))
    return [*facts, ("reader", slide.reader)]


def _picture(slide: Slide) -> tuple[NDArray[np.uint8] | None, str | None]:
    """The thumbnail, or why there is none: reading it must take little, and a closed slide still shows its facts."""
    from streamview.geometry import Region
    from streamview.slides.thumbnail import pixels_read, thumbnail

    height, width = slide.shape
    step = max(height, width, _SIDE) / _SIDE
    whole, shape = Region(0, 0, height, width), (max(1, round(height / step)), max(1, round(width / step)))
    if pixels_read(slide, whole, shape) > MOST_READ:
        return None, "no thumbnail: the slide has no small level; build_pyramid makes some"
    try:
        rgb = thumbnail(slide, whole, shape)
    except SlideError as error:
        return None, f"no thumbnail: {error}"
    return rgb, None
