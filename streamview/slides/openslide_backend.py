"""Vendor formats and DICOM through OpenSlide."""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path

import numpy as np
import numpy.typing as npt
import openslide

from streamview.errors import SlideError
from streamview.geometry import Region
from streamview.slides.checks import check_size, file_identity
from streamview.slides.slide import WHITE, SlideBase, check_region, composite, positive_mpp, shape_levels

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
        mpp = positive_mpp(properties.get(openslide.PROPERTY_NAME_MPP_Y), properties.get(openslide.PROPERTY_NAME_MPP_X), source)
        colour = properties.get(openslide.PROPERTY_NAME_BACKGROUND_COLOR)
        background = (int(colour[:2], 16), int(colour[2:4], 16), int(colour[4:6], 16)) if colour else WHITE
        quickhash = properties.get(openslide.PROPERTY_NAME_QUICKHASH1)
        if vendor in _SEVERAL_FILES and quickhash:
            identity = hashlib.sha256(f"openslide quickhash {quickhash}".encode()).hexdigest()
        else:
            identity = file_identity(path)
        super().__init__(path.name, shape_levels(shapes), mpp, identity, background)

    def _open(self) -> openslide.OpenSlide:
        try:
            return openslide.OpenSlide(self._path)
        except openslide.OpenSlideError as error:
            raise SlideError(
                f"{self._path.name}: OpenSlide cannot open it ({error}); get the file, and any folder that belongs to it, again"
            ) from None

    def read(self, region: Region) -> npt.NDArray[np.uint8]:
        """Read a region; see `streamview.slides.Slide.read`.

        OpenSlide addresses coarser levels by level-0 position. Where a level's downsample is not whole, a position falls
        between pixels and neighbours are blended; such levels are therefore read in blocks on a fixed grid, so that a
        pixel's value does not depend on the region it was read with.
        """
        check_region(self.name, self.levels, region)
        handle = self._handle
        if handle is None:
            raise SlideError(f"{self.name}: already closed; open it again with open_slide")
        scale = handle.level_downsamples[region.level]
        if scale.is_integer():
            return self._piece(handle, region)
        out = np.empty((*region.shape, 3), np.uint8)
        height, width = self.levels[region.level].shape
        for y in range(region.y // _BLOCK * _BLOCK, region.y_stop, _BLOCK):
            for x in range(region.x // _BLOCK * _BLOCK, region.x_stop, _BLOCK):
                block = Region(y, x, min(_BLOCK, height - y), min(_BLOCK, width - x), region.level)
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
