"""The paper's augmentations of training regions, read in pieces: free rotation, elastic deformation, colour, cutout.

Pinckaers et al. (TPAMI 2020, section 6) rotate, mirror, shift brightness, contrast, saturation and hue, deform elastically and cut out.
Libraries for it (albumentations, torchvision) take whole images; a region is only read in pieces here, so every augmentation is a
function of a pixel's place in the region, drawn beforehand. ``scipy.ndimage`` interpolates.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from streamview.finetuning.settings import Augmentation

__all__ = ["Box", "ColourMatrix", "Warp", "colour_matrix", "draw_boxes", "draw_warp"]

Span = tuple[int, int]
Read = Callable[[int, int, int, int], NDArray[np.uint8]]
ColourMatrix = tuple[tuple[float, float, float, float], ...]
"""Rows of the affine map of (red, green, blue, 255) to red, green and blue."""
Box = tuple[int, int, int, int]
"""First row, row behind the last, and columns alike."""
_BLOCK = 256  # px a side that are warped at once: a turned rectangle of this side needs a source of twice its area
_TO_YIQ = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])  # of RGB, NTSC
_MIDDLE = 0.5  # of the grey scale: contrast stretches around it


@dataclass(frozen=True, slots=True)
class Warp:
    """A rotation and an elastic deformation of a region.

    Parameters
    ----------
    angle
        Of the rotation, radians counter-clockwise.
    elastic
        Standard deviation of the displacements, px.
    seed
        Of the displacements.
    """

    angle: float
    elastic: float
    seed: int

    def read(self, read: Read, shape: tuple[int, int], rows: Span, cols: Span) -> NDArray[np.uint8]:
        """Read a part of the warped region, uint8 (h, w, 3); `read` and `shape` are those of the original."""
        part = np.empty((rows[1] - rows[0], cols[1] - cols[0], 3), np.uint8)
        displacements = self._displacements(shape)
        for y in range(rows[0], rows[1], _BLOCK):
            for x in range(cols[0], cols[1], _BLOCK):
                down, across = (y, min(y + _BLOCK, rows[1])), (x, min(x + _BLOCK, cols[1]))
                place = np.s_[y - rows[0] : down[1] - rows[0], x - cols[0] : across[1] - cols[0]]
                part[place] = self._block(read, shape, displacements, down, across)
        return part

    def _displacements(self, shape: tuple[int, int]) -> NDArray[np.float64]:
        """Displacements (2, h, w) in px at every 8 standard deviations, so that neighbours never swap their places."""
        sizes = [math.ceil(side / self._pitch) + 4 for side in shape]
        drawn: NDArray[np.float64] = np.random.default_rng(self.seed).normal(0, self.elastic, (2, *sizes))
        return np.stack([ndimage.spline_filter(axis) for axis in drawn])

    @property
    def _pitch(self) -> float:
        return max(8 * self.elastic, 1.0) if self.elastic else math.inf

    def _block(self, read: Read, shape: tuple[int, int], displacements: NDArray[np.float64], rows: Span, cols: Span) -> NDArray[np.uint8]:
        y, x = np.mgrid[slice(*rows), slice(*cols)].astype(np.float64)
        centre = [(side - 1) / 2 for side in shape]
        cos, sin = math.cos(self.angle), math.sin(self.angle)
        down, across = y - centre[0], x - centre[1]
        places = [centre[0] + cos * down + sin * across, centre[1] - sin * down + cos * across]
        if self.elastic:
            nodes = [y / self._pitch + 1.5, x / self._pitch + 1.5]
            shifts = (ndimage.map_coordinates(axis, nodes, order=3, prefilter=False, mode="nearest") for axis in displacements)
            places = [place + shift for place, shift in zip(places, shifts, strict=True)]
        places = [_mirrored(place, side) for place, side in zip(places, shape, strict=True)]
        spans = [(int(place.min()), min(int(place.max()) + 2, side)) for place, side in zip(places, shape, strict=True)]
        (top, bottom), (left, right) = spans
        source = read(top, bottom, left, right).astype(np.float32)
        local = [places[0] - top, places[1] - left]
        channels = [ndimage.map_coordinates(source[..., c], local, order=1, mode="nearest") for c in range(3)]
        return np.floor(np.stack(channels, -1) + 0.5).astype(np.uint8)


def _mirrored(place: NDArray[np.float64], side: int) -> NDArray[np.float64]:
    """Places folded into 0..side - 1, as if the region were mirrored at its first and last pixel."""
    return np.abs((place + side - 1) % max(2 * side - 2, 1) - (side - 1))


def draw_warp(augmentation: Augmentation, draw: random.Random) -> Warp | None:
    """Draw rotation and deformation; None if there is neither."""
    if not (augmentation.rotate or augmentation.elastic):
        return None
    angle = draw.uniform(-math.pi, math.pi) if augmentation.rotate else 0.0
    return Warp(angle, draw.uniform(0, augmentation.elastic), draw.getrandbits(32))


def colour_matrix(contrast: float, saturation: float, hue: float) -> ColourMatrix:
    """Compose a change of colours into one affine map, so that it is the same for every pixel wherever it is read.

    Parameters
    ----------
    contrast
        Factor around middle grey.
    saturation
        Factor of the colours' distance from grey.
    hue
        Turn of the hue in the IQ plane, as a share of the full circle.
    """
    turn = 2 * math.pi * hue
    turned = saturation * np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
    colours = np.linalg.inv(_TO_YIQ) @ np.block([[np.ones((1, 1)), np.zeros((1, 2))], [np.zeros((2, 1)), turned]]) @ _TO_YIQ
    offsets = np.full((3, 1), _MIDDLE * (1 - contrast))
    return tuple(tuple(row) for row in np.hstack([contrast * colours, offsets]).tolist())


def draw_boxes(augmentation: Augmentation, shape: tuple[int, int], draw: random.Random) -> tuple[Box, ...]:
    """Draw the square that is cut out of a region, with its middle anywhere in it; none without cutout."""
    if not augmentation.cutout:
        return ()
    half = draw.uniform(0, augmentation.cutout) * min(shape) / 2
    y, x = (draw.uniform(0, side) for side in shape)
    top, left = max(round(y - half), 0), max(round(x - half), 0)
    return ((top, min(round(y + half), shape[0]), left, min(round(x + half), shape[1])),)
