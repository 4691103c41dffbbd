"""What the panel says of a slide and its µm/px, and how it reads what the user writes; pure."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from streamview.errors import SlideError

if TYPE_CHECKING:
    from streamview.slides import Slide

__all__ = ["MPP_EXPECTED", "describe_resolution", "parse_mpp"]

_FINEST, _COARSEST = 0.02, 100.0  # um/px: beyond either no slide was ever scanned
MPP_EXPECTED = f"A number from {_FINEST:g} to {_COARSEST:g}. Scans at 40× have about 0.25, at 20× about 0.5."
"""What may be written for the µm/px of a slide."""


def parse_mpp(text: str) -> float:
    """Return the um/px that a user wrote, such as ``"0.25"`` or ``"0,25 µm/px"``.

    Raises
    ------
    SlideError
        When it is not a number, or not the size of a scan's pixel.
    """
    written = text.strip().lower().removesuffix("/px").removesuffix("/pixel").strip()
    for unit in ("µm", "μm", "um"):
        written = written.removesuffix(unit).strip()
    try:
        mpp = float(written.replace(",", "."))
    except ValueError:
        raise SlideError(f"{text.strip()!r} is not a number. {MPP_EXPECTED}") from None
    if not math.isfinite(mpp) or not _FINEST <= mpp <= _COARSEST:
        raise SlideError(f"{text.strip()} µm/px is not the size of a scan's pixel. {MPP_EXPECTED}")
    return mpp


def describe_resolution(slide: Slide) -> str:
    """Say the um/px of a slide, and who states it: ``"0.25 µm/px (aperio.MPP)"``."""
    if slide.mpp is None:
        return f"µm/px {slide.mpp_source}"
    y, x = slide.mpp
    pixel = f"{x:.4g}" if abs(y - x) < 1e-6 * x else f"{x:.4g} × {y:.4g}"
    if not slide.mpp_source.startswith("given"):
        return f"{pixel} µm/px ({slide.mpp_source})"
    stated = "" if slide.stated_mpp is None else f", the file says {slide.stated_mpp[1]:.4g}"
    return f"{pixel} µm/px (given by you{stated})"
