"""An RGB array as a slide."""

from __future__ import annotations

import hashlib
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from streamview.errors import SlideError
from streamview.geometry import Region
from streamview.slides.slide import WHITE, Level, SlideBase, check_region, given_mpp, output

__all__ = ["ArraySlide"]


class ArraySlide(SlideBase):
    """A uint8 (H, W, 3) array seen as a slide of one level; the array is not copied.

    Parameters
    ----------
    pixels
        RGB, 0 to 255.
    mpp
        Micrometres per pixel, when known.

    Raises
    ------
    SlideError
        When the array is not uint8 (H, W, 3).
    """

    def __init__(self, pixels: npt.NDArray[np.uint8], mpp: float | None = None) -> None:
        if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8 or pixels.size == 0:
            expected = "expected 8-bit RGB, uint8 (height, width, 3)"
            raise SlideError(f"array of shape {pixels.shape} and type {pixels.dtype}: {expected}; {_remedy(pixels)}")
        self._pixels, self._given = pixels, mpp
        self.name, self.background = "array", WHITE
        self.shape = pixels.shape[0], pixels.shape[1]
        self.levels = (Level(self.shape, (1.0, 1.0)),)
        self.mpp, self.mpp_source = (None, "unknown") if mpp is None else given_mpp(mpp)

    def __reduce__(self) -> tuple[Any, ...]:
        return ArraySlide, (self._pixels, self._given)

    @cached_property
    def identity(self) -> str:  # type: ignore[override]  # hashed only when asked for
        """SHA-256 of the shape and the pixels."""
        digest = hashlib.sha256(f"streamview array {self.shape}\n".encode())
        for row in range(0, self.shape[0], 1024):
            digest.update(np.ascontiguousarray(self._pixels[row : row + 1024]).data)
        return digest.hexdigest()

    def read(self, region: Region, out: npt.NDArray[np.uint8] | None = None) -> npt.NDArray[np.uint8]:
        """Copy a region; see `streamview.slides.Slide.read`."""
        check_region(self.name, self.levels, region)
        out = output(region, out)
        out[...] = self._pixels[region.y : region.y_stop, region.x : region.x_stop]
        return out


def _remedy(pixels: npt.NDArray[np.generic]) -> str:
    """What makes RGB of an array as other libraries have it."""
    if pixels.ndim == 4:
        return "pass one image: array[0]"
    if pixels.ndim == 3 and pixels.shape[0] in (1, 3, 4) and pixels.shape[2] not in (3, 4):
        return "move the channels last: array.transpose(1, 2, 0)"
    if pixels.ndim == 3 and pixels.shape[2] == 4:
        return "leave out the transparency: array[..., :3]"
    if np.issubdtype(pixels.dtype, np.floating):
        return "scale it: (array * 255).round().astype(np.uint8) where its values are 0 to 1"
    return "convert it"
