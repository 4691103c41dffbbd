"""Regions, and coordinates between levels, level-0 pixels and micrometres (y before x everywhere)."""

from __future__ import annotations

from dataclasses import dataclass

from streamview.errors import RegionError

__all__ = ["Region", "as_region"]


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
        Pyramid level, 0 being the full resolution.

    Raises
    ------
    RegionError
        When the extent is not positive or the level is negative.
    """

    y: int
    x: int
    height: int
    width: int
    level: int = 0

    def __post_init__(self) -> None:
        if self.height <= 0 or self.width <= 0 or self.level < 0:
            raise RegionError(
                f"region {self.width} x {self.height} px at level {self.level}: width and height must be positive and the level 0 or more"
            )

    @classmethod
    def parse(cls, text: str) -> Region:
        """Read ``X,Y,WIDTH,HEIGHT`` in level-0 pixels, the order of the command line.

        Raises
        ------
        RegionError
            When the text is not four whole numbers.
        """
        try:
            x, y, width, height = (int(part) for part in text.split(","))
        except ValueError:
            raise RegionError(f"region {text!r}: expected X,Y,WIDTH,HEIGHT, four whole numbers in level-0 pixels") from None
        return cls(y, x, height, width)

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


def as_region(region: object) -> Region:
    """Return a region as it is.

    Raises
    ------
    RegionError
        When it is something else, such as a tuple, whose order could be meant in two ways.
    """
    if isinstance(region, Region):
        return region
    what = f"the class {region.__name__}" if isinstance(region, type) else f"a {type(region).__name__}"
    raise RegionError(f"region {region!r:.60} is {what}; expected streamview.Region(y=, x=, height=, width=) in level-0 pixels")
