"""Sends the tiles that views wait for, from threads; what a view no longer waits for is not made. Without a comm."""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

from streamview.errors import StreamviewError
from streamview_jupyter.messages import MOST_TILES, Tile
from streamview_jupyter.sources import EncodedTile, Source

__all__ = ["Send", "TileServer", "explain"]

Send = Callable[[dict[str, Any], list[bytes]], None]
"""Sends a message with its buffers to the browser, from any thread."""

_THREADS = 2
_KEPT = 64 * 2**20  # bytes of encoded tiles
_BATCH = 8  # tiles of one message at most
_DELAY = 0.015  # s that a tile waits at most for others of its message
_CLIENTS = 8  # views that may wait at a time; of more, those that asked last
_LOG = logging.getLogger(__name__)


def explain(error: Exception) -> str:
    """Return what the browser is told of an error that is being handled; one that was not expected is logged."""
    if isinstance(error, StreamviewError):
        return str(error)
    _LOG.error("unexpected internal error", exc_info=error)
    return "unexpected internal error; the log of the kernel has the details"


class TileServer:
    """The tiles of all layers of one widget.

    Parameters
    ----------
    send
        Sends a message.
    explain
        What is said of an error, and logs it.
    """

    def __init__(self, send: Send, explain: Callable[[Exception], str] = explain) -> None:
        self._send, self._explain = send, explain
        self._sources: dict[int, tuple[int, Source]] = {}
        self._waiting: OrderedDict[str, list[Tile]] = OrderedDict()
        self._kept: OrderedDict[Tile, EncodedTile] = OrderedDict()
        self._bytes = 0
        self._threads: set[threading.Thread] = set()
        self._lock = threading.Lock()
        self._closed = False

    def set_source(self, layer: int, epoch: int, source: Source | None) -> None:
        """Serve a layer from now on; None: no longer. Tiles of earlier epochs are forgotten."""
        with self._lock:
            if source is None:
                self._sources.pop(layer, None)
            else:
                self._sources[layer] = epoch, source
            for tile in [tile for tile in self._kept if tile.layer == layer and (source is None or tile.epoch != epoch)]:
                self._bytes -= len(self._kept.pop(tile).data)

    def wait_for(self, client: str, needed: tuple[Tile, ...], dropped: tuple[Tile, ...] = ()) -> None:
        """Send tiles, the first first and before those that this view waits for already, without those that it no longer needs.

        Of more than 256 those asked for first are forgotten.
        """
        with self._lock:
            old = set(dropped)
            tiles = [tile for tile in dict.fromkeys((*needed, *self._waiting.pop(client, ()))) if tile not in old]
            if tiles and not self._closed:
                self._waiting[client] = tiles[:MOST_TILES]
            while len(self._waiting) > _CLIENTS:
                self._waiting.popitem(last=False)
            while self._waiting and len(self._threads) < min(_THREADS, sum(map(len, self._waiting.values()))):
                thread = threading.Thread(target=self._work, name="streamview tiles", daemon=True)
                self._threads.add(thread)
                thread.start()

    def close(self) -> None:
        """Send nothing more, and return when no thread works."""
        with self._lock:
            self._closed = True
            self._waiting.clear()
            threads = self._threads - {threading.current_thread()}
        for thread in threads:
            thread.join()
        with self._lock:
            self._sources.clear()
            self._kept.clear()
            self._bytes = 0

    @property
    def kept_bytes(self) -> int:
        """Of the tiles that are kept."""
        return self._bytes

    def _work(self) -> None:
        batch: list[tuple[Tile, EncodedTile]] = []
        began = 0.0
        while True:
            tile = self._next()
            if batch and (tile is None or len(batch) == _BATCH or time.monotonic() - began > _DELAY):
                self._deliver(batch)
                batch = []
            if tile is None:
                with self._lock:
                    if any(self._waiting.values()):  # asked for in between
                        continue
                    self._threads.discard(threading.current_thread())
                    return
            start = time.monotonic()
            encoded = self._make(tile)
            if encoded is not None:
                began = began if batch else start  # a tile that took long is sent at once
                batch.append((tile, encoded))

    def _next(self) -> Tile | None:
        """The most urgent tile; views take turns."""
        with self._lock:
            for client in list(self._waiting):
                tiles = self._waiting[client]
                if tiles:
                    tile = tiles.pop(0)
                    self._waiting.move_to_end(client)
                    return tile
                del self._waiting[client]
            return None

    def _make(self, tile: Tile) -> EncodedTile | None:
        with self._lock:
            encoded = self._kept.get(tile)
            if encoded is not None:
                self._kept.move_to_end(tile)
                return encoded
            epoch, source = self._sources.get(tile.layer, (0, None))
        if source is None or epoch != tile.epoch:
            self._fail(tile, "the layer has changed or is gone")
            return None
        try:
            encoded = source.tile(tile)
        except Exception as error:  # noqa: BLE001  # the thread is a shell's boundary
            self._fail(tile, self._explain(error))
            return None
        with self._lock:
            if self._sources.get(tile.layer, (None, None))[0] == epoch and tile not in self._kept:
                self._kept[tile] = encoded
                self._bytes += len(encoded.data)
                while self._bytes > _KEPT:
                    self._bytes -= len(self._kept.popitem(last=False)[1].data)
        return encoded

    def _deliver(self, batch: list[tuple[Tile, EncodedTile]]) -> None:
        tiles = [[tile.layer, tile.epoch, tile.level, tile.row, tile.column, encoded.top] for tile, encoded in batch]
        self._post({"type": "tiles", "tiles": tiles}, [encoded.data for _, encoded in batch])

    def _fail(self, tile: Tile, text: str) -> None:
        numbers = [tile.layer, tile.epoch, tile.level, tile.row, tile.column]
        self._post({"type": "failed", "tile": numbers, "text": text}, [])

    def _post(self, content: Mapping[str, Any], buffers: list[bytes]) -> None:
        if not self._closed:
            self._send(dict(content), buffers)
