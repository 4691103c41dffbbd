"""Compose regions of real H&E tiles: normal tissue on glass, with or without a planted lesion whose mask is known.

Two ways. `compose_slide` lays whole tiles edge to edge at their own resolution, as a test slide. `compose_training_region` makes what a
network is to learn from. There are few tiles, and in the training split every tumour tile is of one source slide and every normal one of
another, so all that tells the sources apart, but not the tissue, must say nothing of the class:

- both classes are cut into pieces of the same shapes, with seams in both, and regions without a lesion get an island of normal tissue;
- the amounts of hematoxylin and eosin of every piece are brought to a mean drawn from one distribution, and the colours of the stains
  are drawn anew for every region;
- pieces are scaled, turned by any angle, mirrored, bent, and blurred alike.

Stain amounts are those of colour deconvolution (Ruifrok and Johnston 2001) of the optical density ``-log10(pixel / glass)``.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from scipy.spatial import KDTree
from torch.nn.functional import grid_sample, interpolate

__all__ = ["GLASS", "MPP", "SIDE", "Tiles", "compose_slide", "compose_training_region", "load_tiles"]

MPP = 0.243
"""Micrometres per pixel of the tiles."""
SIDE = 256
"""Height and width of a tile, px."""
GLASS = 243
"""Grey level of the glass around the tissue."""
_HALF = SIDE // 2
_STAINS = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])  # hematoxylin, eosin, residual: optical density of R, G, B
_STAINS /= np.linalg.norm(_STAINS, axis=1, keepdims=True)
_BLURS = (0.0, 0.7, 1.4)  # standard deviations, px of half resolution

Pixels = NDArray[np.uint8]
Mask = NDArray[np.bool_]
Amounts = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Tiles:
    """Tiles of some source slides.

    Parameters
    ----------
    normal, tumour
        uint8 (n, 256, 256, 3).
    """

    normal: Pixels
    tumour: Pixels

    def part(self, remainder: int, divisor: int, *, keep: bool) -> Tiles:
        """Every tile whose number leaves a remainder (or, without `keep`, all others)."""
        return Tiles(*(t[(np.arange(len(t)) % divisor == remainder) == keep] for t in (self.normal, self.tumour)))


def load_tiles(folder: Path, sources: Collection[str]) -> Tiles:
    """Read the tiles of some source slides.

    Parameters
    ----------
    folder
        Holds ``normal/`` and ``tumor/`` with PNG files named ``SOURCE_SLIDE_x_y.png``.
    sources
        Names of source slides, such as ``"tumor_001"``.

    Raises
    ------
    SystemExit
        If there is no tile of these sources in one of the two folders.
    """
    stacks = []
    for label in ("normal", "tumor"):
        paths = [path for path in sorted((folder / label).glob("*.png")) if path.name.rsplit("_", 2)[0] in sources]
        if not paths:
            raise SystemExit(f"{folder / label}: no PNG of {', '.join(sources)}; expected names such as tumor_001_69916_134313.png")
        stacks.append(np.stack([np.asarray(Image.open(path).convert("RGB")) for path in paths]))
    return Tiles(*stacks)


def compose_slide(
    tiles: Tiles, shape: tuple[int, int], share: float, rng: np.random.Generator, *, round_lesion: bool
) -> tuple[Pixels, Mask]:
    """Lay tiles edge to edge in an ellipse of tissue on glass.

    Parameters
    ----------
    tiles
        Tiles to draw from, each turned by quarters and mirrored at random.
    shape
        Rows and columns of tiles.
    share
        Of the tissue that is lesion, 0 to 1; 0: no lesion.
    rng
        Source of all randomness.
    round_lesion
        Whether the border of the lesion is smooth and runs through tiles, rather than along their edges.

    Returns
    -------
    tuple
        Pixels uint8 (H, W, 3) at `MPP`, and where the lesion is, bool (H, W).
    """
    rows, columns = shape
    grid = 1 if not round_lesion else SIDE
    y, x = (np.mgrid[: rows * grid, : columns * grid] + 0.5) / grid
    tissue_y, tissue_x = np.mgrid[:rows, :columns] + 0.5
    tissue = ((tissue_y / rows - 0.5) / 0.53) ** 2 + ((tissue_x / columns - 0.5) / 0.53) ** 2 <= 1
    lesion = np.zeros(y.shape, np.bool_)
    if share > 0:
        centre, aspect = rng.uniform(0.3, 0.7, 2) * shape, rng.uniform(0.7, 1.4)
        distance = ((y - centre[0]) * aspect) ** 2 + ((x - centre[1]) / aspect) ** 2
        inside = np.kron(tissue, np.ones((grid, grid), np.bool_))
        distance[~inside] = np.inf
        count = max(1, round(share * inside.sum()))
        lesion = distance <= np.partition(distance, count - 1, axis=None)[count - 1]
    lesion = np.kron(lesion, np.ones((SIDE // grid, SIDE // grid), np.bool_))
    pixels = np.full((rows * SIDE, columns * SIDE, 3), GLASS, np.uint8)
    for row, column in np.argwhere(tissue):
        place = np.s_[row * SIDE : (row + 1) * SIDE, column * SIDE : (column + 1) * SIDE]
        inside = lesion[place][..., None]
        layers = [_turned(stack, rng) for stack, needed in ((tiles.normal, not inside.all()), (tiles.tumour, inside.any())) if needed]
        pixels[place] = layers[0] if len(layers) == 1 else np.where(inside, layers[1], layers[0])
    return pixels, lesion


def _turned(stack: Pixels, rng: np.random.Generator) -> Pixels:
    tile = np.rot90(stack[rng.integers(len(stack))], rng.integers(4))
    return tile[:, ::-1] if rng.random() < 0.5 else tile


class Stock:
    """Stain amounts of tiles at half their resolution, sharp and blurred, ready to be sampled.

    Parameters
    ----------
    stack
        uint8 (n, 256, 256, 3).
    """

    def __init__(self, stack: Pixels) -> None:
        half = stack.reshape(len(stack), _HALF, 2, _HALF, 2, 3).mean((2, 4))
        amounts = (-np.log10(np.clip(half, 1, GLASS) / GLASS) @ np.linalg.inv(_STAINS)).transpose(3, 0, 1, 2)
        self.means = amounts.mean((2, 3)).T
        """Mean of the amount of each stain, (n, 3)."""
        sigmas = [(0, 0, sigma, sigma) for sigma in _BLURS]
        blurred = np.concatenate([ndimage.gaussian_filter(amounts, sigma) for sigma in sigmas], axis=1)
        self._column = torch.from_numpy(blurred.astype(np.float32)).reshape(1, 3, -1, _HALF)

    def sample(self, plane: NDArray[np.intp], y: NDArray[np.floating], x: NDArray[np.floating]) -> Amounts:
        """Amounts (3, h, w) at places (h, w) of tiles that are mirrored at their borders; planes beyond the tiles are blurred ones."""
        y, x = (np.abs((places + _HALF - 1) % (2 * _HALF - 2) - (_HALF - 1)) for places in (y, x))
        rows = self._column.shape[2]
        grid = np.stack([x * 2 / (_HALF - 1) - 1, (plane * _HALF + y) * 2 / (rows - 1) - 1], axis=-1)
        return grid_sample(self._column, torch.from_numpy(grid[None].astype(np.float32)), align_corners=True)[0].numpy()


def compose_training_region(normal: Stock, tumour: Stock, side: int, share: float, rng: np.random.Generator) -> tuple[Pixels, Mask]:
    """Compose a region in which only the tissue tells the lesion.

    Parameters
    ----------
    normal, tumour
        Tiles to draw from.
    side
        Height and width, px at half resolution.
    share
        Of the region that is lesion, about; 0: none, and other normal tissue in its place.
    rng
        Source of all randomness.

    Returns
    -------
    tuple
        Pixels uint8 (side, side, 3) at twice `MPP`, and where the lesion is, bool (side, side).
    """
    tissue = _blob(side, rng.uniform(0.6, 1.6), rng) if rng.random() < 0.5 else np.ones((side, side), np.bool_)
    island = _blob(side, share or np.exp(rng.uniform(np.log(0.01), np.log(0.6))), rng) & tissue
    target = np.array([rng.uniform(0.1, 0.45), rng.uniform(0.12, 0.5), 0.0])
    amounts = np.where(island, _field(tumour if share else normal, side, target, rng), _field(normal, side, target, rng))
    if rng.random() < 0.5:
        fibrous = _blob(side, rng.uniform(0.01, 0.3), rng) & ~(island & bool(share))
        amounts = np.where(fibrous, _fibres(side, target, rng), amounts)
    for _ in range(rng.poisson(side / 256)):  # fat and lumina, wherever they fall
        amounts[:, _blob(side, rng.uniform(0.001, 0.03), rng)] *= rng.uniform(0, 0.15)
    amounts[:, ~tissue] = 0
    stains = _STAINS * rng.uniform(0.8, 1.25, (3, 3))
    density = np.einsum("shw,sc->hwc", amounts, stains)
    light = np.array([GLASS, GLASS, GLASS]) * rng.uniform(0.94, 1.04, 3)
    pixels = light * 10.0**-density + rng.normal(0, rng.uniform(0, 4), (side, side, 3))
    return np.clip(pixels, 0, 255).astype(np.uint8), island if share else np.zeros_like(island)


def _field(stock: Stock, side: int, target: NDArray[np.float64], rng: np.random.Generator) -> Amounts:
    """Fill a square with pieces of tiles; stain amounts (3, side, side)."""
    labels, centres = _pieces(side, rng)
    count = len(centres)
    tiles = rng.integers(len(stock.means), size=count)
    blur = rng.integers(len(_BLURS)) if rng.random() < 0.5 else rng.integers(len(_BLURS), size=count)
    angle = rng.uniform(0, 2 * np.pi, count)
    scale = np.exp(rng.uniform(np.log(0.8), np.log(1.25), count))
    stretch = np.exp(np.where(rng.random(count) < 0.2, rng.uniform(0, 0.5, count), 0))
    cos, sin, mirror = np.cos(angle), np.sin(angle), rng.choice([-1, 1], count)
    offset = rng.uniform(0, _HALF, (count, 2))
    y, x = np.mgrid[:side, :side].astype(np.float32) + _bend(side, rng)
    dy, dx = y - centres[labels, 0], x - centres[labels, 1]
    v = ((cos * scale)[labels] * dy + (sin * scale)[labels] * dx) * stretch[labels] + offset[labels, 0]
    u = ((-sin * scale * mirror)[labels] * dy + (cos * scale * mirror)[labels] * dx) / stretch[labels] + offset[labels, 1]
    plane = (tiles + len(stock.means) * blur)[labels]
    sampled = stock.sample(plane, v, u)
    means = np.maximum(stock.means[tiles], 0.02)
    factors = target / means * np.exp(rng.normal(0, 0.15, (count, 3)))
    factors[:, 2] = rng.uniform(0.5, 1.2)
    return (sampled * factors.T.astype(np.float32)[:, labels]).clip(min=0)


def _fibres(side: int, target: NDArray[np.float64], rng: np.random.Generator) -> Amounts:
    """Paint fibrous tissue with thin nuclei, of which there is hardly any in the normal tiles; stain amounts (3, side, side)."""
    y, x = np.mgrid[:side, :side] + 4 * _bend(side, rng)
    turn = rng.uniform(0, np.pi)
    across, along = np.cos(turn) * y + np.sin(turn) * x, np.cos(turn) * x - np.sin(turn) * y
    fibres = _streaks(across / rng.uniform(1.5, 4), along / rng.uniform(15, 60), rng)
    nuclei = 1 / (1 + np.exp(5 * (rng.uniform(1.4, 2.2) - _streaks(across / rng.uniform(3, 5), along / rng.uniform(6, 14), rng))))
    eosin = target[1] * rng.uniform(0.3, 1.5) * (1 + rng.uniform(0.1, 0.5) * fibres)
    return np.stack([target[0] * (rng.uniform(0.05, 0.4) + 2 * nuclei), eosin, 0.3 * eosin]).astype(np.float32).clip(min=0)


def _streaks(y: NDArray[np.float64], x: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float32]:
    """White noise of a grid of step 1 at these places."""
    noise = rng.standard_normal((128, 128)).astype(np.float32)
    return ndimage.map_coordinates(noise, [y, x], order=1, mode="grid-wrap") * np.float32(1.5)


def _pieces(side: int, rng: np.random.Generator) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Divide a square: the piece of every pixel (side, side), and the pieces' centres (n, 2)."""
    step = rng.uniform(80, 180)
    count = int(side / step) + 2
    grid = (np.mgrid[:count, :count].reshape(2, -1).T + rng.uniform(-1, 0, 2)) * step
    if rng.random() < 0.4:  # straight seams, as between tiles
        rows, columns = ((np.arange(side) - grid[0, axis]) // step for axis in (0, 1))
        labels = (rows[:, None] * count + columns).astype(np.intp)
    else:
        grid = grid + rng.uniform(-0.45, 0.45, grid.shape) * step
        places = np.moveaxis(np.mgrid[:side:2, :side:2] + 6 * _bend(side // 2, rng), 0, -1)
        labels = KDTree(grid).query(places)[1].repeat(2, 0).repeat(2, 1)
    return labels, grid


def _blob(side: int, share: float, rng: np.random.Generator) -> Mask:
    """A region with a smooth border that covers about a share of a square; above 1: nearly all."""
    y, x = np.mgrid[:side, :side] / side
    centre, aspect = rng.uniform(0.15, 0.85, 2) if share < 0.5 else rng.uniform(0.4, 0.6, 2), np.exp(rng.uniform(-0.5, 0.5))
    turn = rng.uniform(0, np.pi)
    dy, dx = y - centre[0], x - centre[1]
    v, u = np.cos(turn) * dy + np.sin(turn) * dx, -np.sin(turn) * dy + np.cos(turn) * dx
    radius = np.sqrt(share / np.pi)
    rough = 1 + 0.25 * _noise(side, max(4.0, radius * side / 2), rng)
    return (v * aspect) ** 2 + (u / aspect) ** 2 <= (radius * rough) ** 2


def _bend(side: int, rng: np.random.Generator) -> Amounts:
    """Displacements (2, side, side) of a few px that vary smoothly."""
    return np.stack([_noise(side, 24, rng) for _ in range(2)]) * np.float32(rng.uniform(0, 2.5))


def _noise(side: int, sigma: float, rng: np.random.Generator) -> NDArray[np.float32]:
    """Smooth noise (side, side) of mean 0 and deviation about 1."""
    coarse = torch.from_numpy(rng.standard_normal((1, 1, *[max(2, round(side / sigma) + 1)] * 2)).astype(np.float32))
    return interpolate(coarse, (side, side), mode="bicubic", align_corners=True)[0, 0].numpy()
