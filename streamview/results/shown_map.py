"""A map as viewers get it: blurred values, or a uint8 pyramid of per cent of the cap, made only where it is looked at.

Colours, opacity and threshold need no new pixels: they are the layer's colour map. Another cap needs the blurred tiles once more, another
blur or map only those on the screen.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamview.results.blurring import block_means, blur
from streamview.results.display import Overview, Recipe, Shown, blurred_overview, show
from streamview.results.glass import Glass
from streamview.results.maps import Saliency, SaliencyMap

__all__ = ["FULL", "Glass", "Level", "ShownMap", "window"]

FULL = 100  # the level's value at the cap
_TILE = 512  # px
_KEPT = 96  # tiles of float32: 100 MB at most
_HELD = 2048  # px: levels of at most this a side are read once and kept
_SMOOTH = 2.0  # px: where the blur is this wide on a coarser level, linear interpolation of that one shows the same


def window(key: Any, shape: tuple[int, ...]) -> tuple[list[tuple[int, int]], tuple[Any, ...]]:
    """Return the bounds ``(low, high)`` of what an index reads of a (y, x, ...) array, and the index that is left to apply to it."""
    key = key if isinstance(key, tuple) else (key,)
    if Ellipsis in key:
        at = key.index(Ellipsis)
        key = (*key[:at], *(slice(None),) * (len(shape) + 1 - len(key)), *key[at + 1 :])
    key += (slice(None),) * (len(shape) - len(key))
    bounds: list[tuple[int, int]] = []
    rest: list[Any] = []
    for part, size in zip(key[:2], shape[:2], strict=True):
        index = range(size)[part]
        if isinstance(index, int):
            bounds.append((index, index + 1))
            rest.append(0)
        else:
            bounds.append((min(index, default=0), max(index, default=-1) + 1))
            rest.append(slice(None, None, index.step))
    return bounds, (*rest, *key[2:])


class ShownMap:
    """One map, and how it is shown now. Not safe to use from several threads at once.

    Parameters
    ----------
    saliency
        The maps; those levels that fit into memory are kept there once read.
    recipe
        Which map, and how.

    Raises
    ------
    StreamviewError
        When the saliency has no such map.
    """

    def __init__(self, saliency: Saliency, recipe: Recipe) -> None:
        raw_map = saliency.maps.get(recipe.method)
        if raw_map is not None:
            held = tuple(_Held(level) for level in (raw_map.levels if raw_map.coarser else block_means(raw_map.values)))
            # `Held` reads as the arrays that it stands for
            raw_map = replace(raw_map, values=held[0], coarser=held[1:])  # type: ignore[arg-type]
            saliency = replace(saliency, maps=saliency.maps | {recipe.method: raw_map})
        self._saliency = saliency
        self._tiles: OrderedDict[tuple[int, int, int], NDArray[np.float32]] = OrderedDict()
        self._overview: Overview = blurred_overview(saliency, recipe.method, recipe.blur_um)
        self.shown: Shown = show(saliency, recipe, self._overview)
        self.glass: Glass | None = None
        self.levels = tuple(Level(self, index) for index in range(len(self.map.levels)))

    @property
    def map(self) -> SaliencyMap:
        """The raw map."""
        return self._saliency.maps[self.shown.recipe.method]

    def set(self, recipe: Recipe) -> bool:
        """Show the map by another recipe of the same method; return whether that changes pixels, so that the layer must be drawn anew."""
        before = self.shown
        if recipe.blur_um != before.recipe.blur_um:
            self._tiles.clear()
            self._overview = blurred_overview(self._saliency, recipe.method, recipe.blur_um)
        self.shown = show(self._saliency, recipe, self._overview)
        hidden = self.glass is not None and recipe.glass != before.recipe.glass
        return recipe.blur_um != before.recipe.blur_um or self.shown.cap != before.cap or hidden

    def warm(self) -> None:
        """Compute now what a view of the whole map needs, so that the first look takes no time."""
        for level in range(len(self.map.levels)):
            height, width = self.map.levels[level].shape
            if max(height, width) <= _HELD:
                self.per_cent(level, (0, height), (0, width))

    def blurred(self, level: int, rows: tuple[int, int], columns: tuple[int, int]) -> NDArray[np.float32]:
        """Raw values of a part of a level as the recipe blurs them, float32."""
        source = self._source(level)
        if source > level:
            return self._interpolated(source, 2 ** (source - level), rows, columns)
        if source == self._overview.level:
            return self._overview.values[slice(*rows), slice(*columns)]
        part = np.empty((rows[1] - rows[0], columns[1] - columns[0]), np.float32)
        across, down = (range(low // _TILE, -(-high // _TILE)) for low, high in (columns, rows))
        for i, j in product(down, across):
            tile, y, x = self._tile(source, i, j), i * _TILE, j * _TILE
            top, bottom = max(y, rows[0]), min(y + tile.shape[0], rows[1])
            left, right = max(x, columns[0]), min(x + tile.shape[1], columns[1])
            part[top - rows[0] : bottom - rows[0], left - columns[0] : right - columns[0]] = tile[
                top - y : bottom - y, left - x : right - x
            ]
        return part

    def per_cent(self, level: int, rows: tuple[int, int], columns: tuple[int, int]) -> NDArray[np.uint8]:
        """Share of the cap in whole per cent, rounded down, uint8: 0 where nothing is or where it is hidden as glass."""
        if self.shown.cap <= 0 or rows[0] >= rows[1] or columns[0] >= columns[1]:
            return np.zeros((max(rows[1] - rows[0], 0), max(columns[1] - columns[0], 0)), np.uint8)
        # a hair more, so that a threshold of whole per cent is met by what meets it in float32
        shares = self.blurred(level, rows, columns) * np.float32(FULL * (1 + 1e-6) / self.shown.cap)
        clipped: NDArray[np.float32] = np.nan_to_num(shares, copy=False).clip(0, FULL, out=shares)  # NaN: a patch that was not computed
        codes = clipped.astype(np.uint8)
        hidden = self.hidden(level, rows, columns)
        if hidden is not None:
            codes[hidden] = 0
        return codes

    def hidden(self, level: int, rows: tuple[int, int], columns: tuple[int, int]) -> NDArray[np.bool_] | None:
        """Where a part of a level lies on glass, and the recipe hides that, bool; None where nothing is hidden."""
        if self.glass is None or not self.shown.recipe.glass:
            return None
        (sy, sx), (oy, ox) = self.map.placed(level)
        return self.glass.over(oy + sy * np.arange(*rows, dtype=float), ox + sx * np.arange(*columns, dtype=float))

    def raw(self, y: float, x: float) -> float | None:
        """The raw value at a level-0 position; None outside the map."""
        (sy, sx), (oy, ox), (height, width) = self.map.step, self.map.origin, self.map.values.shape
        i, j = int(np.floor((y - oy) / sy + 0.5)), int(np.floor((x - ox) / sx + 0.5))
        return float(self.map.values[i : i + 1, j : j + 1][0, 0]) if 0 <= i < height and 0 <= j < width else None

    def share(self, y: float, x: float) -> float | None:
        """The share of the cap (0..1) that the blurred map has at a level-0 position; None outside the map."""
        (sy, sx), (oy, ox), (height, width) = self.map.step, self.map.origin, self.map.values.shape
        i, j = int(np.floor((y - oy) / sy + 0.5)), int(np.floor((x - ox) / sx + 0.5))
        if not (0 <= i < height and 0 <= j < width) or self.shown.cap <= 0:
            return None
        return min(max(float(self.blurred(0, (i, i + 1), (j, j + 1))[0, 0]) / self.shown.cap, 0.0), 1.0)

    @property
    def _sigmas(self) -> tuple[tuple[float, float] | None, ...]:
        """Of each level; None of those so fine that they are made from a coarser one."""
        dropped = len(self.map.levels) - len(self.shown.levels)
        return (None,) * dropped + tuple(level.sigma for level in self.shown.levels)

    def _source(self, level: int) -> int:
        """The level that this one is made from: itself, or the coarsest on which the blur is wide enough."""
        wide = [index for index, sigma in enumerate(self._sigmas) if sigma is not None and min(sigma) >= _SMOOTH]
        finest = next(index for index, sigma in enumerate(self._sigmas) if sigma is not None)
        return max([level, finest, *wide])

    def _tile(self, level: int, i: int, j: int) -> NDArray[np.float32]:
        key = (level, i, j)
        if key in self._tiles:
            self._tiles.move_to_end(key)
            return self._tiles[key]
        sigma, raw = self._sigmas[level] or (0.0, 0.0), self.map.levels[level]
        windows, inner = [], []
        for start, size, width in zip((i * _TILE, j * _TILE), raw.shape, sigma, strict=True):
            reach = int(4 * width + 0.5)
            low, high = max(start - reach, 0), min(start + _TILE + reach, size)
            windows.append(slice(low, high))
            inner.append(slice(start - low, min(start + _TILE, size) - low))
        tile = blur(np.asarray(raw[windows[0], windows[1]], np.float32), sigma)[inner[0], inner[1]]
        self._tiles[key] = tile
        if len(self._tiles) > _KEPT:
            self._tiles.popitem(last=False)
        return tile

    def _interpolated(self, source: int, factor: int, rows: tuple[int, int], columns: tuple[int, int]) -> NDArray[np.float32]:
        """A part of a level, `factor` times finer than its source, by linear interpolation."""
        # fine pixel k is centred at coarse position (k + 0.5) / factor - 0.5
        places = [
            ((np.arange(*bounds) + 0.5) / factor - 0.5).clip(0, size - 1)
            for bounds, size in zip((rows, columns), self.map.levels[source].shape, strict=True)
        ]
        lows = [place.astype(int) for place in places]
        (y, x), (height, width) = lows, self.map.levels[source].shape
        needed = (int(y[0]), min(int(y[-1]) + 2, height)), (int(x[0]), min(int(x[-1]) + 2, width))
        values = self.blurred(source, *needed)
        for axis, (place, low, (start, stop)) in enumerate(zip(places, lows, needed, strict=True)):
            share = (place - low).astype(np.float32)
            share = share[:, None] if axis == 0 else share
            first, second = low - start, np.minimum(low + 1, stop - 1) - start
            below, above = values.take(first, axis), values.take(second, axis)
            above -= below
            above *= share
            values = above + below
        return values


class Level:
    """One level of a shown map as a lazy uint8 (h, w) array.

    Parameters
    ----------
    shown
        The map.
    index
        Which level; 0 has the pixels of the record.
    """

    def __init__(self, shown: ShownMap, index: int) -> None:
        self._shown, self._index = shown, index
        height, width = shown.map.levels[index].shape
        self.shape = (height, width)
        self.dtype = np.dtype(np.uint8)
        self.ndim = 2
        self.size = height * width

    def __getitem__(self, key: Any) -> NDArray[np.uint8]:
        (rows, columns), rest = window(key, self.shape)
        values: NDArray[np.uint8] = self._shown.per_cent(self._index, rows, columns)[rest]
        return values

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.asarray(self[:, :], dtype)


class _Held:
    """A level of a record that is read whole at its first use and kept, where it is small; else its chunk read last."""

    def __init__(self, level: Any) -> None:
        self._level = level
        self._whole: NDArray[np.float32] | None = level if isinstance(level, np.ndarray) else None
        self.shape: tuple[int, int] = level.shape
        self.dtype, self.ndim = np.dtype(np.float32), 2

    def __getitem__(self, key: Any) -> Any:
        if self._whole is None and max(self.shape) <= _HELD:
            self._whole = np.asarray(self._level[:, :], np.float32)
        return (self._level if self._whole is None else self._whole)[key]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.asarray(self[:, :], dtype)
