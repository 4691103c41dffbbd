"""How a pass of an explanation changes the pixels that the network gets: noise, a point on a path, a hidden patch. Pure.

What a change gives depends on the place of a pixel and never on the step that reads it, so that results do not depend on the plan.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from streamview.streaming.step import Span

__all__ = ["Change", "HiddenPatch", "Noise", "PathPoint", "normal_noise"]

Change = Callable[[Tensor, Span, Span], Tensor]
"""Gives new pixels (1, 3, h, w) for those of these rows and columns of the grid, which it leaves as they are."""
_BLOCK = 64  # px a side of what is drawn from one counter


@dataclass(frozen=True, slots=True, eq=False)
class Noise:
    """Adds Gaussian noise, that of a pixel the same in whatever step it is read.

    Parameters
    ----------
    seed, sample
        Which noise.
    sigma
        Standard deviation (1, 3, 1, 1) of normalised pixels.
    """

    seed: int
    sample: int
    sigma: Tensor

    def __call__(self, image: Tensor, rows: Span, cols: Span) -> Tensor:
        """As `Change`."""
        noise = torch.from_numpy(normal_noise(self.seed, self.sample, rows, cols)).to(image.device, image.dtype)
        return noise.mul_(self.sigma.to(image.dtype)).add_(image)


@dataclass(frozen=True, slots=True, eq=False)
class PathPoint:
    """Moves to a point on the straight path from a baseline (1, 3, 1, 1), share 0, to the image, share 1."""

    baseline: Tensor
    share: float

    def __call__(self, image: Tensor, rows: Span, cols: Span) -> Tensor:
        """As `Change`."""
        baseline = self.baseline.to(image.dtype)
        return (image - baseline).mul_(self.share).add_(baseline)


@dataclass(frozen=True, slots=True, eq=False)
class HiddenPatch:
    """Replaces what lies in a patch by one colour (1, 3, 1, 1)."""

    colour: Tensor
    rows: Span
    cols: Span

    def __call__(self, image: Tensor, rows: Span, cols: Span) -> Tensor:
        """As `Change`."""
        (top, bottom), (left, right) = (
            (max(patch[0], part[0]) - part[0], min(patch[1], part[1]) - part[0]) for patch, part in ((self.rows, rows), (self.cols, cols))
        )
        if top >= bottom or left >= right:
            return image
        changed = image.clone()
        changed[:, :, top:bottom, left:right] = self.colour.to(image.dtype)
        return changed


def normal_noise(seed: int, sample: int, rows: Span, cols: Span) -> NDArray[np.float32]:
    """Standard normal noise of a part of an endless plane, float32 (1, 3, h, w).

    Blocks of 64 px are drawn from counters of Philox (Salmon et al., SC 2011, https://doi.org/10.1145/2063384.2063405) by the method of
    Box and Muller, so that a pixel's noise is decided by its place, the seed and the sample alone.
    """
    noise = np.empty((1, 3, rows[1] - rows[0], cols[1] - cols[0]), np.float32)
    for i in range(rows[0] // _BLOCK, -(-rows[1] // _BLOCK)):
        for j in range(cols[0] // _BLOCK, -(-cols[1] // _BLOCK)):
            y, x = i * _BLOCK, j * _BLOCK
            top, bottom, left, right = max(y, rows[0]), min(y + _BLOCK, rows[1]), max(x, cols[0]), min(x + _BLOCK, cols[1])
            block = _block(seed, sample, i, j)[:, top - y : bottom - y, left - x : right - x]
            noise[0, :, top - rows[0] : bottom - rows[0], left - cols[0] : right - cols[0]] = block
    return noise


@lru_cache(maxsize=64)
def _block(seed: int, sample: int, i: int, j: int) -> NDArray[np.float32]:
    """Noise of one block, float32 (3, 64, 64); not to be changed."""
    count = 3 * _BLOCK * _BLOCK // 2
    raw = np.random.Philox(key=np.array([seed, sample], np.uint64), counter=np.array([0, 0, i, j], np.uint64)).random_raw(count)
    # 32 bits each, within (0, 1) so that the logarithm is finite
    first, second = (((raw >> shift & 0xFFFFFFFF).astype(np.float64) + 0.5) * 2.0**-32 for shift in (32, 0))
    radius, angle = np.sqrt(-2 * np.log(first)), 2 * np.pi * second
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)]).astype(np.float32).reshape(3, _BLOCK, _BLOCK)
