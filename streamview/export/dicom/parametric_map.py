"""Saliency maps as Parametric Maps (PS3.3, A.75): tiled, a pyramid of instances in one series, in the slide's frame of reference."""

from __future__ import annotations

import copy
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from streamview.errors import StreamviewError
from streamview.export.dicom.provenance import date, description, instance, make_uid, short
from streamview.export.dicom.source import Source, as_stated
from streamview.files import atomic
from streamview.results import Method, Plane, Saliency
from streamview.results.maps import SaliencyMap, halve

if TYPE_CHECKING:
    from pydicom.dataset import Dataset
    from pydicom.sr.coding import Code

__all__ = ["Storage", "Values", "quantity", "write_parametric_maps"]

Values = Literal["float32", "uint16"]
_TILE = 512
_MOST_BYTES = 2**32 - 2  # the length of an element is even and has 32 bits
_MOST = 65535
_QUANTITIES: Mapping[Method, str] = {
    "absolute": "Saliency",
    "signed": "Saliency",
    "evidence": "ClassActivation",
    "patches": "Probability",
}


@dataclass(frozen=True, slots=True)
class Storage:
    """How maps are stored.

    Parameters
    ----------
    values
        ``"float32"``: raw, in Float Pixel Data. ``"uint16"``: the map's range in 65535 steps, which Real World Value Mapping converts back,
        for readers without Float Pixel Data.
    levels
        The levels to write, 0 the finest; None: all. One beyond a map's coarsest is that.

    Raises
    ------
    StreamviewError
        If no level or a negative one is chosen.
    """

    values: Values = "float32"
    levels: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.levels is not None and min(self.levels, default=-1) < 0:
            raise StreamviewError(f"levels {', '.join(map(str, self.levels)) or '(none)'}: expected one or more, 0 the finest")


def quantity(method: Method) -> Code:
    """Return the code of DICOM for what a map's values are."""
    from pydicom.sr.codedict import codes

    code: Code = getattr(codes.DCM, _QUANTITIES[method])
    return code


def write_parametric_maps(
    saliency: Saliency,
    method: Method,
    source: Source,
    folder: Path,
    created: datetime,
    storage: Storage = Storage(),
) -> list[Dataset]:
    """Write one map, as ``<method>-<level>.dcm``: TILED_FULL in tiles of 512 px, one instance a level, in one series.

    The map's levels are halves, down to 512 px a side; positions and pixel size are the map's own, so that a map that begins elsewhere, or
    of another mpp, lies where it was computed. What was not computed is NaN; in uint16 it is 0, which no real-world value is mapped to.

    Levels that are stored are read in strips: memory is two strips of 512 rows, 32 MiB at a width of 8192 px, whatever the height. Of a map
    in memory, of which no coarser levels are stored, these take a third of the map more.

    Parameters
    ----------
    saliency
        The maps.
    method
        The map.
    source
        The slide that it explains.
    folder
        An existing folder.
    created
        UTC, see `streamview.export.dicom.provenance.instance`.
    storage
        Type of the values, and levels.

    Returns
    -------
    list of Dataset
        The headers, finest level first.

    Raises
    ------
    StreamviewError
        If a level is larger than DICOM stores, the maps are of another slide, or the disk is full.
    """
    source.check(saliency)
    saliency_map = saliency.maps[method]
    pyramid = _pyramid(saliency_map)
    chosen = sorted({min(level, len(pyramid) - 1) for level in (range(len(pyramid)) if storage.levels is None else storage.levels)})
    dtype = np.dtype("<f4" if storage.values == "float32" else "<u2")
    for level in chosen:
        height, width = pyramid[level].shape
        if -(-height // _TILE) * -(-width // _TILE) * _TILE**2 * dtype.itemsize > _MOST_BYTES:
            raise StreamviewError(
                f"{method}: level {level}, {width} x {height} px, is larger than the 4 GB of pixels that DICOM stores;"
                f" choose coarser ones, {level + 1} to {len(pyramid) - 1}"
            )
    extent = _extent(pyramid[0])
    headers = []
    for number, level in enumerate(chosen, 1):
        parts = (source.header.SOPInstanceUID, saliency.prediction.identity.key, str(saliency.target), method, storage.values, chosen)
        common = instance(method, number, 811, created, *parts)
        header = _header(saliency, saliency_map, level, pyramid, source, extent, common, storage.values)
        date(header, created)
        if len(chosen) > 1:
            header.PyramidUID = make_uid("pyramid", header.SeriesInstanceUID)
        path = folder / f"{method}-{level}.dcm"
        with atomic.disk_errors(path):
            _write(path, header, pyramid[level], dtype, extent)
        headers.append(header)
    return headers


def _pyramid(saliency_map: SaliencyMap) -> list[Plane]:
    """The stored levels, and coarser ones until a tile holds the map."""
    levels = list(saliency_map.levels)
    while max(levels[-1].shape) > _TILE:
        levels.append(Plane(halve(np.asarray(levels[-1]))))
    return levels


def _extent(plane: Plane) -> tuple[float, float]:
    """Smallest and largest value; (0, 1) where none was computed, and never equal."""
    low, high = np.inf, -np.inf
    for _, strip in plane.strips(_TILE):
        known = strip[np.isfinite(strip)]
        low, high = min(low, float(known.min(initial=np.inf))), max(high, float(known.max(initial=-np.inf)))
    if low > high:
        return 0.0, 1.0
    return (low, high) if low < high else (low, low + 1.0)


def _header(
    saliency: Saliency,
    saliency_map: SaliencyMap,
    level: int,
    pyramid: list[Plane],
    source: Source,
    extent: tuple[float, float],
    common: dict[str, Any],
    values: Values,
) -> Dataset:
    """The instance without its pixels.

    highdicom makes it of one empty tile, for a slide of that size: of a whole map it would hold three copies. The size is then set to the
    map's.
    """
    import highdicom as hd
    from pydicom.sr.codedict import codes

    (height, width), (step, origin) = pyramid[level].shape, saliency_map.placed(level)
    rows, columns = min(_TILE, height), min(_TILE, width)
    low, high = extent
    whole = values == "uint16"
    mapping = hd.pm.RealWorldValueMapping(
        lut_label=saliency_map.method,
        lut_explanation=short(f"{saliency_map.method} of {saliency.target}"),
        unit=codes.UCUM.NoUnits,
        value_range=(1, _MOST) if whole else (low, high),
        slope=(high - low) / (_MOST - 1) if whole else 1.0,
        intercept=low - (high - low) / (_MOST - 1) if whole else 0.0,
        quantity_definition=quantity(saliency_map.method),
    )
    bound = _typical(pyramid[-1])
    window = (-bound, bound) if low < 0 else (0.0, bound)
    slope = (_MOST - 1) / (high - low)
    first, last = ((edge - low) * slope + 1 if whole else edge for edge in window)
    measures = source.header.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    with as_stated():
        tile = copy.deepcopy(source.header)
        tile.TotalPixelMatrixRows, tile.TotalPixelMatrixColumns = rows, columns
        header = hd.pm.ParametricMap(
            source_images=[tile],
            pixel_array=np.zeros((rows, columns), np.uint16 if whole else np.float32),
            contains_recognizable_visual_features=False,
            real_world_value_mappings=[mapping],
            voi_lut_transformations=[hd.VOILUTTransformation((first + last) / 2, last - first, voi_lut_function="LINEAR_EXACT")],
            content_description=description(f"{saliency_map.method} of {saliency.target}", saliency.prediction),
            pixel_measures=hd.PixelMeasuresSequence(
                pixel_spacing=(step[0] * source.spacing[0], step[1] * source.spacing[1]),
                slice_thickness=float(measures.get("SliceThickness") or 0) or None,
            ),
            plane_positions=[
                hd.PlanePositionSequence(
                    hd.CoordinateSystemNames.SLIDE,
                    image_position=source.positions(np.array([origin]))[0].tolist(),
                    pixel_matrix_position=(1, 1),
                )
            ],
            dimension_organization_type="TILED_FULL",
            tile_pixel_array=True,
            tile_size=(rows, columns),
            **common,
        )
    header.TotalPixelMatrixRows, header.TotalPixelMatrixColumns = height, width
    header.NumberOfFrames = -(-height // rows) * -(-width // columns)
    del header["PixelData" if whole else "FloatPixelData"]
    return header


def _typical(plane: Plane) -> float:
    """The end of a window to look at a map: the 99th percentile of its sizes, on the coarsest level."""
    sizes = np.abs(np.asarray(plane))
    sizes = sizes[np.isfinite(sizes)]
    return float(np.percentile(sizes, 99)) if sizes.any() else 1.0


def _write(path: Path, header: Dataset, plane: Plane, dtype: np.dtype[np.generic], extent: tuple[float, float]) -> None:
    """Write the header, then the pixels strip by strip: theirs is the last element of the file."""
    from pydicom import dcmwrite

    tag, kind = (0x0008, b"OF") if dtype.kind == "f" else (0x0010, b"OW")
    length = header.NumberOfFrames * header.Rows * header.Columns * dtype.itemsize
    with path.open("wb") as file:
        with as_stated():
            dcmwrite(file, header, enforce_file_format=True)
        file.write(struct.pack("<HH2sHI", 0x7FE0, tag, kind, 0, length + length % 2))
        for tile in _tiles(plane, (header.Rows, header.Columns)):
            file.write((tile if dtype.kind == "f" else _steps(tile, extent)).astype(dtype).tobytes())


def _tiles(plane: Plane, size: tuple[int, int]) -> Iterator[NDArray[np.float32]]:
    """Whole tiles, row by row, padded with zeros beyond the map."""
    rows, columns = size
    for _, strip in plane.strips(rows):
        for x in range(0, plane.shape[1], columns):
            tile = strip[:, x : x + columns]
            yield np.pad(tile, ((0, rows - tile.shape[0]), (0, columns - tile.shape[1])))


def _steps(tile: NDArray[np.float32], extent: tuple[float, float]) -> NDArray[np.float64]:
    low, high = extent
    known = np.isfinite(tile)
    steps = np.rint((np.where(known, tile, low).astype(np.float64).clip(low, high) - low) * ((_MOST - 1) / (high - low))) + 1
    return np.where(known, steps, 0.0)
