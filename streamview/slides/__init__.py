"""Slides: one way to read RGB pixels from vendor formats, DICOM, OME-TIFF, tiled TIFF, OME-Zarr and arrays."""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt

from streamview.errors import SlideError
from streamview.geometry import Region
from streamview.slides.slide import Level, Slide, given_mpp

__all__ = ["Level", "Slide", "as_slide", "open_slide"]

_EXPECTED = "expected a slide that OpenSlide reads (SVS, NDPI, MRXS, SCN, BIF, DICOM ...), an OME-TIFF, a tiled TIFF or an OME-Zarr"


def open_slide(path: str | os.PathLike[str], mpp: float | None = None, channel: int | str | None = None) -> Slide:
    """Open a slide file or folder, or an OME-Zarr image by its URL.

    The tiles of Aperio SVS, OME-TIFF and plain TIFF are read directly, where that gives what OpenSlide gives; other vendors' formats and
    DICOM are read by OpenSlide, folders as OME-Zarr. A warning is given where OpenSlide steps in because tiles differ.

    Parameters
    ----------
    path
        The slide; ``http://``, ``https://``, ``s3://`` ... for an OME-Zarr image elsewhere, which needs the extra ``cluster``.
    mpp
        Micrometres per level-0 pixel, in place of what the file says.
    channel
        Number (from 0) or name of one channel of a TIFF or OME-Zarr image that is not RGB, to be read as grey: 8 bits as they are,
        16 bits scaled from the range that the file states, else from all of it. `Slide.reader` names it.

    Returns
    -------
    Slide
        To be closed, or used in a ``with`` statement.

    Raises
    ------
    SlideError
        When the path is missing, is not a slide, is cut short, is not 8-bit RGB, or `mpp` is not a positive number.
    """
    if mpp is not None:
        given_mpp(mpp)  # refused before anything is opened
    if "://" in os.fspath(path):
        from streamview.slides.omezarr import Pyramid

        return Pyramid(path, mpp, channel)
    path = Path(path)
    try:
        return _open(path, mpp, channel)
    except OSError as error:
        raise SlideError(f"{path}: cannot be read ({error.strerror or error}); check the path and its permissions") from None


def as_slide(source: Slide | npt.NDArray[np.uint8], mpp: float | None = None) -> Slide:
    """See an RGB array as a slide of one level; a slide passes through.

    Parameters
    ----------
    source
        A slide, a pyramid or a uint8 (H, W, 3) array.
    mpp
        Micrometres per level-0 pixel, in place of what the source says.

    Raises
    ------
    SlideError
        When an array is not uint8 (H, W, 3), the source is something else, or `mpp` is not a positive number.
    """
    if isinstance(source, np.ndarray):
        from streamview.slides.array import ArraySlide

        return ArraySlide(source, mpp)
    if not isinstance(source, Slide):
        raise SlideError(f"source of type {type(source).__name__}: expected a Slide or a uint8 (H, W, 3) array; open files with open_slide")
    return source if mpp is None else _Measured(source, mpp)


def _open(path: Path, mpp: float | None, channel: int | str | None) -> Slide:
    if not path.exists():
        raise SlideError(f"{path}: no such file or folder; check the path")
    if path.is_dir():
        from streamview.slides.omezarr import Pyramid, is_zarr

        if not is_zarr(path):
            raise SlideError(f"{path}: a folder without an OME-Zarr image; {_EXPECTED}")
        return Pyramid(path, mpp, channel)
    slide = _open_file(path, channel)
    return slide if mpp is None else _Measured(slide, mpp)


def _open_file(path: Path, channel: int | str | None) -> Slide:
    from streamview.slides.checks import check_companions, check_complete
    from streamview.slides.choice import open_file

    check_companions(path)
    check_complete(path)
    slide = open_file(path, channel)
    if slide is None:
        with path.open("rb") as file:
            start = file.read(16)
        found = "an empty file" if not start else f"not a slide (it begins with {start!r})"
        raise SlideError(f"{path.name}: {found}; {_EXPECTED}")
    return slide


class _Measured:
    """A slide whose mpp the user has given; everything else is the slide's own."""

    def __init__(self, slide: Slide, mpp: float) -> None:
        self._slide = slide
        self.name, self.shape, self.levels = slide.name, slide.shape, slide.levels
        self.background, self.reader, self.pixel_source = slide.background, slide.reader, slide.pixel_source
        self.stated_mpp = slide.mpp if slide.stated_mpp is None else slide.stated_mpp
        self.properties, self.associated, self.icc_profile = slide.properties, slide.associated, slide.icc_profile
        self.mpp, self.mpp_source = given_mpp(mpp)

    @property
    def identity(self) -> str:
        return self._slide.identity

    def read(self, region: Region, out: npt.NDArray[np.uint8] | None = None) -> npt.NDArray[np.uint8]:
        return self._slide.read(region, out)

    def close(self) -> None:
        self._slide.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
