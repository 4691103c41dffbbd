"""Annotations of a slide: QuPath's GeoJSON and the XML of ASAP, in which the CAMELYON challenges give theirs.

Both state level-0 pixels with the origin at the slide's top left corner: level-0 pixel k covers ``k`` to ``k + 1``. GeoJSON follows RFC
7946 as far as QuPath does (https://qupath.readthedocs.io/en/stable/docs/advanced/exporting_annotations.html), ASAP's form is that of
https://camelyon17.grand-challenge.org/Data/. Points and lines have no area and are left out.
"""

from __future__ import annotations

import gzip
import json
import math
import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn
from xml.parsers import expat

import numpy as np
from numpy.typing import NDArray

from streamview.errors import AnnotationError
from streamview.geometry import Region

__all__ = ["Annotation", "Polygon", "bounds", "rasterise", "read_annotations"]

_MAX_BYTES = 2**28  # of the text, unpacked; the largest file of the challenges has 9 MB
_MAX_POINTS = 2**23
_FURTHEST = 2.0**24  # px: four times the largest side of a slide
_EXCLUDING = {"exclusion", "_2", "normal"}  # the groups of CAMELYON16 and CAMELYON17 that take tissue out of the lesions around it
_FLAT = {"dot", "pointset", "measurement"}
_CROSSINGS = 2**22  # of edges and rows looked at together
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
        As given by who drew it; empty when there is none.
    kind
        Its class: QuPath's classification, ASAP's group; empty when there is none.
    polygons
        Its parts.
    excludes
        Whether it takes its area out of the other annotations, as the groups ``Exclusion``, ``_2`` and ``normal`` of CAMELYON do.
    """

    name: str
    kind: str
    polygons: tuple[Polygon, ...]
    excludes: bool = False


def read_annotations(path: str | os.PathLike[str], shape: tuple[int, int] | None = None) -> tuple[Annotation, ...]:
    """Read a file of annotations.

    Rings that are not closed are closed. A DOCTYPE, with which an XML file could grow without bound or name other files, is refused.

    Parameters
    ----------
    path
        GeoJSON (a Feature, a FeatureCollection, or a list of these; gzipped or not) or ASAP's XML, known by its content.
    shape
        ``(height, width)`` of the slide in level-0 pixels, to refuse annotations that lie wholly outside; those partly outside pass.

    Raises
    ------
    AnnotationError
        When the file is missing, too large, damaged, of another form, or drawn on another slide.
    """
    path = Path(path)
    data = _read(path)
    try:
        found = tuple(_asap(data) if data.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<") else _geojson(data))
    except (ValueError, TypeError, LookupError, OverflowError, RecursionError, AttributeError, expat.ExpatError) as error:
        said = "too deeply nested" if isinstance(error, RecursionError) else str(error)
        raise AnnotationError(f"{path}: cannot be read as annotations ({said}); {_EXPECTED}") from None
    if shape is not None:
        for annotation in found:
            region = _extent(annotation.polygons)
            if region.y >= shape[0] or region.x >= shape[1] or region.y_stop <= 0 or region.x_stop <= 0:
                what = annotation.name or annotation.kind or "an annotation"
                raise AnnotationError(
                    f"{path}: {what} at {region} (X,Y,WIDTH,HEIGHT) lies outside the slide, "
                    f"which is {shape[1]} x {shape[0]} px; expected level-0 pixels of this slide"
                )
    return found


def bounds(annotations: Iterable[Annotation], shape: tuple[int, int]) -> Region:
    """Return the smallest region of whole level-0 pixels with all annotations (but those that exclude), cut to a slide of this shape.

    Raises
    ------
    AnnotationError
        When there is no annotation, or none inside the slide.
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

    Corners on the edges of pixels, as QuPath's brush and the export of hotspots draw them, give exactly the pixels that they enclose.
    Libraries either paint the pixels on the outline too (Pillow, OpenCV) or look at every corner for every pixel (scikit-image).

    Parameters
    ----------
    annotations
        What to draw; a polygon that crosses itself is filled by the even-odd rule.
    region
        In level-0 pixels; may reach over the slide.
    scale
        Level-0 pixels per pixel of the grid, ``(y, x)``, as `streamview.slides.sampling.Sampler.scale`.

    Returns
    -------
    numpy.ndarray
        bool of the shape that a `Sampler` of this region and scale has; pixel (i, j) has its centre at
        ``(region.y + (i + 0.5) * scale[0], region.x + (j + 0.5) * scale[1])``.
    """
    shape = max(1, round(region.height / scale[0])), max(1, round(region.width / scale[1]))
    drawn, taken = np.zeros(shape, np.bool_), np.zeros(shape, np.bool_)
    for annotation in annotations:
        for polygon in annotation.polygons:
            _fill(taken if annotation.excludes else drawn, polygon, (region.y, region.x), scale)
    return drawn & ~taken


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
    """Runs of edges that cross few enough rows to be worked on at once."""
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
        raise AnnotationError(f"{path}: has more than {_MAX_BYTES >> 20} MiB of text; export annotations alone, without detections")
    return bytes(data)


def _ring(points: Sequence[tuple[float, float]], where: str) -> Points:
    """Corners ``(y, x)``, open: a repeated first one is dropped."""
    ring = np.asarray(points, np.float64)
    if ring.ndim != 2 or ring.shape[1] != 2:
        raise ValueError(f"{where}: expected a list of points of two numbers")
    if not (np.abs(ring) <= _FURTHEST).all():  # False for NaN too
        raise ValueError(f"{where}: a coordinate is not finite or beyond {_FURTHEST:.0f} px")
    if len(ring) > 1 and (ring[0] == ring[-1]).all():
        ring = ring[:-1]
    if len(ring) < 3:
        raise ValueError(f"{where}: {len(ring)} different points do not enclose an area")
    return ring


class _Counter:
    """Refuses files of absurdly many points before they are all converted."""

    def __init__(self) -> None:
        self._left = _MAX_POINTS

    def take(self, points: int) -> None:
        self._left -= points
        if self._left < 0:
            raise ValueError(f"more than {_MAX_POINTS} points")


def _geojson(data: bytes) -> Iterator[Annotation]:
    document = json.loads(data, parse_constant=_refuse_constant)
    count = _Counter()
    features = document if isinstance(document, list) else [document]
    for feature in features:
        inner = feature["features"] if feature["type"] == "FeatureCollection" else [feature]
        for one in inner:
            if one.get("type") != "Feature":
                raise ValueError(f"found a GeoJSON object of type {one.get('type')!r} where a Feature belongs")
            properties = one.get("properties") or {}
            classification = properties.get("classification") or {}
            if isinstance(classification, str):
                classification = {"name": classification}
            kind = classification.get("name") or ": ".join(classification.get("names") or ())
            name = properties.get("name") or ""
            polygons = tuple(_polygons(one.get("geometry"), str(name or kind or "a feature"), count))
            if polygons:
                yield Annotation(str(name), str(kind), polygons)


def _polygons(geometry: Any, where: str, count: _Counter) -> Iterator[Polygon]:
    if geometry is None:
        return
    kind = geometry["type"]
    if kind == "GeometryCollection":
        for part in geometry["geometries"]:
            yield from _polygons(part, where, count)
    elif kind in ("Polygon", "MultiPolygon"):
        for rings in [geometry["coordinates"]] if kind == "Polygon" else geometry["coordinates"]:
            for ring in rings:
                count.take(len(ring))
            outer, *holes = (_ring([(point[1], point[0]) for point in ring], where) for ring in rings)
            yield Polygon(outer, tuple(holes))
    elif kind not in ("Point", "MultiPoint", "LineString", "MultiLineString"):
        raise ValueError(f"{where}: unknown geometry {kind!r}")


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a coordinate")


class _Asap:
    """Takes the elements of ASAP's XML as they come."""

    def __init__(self) -> None:
        self.found: list[Annotation] = []
        self._root: str | None = None
        self._open: dict[str, str] | None = None
        self._points: list[tuple[int, float, float]] = []
        self._count = _Counter()

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        if self._root is None:
            self._root = tag
            if tag != "ASAP_Annotations":
                raise ValueError(f"the root of the XML is {tag[:40]!r}, not ASAP_Annotations")
        if tag == "Annotation":
            self._open, self._points = attributes, []
        elif tag == "Coordinate" and self._open is not None:
            self._count.take(1)
            order = int(attributes.get("Order", len(self._points)))
            self._points.append((order, float(attributes["Y"].replace(",", ".")), float(attributes["X"].replace(",", "."))))

    def end(self, tag: str) -> None:
        if tag != "Annotation" or self._open is None:
            return
        name, kind, drawn = (self._open.get(key, "") for key in ("Name", "PartOfGroup", "Type"))
        self._open = None
        if drawn.lower() in _FLAT:
            return
        ring = _ring([(y, x) for _, y, x in sorted(self._points, key=lambda point: point[0])], name or "an annotation")
        kind = "" if kind == "None" else kind
        self.found.append(Annotation(name, kind, (Polygon(ring),), kind.lower() in _EXCLUDING))


def _asap(data: bytes) -> list[Annotation]:
    taker, parser = _Asap(), expat.ParserCreate()
    parser.StartElementHandler, parser.EndElementHandler = taker.start, taker.end
    parser.StartDoctypeDeclHandler = _refuse_doctype
    parser.Parse(data, True)
    return taker.found


def _refuse_doctype(*_: object) -> NoReturn:
    raise ValueError("it has a DOCTYPE, which annotations do not need")
