"""Tables, annotations and files of weights as they came from the field, each with what it holds."""

import numpy as np
import pytest
import torch

import streamview
from streamview.annotations import rasterise, read_annotations
from streamview.cli import main
from streamview.errors import AnnotationWarning, LabelError, ModelError
from streamview.geometry import Region
from streamview.labels import read_labels


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ("two-spellings", r"line 2 \(s00\) and line 26 \(\.\./slides/s00\.tif\) are of one slide, but the whole slide stands there twice"),
        ("two-patients", r"line 2 \(s00\) and line 3 \(s00\.tif\) are of one slide, but of patient 'ps00' and patient 'qs00'"),
        ("label-twice", r"has the column label twice \(columns 2 and 3\)"),
    ],
)
def test_a_table_that_contradicts_itself_is_refused(cases, table, said):
    with pytest.raises(LabelError, match=said):
        read_labels(cases / f"07-tables/{table}.csv", cases / "07-tables/slides")


@pytest.mark.parametrize("table", ["tabs", "sep"])
def test_tables_of_other_programs(cases, table):
    found = read_labels(cases / f"07-tables/{table}.csv", cases / "07-tables/slides")
    assert [(e.file, e.label, e.case) for e in found] == [(f"s{n:02}.tif", "lesion" if n % 2 else "normal", f"s{n:02}") for n in range(24)]


def test_annotations_with_empty_objects(cases):
    with pytest.warns(AnnotationWarning, match=r"2 left out, as they enclose no area: object 1, object 2 \(Tumor\)$"):
        tumour, other = read_annotations(cases / "07-tables/annotations.geojson")
    assert (tumour.kind, other.kind) == ("Tumor", "7")
    expected = np.zeros((70, 70), bool)
    expected[10:60, 10:60] = True
    np.testing.assert_array_equal(rasterise([tumour], Region(0, 0, 70, 70)), expected)
    assert rasterise([other], Region(0, 0, 70, 70)).sum() in (45, 55)  # a triangle of 10 x 10, with or without its diagonal
