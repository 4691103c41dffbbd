"""Small pieces of HTML and PNG that notebooks show: everything that comes from a file is escaped."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

__all__ = ["bar", "card", "image", "png", "svg_image", "table"]

_BAR = 120  # px: length of a bar


def png(rgb: NDArray[np.uint8]) -> bytes:
    """Encode uint8 (h, w, 3) as a PNG."""
    return _encoded(rgb, "png", optimize=True)


def image(rgb: NDArray[np.uint8], description: str, kind: Literal["png", "jpeg"]) -> str:
    """Return an ``<img>`` that holds a picture, uint8 (h, w, 3), itself, so that the notebook refers to no file."""
    text = base64.b64encode(_encoded(rgb, kind)).decode("ascii")
    style = "max-width: 100%; border: 1px solid #d0d7de"
    return f'<img src="data:image/{kind};base64,{text}" alt="{html.escape(description)}" style="{style}">'


def svg_image(svg: str, description: str) -> str:
    """Return an ``<img>`` that holds a drawing itself: sites that strip SVG and styles from notebooks show it."""
    text = base64.b64encode(svg.encode()).decode("ascii")
    return f'<img src="data:image/svg+xml;base64,{text}" alt="{html.escape(description)}">'


def bar(share: float) -> str:
    """Draw a share (0..1) as a horizontal bar, as SVG."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_BAR}" height="12"><rect width="{_BAR}" height="12" rx="2" fill="#d0d7de"/>'
        f'<rect width="{_BAR * min(max(share, 0.0), 1.0):.1f}" height="12" rx="2" fill="#2a6f97"/></svg>'
    )


def _encoded(rgb: NDArray[np.uint8], kind: str, **options: Any) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(rgb).save(file, kind, **options)
    return file.getvalue()


def table(rows: Iterable[Sequence[str]], header: Sequence[str] = (), shares: Iterable[float | None] = ()) -> str:
    """Return a ``<table>`` of texts, the first of each row being its heading; `shares` (0..1) are drawn as bars behind the first rows."""
    lines = ["<table>"]
    if header:
        lines.append("<tr>" + "".join(f"<th>{html.escape(text)}</th>" for text in header) + "</tr>")
    drawn = iter(shares)
    for first, *rest in rows:
        cells = "".join(f'<td style="text-align: left">{html.escape(text)}</td>' for text in rest)
        share = next(drawn, None)
        cells += "" if share is None else f'<td style="text-align: left">{svg_image(bar(share), f"{share:.0%}")}</td>'
        lines.append(f'<tr><th style="text-align: left">{html.escape(first)}</th>{cells}</tr>')
    return "".join([*lines, "</table>"])


def card(title: str, *parts: str, notes: Iterable[str] = ()) -> str:
    """Return a ``<div>`` with a title, pieces of HTML from this module, and notes below them; title and notes are plain text."""
    below = "".join(f"<div>{html.escape(note)}</div>" for note in notes)
    return f"<div><strong>{html.escape(title)}</strong>{''.join(parts)}{below}</div>"
