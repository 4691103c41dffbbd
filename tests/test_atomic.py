"""Names of output for any name of a slide."""

import os
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from streamview.files.atomic import safe_stem, write_text

# Every name that a POSIX file system holds: any bytes but NUL and the slash.
NAMES = st.binary(min_size=1, max_size=255).filter(lambda name: not {0, 0x2F} & set(name)).map(os.fsdecode)


@given(NAMES)
def test_a_stem_is_short_legal_and_always_the_same(name: str) -> None:
    stem = safe_stem(name)
    assert 0 < len(stem.encode()) <= 128
    assert stem.isprintable()
    assert not set('/\\:*?"<>|') & set(stem)
    assert stem == stem.strip(" ").rstrip(".")
    assert not stem.startswith(".")
    assert safe_stem(name) == stem


@given(NAMES, NAMES)
def test_different_names_have_different_stems(first: str, second: str) -> None:
    assert (safe_stem(first) == safe_stem(second)) == (first == second)


def test_usual_names_are_their_own_stems() -> None:
    for name in ("slide.svs", "TCGA-02-0001-01Z.ome.tif", "Präparat 3 (HE).tiff", "切片.ndpi"):
        assert safe_stem(name) == name
    for name in ("a\nb.tif", "a:b.tif", "trailing ", "x" * 200, "con.svs", ".hidden", "", "latin\udce9.tif"):
        assert safe_stem(name) != name


def test_a_file_whose_name_is_as_long_as_may_be_is_written(tmp_path: Path) -> None:
    for name in ("x" * 255, "切" * 85, os.fsdecode(b"latin\xe9.json")):
        write_text(tmp_path / name, "text")
        assert (tmp_path / name).read_text() == "text"
    assert len(list(tmp_path.iterdir())) == 3
