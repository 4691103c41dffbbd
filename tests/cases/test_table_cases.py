"""Tables, annotations and files of weights as they came from the field, each with what it holds."""

import numpy as np
import pytest
import torch

import streamview
from streamview.cli import main
from streamview.errors import AnnotationWarning, LabelError, ModelError
from streamview.geometry import Region
from streamview.labels.annotations import rasterise, read_annotations
from streamview.labels.regions import read_labels


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ("two-spellings", r"line 2 \(s00\) and line 26 \(\.\./slides/s00\.tif\) are of one slide, but both label the whole slide"),
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


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("averaged", "n_averaged left out"),
        ("lightning-with-metric", "train_acc.tp left out"),
        ("lightning-with-loss", "criterion.weight left out"),
        ("no-batches-tracked", "no card was given"),
        ("ema-only", "the entry 'state_dict_ema' was taken"),
        ("params-key", "the entry 'params' was taken"),
        ("ema-and-plain", ""),
    ],
)
def test_checkpoints_of_training_programs(cases, file, said):
    torch.manual_seed(0)  # as the script does
    network = streamview.load_model("resnet18", untrained=True)
    path = cases / f"08-checkpoints/{file}.pth"
    if file == "ema-and-plain":
        with pytest.raises(ModelError, match=f"choose one: .*{path}:state_dict or .*{path}:state_dict_ema"):
            streamview.load_model("resnet18", weights=path)
        averaged, plain = (streamview.load_model("resnet18", weights=f"{path}:{key}") for key in ("state_dict_ema", "state_dict"))
        assert all(torch.equal(a, p + 1) for a, p in zip(averaged.module.parameters(), plain.module.parameters(), strict=True))
        assert plain.sha256 == network.sha256 != averaged.sha256
        return
    model = streamview.load_model("resnet18", weights=path)
    assert model.sha256 == network.sha256
    assert said in model.notes[0]


@pytest.mark.parametrize(("file", "said"), [("lfs", "a git-lfs pointer, not the file itself"), ("page", "a web page, not the file itself")])
def test_files_that_are_not_the_weights(cases, file, said, capsys):
    path = cases / f"06-names/{file}.safetensors"
    with pytest.raises(ModelError, match=said):
        streamview.load_model("resnet18", weights=path)
    assert main(["models", "inspect", "resnet18", "--weights", str(path)]) == 1
    assert said in capsys.readouterr().err
