"""Augmentation: training regions rotated, mirrored and tinted from a seed, read in pieces."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from streamview.finetuning.settings import Settings
from streamview.networks.cards import ModelCard
from streamview.slides.sampling import Sampler
from streamview.streaming import LazyImage

__all__ = ["PLAIN", "Variation", "lazy_image", "vary"]

Span = tuple[int, int]
Read = Callable[[int, int, int, int], NDArray[np.uint8]]


@dataclass(frozen=True, slots=True)
class Variation:
    """The augmentation of a region.

    Parameters
    ----------
    turns
        Quarter turns counter-clockwise, 0 to 3.
    mirrored
        Whether left and right are then swapped.
    tint
        Factors of red, green and blue.
    """

    turns: int = 0
    mirrored: bool = False
    tint: tuple[float, float, float] = (1.0, 1.0, 1.0)

    def shape(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the augmented region."""
        return (width, height) if self.turns % 2 else (height, width)

    def read(self, read: Read, shape: tuple[int, int], rows: Span, cols: Span) -> NDArray[np.uint8]:
        """Read a part of the rotated and mirrored region, uint8 (h, w, 3); `read` and `shape` are those of the original."""
        height, width = shape
        (top, bottom), (left, right) = rows, cols
        if self.mirrored:
            wide = self.shape(height, width)[1]
            left, right = wide - right, wide - left
        y0, y1, x0, x1 = (
            (top, bottom, left, right),
            (left, right, width - bottom, width - top),
            (height - bottom, height - top, width - right, width - left),
            (height - right, height - left, top, bottom),
        )[self.turns]
        part = np.rot90(read(y0, y1, x0, x1), self.turns)
        return np.ascontiguousarray(part[:, ::-1] if self.mirrored else part)


PLAIN = Variation()
"""No augmentation."""


def vary(settings: Settings, epoch: int, index: int) -> Variation:
    """Draw a region's augmentation in an epoch, determined by seed, epoch and region."""
    draw = random.Random(f"{settings.seed} {epoch} {index}")
    turns, mirrored = (draw.randrange(4), draw.random() < 0.5) if settings.flips else (0, False)
    light, *colours = (1 + settings.jitter * draw.uniform(-1, 1) for _ in range(4))
    red, green, blue = (light * colour for colour in colours)
    return Variation(turns, mirrored, (red, green, blue))


def lazy_image(sampler: Sampler, card: ModelCard, variation: Variation, dtype: torch.dtype, device: torch.device) -> LazyImage:
    """Return the normalised pixels (1, 3, H, W) of a region as a lazy image: ``(pixel * tint / 255 - mean) / std``."""
    std, mean, tint = (torch.tensor(v, dtype=dtype, device=device).view(1, 3, 1, 1) for v in (card.std, card.mean, variation.tint))
    scale, shift = 1 / (255 * std), mean / std
    height, width = variation.shape(*sampler.shape)
    tinted = variation.tint != (1.0, 1.0, 1.0)

    def read(rows: Span, cols: Span) -> Tensor:
        part = torch.from_numpy(variation.read(sampler.read, sampler.shape, rows, cols)).to(device)
        image = part.permute(2, 0, 1)[None].to(dtype)
        if tinted:
            image = image.mul_(tint).clamp_(0, 255)
        return image.mul_(scale).sub_(shift)

    return LazyImage((1, 3, height, width), read, dtype, device)
