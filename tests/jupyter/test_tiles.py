"""Tiles: their pixels and values are those of the slide and the map, and no more are made than are needed."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from streamview_jupyter.messages import MOST_TILES, MessageError, Tile
from streamview_jupyter.server import TileServer
from streamview_jupyter.sources import EncodedTile, LiveMap, MapValues, SlidePixels, decode_values, encode_values

from streamview.errors import SlideError
from streamview.results.display import PRESETS
from streamview.results.shown_map import ShownMap
from streamview.slides import as_slide
from tests.test_display import spot_saliency


def eventually(condition: Callable[[], Any], seconds: float = 10) -> Any:
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, "nothing came in time"
        time.sleep(0.005)
    return value


def smooth(height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.stack([127 + 100 * np.sin(y / 90), 127 + 100 * np.cos(x / 70), 127 + 60 * np.sin((x + y) / 110)], -1).astype(np.uint8)


def decoded(tile: EncodedTile) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(tile.data)))


@pytest.mark.parametrize(("height", "width"), [(1, 1), (511, 513), (1500, 1100), (700, 3000)])
def test_tiles_cover_every_level_without_gap_or_shift(height: int, width: int) -> None:
    rgb = smooth(height, width)
    source = SlidePixels(as_slide(rgb))
    for level in range(max(0, source.levels - 3), source.levels + 1):
        factor = 2 ** (source.levels - level)
        shape = -(-height // factor), -(-width // factor)
        whole = np.zeros((*shape, 3), np.uint8)
        for row in range(-(-shape[0] // 512)):
            for column in range(-(-shape[1] // 512)):
                tile = decoded(source.tile(Tile(0, 0, level, row, column)))
                whole[512 * row : 512 * row + len(tile), 512 * column : 512 * column + tile.shape[1]] = tile
        # each px is the mean of those it stands for
        inside = height // factor, width // factor
        means = rgb[: inside[0] * factor, : inside[1] * factor].reshape(inside[0], factor, inside[1], factor, 3).mean((1, 3))
        assert np.abs(whole[: inside[0], : inside[1]] - means).max(initial=0) < 12  # JPEG
        assert np.abs(whole[: inside[0], : inside[1]] - means).mean() < 3  # a shift by one px would be 7


def test_tiles_outside_are_refused() -> None:
    source = SlidePixels(as_slide(smooth(600, 700)))
    for tile in (Tile(0, 0, 11, 0, 0), Tile(0, 0, 10, 2, 0), Tile(0, 0, 10, 0, 2), Tile(0, 0, 2**31 - 1, 0, 0)):
        with pytest.raises(MessageError, match="expected one inside the slide"):
            source.tile(tile)


def test_a_large_slide_without_small_levels_stays_blank_until_one_zooms_in() -> None:
    rgb = np.broadcast_to(np.array([200, 100, 150], np.uint8), (9000, 9000, 3))
    source = SlidePixels(as_slide(rgb))
    assert (decoded(source.tile(Tile(0, 0, source.levels - 5, 0, 0))) == 225).all()
    assert np.abs(decoded(source.tile(Tile(0, 0, source.levels, 3, 3))).astype(int) - (200, 100, 150)).max() < 4


@given(values=arrays(np.float32, (7, 11), elements=st.floats(-10, 1e6, width=32) | st.just(float("nan"))))
@settings(max_examples=200, deadline=None)
def test_values_come_back_as_they_were(values: np.ndarray) -> None:
    tile = encode_values(values)
    back = decode_values(tile, values.shape)
    np.testing.assert_array_equal(np.isnan(back), np.isnan(values))
    known = ~np.isnan(values)
    expected = values[known].clip(min=0)
    # half a step of the root on either side
    np.testing.assert_allclose(np.sqrt(back[known] / max(tile.top, 1e-30)), np.sqrt(expected / max(tile.top, 1e-30)), atol=0.6 / 4095)


def test_values_are_those_of_the_map_as_the_recipe_blurs_it() -> None:
    saliency, recipe = spot_saliency(600), PRESETS["detail"]
    source, shown = MapValues(saliency, recipe), ShownMap(saliency, recipe)
    for level, plane in enumerate(shown.map.levels):
        height, width = plane.shape
        assert source.placement[level]["height"] == height
        for row in range(-(-height // 256)):
            for column in range(-(-width // 256)):
                rows, columns = (row * 256, min(row * 256 + 256, height)), (column * 256, min(column * 256 + 256, width))
                expected = shown.blurred(level, rows, columns).clip(min=0)
                tile = source.tile(Tile(1, 0, level, row, column))
                np.testing.assert_allclose(decode_values(tile, expected.shape), expected, atol=max(tile.top, 1e-9) * 3e-4, rtol=0.05)
    with pytest.raises(MessageError, match="expected one of"):
        source.tile(Tile(1, 0, 9, 0, 0))
    with pytest.raises(MessageError, match="inside the map"):
        source.tile(Tile(1, 0, 0, 9, 0))
    assert source.raw(300.0, 300.0) == pytest.approx(float(saliency.maps["signed"].values[300, 300]))
    assert source.raw(-50.0, 0.0) is None


@pytest.mark.parametrize("side", [300, 5000])
def test_a_live_map_holds_what_is_finished(side: int) -> None:
    live = LiveMap((side, 40), (1.0, 1.0), (0.0, 0.0))
    rng = np.random.default_rng(0)
    values = rng.normal(size=(side, 40)).astype(np.float32)
    factor = max(1, -(-side // 2048))
    half = side // 2 // factor * factor
    for y in range(side - 64, half - 64, -64):  # from the last row to the first, as they are finished
        y = max(y, half)
        live.add(y, values[y : min(y + 64, side)])
    shape = -(-side // factor), -(-40 // factor)
    (placement,) = live.placement
    assert (placement["height"], placement["width"]) == shape
    tiles = [
        decode_values(live.tile(Tile(1, 0, 0, row, 0)), (min(256, shape[0] - 256 * row), shape[1])) for row in range(-(-shape[0] // 256))
    ]
    whole = np.concatenate(tiles)
    assert np.isnan(whole[: half // factor]).all()
    assert not np.isnan(whole[-(side // 4 // factor) :]).any()
    assert live.top > 0
    live.clear()
    assert np.isnan(decode_values(live.tile(Tile(1, 0, 0, 0, 0)), (min(256, shape[0]), shape[1]))).all()


class _Counted:
    """Tiles of one byte, each after a moment."""

    def __init__(self, seconds: float = 0.0, size: int = 1) -> None:
        self.made: list[Tile] = []
        self._seconds, self._size = seconds, size
        self._lock = threading.Lock()

    def tile(self, tile: Tile) -> EncodedTile:
        with self._lock:
            self.made.append(tile)
        time.sleep(self._seconds)
        if tile.row == 99:
            raise SlideError("row 99 cannot be read")
        if tile.row == 98:
            raise ZeroDivisionError
        return EncodedTile(bytes(self._size))


@pytest.fixture
def sent() -> list[tuple[dict[str, Any], list[bytes]]]:
    return []


@pytest.fixture
def server(sent: list[Any]) -> Any:
    server = TileServer(lambda content, buffers: sent.append((content, buffers)))
    yield server
    server.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "streamview tiles"]


def numbers(sent: list[Any]) -> list[tuple[int, ...]]:
    return [tuple(tile[:5]) for content, _ in list(sent) if content["type"] == "tiles" for tile in content["tiles"]]


def test_every_tile_comes_once_and_in_batches(server: TileServer, sent: list[Any]) -> None:
    source = _Counted()
    server.set_source(0, 0, source)
    tiles = tuple(Tile(0, 0, 5, row, column) for row in range(10) for column in range(10))
    server.wait_for("a", tiles)
    eventually(lambda: len(numbers(sent)) == 100)
    assert sorted(numbers(sent)) == [(0, 0, 5, row, column) for row in range(10) for column in range(10)]
    assert len(sent) < 60
    assert all(len(buffers) == len(content["tiles"]) <= 8 for content, buffers in sent)
    server.wait_for("a", tiles)  # once more: from what is kept
    eventually(lambda: len(numbers(sent)) == 200)
    assert len(source.made) == 100


def test_a_tile_does_not_wait_for_a_slow_one(server: TileServer, sent: list[Any]) -> None:
    server.set_source(0, 0, _Counted(0.3))
    start = time.monotonic()
    server.wait_for("a", tuple(Tile(0, 0, 5, 0, column) for column in range(6)))
    eventually(lambda: sent)
    assert time.monotonic() - start < 0.55  # the next would be there after 0.6 s
    eventually(lambda: len(numbers(sent)) == 6)


def test_what_is_out_of_sight_is_not_made(server: TileServer, sent: list[Any]) -> None:
    source = _Counted(0.02)
    server.set_source(0, 0, source)
    old = tuple(Tile(0, 0, 5, 0, column) for column in range(100))
    server.wait_for("a", old)
    eventually(lambda: len(source.made) > 3)
    server.wait_for("a", (Tile(0, 0, 5, 1, 0),), old)
    eventually(lambda: (0, 0, 5, 1, 0) in numbers(sent))
    time.sleep(0.1)
    assert len(source.made) < 20


def test_the_latest_comes_first_and_views_take_turns(server: TileServer, sent: list[Any]) -> None:
    source = _Counted(0.01)
    server.set_source(0, 0, source)
    server.wait_for("a", tuple(Tile(0, 0, 5, 0, column) for column in range(30)))
    server.wait_for("b", tuple(Tile(0, 0, 5, 1, column) for column in range(30)))
    server.wait_for("a", (Tile(0, 0, 5, 2, 0),))
    eventually(lambda: len(numbers(sent)) == 61)
    order = [tile.row for tile in source.made]
    assert order.index(2) < 8
    assert order[:20].count(1) >= 6


def test_a_view_that_asks_for_too_much_loses_the_oldest(server: TileServer) -> None:
    source = _Counted(0.2)
    server.set_source(0, 0, source)
    for number in range(40):
        server.wait_for(f"client {number}", tuple(Tile(0, 0, 5, number, column) for column in range(MOST_TILES)))
        server.wait_for(f"client {number}", tuple(Tile(0, 1, 5, number, column) for column in range(MOST_TILES)))
    assert sum(map(len, server._waiting.values())) <= 8 * MOST_TILES


def test_errors_are_answered_and_what_comes_after_goes_on(server: TileServer, sent: list[Any], caplog: pytest.LogCaptureFixture) -> None:
    server.set_source(0, 3, _Counted())
    server.wait_for("a", (Tile(0, 3, 0, 99, 0), Tile(0, 3, 0, 98, 0), Tile(0, 2, 0, 0, 0), Tile(7, 0, 0, 0, 0), Tile(0, 3, 0, 1, 0)))
    eventually(lambda: (0, 3, 0, 1, 0) in numbers(sent))
    failed = {
        tuple(content["tile"][:4]): content["text"]
        for content, _ in eventually(lambda: len(sent) >= 5 and sent)
        if content["type"] == "failed"
    }
    assert failed[0, 3, 0, 99] == "row 99 cannot be read"
    assert "unexpected internal error" in failed[0, 3, 0, 98]
    assert "ZeroDivisionError" in caplog.text
    assert "changed or is gone" in failed[0, 2, 0, 0]
    assert "changed or is gone" in failed[7, 0, 0, 0]


def test_what_is_kept_is_bounded_in_bytes(server: TileServer, sent: list[Any]) -> None:
    server.set_source(0, 0, _Counted(size=2**20))
    server.wait_for("a", tuple(Tile(0, 0, 5, 0, column) for column in range(100)))
    eventually(lambda: len(numbers(sent)) == 100)
    assert 60 * 2**20 <= server.kept_bytes <= 64 * 2**20
    server.set_source(0, 1, _Counted())
    assert server.kept_bytes == 0


def test_reading_twice_is_reading_once() -> None:
    """A slide read by two threads at a time gives the tiles that one gives."""
    source = SlidePixels(as_slide(smooth(1500, 1100)))
    tiles = [Tile(0, 0, source.levels, row, column) for row in range(3) for column in range(3)]
    alone = [source.tile(tile).data for tile in tiles]
    sent: list[Any] = []
    server = TileServer(lambda content, buffers: sent.append((content, buffers)))
    server.set_source(0, 0, source)
    server.wait_for("a", tuple(tiles))
    eventually(lambda: len(numbers(sent)) == 9)
    server.close()
    came = {tuple(tile[:5]): data for content, buffers in sent for tile, data in zip(content["tiles"], buffers, strict=True)}
    assert [came[0, 0, source.levels, tile.row, tile.column] for tile in tiles] == alone
