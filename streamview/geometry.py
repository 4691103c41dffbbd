"""Regions, and coordinates between levels, level-0 pixels and micrometres (y before x everywhere)."""

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
        Pyramid level, 0 being the full resolution. Whole numbers of any type, such as ``numpy.int64(5)`` and ``512.0``, are taken.

    Raises
    ------
    RegionError
        When a number is not whole, the extent is not positive or the level is negative.

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
        """Read ``X,Y,WIDTH,HEIGHT``, the order of the command line; see `RegionText`.

        Parameters
        ----------
        text
            Four lengths in level-0 pixels, ``um`` or ``mm``.
        mpp
            ``(y, x)`` um per level-0 pixel, for lengths in um or mm.

        Raises
        ------
        RegionError
            When the text is no region, or has a length in um or mm and `mpp` is None.
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
        """Height and width in pixels of the region's level."""
        return self.height, self.width

    def inside(self, shape: tuple[int, int]) -> bool:
        """Whether the region lies within an image of this ``(height, width)``."""
        return self.y >= 0 and self.x >= 0 and self.y_stop <= shape[0] and self.x_stop <= shape[1]

    def __str__(self) -> str:
        """``X,Y,WIDTH,HEIGHT``, as the command line takes it."""
        return f"{self.x},{self.y},{self.width},{self.height}"


@dataclass(frozen=True, slots=True)
class RegionText:
    """A region as a user writes it: ``X,Y,WIDTH,HEIGHT``, each in level-0 pixels, ``um`` or ``mm``.

    Commas may be spaces, and the last one an x: ``1mm 500um 2048x2048``. Lengths become pixels once the slide's mpp is known.

    Parameters
    ----------
    text
        As written.
    lengths
        x, y, width and height: a whole number and ``"px"``, or a number and ``"um"``.
    """

    text: str
    lengths: tuple[tuple[float, str], ...]

    @classmethod
    def parse(cls, text: str) -> RegionText:
        """Read a text.

        Raises
        ------
        RegionError
            When it is not four lengths, a number of pixels is not whole, it begins left of or above the slide, or is empty.
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
            raise RegionError(f"region {text!r}: pixels are whole numbers; expected {_FORM}")
        if min(lengths[0][0], lengths[1][0]) < 0:
            raise RegionError(f"region {text!r}: begins outside the slide; x and y must be 0 or more")
        if min(lengths[2][0], lengths[3][0]) <= 0:
            raise RegionError(f"region {text!r}: width and height must be positive; expected {_FORM}")
        return cls(text, lengths)

    def on(self, mpp: tuple[float, float] | None, slide: str = "the slide") -> Region:
        """Return the region in level-0 pixels; lengths in um are rounded to whole ones.

        Parameters
        ----------
        mpp
            ``(y, x)`` um per level-0 pixel; None: unknown.
        slide
            What messages call the slide.

        Raises
        ------
        RegionError
            When a length is in um or mm and `mpp` is None, or width or height is less than a pixel.
        """
        if mpp is None and any(unit == "um" for _, unit in self.lengths):
            raise RegionError(
                f"region {self.text!r}: the mpp of {slide} is unknown; give the region in pixels, or state the mpp with --mpp"
            )
        scales = (1.0, 1.0) if mpp is None else (mpp[1], mpp[0])
        x, y, width, height = (
            round(value / (scale if unit == "um" else 1.0)) for (value, unit), scale in zip(self.lengths, scales * 2, strict=True)
        )
        if min(width, height) < 1:
            raise RegionError(f"region {self.text!r}: less than a pixel of {slide} ({scales[0]:g} um/px); give a larger width and height")
        return Region(y, x, height, width)


def as_region(region: Any) -> Region:
    """Return what is a region, and say of anything else how to make one.

    Raises
    ------
    RegionError
        When it is no `Region`; the order of bare numbers is never guessed.
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
    """A whole number of any numeric type as int."""
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
