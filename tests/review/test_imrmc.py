"""The iMRMC file: back and forth, and what is wrong with a file named by its line."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamview.errors import ReviewError
from streamview.review.reads import Read
from streamview.review.statistics.imrmc import format_imrmc, parse_imrmc

FILE = """A study of two cases
and a second line
N0: 1
N1: 1
NR: 1
NM: 2
BEGIN DATA:
-1,c1,truth,0
-1,c2,truth,1
r1,c1,unaided,0.25
r1,c2,unaided,3
r1,c1,aided,-1e-3
r1,c2,aided,4
"""


def test_a_file_is_read():
    reads, truth = parse_imrmc(FILE)
    assert truth == {"c1": "0", "c2": "1"}
    assert reads[:3] == (Read("r1", "c1", "unaided", "", 0.25), Read("r1", "c2", "unaided", "", 3), Read("r1", "c1", "aided", "", -0.001))
    assert parse_imrmc(FILE.replace("\n", "\r\n")) == (reads, truth)
    assert parse_imrmc(FILE.replace("truth", "0")) == (reads, truth)
    named = FILE.replace("unaided", "1").replace("aided", "2")
    assert parse_imrmc(named, {"1": "unaided", "2": "aided"}) == (reads, truth)


def test_a_file_is_written_line_by_line():
    reads = [Read("r1", "c1", "aided", "b", 2.5), Read("r1", "c1", "unaided", "a", 1)]
    assert format_imrmc(reads, {"c1": "b", "unread": None}, ["b", "c"]).splitlines() == [
        "N0: 0",
        "N1: 1",
        "NR: 1",
        "NM: 2",
        "BEGIN DATA:",
        "-1,c1,truth,1",
        "r1,c1,unaided,1",
        "r1,c1,aided,2.5",
    ]


names = st.text(st.characters(exclude_characters=",", exclude_categories=("Z", "C")), min_size=1, max_size=6).filter(
    lambda text: text != "-1" and not any(character.isspace() for character in text)
)


@settings(deadline=None, max_examples=60)
@given(
    st.dictionaries(
        st.tuples(names, names, st.sampled_from(["unaided", "aided"])), st.floats(allow_nan=False, allow_infinity=False), min_size=1
    ),
    st.data(),
)
def test_what_was_written_is_read_again(scores, data):
    reads = [Read(reader, case, modality, "", score) for (reader, case, modality), score in scores.items()]
    truth = {read.case: data.draw(st.sampled_from("01")) for read in reads}
    found, known = parse_imrmc(format_imrmc(reads, truth, "1", title="A title, free"))
    assert known == truth
    assert sorted(map(repr, found)) == sorted(repr(Read(r.reader, r.case, r.modality, "", float(r.score) + 0.0)) for r in reads)


BROKEN = [
    ("BEGIN DATA:", "BEGIN:", "line 13: the file ends without a line 'BEGIN DATA:'"),
    ("BEGIN DATA:", " BEGIN DATA: ", "line 13: the file ends without a line"),
    ("N0: 1\n", "", "line 6: no line 'N0'"),
    ("N1: 1", "N1: one", "line 4: 'N1: one'; expected a whole number"),
    ("N1: 1", "N0: 1", "line 4: N0 is also in line 3"),
    ("N0: 1", "N0: 2", "line 3: N0 is 2, but the data have 1"),
    ("NR: 1", "NR: 5", "line 5: NR is 5, but the data have 1"),
    ("NM: 2", "NM: 1", "line 6: NM is 1, but the data have 2"),
    ("-1,c1,truth,0", "-1,c1,truth,2", "line 8: truth '2'; expected 0 or 1"),
    ("-1,c1,truth,0", "-1,c1,unaided,0", "line 8: modality 'unaided' in a truth row"),
    ("-1,c2,truth,1", "-1,c1,truth,1", "line 9: the truth of case c1 is given twice"),
    ("-1,c2,truth,1\n", "", "line 10: case c2 has no truth row"),
    ("-1,c2,truth,1", "-1,C2,truth,1", "line 11: case c2 has no truth row"),
    ("r1,c1,unaided,0.25", "r1,c1,unaided", "line 10: 'r1,c1,unaided'; expected readerID,caseID,modalityID,score"),
    ("r1,c1,unaided,0.25", "r1,,unaided,0.25", "line 10: "),
    ("r1,c1,unaided,0.25", "r1, c1,unaided,0.25", "line 10: .*without spaces"),
    ("r1,c1,unaided,0.25", "r1,c1,Unaided,0.25", "line 10: modality 'Unaided'; expected unaided or aided"),
    ("r1,c1,unaided,0.25", "r1,c1,unaided,nan", "line 10: score 'nan'; expected a finite number"),
    ("r1,c1,unaided,0.25", "r1,c1,unaided,1_0", "line 10: score '1_0'"),
    ("r1,c1,unaided,0.25", "r1,c1,unaided,1e999", "line 10: score '1e999'"),
    ("r1,c1,unaided,0.25", "r1,c1,unaided,high", "line 10: score 'high'"),
    ("r1,c2,unaided,3", "r1,c1,unaided,3", "line 11: reader r1, case c1, modality unaided is also in line 10"),
]


@pytest.mark.parametrize(("right", "wrong", "message"), BROKEN, ids=[message[:40] for *_, message in BROKEN])
def test_an_error_names_the_line(right, wrong, message):
    assert right in FILE
    with pytest.raises(ReviewError, match=message):
        parse_imrmc(FILE.replace(right, wrong, 1))


def test_an_empty_file_is_none():
    with pytest.raises(ReviewError, match="line 1: the file ends"):
        parse_imrmc("")


@pytest.mark.parametrize(
    ("read", "truth", "message"),
    [
        (Read("r,1", "c", "aided", "a", 1), {"c": "a"}, "reader id 'r,1'"),
        (Read("", "c", "aided", "a", 1), {"c": "a"}, "reader id ''"),
        (Read("r", "c 1", "aided", "a", 1), {"c 1": "a"}, "case id 'c 1'"),
        (Read("r", "c\n", "aided", "a", 1), {"c\n": "a"}, "case id"),
        (Read("-1", "c", "aided", "a", 1), {"c": "a"}, "means the truth"),
        (Read("r", "c", "aided", "a"), {"c": "a"}, "has no score"),
        (Read("r", "c", "aided", "a", 1), {"c": None}, "case 'c' has no truth"),
    ],
)
def test_what_the_format_cannot_hold_is_refused(read, truth, message):
    with pytest.raises(ReviewError, match=message):
        format_imrmc([read], truth, "a")


def test_a_title_is_none_of_the_files_own_lines():
    read, truth = Read("r", "c", "aided", "a", 1), {"c": "a"}
    for title in ("N0: 3", "BEGIN DATA:", "two\nlines", "two\u2028lines"):
        with pytest.raises(ReviewError, match="title"):
            format_imrmc([read], truth, "a", title=title)
    with pytest.raises(ReviewError, match="no reads"):
        format_imrmc([], {}, "a")
    with pytest.raises(ReviewError, match="two aided reads"):
        format_imrmc([read, read], truth, "a")
