"""The display PNG: tissue, heat and outline, with title, colour bar, scale bar and warnings."""

from __future__ import annotations

import math
import os
import textwrap
import unicodedata
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo
from scipy import ndimage

from streamview.errors import StreamviewError
from streamview.export.outlines import contours, shown_shares
from streamview.files import atomic
from streamview.geometry import Region
from streamview.labels.annotations import Points
from streamview.progress import Report
from streamview.results.display import HALO_COLOUR, OUTLINE_COLOUR, TITLES, Glass, Recipe, Shown, colours, empty_reason, glass_mask, show
from streamview.results.maps import Saliency
from streamview.results.prediction import RESEARCH_USE
from streamview.slides import Slide
from streamview.slides.thumbnail import thumbnail
from streamview.system.machine import return_freed_memory

__all__ = ["Picture", "draw_png", "find_glass", "overlay", "render_png"]

_GLASS_SIDE = 1024  # px a side of the thumbnail that glass is looked for on
_LARGEST, _SIDES = 2048, (1100, 16384)  # px a side: default, and range
_MARGIN, _GAP, _BAR_COLUMN, _FOOTER = 48, 28, 196, 112
_SMALLEST = 1000  # px: smaller regions are enlarged to this, in proportion to the text
_INK, _GREY, _WARNING_INK, _WARNING_FILL = "#1b1f24", "#57606a", "#5c3a1e", "#fdf0dc"
_TITLE, _TEXT, _SMALL = 44, 28, 24
_BAND_PX = 2**18  # px of a picture coloured at a time
_FINE = 3  # px of the grid that outlines are drawn on, along each side of a pixel of the picture
_HOLE = 0.0005  # share of the picture below which a clear spot counts as a hole in the tissue, not as glass


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
    if _glass(tissue, background).all():
        return "Nothing is shown: the whole region is empty glass."
    return "Nothing is shown: the map is above the threshold only on empty glass, where it is hidden."


def find_glass(slide: Slide, region: Region) -> Glass:
    """Find the empty glass of a region, on a thumbnail of at most 1024 px a side.

    Raises
    ------
    SlideError
        If a part of the slide cannot be read.
    """
    factor = min(1.0, _GLASS_SIDE / max(region.shape))
    shape = max(round(region.height * factor), 1), max(round(region.width * factor), 1)
    return Glass.over_region(_glass(thumbnail(slide, region, shape), slide.background), region)


def _glass(tissue: NDArray[np.uint8], background: tuple[int, int, int]) -> NDArray[np.bool_]:
    """Mask of the empty glass in a thumbnail."""
    return glass_mask(tissue, background, max(int(_HOLE * tissue.shape[0] * tissue.shape[1]), 16))


def overlay(
    tissue: NDArray[np.uint8], saliency: Saliency, shown: Shown, background: tuple[int, int, int]
) -> tuple[NDArray[np.uint8], tuple[int, int, int]]:
    """Draw a map over a thumbnail of its region.

    Parameters
    ----------
    tissue
        uint8 (h, w, 3), the whole region of `saliency`.
    saliency, shown
        The map.
    background
        RGB of glass, on which nothing is shown.

    Returns
    -------
    picture
        uint8 (h, w, 3).
    behind
        Mean RGB of the tissue, the background of the colour bar.
    """
    height, width = tissue.shape[:2]
    glass = _glass(tissue, background)
    # in bands, since colours and distances take many times the memory of the picture
    rows = max(_BAND_PX // width, 1)
    bands = [(first, min(first + rows, height)) for first in range(0, height, rows)]
    total, count = np.zeros(3), 0
    values = np.empty((height, width), np.float32)
    for first, stop in bands:
        clear = glass[first:stop]
        values[first:stop] = np.where(clear & shown.recipe.glass, 0, _on_picture(saliency, shown, (height, width), (first, stop)))
        total += tissue[first:stop][~clear].sum(axis=0, dtype=np.int64)
        count += int(np.count_nonzero(~clear))
    red, green, blue = (int(value) for value in (total / count if count else background))
    picture = np.empty((height, width, 3), np.uint8)
    line = max(1.5, max(height, width) / 1000)  # half width of the outline: 3 px, or 4 on a picture of 2000
    lines = _outlines(saliency, shown, glass) if shown.recipe.outline else []
    for first, stop in bands:
        rgb, alpha = colours(shown.recipe, values[first:stop])
        band = _over(tissue[first:stop], rgb * 255, alpha * shown.recipe.opacity * shown.recipe.heat)
        if shown.recipe.outline:
            band = _outlined(band, lines, first, line)
        picture[first:stop] = np.rint(band)
    return picture, (red, green, blue)


def _on_picture(saliency: Saliency, shown: Shown, shape: tuple[int, int], rows: tuple[int, int]) -> NDArray[np.float32]:
    """Resample the displayed map linearly onto rows of a picture of this shape; values below the threshold stay hidden."""
    index, region = shown.fitting(max(2048, *shape)), saliency.prediction.region
    (sy, sx), (oy, ox) = shown.steps[index], shown.origins[index]
    ty, tx = region.height / shape[0], region.width / shape[1]
    # Picture pixel i is centred at level-0 position region.y + (i + 0.5) * t - 0.5; see SaliencyMap for the map's pixels.
    y, x = (region.y + (rows[0] + 0.5) * ty - 0.5 - oy) / sy, (region.x + 0.5 * tx - 0.5 - ox) / sx
    level = shown.levels[index].without_threshold()
    top = min(max(math.floor(y) - 1, 0), level.shape[0] - 1)
    bottom = max(math.ceil(y + (rows[1] - rows[0]) * ty / sy) + 2, top + 1)
    part = level[top:bottom, :]
    order = 0 if shown.recipe.method == "patches" else 1  # a patch has one value
    values = ndimage.affine_transform(part, (ty / sy, tx / sx), (y - top, x), (rows[1] - rows[0], shape[1]), order=order, mode="nearest")
    return np.where(values >= max(shown.threshold, np.float32(1e-6)), values, np.float32(0))


def _over(below: NDArray[np.uint8] | NDArray[np.float32], rgb: NDArray[np.float32], alpha: NDArray[np.float32]) -> NDArray[np.float32]:
    share = alpha[..., None]
    return np.asarray(below * (1 - share) + rgb * share, np.float32)


def _outlines(saliency: Saliency, shown: Shown, glass: NDArray[np.bool_]) -> list[Points]:
    """Outlines in px of the picture, whose pixel k covers k to k + 1."""
    region, (step, origin) = saliency.prediction.region, (shown.steps[shown.overview], shown.origins[shown.overview])
    pitch = np.array(region.shape) / glass.shape
    shares, threshold = shown_shares(shown, Glass.over_region(glass, region))
    return [(np.array(origin) + 0.5 - (region.y, region.x) + line * step) / pitch for line in contours(shares, threshold)]


def _outlined(band: NDArray[np.float32], lines: list[Points], first: int, half: float) -> NDArray[np.float32]:
    """Draw outlines on the rows of a picture from `first`: a line over a halo of double width, both with soft edges."""
    height, width = band.shape[:2]
    near = [line for line in lines if line[:, 0].max() > first - 3 * half and line[:, 0].min() < first + height + 3 * half]
    for colour, reach in ((HALO_COLOUR, 2 * half), (OUTLINE_COLOUR, half)):
        mask = Image.new("L", (width * _FINE, height * _FINE))
        draw = ImageDraw.Draw(mask)
        for line in near:
            draw.line(((line[:, ::-1] - (0, first)) * _FINE).ravel().tolist(), 255, round(2 * reach * _FINE), joint="curve")
        share = np.asarray(mask.resize((width, height), Image.Resampling.BOX), np.float32) / np.float32(255)
        rgb = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)], np.float32)
        band = _over(band, rgb, share)
    return band


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
    blocks = [_Block((f"{TITLES[recipe.method]}: {saliency.target.name}, {answer}",), _TITLE, _INK, bold=True)]
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
    blur = f"{shown.blur_px[0]:.3g} px of the network's grid"
    if saliency.mpp is not None:
        blur = f"{recipe.blur_um:g} um ({blur})"
    floor = f"percentile {recipe.floor_percentile:g}" if recipe.floor_percentile else f"{recipe.threshold:.0%} of the cap"
    cap = f"percentile {recipe.cap_percentile:g}" if recipe.cap is None else f"{recipe.cap:.3g}, as given"
    if recipe.cap is None and recipe.lacking:
        cap += f" + {recipe.lacking:.3g}, which {saliency.target.name} lacks to be the answer"
    blocks.append(_Block((place, f"blur {blur} | cap: {cap} | shown above {floor}"), _TEXT, _GREY))
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
    bar = _over(np.broadcast_to(np.array(behind, np.uint8), (length, 34, 3)), rgb * 255, alpha * shown.recipe.opacity)
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
    """Draw a bar of a round length, at most a quarter of the picture, in mm; in level-0 px if the mpp is unknown."""
    region, mpp = saliency.prediction.region, saliency.mpp
    whole = region.width if mpp is None else region.width * mpp[1] / 1000
    power = 10.0 ** math.floor(math.log10(whole / 4))
    length = max(step * power for step in (1, 2, 5) if step * power <= whole / 4)
    pixels = round(length / whole * width)
    draw.rectangle((_MARGIN, y, _MARGIN + pixels, y + 9), fill=_INK)
    text = f"{length:g} px of level 0 (mpp unknown)" if mpp is None else f"{length:g} mm"
    draw.text((_MARGIN, y + 34), text, _INK, _font(_TEXT), anchor="lm")
