"""A slide and its maps under the title that stands for them in a session: no name, path or property of the file in any output or error."""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from streamview.errors import ReviewError, SlideWarning
from streamview.jobs import Job
from streamview.jobs.maps import slide_maps
from streamview.slides import open_slide
from streamview.slides.slide import SlideBase

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from streamview.geometry import Region
    from streamview.results import Saliency
    from streamview.review.session import Sight
    from streamview.slides import Slide

__all__ = ["BlindSlide", "open_blind", "open_maps"]


_LIBRARIES = ("zarr", "tifffile", "fsspec")  # whose logs name the files that they open
_OPENING = threading.Lock()


class BlindSlide(SlideBase):
    """A slide that says of itself nothing but its pixels and their size.

    Parameters
    ----------
    slide
        An open slide, which is closed with this one.
    title
        What stands in place of its name.
    """

    def __init__(self, slide: Slide, title: str) -> None:
        super().__init__(title, slide.levels, (slide.mpp, "the session"), slide.identity, slide.background)
        self._slide = slide

    def __reduce__(self) -> tuple[object, ...]:
        raise TypeError(f"{self.name}: a slide of a session is not copied")

    def read(self, region: Region, out: npt.NDArray[np.uint8] | None = None) -> npt.NDArray[np.uint8]:
        """Read a region, as `streamview.slides.Slide.read`; an error does not say of which file."""
        try:
            return self._slide.read(region, out)
        except Exception:  # noqa: BLE001  # whatever a file's reader raises may name the file
            raise ReviewError(_unreadable(self.name)) from None

    def close(self) -> None:
        """Release the file."""
        self._slide.close()


def open_blind(sight: Sight) -> BlindSlide:
    """Open the slide of a step under its title; warnings of its file, which may name it, are not given.

    Raises
    ------
    ReviewError
        When it cannot be opened; the text has the title alone.
    """
    try:
        with _unlogged(), warnings.catch_warnings():
            warnings.simplefilter("ignore", SlideWarning)
            return BlindSlide(open_slide(sight.source, mpp=sight.mpp), sight.title)
    except Exception:  # noqa: BLE001  # as above
        raise ReviewError(_unreadable(sight.title)) from None


def open_maps(sight: Sight) -> list[Saliency]:
    """Return the maps of the network's answer, one for each region, under the title of the slide; none before their turn.

    Of several targets of a region it is the usual one, else the first.

    Raises
    ------
    ReviewError
        When they cannot be read; the text has the title alone.
    """
    if sight.job is None:
        return []
    try:
        with _unlogged():
            job = Job(sight.job)
            records = [record for record in job.slides() if record.slide_id == sight.slide_id]
            groups = [[each.saliency for each in maps] for record in records for maps in slide_maps(job, record)]
    except Exception:  # noqa: BLE001  # as above
        raise ReviewError(f"{sight.title}: the network's maps cannot be read; tell whoever leads the session") from None
    shown = [next((each for each in maps if each.target.name == each.prediction.usual_target.name), maps[0]) for maps in groups]
    return [replace(each, prediction=replace(each.prediction, slide_name=sight.title), path=None) for each in shown]


@contextmanager
def _unlogged() -> Iterator[None]:
    """Let the libraries that open files log nothing meanwhile, at whatever level: their logs name them."""
    loggers = [logging.getLogger(name) for name in _LIBRARIES]
    with _OPENING:
        levels = [logger.level for logger in loggers]
        for logger in loggers:
            logger.setLevel(logging.CRITICAL + 1)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def _unreadable(title: str) -> str:
    return f"{title}: its file cannot be read; tell whoever leads the session, and go on with another"
