"""How well a map finds an area that is known: pointing game, energy, average precision. Pure."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import sparse

from streamview.errors import AnnotationError
from streamview.geometry import Region
from streamview.labels.annotations import rasterise, read_annotations
from streamview.results import SaliencyMap
from streamview.slides import Slide

__all__ = ["Area", "Localisation", "average_precision", "localise", "localise_map", "read_area", "share_inside"]

_MOST = 2**24  # px of a map that are compared; of a larger one a coarser level is
_MASKED = 2**26  # px of a mask: of a larger region it is coarser
_SUFFIXES = (".geojson", ".geojson.gz", ".json", ".xml", ".png")


@dataclass(frozen=True, slots=True)
class Localisation:
    """Figures of one map.

    Parameters
    ----------
    pointing
        Whether the largest value lies on the area (pointing game, Zhang et al. 2016, https://arxiv.org/abs/1608.00507).
    energy
        Share (0..1) of the map's positive mass that lies on the area; NaN for a map without any.
    area
        Share (0..1) of the map's extent that is the area: the energy of a map that is the same everywhere.
    precision
        Average precision of the map's pixels, the area under the curve of precision and recall; `area` for a random map.
    """

    pointing: bool
    energy: float
    area: float
    precision: float

    @property
    def ratio(self) -> float:
        """Energy as a multiple of the area."""
        return self.energy / self.area


@dataclass(frozen=True, slots=True, eq=False)
class Area:
    """An annotated area of a slide.

    Parameters
    ----------
    mask
        bool (h, w).
    step, origin
        ``(y, x)`` in level-0 pixels; pixel ``(i, j)`` is centred at ``origin + (i, j) * step``, where level-0 pixel k has its centre at k.
    """

    mask: NDArray[np.bool_]
    step: tuple[float, float] = (1.0, 1.0)
    origin: tuple[float, float] = (0.0, 0.0)


def localise(
    values: NDArray[np.floating], inside: NDArray[np.bool_] | NDArray[np.floating], counts: NDArray[np.floating] | None = None
) -> Localisation:
    """Compare a map with an area.

    Parameters
    ----------
    values
        (h, w); negative values count as 0, and of several largest values the first counts.
    inside
        (h, w): which pixels lie on the area, or how much of each.
    counts
        (h, w): how much each pixel is in all; None: 1.

    Raises
    ------
    ValueError
        If the shapes differ, or the area is nowhere or everywhere.
    """
    weights = np.ones(values.shape) if counts is None else counts
    total = weights.sum(dtype=np.float64)
    area = float(inside.sum(dtype=np.float64) / total) if total > 0 else 0.0
    if values.shape != inside.shape or not 0 < area < 1:
        raise ValueError(f"map {values.shape} and area {inside.shape} on {area:.3g} of it: expected equal shapes, and a part of it")
    positive = np.maximum(values, 0)
    mass = np.sum(positive * weights, dtype=np.float64)
    energy = float(np.sum(positive * inside, dtype=np.float64) / mass) if mass > 0 else float("nan")
    peak = int(np.where(weights > 0, positive, -1).argmax())
    pointing = bool(2 * inside.flat[peak] >= weights.flat[peak]) if mass > 0 else False
    return Localisation(pointing, energy, area, average_precision(positive, inside, weights))


def average_precision(
    scores: NDArray[np.floating], inside: NDArray[np.bool_] | NDArray[np.floating], counts: NDArray[np.floating] | None = None
) -> float:
    """Return ``sum_n (R_n - R_(n-1)) P_n`` over thresholds n, with recall R and precision P of the scores that reach them; ties are one."""
    values, group = np.unique(scores, return_inverse=True)
    every = np.ones(scores.size) if counts is None else counts.ravel()
    hits, totals = (np.bincount(group.ravel(), weights.astype(float), len(values))[::-1] for weights in (inside.ravel(), every))
    reached = np.cumsum(totals)
    return float((hits / hits.sum() * np.cumsum(hits) / np.where(reached > 0, reached, 1)).sum())


def localise_map(saliency_map: SaliencyMap, area: Area) -> Localisation:
    """Compare a map with an area, every pixel of whose mask counts for the map pixel nearest to it.

    Of a map of more than 2^24 px a coarser level is compared, where it has one.

    Parameters
    ----------
    saliency_map
        Raw values.
    area
        Within the map's region, or of the whole slide.

    Raises
    ------
    ValueError
        If the area is nowhere or everywhere.
    """
    level = next((n for n, plane in enumerate(saliency_map.levels) if plane.size <= _MOST), len(saliency_map.levels) - 1)
    step, origin = saliency_map.placed(level)
    placed = replace(saliency_map, values=saliency_map.levels[level], step=step, origin=origin, coarser=())
    inside, counts = _nearest_counts(placed, area)
    return localise(np.nan_to_num(np.asarray(placed.values, np.float32)), inside, counts)


def share_inside(saliency_map: SaliencyMap, mask: NDArray[np.bool_]) -> float:
    """Return the energy of a map: the share of its positive mass on an area; every level-0 pixel has the value of the nearest map pixel.

    Parameters
    ----------
    saliency_map
        Map of the whole slide.
    mask
        bool (height, width) of level 0.

    Returns
    -------
    float
        0..1; NaN for a map without a positive value.
    """
    mass = np.maximum(np.asarray(saliency_map.values, np.float32), 0)
    inside, counts = _nearest_counts(saliency_map, Area(mask))
    total = np.sum(np.multiply(counts, mass, out=counts), dtype=np.float64)
    return float(np.sum(np.multiply(inside, mass, out=inside), dtype=np.float64) / total) if total > 0 else float("nan")


def read_area(path: str | os.PathLike[str], slide: Slide, region: Region, scale: tuple[float, float]) -> Area:
    """Read the annotated area of a region.

    Parameters
    ----------
    path
        QuPath's GeoJSON, ASAP's XML, or a PNG of the whole slide that is not 0 on the area; or a folder with such a file, named as the
        slide.
    slide
        The annotated slide.
    region
        Level-0 pixels.
    scale
        ``(y, x)`` level-0 pixels per px of the mask, finer than which it is not drawn.

    Raises
    ------
    AnnotationError
        When there is no such file, it cannot be read, or is of another slide.
    """
    file = _file_for(Path(path), slide.name)
    if file.suffix.lower() == ".png":
        return _read_mask(file, slide, region)
    while region.height / scale[0] * (region.width / scale[1]) > _MASKED:
        scale = 2 * scale[0], 2 * scale[1]
    mask = rasterise(read_annotations(file, slide.shape), region, scale)
    return Area(mask, scale, (region.y + (scale[0] - 1) / 2, region.x + (scale[1] - 1) / 2))


def _file_for(path: Path, name: str) -> Path:
    if not path.is_dir():
        return path
    stems = dict.fromkeys((name, Path(name).stem, name.partition(".")[0]))
    for file in (path / f"{stem}{suffix}" for stem in stems for suffix in _SUFFIXES):
        if file.is_file():
            return file
    raise AnnotationError(f"{path}: has no annotations of {name}; expected {Path(name).stem} with one of {', '.join(_SUFFIXES)}")


def _read_mask(file: Path, slide: Slide, region: Region) -> Area:
    """The part of a mask of the whole slide that covers a region."""
    (height, width), most = slide.shape, Image.MAX_IMAGE_PIXELS
    try:
        with Image.open(file) as image:
            step = height / image.height, width / image.width
            if min(step) < 1 or abs(step[0] / step[1] - 1) > 0.02 or image.height * image.width > _MASKED * 4:
                raise AnnotationError(
                    f"{file}: {image.width} x {image.height} px; expected a picture of the whole slide, which is {width} x {height} px"
                )
            rows, columns = (
                (int(start / along), max(int(np.ceil(stop / along)), int(start / along) + 1))
                for start, stop, along in zip((region.y, region.x), (region.y_stop, region.x_stop), step, strict=True)
            )
            part = image.crop((columns[0], rows[0], columns[1], rows[1]))
            mask = np.asarray(part.convert("RGB") if part.mode == "P" else part) != 0
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = f"more than {most} px" if isinstance(error, Image.DecompressionBombError) else error
        raise AnnotationError(f"{file}: cannot be read as a mask ({reason}); expected a PNG of the whole slide") from None
    if mask.ndim == 3:
        mask = mask[..., :3].any(-1)
    first = rows[0] * step[0] + (step[0] - 1) / 2, columns[0] * step[1] + (step[1] - 1) / 2
    return Area(mask, step, first)


def _nearest_counts(saliency_map: SaliencyMap, area: Area) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """How many pixels of the mask, and how many in all, are nearest to each map pixel, float32 (h, w)."""
    rows, columns = (_nearest(saliency_map, area, axis) for axis in (0, 1))
    inside = (rows @ (columns @ area.mask.T.astype(np.float32)).T).astype(np.float32, copy=False)
    return inside, np.multiply.outer(rows.sum(1), columns.sum(1)).astype(np.float32, copy=False)


def _nearest(saliency_map: SaliencyMap, area: Area, axis: int) -> sparse.csr_array:
    """Matrix (map pixels, mask pixels) along one axis: 1 where the map pixel is the nearest."""
    count, size = saliency_map.values.shape[axis], area.mask.shape[axis]
    centres = area.origin[axis] + area.step[axis] * np.arange(size)
    nearest = ((centres - saliency_map.origin[axis]) / saliency_map.step[axis]).round().astype(np.intp).clip(0, count - 1)
    return sparse.csr_array((np.ones(size, np.float32), (nearest, np.arange(size))), shape=(count, size))
