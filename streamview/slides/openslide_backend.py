"""Vendor formats and DICOM through OpenSlide."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import openslide

from streamview.errors import SlideError
from streamview.geometry import Region
from streamview.slides.checks import check_size, file_identity
from streamview.slides.slide import WHITE, SlideBase, check_region, composite, output, positive_mpp, shape_levels

__all__ = ["OpenSlideSlide"]

_BLOCK = 512
_SEVERAL_FILES = ("dicom", "mirax")


class OpenSlideSlide(SlideBase):
    """A slide read by OpenSlide, whose handle is opened anew after a failed read (a failure kills it for good).

    Parameters
    ----------
    path
        File that OpenSlide recognises.

    Raises
    ------
    SlideError
        When OpenSlide cannot open it.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._lock = path, threading.Lock()
        self._handle: openslide.OpenSlide | None = self._open()
        properties = self._handle.properties
        vendor = properties.get(openslide.PROPERTY_NAME_VENDOR, "")
        shapes = [(height, width) for width, height in self._handle.level_dimensions]
        for shape in shapes:
            check_size(path.name, shape)
        source = "aperio.MPP" if "aperio.MPP" in properties else f"{vendor} through OpenSlide"
        stated = [properties.get(name) for name in (openslide.PROPERTY_NAME_MPP_Y, openslide.PROPERTY_NAME_MPP_X)]
        if stated == [None, None]:  # OpenSlide leaves out what it cannot parse, which is to be named
            stated = [properties.get("aperio.MPP")] * 2
        mpp = positive_mpp(stated[0], stated[1], source)
        colour = properties.get(openslide.PROPERTY_NAME_BACKGROUND_COLOR)
        background = (int(colour[:2], 16), int(colour[2:4], 16), int(colour[4:6], 16)) if colour else WHITE
        quickhash = properties.get(openslide.PROPERTY_NAME_QUICKHASH1)
        if vendor in _SEVERAL_FILES and quickhash:
            identity = hashlib.sha256(f"openslide quickhash {quickhash}".encode()).hexdigest()
        else:
            identity = file_identity(path)
        levels = [replace(level, tile=_tile(properties, number)) for number, level in enumerate(shape_levels(shapes))]
        super().__init__(path.name, tuple(levels), mpp, identity, background)
        self.properties, self.associated = dict(properties), tuple(self._handle.associated_images)
        self.icc_profile = _profile(self._handle)
        self.reader, self.pixel_source = f"OpenSlide ({vendor})", "openslide"
        self.opened = str(path.absolute()), None

    def _open(self) -> openslide.OpenSlide:
        try:
            return openslide.OpenSlide(self._path)
        except openslide.OpenSlideError as error:
            raise SlideError(
                f"{self._path.name}: OpenSlide cannot open it ({error}); get the file, and any folder that belongs to it, again"
            ) from None

    def read(self, region: Region, out: npt.NDArray[np.uint8] | None = None) -> npt.NDArray[np.uint8]:
        """Read a region; see `streamview.slides.Slide.read`.

        OpenSlide addresses coarser levels by level-0 position. Where a level's downsample is not whole, a position falls
        between pixels and neighbours are blended; such levels are therefore read in blocks on a fixed grid, so that a
        pixel's value does not depend on the region it was read with. Others are read in strips, which bounds the memory.
        """
        check_region(self.name, self.levels, region)
        handle = self._handle
        if handle is None:
            raise SlideError(f"{self.name}: already closed; open it again with open_slide")
        out = output(region, out)
        whole = handle.level_downsamples[region.level].is_integer()
        height, width = (region.y_stop, region.x_stop) if whole else self.levels[region.level].shape
        grid = (region.y, region.x) if whole else (0, 0)
        across = region.width if whole else _BLOCK
        for y in range(region.y - (region.y - grid[0]) % _BLOCK, region.y_stop, _BLOCK):
            for x in range(region.x - (region.x - grid[1]) % across, region.x_stop, across):
                block = Region(y, x, min(_BLOCK, height - y), min(across, width - x), region.level)
                top, left = max(y, region.y), max(x, region.x)
                bottom, right = min(block.y_stop, region.y_stop), min(block.x_stop, region.x_stop)
                pixels = self._piece(handle, block)[top - y : bottom - y, left - x : right - x]
                out[top - region.y : bottom - region.y, left - region.x : right - region.x] = pixels
        return out

    def _piece(self, handle: openslide.OpenSlide, region: Region) -> npt.NDArray[np.uint8]:
        scale = handle.level_downsamples[region.level]
        try:
            image = handle.read_region((round(region.x * scale), round(region.y * scale)), region.level, (region.width, region.height))
        except openslide.OpenSlideError as error:
            # The dead handle is left to those still holding it; closing it here would pull it from under another thread.
            with self._lock:
                if self._handle is handle:
                    self._handle = self._open()
            raise SlideError(
                f"{self.name}: unreadable at level {region.level}, X,Y,WIDTH,HEIGHT {region}: {error}; get the file again or avoid it"
            ) from None
        return composite(np.asarray(image), self.background)

    def close(self) -> None:
        """Close the OpenSlide handle."""
        with self._lock:
            if self._handle is not None:
                self._handle.close()
                self._handle = None


def _tile(properties: Mapping[str, str], level: int) -> tuple[int, int] | None:
    height, width = (properties.get(f"openslide.level[{level}].tile-{side}") for side in ("height", "width"))
    return None if height is None or width is None else (int(height), int(width))


def _profile(handle: openslide.OpenSlide) -> bytes | None:
    """As stored; `OpenSlide.color_profile` would parse it and fail on a damaged one."""
    profile: bytes | None = handle.read_region((0, 0), 0, (0, 0)).info.get("icc_profile")
    return profile
