"""Regions (y before x everywhere): of any level where pixels are read; those of results and jobs are always in level-0 pixels."""

from __future__ import annotations

import math
import operator
import re
from dataclasses import dataclass
from typing import Any

from streamview.errors import RegionError

__all__ = ["Region", "RegionText", "as_region"]

_FORM = "X,Y,WIDTH,HEIGHT, each in whole numbers of level-0 pixels or in um or mm, such as 1024,2048,4096,4096 or 1mm,500um,2mm,2mm"
_UM = {"um": 1.0, "µm": 1.0, "μm": 1.0, "mm": 1000.0}  # the micro sign and the Greek letter
_LENGTH = r"([+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+))\s*(px|um|µm|μm|mm|)"
_TEXT = re.compile(r"\s*{0}{1}{0}{1}{0}(?:{1}|\s*[x×]\s*){0}\s*".format(_LENGTH, r"(?:\s*,\s*|\s+)"), re.IGNORECASE)


@dataclass(frozen=True, slots=True, order=True)
class Region:
    """A half-open rectangle of pixels, ``[y, y + height) x [x, x + width)``, of one level.

    Parameters
    ----------
    y, x
        First row and first column, in pixels of `level`.
    height, width
        Extent in pixels of `level`; positive.
    level
        Pyramid level; 0 is the full resolution. Whole numbers of any type are accepted, such as ``numpy.int64(5)`` and ``512.0``.

    Raises
    ------
    RegionError
        If a number is not whole, the extent is not positive or the level is negative.

    Examples
    --------
    >>> import streamview
    >>> region = streamview.Region(y=128, x=0, height=512, width=768)
    >>> region.shape, region.y_stop
    ((512, 768), 640)
    >>> streamview.Region.parse("0,128,768,512") == region  # as the command line writes it: X,Y,WIDTH,HEIGHT
    True
    """

    y: int
    x: int
    height: int
    width: int
    level: int = 0

    def __post_init__(self) -> None:
        for name in ("y", "x", "height", "width", "level"):
            value = getattr(self, name)
            if type(value) is not int:
                object.__setattr__(self, name, _whole(name, value))
        if self.height <= 0 or self.width <= 0 or self.level < 0:
            raise RegionError(
                f"region {self.width} x {self.height} px at level {self.level}: width and height must be positive and the level 0 or more"
            )

    @classmethod
    def parse(cls, text: str, mpp: tuple[float, float] | None = None) -> Region:
        """Read ``X,Y,WIDTH,HEIGHT``, the command line's order; see `RegionText`.

        Parameters
        ----------
        text
            Four lengths in level-0 pixels, ``um`` or ``mm``.
        mpp
            ``(y, x)`` um per level-0 pixel, for lengths in um or mm.

        Raises
        ------
        RegionError
            If the text is not a region, or has a length in um or mm and `mpp` is None.
        """
        return RegionText.parse(text).on(mpp)

    @property
    def y_stop(self) -> int:
        """First row after the region."""
        return self.y + self.height

    @property
    def x_stop(self) -> int:
        """First column after the region."""
        return self.x + self.width

    @property
    def shape(self) -> tuple[int, int]:
        """``(height, width)`` in pixels of `level`."""
        return self.height, self.width

    def inside(self, shape: tuple[int, int]) -> bool:
        """Whether the region lies within an image of this ``(height, width)``."""
        return self.y >= 0 and self.x >= 0 and self.y_stop <= shape[0] and self.x_stop <= shape[1]

    def __str__(self) -> str:
        """``X,Y,WIDTH,HEIGHT``, as on the command line."""
        return f"{self.x},{self.y},{self.width},{self.height}"


@dataclass(frozen=True, slots=True)
class RegionText:
    """A region as a user writes it: ``X,Y,WIDTH,HEIGHT``, each in level-0 pixels, ``um`` or ``mm``.

    Spaces may replace the commas, and an x the last one: ``1mm 500um 2048x2048``. Lengths are converted once the slide's mpp is known.

    Parameters
    ----------
    text
        The text as written.
    lengths
        x, y, width and height: each a whole number and ``"px"``, or a number and ``"um"``.
    """

    text: str
    lengths: tuple[tuple[float, str], ...]

    @classmethod
    def parse(cls, text: str) -> RegionText:
        """Parse a text.

        Raises
        ------
        RegionError
            If it is not four lengths, a number of pixels is not whole, x or y is negative, or width or height is not positive.
        """
        parts = _TEXT.fullmatch(text)
        if parts is None:
            raise RegionError(f"region {text!r}: expected {_FORM}")
        groups = parts.groups()
        lengths = tuple(
            (float(number) * _UM.get(unit.lower(), 1.0), "um" if unit.lower() in _UM else "px")
            for number, unit in zip(groups[::2], groups[1::2], strict=True)
        )
        if not all(math.isfinite(value) and (unit == "um" or value.is_integer()) for value, unit in lengths):
            raise RegionError(f"region {text!r}: pixels must be whole numbers; expected {_FORM}")
        if min(lengths[0][0], lengths[1][0]) < 0:
            raise RegionError(f"region {text!r}: starts outside the slide; x and y must be 0 or more")
        if min(lengths[2][0], lengths[3][0]) <= 0:
            raise RegionError(f"region {text!r}: width and height must be positive; expected {_FORM}")
        return cls(text, lengths)

    def on(self, mpp: tuple[float, float] | None, slide: str = "the slide") -> Region:
        """Convert to level-0 pixels, rounding lengths in um to whole pixels.

        Parameters
        ----------
        mpp
            ``(y, x)`` um per level-0 pixel; None: unknown.
        slide
            The slide's name in messages.

        Raises
        ------
        RegionError
            If a length is in um or mm and `mpp` is None, or width or height is less than a pixel.
        """
        if mpp is None and any(unit == "um" for _, unit in self.lengths):
            raise RegionError(f"region {self.text!r}: the mpp of {slide} is unknown; give the region in pixels, or set the mpp with --mpp")
        scales = (1.0, 1.0) if mpp is None else (mpp[1], mpp[0])
        x, y, width, height = (
            round(value / (scale if unit == "um" else 1.0)) for (value, unit), scale in zip(self.lengths, scales * 2, strict=True)
        )
        if min(width, height) < 1:
            raise RegionError(f"region {self.text!r}: less than a pixel of {slide} ({scales[0]:g} um/px); give a larger width and height")
        return Region(y, x, height, width)


def as_region(region: Any) -> Region:
    """Return `region` if it is a `Region`; otherwise raise an error that says how to make one.

    Raises
    ------
    RegionError
        If it is not a `Region`; the order of bare numbers is never guessed.
    """
    if isinstance(region, Region):
        return region
    remedy = "expected streamview.Region(y=..., x=..., height=..., width=...)"
    if isinstance(region, str):
        raise RegionError(f"region {region!r}: {remedy}; Region.parse reads X,Y,WIDTH,HEIGHT, and a class to explain is target={region!r}")
    shown = repr(region) if isinstance(region, tuple | list) else f"of type {type(region).__name__}"
    if isinstance(region, type):
        shown = f"is the class {region.__name__}"
    raise RegionError(f"region {shown}: {remedy}; the order of bare numbers is not guessed")


def _whole(name: str, value: Any) -> int:
    """Convert a whole number of any numeric type to int."""
    try:
        return operator.index(value)
    except TypeError:
        pass
    try:
        if not isinstance(value, str) and float(value).is_integer():
            return int(value)
    except (TypeError, ValueError):
        pass
    raise RegionError(f"region with {name}={value!r}: expected a whole number of pixels; round it first")
