"""Tables of labelled regions: what is read is what was written, and what is wrong is said by line."""

import numpy as np
import pytest

from streamview.cards import assumed_document, parse_card
from streamview.errors import LabelError
from streamview.geometry import Region
from streamview.labels import Example, count_labels, find_targets, labels_digest, read_labels, write_labels


def card(task="class", names=("normal", "tumour")):
    document = assumed_document("any", list(names))
    document["streamview"] = {"task": task}
    return parse_card(document, name="any", file="card")


@pytest.fixture
def folder(tmp_path):
    for name in ("a.svs", "b.tiff", "b.csv", "c.svs", "c.ndpi"):
        (tmp_path / name).touch()
    (tmp_path / "d.ome.zarr").mkdir()
    return tmp_path


def table(folder, text):
    path = folder / "labels.csv"
    path.write_text(text)
    return path


def test_a_table_as_people_write_it(folder):
    columns = "\ufeffslide_id, label ,stain,patient_id,x,y,width,height,mpp,split"
    rows = ["a.svs,tumour,H&E,p1,5,7,100,90,0.5,train", "", "b,normal,,,,,,,,", "d,x", ""]
    found = read_labels(table(folder, "\n".join([columns, *rows])))
    assert [example.source.name for example in found] == ["a.svs", "b.tiff", "d.ome.zarr"]
    assert (found[0].region, found[0].patient, found[0].mpp, found[0].split) == (Region(7, 5, 90, 100), "p1", 0.5, "train")
    assert (found[1].region, found[1].case, found[1].mpp) == (None, "b", None)
    assert [example.label for example in found] == ["tumour", "normal", "x"]


def test_what_was_written_is_read_again_wherever_both_are_moved(folder, tmp_path_factory):
    examples = [
        Example(folder / "a.svs", "tumour", Region(1, 2, 30, 40), "p, 1", mpp=0.2525),
        Example(folder / "a.svs", "normal", Region(9, 2, 30, 40), split="validation"),
        Example(folder / "b.tiff", "1;2"),
    ]
    write_labels(folder / "labels.csv", examples)
    assert "/" not in (folder / "labels.csv").read_text()
    found = read_labels(folder / "labels.csv")
    assert [(e.source, e.label, e.region, e.patient, e.mpp, e.split) for e in found] == [
        (e.source, e.label, e.region, e.patient, e.mpp, e.split) for e in examples
    ]
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "labels.csv"
    write_labels(elsewhere, examples)
    assert [e.source for e in read_labels(elsewhere)] == [e.source for e in examples]
    assert labels_digest(read_labels(elsewhere)) == labels_digest(found) == labels_digest(examples)
    with pytest.raises(LabelError, match="is not a file; a table names slides by their paths"):
        write_labels(elsewhere, [Example(np.zeros((8, 8, 3), np.uint8), "x")])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", r"has no column slide_id and no column label \(found: nothing\)"),
        ("slide,label\na,x\n", r"has no column slide_id \(found: slide, label\)"),
        ("slide_id,label,x,y\na,n,1,2\n", "has the columns x, y alone; expected x, y, width and height"),
        ("slide_id,label\n", "holds no labelled region"),
        ("slide_id,label\nnone.svs,n\nnever,n\n", "slide 'none.svs' is not in .*; slide 'never' is not in .*--slides"),
        ("slide_id,label\nc,n\n", "slide 'c' may be c.ndpi or c.svs"),
        ("slide_id,label\n,n\n", "a line names no slide"),
        ("slide_id,label,x,y,width,height\na,n,1,2,3,4.5\n", "line 2: region 1,2,3,4.5; expected .* whole level-0 pixels"),
        ("slide_id,label,x,y,width,height\na,n,1,2,0,4\n", "line 2: .*width and height must be positive"),
        ("slide_id,label,mpp\na,n,0\n", "line 2: mpp '0'; expected micrometres"),
        ("slide_id,label,split\na,n,test\n", "line 2: split 'test'; expected train, validation or nothing"),
        ("slide_id,label\na,n\na.svs,m\n", "a stands in it 2 times"),
        ('slide_id,label\n"a,n\n', "is not a CSV table"),
    ],
)
def test_what_is_wrong_with_a_table_is_said(folder, text, said):
    with pytest.raises(LabelError, match=said):
        read_labels(table(folder, text))


def test_a_table_that_cannot_be_read_is_said(folder):
    with pytest.raises(LabelError, match=r"no\.csv does not exist; expected a CSV table"):
        read_labels(folder / "no.csv")
    (folder / "bad.csv").write_bytes(b"slide_id,label\n\xff\xfe,x\n")
    with pytest.raises(LabelError, match=r"bad.csv cannot be read .*UTF-8"):
        read_labels(folder / "bad.csv")


def test_a_slide_is_one_case_however_it_is_written(folder):
    rows = ["b,n,0,0,8,8", "b.tiff,m,9,0,8,8", "d,n,0,0,8,8", "d.ome.zarr,m,9,0,8,8"]
    found = read_labels(table(folder, "\n".join(["slide_id,label,x,y,width,height", *rows])))
    assert [example.case for example in found] == ["b", "b", "d", "d"]


def test_slides_may_lie_in_another_folder(folder, tmp_path_factory):
    path = table(tmp_path_factory.mktemp("tables"), "slide_id,label\nb,n\n")
    assert read_labels(path, folder)[0].source == folder / "b.tiff"


def test_targets_by_task():
    image = np.zeros((8, 8, 3), np.uint8)

    def targets(task, *labels):
        return find_targets([Example(image, label) for label in labels], card(task)).tolist()

    assert targets("class", "tumour", "normal", "tumour") == [1, 0, 1]
    assert targets("multilabel", "tumour", "", "normal; tumour") == [[0, 1], [0, 0], [1, 1]]
    assert targets("regression", "1;-2.5", "0;1e3") == [[1, -2.5], [0, 1000]]
    with pytest.raises(LabelError, match=r"label 'tumor' \(near: tumour\); the network's classes are normal, tumour: .*--new-head"):
        targets("class", "tumor")
    with pytest.raises(LabelError, match="has no label"):
        targets("class", "")
    for wrong in ("1", "1;nan", "1;x", ""):
        with pytest.raises(LabelError, match="expected 2 numbers joined by ;"):
            targets("regression", wrong)


def test_counts_and_digest():
    image = np.zeros((8, 8, 3), np.uint8)
    examples = [Example(image, "a", patient=p, slide_id=s) for p, s in (("p", "1"), ("p", "2"), ("", "3"))] + [
        Example(image, "b", slide_id="4")
    ]
    assert count_labels(examples) == {"a": (3, 2), "b": (1, 1)}
    assert labels_digest(examples) == labels_digest(examples[::-1])
    assert labels_digest(examples) != labels_digest(examples[:3])
    part = Example(image, "a", Region(0, 0, 4, 4), slide_id="4")  # beside the whole of the same slide
    assert labels_digest([*examples, part]) == labels_digest([part, *examples]) != labels_digest(examples)
