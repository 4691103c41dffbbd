"""The worklist: files, folders and tables, every slide once."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from streamview.cohort.worklist import Case, read_worklist
from streamview.errors import StreamviewError
from streamview.geometry import RegionText


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder as people have them."""
    place = tmp_path / "slides"
    files = ["b.svs", "a.SVS", "notes.txt", ".hidden.svs", "deep/c.ndpi", "deep/b.svs", "m.mrxs", "m/Data0000.dat", "d/1.dcm", "d/2.dcm"]
    files += ["p.ome.zarr/zarr.json", "p.ome.zarr/0/zarr.json", "job/slides/x.svs.json", "job/runs/r.json", "job/export/x.svs"]
    for name in files:
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text("{}")
    saliency = place / "loose" / "map.ome.zarr"
    saliency.mkdir(parents=True)
    (saliency / "zarr.json").write_text('{"attributes": {"streamview": {"target": "lesion"}}}')
    return place


def names(cases: tuple[Case, ...], folder: Path) -> list[str]:
    return [Path(case.path).relative_to(folder).as_posix() for case in cases]


def test_a_folder_gives_its_slides_in_order(folder: Path) -> None:
    cases = read_worklist([folder])
    assert names(cases, folder) == ["a.SVS", "b.svs", "d/1.dcm", "deep/b.svs", "deep/c.ndpi", "m.mrxs", "p.ome.zarr"]
    assert [case.shares_name for case in cases] == [False, True, False, True, False, False, False]
    assert all(case.listed for case in cases)
    assert names(read_worklist([folder], pattern="*.txt"), folder) == ["notes.txt"]
    assert names(read_worklist([folder], pattern="deep/*"), folder) == ["deep/b.svs", "deep/c.ndpi"]
    with pytest.raises(StreamviewError, match="no file that matches"):
        read_worklist([folder], pattern="*.bif")


def test_the_same_slide_given_twice_is_done_once(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(folder)
    cases = read_worklist([folder / "b.svs", folder, tmp_path / "link" / "b.svs", folder / "b.svs"])
    assert names(cases, folder)[0] == "b.svs"
    assert len(cases) == 7


def test_limit_and_shuffle(folder: Path) -> None:
    every = read_worklist([folder])
    shuffled = read_worklist([folder], shuffle=3)
    assert sorted(case.path for case in shuffled) == sorted(case.path for case in every)
    assert shuffled != every
    assert shuffled == read_worklist([folder / "deep", folder], shuffle=3)  # the order of the inputs does not matter
    assert read_worklist([folder], shuffle=3, limit=2) == shuffled[:2]
    assert read_worklist([folder], limit=0) == ()


@pytest.mark.parametrize("column", ["slide_id", "path", "wsi"])
def test_a_table_names_slides_and_what_is_known_of_them(folder: Path, column: str) -> None:
    table = folder / "cohort.csv"
    table.write_text(
        f"{column},mpp,patient_id,label,region,site\n"
        "b,0.25,0012,tumour,\"1mm,0,2mm,2mm\",x\n"
        "deep/c.ndpi,,=HYPERLINK(1),,,\n"
        "gone.svs,,,,,\n"
        f"{folder / 'a.SVS'},,,,,\n"
        "https://host/z.ome.zarr,,,,,\n"
    )  # fmt: skip
    first, second, gone, absolute, url = read_worklist([table])
    assert (first.path, first.mpp, first.patient_id, first.label) == (str(folder / "b.svs"), 0.25, "0012", "tumour")
    assert first.region == RegionText.parse("1mm,0,2mm,2mm")
    assert (second.patient_id, second.mpp) == ("=HYPERLINK(1)", None)
    assert (gone.name, gone.listed) == ("gone.svs", True)  # remains as a failed row
    assert absolute.path == str(folder / "a.SVS")
    assert url.source == "https://host/z.ome.zarr"
    united = read_worklist([folder, table])
    assert next(case for case in united if case.name == "b.svs" and "deep" not in case.path).patient_id == "0012"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("slide,label\na,b\n", "no column path, wsi or slide_id"),
        ("path\n", "lists no slide"),
        ("path,mpp\nb.svs,-1\n", "line 2: mpp '-1'"),
        ("path,region\nb.svs,here\n", "line 2: region 'here'"),
        ("path,patient_id\nb.svs,1\nb.svs,2\n", "given twice, with patient_id 1 and 2"),
        ("path,patient_id\n,1\n", "names no slide"),
    ],
)
def test_a_bad_table_is_refused(folder: Path, text: str, said: str) -> None:
    (folder / "cohort.csv").write_text(text)
    with pytest.raises(StreamviewError, match=said):
        read_worklist([folder / "cohort.csv"])


def test_names_that_are_no_utf8(tmp_path: Path) -> None:
    name = os.fsdecode(b"latin\xe9.svs")
    (tmp_path / name).write_text("x")
    (case,) = read_worklist([tmp_path])
    assert case.name == name
