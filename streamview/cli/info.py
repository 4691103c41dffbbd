"""What a slide is, for people and as JSON."""

from __future__ import annotations

import io
import json
from argparse import Namespace
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from streamview.cli.console import say

if TYPE_CHECKING:
    from streamview.slides import Slide

__all__ = ["describe", "info"]


def info(options: Namespace, arguments: list[str]) -> int:
    """Say what a slide is."""
    from streamview.slides import open_slide

    with open_slide(options.slide, options.mpp, options.channel) as slide:
        found = describe(slide)
    say(json.dumps(found, indent=2, ensure_ascii=False) if options.json else _in_words(found))
    return 0


def describe(slide: Slide) -> dict[str, Any]:
    """Facts about a slide, fit for JSON: pairs are (y, x), lengths in px of their level, mm or um as named.

    Of what may name people or places it holds the keys alone, never the values.
    """
    from streamview.slides.properties import hidden_properties, safe_properties

    height, width = slide.shape
    levels = []
    for level in slide.levels:
        tile = None if level.tile is None else list(level.tile)
        shape = {"height": level.shape[0], "width": level.shape[1]}
        levels.append({**shape, "downsample": list(level.downsample), "tile": tile, "compression": level.compression})
    profile = slide.icc_profile
    return {
        "name": slide.name,
        "height": height,
        "width": width,
        "mpp": slide.mpp and list(slide.mpp),
        "mpp_source": slide.mpp_source,
        "extent_mm": slide.mpp and [height * slide.mpp[0] / 1000, width * slide.mpp[1] / 1000],
        "levels": levels,
        "background": "#{:02x}{:02x}{:02x}".format(*slide.background),
        "icc_profile": None if profile is None else {"bytes": len(profile), "name": _profile_name(profile)},
        "reader": slide.reader,
        "properties": safe_properties(slide),
        "hidden": {"pictures": list(slide.associated), "properties": list(hidden_properties(slide))},
        "identity": slide.identity,
    }


def _profile_name(profile: bytes) -> str | None:
    from PIL import ImageCms

    try:
        return _printable(ImageCms.getProfileDescription(ImageCms.getOpenProfile(io.BytesIO(profile)))) or None
    except (ImageCms.PyCMSError, OSError):
        return None


def _in_words(found: dict[str, Any]) -> str:
    rows = [("size", f"{found['width']} x {found['height']} px")]
    if found["mpp"] is None:
        remedy = "" if "--mpp" in found["mpp_source"] else "; state it with --mpp where a network needs it"
        rows.append(("mpp", f"{found['mpp_source']}{remedy}"))
    else:
        (y, x), (high, wide) = found["mpp"], found["extent_mm"]
        pitch = " across, ".join(dict.fromkeys((f"{x:.4g} um/px", f"{y:.4g} um/px")))
        rows.append(("mpp", f"{pitch}{' down' if 'across' in pitch else ''} ({found['mpp_source']})"))
        rows.append(("extent", f"{wide:.4g} x {high:.4g} mm"))
    profile = found["icc_profile"]
    colour = "no ICC profile" if profile is None else f"ICC profile {profile['name'] or 'without a name'}, {profile['bytes']} bytes"
    rows += [("glass", found["background"]), ("colour", colour), ("read by", found["reader"]), ("identity", found["identity"])]
    lines = [found["name"], *(f"  {name:<9} {_printable(value)}" for name, value in rows), ""]
    lines += _columns([("level", "width", "height", "downsample", "tile", "compression"), *map(_level, enumerate(found["levels"]))])
    hidden = found["hidden"]
    left = [f"pictures: {', '.join(hidden['pictures'])}"] if hidden["pictures"] else []
    if hidden["properties"]:
        keys, rest = hidden["properties"][:12], len(hidden["properties"]) - 12
        left.append(f"properties: {', '.join(keys)}{f' and {rest} more (all with --json)' if rest > 0 else ''}")
    return "\n".join(
        [
            *lines,
            *(["", "  left out of every output (convert --keep-metadata keeps the properties)"] if left else []),
            *(f"  {_printable(line)}" for line in left),
        ]
    )


def _level(numbered: tuple[int, dict[str, Any]]) -> tuple[str, ...]:
    number, level = numbered
    tile = f"{level['tile'][1]} x {level['tile'][0]}" if level["tile"] else "-"
    down = " x ".join(dict.fromkeys(f"{value:.6g}" for value in reversed(level["downsample"])))
    return str(number), str(level["width"]), str(level["height"]), down, tile, level["compression"] or "-"


def _columns(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _printable(text: str) -> str:
    """Without the control characters that a file may hold."""
    return "".join(letter for letter in " ".join(text.split()) if letter.isprintable())
