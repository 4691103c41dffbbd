"""What is done to a training region, drawn from a seed: turned, mirrored, warped, coloured and cut out while it is read in pieces."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import conv2d

from streamview.finetuning.augmentation import Box, ColourMatrix, Read, Span, Warp, colour_matrix, draw_boxes, draw_warp
from streamview.finetuning.settings import Augmentation, Settings
from streamview.networks.cards import ModelCard
from streamview.slides.sampling import Sampler
from streamview.streaming import LazyImage

__all__ = ["PLAIN", "Variation", "lazy_image", "vary"]


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
    warp
        A rotation and deformation that come first; None: neither.
    colours
        An affine map of the tinted colours; None: they stay.
    boxes
        Parts of the augmented region in which every pixel is the card's mean colour.
    """

    turns: int = 0
    mirrored: bool = False
    tint: tuple[float, float, float] = (1.0, 1.0, 1.0)
    warp: Warp | None = None
    colours: ColourMatrix | None = None
    boxes: tuple[Box, ...] = ()

    def shape(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the augmented region."""
        return (width, height) if self.turns % 2 else (height, width)

    def read(self, read: Read, shape: tuple[int, int], rows: Span, cols: Span) -> NDArray[np.uint8]:
        """Read a part of the rotated and mirrored region, uint8 (h, w, 3); `read` and `shape` are those of the original."""
        if self.warp is not None:
            warp, original = self.warp, read

            def read(y0: int, y1: int, x0: int, x1: int) -> NDArray[np.uint8]:
                return warp.read(original, shape, (y0, y1), (x0, x1))

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


def vary(settings: Settings, epoch: int, index: int, shape: tuple[int, int]) -> Variation:
    """Draw a region's augmentation in an epoch, determined by seed, epoch and region; `shape` is the region's, px."""
    draw = random.Random(f"{settings.seed} {epoch} {index}")
    turns, mirrored = (draw.randrange(4), draw.random() < 0.5) if settings.flips else (0, False)
    light, *colours = (1 + settings.jitter * draw.uniform(-1, 1) for _ in range(4))
    red, green, blue = (light * colour for colour in colours)
    plain, augmentation = Variation(turns, mirrored, (red, green, blue)), settings.augmentation
    return replace(
        plain,
        warp=draw_warp(augmentation, draw),
        colours=_draw_colours(augmentation, draw),
        boxes=draw_boxes(augmentation, plain.shape(*shape), draw),
    )


def _draw_colours(augmentation: Augmentation, draw: random.Random) -> ColourMatrix | None:
    limits = augmentation.contrast, augmentation.saturation, augmentation.hue
    contrast, saturation, hue = (limit * draw.uniform(-1, 1) for limit in limits)
    return colour_matrix(1 + contrast, 1 + saturation, hue) if any(limits) else None


def lazy_image(sampler: Sampler, card: ModelCard, variation: Variation, dtype: torch.dtype, device: torch.device) -> LazyImage:
    """Return the normalised pixels (1, 3, H, W) of a region as a lazy image: ``(pixel * tint / 255 - mean) / std``.

    With `Variation.colours`, the tinted pixel is mapped and clipped again before it is normalised; in its boxes the result is 0. Half
    precision is rounded to last.
    """
    result, dtype = dtype, torch.promote_types(dtype, torch.float32)
    std, mean, tint = (torch.tensor(v, dtype=dtype, device=device).view(1, 3, 1, 1) for v in (card.std, card.mean, variation.tint))
    scale, shift = 1 / (255 * std), mean / std
    height, width = variation.shape(*sampler.shape)
    tinted = variation.tint != (1.0, 1.0, 1.0)
    colours = None if variation.colours is None else torch.tensor(variation.colours, dtype=dtype, device=device)

    def read(rows: Span, cols: Span) -> Tensor:
        part = torch.from_numpy(variation.read(sampler.read, sampler.shape, rows, cols)).to(device)
        image = part.permute(2, 0, 1)[None].to(dtype)
        if tinted:
            image = image.mul_(tint).clamp_(0, 255)
        if colours is not None:
            image = conv2d(image, colours[:, :3, None, None], 255 * colours[:, 3]).clamp_(0, 255)
        image = image.mul_(scale).sub_(shift)
        for top, bottom, left, right in variation.boxes:
            image[..., max(top - rows[0], 0) : max(bottom - rows[0], 0), max(left - cols[0], 0) : max(right - cols[0], 0)] = 0
        return image.to(result)

    return LazyImage((1, 3, height, width), read, result, device)
