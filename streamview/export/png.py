"""The display PNG: tissue, heat and outline, with title, colour bar, scale bar and warnings."""

from __future__ import annotations

import os
import textwrap
import unicodedata
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from streamview.errors import StreamviewError
from streamview.files import atomic
from streamview.progress import Report
from streamview.results.display import Recipe, Shown, colours, empty_reason, show, title_of
from streamview.results.legend import how_shown, scale_bar
from streamview.results.maps import Saliency
from streamview.results.overlay import blend, find_glass, glass_on, overlay
from streamview.results.prediction import RESEARCH_USE
from streamview.slides import Slide
from streamview.slides.thumbnail import thumbnail
from streamview.system.machine import return_freed_memory

__all__ = ["Picture", "draw_png", "find_glass", "overlay", "render_png"]

_LARGEST, _SIDES = 2048, (1100, 16384)  # px a side: default, and range
_MARGIN, _GAP, _BAR_COLUMN, _FOOTER = 48, 28, 196, 112
_SMALLEST = 1000  # px: smaller regions are enlarged to this, in proportion to the text
_INK, _GREY, _WARNING_INK, _WARNING_FILL = "#1b1f24", "#57606a", "#5c3a1e", "#fdf0dc"
_TITLE, _TEXT, _SMALL = 44, 28, 24


@dataclass(frozen=True, slots=True)
class Picture:
    """A display PNG.

    Parameters
    ----------
    path
        The file.
    empty
        Why it shows nothing of the map, in one sentence; None if it shows something.
    """

    path: Path
    empty: str | None = None


def render_png(
    slide: Slide, saliency: Saliency, recipe: Recipe, path: str | os.PathLike[str], size: int = _LARGEST, report: Report | None = None
) -> Path:
    """Draw a saliency over its slide as a PNG and return its path; see `draw_png`."""
    return draw_png(slide, saliency, recipe, path, size, report).path


def draw_png(
    slide: Slide, saliency: Saliency, recipe: Recipe, path: str | os.PathLike[str], size: int = _LARGEST, report: Report | None = None
) -> Picture:
    """Draw a saliency over its slide as a PNG of at most `size` px a side; a picture that shows nothing of the map says why.

    PNG text fields: ``picture``, the place of the slide in the picture (``LEFT,TOP,WIDTH,HEIGHT`` in px); ``region``, the part of the
    slide (``X,Y,WIDTH,HEIGHT`` in level-0 pixels); ``empty``, why nothing of the map is shown.

    Parameters
    ----------
    slide
        The source of `saliency`.
    saliency
        The maps.
    recipe
        How; `streamview.results.display.PRESETS` has the usual ones.
    path
        The PNG; written completely or not at all.
    size
        1100 to 16384.
    report
        Called as the slide is read; may raise `Cancelled`.

    Returns
    -------
    Picture

    Raises
    ------
    StreamviewError
        If the saliency has no such map, `size` is out of range, or the disk is full.
    SlideError
        If a part of the slide cannot be read.
    """
    path = Path(path)
    if not _SIDES[0] <= size <= _SIDES[1]:
        raise StreamviewError(f"picture of {size} px: expected {_SIDES[0]} to {_SIDES[1]} px on its longest side")
    shown = show(saliency, recipe)
    region = saliency.prediction.region
    lines = _header(slide, saliency, shown)
    blocks, top, (height, width) = _layout(lines, region.shape, size)
    return_freed_memory()  # memory freed by the run would add to that of the picture
    tissue = thumbnail(slide, region, (height, width), report)
    picture, behind = overlay(tissue, saliency, shown, slide.background)
    empty = _why_empty(tissue, saliency, shown, slide.background) if np.array_equal(picture, tissue) else None
    if empty is not None:  # the same picture with one more line above it
        lines.append(_Block((empty,), _TEXT, _WARNING_INK, fill=_WARNING_FILL))
        blocks, top, (height, width) = _layout(lines, region.shape, size)
        picture = thumbnail(slide, region, (height, width))
    total = max(width, _SMALLEST * 3 // 4) + _BAR_COLUMN + 2 * _MARGIN
    canvas = Image.new("RGB", (total, min(top + height + _FOOTER, size)), "white")
    draw = ImageDraw.Draw(canvas)
    y = _MARGIN
    for block in blocks:
        y = block.draw(draw, _MARGIN, y)
    canvas.paste(Image.fromarray(picture), (_MARGIN, top))
    draw.rectangle((_MARGIN - 1, top - 1, _MARGIN + width, top + height), outline="#8c959f")
    _colour_bar(canvas, shown, behind, (_MARGIN + width + 36, top + 14), min(480, height - 230))
    _scale_bar(draw, saliency, width, top + height + 26)
    draw.text((total - _MARGIN, top + height + 60), RESEARCH_USE, _INK, _font(_TEXT), anchor="rm", stroke_width=0.4, stroke_fill=_INK)

    record = PngInfo()
    record.add_text("streamview", f"identity {saliency.prediction.identity.key}; target {saliency.target.name}; {recipe}; {RESEARCH_USE}")
    record.add_text("picture", f"{_MARGIN},{top},{width},{height}")
    record.add_text("region", str(region))
    if empty is not None:
        record.add_text("empty", empty)
    with atomic.replacing(path) as temporary:
        canvas.save(temporary, "PNG", pnginfo=record)
    return Picture(path, empty)


def _layout(lines: list[_Block], region: tuple[int, int], size: int) -> tuple[list[_Block], int, tuple[int, int]]:
    """The wrapped header, the picture's top, and its height and width."""
    room = size - 2 * _MARGIN - _BAR_COLUMN
    # The header wraps to the picture's width, and the picture fits the remaining height: two rounds converge.
    height, width = _fit(region, (room, room))
    for _ in range(2):
        blocks = _wrap(lines, width + _BAR_COLUMN)
        top = _MARGIN + sum(block.height for block in blocks) + _GAP
        height, width = _fit(region, (size - top - _FOOTER, room))
    blocks = _wrap(lines, max(width, _SMALLEST * 3 // 4) + _BAR_COLUMN)
    return blocks, _MARGIN + sum(block.height for block in blocks) + _GAP, (height, width)


def _why_empty(tissue: NDArray[np.uint8], saliency: Saliency, shown: Shown, background: tuple[int, int, int]) -> str | None:
    """Return why an overlay of a thumbnail shows nothing."""
    reason = empty_reason(saliency, shown)
    if reason is not None or not (shown.recipe.heat or shown.recipe.outline):
        return reason
    if glass_on(tissue, background).all():
        return "Nothing is shown: the whole region is empty glass."
    return "Nothing is shown: the map is above the threshold only on empty glass, where it is hidden."


@dataclass(frozen=True, slots=True)
class _Block:
    """Wrapped lines of one size; `fill` marks a warning."""

    lines: tuple[str, ...]
    size: int
    ink: str
    bold: bool = False
    fill: str | None = None
    width: int = 0

    @property
    def pitch(self) -> int:
        return round(self.size * 1.32)

    @property
    def height(self) -> int:
        return len(self.lines) * self.pitch + (28 if self.fill else 6)

    def draw(self, draw: ImageDraw.ImageDraw, x: int, y: int) -> int:
        start = y
        if self.fill:
            draw.rounded_rectangle((x, y + 6, x + self.width, y + self.height - 6), 8, self.fill)
            x, y = x + 16, y + 14
        for line in self.lines:
            draw.text((x, y), line, self.ink, _font(self.size), stroke_width=0.7 if self.bold else 0, stroke_fill=self.ink)
            y += self.pitch
        return start + self.height


def _header(slide: Slide, saliency: Saliency, shown: Shown) -> list[_Block]:
    prediction, recipe, region = saliency.prediction, shown.recipe, saliency.prediction.region
    answer = prediction.answer_for(saliency.target)
    blocks = [_Block((f"{title_of(saliency, recipe.method)}: {saliency.target.name}, {answer}",), _TITLE, _INK, bold=True)]
    statement = f"Network {prediction.model_name}: {prediction.answer}. This map explains {saliency.target.name}"
    if not prediction.is_of_interest(saliency.target):
        statement += f", which is not of interest ({' or '.join(prediction.positive)} is): other colours, no outline"
    blocks.append(_Block((f"{statement}.",), _TEXT, _INK))
    extent = f"{region.width} x {region.height} px"
    if saliency.mpp is None:
        extent += ", mpp unknown"
    else:
        extent += f" = {region.width * saliency.mpp[1] / 1000:.3g} x {region.height * saliency.mpp[0] / 1000:.3g} mm"
    place = f"{slide.name} | region at x {region.x}, y {region.y}, {extent}"
    blocks.append(_Block((place, " | ".join(how_shown(saliency, shown))), _TEXT, _GREY))
    warnings = list(prediction.warnings)
    if not prediction.trained and not warnings:
        warnings.append("The weights are random: the map says nothing about the tissue.")
    if warnings:
        blocks.append(_Block(tuple(warnings), _TEXT, _WARNING_INK, fill=_WARNING_FILL))
    return blocks


def _wrap(blocks: list[_Block], width: int) -> list[_Block]:
    """Wrap the lines to a width in px, replacing characters that the built-in font lacks."""
    wrapped = []
    for block in blocks:
        lines = []
        for line in block.lines:
            plain = unicodedata.normalize("NFKD", line).encode("ascii", "replace").decode()
            share = (width - (32 if block.fill else 0)) / max(_font(block.size).getlength(plain), 1)
            columns = len(plain) if share >= 1 else max(int(len(plain) * share * 0.97), 10)
            lines += textwrap.wrap(plain, columns)
        wrapped.append(_Block(tuple(lines), block.size, block.ink, block.bold, block.fill, width))
    return wrapped


def _fit(region: tuple[int, int], room: tuple[int, int]) -> tuple[int, int]:
    """Size of a region's picture: its size in px, but at least `_SMALLEST` and at most the room."""
    scale = min(max(1.0, _SMALLEST / max(region)), room[0] / region[0], room[1] / region[1])
    return max(round(region[0] * scale), 1), max(round(region[1] * scale), 1)


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _colour_bar(canvas: Image.Image, shown: Shown, behind: tuple[int, int, int], corner: tuple[int, int], length: int) -> None:
    """Draw the colours over the mean tissue colour, from the cap down to 0, with the threshold marked."""
    length = max(length, 160)
    ramp = np.repeat(np.linspace(1, 0, length, dtype=np.float32)[:, None], 34, axis=1)
    ramp = np.where(ramp >= shown.threshold, ramp, np.float32(0))
    rgb, alpha = colours(shown.recipe, ramp)
    bar = blend(np.broadcast_to(np.array(behind, np.uint8), (length, 34, 3)), rgb * 255, alpha * shown.recipe.opacity)
    canvas.paste(Image.fromarray(np.asarray(np.rint(bar), np.uint8)), corner)
    draw = ImageDraw.Draw(canvas)
    x, y = corner
    draw.rectangle((x - 1, y - 1, x + 34, y + length), outline=_GREY)
    ticks = {0.0: "0", 0.5: "0.5", 1.0: "1"}
    if all(abs(shown.threshold - tick) * length > _SMALL for tick in ticks):
        ticks[shown.threshold] = f"{shown.threshold:.2g}"
    for share, text in ticks.items():
        level = y + (1 - share) * (length - 1)
        draw.line((x + 35, level, x + 42, level), _GREY, 2)
        draw.text((x + 50, level), text, _INK, _font(_SMALL), anchor="lm")
    lines = ["share of cap", f"1 = {shown.cap:.3g}"]
    if shown.recipe.outline:
        lines.append(f"outline at {shown.threshold:.2g}")
    for i, line in enumerate(lines):
        draw.text((x - 1, y + length + 34 + i * 32), line, _GREY, _font(22), anchor="lm")


def _scale_bar(draw: ImageDraw.ImageDraw, saliency: Saliency, width: int, y: int) -> None:
    """Draw the scale bar."""
    region, mpp = saliency.prediction.region, saliency.mpp
    length, text = scale_bar(region.width, None if mpp is None else mpp[1])
    draw.rectangle((_MARGIN, y, _MARGIN + round(length / region.width * width), y + 9), fill=_INK)
    draw.text((_MARGIN, y + 34), text, _INK, _font(_TEXT), anchor="lm")
