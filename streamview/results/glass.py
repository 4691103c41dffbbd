"""Where a slide is empty glass, on which no map is shown."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from streamview.geometry import Region

__all__ = ["Glass", "glass_mask"]

_ROWS = 256  # rows compared with glass at a time


@dataclass(frozen=True, slots=True, eq=False)
class Glass:
    """Where a region of a slide is empty.

    Parameters
    ----------
    mask
        bool (h, w), True on glass.
    step, origin
        ``(y, x)`` of its pixels in level-0 pixels; see `SaliencyMap`.
    """

    mask: NDArray[np.bool_]
    step: tuple[float, float]
    origin: tuple[float, float]

    @classmethod
    def over_region(cls, mask: NDArray[np.bool_], region: Region) -> Self:
        """Place a mask of any size that covers a region."""
        step = region.height / mask.shape[0], region.width / mask.shape[1]
        return cls(mask, step, (region.y + (step[0] - 1) / 2, region.x + (step[1] - 1) / 2))

    def over(self, rows: NDArray[np.float64], columns: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Return the mask, bool (n, m), at level-0 positions y (n,) and x (m,); what lies outside takes the nearest pixel's."""
        (y, x) = (
            np.rint((at - origin) / step).astype(int).clip(0, size - 1)
            for at, origin, step, size in zip((rows, columns), self.origin, self.step, self.mask.shape, strict=True)
        )
        return np.asarray(self.mask[np.ix_(y, x)])


def glass_mask(rgb: NDArray[np.uint8], background: tuple[int, int, int], smallest: int) -> NDArray[np.bool_]:
    """Find the empty glass in a thumbnail.

    Parameters
    ----------
    rgb
        uint8 (h, w, 3).
    background
        RGB of glass.
    smallest
        Area in px below which a clear spot counts as a hole in the tissue, not as glass.

    Returns
    -------
    numpy.ndarray
        bool (h, w), True on glass.
    """
    # Stain absorbs in at least one channel; the largest absorption, lightly blurred, separates tissue from JPEG noise.
    loss = np.empty(rgb.shape[:2], np.float32)
    for y in range(0, rgb.shape[0], _ROWS):  # in bands: a float copy of all three channels would be large
        loss[y : y + _ROWS] = (np.array(background, np.float32) - rgb[y : y + _ROWS]).max(axis=-1)
    clear = ndimage.gaussian_filter(loss, 1.5) < 22
    labels, count = ndimage.label(clear)
    sizes = np.bincount(labels.ravel(), minlength=count + 1)
    large = sizes >= smallest
    large[0] = False
    return np.asarray(large[labels], np.bool_)
