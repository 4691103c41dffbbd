"""Annotations: what QuPath and ASAP draw, drawn again to the pixel; and files that mean harm."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from streamview.errors import AnnotationError, AnnotationWarning
from streamview.export.outlines import Areas, contours, find_areas, signed_area
from streamview.geometry import Region
from streamview.labels.annotations import Annotation, Polygon, bounds, rasterise, read_annotations

SQUARE = [[10, 20], [14, 20], [14, 26], [10, 26], [10, 20]]  # x, y
HOLE = [[11, 22], [13, 22], [13, 24], [11, 24], [11, 22]]


def feature(geometry: object, **properties: object) -> dict[str, object]:
    return {"type": "Feature", "geometry": geometry, "properties": properties}


def polygon(*rings: object) -> dict[str, object]:
    return {"type": "Polygon", "coordinates": list(rings)}


def write(folder: Path, content: object) -> Path:
    path = folder / "a.geojson"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def asap(*annotations: tuple[str, str, str]) -> str:
    """Name, group and ``X,Y X,Y ...`` of each; the points are stored in reverse."""
    elements = []
    for name, group, points in annotations:
        inner = [
            f'<Coordinate Order="{order}" X="{x}" Y="{y}" />' for order, (x, y) in enumerate(point.split(",") for point in points.split())
        ]
        elements.append(
            f'<Annotation Name="{name}" Type="Polygon" PartOfGroup="{group}" Color="#F4FA58">'
            f"<Coordinates>{''.join(inner[::-1])}</Coordinates></Annotation>"
        )
    return f'<?xml version="1.0"?><ASAP_Annotations><Annotations>{"".join(elements)}</Annotations><AnnotationGroups/></ASAP_Annotations>'


def exact() -> np.ndarray:
    mask = np.zeros((30, 30), bool)
    mask[20:26, 10:14] = True
    mask[22:24, 11:13] = False
    return mask


@pytest.mark.parametrize("form", ["feature", "collection", "list", "gzip", "bom"])
def test_qupath_forms(tmp_path: Path, form: str) -> None:
    one = feature(polygon(SQUARE, HOLE), name="Lesion 1", classification={"name": "Tumor", "color": [200, 0, 0]})
    content = {"feature": one, "collection": {"type": "FeatureCollection", "features": [one]}}.get(form, [one])
    path = write(tmp_path, content)
    if form == "gzip":
        path.write_bytes(gzip.compress(path.read_bytes()))
    if form == "bom":
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    (found,) = read_annotations(path, (100, 100))
    assert (found.name, found.kind, found.excludes) == ("Lesion 1", "Tumor", False)
    np.testing.assert_array_equal(rasterise([found], Region(0, 0, 30, 30)), exact())
    assert bounds([found], (100, 100)) == Region(20, 10, 6, 4)
    assert bounds([found], (23, 100)) == Region(20, 10, 3, 4)


def test_parts_collections_points_and_open_rings(tmp_path: Path) -> None:
    shifted = [[x + 10, y] for x, y in SQUARE]
    several = {"type": "MultiPolygon", "coordinates": [[SQUARE[:-1], HOLE], [shifted]]}
    point = feature({"type": "Point", "coordinates": [1, 2]})
    grouped = feature({"type": "GeometryCollection", "geometries": [polygon(HOLE)]}, classification={"names": ["Tumor", "Positive"]})
    with pytest.warns(AnnotationWarning, match=r"1 left out, as they enclose no area: object 4$"):
        found = read_annotations(write(tmp_path, [feature(several), point, grouped, feature(None)]))
    assert [(len(one.polygons), one.kind) for one in found] == [(2, ""), (1, "Tumor: Positive")]
    mask = exact()
    mask[20:26, 20:24] = True
    np.testing.assert_array_equal(rasterise(found[:1], Region(0, 0, 30, 30)), mask)


@pytest.mark.parametrize("group", ["Exclusion", "_2", "normal"])
def test_the_challenges_xml_and_its_holes(tmp_path: Path, group: str) -> None:
    text = asap(("Annotation 0", "Tumor", "10,20 14,20 14.0,26 10,26"), ("hole", group, "11,22 13,22 13,24 11,24"))
    dot = '<Annotation Name="d" Type="Dot" PartOfGroup="None"><Coordinates><Coordinate Order="0" X="1" Y="1"/></Coordinates></Annotation>'
    found = read_annotations(write(tmp_path, text.replace("</Annotations>", f"{dot}</Annotations>")), (30, 30))
    assert [(one.name, one.kind, one.excludes) for one in found] == [("Annotation 0", "Tumor", False), ("hole", group, True)]
    np.testing.assert_array_equal(rasterise(found[::-1], Region(0, 0, 30, 30)), exact())
    assert bounds(found, (30, 30)) == Region(20, 10, 6, 4)


def outlined(areas: Areas) -> list[Annotation]:
    """The outlines of areas in level-0 pixels, of which pixel k covers k to k + 1."""
    polygons = [areas.polygon(number) for number in range(1, areas.count + 1)]
    moved = [Polygon(polygon.exterior + 0.5, tuple(hole + 0.5 for hole in polygon.holes)) for polygon in polygons]
    return [Annotation("", "", (polygon,)) for polygon in moved]


def test_a_region_and_scale_give_the_part_seen_at_that_scale() -> None:
    (y, x), mask = np.mgrid[:60, :80], np.zeros((60, 80), bool)
    mask[(y - 31) ** 2 + (x - 40) ** 2 < 500] = True
    one = outlined(find_areas(mask.astype(np.float32), 0.5))
    np.testing.assert_array_equal(rasterise(one, Region(7, 11, 40, 33)), mask[7:47, 11:44])
    whole = rasterise(one, Region(-4, -4, 72, 96), (2.0, 3.0))
    assert whole.shape == (36, 32)
    centres = np.pad(mask, ((4, 8), (4, 12)))[1::2, 1::3]  # the pixel that a centre on a corner belongs to; in x the middle one
    assert (whole != centres).sum() < 12
    blocks = np.kron(np.random.default_rng(0).random((12, 9)) < 0.6, np.ones((4, 4), np.float32))
    parts = outlined(find_areas(blocks, 0.5))
    np.testing.assert_array_equal(rasterise(parts, Region(0, 0, 48, 36), (4.0, 4.0)), blocks[::4, ::4] > 0)


@settings(deadline=None, max_examples=150)
@given(
    hnp.arrays(np.float32, hnp.array_shapes(min_dims=2, max_dims=2, max_side=14), elements=st.sampled_from([0.0, 0.1, 0.3, 0.5, 0.7, 1.0])),
    st.sampled_from([1e-6, 0.3, 0.4, 1.0]),
)
def test_areas_drawn_again_are_what_reaches_the_threshold(shares: np.ndarray, threshold: float) -> None:
    mask = shares >= np.float32(threshold)
    areas = find_areas(shares, threshold)
    np.testing.assert_array_equal(areas.labels > 0, mask)
    annotations = outlined(areas)
    for number, annotation in enumerate(annotations, 1):
        drawn = rasterise([annotation], Region(0, 0, *mask.shape))
        np.testing.assert_array_equal(drawn, areas.labels == number)
        (polygon,) = annotation.polygons
        assert signed_area(polygon.exterior) > 0
        assert all(signed_area(hole) < 0 for hole in polygon.holes)
        for ring in (polygon.exterior, *polygon.holes):
            assert len({tuple(corner) for corner in ring.round(3)}) == len(ring)  # simple: no corner is passed twice
            assert (ring >= 0).all()
            assert (ring <= mask.shape).all()


@settings(deadline=None, max_examples=60)
@given(hnp.arrays(np.float32, hnp.array_shapes(min_dims=2, max_dims=2, min_side=2, max_side=14), elements=st.floats(0, 1, width=32)))
def test_lines_are_the_outlines_of_areas_without_the_border(shares: np.ndarray) -> None:
    """Every point of a line is a corner of an area or lies on one of its edges, and none runs along the border."""
    areas, last = find_areas(shares, 0.5), np.array(shares.shape) - 0.5
    outlines = [areas.polygon(number) for number in range(1, areas.count + 1)]
    corners = {tuple(corner) for polygon in outlines for ring in (polygon.exterior, *polygon.holes) for corner in ring.round(6)}
    on_lines = set()
    for line in contours(shares, 0.5):
        at_border = ((line == -0.5) | (line == last)).any(1)
        assert not (at_border[1:] & at_border[:-1]).any()
        on_lines |= {tuple(point) for point in line.round(6)}
    inner = {corner for corner in corners if all(-0.5 < at < end for at, end in zip(corner, last, strict=True))}
    assert inner <= on_lines


@settings(deadline=None, max_examples=60)
@given(hnp.arrays(np.int64, st.tuples(st.integers(3, 12), st.just(2)), elements=st.integers(-3, 23)))
def test_any_polygon_agrees_with_an_independent_test_of_points(corners: np.ndarray) -> None:
    """No edge meets a pixel's centre; whether a centre is inside is asked of each edge by itself."""
    ring = corners + np.array([1 / 3, np.sqrt(2) / 5])
    mask = rasterise([Annotation("", "", (Polygon(ring),))], Region(0, 0, 20, 21))
    y, x = np.mgrid[:20, :21] + 0.5
    inside = np.zeros(mask.shape, bool)
    for (y0, x0), (y1, x1) in zip(ring, np.roll(ring, -1, 0), strict=True):
        crossed = (y0 > y) != (y1 > y)
        side = (y1 - y0) * (x - x0) - (y - y0) * (x1 - x0)  # its sign says on which side of the edge
        inside ^= crossed & ((side > 0) == (y1 > y0))
    np.testing.assert_array_equal(mask, inside)


BOMB = '<?xml version="1.0"?><!DOCTYPE a [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;">]><ASAP_Annotations>&b;</ASAP_Annotations>'
OUTSIDE = '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/hostname">]><ASAP_Annotations>&x;</ASAP_Annotations>'
BAD = {
    "nan": (
        '{"type":"Feature","geometry":{"type":"Polygon","coordinates":[[[NaN,1],[2,3],[4,5]]]},"properties":{}}',
        "object 1: a coordinate is not finite",
    ),
    "infinite": ('{"type":"Feature","geometry":{"type":"Polygon","coordinates":[[[1e999,1],[2,3],[4,5]]]}}', "not finite"),
    "huge number": (json.dumps(feature(polygon([[10**400, 1], [2, 3], [4, 5]]))), "cannot be read"),
    "no features": ('{"type":"FeatureCollection"}', "features of the FeatureCollection: found nothing, expected a list"),
    "no type": ('[{"a":1}]', "object 1: found a GeoJSON object of type None where a Feature belongs"),
    "null feature": (json.dumps([feature(polygon(SQUARE)), None]), "object 2: found a NoneType where a Feature belongs"),
    "geometry of text": (json.dumps([feature("POLYGON")]), "object 1: unknown geometry 'POLYGON'"),
    "no coordinates": (
        json.dumps([feature({"type": "Polygon"}, name="a")]),
        r"object 1 \(a\): coordinates: found nothing, expected a list",
    ),
    "web page": ("<!doctype html><html></html>", "is a web page"),
    "git-lfs": ("version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    "far": (json.dumps(feature(polygon([[1e12, 1], [2, 3], [4, 5]]))), "not finite or beyond"),
    "texts": (json.dumps(feature(polygon([["a", "b"], ["c", "d"], ["e", "f"]]))), r"object 1: found \['a', 'b'\] where a point \[x, y\]"),
    "one number": (json.dumps([feature(polygon(SQUARE)), feature(polygon([[1], [2], [3]]))]), r"object 2: found \[1\] where a point"),
    "ring of numbers": (json.dumps(feature(polygon([1, 2, 3]))), "object 1: found 1 where a point"),
    "unknown geometry": (json.dumps(feature({"type": "Circle"})), "unknown geometry 'Circle'"),
    "not a feature": (json.dumps({"type": "Polygon", "coordinates": [SQUARE]}), "where a Feature belongs"),
    "number": ("3", "cannot be read"),
    "list of numbers": ("[1, 2]", "cannot be read"),
    "nested": ("[" * 200_000, "too deeply nested"),
    "cut": ('{"type":"Feature"', "cannot be read"),
    "empty": ("", "is an empty file"),
    "bomb": (BOMB, "DOCTYPE"),
    "entity of a file": (OUTSIDE, "DOCTYPE"),
    "other xml": ("<svg/>", "not ASAP_Annotations"),
    "cut xml": (asap(("a", "Tumor", "1,2 3,4 5,9"))[:-30], "cannot be read"),
    "nan in xml": (asap(("a", "Tumor", "nan,2 3,4 5,9")), "not finite"),
    "text in xml": (asap(("b", "Tumor", "1,2 3,4 5,9"), ("a", "Tumor", "one,2 3,4 5,9")), r"object 2 \(a\): found .* where a point"),
    "elsewhere": (
        json.dumps(feature(polygon([[x + 500, y] for x, y in SQUARE]), name="far away")),
        "object 1 .far away. at .* outside the slide",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_refused_in_one_line(tmp_path: Path, case: str) -> None:
    content, said = BAD[case]
    with pytest.raises(AnnotationError, match=said) as caught:
        read_annotations(write(tmp_path, content), (100, 100))
    assert str(caught.value).startswith(f"{tmp_path / 'a.geojson'}: ")
    assert "\n" not in str(caught.value)


def test_missing_huge_and_broken_gzip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AnnotationError, match="No such file"):
        read_annotations(tmp_path / "none.xml")
    path = tmp_path / "b.geojson"
    path.write_bytes(gzip.compress(b"[]" * 1000)[:-20])
    with pytest.raises(AnnotationError, match="damaged gzip"):
        read_annotations(path)
    monkeypatch.setattr("streamview.labels.annotations._MAX_BYTES", 10_000)
    path.write_bytes(gzip.compress(b" " * 10**7))
    with pytest.raises(AnnotationError, match="more than 0 MiB"):
        read_annotations(path)
    monkeypatch.setattr("streamview.labels.annotations._MAX_POINTS", 4)
    with pytest.raises(AnnotationError, match="more than 4 points"):
        read_annotations(write(tmp_path, feature(polygon(SQUARE))))


def test_nothing_annotated_has_no_bounds() -> None:
    with pytest.raises(AnnotationError, match="no annotated area within 20 x 10 px"):
        bounds([], (10, 20))
    hole = Annotation("", "normal", (Polygon(np.array([[0.0, 0], [5, 0], [5, 5]])),), excludes=True)
    with pytest.raises(AnnotationError, match="no annotated area"):
        bounds([hole], (10, 20))


def test_many_crossings_are_worked_on_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    one = [Annotation("", "", (Polygon(rng.uniform(0, 200, (500, 2))),))]
    whole = rasterise(one, Region(0, 0, 200, 200))
    monkeypatch.setattr("streamview.labels.annotations._CROSSINGS", 777)
    np.testing.assert_array_equal(rasterise(one, Region(0, 0, 200, 200)), whole)


LINE = [[0, 0], [5, 5], [9, 9], [0, 0]]
EMPTY = {
    "no rings": polygon(),
    "an empty ring": polygon([]),
    "one point": polygon([[1, 1]]),
    "two points": polygon([[0, 0], [9, 9], [0, 0]]),
    "one point thrice": polygon([[4, 4], [4, 4], [4, 4], [4, 4]]),
    "a straight line": polygon(LINE),
    "no polygons": {"type": "MultiPolygon", "coordinates": []},
    "an empty part": {"type": "MultiPolygon", "coordinates": [[], [LINE]]},
    "no geometries": {"type": "GeometryCollection", "geometries": []},
    "nothing": None,
    "an empty object": {},
}


@pytest.mark.parametrize("case", EMPTY)
def test_what_encloses_no_area_is_left_out_and_numbered(tmp_path: Path, case: str) -> None:
    features = [
        feature(polygon(SQUARE)),
        feature(EMPTY[case], name="bad"),
        feature(polygon(SQUARE, HOLE), classification={"name": "Tumor"}),
    ]
    with pytest.warns(AnnotationWarning, match=r"1 left out, as they enclose no area: object 2 \(bad\)$"):
        found = read_annotations(write(tmp_path, {"type": "FeatureCollection", "features": features}))
    assert [one.kind for one in found] == ["", "Tumor"]
    np.testing.assert_array_equal(rasterise(found[1:], Region(0, 0, 30, 30)), exact())


def test_the_rest_of_an_object_with_empty_parts_is_read(tmp_path: Path) -> None:
    parts = {"type": "MultiPolygon", "coordinates": [[SQUARE, HOLE, LINE], [], [LINE]]}
    with pytest.warns(AnnotationWarning, match=r"2 left out, as they enclose no area: object 1 \(a hole\), object 1 \(a part\)$"):
        found = read_annotations(write(tmp_path, feature(parts)))
    np.testing.assert_array_equal(rasterise(found, Region(0, 0, 30, 30)), exact())


def test_many_empty_objects_are_counted(tmp_path: Path) -> None:
    with pytest.warns(AnnotationWarning, match=r"30 left out, as they enclose no area: object 1, .* object 10 and 20 more$"):
        assert read_annotations(write(tmp_path, [feature(None)] * 30)) == ()


def test_empty_annotations_of_asap_are_left_out(tmp_path: Path) -> None:
    text = asap(
        ("a", "Tumor", "1,2 3,4"), ("b", "Tumor", "10,20 14,20 14,26 10,26"), ("c", "None", ""), ("hole", "_2", "11,22 13,22 13,24 11,24")
    )
    with pytest.warns(AnnotationWarning, match=r"2 left out, as they enclose no area: object 1 \(a\), object 3 \(c\)$"):
        found = read_annotations(write(tmp_path, text))
    np.testing.assert_array_equal(rasterise(found, Region(0, 0, 30, 30)), exact())


@pytest.mark.parametrize(
    ("classification", "kind"),
    [
        (7, "7"),
        ("Tumor", "Tumor"),
        ({"name": "Tumor"}, "Tumor"),
        (["a", "b"], "a: b"),
        ({}, ""),
        (None, ""),
        ({"colour": 1}, ""),
        (True, "True"),
    ],
)
def test_classes_as_programs_write_them(tmp_path: Path, classification: object, kind: str) -> None:
    (found,) = read_annotations(write(tmp_path, [feature(polygon(SQUARE), classification=classification)]))
    assert found.kind == kind


def test_heights_and_measurements_are_not_looked_at(tmp_path: Path) -> None:
    high = [[x, y, 7] for x, y in SQUARE]
    (found,) = read_annotations(write(tmp_path, [feature(polygon(high, HOLE), measurements={"area": float("nan")})]))
    np.testing.assert_array_equal(rasterise([found], Region(0, 0, 30, 30)), exact())
