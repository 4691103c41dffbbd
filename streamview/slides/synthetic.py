"""A made-up H&E slide with a planted lesion and its exact mask: for the demo, the tests and the viewer's sample data.

The picture is built the way the stain works: a plane of haematoxylin (nuclei) and one of eosin (cytoplasm, fibres) become RGB
by Beer-Lambert absorption. Normal tissue is a lymph node: small, round, dark nuclei, stroma bands, fat. The lesion is an
irregular island of large, pale, irregular, crowded nuclei with nucleoli, its stains balanced so that the mean colour of the two
tissues is nearly the same: telling them apart takes morphology. Everything is at 0.5 um/px and follows from the seed.
"""

from __future__ import annotations

import os
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import tifffile
from scipy import ndimage, special

__all__ = ["synthetic_region", "write_synthetic_slide"]

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]

GLASS = 243.0
# Absorption of one unit of stain in red, green, blue, measured on CAMELYON16 tiles (haematoxylin, eosin).
HAEMATOXYLIN = np.array([0.68, 0.86, 0.46], np.float32)
EOSIN = np.array([0.13, 0.62, 0.34], np.float32)
BAND = 512
_STROMA = 420  # spacing of the stroma bands in pixels
LAYOUT = 4  # the tissue's layout is decided on a grid this much coarser, and evaluated again at full resolution for edges
PEAK = 1.6  # optical density that a stamp's 255 stands for


class _Field:
    """Smooth random field over an image: cubic B-splines on white noise, mean 0 and deviation about 1.

    It is evaluated for any rows at any stride, so a whole slide never needs it at once.
    """

    def __init__(self, shape: tuple[int, int], scale: float, rng: np.random.Generator) -> None:
        self._y, self._x = (_bspline(n, scale) for n in shape)
        self._noise = rng.standard_normal((self._y.shape[1], self._x.shape[1]), np.float32) / 0.479

    def __call__(self, y0: int, y1: int, step: int = 1) -> Floats:
        values: Floats = self._y[y0:y1:step] @ self._noise @ self._x[::step].T
        return values


def _bspline(n: int, scale: float) -> Floats:
    """Weights (n, knots) of the cubic B-spline with one knot every `scale` pixels."""
    distance = np.abs((np.arange(n)[:, None] + 0.5) / scale + 1 - np.arange(int(np.ceil(n / scale)) + 3))
    near, far = 2 / 3 - distance**2 + distance**3 / 2, (2 - distance).clip(0) ** 3 / 6
    weights: Floats = np.where(distance < 1, near, far).astype(np.float32)
    return weights


class _Layout:
    """Where tissue, lesion, stroma and fat lie, as scores that are positive inside."""

    def __init__(self, shape: tuple[int, int], lesion_share: float, rng: np.random.Generator) -> None:
        self._shape, side = shape, min(shape)
        self._outline = _Field(shape, side / 4, rng), _Field(shape, side / 14, rng)
        self._stroma, self._fat = _Field(shape, _STROMA, rng), _Field(shape, max(side / 8, 200), rng)
        self._fine = _Field(shape, 90, rng)
        tissue = self.tissue(0, shape[0], LAYOUT)
        area = (tissue > 0).sum() * LAYOUT**2
        self._radius = max(float(np.sqrt(area * lesion_share / np.pi)), 1.0)
        deep = np.argwhere(tissue > np.quantile(tissue[tissue > 0], 0.55))
        self._centre = deep[rng.integers(len(deep))] * LAYOUT
        self._ragged = _Field(shape, max(self._radius * 0.55, 8), rng), _Field(shape, max(self._radius * 0.15, 8), rng)
        self._threshold = 0.0
        if lesion_share > 0:
            self._threshold = float(np.quantile(self.lesion(0, shape[0], LAYOUT)[tissue > 0], 1 - lesion_share)) - 1e-6
        else:
            self._threshold = np.inf

    def tissue(self, y0: int, y1: int, step: int = 1) -> Floats:
        """Score in units of half the image: an ellipse with a wandering outline."""
        y, x = (np.linspace(-1, 1, n, dtype=np.float32) for n in self._shape)
        radius = np.hypot(y[y0:y1:step, None] / 0.88, x[::step] / 0.88)
        coarse, fine = self._outline
        score: Floats = 1 - radius + 0.09 * coarse(y0, y1, step) + 0.025 * fine(y0, y1, step)
        return score

    def lesion(self, y0: int, y1: int, step: int = 1) -> Floats:
        """Score in units of the lesion's radius: a disc whose outline is torn by noise."""
        y, x = (np.arange(n, dtype=np.float32) for n in self._shape)
        distance = np.hypot(y[y0:y1:step, None] - self._centre[0], x[::step] - self._centre[1])
        coarse, fine = self._ragged
        score: Floats = 0.22 * coarse(y0, y1, step) + 0.07 * fine(y0, y1, step) - distance / self._radius - self._threshold
        return score

    def stroma(self, y0: int, y1: int, step: int = 1) -> tuple[Floats, Floats]:
        """Score of the fibrous tissue, and a coordinate across its fibres in pixels.

        Bands follow the zero line of a smooth field and fibres its level lines; a capsule follows the tissue's outline.
        """
        across = self._stroma(y0, y1, step) + 0.1 * self._fine(y0, y1, step)
        band = 0.11 - np.abs(across)
        depth = self.tissue(y0, y1, step) * np.float32(min(self._shape) / 2)
        capsule = (18 - depth) / 150
        return np.maximum(band, capsule), np.where(capsule > band, depth, across * _STROMA)

    def fat(self, y0: int, y1: int, step: int = 1) -> Floats:
        """Score of the patches of fat cells."""
        score: Floats = self._fat(y0, y1, step) - 1.3
        return score


class _Planes(NamedTuple):
    """Stamped stain and holes of a whole image, uint8 (H, W): 255 is an optical density of `PEAK`, or a full hole."""

    nuclei: Bytes
    cytoplasm: Bytes
    holes: Bytes


def _outlines(
    n: int, size: int, radius: tuple[float, float], ragged: float, stretch: tuple[float, float], rng: np.random.Generator
) -> Floats:
    """Signed depth in pixels (n, size, size) inside n blobs: ellipses with three harmonics, blob k turned by k * pi / n."""
    y, x = np.mgrid[:size, :size].astype(np.float32) - (size - 1) / 2
    turn = (np.arange(n) * np.pi / n)[:, None, None]
    aspect = np.sqrt(rng.uniform(*stretch, (n, 1, 1)))
    u, v = (x * np.cos(turn) + y * np.sin(turn)) / aspect, (y * np.cos(turn) - x * np.sin(turn)) * aspect
    angle = np.arctan2(v, u)
    edge = 1 + sum(rng.normal(0, ragged / k, (n, 1, 1)) * np.cos(k * angle + rng.uniform(0, 7, (n, 1, 1))) for k in (2, 3, 5))
    depth: Floats = (rng.uniform(*radius, (n, 1, 1)) * edge - np.hypot(u, v)).astype(np.float32)
    return depth


def _chromatin(shape: tuple[int, ...], grain: float, rng: np.random.Generator) -> Floats:
    noise: Floats = ndimage.gaussian_filter(rng.standard_normal(shape, np.float32), (0, grain, grain))
    noise /= noise.std()
    return noise


def _inside(depth: Floats, softness: float) -> Floats:
    """1 inside, 0 outside, with an edge about `softness` pixels wide."""
    inside: Floats = special.expit(depth / np.float32(softness))
    return inside


def _as_bytes(density: npt.NDArray[np.floating]) -> Bytes:
    return (density.clip(0, PEAK) * (255 / PEAK)).round().astype(np.uint8)


def _lymphocytes(rng: np.random.Generator, stretch: tuple[float, float] = (1.0, 1.35), radius: tuple[float, float] = (5.4, 7.0)) -> Bytes:
    """Small, round, dark nuclei with clumped chromatin; stretched, they are the spindle cells of stroma."""
    depth = _outlines(96, 33, radius, 0.05, stretch, rng)
    density = rng.uniform(0.98, 1.32, (96, 1, 1)) + 0.17 * _chromatin(depth.shape, 1.1, rng)
    return _as_bytes(density * _inside(depth, 0.55))


def _lesion_cells(rng: np.random.Generator) -> tuple[Bytes, Bytes]:
    """Large pale irregular nuclei (membrane, open chromatin, one to three nucleoli) and their cytoplasm."""
    n, size = 96, 57
    depth = _outlines(n, size, (9.0, 14.5), 0.13, (1.0, 1.7), rng)
    membrane = 0.30 * np.exp(-(((depth - 1.2) / 1.1) ** 2))
    density = rng.uniform(0.40, 0.70, (n, 1, 1)) + membrane + 0.13 * _chromatin(depth.shape, 1.5, rng)
    y, x = np.mgrid[:size, :size].astype(np.float32) - (size - 1) / 2
    for present in (1.0, 0.6, 0.25):
        cy, cx = rng.uniform(-5, 5, (2, n, 1, 1))
        distance = np.hypot(y - cy, x - cx) / rng.uniform(1.5, 2.4, (n, 1, 1))
        density += 0.6 * np.exp(-(distance**3)) * (rng.random((n, 1, 1)) < present)
    nuclei = _as_bytes(density * _inside(depth, 0.7))
    body = _outlines(n, size, (17, 24), 0.07, (1.0, 1.4), rng)
    return nuclei, _as_bytes(rng.uniform(0.04, 0.20, (n, 1, 1)) * _inside(body, 1.2))


def _lattice(shape: tuple[int, int], spacing: float, jitter: float, rng: np.random.Generator) -> npt.NDArray[np.intp]:
    """Points (n, 2) as (y, x) of a hexagonal lattice, each moved at random by up to `jitter` spacings."""
    rows, columns = np.arange(0, shape[0], spacing * 0.866), np.arange(0, shape[1], spacing)
    y, x = np.meshgrid(rows, columns, indexing="ij")
    x = x + spacing / 2 * (np.arange(len(rows)) % 2)[:, None]
    moved = np.stack([y, x], -1).reshape(-1, 2) + rng.uniform(-jitter, jitter, (y.size, 2)) * spacing
    points = moved.round().astype(np.intp)
    return points[((points >= 0) & (points < shape)).all(1)]


def _stamp(plane: Bytes, stamps: Bytes, points: npt.NDArray[np.intp], which: npt.NDArray[np.intp]) -> None:
    """Press stamp `which[i]` (n, s, s) at point i of a plane padded by s // 2; the darker value stays."""
    size = stamps.shape[1]
    for stamp, (y, x) in zip(which, points, strict=True):
        window = plane[y : y + size, x : x + size]
        np.maximum(window, stamps[stamp], out=window)


def _plant(shape: tuple[int, int], layout: _Layout, rng: np.random.Generator) -> _Planes:
    """Place every nucleus, cell body and fat cell."""
    fibrous, across = layout.stroma(0, shape[0], LAYOUT)
    maps = [layout.tissue(0, shape[0], LAYOUT), layout.lesion(0, shape[0], LAYOUT), fibrous, layout.fat(0, shape[0], LAYOUT)]
    crowding = _Field(shape, 160, rng)(0, shape[0], LAYOUT)

    def at(values: Floats, points: npt.NDArray[np.intp]) -> Floats:
        return values[points[:, 0] // LAYOUT, points[:, 1] // LAYOUT]

    def plane(stamps: Bytes) -> Bytes:
        margin = stamps.shape[1] // 2
        return np.zeros((shape[0] + 2 * margin, shape[1] + 2 * margin), np.uint8)

    def press(onto: Bytes, stamps: Bytes, points: npt.NDArray[np.intp]) -> None:
        _stamp(onto, stamps, points, rng.integers(len(stamps), size=len(points)))

    dark, spindle = _lymphocytes(rng), _lymphocytes(rng, (3.0, 6.0), (3.6, 4.6))
    pale, body = _lesion_cells(rng)
    globule = _as_bytes(PEAK * _inside(_outlines(32, 141, (40, 58), 0.05, (1, 1.3), rng), 1.0))

    small = plane(dark)
    points = _lattice(shape, 15.5, 0.36, rng)
    tissue, lesion, stroma, fat = (at(values, points) for values in maps)
    kept = rng.random(len(points)) < 0.86 + 0.1 * at(crowding, points)
    # A few lymphocytes infiltrate the lesion, as they do.
    outside = (lesion < 0) | (rng.random(len(points)) < 0.03)
    press(small, dark, points[(tissue > 0) & (stroma < 0) & (fat < 0) & outside & kept])
    lone = points[(tissue > 0) & (lesion < 0) & ((stroma >= 0) | (fat >= 0)) & (rng.random(len(points)) < 0.14)]
    slope_y, slope_x = (np.gradient(across, axis=axis) for axis in (0, 1))
    along = np.arctan2(at(slope_x, lone), -at(slope_y, lone)) + rng.normal(0, 0.15, len(lone))
    _stamp(small, spindle, lone, (along * (len(spindle) / np.pi)).round().astype(np.intp) % len(spindle))

    large, cytoplasm = plane(pale), plane(body)
    points = _lattice(shape, 27.0, 0.30, rng)
    points = points[(at(maps[0], points) > 0) & (at(maps[1], points) >= 0)]
    press(large, pale, points)
    press(cytoplasm, body, points)

    holes = plane(globule)
    points = _lattice(shape, 108, 0.17, rng)
    tissue, lesion, _, fat = (at(values, points) for values in maps)
    press(holes, globule, points[(tissue > 0) & (lesion < -0.4) & (fat > 0)])

    nuclei = _inner(small, shape)
    np.maximum(nuclei, _inner(large, shape), out=nuclei)
    return _Planes(nuclei, _inner(cytoplasm, shape), _inner(holes, shape))


def _inner(plane: Bytes, shape: tuple[int, int]) -> Bytes:
    margin = (plane.shape[0] - shape[0]) // 2
    return plane[margin : margin + shape[0], margin : margin + shape[1]]


def _grain(shape: tuple[int, int], y0: int, y1: int, tiles: tuple[Floats, ...]) -> Floats:
    """Fine texture for some rows: periodic tiles of coprime sizes added up, so that no repeat is seen."""
    total = np.zeros((y1 - y0, shape[1]), np.float32)
    for tile in tiles:
        total += tile[np.arange(y0, y1) % len(tile)][:, np.arange(shape[1]) % tile.shape[1]]
    total /= np.sqrt(len(tiles))
    return total


def _tiles(sizes: tuple[int, ...], grain: float, rng: np.random.Generator) -> tuple[Floats, ...]:
    tiles = [ndimage.gaussian_filter(rng.standard_normal((n, n), np.float32), grain, mode="wrap") for n in sizes]
    return tuple(tile / tile.std() for tile in tiles)


def synthetic_region(height: int, width: int, *, seed: int, lesion_share: float) -> tuple[Bytes, Mask]:
    """Paint H&E-like tissue on glass at 0.5 um/px.

    Parameters
    ----------
    height, width
        Extent in pixels.
    seed
        Decides everything; the same seed gives the same bytes.
    lesion_share
        Share of the tissue's area that is lesion, 0 (none) to 1 (all of it).

    Returns
    -------
    image
        uint8 (height, width, 3), RGB.
    lesion
        bool (height, width), True where the tissue is lesion.

    Raises
    ------
    ValueError
        When `lesion_share` is not within 0..1 or a side is shorter than 64 px.
    """
    if not 0 <= lesion_share <= 1:
        raise ValueError(f"lesion_share {lesion_share}: expected a share of the tissue between 0 and 1")
    if min(height, width) < 64:
        raise ValueError(f"synthetic tissue of {width} x {height} px: expected sides of 64 px or more")
    rng = np.random.default_rng(seed)
    shape = (height, width)
    layout = _Layout(shape, lesion_share, rng)
    planes = _plant(shape, layout, rng)
    stain = _Field(shape, 900, rng), _Field(shape, 900, rng)
    haematoxylin = HAEMATOXYLIN * rng.uniform(0.90, 1.10) * rng.uniform(0.96, 1.04, 3).astype(np.float32)
    eosin = EOSIN * rng.uniform(0.85, 1.15) * rng.uniform(0.94, 1.06, 3).astype(np.float32)
    texture, sensor = _tiles((509, 331), 1.6, rng), _tiles((503,), 0.5, rng)
    fibres = ndimage.gaussian_filter1d(rng.standard_normal(4096, np.float32), 1.2, mode="wrap") * np.float32(2)
    image, mask = np.empty((height, width, 3), np.uint8), np.empty(shape, bool)
    half = min(shape) / 2
    for y0 in range(0, height, BAND):
        y1 = min(y0 + BAND, height)
        tissue, lesion = layout.tissue(y0, y1) * half, layout.lesion(y0, y1)
        mask[y0:y1] = (tissue > 0) & (lesion > 0) & (planes.holes[y0:y1] < 128)
        present = _inside(tissue, 1.5) * (1 - planes.holes[y0:y1] / np.float32(255))
        stroma, across = layout.stroma(y0, y1)
        fibrous = (stroma * 40).clip(0, 1) * (lesion < 0)
        fat = (layout.fat(y0, y1) * 8).clip(0, 1) * (lesion < 0)
        fibre = fibres[across.astype(np.intp) % len(fibres)]
        ground = 0.40 + 0.13 * _grain(shape, y0, y1, texture) + fibrous * (0.36 + 0.14 * fibre) + 0.25 * fat
        pink = ground.clip(0.06, None) + planes.cytoplasm[y0:y1] * np.float32(PEAK / 255)
        blue = planes.nuclei[y0:y1] * np.float32(PEAK / 255)
        blue = (blue + 0.05) * (1 + 0.07 * stain[0](y0, y1)) * present
        pink = (pink - 0.3 * blue).clip(0, None) * (1 + 0.09 * stain[1](y0, y1)) * present
        noise = 1.6 * _grain(shape, y0, y1, sensor)
        for channel in range(3):
            light = GLASS * np.exp(-(blue * haematoxylin[channel] + pink * eosin[channel])) + noise
            image[y0:y1, :, channel] = (light + 0.5).clip(0, 255)
    return image, mask


def write_synthetic_slide(
    path: str | os.PathLike[str], *, size: tuple[int, int] = (4096, 4096), seed: int = 0, lesion: bool = True, mpp: float = 0.5
) -> Mask:
    """Write a synthetic H&E slide as a tiled pyramidal file laid out like Aperio's SVS.

    The lesion covers 3 to 6 % of the tissue.

    Parameters
    ----------
    path
        File to write, ending in ``.svs``.
    size
        Height and width of level 0 in pixels.
    seed
        Decides everything about the picture.
    lesion
        Whether there is one.
    mpp
        Micrometres per pixel written into the file; cells are drawn for 0.5.

    Returns
    -------
    ndarray
        bool (height, width), True where level 0 shows lesion.
    """
    share = float(np.random.default_rng([seed, 1]).uniform(0.03, 0.06)) if lesion else 0.0
    image, mask = synthetic_region(*size, seed=seed, lesion_share=share)
    height, width = size
    text = f"Aperio Image Library v11.2.1 \r\n{width}x{height} [0,0 {width}x{height}] (256x256) JPEG/RGB Q=85|AppMag = 20|MPP = {mpp}"
    levels = [image]
    while max(levels[-1].shape[:2]) > 1024:
        levels.append(_halve(levels[-1]))
    with tifffile.TiffWriter(path, bigtiff=image.nbytes > 2**32) as writer:
        for number, level in enumerate(levels[::2]):  # Aperio's levels are 4x apart
            writer.write(
                level,
                photometric="rgb",
                compression="jpeg",
                compressionargs={"level": 85},
                tile=(256, 256),
                description=text,
                metadata=None,
            )
            if number == 0:  # Aperio's page 1 is the thumbnail
                writer.write(levels[-1], photometric="rgb", compression="jpeg", description=text, metadata=None)
    return mask


def _halve(image: Bytes) -> Bytes:
    """2 x 2 means, rounded half up; an odd last row or column is dropped, as Aperio does."""
    even = image[: image.shape[0] // 2 * 2, : image.shape[1] // 2 * 2].astype(np.uint16)
    return ((even[::2, ::2] + even[1::2, ::2] + even[::2, 1::2] + even[1::2, 1::2] + 2) >> 2).astype(np.uint8)
