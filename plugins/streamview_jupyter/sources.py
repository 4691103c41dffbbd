"""What tiles are made of: the pixels of a slide as JPEG, the values of a map as numbers that the browser colours. Without a comm."""

from __future__ import annotations

import math
import threading
import zlib
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from streamview.geometry import Region
from streamview.results import Saliency
from streamview.results.display import Recipe
from streamview.results.glass import Glass
from streamview.results.shown_map import ShownMap
from streamview.slides import Slide
from streamview.slides.thumbnail import thumbnail
from streamview_jupyter.messages import MessageError, Tile

__all__ = ["SLIDE_TILE", "VALUE_TILE", "EncodedTile", "LiveMap", "MapValues", "SlidePixels", "Source", "decode_values", "encode_values"]

SLIDE_TILE = 512  # px
VALUE_TILE = 256  # px: of a map
_QUALITY = 85  # of JPEG
_PART = 4096**2  # px of a level read for one tile at most: without coarse levels a slide stays blank until one zooms in
_BLANK = 225  # grey level
_CODES = 4095  # steps from 0 to a tile's maximum
_ABSENT = 65535  # the code of what was not computed
_LIVE_SIDE = 2048  # px: a map is watched at no more than this


@dataclass(frozen=True, slots=True, eq=False)
class EncodedTile:
    """One tile, ready to be sent.

    Parameters
    ----------
    data
        JPEG of pixels; of values see `encode_values`.
    top
        The largest value; 0 for pixels.
    """

    data: bytes
    top: float = 0.0


class Source(Protocol):
    """Where the tiles of a layer come from; called from several threads."""

    def tile(self, tile: Tile) -> EncodedTile:
        """Return one tile.

        Raises
        ------
        MessageError
            When the layer has no such tile.
        SlideError
            When a part of a file cannot be read.
        """


class SlidePixels:
    """A slide as a pyramid in steps of two, each level cut into tiles of 512 px; level 0 is one pixel, as OpenSeadragon counts.

    Parameters
    ----------
    slide
        An open slide.
    """

    def __init__(self, slide: Slide) -> None:
        self._slide = slide
        self.levels = math.ceil(math.log2(max(slide.shape))) if max(slide.shape) > 1 else 0
        """The number of the finest level."""

    def tile(self, tile: Tile) -> EncodedTile:
        """See `Source`."""
        from imagecodecs import jpeg8_encode

        height, width = self._slide.shape
        factor = 2 ** (self.levels - min(tile.level, self.levels))
        y, x = SLIDE_TILE * factor * tile.row, SLIDE_TILE * factor * tile.column
        if tile.level > self.levels or y >= height or x >= width:
            raise MessageError(f"no tile {tile.row}, {tile.column} of level {tile.level}: expected one inside the slide")
        region = Region(y, x, min(SLIDE_TILE * factor, height - y), min(SLIDE_TILE * factor, width - x))
        shape = math.ceil(region.height / factor), math.ceil(region.width / factor)
        if self._pixels(factor, region) > _PART:
            rgb = np.full((*shape, 3), _BLANK, np.uint8)
        else:
            rgb = thumbnail(self._slide, region, shape)
        return EncodedTile(bytes(jpeg8_encode(rgb, level=_QUALITY)))

    def _pixels(self, factor: int, region: Region) -> float:
        """How many px of a level of the file a region takes."""
        level = max((each for each in self._slide.levels if max(each.downsample) <= factor), key=lambda each: each.downsample)
        return region.height * region.width / (level.downsample[0] * level.downsample[1])


class MapValues:
    """The values of one map as a recipe blurs them, cut into tiles of 256 px; level 0 is the finest, as in a `SaliencyMap`.

    Parameters
    ----------
    saliency, recipe
        The map, and how it is blurred.
    glass
        Where the region is empty, and nothing is shown if the recipe says so; None: not known.
    """

    def __init__(self, saliency: Saliency, recipe: Recipe, glass: Glass | None = None) -> None:
        self._shown = ShownMap(saliency, recipe)
        self._shown.glass = glass
        self._lock = threading.Lock()  # what is blurred is kept

    @property
    def shown(self) -> ShownMap:
        """The map as it is shown now."""
        return self._shown

    @property
    def placement(self) -> list[dict[str, Any]]:
        """Height, width, and step and origin (y, x) in level-0 px, of each level."""
        saliency_map = self._shown.map
        return [_placement(level.shape, *saliency_map.placed(index)) for index, level in enumerate(saliency_map.levels)]

    def set(self, recipe: Recipe) -> None:
        """Show the map by another recipe."""
        with self._lock:
            self._shown.set(recipe)

    def raw(self, y: float, x: float) -> float | None:
        """The raw value at a level-0 position; None outside the map and where it was not computed."""
        with self._lock:
            value = self._shown.raw(y, x)
        return None if value is None or not math.isfinite(value) else value

    def tile(self, tile: Tile) -> EncodedTile:
        """See `Source`."""
        levels = self._shown.map.levels
        if tile.level >= len(levels):
            raise MessageError(f"level {tile.level}: expected one of {len(levels)}")
        rows, columns = _bounds(tile, levels[tile.level].shape)
        with self._lock:
            values = np.array(self._shown.blurred(tile.level, rows, columns))
            hidden = self._shown.hidden(tile.level, rows, columns)
        if hidden is not None:
            values[hidden] = 0
        return encode_values(values)


class LiveMap:
    """The positive part of a map while it is computed, averaged to at most 2048 px a side.

    Parameters
    ----------
    shape
        Height and width of the whole map.
    step, origin
        ``(y, x)`` in level-0 px, as of a `SaliencyMap`.
    """

    def __init__(self, shape: tuple[int, int], step: tuple[float, float], origin: tuple[float, float]) -> None:
        self._factor = factor = max(1, math.ceil(max(shape) / _LIVE_SIDE))
        small = math.ceil(shape[0] / factor), math.ceil(shape[1] / factor)
        self._sums, self._counts = np.zeros(small, np.float32), np.zeros(small, np.float32)
        self._lock = threading.Lock()
        shift = (factor - 1) / 2
        self.placement = [
            _placement(small, (step[0] * factor, step[1] * factor), (origin[0] + shift * step[0], origin[1] + shift * step[1]))
        ]

    def add(self, y: int, rows: NDArray[np.float32]) -> None:
        """Add finished rows, float32 (n, width), that begin at row y."""
        with self._lock:
            down, across = (np.arange(start, start + n) // self._factor for start, n in zip((y, 0), rows.shape, strict=True))
            starts = np.flatnonzero(np.diff(across, prepend=-1))
            narrow = np.add.reduceat(np.nan_to_num(rows.clip(min=0)), starts, axis=1)
            np.add.at(self._sums, down, narrow)
            np.add.at(self._counts, down, np.diff(starts, append=len(across)).astype(np.float32)[None])

    def clear(self) -> None:
        """Forget all rows: the computation begins anew."""
        with self._lock:
            self._sums[:] = self._counts[:] = 0

    @property
    def top(self) -> float:
        """The 99.9th percentile of what is positive so far; 0 where nothing is."""
        values = self._values()
        positive = values[values > 0]
        return float(np.percentile(positive, 99.9)) if positive.size else 0.0

    def tile(self, tile: Tile) -> EncodedTile:
        """See `Source`."""
        if tile.level:
            raise MessageError(f"level {tile.level}: expected one of 1")
        rows, columns = _bounds(tile, self._sums.shape)
        return encode_values(self._values()[slice(*rows), slice(*columns)])

    def _values(self) -> NDArray[np.float32]:
        with self._lock, np.errstate(invalid="ignore"):
            values: NDArray[np.float32] = self._sums / self._counts
        return values


def encode_values(values: NDArray[np.float32]) -> EncodedTile:
    """Encode values for the browser: code ``round(4095 * sqrt(value / top))`` in 16 bits, high bytes then low bytes, deflated.

    Parameters
    ----------
    values
        float32 (h, w); what is negative counts as 0, NaN as not computed (65535).
    """
    absent = ~np.isfinite(values)
    values = np.where(absent, np.float32(0), values).clip(min=0)
    top = float(values.max(initial=0))
    codes = np.rint(_CODES * np.sqrt(values / np.float32(top))).astype("<u2") if top > 0 else np.zeros(values.shape, "<u2")
    codes[absent] = _ABSENT
    planes = np.stack([codes >> 8, codes & 255]).astype(np.uint8)
    return EncodedTile(zlib.compress(planes.tobytes(), 1), top)


def decode_values(tile: EncodedTile, shape: tuple[int, int]) -> NDArray[np.float32]:
    """Return the values of a tile as the browser has them, float32 of `shape`: the inverse of `encode_values`, to 1/4095 of the root."""
    high, low = np.frombuffer(zlib.decompress(tile.data), np.uint8).reshape(2, *shape).astype(np.uint16)
    codes = high << 8 | low
    values = (codes / np.float32(_CODES)) ** 2 * np.float32(tile.top)
    return np.where(codes == _ABSENT, np.float32(np.nan), values).astype(np.float32)


def _bounds(tile: Tile, shape: tuple[int, ...]) -> tuple[tuple[int, int], tuple[int, int]]:
    """Rows and columns of a tile of values."""
    y, x = VALUE_TILE * tile.row, VALUE_TILE * tile.column
    if y >= shape[0] or x >= shape[1]:
        raise MessageError(f"no tile {tile.row}, {tile.column} of level {tile.level}: expected one inside the map")
    return (y, min(y + VALUE_TILE, shape[0])), (x, min(x + VALUE_TILE, shape[1]))


def _placement(shape: tuple[int, ...], step: tuple[float, float], origin: tuple[float, float]) -> dict[str, Any]:
    return {"height": shape[0], "width": shape[1], "step": list(step), "origin": list(origin)}
