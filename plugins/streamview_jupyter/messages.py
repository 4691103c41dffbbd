"""What the browser may ask of the kernel: parsed into requests, every number bounded. Pure; a message never names a file."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

from streamview.errors import StreamviewError
from streamview.results.display import PALETTES

__all__ = [
    "MOST_TILES", "SLIDE", "CancelJob", "ChangeDisplay", "Hello", "MessageError", "RawValue", "Request", "Tile", "Tiles", "number", "parse",
    "whole",
]  # fmt: skip

SLIDE = 0  # the number of the slide among the layers
MOST_TILES = 256  # that one view may wait for
_LARGEST = 2**31 - 1
_CLIENT = 36  # characters


class MessageError(StreamviewError):
    """A message is not of the form that the widget sends."""


@dataclass(frozen=True, slots=True, order=True)
class Tile:
    """Which tile: of which layer in which state, and where.

    Parameters
    ----------
    layer
        `SLIDE`, or the number of a map layer.
    epoch
        Counts the changes of a layer's values, such as another blur.
    level, row, column
        Level and place in its grid of tiles.
    """

    layer: int
    epoch: int
    level: int
    row: int
    column: int


@dataclass(frozen=True, slots=True)
class Hello:
    """A view asks whether the kernel listens."""

    client: str


@dataclass(frozen=True, slots=True)
class Tiles:
    """Tiles that a view needs from now on, the most urgent first, and those that it no longer needs."""

    client: str
    needed: tuple[Tile, ...]
    dropped: tuple[Tile, ...]


@dataclass(frozen=True, slots=True)
class RawValue:
    """The raw value of a layer at a level-0 position, for the read-out."""

    client: str
    layer: int
    y: float
    x: float


@dataclass(frozen=True, slots=True)
class ChangeDisplay:
    """What the user changed of how a layer is shown, by the names of the attributes of `MapLayer`."""

    layer: int
    changes: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class CancelJob:
    """Cancel a job."""

    job: int


Request = Hello | Tiles | RawValue | ChangeDisplay | CancelJob


def parse(content: Any) -> Request:
    """Return what a message asks.

    Parameters
    ----------
    content
        As it came: any value that JSON can hold.

    Raises
    ------
    MessageError
        When it is of no known form, or a number is out of its range.
    """
    if not isinstance(content, dict):
        raise MessageError(f"a message of type {type(content).__name__}: expected an object")
    kind = content.get("type")
    if kind == "hello":
        return Hello(_client(content))
    if kind == "tiles":
        return Tiles(_client(content), _tiles(content.get("needed"), "needed"), _tiles(content.get("dropped"), "dropped"))
    if kind == "value":
        return RawValue(
            _client(content), whole(content.get("layer"), "layer"), number(content.get("y"), "y"), number(content.get("x"), "x")
        )
    if kind == "display":
        return ChangeDisplay(whole(content.get("layer"), "layer"), _changes(content.get("changes")))
    if kind == "cancel":
        return CancelJob(whole(content.get("job"), "job"))
    raise MessageError("a message of an unknown type: expected one of " + ", ".join(_name(each) for each in get_args(Request)))


def _name(request: type) -> str:
    return {"RawValue": "value", "ChangeDisplay": "display", "CancelJob": "cancel"}.get(request.__name__, request.__name__.lower())


def _client(content: Mapping[str, Any]) -> str:
    client = content.get("client")
    if not isinstance(client, str) or not 0 < len(client) <= _CLIENT or not client.isascii():
        raise MessageError(f"client: expected a text of at most {_CLIENT} ASCII characters")
    return client


def _tiles(tiles: Any, name: str) -> tuple[Tile, ...]:
    if not isinstance(tiles, list) or len(tiles) > MOST_TILES:
        raise MessageError(f"{name}: expected a list of at most {MOST_TILES} tiles")
    return tuple(map(_tile, tiles))


def _tile(numbers: Any) -> Tile:
    if not isinstance(numbers, list) or len(numbers) != 5:
        raise MessageError("a tile: expected [layer, epoch, level, row, column]")
    layer, epoch, level, row, column = (whole(each, "a tile's number") for each in numbers)
    return Tile(layer, epoch, level, row, column)


def whole(value: Any, name: str) -> int:
    """Return a whole number of a message.

    Raises
    ------
    MessageError
        When it is none, or negative, or too large.
    """
    if type(value) is not int or not 0 <= value <= _LARGEST:
        raise MessageError(f"{name}: expected a whole number from 0 to {_LARGEST}")
    return value


def number(value: Any, name: str, low: float = -_LARGEST, high: float = _LARGEST) -> float:
    """Return a number of a message.

    Raises
    ------
    MessageError
        When it is none, or not from `low` to `high`.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:  # NaN is not between
        raise MessageError(f"{name}: expected a number from {low:g} to {high:g}")
    return float(value)


def _changes(changes: Any) -> dict[str, Any]:
    if not isinstance(changes, dict) or not changes:
        raise MessageError("changes: expected an object with what was changed")
    return {name: _change(name, value) for name, value in changes.items()}


def _change(name: Any, value: Any) -> Any:
    if name in ("opacity", "threshold"):
        return number(value, name, 0, 1)
    if name == "cap":
        return number(value, name, math.nextafter(0, 1), 1e30)
    if name == "blur_um":
        return number(value, name, 0, 1000)
    if name in ("visible", "heat", "outline"):
        if not isinstance(value, bool):
            raise MessageError(f"{name}: expected true or false")
        return value
    if name == "colormap":
        if value not in PALETTES if isinstance(value, str) else True:
            raise MessageError(f"colormap: expected one of {', '.join(PALETTES)}")
        return value
    raise MessageError("changes: expected opacity, threshold, cap, blur_um, visible, heat, outline or colormap")
