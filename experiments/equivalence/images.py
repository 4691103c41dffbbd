"""Batches of crops from a folder of labelled images, as the paper takes them from Imagenette."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

__all__ = ["MEAN", "STD", "crop_box", "draw_batches", "list_images"]

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet, by which red, green and blue (0..1) are normalised."""
_AREAS, _ASPECTS = (0.08, 1.0), (3 / 4, 4 / 3)
_TYPES = (".png", ".jpg", ".jpeg")


def list_images(folder: Path) -> tuple[list[str], list[tuple[Path, int]]]:
    """List the images of a folder with a folder for each class.

    Parameters
    ----------
    folder
        Such as ``imagenette2-320/train``.

    Returns
    -------
    tuple
        Names of the classes, and every image with the number of its class.

    Raises
    ------
    SystemExit
        If there are fewer than two classes with images.
    """
    classes = sorted(entry for entry in folder.iterdir() if entry.is_dir()) if folder.is_dir() else []
    images = [(path, number) for number, entry in enumerate(classes) for path in sorted(entry.iterdir()) if path.suffix.lower() in _TYPES]
    if len({number for _, number in images}) < 2:
        raise SystemExit(f"{folder}: expected a folder for each of two or more classes, with {', '.join(_TYPES)} files")
    return [entry.name for entry in classes], images


def crop_box(width: int, height: int, draw: random.Random) -> tuple[int, int, int, int]:
    """Draw a part of an image, ``(left, top, right, bottom)`` in px: 8 to 100 % of its area, aspect 3/4 to 4/3 (Szegedy et al. 2015).

    As long as a drawn part does not fit, another is drawn; after ten, the largest square in the middle is taken.
    """
    for _ in range(10):
        area, aspect = width * height * draw.uniform(*_AREAS), math.exp(draw.uniform(*map(math.log, _ASPECTS)))
        wide, high = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < wide <= width and 0 < high <= height:
            left, top = draw.randint(0, width - wide), draw.randint(0, height - high)
            return left, top, left + wide, top + high
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    return left, top, left + side, top + side


def draw_batches(images: Sequence[tuple[Path, int]], size: int, side: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches without end, every image once an epoch in a new order; the last, smaller batch of an epoch is left out.

    Parameters
    ----------
    images
        At least `size`, as `list_images` gives them.
    size
        Images of a batch.
    side
        To which crops are scaled, px.
    seed
        Of order and crops.

    Yields
    ------
    tuple of Tensor
        Normalised images float64 (size, 3, side, side), and classes int64 (size,).
    """
    if len(images) < size:
        raise SystemExit(f"{len(images)} images: expected at least a batch of {size}")
    draw = random.Random(seed)
    order = list(images)
    while True:
        draw.shuffle(order)
        for start in range(0, len(order) - size + 1, size):
            batch = order[start : start + size]
            crops = np.stack([_crop(path, side, draw) for path, _ in batch])
            normalised = (torch.from_numpy(crops) / 255 - torch.tensor(MEAN, dtype=torch.float64)) / torch.tensor(STD, dtype=torch.float64)
            yield normalised.permute(0, 3, 1, 2), torch.tensor([number for _, number in batch])


def _crop(path: Path, side: int, draw: random.Random) -> np.ndarray:
    image = Image.open(path).convert("RGB")
    crop = image.resize((side, side), Image.Resampling.BILINEAR, box=crop_box(*image.size, draw))
    return np.asarray(crop, np.float64)
