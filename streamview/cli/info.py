"""The command ``info``: describe a slide as text or JSON."""

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
    """Describe a slide."""
    from streamview.slides import open_slide

    with open_slide(options.slide, options.mpp, options.channel) as slide:
        facts = describe(slide)
    say(json.dumps(facts, indent=2, ensure_ascii=False) if options.json else _in_words(facts))
    return 0


def describe(slide: Slide) -> dict[str, Any]:
    """Facts about a slide, ready for JSON: pairs are (y, x); lengths are in px of their level, or in mm or um where named so.

    Properties that may name people or places appear by key only, never with their values.
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


def _in_words(facts: dict[str, Any]) -> str:
    rows = [("size", f"{facts['width']} x {facts['height']} px")]
    if facts["mpp"] is None:
        remedy = "" if "--mpp" in facts["mpp_source"] else "; set it with --mpp if a network needs it"
        rows.append(("mpp", f"{facts['mpp_source']}{remedy}"))
    else:
        (y, x), (high, wide) = facts["mpp"], facts["extent_mm"]
        pitch = " across, ".join(dict.fromkeys((f"{x:.4g} um/px", f"{y:.4g} um/px")))
        rows.append(("mpp", f"{pitch}{' down' if 'across' in pitch else ''} ({facts['mpp_source']})"))
        rows.append(("extent", f"{wide:.4g} x {high:.4g} mm"))
    profile = facts["icc_profile"]
    colour = "no ICC profile" if profile is None else f"ICC profile {profile['name'] or 'without a name'}, {profile['bytes']} bytes"
    rows += [("glass", facts["background"]), ("colour", colour), ("read by", facts["reader"]), ("identity", facts["identity"])]
    lines = [facts["name"], *(f"  {name:<9} {_printable(value)}" for name, value in rows), ""]
    lines += _columns([("level", "width", "height", "downsample", "tile", "compression"), *map(_level, enumerate(facts["levels"]))])
    hidden = facts["hidden"]
    omitted = [f"pictures: {', '.join(hidden['pictures'])}"] if hidden["pictures"] else []
    if hidden["properties"]:
        keys, rest = hidden["properties"][:12], len(hidden["properties"]) - 12
        omitted.append(f"properties: {', '.join(keys)}{f' and {rest} more (all with --json)' if rest > 0 else ''}")
    return "\n".join(
        [
            *lines,
            *(["", "  left out of every output (convert --keep-metadata keeps the properties)"] if omitted else []),
            *(f"  {_printable(line)}" for line in omitted),
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
    """Remove control characters, which a file may contain."""
    return "".join(letter for letter in " ".join(text.split()) if letter.isprintable())
