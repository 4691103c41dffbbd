"""Tables of labelled regions: what is read is what was written, and what is wrong is said by line."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

from streamview.errors import LabelError
from streamview.geometry import Region
from streamview.labels.regions import (
    Example,
    count_labels,
    find_targets,
    identify_slides,
    labels_digest,
    read_labels,
    unite_slides,
    write_labels,
)
from streamview.networks.cards import assumed_document, parse_card
from streamview.slides import open_slide
from streamview.slides.pyramid import build_pyramid


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
    examples[1] = replace(examples[1], patient="p, 1", mpp=0.2525)  # what is said of a slide in one row holds for all of them
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
        ("", "is an empty file"),
        ("a,b\n", r"has no column slide_id and no column label \(found: a, b\)"),
        ("slide,label\na,x\n", r"has no column slide_id \(found: slide, label\)"),
        ("slide_id,label,x,y\na,n,1,2\n", "has only the columns x, y; expected x, y, width and height"),
        ("slide_id,label\n", "holds no labelled region"),
        ("slide_id,label\nnone.svs,n\nnever,n\n", "line 2: slide 'none.svs' is not in .*; line 3: slide 'never' is not in .*slides"),
        ("slide_id,label\nc,n\n", "slide 'c' may be c.ndpi or c.svs"),
        ("slide_id,label\n,n\n", "line 2: names no slide"),
        ("slide_id,label,x,y,width,height\na,n,1,2,3,4.5\n", "line 2: region 1,2,3,4.5; expected .* whole level-0 pixels"),
        ("slide_id,label,x,y,width,height\na,n,1,2,0,4\n", "line 2: .*width and height must be positive"),
        ("slide_id,label,mpp\na,n,0\n", "line 2: mpp '0'; expected micrometres"),
        ("slide_id,label,split\na,n,test\n", "line 2: split 'test'; expected train, validation or nothing"),
        ("slide_id,label\na,n\n\na.svs,m\n", r"line 2 \(a\) and line 4 \(a.svs\) are of one slide, but call the whole slide 'n' and 'm'"),
        ("slide_id,label\na,n\na.svs,n\n", r"line 2 .* line 3 .* are of one slide, but both label the whole slide"),
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
    with pytest.raises(LabelError, match=r"label 'tumor' \(near: tumour\); the network's classes are normal, tumour: .*new_head=True"):
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


def write_slide(path, seed, shape=(40, 48)):
    image = np.random.default_rng(seed).integers(0, 255, (*shape, 3), np.uint8)
    tifffile.imwrite(path, image, photometric="rgb", tile=(32, 32), metadata=None, resolution=(20000, 20000), resolutionunit=3)
    return image


@pytest.fixture(scope="module")
def spellings(tmp_path_factory):
    """A folder of tables, and every way to name one slide from there; ``b`` and ``c`` are others."""
    home = tmp_path_factory.mktemp("spellings")
    slides = home / "slides"
    slides.mkdir()
    for seed, name in enumerate("abc"):
        write_slide(slides / f"{name}.tif", seed)
    (home / "symbolic.tif").symlink_to(slides / "a.tif")
    (slides / "hard.tif").hardlink_to(slides / "a.tif")
    (home / "linked").symlink_to(slides)
    shutil.copy(slides / "a.tif", slides / "copied.tiff")
    with open_slide(slides / "a.tif") as slide:
        build_pyramid(slide, slides / "pyramid.ome.zarr")
    relative = ["slides/a.tif", "slides/a", "./slides/../slides/a.tif", "slides//a.tif", "slides\\a.tif", "symbolic", "symbolic.tif"]
    relative += ["slides/hard", "linked/a", "linked/hard.tif", "slides/copied", "linked/copied.tiff", "slides/pyramid.ome.zarr"]
    return home, [*relative, str(slides / "a.tif"), str(home / "linked" / "a")]


@settings(deadline=None, max_examples=25)
@given(data=st.data())
def test_a_slide_is_one_however_its_rows_name_it(spellings, data):
    home, names = spellings
    first, second = data.draw(st.permutations(names))[:2]
    stated = data.draw(st.sampled_from(["", "p"]))
    others = ["slides/b,x,,0,0,8,8", "slides/c,x,,0,0,8,8"]

    def read(*rows):
        mixed = data.draw(st.permutations([*others, *rows]))
        return read_labels(table(home, "\n".join(["slide_id,label,patient_id,x,y,width,height", *mixed])))

    found = read(f"{first},x,{stated},0,0,8,8", f"{second},y,,8,0,8,8")
    same = [example for example in found if example.file not in ("b.tif", "c.tif")]
    assert [len(same), len({(example.source, example.name, example.case) for example in same})] == [2, 1]
    assert len({example.case for example in found}) == 3
    lines = r"line \d+ .* and line \d+ .* are of one slide, but "
    for rows, said in (
        ([f"{first},x,p,0,0,8,8", f"{second},x,q,8,0,8,8"], "of patient '[pq]' and patient '[pq]'"),
        ([f"{first},x,,0,0,8,8", f"{second},y,,0,0,8,8"], "call region 0,0,8,8 '[xy]' and '[xy]'"),
        ([f"{first},x,,,,,", f"{second},x,,,,,"], "both label the whole slide"),
    ):
        with pytest.raises(LabelError, match=lines + said):
            read(*rows)


def test_rows_of_one_slide_state_one_mpp_and_a_region_of_its_size_is_the_slide(spellings):
    home, _ = spellings
    with pytest.raises(LabelError, match=r"line 2 .* and line 3 .* are of one slide, but state mpp 0.5 and mpp 0.25"):
        read_labels(table(home, "slide_id,label,x,y,width,height,mpp\nslides/b,x,0,0,8,8,0.5\nslides/b.tif,x,8,0,8,8,0.25\n"))
    with pytest.raises(LabelError, match="call the whole slide 'x' and 'y'"):
        read_labels(table(home, "slide_id,label,x,y,width,height\nslides/b,x,,,,\nslides/c,x,,,,\nslides/b.tif,y,0,0,48,40\n"))


def test_examples_without_a_table_are_told_apart_by_their_pixels(tmp_path):
    image = write_slide(tmp_path / "a.tif", 0)
    same = [Example(image, "x", patient="p"), Example(image.copy(), "x", Region(0, 0, 8, 8), patient="q")]
    with pytest.raises(
        LabelError, match=r"example 1 \(array\) and example 2 \(array\) are of one slide, but of patient 'p' and patient 'q'"
    ):
        unite_slides(same, *identify_slides(same))
    other = Example(write_slide(tmp_path / "b.tif", 1), "y")
    named = [replace(same[0], slide_id="s"), replace(same[1], patient=""), other]
    united = unite_slides(named, *identify_slides(named))
    assert [(e.patient, e.name) for e in united] == [("p", "s"), ("p", "s"), ("", "array")]
    assert united[1].source is image
    assert united[2] is other


@pytest.mark.parametrize("separator", [",", ";", "\t", "|", " "])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_tables_as_programs_write_them(folder, separator, encoding, end):
    rows = [["slide_id", "label", "x", "y", "width", "height", "mpp"], ["a", '"a, ä; b|c\td e"', "0", "0.0", "64", "128.0", '"0,25"']]
    path = folder / "labels.csv"
    path.write_bytes(end.join([separator.join(row) for row in rows] + ["", ""]).encode(encoding))
    (found,) = read_labels(path)
    assert (found.label, found.region, found.mpp) == ("a, ä; b|c\td e", Region(0, 0, 128, 64), 0.25)


@pytest.mark.parametrize(
    "text",
    [
        "sep=;\nslide_id;label;mpp\na;n;0,5\n",
        '"sep=;"\r\nslide_id;label;mpp\r\na;n;0,5\r\n',
        "sep=,\nslide_id;label;mpp\na;n;0,5\n",  # what it says is not so
        "SLIDE_ID,Label,MPP\na,n,.5\n",
        " slide_id , label , mpp \n a , n , 0.5 \n",
        '"","slide_id","label","mpp"\n"1","a","n",0.5\n',  # R and pandas with row names
        "slide_id,label,mpp,,\na,n,0.5,,\n,,,,\n,,\n\n",  # Excel
        "\n\nslide_id,label,mpp\n\na,n,0.5\n",
        "slide_id,label,mpp,\u200b\na\u00a0,n,0.5,\n",
    ],
)
def test_tables_with_what_programs_add(folder, text):
    (found,) = read_labels(table(folder, text))
    assert (found.slide_id, found.label, found.mpp) == ("a", "n", 0.5)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("slide_id,label,label\na,n,m\n", r"has the column label twice \(columns 2 and 3\)"),
        ("slide_id,label,x,y,width,height,X\na,n,0,0,8,8,1\n", r"has the column x twice \(columns 3 and 7\)"),
        ("slide_id,label,note,note\na,n,1,2\n", r"has the column note twice \(columns 3 and 4\)"),
        ("slide_id,label\na,n,m\n", "line 2: 3 cells under 2 columns"),
        ('"slide_id" "label"\n"1" "a" "n"\n', r"line 2: 3 cells under 2 columns; .*row.names = FALSE"),
        ("slide_id;label;mpp\na;n;1,024\n", "line 2: mpp '1,024'"),
        ("slide_id;label;x;y;width;height\na;n;0;0;10,000;8\n", "line 2: region 0,0,10,000,8"),
        ("slide_id;label;x;y;width;height\na;n;0;0;10.000;8\n", "line 2: region 0,0,10.000,8"),
        ("PK\x03\x04", "is a zip archive, which Excel's own formats are"),
        ("version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        ("<!DOCTYPE html><html></html>", "is a web page"),
        (f"slide_id,label\n{'x' * 300},n\n", "line 2: slide 'xxx.* cannot be looked for"),
    ],
)
def test_tables_that_could_be_misread_are_refused(folder, text, said):
    with pytest.raises(LabelError, match=said):
        read_labels(table(folder, text))


def test_a_slide_is_not_the_folder_beside_it(folder):
    (folder / "m.mrxs").touch()
    (folder / "m").mkdir()
    assert read_labels(table(folder, "slide_id,label\nm,n\n"))[0].file == "m.mrxs"
    (folder / "n[1].tif").touch()
    assert read_labels(table(folder, "slide_id,label\nn[1],n\n"))[0].file == "n[1].tif"


def test_values_with_a_decimal_comma():
    image = np.zeros((8, 8, 3), np.uint8)
    assert find_targets([Example(image, "1,5; -2")], card("regression")).tolist() == [[1.5, -2]]
    with pytest.raises(LabelError, match="expected 2 numbers"):
        find_targets([Example(image, "1,024;2")], card("regression"))
