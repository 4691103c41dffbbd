"""OME-TIFF and plain tiled TIFF: tifffile parses, tiles are read and decoded one by one into the result."""

from __future__ import annotations

import math
import struct
import threading
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import numpy.typing as npt
import tifffile

from streamview.errors import SlideError
from streamview.geometry import Region
from streamview.slides.checks import check_size, file_identity
from streamview.slides.slide import SlideBase, check_region, composite, positive_mpp, shape_levels

__all__ = ["TiffSlide"]

_MICROMETRES = {"m": 1e6, "cm": 1e4, "mm": 1e3, "um": 1.0, "µm": 1.0, "μm": 1.0, "nm": 1e-3, "in": 25400.0}
_RESOLUTION_UNITS = {2: 25400.0, 3: 10000.0}
# Coarser than this, a TIFF's resolution is the 72 dpi that image programs write by habit, not a measurement.
_COARSEST_RESOLUTION = 100.0


class TiffSlide(SlideBase):
    """The largest image of a TIFF, with its reduced resolutions.

    Parameters
    ----------
    path
        A TIFF whose image is 8-bit RGB (or RGBA), in tiles or small strips.

    Raises
    ------
    SlideError
        When the file is no TIFF, or the image is of another kind; the message names what was found.
    """

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        try:
            self._file = tifffile.TiffFile(path)
        except (tifffile.TiffFileError, ValueError, IndexError, KeyError, struct.error) as error:
            raise SlideError(f"{path.name}: not a TIFF that can be read ({error}); get the file again") from None
        try:
            images = [series for series in self._file.series if "Y" in series.axes and "X" in series.axes]
            if not images:
                raise SlideError(f"{path.name}: a TIFF without an image; expected 8-bit RGB, get the file again")
            image = max(images, key=lambda series: _shape(series)[0] * _shape(series)[1])
            self._pages = _rgb_pages(path.name, image)
            shapes = [(page.imagelength, page.imagewidth) for page in self._pages]
            for page, shape in zip(self._pages, shapes, strict=True):
                check_size(path.name, shape, math.prod(page.chunks))
            mpp = _mpp(self._file, images.index(image), self._pages[0])
            super().__init__(path.name, shape_levels(shapes), mpp, file_identity(path))
        except BaseException:
            self._file.close()
            raise

    def read(self, region: Region) -> npt.NDArray[np.uint8]:
        """Read a region; see `streamview.slides.Slide.read`."""
        check_region(self.name, self.levels, region)
        page = self._pages[region.level]
        tile_height, tile_width = page.chunks[-3:-1] if page.planarconfig == 1 else page.chunks[-2:]
        rows, columns = -(-page.imagelength // tile_height), -(-page.imagewidth // tile_width)
        planes = 1 if page.planarconfig == 1 else page.samplesperpixel
        out = np.empty((*region.shape, page.samplesperpixel), np.uint8)
        out[...] = (*self.background, 255)[: page.samplesperpixel]
        for row in range(region.y // tile_height, -(-region.y_stop // tile_height)):
            for column in range(region.x // tile_width, -(-region.x_stop // tile_width)):
                y, x = row * tile_height, column * tile_width
                for plane in range(planes):
                    tile = self._tile(region.level, (plane * rows + row) * columns + column, y, x)
                    if tile is None:  # the format's way to leave out empty glass
                        continue
                    top, left = max(y, region.y), max(x, region.x)
                    bottom, right = min(y + tile.shape[0], region.y_stop), min(x + tile.shape[1], region.x_stop)
                    target = out[top - region.y : bottom - region.y, left - region.x : right - region.x]
                    (target if planes == 1 else target[..., plane : plane + 1])[...] = tile[top - y : bottom - y, left - x : right - x]
        return out if page.samplesperpixel == 3 else composite(out, self.background)

    def _tile(self, level: int, index: int, y: int, x: int) -> npt.NDArray[np.uint8] | None:
        page = self._pages[level]
        offset, count = page.dataoffsets[index], page.databytecounts[index]
        if not count:
            return None
        try:
            with self._lock:
                self._file.filehandle.seek(offset)
                data = self._file.filehandle.read(count)
            decoded, _, shape = page.decode(data, index, jpegtables=page.jpegtables)
        except (tifffile.TiffFileError, RuntimeError, ValueError, OSError) as error:
            raise SlideError(
                f"{self.name}: unreadable tile at level {level}, position {x},{y}: {error}; get the file again or avoid it"
            ) from None
        if decoded is None:
            return None
        tile: npt.NDArray[np.uint8] = decoded[0, : shape[1], : shape[2]]
        return tile

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _shape(series: tifffile.TiffPageSeries) -> tuple[int, int]:
    sizes = dict(zip(series.axes, series.shape, strict=True))
    return sizes["Y"], sizes["X"]


def _rgb_pages(name: str, series: tifffile.TiffPageSeries) -> list[tifffile.TiffPage]:
    """Pages of an image's levels, when they are 8-bit RGB."""
    colour = tifffile.PHOTOMETRIC(series.keyframe.photometric).name
    found = f"axes {series.axes}, shape {series.shape}, type {series.dtype}, colour {colour}"
    page = series.keyframe
    samples = dict(zip(series.axes, series.shape, strict=True)).get("S", 1)
    odd_colour = page.photometric not in (1, 2, 6) or (page.photometric == 6 and page.compression not in (6, 7))
    if series.dtype != np.uint8 or samples not in (3, 4) or set(series.axes) != set("YXS") or odd_colour:
        raise SlideError(f"{name}: {found}: expected 8-bit RGB (brightfield); export it as 8-bit RGB")
    return [level.keyframe for level in series.levels]


def _mpp(file: tifffile.TiffFile, number: int, page: tifffile.TiffPage) -> tuple[tuple[float, float] | None, str]:
    if file.ome_metadata:
        try:
            pixels = [node for node in ElementTree.fromstring(file.ome_metadata).iter() if node.tag.rpartition("}")[2] == "Pixels"]
        except ElementTree.ParseError:
            pixels = []
        if number < len(pixels) and "PhysicalSizeX" in pixels[number].attrib:
            return _ome_mpp(pixels[number].attrib)
    unit = _RESOLUTION_UNITS.get(int(page.resolutionunit or 1))
    if unit is None:
        return None, "unknown"
    x, y = (unit / value if value else math.nan for value in page.resolution)
    if max(y, x) > _COARSEST_RESOLUTION:
        return None, f"unknown (TIFF resolution states {x:.1f} um/px, which is not a scan's)"
    return positive_mpp(y, x, "TIFF resolution")


def _ome_mpp(pixels: dict[str, str]) -> tuple[tuple[float, float] | None, str]:
    sizes: list[float] = []
    for axis in "YX":
        unit = pixels.get(f"PhysicalSize{axis}Unit", "µm")
        if unit not in _MICROMETRES:
            return None, f"unknown (OME PhysicalSize is in {unit!r})"
        try:
            sizes.append(float(pixels.get(f"PhysicalSize{axis}", pixels["PhysicalSizeX"])) * _MICROMETRES[unit])
        except ValueError:
            sizes.append(math.nan)
    return positive_mpp(sizes[0], sizes[1], "OME PhysicalSize")
