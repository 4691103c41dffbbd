"""Maps of several regions of a slide as one: each in its place, and what was not computed absent."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from streamview.geometry import Region
from streamview.results.maps import Method, Plane, Saliency, SaliencyMap, halve
from streamview.results.prediction import Prediction

__all__ = ["stitch"]


def stitch(parts: Sequence[Saliency], prediction: Prediction) -> Saliency:
    """Put maps of several regions of a slide together.

    Values are those of the parts, read lazily, NaN where there is none. Where regions overlap, each pixel is that of the region to whose
    centre it is nearest, relative to the region's size. Parts whose grids are not in step are moved by up to half a pixel of the map.

    Parameters
    ----------
    parts
        Of one slide, network and target; two or more.
    prediction
        The slide's answer; its region becomes the smallest that holds those of the parts.

    Returns
    -------
    Saliency
        With the maps that all parts have.
    """
    ordered = sorted(parts, key=lambda part: part.prediction.region)
    regions = [part.prediction.region for part in ordered]
    top, left = min(region.y for region in regions), min(region.x for region in regions)
    bottom, right = max(region.y_stop for region in regions), max(region.x_stop for region in regions)
    box = Region(top, left, bottom - top, right - left)
    keys = "\n".join(part.prediction.identity.key for part in ordered)
    identity = replace(ordered[0].prediction.identity, region=box, parts_sha256=hashlib.sha256(keys.encode()).hexdigest())
    methods = [method for method in ordered[0].maps if all(method in part.maps for part in ordered)]
    maps = {method: _stitched([part.maps[method] for part in ordered], method) for method in methods}
    fine = next((one for method, one in maps.items() if method != "evidence"), None)
    step = ordered[0].grid_step
    shape = (round(box.height / step[0]), round(box.width / step[1])) if fine is None else fine.values.shape  # None: by Grad-CAM
    prediction = replace(prediction, region=box, shape=shape, identity=identity)
    return Saliency(prediction, ordered[0].target, ordered[0].std, ordered[0].glass, maps)


def _stitched(parts: Sequence[SaliencyMap], method: Method) -> SaliencyMap:
    step, origin = parts[0].step, (min(part.origin[0] for part in parts), min(part.origin[1] for part in parts))
    corners = [
        (round((part.origin[0] - origin[0]) / step[0]), round((part.origin[1] - origin[1]) / step[1])) for part in parts
    ]  # px of the finest level
    count = max(len(part.levels) for part in parts)
    levels = []
    for level in range(count):
        tiles = []
        for part, (y, x) in zip(parts, corners, strict=True):
            values = part.levels[min(level, len(part.levels) - 1)]
            tiles.append(_Tile(values, max(level - len(part.levels) + 1, 0), y >> level, x >> level))
        levels.append(Plane(_Mosaic(tuple(tiles))))
    while max(levels[-1].shape) > 512:
        level = len(levels)
        tiles = [
            _Tile(part.levels[-1], level - len(part.levels) + 1, y >> level, x >> level)
            for part, (y, x) in zip(parts, corners, strict=True)
        ]
        levels.append(Plane(_Mosaic(tuple(tiles))))
    return SaliencyMap(method, levels[0], step, origin, tuple(levels[1:]), parts[0].explained_by)


@dataclass(frozen=True, slots=True)
class _Tile:
    """One part of a mosaic: its values, how often they are still to be halved, and the place of its first pixel."""

    values: Plane
    halvings: int
    y: int
    x: int

    @property
    def shape(self) -> tuple[int, int]:
        height, width = self.values.shape
        for _ in range(self.halvings):
            height, width = -(-height // 2), -(-width // 2)
        return height, width

    def read(self, rows: slice, columns: slice) -> NDArray[np.float32]:
        factor = 2**self.halvings
        values = np.asarray(
            self.values[rows.start * factor : rows.stop * factor, columns.start * factor : columns.stop * factor], np.float32
        )
        for _ in range(self.halvings):
            values = halve(values)
        return values


class _Mosaic:
    """A source of a `Plane`: tiles in their places, NaN between them."""

    __slots__ = ("_tiles", "shape")

    def __init__(self, tiles: tuple[_Tile, ...]) -> None:
        self._tiles = tiles
        self.shape: tuple[int, ...] = (
            max(tile.y + tile.shape[0] for tile in tiles),
            max(tile.x + tile.shape[1] for tile in tiles),
        )

    def __getitem__(self, key: tuple[slice, slice]) -> NDArray[np.float32]:
        (top, bottom, _), (left, right, _) = (part.indices(size) for part, size in zip(key, self.shape, strict=True))
        out = np.full((max(bottom - top, 0), max(right - left, 0)), np.nan, np.float32)
        nearest = np.full(out.shape, np.inf, np.float32)
        for tile in self._tiles:
            height, width = tile.shape
            y0, y1 = max(top, tile.y), min(bottom, tile.y + height)
            x0, x1 = max(left, tile.x), min(right, tile.x + width)
            if y0 >= y1 or x0 >= x1:
                continue
            values = tile.read(slice(y0 - tile.y, y1 - tile.y), slice(x0 - tile.x, x1 - tile.x))
            down = np.abs((np.arange(y0, y1) + 0.5 - tile.y) / height - 0.5)
            across = np.abs((np.arange(x0, x1) + 0.5 - tile.x) / width - 0.5)
            distance = np.maximum.outer(down, across).astype(np.float32)
            place = (slice(y0 - top, y1 - top), slice(x0 - left, x1 - left))
            closer = distance < nearest[place]
            out[place][closer] = values[closer]
            nearest[place][closer] = distance[closer]
        return out
