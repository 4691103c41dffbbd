"""What readers draw: written for QuPath by its rules, read back, and what QuPath or ASAP has written taken in."""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamview.cli import main
from streamview.errors import StreamviewError
from streamview.labels.annotations import Polygon, read_annotations
from streamview.review import Session, create_session
from streamview.review.annotations import export_regions, import_regions, is_plain, region_features, region_ring
from tests.review.test_session import CASES, WORDS

RING = np.array([[10.0, 20.0], [10.0, 120.5], [80.25, 120.5]])
HOLE = np.array([[20.0, 60.0], [20.0, 70.0], [30.0, 70.0]])
FROM_QUPATH = {
    "type": "FeatureCollection",
    "features": [
        {
            "type": "Feature",
            "id": "8e5dbfc4-6f1b-4d0e-8a44-0d3a6d3f4a10",
            "geometry": {
                "type": "MultiPolygon",
                "coordinates": [[[[0, 0], [9, 0], [9, 9], [0, 0]]], [[[20, 20], [29, 20], [29, 29], [20, 20]]]],
            },
            "properties": {"objectType": "annotation", "classification": {"name": "lesion", "color": [200, 0, 0]}},
        },
        {"type": "Feature", "geometry": {"type": "Point", "coordinates": [3, 4]}, "properties": {"objectType": "annotation"}},
    ],
}


@pytest.fixture
def session(tmp_path: Path) -> Any:
    with create_session(tmp_path / "s.sqlite", CASES, ["a", "b"], vocabulary=WORDS, seed=3) as session:
        yield session


def test_what_is_drawn_is_written_by_the_rules_of_qupath(session: Session, tmp_path: Path) -> None:
    reader = session.reader("a")
    step = reader.current()
    assert step is not None
    reader.open(step)
    reader.draw(step, region_features([Polygon(RING, (HOLE,)), Polygon(RING + 200)], "lesion", WORDS.verdicts))
    (path,) = export_regions(session, tmp_path / "out")
    assert path.name == f"{step.case}-a-unaided.geojson"
    document = json.loads(path.read_text())
    assert document["type"] == "FeatureCollection"
    for feature in document["features"]:
        assert feature["type"] == "Feature"
        uuid.UUID(feature["id"])
        assert feature["properties"]["objectType"] == "annotation"
        assert feature["properties"]["classification"]["name"] == "lesion"
        assert all(0 <= part <= 255 for part in feature["properties"]["classification"]["color"])
        for ring in feature["geometry"]["coordinates"]:
            assert ring[0] == ring[-1]
            assert len(ring) >= 4
    assert len({feature["id"] for feature in document["features"]}) == 2
    first, second = read_annotations(path)  # as this program reads QuPath's
    np.testing.assert_array_equal(first.polygons[0].exterior, RING)
    np.testing.assert_array_equal(first.polygons[0].holes[0], HOLE)
    np.testing.assert_array_equal(second.polygons[0].exterior, RING + 200)
    drawn = reader.readings()[step].regions
    assert [is_plain(region) for region in drawn] == [False, True]
    np.testing.assert_array_equal(region_ring(drawn[1]), RING + 200)
    with pytest.raises(StreamviewError, match="exists"):
        export_regions(session, tmp_path / "out")
    assert not any(case.name.encode() in path.read_bytes() for case in session.cases.values())


def test_what_qupath_has_written_is_added(session: Session, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reader = session.reader("b")
    step = reader.current()
    assert step is not None
    reader.open(step)
    reader.draw(step, region_features([Polygon(RING)], "normal", WORDS.verdicts))
    path = tmp_path / "from.geojson"
    path.write_text(json.dumps(FROM_QUPATH))
    assert import_regions(session, "b", step.case, path) == 2
    regions = reader.readings()[step].regions
    assert [region["properties"]["name"] for region in regions] == ["Region 1", "Region 2", "Region 3"]
    assert [region["properties"]["classification"]["name"] for region in regions] == ["normal", "lesion", "lesion"]
    np.testing.assert_array_equal(region_ring(regions[2]), [[20, 20], [20, 29], [29, 29]])
    assert session.reader("a").readings()[session.reader("a").steps[0]].regions == ()

    session_file = str(session.path)
    assert main(["review", "annotate", session_file, str(path), "--reader", "b", "--case", step.case]) == 0
    assert f"{step.case}: 2 regions added for b" in capsys.readouterr().out
    assert len(reader.readings()[step].regions) == 5
    assert main(["review", "annotate", session_file, str(path), "--reader", "b", "--case", "C099"]) == 1
    assert "has no slide C099, only C001" in capsys.readouterr().err
    path.write_text("{")
    assert main(["review", "annotate", session_file, str(path), "--reader", "b", "--case", step.case]) == 1
    assert "cannot be read as annotations" in capsys.readouterr().err
    assert len(reader.readings()[step].regions) == 5
