"""Which of two readers opens a TIFF: its own tiles where they give what OpenSlide gives, else OpenSlide."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import openslide

from streamview.errors import SlideError, SlideWarning
from streamview.geometry import Region
from streamview.slides.openslide_backend import OpenSlideSlide
from streamview.slides.slide import Slide
from streamview.slides.tiff_backend import TiffSlide, UnreadableTiles

__all__ = ["is_tiff", "open_file"]

_OURS = ("aperio", "generic-tiff")


def open_file(path: Path, channel: int | str | None = None) -> Slide | None:
    """Open a file that OpenSlide or tifffile reads; None when it is of neither kind.

    Where both can, a tile in the middle, the last one and the first of the coarsest level are compared. Where only one gives pixels, that
    one reads the file. Where both do and they differ, the JPEG streams' own statement of their colour decides: OpenSlide goes by the TIFF's
    tag alone. Where they state nothing, OpenSlide reads. A warning and `Slide.reader` say so.

    Parameters
    ----------
    path
        Checked by `streamview.slides.checks.check_complete`.
    channel
        As for `streamview.open_slide`.

    Raises
    ------
    SlideError
        When the file is damaged or not 8-bit RGB.
    """
    vendor = openslide.OpenSlide.detect_format(path)
    if vendor is None and not is_tiff(path):
        return None
    if channel is not None and vendor not in (None, "generic-tiff"):
        raise SlideError(f"{path.name}: a slide of RGB ({vendor}): leave out --channel")
    if vendor not in (None, *_OURS):
        return OpenSlideSlide(path)
    if vendor is None or channel is not None:
        return TiffSlide(path, channel=channel)
    return _aperio(path) if vendor == "aperio" else _generic(path)


def _aperio(path: Path) -> Slide:
    reference = OpenSlideSlide(path)
    try:
        tiles = TiffSlide(path, like=reference)
    except UnreadableTiles as error:
        reference.reader += f": {str(error).removeprefix(path.name + ': ')}"
        return reference
    except BaseException:
        reference.close()
        raise
    return _agreed(tiles, reference)


def _generic(path: Path) -> Slide:
    tiles = TiffSlide(path)
    if not tiles.comparable:
        return tiles
    try:
        reference = OpenSlideSlide(path)
    except SlideError:
        return tiles
    if reference.shape != tiles.shape:  # OpenSlide takes the first image, whatever lies behind it
        reference.close()
        tiles.reader += f"; OpenSlide would read one of {reference.shape[1]} x {reference.shape[0]} px"
        return tiles
    reference.mpp, reference.mpp_source = tiles.mpp, tiles.mpp_source
    return _agreed(tiles, reference)


def _agreed(tiles: TiffSlide, reference: OpenSlideSlide) -> Slide:
    """The reader to use of two of the same file; the other is closed."""
    try:
        compared, difference = _compare(tiles, reference)
    except BaseException:
        tiles.close()
        reference.close()
        raise
    if difference is None and compared:
        tiles.reader += f"; {compared} compared equal OpenSlide's"
    elif difference is not None and difference.unread is reference:
        tiles.reader += f"; OpenSlide reads none {difference}"
    elif difference is not None and tiles.colour_conflict is not None:
        tiles.reader += f"; OpenSlide's differ in colour {difference}"
        warnings.warn(f"{tiles.name}: colour: {tiles.colour_conflict}; read as the streams say", SlideWarning, stacklevel=6)
    else:
        tiles.close()
        if difference is None:
            reference.reader += ": the tiles to compare are unreadable"
        else:
            reference.reader += f": its tiles read directly differ {difference}"
            text = f"{reference.name}: OpenSlide reads it, slower: its tiles read directly differ {difference}"
            warnings.warn(text, SlideWarning, stacklevel=6)
        return reference
    reference.close()
    return tiles


@dataclass(frozen=True, slots=True)
class _Difference:
    """Where two readers differ, and which of them gave no pixels there."""

    place: str
    unread: Slide | None = None

    def __str__(self) -> str:
        return self.place


def _compare(tiles: Slide, reference: Slide) -> tuple[int, _Difference | None]:
    """How many tiles are equal, and the first difference."""
    mine, other = ([level.shape for level in slide.levels] for slide in (tiles, reference))
    # OpenSlide does not look for the levels of an OME-TIFF, which is a plain TIFF to it
    plain = reference.properties["openslide.vendor"] == "generic-tiff"
    shared = len(mine) if mine == other else int(plain and mine[0] == other[0])
    if not shared:
        return 0, _Difference("in their levels")
    compared = 0
    for region in _samples(tiles, shared):
        here, there = _try(tiles, region), _try(reference, region)
        if here is None and there is None:
            continue
        if here is None or there is None or not np.array_equal(here, there):
            unread = tiles if here is None else reference if there is None else None
            return compared, _Difference(f"at level {region.level}, X,Y,WIDTH,HEIGHT {region}", unread)
        compared += 1
    return compared, None


def _samples(slide: Slide, levels: int) -> list[Region]:
    """Whole tiles. On coarser levels only the first: OpenSlide finds the others by level-0 positions, which may fall between pixels."""
    regions = []
    for number, share in ((0, 0.5), (0, 1.0), (levels - 1, 0.0)):
        level = slide.levels[number]
        height, width = level.tile or level.shape
        y, x = (int((size - 1) * share) // step * step for size, step in zip(level.shape, (height, width), strict=True))
        regions.append(Region(y, x, min(height, level.shape[0] - y), min(width, level.shape[1] - x), number))
    return list(dict.fromkeys(regions))


def _try(slide: Slide, region: Region) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]] | None:
    try:
        return slide.read(region)
    except SlideError:
        return None


def is_tiff(path: Path) -> bool:
    """Whether a file begins like a classic or big TIFF."""
    with path.open("rb") as file:
        return file.read(4) in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
