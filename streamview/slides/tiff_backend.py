"""Aperio SVS, OME-TIFF and plain TIFF: tifffile parses, tiles are read and decoded straight into the result by several threads."""

from __future__ import annotations

import hashlib
import math
import os
import re
import threading
import warnings
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import numpy.typing as npt
import tifffile

from streamview.errors import ChannelError, SlideError, SlideWarning
from streamview.geometry import Region
from streamview.slides.channels import Channel, find_channel, in_words
from streamview.slides.checks import DAMAGED, check_size, file_identity
from streamview.slides.jpeg import decode_jpeg, frame_shape, stated_colour
from streamview.slides.slide import Level, Slide, SlideBase, check_region, composite, output, positive_mpp, shape_levels
from streamview.slides.units import micrometres, number

__all__ = ["TiffSlide", "UnreadableTiles"]

_RESOLUTION_UNITS = {2: 25400.0, 3: 10000.0}
_MIN_IS_WHITE, _MIN_IS_BLACK, _RGB, _PALETTE, _YCBCR = 0, 1, 2, 3, 6  # colours
_JPEG, _ICC_PROFILE = 7, 34675
_PHOTOMETRIC, _X_RESOLUTION, _Y_RESOLUTION, _RESOLUTION_UNIT = 262, 282, 283, 296
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
            self._file = tifffile.TiffFile(path, is_ndpi=False)  # which it would believe of the suffix alone
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
            image = max(images, key=lambda series: max(math.prod(_shape(level)) for level in series.levels))
            ome = _Ome(self._file.ome_metadata, images.index(image), image)
            # tifffile finds levels by one factor between them, finest first; others are told by their flag
            reduced = [series for series in images if series is not image and series.keyframe.is_reduced]
            resolutions = _resolutions([*image.levels, *(level for series in reduced for level in series.levels)])
            others = [series for series in images if series is not image and series not in resolutions]
            alike = [series.name for series in others if _shape(series) == _shape(resolutions[0])]
            if alike:
                size = f"{_shape(image)[1]} x {_shape(image)[0]} px"
                names = ", ".join((image.name, *alike))
                text = f"{path.name}: {len(alike) + 1} images of {size}: {names}; the first is read"
                warnings.warn(text, SlideWarning, stacklevel=7)
            self._pages, self._channel = _pages(path.name, resolutions, ome, channel)
            if self._channel is not None:
                identity = hashlib.sha256(f"{identity} {self._channel}".encode()).hexdigest()
            properties, mpp = _properties(self._file, self._pages[0], ome), _mpp(ome, self._pages[0])
            associated, background = tuple(series.name for series in others), (255, 255, 255)
        for page in self._pages:
            _check_grid(path.name, page)
        levels = [
            Level(level.shape, level.downsample, _chunk(page), _compression(page))
            for level, page in zip(shape_levels([(p.imagelength, p.imagewidth) for p in self._pages]), self._pages, strict=True)
        ]
        super().__init__(path.name, tuple(levels), mpp, identity, background)
        self.properties, self.associated = properties, associated
        self._alpha = _alpha(self._pages[0])
        # OpenSlide rounds twice where pixels are transparent, and colours of palettes otherwise
        self.comparable = self._pages[0].samplesperpixel == 3
        self.colour_conflict = self._find_colour_conflict()
        profile = self._pages[0].tags.valueof(_ICC_PROFILE)
        self.icc_profile = bytes(profile) if isinstance(profile, bytes) else None
        self.reader = "its tiles, read directly" if self._channel is None else f"its tiles, read directly: {self._channel}"
        self.pixel_source = "tiff" if self._alpha is None else f"tiff;alpha={self._alpha}"
        if self._channel is not None:
            self.pixel_source = f"tiff;{self._channel.token}"
        self.opened = str(path.absolute()), channel

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
                    if frame_shape(data) != buffer.shape[:2]:  # a last strip may hold only the rows that are left
                        buffer = np.empty((*_partial_shape(page, index, frame_shape(data)), 3), np.uint8)
                    decode_jpeg(data, buffer, page.jpegtables, _tagged_colour(page))
                return None if data is None else buffer
            planes_decoded = [self._decoded(page, plane * len(page.dataoffsets) // planes + index) for plane in range(planes)]
        except DAMAGED as error:
            height, width = _chunk(page)
            across = -(-page.imagewidth // width)
            y, x = index // across * height, index % across * width
            raise SlideError(
                f"{self.name}: unreadable tile at level {level}, position {x},{y}: {error}; get the file again or avoid it"
            ) from None
        decoded = [plane for plane in planes_decoded if plane is not None]
        if len(decoded) < planes:
            return None
        pixels = decoded[0] if planes == 1 else np.concatenate(decoded, 2)
        pixels = _values(page, pixels)
        if self._channel is not None:
            pixels = self._channel.to_grey(pixels)
        if pixels.shape[2] == 1:
            return np.broadcast_to(pixels, (*pixels.shape[:2], 3))
        if self._alpha is None:
            return pixels[..., :3]
        return composite(pixels, self.background, premultiplied=self._alpha == "premultiplied")

    def _decoded(self, page: tifffile.TiffPage, index: int) -> npt.NDArray[np.uint8] | None:
        data = self._data(page, index)
        if data is not None and page.compression in _JPEG_2000 and not data.rstrip(b"\0").endswith(b"\xff\xd9"):
            raise ValueError("corrupt JPEG 2000 data: cut short")  # the decoder takes zeros in place of the rest
        decoded, _, shape = page.decode(data, index, jpegtables=page.jpegtables)
        return None if decoded is None else decoded[0, : shape[1], : shape[2]]

    def _find_colour_conflict(self) -> str | None:
        """What a JPEG stream of the finest level says of its colour, where the TIFF's tag says otherwise."""
        page = self._pages[0]
        if page.compression != _JPEG or page.samplesperpixel != 3 or page.planarconfig != 1:
            return None
        index = next((index for index, count in enumerate(page.databytecounts) if count), None)
        stated = None if index is None else stated_colour(self._data(page, index) or b"", page.jpegtables)
        if stated is None or stated[0] == _tagged_colour(page):
            return None
        return f"its JPEG streams hold {stated[0]} by their {stated[1]}, where the TIFF's tag says {_tagged_colour(page)}"

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


def _unsuitable(page: tifffile.TiffPage) -> type[SlideError]:
    """The error for an image that is not RGB: only a tiled one is taken for a slide."""
    return ChannelError if page.is_tiled else SlideError


def _check_decodable(name: str, page: tifffile.TiffPage) -> None:
    """Refuse what is not RGB, and leave to OpenSlide what only it knows."""
    colour = tifffile.PHOTOMETRIC(page.photometric).name
    if page.dtype != np.uint8 or page.samplesperpixel != 3:
        found = f"{page.samplesperpixel} channels of {page.bitspersample} bit"
        raise _unsuitable(page)(f"{name}: {found}, colour {colour}: expected 8-bit RGB (brightfield); export it as 8-bit RGB")
    if not (page.photometric == _RGB or (page.photometric == _YCBCR and page.compression == _JPEG)):
        raise UnreadableTiles(f"{name}: {_compression(page)} in {colour}")
    if page.compression == 33003:
        raise UnreadableTiles(f"{name}: JPEG 2000 in YCbCr")
    if 0 in page.databytecounts:
        raise UnreadableTiles(f"{name}: some tiles are left out")


def _partial_shape(page: tifffile.TiffPage, index: int, shape: tuple[int, int] | None) -> tuple[int, int]:
    """The shape of a stream that fills its piece only in part, as far as the image reaches at least; any other is damaged."""
    height, width = _chunk(page)
    row, column = divmod(index, -(-page.imagewidth // width))
    needed = min(height, page.imagelength - row * height), min(width, page.imagewidth - column * width)
    if shape is None or not (needed[0] <= shape[0] <= height and needed[1] <= shape[1] <= width):
        raise ValueError(f"a JPEG picture of {shape} rows and columns, expected {(height, width)}")
    return shape


def _tagged_colour(page: tifffile.TiffPage) -> str:
    """Colour of three samples by the tag; Aperio and others store RGB in streams that do not say so."""
    return "RGB" if page.photometric == _RGB else "YCBCR"


def _alpha(page: tifffile.TiffPage) -> str | None:
    """What a fourth sample is: "straight" or "premultiplied" transparency, or None where there is none or the file calls it neither."""
    extra = page.extrasamples[0] if page.extrasamples else 0
    return {1: "premultiplied", 2: "straight"}.get(int(extra)) if page.samplesperpixel == 4 else None


def _values(page: tifffile.TiffPage, decoded: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Decoded samples (h, w, samples) as what they mean: colours of a palette, white for the least, all of 8 bits for fewer."""
    if page.photometric == _PALETTE:
        palette = np.asarray(page.colormap)
        colours: npt.NDArray[np.uint8] = (palette >> 8 if palette.max() > 255 else palette).astype(np.uint8).T
        return colours[decoded[..., 0].astype(np.intp)]
    most = 2**page.bitspersample - 1
    if page.photometric == _MIN_IS_WHITE:
        decoded = ~decoded if decoded.dtype == bool else most - decoded
    if page.bitspersample < 8:
        decoded = (decoded.astype(np.uint16) * 255 // most).astype(np.uint8)
    return decoded


def _resolutions(candidates: Iterable[tifffile.TiffPageSeries]) -> list[tifffile.TiffPageSeries]:
    """Levels of an image, finest first: what is of the same kind as the finest and, to a pixel, of the same proportions."""
    levels = sorted(candidates, key=lambda level: -math.prod(_shape(level)))
    finest, (height, width) = levels[0].keyframe, _shape(levels[0])
    kind = finest.samplesperpixel, finest.dtype, len(levels[0].pages)
    return [
        level
        for level in levels
        if (level.keyframe.samplesperpixel, level.keyframe.dtype, len(level.pages)) == kind
        and abs(height * _shape(level)[1] - width * _shape(level)[0]) <= height + width
    ]


def _pages(
    name: str, levels: list[tifffile.TiffPageSeries], ome: _Ome, channel: int | str | None
) -> tuple[list[tifffile.TiffPage], Channel | None]:
    """Pages of an image's levels when they are pictures of 8 bits, or those of the one channel chosen."""
    series = levels[0]
    page = series.keyframe
    sizes = dict(zip(series.axes, series.shape, strict=True))
    small = page.dtype is not None and page.dtype in (np.bool_, np.uint8)
    coloured = page.photometric in (_MIN_IS_BLACK, _RGB) or (page.photometric == _YCBCR and page.compression in (6, _JPEG))
    rgb = page.dtype == np.uint8 and sizes.get("S", 1) in (3, 4) and set(series.axes) == set("YXS") and coloured
    one = set(series.axes) == set("YX") and page.samplesperpixel == 1
    palette = one and page.photometric == _PALETTE and page.colormap is not None
    # What states that its least is white, or knows only black and white, is a picture and no channel of fluorescence.
    stated = _PHOTOMETRIC in page.tags  # without it white is least by default, which is no statement
    grey = (
        one and small and stated and (page.photometric == _MIN_IS_WHITE or (page.bitspersample == 1 and page.photometric == _MIN_IS_BLACK))
    )
    if channel is None and (rgb or palette or grey):
        return [level.keyframe for level in levels], None
    count = math.prod(size for axis, size in sizes.items() if axis not in "YX")
    dtype = np.dtype(np.uint8) if small else series.dtype
    found = f"{name}: {in_words(series.dtype, count, ome.channels)}"
    detail = f"axes {series.axes}, shape {series.shape}, type {series.dtype}, colour {tifffile.PHOTOMETRIC(page.photometric).name}"
    if rgb or palette:
        raise SlideError(f"{found}: it is RGB{' by its palette' if palette else ''}; leave out --channel")
    single = stated and set("YX") <= set(series.axes) <= set("CYX") and page.photometric in (_MIN_IS_WHITE, _MIN_IS_BLACK)
    if not single or (channel is None and dtype not in (np.uint8, np.uint16)):
        raise _unsuitable(page)(f"{found} ({detail}): expected 8-bit RGB (brightfield); export it as 8-bit RGB")
    if channel is None:
        remedy = "streamview convert --channel N makes a grey slide of one"
        raise _unsuitable(page)(f"{found} ({detail}): expected 8-bit RGB (brightfield); {remedy}")
    window = ome.window or ((0, 2**page.bitspersample - 1) if page.bitspersample > 8 else None)
    chosen = find_channel(name, channel, dtype, count, ome.channels, window)
    return [_whole(level.pages[chosen.number]) for level in levels], chosen


class _Ome:
    """The part of an OME-XML description that is about one image; empty where there is none.

    The image is found by its size and name, since images that the file counts as levels of others are none here; then by its number.
    """

    def __init__(self, xml: str | None, number: int, image: tifffile.TiffPageSeries) -> None:
        try:
            self.root = ElementTree.fromstring(xml or "<none/>")
        except ElementTree.ParseError:
            self.root = ElementTree.fromstring("<none/>")
        images = [node for node in self.root.iter() if _tag(node) == "Image"]
        pixels = [(node.get("Name", ""), child) for node in images for child in node if _tag(child) == "Pixels"]
        size = tuple(map(str, _shape(image)))
        alike = [(name, node) for name, node in pixels if (node.get("SizeY"), node.get("SizeX")) == size]
        named = [node for name, node in alike if name == image.name]
        chosen = named[0] if len(named) == 1 else alike[0][1] if len(alike) == 1 else pixels[number][1] if number < len(pixels) else None
        self.pixels: Mapping[str, str] = {} if chosen is None else chosen.attrib
        self.channels = [] if chosen is None else [node.get("Name", "") for node in chosen if _tag(node) == "Channel"]

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
    properties = {key: value for key, value in texts.items() if isinstance(value, str) and value}
    if not file.ome_metadata and page.description:
        properties["tiff.ImageDescription"] = page.description
    for key, value in ome.properties():
        properties.setdefault(key, value)
    return properties


def _mpp(ome: _Ome, page: tifffile.TiffPage) -> tuple[tuple[float, float] | None, str]:
    if {"PhysicalSizeX", "PhysicalSizeY"} & set(ome.pixels):
        return _ome_mpp(ome.pixels)
    per_unit = [_rational(page.tags.valueof(tag)) for tag in (_Y_RESOLUTION, _X_RESOLUTION)]
    source, micrometre = "TIFF resolution", _RESOLUTION_UNITS.get(int(page.tags.valueof(_RESOLUTION_UNIT, 2)))
    written = re.search(r"^unit=(.+?)\r?$", page.description, re.MULTILINE) if page.description.startswith("ImageJ=") else None
    if written is not None:  # as in "\\u00B5m"
        unit = re.sub(r"\\u([0-9a-fA-F]{4})", lambda code: chr(int(code[1], 16)), written[1])
        source, micrometre = "ImageJ resolution", micrometres(unit)
        if micrometre is None:
            return None, f"unknown (ImageJ resolution is in {unit!r})"
    if micrometre is None:
        placeholder = set(per_unit) <= {None, 1.0}
        return None, "unknown" if placeholder else "unknown (TIFF resolution has no unit)"
    y, x = (None if value is None else micrometre / value if value else math.nan for value in per_unit)
    return positive_mpp(y, x, source)


def _rational(value: Any) -> float | None:
    return value[0] / value[1] if isinstance(value, tuple) and len(value) == 2 and value[1] else None


def _ome_mpp(pixels: Mapping[str, str]) -> tuple[tuple[float, float] | None, str]:
    sizes: list[float | None] = []
    for axis in "YX":
        unit, size = pixels.get(f"PhysicalSize{axis}Unit", "µm"), pixels.get(f"PhysicalSize{axis}")
        micrometre = micrometres(unit)
        if size is not None and micrometre is None:
            return None, f"unknown (OME PhysicalSize is in {unit!r})"
        sizes.append(None if size is None or micrometre is None else number(size) * micrometre)
    return positive_mpp(sizes[0], sizes[1], "OME PhysicalSize")
