"""Slides of real tissue whose finest detail is amplified by a factor, the value to be predicted.

The paper predicts a gene expression score of which nobody knows where it shows. Here it is known: in what a Gaussian of 0.4 um removes,
such as the texture of chromatin. Contrast and brightness of the whole slide vary too, so that they say little of it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from experiments.camelyon16_tiles.compose import Tiles, compose_slide
from experiments.training import lower_resolution

__all__ = ["Slides", "amplify_detail", "compose_slides"]

_SIGMA = 0.8  # px
_TILES = (2, 2)


@dataclass(frozen=True, slots=True, eq=False)
class Slides:
    """Composed slides.

    Parameters
    ----------
    pixels
        uint8 (n, 256, 256, 3) at `experiments.resolution.data.MPP`.
    values
        (n,): binary logarithm of the factor, -1 to 1.
    """

    pixels: NDArray[np.uint8]
    values: NDArray[np.float64]


def amplify_detail(pixels: NDArray[np.uint8], factor: float, contrast: float, brightness: float) -> NDArray[np.uint8]:
    """Scale the finest detail of an image (h, w, 3) by a factor, then its contrast around its mean, and add a brightness in grey levels."""
    image = pixels.astype(np.float32)
    coarse = ndimage.gaussian_filter(image, (_SIGMA, _SIGMA, 0))
    amplified = coarse + factor * (image - coarse)
    mean = amplified.mean((0, 1))
    return np.clip(mean + contrast * (amplified - mean) + brightness, 0, 255).round().astype(np.uint8)


def compose_slides(tiles: Tiles, count: int, seed: int) -> Slides:
    """Compose slides of whole tiles, half of which have tumour, and amplify their detail by 1/2 to 2."""
    rng = np.random.default_rng(seed)
    values, pixels = rng.uniform(-1, 1, count), []
    for number, value in enumerate(values):
        share = float(rng.uniform(0.2, 0.8)) if number % 2 else 0.0
        slide, _ = compose_slide(tiles, _TILES, share, rng, round_lesion=True)
        pixels.append(amplify_detail(lower_resolution(slide[None], 2)[0], 2.0**value, rng.uniform(0.75, 1.25), rng.uniform(-20, 10)))
    return Slides(np.stack(pixels), values)
