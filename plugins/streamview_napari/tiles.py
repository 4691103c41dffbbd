"""Tiles of a slide, read when they are first looked at: at once, or in threads while coarser pixels stand in for them. Without Qt."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import product
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from psygnal import Signal

from streamview.errors import StreamviewError
from streamview.results.shown_map import window

__all__ = ["Tiled", "TiledLevel", "Tiles"]

_TILE = 512  # px
_KEPT = 400  # tiles: 300 MB at most
_THREADS = 2
_BLANK = 225  # grey level of what is not read yet and has nothing coarser to stand in for it

_Key = tuple[int, int, int]


class Tiled(Protocol):
    """A level that is read in parts."""

    shape: tuple[int, int, int]

    def read(self, y: int, x: int, height: int, width: int) -> NDArray[np.uint8]:
        """Read a part, uint8 (h, w, 3)."""


class Tiles:
    """The levels of a slide, finest first, cut into tiles of which the latest are kept.

    ``loaded`` is emitted in a thread when tiles have come that were asked for, ``failed(text)`` when one could not be read.

    Parameters
    ----------
    levels
        All of the same slide.

    Who asks for pixels waits until they are read, but `without_waiting` gets what is there.
    """

    loaded = Signal()
    failed = Signal(str)

    def __init__(self, levels: Sequence[Tiled]) -> None:
        self._levels = levels
        self._waits = True
        self._kept: OrderedDict[_Key, NDArray[np.uint8]] = OrderedDict()
        self._wanted: list[_Key] = []
        self._threads: set[threading.Thread] = set()
        self._lock = threading.Lock()

    def part(self, level: int, rows: tuple[int, int], columns: tuple[int, int]) -> NDArray[np.uint8]:
        """Return a part of a level, uint8 (h, w, 3).

        Without waiting, what is missing is asked for, and coarser pixels or grey are in its place.
        """
        part, missing = self._assembled(level, rows, columns)
        if missing and self._waits:
            return self._levels[level].read(rows[0], columns[0], rows[1] - rows[0], columns[1] - columns[0])
        if missing:
            self._ask(level, missing)
        return part

    def shape(self, level: int) -> tuple[int, int, int]:
        """Height, width and channels of a level."""
        return self._levels[level].shape

    @contextmanager
    def without_waiting(self) -> Iterator[None]:
        """Give what is there, in this block; it is entered by one thread only, that of the window."""
        self._waits = False
        try:
            yield
        finally:
            self._waits = True

    def stop(self) -> None:
        """Forget what was asked for, and return when no thread reads."""
        with self._lock:
            self._wanted.clear()
            threads = list(self._threads)
        for thread in threads:
            thread.join()

    def _assembled(self, level: int, rows: tuple[int, int], columns: tuple[int, int]) -> tuple[NDArray[np.uint8], list[_Key]]:
        part = np.empty((rows[1] - rows[0], columns[1] - columns[0], 3), np.uint8)
        missing = []
        for i, j in product(*(range(low // _TILE, -(-high // _TILE)) for low, high in (rows, columns))):
            top, bottom = max(i * _TILE, rows[0]), min((i + 1) * _TILE, rows[1])
            left, right = max(j * _TILE, columns[0]), min((j + 1) * _TILE, columns[1])
            tile = self._tile((level, i, j))
            if tile is None:
                missing.append((level, i, j))
                pixels = self._coarser(level, (top, bottom), (left, right))
            else:
                pixels = tile[top - i * _TILE : bottom - i * _TILE, left - j * _TILE : right - j * _TILE]
            part[top - rows[0] : bottom - rows[0], left - columns[0] : right - columns[0]] = pixels
        return part, missing

    def _tile(self, key: _Key) -> NDArray[np.uint8] | None:
        with self._lock:
            tile = self._kept.get(key)
            if tile is not None:
                self._kept.move_to_end(key)
            return tile

    def _coarser(self, level: int, rows: tuple[int, int], columns: tuple[int, int]) -> NDArray[np.uint8]:
        """The nearest pixels of the finest coarser level that has all of a part; else grey."""
        for other in range(level + 1, len(self._levels)):
            y, x = (
                ((np.arange(*bounds) + 0.5) * coarse / fine).astype(int).clip(0, coarse - 1)
                for bounds, coarse, fine in zip((rows, columns), self._levels[other].shape, self._levels[level].shape, strict=False)
            )
            tiles = {(i, j): self._tile((other, i, j)) for i, j in product(set((y // _TILE).tolist()), set((x // _TILE).tolist()))}
            if all(tile is not None for tile in tiles.values()):
                pixels = np.empty((len(y), len(x), 3), np.uint8)
                for (i, j), tile in tiles.items():
                    down, across = np.flatnonzero(y // _TILE == i), np.flatnonzero(x // _TILE == j)
                    if tile is not None:
                        pixels[np.ix_(down, across)] = tile[np.ix_(y[down] - i * _TILE, x[across] - j * _TILE)]
                return pixels
        return np.full((rows[1] - rows[0], columns[1] - columns[0], 3), _BLANK, np.uint8)

    def _ask(self, level: int, missing: list[_Key]) -> None:
        """Have tiles read: those of this level, the coarsest level's first; what else was asked for and not begun is forgotten."""
        last = len(self._levels) - 1
        with self._lock:
            others = [key for key in self._wanted if key[0] == last != level]
            self._wanted = others + missing if level != last else missing + [key for key in self._wanted if key[0] != last]
            while len(self._threads) < min(_THREADS, len(self._wanted)):
                thread = threading.Thread(target=self._read_wanted, name="streamview tiles", daemon=True)
                self._threads.add(thread)
                thread.start()

    def _read_wanted(self) -> None:
        while (key := self._next()) is not None:
            level, i, j = key
            height, width, _ = self._levels[level].shape
            y, x = i * _TILE, j * _TILE
            try:
                tile = self._levels[level].read(y, x, min(_TILE, height - y), min(_TILE, width - x))
            except StreamviewError as error:
                tile = np.full((min(_TILE, height - y), min(_TILE, width - x), 3), _BLANK, np.uint8)
                self.failed.emit(str(error))
            with self._lock:
                self._kept[key] = tile
                while len(self._kept) > _KEPT:
                    self._kept.popitem(last=False)
            self.loaded.emit()

    def _next(self) -> _Key | None:
        with self._lock:
            while self._wanted:
                key = self._wanted.pop(0)
                if key not in self._kept:
                    return key
            self._threads.discard(threading.current_thread())
            return None


class TiledLevel:
    """One level of a slide as a lazy uint8 (h, w, 3) array, which has the pixels that are there.

    Parameters
    ----------
    tiles
        Of the slide.
    level
        Place of the level there.
    """

    def __init__(self, tiles: Tiles, level: int) -> None:
        self._tiles, self._level = tiles, level
        self.shape = tiles.shape(level)
        self.dtype = np.dtype(np.uint8)
        self.ndim = 3
        self.size = int(np.prod(self.shape))

    def __getitem__(self, key: Any) -> NDArray[np.uint8]:
        (rows, columns), rest = window(key, self.shape)
        empty = rows[0] >= rows[1] or columns[0] >= columns[1]
        height, width = max(rows[1] - rows[0], 0), max(columns[1] - columns[0], 0)
        pixels = np.empty((height, width, 3), np.uint8) if empty else self._tiles.part(self._level, rows, columns)
        part: NDArray[np.uint8] = pixels[rest]
        return part

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.asarray(self[:, :], dtype)
