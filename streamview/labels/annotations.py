"""Read annotations of a slide: QuPath's GeoJSON and the XML of ASAP, used by the CAMELYON challenges.

Both use level-0 pixels with the origin at the slide's top left corner: level-0 pixel k covers ``k`` to ``k + 1``. GeoJSON follows RFC
7946 as far as QuPath does (https://qupath.readthedocs.io/en/stable/docs/advanced/exporting_annotations.html), ASAP's format is that of
https://camelyon17.grand-challenge.org/Data/. Points and lines have no area and are skipped.
"""

from __future__ import annotations

import gzip
import json
import math
import os
import warnings
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn
from xml.parsers import expat

import numpy as np
from numpy.typing import NDArray

from streamview.errors import AnnotationError, AnnotationWarning
from streamview.files.kinds import describe_file
from streamview.geometry import Region

__all__ = ["Annotation", "Polygon", "bounds", "rasterise", "read_annotations"]

_MAX_BYTES = 2**28  # of the text, unpacked; the largest file of the challenges has 9 MB
_MAX_POINTS = 2**23
_FURTHEST = 2.0**24  # px: four times the largest side of a slide
_EXCLUDING = {"exclusion", "_2", "normal"}  # groups of CAMELYON16 and CAMELYON17 that are subtracted from the surrounding lesions
_FLAT = {"dot", "pointset", "measurement"}
_LISTED = 10  # skipped objects listed in a warning
_CROSSINGS = 2**22  # crossings of edges and rows processed at a time
_EXPECTED = "expected QuPath's GeoJSON (plain or .gz) or ASAP's XML"

Points = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Polygon:
    """An area with holes.

    Parameters
    ----------
    exterior
        float64 (n, 2): the corners ``(y, x)`` in level-0 pixels, the first not repeated.
    holes
        Rings of the same form.
    """

    exterior: Points
    holes: tuple[Points, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Annotation:
    """One drawn object.

    Parameters
    ----------
    name
        Its name; empty if it has none.
    kind
        Its class: QuPath's classification, ASAP's group; empty if it has none.
    polygons
        Its parts.
    excludes
        Whether its area is subtracted from the other annotations, as for the groups ``Exclusion``, ``_2`` and ``normal`` of CAMELYON.
    """

    name: str
    kind: str
    polygons: tuple[Polygon, ...]
    excludes: bool = False


def read_annotations(path: str | os.PathLike[str], shape: tuple[int, int] | None = None) -> tuple[Annotation, ...]:
    """Read a file of annotations.

    Open rings are closed. Objects without area (an empty polygon, two points, a straight line, no geometry) are skipped, and an
    `AnnotationWarning` counts and numbers them; points and lines are skipped silently. A DOCTYPE, with which an XML file could expand
    without limit or refer to other files, is refused.

    Parameters
    ----------
    path
        GeoJSON (a Feature, a FeatureCollection, or a list of these; gzipped or not) or ASAP's XML, recognised by its content.
    shape
        ``(height, width)`` of the slide in level-0 pixels, to refuse annotations wholly outside it; those partly outside are accepted.

    Raises
    ------
    AnnotationError
        If the file is missing, too large, damaged, of another format, or drawn on another slide. The message numbers the object,
        from 1.
    """
    path = Path(path)
    data = _read(path)
    parts = _Parts()
    try:
        numbered = tuple(_asap(data, parts) if data.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<") else _geojson(data, parts))
    except (ValueError, OverflowError, RecursionError, expat.ExpatError) as error:
        reason = "too deeply nested" if isinstance(error, RecursionError) else str(error)
        raise AnnotationError(f"{path}: cannot be read as annotations ({reason}); {_EXPECTED}") from None
    if parts.empty:
        listed = ", ".join(parts.empty[:_LISTED]) + (f" and {len(parts.empty) - _LISTED} more" if len(parts.empty) > _LISTED else "")
        warnings.warn(f"{path}: {len(parts.empty)} left out, as they enclose no area: {listed}", AnnotationWarning, stacklevel=2)
    for number, annotation in numbered:
        if shape is None:
            break
        region = _extent(annotation.polygons)
        if region.y >= shape[0] or region.x >= shape[1] or region.y_stop <= 0 or region.x_stop <= 0:
            raise AnnotationError(
                f"{path}: {_called(number, annotation.name or annotation.kind)} at {region} (X,Y,WIDTH,HEIGHT) lies outside the slide, "
                f"which is {shape[1]} x {shape[0]} px; expected level-0 pixels of this slide"
            )
    return tuple(annotation for _, annotation in numbered)


def bounds(annotations: Iterable[Annotation], shape: tuple[int, int]) -> Region:
    """Return the smallest region of whole level-0 pixels with all annotations that do not exclude, clipped to a slide of this shape.

    Raises
    ------
    AnnotationError
        If there is no annotation, or none inside the slide.
    """
    polygons = [polygon for annotation in annotations if not annotation.excludes for polygon in annotation.polygons]
    if polygons:
        whole = _extent(polygons)
        y, x = max(whole.y, 0), max(whole.x, 0)
        height, width = min(whole.y_stop, shape[0]) - y, min(whole.x_stop, shape[1]) - x
        if height > 0 and width > 0:
            return Region(y, x, height, width)
    raise AnnotationError(f"no annotated area within {shape[1]} x {shape[0]} px: expected one polygon or more in level-0 pixels")


def rasterise(annotations: Iterable[Annotation], region: Region, scale: tuple[float, float] = (1.0, 1.0)) -> NDArray[np.bool_]:
    """Return which pixels of a grid have their centre inside an annotation.

    Outlines along pixel edges, as drawn by QuPath's brush, give exactly the enclosed pixels. Libraries
    either also fill the pixels on the outline (Pillow, OpenCV) or test every corner for every pixel (scikit-image).

    Parameters
    ----------
    annotations
        The annotations; self-intersecting polygons are filled by the even-odd rule.
    region
        In level-0 pixels; may exceed the slide.
    scale
        Level-0 pixels per pixel of the grid, ``(y, x)``, as `streamview.slides.sampling.Sampler.scale`.

    Returns
    -------
    numpy.ndarray
        bool, of the shape of a `Sampler` with this region and scale; pixel (i, j) has its centre at
        ``(region.y + (i + 0.5) * scale[0], region.x + (j + 0.5) * scale[1])``.
    """
    shape = max(1, round(region.height / scale[0])), max(1, round(region.width / scale[1]))
    included, excluded = np.zeros(shape, np.bool_), np.zeros(shape, np.bool_)
    for annotation in annotations:
        for polygon in annotation.polygons:
            _fill(excluded if annotation.excludes else included, polygon, (region.y, region.x), scale)
    return included & ~excluded


def _fill(mask: NDArray[np.bool_], polygon: Polygon, origin: tuple[int, int], scale: tuple[float, float]) -> None:
    """Set the pixels whose centre is inside: every edge toggles the pixels right of it in the rows whose centre line it crosses."""
    rings = [(ring - origin) / scale - 0.5 for ring in (polygon.exterior, *polygon.holes)]  # now pixel k has its centre at k
    first = [max(math.ceil(low), 0) for low in rings[0].min(0)]
    stop = [min(math.floor(high) + 1, side) for high, side in zip(rings[0].max(0), mask.shape, strict=True)]
    if first[0] >= stop[0] or first[1] >= stop[1]:
        return
    height, width = stop[0] - first[0], stop[1] - first[1]
    toggled = np.zeros((height, width + 1), np.bool_)
    start = np.concatenate(rings)
    end = np.concatenate([np.roll(ring, -1, 0) for ring in rings])
    upper, lower = (np.ceil(choose(start[:, 0], end[:, 0])).clip(first[0], stop[0]).astype(np.intp) for choose in (np.minimum, np.maximum))
    counts = lower - upper
    for piece in _pieces(counts):
        edges = np.repeat(np.arange(piece.start, piece.stop), counts[piece])
        rows = np.arange(len(edges)) - np.repeat(np.cumsum(counts[piece]) - counts[piece], counts[piece]) + upper[edges]
        (y0, x0), (y1, x1) = start[edges].T, end[edges].T
        columns = np.ceil(x0 + (rows - y0) / (y1 - y0) * (x1 - x0)).clip(first[1], stop[1]).astype(np.intp)
        np.logical_xor.at(toggled, (rows - first[0], columns - first[1]), True)
    inside = np.logical_xor.accumulate(toggled, axis=1)[:, :width]
    mask[first[0] : stop[0], first[1] : stop[1]] |= inside


def _pieces(counts: NDArray[np.intp]) -> Iterator[slice]:
    """Yield runs of edges with few enough crossings to be processed at once."""
    total = np.cumsum(counts)
    start = 0
    while start < len(counts):
        done = total[start - 1] if start else 0
        stop = max(int(np.searchsorted(total, done + _CROSSINGS, "right")), start + 1)
        yield slice(start, stop)
        start = stop


def _extent(polygons: Sequence[Polygon]) -> Region:
    low = np.floor(np.min([polygon.exterior.min(0) for polygon in polygons], axis=0)).astype(int)
    high = np.ceil(np.max([polygon.exterior.max(0) for polygon in polygons], axis=0)).astype(int)
    return Region(int(low[0]), int(low[1]), max(int(high[0] - low[0]), 1), max(int(high[1] - low[1]), 1))


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            if packed:
                with gzip.open(file) as unpacked:
                    data = unpacked.read(_MAX_BYTES + 1)
            else:
                data = file.read(_MAX_BYTES + 1)
    except (zlib.error, EOFError, gzip.BadGzipFile) as error:
        raise AnnotationError(f"{path}: damaged gzip data ({error}); export it again") from None
    except OSError as error:
        raise AnnotationError(f"{path}: cannot be read ({error.strerror or error}); {_EXPECTED}") from None
    if len(data) > _MAX_BYTES:
        raise AnnotationError(f"{path}: has more than {_MAX_BYTES >> 20} MiB of text; export only annotations, without detections")
    kind = describe_file(data[:512])
    if kind:
        raise AnnotationError(f"{path}: is {kind}; {_EXPECTED}")
    return bytes(data)


class _Parts:
    """Builds polygons from points, limits their number, and collects skipped objects.

    Attributes
    ----------
    empty
        Objects without area, in words.
    """

    def __init__(self) -> None:
        self.empty: list[str] = []
        self._left = _MAX_POINTS

    def count(self, points: int) -> None:
        """Reject files with too many points before they are converted."""
        self._left -= points
        if self._left < 0:
            raise ValueError(f"more than {_MAX_POINTS} points")

    def polygon(self, rings: Sequence[Sequence[tuple[float, float]]], where: str) -> Polygon | None:
        """Build a polygon from its rings of ``(y, x)``; without area return None and note it in `empty`."""
        outer, *holes = [self._ring(points, where) for points in rings] or [None]
        if outer is None or any(hole is None for hole in holes):
            self.empty.append(where if outer is None else f"{where} (a hole)")
        return None if outer is None else Polygon(outer, tuple(hole for hole in holes if hole is not None))

    def _ring(self, points: Sequence[tuple[float, float]], where: str) -> Points | None:
        """Corners ``(y, x)`` without the repeated first one; None if they enclose no area."""
        ring = np.asarray(points, np.float64).reshape(len(points), 2)
        if not (np.abs(ring) <= _FURTHEST).all():  # False for NaN too
            raise ValueError(f"{where}: a coordinate is not finite or beyond {_FURTHEST:.0f} px")
        if len(ring) > 1 and (ring[0] == ring[-1]).all():
            ring = ring[:-1]
        if len(ring) < 3:
            return None
        sides = ring[1:] - ring[0]
        longest = sides[np.abs(sides).max(1).argmax()]
        return ring if (sides[:, 0] * longest[1] != sides[:, 1] * longest[0]).any() else None


def _called(number: int, name: str) -> str:
    return f"object {number} ({name})" if name else f"object {number}"


def _geojson(data: bytes, parts: _Parts) -> Iterator[tuple[int, Annotation]]:
    # QuPath writes NaN in measurements, which are ignored
    document = json.loads(data)
    collections = document if isinstance(document, list) else [document]
    features: list[Any] = []
    for collection in collections:
        if isinstance(collection, dict) and collection.get("type") == "FeatureCollection":
            features += _list(collection.get("features"), "features of the FeatureCollection")
        else:
            features.append(collection)
    for number, feature in enumerate(features, 1):
        if not isinstance(feature, dict) or feature.get("type") != "Feature":
            kind = f"a GeoJSON object of type {feature.get('type')!r}" if isinstance(feature, dict) else f"a {type(feature).__name__}"
            raise ValueError(f"object {number}: found {kind} where a Feature belongs")
        properties = feature.get("properties")
        properties = properties if isinstance(properties, dict) else {}
        kind, name = _kind(properties.get("classification")), _text(properties.get("name"))
        where = _called(number, name or kind)
        before = len(parts.empty)
        polygons = tuple(_polygons(feature.get("geometry"), where, parts))
        empty = dict.fromkeys(parts.empty[before:])  # each object once
        parts.empty[before:] = [f"{part} (a part)" if polygons and part == where else part for part in empty]
        if polygons:
            yield number, Annotation(name, kind, polygons)


def _kind(classification: Any) -> str:
    """QuPath's class: a text, or an object with a name or names; other programs write a number or a list."""
    if isinstance(classification, dict):
        classification = classification.get("name") or classification.get("names")
    if isinstance(classification, list):
        return ": ".join(filter(None, map(_text, classification)))
    return _text(classification)


def _text(value: Any) -> str:
    return str(value) if isinstance(value, str | int | float) and value is not False else ""


def _list(value: Any, what: str) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"{what}: found {_shown(value)}, expected a list")
    return value


def _shown(value: Any) -> str:
    text = "nothing" if value is None else repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _polygons(geometry: Any, where: str, parts: _Parts) -> Iterator[Polygon]:
    if not geometry:
        parts.empty.append(where)
        return
    kind = geometry.get("type") if isinstance(geometry, dict) else None
    if kind == "GeometryCollection":
        inner = _list(geometry.get("geometries"), f"{where}: geometries")
        if not inner:
            parts.empty.append(where)
        for part in inner:
            yield from _polygons(part, where, parts)
    elif kind in ("Polygon", "MultiPolygon"):
        coordinates = _list(geometry.get("coordinates"), f"{where}: coordinates")
        if kind == "MultiPolygon" and not coordinates:
            parts.empty.append(where)
        for rings in [coordinates] if kind == "Polygon" else coordinates:
            polygon = parts.polygon([_points(ring, where, parts) for ring in _list(rings, f"{where}: a polygon")], where)
            if polygon is not None:
                yield polygon
    elif kind not in ("Point", "MultiPoint", "LineString", "MultiLineString"):
        raise ValueError(f"{where}: unknown geometry {_shown(geometry if kind is None else kind)}")


def _points(ring: Any, where: str, parts: _Parts) -> list[tuple[float, float]]:
    """Points ``(y, x)`` of a ring of ``[x, y]``; a third coordinate is ignored."""
    parts.count(len(_list(ring, f"{where}: a ring")))
    for point in ring:
        if not (isinstance(point, list) and len(point) >= 2 and all(isinstance(value, int | float) for value in point[:2])):
            raise ValueError(f"{where}: found {_shown(point)} where a point [x, y] belongs")
    return [(point[1], point[0]) for point in ring]


class _Asap:
    """Handler of the elements of ASAP's XML."""

    def __init__(self, parts: _Parts) -> None:
        self.annotations: list[tuple[int, Annotation]] = []
        self._parts = parts
        self._root: str | None = None
        self._open: dict[str, str] | None = None
        self._points: list[tuple[float, float, float]] = []
        self._number = 0

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        if self._root is None:
            self._root = tag
            if tag != "ASAP_Annotations":
                raise ValueError(f"the root of the XML is {tag[:40]!r}, not ASAP_Annotations")
        if tag == "Annotation":
            self._open, self._points = attributes, []
            self._number += 1
        elif tag == "Coordinate" and self._open is not None:
            self._parts.count(1)
            order = attributes.get("Order", str(len(self._points)))
            try:
                x, y = (float(attributes[axis].replace(",", ".")) for axis in "XY")
                self._points.append((float(order), y, x))
            except (ValueError, KeyError):
                where = _called(self._number, self._open.get("Name", ""))
                raise ValueError(f"{where}: found {_shown(attributes)} where a point with Order, X and Y belongs") from None

    def end(self, tag: str) -> None:
        if tag != "Annotation" or self._open is None:
            return
        name, kind, drawn = (self._open.get(key, "") for key in ("Name", "PartOfGroup", "Type"))
        self._open = None
        if drawn.lower() in _FLAT:
            return
        points = [(y, x) for _, y, x in sorted(self._points, key=lambda point: point[0])]
        polygon = self._parts.polygon([points], _called(self._number, name))
        kind = "" if kind == "None" else kind
        if polygon is not None:
            self.annotations.append((self._number, Annotation(name, kind, (polygon,), kind.lower() in _EXCLUDING)))


def _asap(data: bytes, parts: _Parts) -> list[tuple[int, Annotation]]:
    handler, parser = _Asap(parts), expat.ParserCreate()
    parser.StartElementHandler, parser.EndElementHandler = handler.start, handler.end
    parser.StartDoctypeDeclHandler = _refuse_doctype
    parser.Parse(data, True)
    return handler.annotations


def _refuse_doctype(*_: object) -> NoReturn:
    raise ValueError("it has a DOCTYPE, which annotations do not need")
