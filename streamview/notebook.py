"""Small pieces of HTML and PNG that notebooks show: everything that comes from a file is escaped."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

__all__ = ["card", "image", "png", "table"]


def png(rgb: NDArray[np.uint8]) -> bytes:
    """Encode uint8 (h, w, 3) as a PNG."""
    return _encoded(rgb, "png", optimize=True)


def image(rgb: NDArray[np.uint8], description: str, kind: Literal["png", "jpeg"]) -> str:
    """Return an ``<img>`` that holds a picture, uint8 (h, w, 3), itself, so that the notebook refers to no file."""
    text = base64.b64encode(_encoded(rgb, kind)).decode("ascii")
    style = "max-width: 100%; border: 1px solid #d0d7de"
    return f'<img src="data:image/{kind};base64,{text}" alt="{html.escape(description)}" style="{style}">'


def _encoded(rgb: NDArray[np.uint8], kind: str, **options: Any) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(rgb).save(file, kind, **options)
    return file.getvalue()


def table(rows: Iterable[Sequence[str]], header: Sequence[str] = ()) -> str:
    """Return a ``<table>`` of texts, the first of each row being its heading."""
    lines = ["<table>"]
    if header:
        lines.append("<tr>" + "".join(f"<th>{html.escape(text)}</th>" for text in header) + "</tr>")
    for first, *rest in rows:
        cells = "".join(f'<td style="text-align: left">{html.escape(text)}</td>' for text in rest)
        lines.append(f'<tr><th style="text-align: left">{html.escape(first)}</th>{cells}</tr>')
    return "".join([*lines, "</table>"])


def card(title: str, *parts: str, notes: Iterable[str] = ()) -> str:
    """Return a ``<div>`` with a title, pieces of HTML from this module, and notes below them; title and notes are plain text."""
    below = "".join(f"<div>{html.escape(note)}</div>" for note in notes)
    return f"<div><strong>{html.escape(title)}</strong>{''.join(parts)}{below}</div>"
