"""What the networks learn from and are tested on: composed regions, and composed slides with lesions of three sizes.

Everything is composed at the finest resolution, `MPP`; a network of a lower one sees means of squares of its pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from experiments.camelyon16_tiles.compose import MPP as TILE_MPP
from experiments.camelyon16_tiles.compose import Stock, Tiles, compose_slide, compose_training_region
from experiments.training import lower_resolution

__all__ = ["MPP", "SHARES", "SIDE", "Slides", "compose_regions", "compose_slides", "compose_windows"]

MPP = 2 * TILE_MPP
"""Micrometres per pixel of the finest resolution."""
SIDE, WINDOW = 512, 128
"""Side of regions and slides, and of the windows with which training begins, px of the finest resolution."""
SHARES: Mapping[str, tuple[float, float]] = {"small": (0.01, 0.02), "medium": (0.05, 0.1), "large": (0.2, 0.4)}
"""Sizes of lesions: the least and the largest share of the tissue."""
_TILES = (4, 4)

Pixels = NDArray[np.uint8]


@dataclass(frozen=True, slots=True, eq=False)
class Slides:
    """Composed slides.

    Parameters
    ----------
    pixels, lesions
        uint8 (n, 512, 512, 3) at `MPP`, and bool (n, 512, 512).
    sizes
        Of each slide, a name of `SHARES`, or empty without a lesion.
    """

    pixels: Pixels
    lesions: NDArray[np.bool_]
    sizes: tuple[str, ...]


def compose_windows(tiles: Tiles, count: int, seed: int, *, tell: Callable[[str], None]) -> Pixels:
    """Compose windows (count, 128, 128, 3); every other, from the second on, is lesion on about half of it or more."""
    return _compose(tiles, count, WINDOW, lambda rng: float(rng.uniform(0.4, 1.6)), seed, tell)


def compose_regions(tiles: Tiles, count: int, seed: int, *, tell: Callable[[str], None]) -> Pixels:
    """Compose regions (count, 512, 512, 3); every other, from the second on, has a lesion on 1 to 60 % of it."""
    return _compose(tiles, count, SIDE, lambda rng: float(np.exp(rng.uniform(*np.log((0.01, 0.6))))), seed, tell)


def compose_slides(tiles: Tiles, count: int, seed: int) -> Slides:
    """Compose slides of whole tiles: every other, from the first on, without a lesion, the others small, medium and large in turn."""
    rng = np.random.default_rng(seed)
    names = list(SHARES)
    sizes = tuple(names[number // 2 % len(names)] if number % 2 else "" for number in range(count))
    pixels, lesions = [], []
    for size in sizes:
        share = float(np.exp(rng.uniform(*np.log(SHARES[size])))) if size else 0.0
        slide, lesion = compose_slide(tiles, _TILES, share, rng, round_lesion=True)
        pixels.append(lower_resolution(slide[None], 2)[0])
        lesions.append(lesion[::2, ::2])
    return Slides(np.stack(pixels), np.stack(lesions), sizes)


def _compose(
    tiles: Tiles, count: int, side: int, draw_share: Callable[[np.random.Generator], float], seed: int, tell: Callable[[str], None]
) -> Pixels:
    rng = np.random.default_rng(seed)
    normal, tumour = Stock(tiles.normal), Stock(tiles.tumour)
    pixels = np.empty((count, side, side, 3), np.uint8)
    for number in range(count):
        pixels[number], _ = compose_training_region(normal, tumour, side, draw_share(rng) if number % 2 else 0.0, rng)
    tell(f"composed {count} regions of {side} x {side} px")
    return pixels
