"""HTML from Python values: whatever is not markup is escaped, so that no text of a file becomes any."""

from __future__ import annotations

import base64
import html

from streamview.export.report.content import Picture

__all__ = ["Markup", "data_url", "joined", "name", "tag"]

_VOID = {"img", "input"}


class Markup(str):
    """Text that is markup already."""

    __slots__ = ()


def tag(kind: str, *children: str | None, **attributes: str | float | bool | None) -> Markup:
    """Return an element.

    Parameters
    ----------
    kind
        Its name.
    *children
        Markup as it is, other text escaped; None is nothing.
    **attributes
        Values are escaped; True gives the bare name, None and False nothing. ``class_`` is "class", other underscores are hyphens.
    """
    parts = [kind]
    for key, value in attributes.items():
        key = key.rstrip("_").replace("_", "-")
        if value is True:
            parts.append(key)
        elif value is not None and value is not False:
            parts.append(f'{key}="{html.escape(_printable(str(value)))}"')
    opening = f"<{' '.join(parts)}>"
    return Markup(opening) if kind in _VOID else Markup(f"{opening}{joined(*children)}</{kind}>")


def joined(*children: str | None) -> Markup:
    """Join pieces: markup as it is, other text escaped."""
    return Markup(
        "".join(child if isinstance(child, Markup) else html.escape(_printable(child)) for child in children if child is not None)
    )


def name(text: str, **attributes: str) -> Markup:
    """A name from a file, whose direction of writing does not reach beyond it."""
    return tag("bdi", text, **attributes)


def data_url(picture: Picture) -> str:
    """A picture as an URL that holds it."""
    return f"data:image/{picture.kind};base64,{base64.b64encode(picture.data).decode('ascii')}"


def _printable(text: str) -> str:
    """Without control characters, which HTML does not allow, and bytes of names that are not UTF-8."""
    return "".join(letter if letter >= " " and letter != "\x7f" and not "\ud800" <= letter <= "\udfff" else "\ufffd" for letter in text)
