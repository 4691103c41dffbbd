"""What a reader does in the browser: parsed into actions, every number and text bounded. Pure; an action never names a file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from streamview_jupyter.messages import MessageError, number, whole

__all__ = ["Action", "Decide", "Draw", "Go", "Hold", "Judge", "Note", "Open", "Rest", "Reveal", "Undo", "parse_action"]

_NOTE = 2000  # characters
_WAYS = ("next", "previous", "undone")


@dataclass(frozen=True, slots=True)
class _Act:
    """`turn`: which of the steps that were in sight the reader saw; what was meant for another is not done."""

    turn: int


@dataclass(frozen=True, slots=True)
class Decide(_Act):
    """A verdict by its key, from 1, and its confidence; None: the one that is carried over, or none."""

    verdict: int
    confidence: int | None


@dataclass(frozen=True, slots=True)
class Note(_Act):
    """The note of this step."""

    text: str


@dataclass(frozen=True, slots=True)
class Go(_Act):
    """To the next or previous slide, or the next with something to do."""

    way: Literal["next", "previous", "undone"]


@dataclass(frozen=True, slots=True)
class Open(_Act):
    """A slide of the list, from 0."""

    number: int


@dataclass(frozen=True, slots=True)
class Undo(_Act):
    """Take back the last verdict."""


@dataclass(frozen=True, slots=True)
class Hold(_Act):
    """Do not show the network's answer until `Reveal`: the reader is still writing."""


@dataclass(frozen=True, slots=True)
class Reveal(_Act):
    """Show the network's answer now."""


@dataclass(frozen=True, slots=True)
class Judge(_Act):
    """Whether a hotspot, from 0, is right."""

    hotspot: int
    right: bool


@dataclass(frozen=True, slots=True)
class Draw(_Act):
    """A region was drawn, ``(x, y, width, height)`` in level-0 px; None: the last one is taken away."""

    region: tuple[int, int, int, int] | None


@dataclass(frozen=True, slots=True)
class Rest(_Act):
    """The view has rested at ``(x, y, width, height)`` in level-0 px."""

    view: tuple[float, ...]


Action = Decide | Note | Go | Open | Undo | Hold | Reveal | Judge | Draw | Rest
_NAMES = {each.__name__.lower() for each in get_args(Action)}


def parse_action(content: Any) -> Action | None:
    """Return what a reader does; None where a message is of another kind.

    Parameters
    ----------
    content
        As it came: any value that JSON can hold.

    Raises
    ------
    MessageError
        When a part of it is missing, or out of its range.
    """
    kind = content.get("type") if isinstance(content, dict) else None
    if not isinstance(kind, str) or kind not in _NAMES:
        return None
    turn = whole(content.get("turn"), "turn")
    match kind:
        case "decide":
            confidence = content.get("confidence")
            return Decide(turn, whole(content.get("verdict"), "verdict"), None if confidence is None else whole(confidence, "confidence"))
        case "note":
            return Note(turn, _text(content.get("text")))
        case "go":
            if content.get("way") not in _WAYS:
                raise MessageError(f"way: expected one of {', '.join(_WAYS)}")
            return Go(turn, content["way"])
        case "open":
            return Open(turn, whole(content.get("number"), "number"))
        case "judge":
            if not isinstance(content.get("right"), bool):
                raise MessageError("right: expected true or false")
            return Judge(turn, whole(content.get("hotspot"), "hotspot"), content["right"])
        case "draw":
            return Draw(turn, _region(content))
        case "rest":
            return Rest(turn, tuple(number(each, "view") for each in _four(content, "view")))
        case "undo":
            return Undo(turn)
        case "hold":
            return Hold(turn)
    return Reveal(turn)


def _text(text: Any) -> str:
    if not isinstance(text, str) or len(text) > _NOTE:
        raise MessageError(f"text: expected at most {_NOTE} characters")
    return " ".join(text.encode("utf-8", "replace").decode().split())


def _region(content: Mapping[str, Any]) -> tuple[int, int, int, int] | None:
    if content.get("region") is None:
        return None
    x, y, width, height = (whole(each, "region") for each in _four(content, "region"))
    if not width or not height:
        raise MessageError("region: expected a width and a height of 1 or more")
    return x, y, width, height


def _four(content: Mapping[str, Any], name: str) -> list[Any]:
    values = content.get(name)
    if not isinstance(values, list) or len(values) != 4:
        raise MessageError(f"{name}: expected [x, y, width, height]")
    return values
