"""Aperio SVS, OME-TIFF and plain TIFF: tifffile parses, tiles are read and decoded straight into the result by several threads."""

from __future__ import annotations

import hashlib
import math
import os
import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import numpy.typing as npt
import tifffile

from streamview.errors import SlideError
from streamview.geometry import Region
from streamview.slides.channels import Channel, find_channel, in_words
from streamview.slides.checks import DAMAGED, check_size, file_identity
from streamview.slides.jpeg import decode_jpeg
from streamview.slides.slide import Level, Slide, SlideBase, check_region, composite, output, positive_mpp, shape_levels

__all__ = ["TiffSlide", "UnreadableTiles"]

_MICROMETRES = {"m": 1e6, "cm": 1e4, "mm": 1e3, "um": 1.0, "µm": 1.0, "μm": 1.0, "nm": 1e-3, "in": 25400.0}
_RESOLUTION_UNITS = {2: 25400.0, 3: 10000.0}
# Coarser than this, a TIFF's resolution is the 72 dpi that image programs write by habit, not a measurement.
_COARSEST_RESOLUTION = 100.0
_RGB, _YCBCR, _JPEG, _ICC_PROFILE = 2, 6, 7, 34675
_JPEG_2000 = (33003, 33004, 33005, 34712)
_TEXTS = ("Make", "Model", "Software", "DateTime", "Artist", "HostComputer", "Copyright")

Part = tuple[int, int, int]  # a tile's row and column in its level's grid, and its place in their order


class UnreadableTiles(SlideError):
    """The image is 8-bit RGB, but stored in a way that is not decoded here."""


class TiffSlide(SlideBase):
    """The largest image of a TIFF, with its reduced resolutions.

    Parameters
    ----------
    path
        A TIFF whose image is 8-bit RGB (or RGBA), in tiles or small strips.
    like
        The same file as OpenSlide sees it, where the TIFF is one of a vendor's own layout: it says what the levels are, and the mpp and
        the properties. Only tiles are read here.
    channel
        Number (from 0) or name of one channel of an image that is not RGB, to be read as grey.

    Raises
    ------
    UnreadableTiles
        When tiles are of a kind that is left to OpenSlide.
    SlideError
        When the file is no TIFF, or the image is of another kind; the message names what was found.
    """

    def __init__(self, path: Path, like: Slide | None = None, channel: int | str | None = None) -> None:
        try:
            self._file = tifffile.TiffFile(path)
        except DAMAGED as error:
            raise SlideError(f"{path.name}: not a TIFF that can be read ({error}); get the file again") from None
        self._workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self._pool = ThreadPoolExecutor(self._workers, "streamview-tile")
        # a slide that is forgotten is closed as quietly as by OpenSlide; waiting there could be waiting for the thread that forgets it
        self._release = weakref.finalize(self, _release, self._pool, self._file)
        self._seek = threading.Lock()
        try:
            self._describe(path, like, channel)
        except DAMAGED as error:
            self.close()
            raise SlideError(f"{path.name}: damaged ({error}); get the file again") from None
        except BaseException:
            self.close()
            raise

    def _describe(self, path: Path, like: Slide | None, channel: int | str | None) -> None:
        self._pages: list[tifffile.TiffPage]
        self._channel: Channel | None = None
        identity = file_identity(path)
        if like is not None:
            self._pages = [page for page in map(_whole, self._file.pages) if page.is_tiled]
            for page in self._pages:
                _check_decodable(path.name, page)
            properties, associated, mpp, background = like.properties, like.associated, (like.mpp, like.mpp_source), like.background
        else:
            images = [series for series in self._file.series if "Y" in series.axes and "X" in series.axes]
            if not images:
                raise SlideError(f"{path.name}: a TIFF without an image; expected 8-bit RGB, get the file again")
            image = max(images, key=lambda series: _shape(series)[0] * _shape(series)[1])
            ome = _Ome(self._file.ome_metadata, images.index(image))
            self._pages, self._channel = _pages(path.name, image, ome, channel)
            if self._channel is not None:
                identity = hashlib.sha256(f"{identity} {self._channel}".encode()).hexdigest()
            properties, mpp = _properties(self._file, self._pages[0], ome), _mpp(ome, self._pages[0])
            associated, background = tuple(series.name for series in images if series is not image), (255, 255, 255)
        for page in self._pages:
            _check_grid(path.name, page)
        levels = [
            Level(level.shape, level.downsample, _chunk(page), _compression(page))
            for level, page in zip(shape_levels([(p.imagelength, p.imagewidth) for p in self._pages]), self._pages, strict=True)
        ]
        super().__init__(path.name, tuple(levels), mpp, identity, background)
        self.properties, self.associated = properties, associated
        self.opaque = self._pages[0].samplesperpixel != 4
        profile = self._pages[0].tags.valueof(_ICC_PROFILE)
        self.icc_profile = bytes(profile) if isinstance(profile, bytes) else None
        self.reader = "its tiles, read directly" if self._channel is None else f"its tiles, read directly: {self._channel}"

    def read(self, region: Region, out: npt.NDArray[np.uint8] | None = None) -> npt.NDArray[np.uint8]:
        """Read a region; see `streamview.slides.Slide.read`. Tiles are decoded by as many threads as there are processors."""
        check_region(self.name, self.levels, region)
        out = output(region, out)
        height, width = _chunk(page := self._pages[region.level])
        across = -(-page.imagewidth // width)
        parts = [
            (row, column, row * across + column)
            for row in range(region.y // height, -(-region.y_stop // height))
            for column in range(region.x // width, -(-region.x_stop // width))
        ]
        try:
            shares = [parts[first :: self._workers] for first in range(min(self._workers, len(parts)))]
            work = [self._pool.submit(self._place, share, region, out) for share in shares]
        except RuntimeError:
            raise SlideError(f"{self.name}: already closed; open it again with open_slide") from None
        wait(work)  # nobody writes to `out` any more, also after an error
        for done in work:
            done.result()
        return out

    def _place(self, parts: Sequence[Part], region: Region, out: npt.NDArray[np.uint8]) -> None:
        """Decode tiles, each into its place in `out`."""
        height, width = self.levels[region.level].tile or (0, 0)
        buffer = np.empty((height, width, 3), np.uint8)
        for row, column, index in parts:
            y, x = row * height - region.y, column * width - region.x
            top, left = max(-y, 0), max(-x, 0)
            target = out[max(y, 0) : y + height, max(x, 0) : x + width]
            if target.shape == buffer.shape and target.flags.c_contiguous:
                pixels = self._tile(region.level, index, target)
            else:
                pixels = self._tile(region.level, index, buffer)
            if pixels is None:  # the format's way to leave out empty glass
                target[...] = self.background
            elif pixels is not target:
                target[...] = pixels[top : top + target.shape[0], left : left + target.shape[1]]

    def _tile(self, level: int, index: int, buffer: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8] | None:
        """A tile's RGB, at least the part inside the image: in `buffer`, where it can be decoded there, else in an array of its own."""
        page = self._pages[level]
        planes = 1 if page.planarconfig == 1 else page.samplesperpixel
        try:
            if planes == 1 and page.samplesperpixel == 3 and page.compression == _JPEG:
                data = self._data(page, index)
                if data is not None:
                    # Aperio stores RGB as it is, in streams that do not say so.
                    plain = page.photometric == _RGB and not page.is_jfif
                    decode_jpeg(data, buffer, page.jpegtables, "RGB" if plain else None)
                return None if data is None else buffer
            found = [self._decoded(page, plane * len(page.dataoffsets) // planes + index) for plane in range(planes)]
        except DAMAGED as error:
            height, width = _chunk(page)
            across = -(-page.imagewidth // width)
            y, x = index // across * height, index % across * width
            raise SlideError(
                f"{self.name}: unreadable tile at level {level}, position {x},{y}: {error}; get the file again or avoid it"
            ) from None
        decoded = [plane for plane in found if plane is not None]
        if len(decoded) < planes:
            return None
        pixels = decoded[0] if planes == 1 else np.concatenate(decoded, 2)
        if self._channel is not None:
            return np.broadcast_to(self._channel.to_grey(pixels), (*pixels.shape[:2], 3))
        return pixels if pixels.shape[2] == 3 else composite(pixels, self.background)

    def _decoded(self, page: tifffile.TiffPage, index: int) -> npt.NDArray[np.uint8] | None:
        data = self._data(page, index)
        if data is not None and page.compression in _JPEG_2000 and not data.rstrip(b"\0").endswith(b"\xff\xd9"):
            raise ValueError("corrupt JPEG 2000 data: cut short")  # the decoder takes zeros in place of the rest
        decoded, _, shape = page.decode(data, index, jpegtables=page.jpegtables)
        return None if decoded is None else decoded[0, : shape[1], : shape[2]]

    def _data(self, page: tifffile.TiffPage, index: int) -> bytes | None:
        offset, count = page.dataoffsets[index], page.databytecounts[index]
        if not count:
            return None
        if hasattr(os, "pread"):
            data = os.pread(self._file.filehandle.fileno(), count, offset)
        else:
            with self._seek:
                self._file.filehandle.seek(offset)
                data = self._file.filehandle.read(count)
        if len(data) < count:
            raise ValueError(f"{len(data)} bytes where {count} are stated")
        return data

    def close(self) -> None:
        """Wait for reads under way and close the file."""
        self._pool.shutdown()
        self._release()


def _release(pool: ThreadPoolExecutor, file: tifffile.TiffFile) -> None:
    pool.shutdown(wait=False)
    file.close()


def _shape(series: tifffile.TiffPageSeries) -> tuple[int, int]:
    sizes = dict(zip(series.axes, series.shape, strict=True))
    return sizes["Y"], sizes["X"]


def _chunk(page: tifffile.TiffPage) -> tuple[int, int]:
    """Rows and columns of the pieces that a level is stored in."""
    height, width = page.chunks[-3:-1] if page.planarconfig == 1 and page.samplesperpixel > 1 else page.chunks[-2:]
    return int(height), int(width)


def _whole(page: tifffile.TiffPage | tifffile.TiffFrame | None) -> tifffile.TiffPage:
    if page is None:
        raise ValueError("a page of its image is missing")
    return page.aspage()


def _compression(page: tifffile.TiffPage) -> str:
    return str(getattr(page.compression, "name", page.compression)).lower().replace("_", " ").removeprefix("adobe ")


def _check_grid(name: str, page: tifffile.TiffPage) -> None:
    """Refuse a level whose size is absurd, or whose pieces are not as many as its size needs."""
    shape, (height, width) = (page.imagelength, page.imagewidth), _chunk(page)
    check_size(name, shape, height * width * page.samplesperpixel * -(-page.bitspersample // 8))
    planes = 1 if page.planarconfig == 1 else page.samplesperpixel
    needed = -(-shape[0] // height) * -(-shape[1] // width) * planes
    if not len(page.dataoffsets) == len(page.databytecounts) == needed:
        raise SlideError(
            f"{name}: {shape[1]} x {shape[0]} px in pieces of {width} x {height} are {needed}, but it holds {len(page.dataoffsets)};"
            " the file is damaged, get it again"
        )


def _check_decodable(name: str, page: tifffile.TiffPage) -> None:
    """Refuse what is not RGB, and leave to OpenSlide what only it knows."""
    colour = tifffile.PHOTOMETRIC(page.photometric).name
    if page.dtype != np.uint8 or page.samplesperpixel != 3:
        found = f"{page.samplesperpixel} channels of {page.bitspersample} bit"
        raise SlideError(f"{name}: {found}, colour {colour}: expected 8-bit RGB (brightfield); export it as 8-bit RGB")
    if not (page.photometric == _RGB or (page.photometric == _YCBCR and page.compression == _JPEG)):
        raise UnreadableTiles(f"{name}: {_compression(page)} in {colour}")
    if page.compression == 33003:
        raise UnreadableTiles(f"{name}: JPEG 2000 in YCbCr")
    if 0 in page.databytecounts:
        raise UnreadableTiles(f"{name}: some tiles are left out")


def _pages(
    name: str, series: tifffile.TiffPageSeries, ome: _Ome, channel: int | str | None
) -> tuple[list[tifffile.TiffPage], Channel | None]:
    """Pages of an image's levels when they are 8-bit RGB, or those of the one channel chosen."""
    page = series.keyframe
    sizes = dict(zip(series.axes, series.shape, strict=True))
    odd_colour = page.photometric not in (1, _RGB, _YCBCR) or (page.photometric == _YCBCR and page.compression not in (6, _JPEG))
    rgb = series.dtype == np.uint8 and sizes.get("S", 1) in (3, 4) and set(series.axes) == set("YXS") and not odd_colour
    if rgb and channel is None:
        return [level.keyframe for level in series.levels], None
    count = math.prod(size for axis, size in sizes.items() if axis not in "YX")
    found = f"{name}: {in_words(series.dtype, count, ome.channels)}"
    detail = f"axes {series.axes}, shape {series.shape}, type {series.dtype}, colour {tifffile.PHOTOMETRIC(page.photometric).name}"
    if rgb:
        raise SlideError(f"{found}: it is RGB; leave out --channel")
    if not set("YX") <= set(series.axes) <= set("CYX"):
        raise SlideError(f"{found} ({detail}): expected 8-bit RGB (brightfield); export it as 8-bit RGB")
    if channel is None:
        raise SlideError(f"{found} ({detail}): expected 8-bit RGB (brightfield); streamview convert --channel N makes a grey slide of one")
    chosen = find_channel(name, channel, series.dtype, count, ome.channels, ome.window)
    return [_whole(level.pages[chosen.number]) for level in series.levels], chosen


class _Ome:
    """The part of an OME-XML description that is about one image; empty where there is none."""

    def __init__(self, xml: str | None, number: int) -> None:
        try:
            self.root = ElementTree.fromstring(xml or "<none/>")
        except ElementTree.ParseError:
            self.root = ElementTree.fromstring("<none/>")
        pixels = [node for node in self.root.iter() if _tag(node) == "Pixels"]
        self.pixels: Mapping[str, str] = pixels[number].attrib if number < len(pixels) else {}
        channels = [node for node in pixels[number] if _tag(node) == "Channel"] if number < len(pixels) else []
        self.channels = [node.get("Name", "") for node in channels]

    @property
    def window(self) -> tuple[float, float] | None:
        """Range of values by the stated number of significant bits."""
        bits = self.pixels.get("SignificantBits", "")
        return (0, 2 ** int(bits) - 1) if bits.isdecimal() and 0 < int(bits) <= 16 else None

    def properties(self) -> Iterator[tuple[str, str]]:
        """Attributes and texts of all elements but the pixels' own places in the file."""
        for node in self.root.iter():
            tag = _tag(node)
            if tag not in ("TiffData", "UUID", "none"):
                yield from ((f"ome.{tag}.{key.rpartition('}')[2]}", value) for key, value in node.attrib.items())
                if node.text and node.text.strip():
                    yield f"ome.{tag}", node.text.strip()


def _tag(node: ElementTree.Element) -> str:
    return node.tag.rpartition("}")[2]


def _properties(file: tifffile.TiffFile, page: tifffile.TiffPage, ome: _Ome) -> dict[str, str]:
    """Of repeated OME elements the first counts."""
    texts = {f"tiff.{name}": page.tags.valueof(name) for name in _TEXTS}
    found = {key: value for key, value in texts.items() if isinstance(value, str) and value}
    if not file.ome_metadata and page.description:
        found["tiff.ImageDescription"] = page.description
    for key, value in ome.properties():
        found.setdefault(key, value)
    return found


def _mpp(ome: _Ome, page: tifffile.TiffPage) -> tuple[tuple[float, float] | None, str]:
    if "PhysicalSizeX" in ome.pixels:
        return _ome_mpp(ome.pixels)
    unit = _RESOLUTION_UNITS.get(int(page.resolutionunit or 1))
    if unit is None:
        return None, "unknown"
    x, y = (unit / value if value else math.nan for value in page.resolution)
    if max(y, x) > _COARSEST_RESOLUTION:
        return None, f"unknown (TIFF resolution states {x:.1f} um/px, which is not a scan's)"
    return positive_mpp(y, x, "TIFF resolution")


def _ome_mpp(pixels: Mapping[str, str]) -> tuple[tuple[float, float] | None, str]:
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
