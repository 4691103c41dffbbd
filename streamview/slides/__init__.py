"""Slides: read RGB pixels from vendor formats, DICOM, OME-TIFF, tiled TIFF, OME-Zarr and arrays through one interface."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from streamview.errors import SlideError, SlideWarning
from streamview.geometry import Region
from streamview.slides.notebook import NotebookSlide
from streamview.slides.slide import Level, Slide, given_mpp

__all__ = ["Level", "Slide", "as_slide", "can_open", "open_slide"]

_EXPECTED = (
    "expected a slide that OpenSlide reads (SVS, NDPI, MRXS, SCN, BIF, DICOM ...), an OME-TIFF, a tiled TIFF or an OME-Zarr, also zipped"
)


def open_slide(path: str | os.PathLike[str], mpp: float | None = None, channel: int | str | None = None) -> Slide:
    """Open a slide file, or an OME-Zarr pyramid: a folder, one in a zip file, or a URL.

    The format is determined from the content, not the name. Tiles of Aperio SVS, OME-TIFF and plain TIFF are read directly if that gives
    the same pixels as OpenSlide; other vendors' formats and DICOM are read by OpenSlide, folders and zip files as OME-Zarr. A
    `SlideWarning` is given if two readers differ, or the metadata contradict the content. The result can be pickled, as path and settings.

    Parameters
    ----------
    path
        The slide; ``http://``, ``https://``, ``s3://`` ... for a remote OME-Zarr image, which needs the extra ``cluster``. One of several
        images in a zarr folder or zip file is chosen by extending the path: ``plate.zarr.zip/A/1/0``.
    mpp
        Micrometres per level-0 pixel, overriding the file's.
    channel
        Number (from 0) or name of one channel of a TIFF or OME-Zarr image that is not RGB, to be read as grey: 8-bit channels unchanged,
        16-bit channels scaled from the range that the file states, else from the full range. `Slide.reader` names it.

    Returns
    -------
    Slide
        To be closed, or used in a ``with`` statement. An OME-Zarr image is a `streamview.slides.omezarr.Pyramid`.

    Raises
    ------
    SlideError
        If the path is missing, is not a slide, is truncated, is not 8-bit RGB, or `mpp` is not a positive number.

    Examples
    --------
    >>> import streamview
    >>> with streamview.open_slide("slide.svs") as slide:
    ...     pixels = slide.read(streamview.Region(y=0, x=0, height=100, width=200))
    >>> pixels.shape, str(pixels.dtype)
    ((100, 200, 3), 'uint8')
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
    """Wrap an RGB array as a slide of one level; a slide is returned unchanged.

    Parameters
    ----------
    source
        A slide, a pyramid or a uint8 (H, W, 3) array.
    mpp
        Micrometres per level-0 pixel, overriding the source's.

    Raises
    ------
    SlideError
        If an array is not uint8 (H, W, 3), the source is something else, or `mpp` is not a positive number.
    """
    if isinstance(source, np.ndarray):
        from streamview.slides.array import ArraySlide

        return ArraySlide(source, mpp)
    if not isinstance(source, Slide):
        what = f"is the class {source.__name__}" if isinstance(source, type) else f"of type {type(source).__name__}"
        remedy = "open files with open_slide"
        if hasattr(source, "convert"):  # Pillow's
            remedy = "pass np.asarray(image.convert('RGB'))"
        elif hasattr(source, "numpy"):  # torch's
            remedy = "pass tensor.numpy(), with the channels last"
        raise SlideError(f"source {what}: expected a Slide or a uint8 (H, W, 3) array; {remedy}")
    return source if mpp is None else _Measured(source, mpp)


def can_open(path: str | os.PathLike[str]) -> bool:
    """Whether `open_slide` opens a path; used wherever the program offers to open a slide.

    Parameters
    ----------
    path
        As for `open_slide`.

    Returns
    -------
    bool
        False if it is not a slide, is damaged, or has channels of which one must be chosen. The slide is opened and closed again.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SlideWarning)
        try:
            open_slide(path).close()
        except SlideError:
            return False
    return True


def _open(path: Path, mpp: float | None, channel: int | str | None) -> Slide:
    from streamview.slides.diagnosis import check_kind, describe_folder

    if _in_archive(path):
        from streamview.slides.omezarr import Pyramid

        return Pyramid(path, mpp, channel)
    check_kind(path)
    if path.is_dir():
        if not ((path / "zarr.json").is_file() or (path / ".zgroup").is_file()):
            raise SlideError(f"{path}: {describe_folder(path)}; {_EXPECTED}")
        from streamview.slides.omezarr import Pyramid

        return Pyramid(path, mpp, channel)
    slide = _open_file(path, channel)
    return slide if mpp is None else _Measured(slide, mpp)


def _in_archive(path: Path) -> bool:
    """Whether a path is that of a zip file, or of something in one."""
    for archive in (path, *path.parents):
        if archive.is_file():
            with archive.open("rb") as file:
                return file.read(4) in (b"PK\3\4", b"PK\5\6")
        if archive.exists():
            return False
    return False


def _open_file(path: Path, channel: int | str | None) -> Slide:
    from streamview.slides.checks import check_companions, check_complete
    from streamview.slides.choice import open_file
    from streamview.slides.diagnosis import describe_file

    check_companions(path)
    check_complete(path)
    slide = open_file(path, channel)
    if slide is None:
        raise SlideError(f"{path.name}: {describe_file(path)}; {_EXPECTED}")
    return slide


class _Measured(NotebookSlide):
    """A slide whose mpp the user has given; everything else is the slide's own."""

    def __init__(self, slide: Slide, mpp: float) -> None:
        self._slide = slide
        self.name, self.shape, self.levels = slide.name, slide.shape, slide.levels
        self.background, self.reader, self.pixel_source = slide.background, slide.reader, slide.pixel_source
        self.stated_mpp = slide.mpp if slide.stated_mpp is None else slide.stated_mpp
        self.properties, self.associated, self.icc_profile = slide.properties, slide.associated, slide.icc_profile
        self.mpp, self.mpp_source = given_mpp(mpp)

        self._given = mpp

    def __reduce__(self) -> tuple[Any, ...]:
        return as_slide, (self._slide, self._given)

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
