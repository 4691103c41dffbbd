"""A run's pixels, changed where they are read: the network and its background detection get what is changed, and no copy is made.

Each reads like the sampler that it stands for, in pieces of any size, and changes only the region itself, not what is padded.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from streamview.geometry import Region
from streamview.inference.prepared import PreparedRun

__all__ = ["ErasedSampler", "NoisySampler", "ShiftedSampler", "with_sampler"]

_PERIOD = 1021  # px: a prime, so that it is no multiple of steps or strides


class _Reads(Protocol):
    """What samplers have in common."""

    region: Region
    scale: tuple[float, float]
    mpp: tuple[float, float] | None
    shape: tuple[int, int]
    level: tuple[float, float]

    def read(self, y0: int, y1: int, x0: int, x1: int) -> NDArray[np.uint8]: ...


class _Changed:
    """A sampler in place of another, with its grid."""

    def __init__(self, sampler: _Reads, inside: tuple[int, int]) -> None:
        self._sampler, self._inside = sampler, inside
        self.region, self.scale, self.mpp, self.shape = sampler.region, sampler.scale, sampler.mpp, sampler.shape
        self.level = sampler.level

    def read(self, y0: int, y1: int, x0: int, x1: int) -> NDArray[np.uint8]:
        """Return rows ``y0:y1`` and columns ``x0:x1`` of the grid as uint8 (y1 - y0, x1 - x0, 3).

        Raises
        ------
        SlideError
            When a part of the slide cannot be read.
        """
        bottom, right = min(y1, self._inside[0]), min(x1, self._inside[1])
        if bottom <= y0 or right <= x0:
            return self._sampler.read(y0, y1, x0, x1)
        inside = self._read_inside((y0, bottom), (x0, right))
        if (bottom, right) == (y1, x1):
            return inside
        pixels = self._sampler.read(y0, y1, x0, x1).copy()
        pixels[: bottom - y0, : right - x0] = inside
        return pixels

    def _read_inside(self, rows: tuple[int, int], columns: tuple[int, int]) -> NDArray[np.uint8]:
        raise NotImplementedError


class ErasedSampler(_Changed):
    """Pixels of which some squares are glass.

    Parameters
    ----------
    sampler, inside
        What is read, and height and width of the region on its grid without padding.
    side
        Of a square, px.
    erased
        bool (rows, columns): the squares that are glass.
    glass
        RGB.
    """

    def __init__(self, sampler: _Reads, inside: tuple[int, int], side: int, erased: NDArray[np.bool_], glass: tuple[int, int, int]) -> None:
        super().__init__(sampler, inside)
        self._side, self._erased, self._glass = side, erased, np.array(glass, np.uint8)

    def _read_inside(self, rows: tuple[int, int], columns: tuple[int, int]) -> NDArray[np.uint8]:
        down, across = (np.arange(*span) // self._side for span in (rows, columns))
        pixels = self._sampler.read(*rows, *columns).copy()
        pixels[self._erased[np.ix_(down, across)]] = self._glass
        return pixels


class NoisySampler(_Changed):
    """Pixels with Gaussian noise, rounded to whole grey levels; the noise repeats every 1021 px.

    Parameters
    ----------
    sampler, inside
        As of `ErasedSampler`.
    deviation
        Standard deviation, grey levels.
    seed
        Of the noise.
    """

    def __init__(self, sampler: _Reads, inside: tuple[int, int], deviation: float, seed: int) -> None:
        super().__init__(sampler, inside)
        height, width = (min(side, _PERIOD) for side in inside)
        noise = np.random.default_rng(seed).standard_normal((height, width, 3), np.float32)
        noise *= deviation
        self._noise = np.rint(noise, out=noise).clip(-128, 127).astype(np.int8)

    def _read_inside(self, rows: tuple[int, int], columns: tuple[int, int]) -> NDArray[np.uint8]:
        down, across = (np.arange(*span) % size for span, size in zip((rows, columns), self._noise.shape, strict=False))
        pixels = self._sampler.read(*rows, *columns).astype(np.int16)
        pixels += self._noise[np.ix_(down, across)]
        return pixels.clip(0, 255).astype(np.uint8)


class ShiftedSampler(_Changed):
    """Pixels shifted so that what was at ``(y, x) + shift`` is at ``(y, x)``; the region's edge pixels are repeated.

    Parameters
    ----------
    sampler, inside
        As of `ErasedSampler`.
    shift
        ``(y, x)`` px of the grid.
    """

    def __init__(self, sampler: _Reads, inside: tuple[int, int], shift: tuple[int, int]) -> None:
        super().__init__(sampler, inside)
        self._shift = shift

    def _read_inside(self, rows: tuple[int, int], columns: tuple[int, int]) -> NDArray[np.uint8]:
        down, across = (
            (np.arange(*span) + shift).clip(0, size - 1)
            for span, shift, size in zip((rows, columns), self._shift, self._inside, strict=True)
        )
        pixels = self._sampler.read(int(down[0]), int(down[-1]) + 1, int(across[0]), int(across[-1]) + 1)
        return np.ascontiguousarray(pixels[np.ix_(down - down[0], across - across[0])])


def with_sampler(run: PreparedRun, sampler: _Changed) -> PreparedRun:
    """Return a run that reads a changed region."""
    return replace(run, sampler=sampler)  # type: ignore[arg-type]  # reads as the sampler that it stands for
