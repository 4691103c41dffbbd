"""Encode the pictures of a report, each within a number of bytes."""

from __future__ import annotations

import io
import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from streamview.export.report.content import Picture
from streamview.results.display import Recipe, colours

__all__ = ["GRID", "heat_png", "jpeg", "outline_path"]

_QUALITIES = (82, 70, 55)
_STEPS = (48, 16)  # colours of a map
_SMALLEST = 96  # px a side below which no picture is reduced
GRID = 2  # points of an outline's grid per px of the picture


def jpeg(rgb: NDArray[np.uint8], most: int) -> Picture:
    """Encode uint8 (h, w, 3) in at most so many bytes: of lower quality, and smaller, where needed."""
    picture = Image.fromarray(rgb)
    while True:
        for quality in _QUALITIES:
            file = io.BytesIO()
            picture.save(file, "JPEG", quality=quality, optimize=True)
            if file.tell() <= most:
                return Picture(file.getvalue(), "jpeg", (picture.height, picture.width))
        if max(picture.size) <= _SMALLEST:
            return Picture(file.getvalue(), "jpeg", (picture.height, picture.width))
        width, height = (max(math.ceil(side * 0.75), 1) for side in picture.size)
        picture = picture.resize((width, height), Image.Resampling.LANCZOS)


def heat_png(recipe: Recipe, shares: NDArray[np.float32], most: int) -> Picture:
    """Encode a shown map, float32 (h, w) shares of the cap, as a transparent PNG of the recipe's colours at full opacity.

    It has a palette of few colours, the first of which is clear, and is reduced where it does not fit into `most` bytes.
    """
    while True:
        for steps in _STEPS:
            picture = Image.fromarray(np.ceil(shares * steps).astype(np.uint8), "P")
            rgb, alpha = colours(recipe, np.linspace(0, 1, steps + 1, dtype=np.float32)[None])
            picture.putpalette(np.rint(rgb * 255).astype(np.uint8).tobytes())
            file = io.BytesIO()
            picture.save(file, "PNG", transparency=np.rint(alpha * 255).astype(np.uint8).tobytes(), optimize=True)
            if file.tell() <= most or max(shares.shape) <= _SMALLEST:
                return Picture(file.getvalue(), "png", shares.shape)
        shares = shares[::2, ::2]


def outline_path(lines: list[NDArray[np.float64]], most: int) -> tuple[str, bool]:
    """Write outlines, ``(y, x)`` in px of a picture, as an SVG path on a grid of half pixels.

    Returns
    -------
    path
        At most so many characters: the longest lines.
    whole
        Whether all lines are in it, but those that are smaller than a pixel.
    """
    parts: list[str] = []
    length = 0
    for line in sorted(lines, key=len, reverse=True):
        points = np.rint(line[:, ::-1] * GRID).astype(int)
        moves = np.diff(points, axis=0)
        moves = moves[moves.any(1)]
        if len(moves) < 3:
            continue
        part = f"M{points[0, 0]} {points[0, 1]}l{' '.join(map(str, moves.ravel().tolist()))}"
        length += len(part)
        if length > most:
            return "".join(parts), False
        parts.append(part)
    return "".join(parts), True
