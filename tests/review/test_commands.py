"""``streamview review``: from a job to a session, its tables, and the files of several readers."""

from __future__ import annotations

import csv
import io
import json
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from streamview.cli import main
from streamview.review import Session
from streamview.review.bundle import merge, pack, unpack
from streamview.review.sitting import Sitting
from streamview.review.tables import COLUMNS, write_verdicts
from streamview.slides.synthetic import write_synthetic_slide
from tests.review.test_session import CASES, WORDS


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("review")
    (place / "slides").mkdir()
    for seed, name in enumerate(("miller", "smith"), 5):
        write_synthetic_slide(place / "slides" / f"{name}.svs", size=(256, 256), seed=seed)
    (place / "slides" / "doe.svs").write_bytes(b"damaged")
    main(["predict", "-i", str(place / "slides"), "-o", str(place / "job"), "-m", "demo", "--skip-errors", "--quiet"])
    return place / "job"


def test_a_session_of_a_job(job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "s.sqlite"
    assert main(["review", "new", str(job), "-o", str(path), "--readers", "a,b", "--seed", "5"]) == 0
    assert "2 slides, staged, readers a, b" in capsys.readouterr().out
    with Session(path) as session:
        assert sorted(case.name for case in session.cases.values()) == ["miller.svs", "smith.svs"]  # not the damaged one
        assert session.vocabulary.verdicts == ("normal", "lesion")
        assert all(case.answer.startswith(("normal (p", "lesion (p")) for case in session.cases.values())
        assert all(Path(case.source).exists() for case in session.cases.values())
        reader = session.reader("a")
        step = reader.current()
        assert step is not None
        reader.decide(step, "normal", 4, note="=HYPERLINK()", seconds=61)
    assert main(["review", "status", str(path)]) == 0
    assert "a: 1 of 4 verdicts, 1 min" in capsys.readouterr().out
    assert main(["review", "export", str(path), "-o", str(tmp_path / "v.csv")]) == 0
    text = (tmp_path / "v.csv").read_text()
    assert not any(word in text for word in ("miller", "smith", "lesion (p", "normal (p"))
    rows = list(csv.DictReader(io.StringIO(text)))
    assert len(rows) == 8
    assert rows[0]["note"] == "'=HYPERLINK()"
    assert main(["review", "export", str(path), "-o", str(tmp_path / "n.csv"), "--names"]) == 0
    assert "miller.svs" in (tmp_path / "n.csv").read_text()
    assert main(["review", "export", str(path), "-o", str(tmp_path / "n.csv")]) == 1
    assert "exists" in capsys.readouterr().err


def test_the_truth_chooses_slides_and_verdicts_may_be_ones_own(job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "t.csv").write_text("slide_id,label\nmiller.svs,lesion\n")
    (tmp_path / "v.json").write_text(json.dumps({"verdicts": ["G1", "G2", "G3"], "ordinal": True, "confidence": 0}))
    options = ["--truth", str(tmp_path / "t.csv"), "--verdicts", str(tmp_path / "v.json"), "--design", "concurrent"]
    assert main(["review", "new", str(job), "-o", str(tmp_path / "s.sqlite"), "--readers", "a", *options]) == 0
    with Session(tmp_path / "s.sqlite") as session:
        assert [(case.name, case.truth) for case in session.cases.values()] == [("miller.svs", "lesion")]
        assert session.vocabulary.ordinal
        step = session.reader("a").current()
        assert step is not None
        session.reader("a").decide(step, "G2")
    capsys.readouterr()
    (tmp_path / "t.csv").write_text("slide_id,label\nother.svs,lesion\n")
    assert main(["review", "new", str(job), "-o", str(tmp_path / "t.sqlite"), "--readers", "a", *options]) == 1
    assert "has no slide other.svs" in capsys.readouterr().err
    (tmp_path / "v.json").write_text("[]")
    assert (
        main(["review", "new", str(job), "-o", str(tmp_path / "t.sqlite"), "--readers", "a", "--verdicts", str(tmp_path / "v.json")]) == 1
    )
    assert "a vocabulary: expected" in capsys.readouterr().err
    assert main(["review", "new", str(tmp_path), "-o", str(tmp_path / "t.sqlite"), "--readers", "a"]) == 1
    assert "a session is made of a job folder, or of slides" in capsys.readouterr().err


@pytest.fixture
def session(tmp_path: Path) -> Any:
    from streamview.review import create_session

    with create_session(tmp_path / "s.sqlite", CASES, ["a", "b"], vocabulary=WORDS, seed=3) as session:
        yield session


def read_all(session: Session, name: str, verdict: str) -> None:
    reader = session.reader(name)
    while (step := reader.current()) is not None:
        reader.open(step)
        reader.decide(step, verdict, 3, seconds=10)


def test_answers_are_in_the_table_when_all_are_done(session: Session) -> None:
    read_all(session, "a", "lesion")
    assert "0.98" not in write_verdicts(session)
    assert write_verdicts(session, names=True).count("0.98") == 20
    read_all(session, "b", "normal")
    text = write_verdicts(session)
    assert text.count("lesion (p = 0.98)") == 20
    assert "patient" not in text
    rows = list(csv.DictReader(io.StringIO(text)))
    assert list(rows[0]) == list(COLUMNS)
    assert [row["position"] for row in rows if row["reader"] == "a"] == [str(n) for n in range(1, 11)]
    assert {row["seconds"] for row in rows} == {"10.0"}


def test_what_the_reads_are_worth(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two readers of 24 slides: one follows the network, also where it is wrong; the other never does."""
    from streamview.review import Case, create_session

    classes = ("normal", "lesion")
    names = [f"case-{number:02d}.svs" for number in range(24)]
    cases = []
    for number, name in enumerate(names):
        truth, wrong = classes[number % 2], number in (3, 8)
        answered = classes[(number + wrong) % 2]
        cases.append(Case(name, f"/slides/{name}", truth=truth, answer=f"{answered} (p = 0.9)", answered=answered))
    with create_session(tmp_path / "s.sqlite", cases, ["follower", "steady"], vocabulary=WORDS, seed=1) as session:
        for name in session.readers:
            reader = session.reader(name)
            while (step := reader.current()) is not None:
                case = session.cases[step.case]
                number = names.index(case.name)
                reader.open(step)
                alone = classes[(number + (number % 5 == 1)) % 2]  # wrong in 5 of 24
                verdict = case.answered if step.modality == "aided" and name == "follower" else alone
                reader.decide(step, verdict, 1 + number % 5, seconds=10)
    assert main(["review", "stats", str(tmp_path / "s.sqlite"), "-o", str(tmp_path / "stats"), "--positive", "lesion"]) == 0
    assert sorted(path.name for path in (tmp_path / "stats").iterdir()) == [
        "change.png",
        "readers.png",
        "reads.imrmc",
        "statistics.csv",
        "statistics.html",
        "statistics.json",
    ]
    text = (tmp_path / "stats" / "statistics.json").read_text()
    assert "case-" not in text
    found = json.loads(text)
    follower, steady = found["change"]
    assert (follower["reader"], follower["helped"], follower["harmed"]) == ("follower", 5, 2)
    assert (steady["changed"], steady["helped"], steady["harmed"]) == (0, 0, 0)
    assert found["agreement"]["unaided"]["fleiss"]["value"] == 1.0
    assert found["comparison"]["cases"] == 24
    assert (tmp_path / "stats" / "reads.imrmc").read_text().count("\n") > 24 + 96
    capsys.readouterr()
    assert main(["review", "stats", str(tmp_path / "s.sqlite"), "-o", str(tmp_path / "stats"), "--positive", "other"]) == 1
    assert "other is no verdict of this session" in capsys.readouterr().err


def test_without_truth_or_reads_it_says_why(session: Session) -> None:
    from streamview.errors import StreamviewError
    from streamview.review.summary import summarise

    with pytest.raises(StreamviewError, match="no verdict yet"):
        summarise(session)
    reader = session.reader("a")
    step = reader.current()
    assert step is not None
    reader.decide(step, "lesion", 3)
    summary = summarise(session)
    json.dumps(summary, allow_nan=False)
    assert isinstance(summary["agreement"]["aided"], str)
    assert summary["reads"] == 1


def test_two_copies_are_read_apart_and_merged(session: Session, tmp_path: Path) -> None:
    zipped = pack(session.path, tmp_path / "s.zip")
    far = unpack(zipped, tmp_path / "far.sqlite")
    read_all(session, "a", "lesion")
    with Session(far) as other:
        read_all(other, "b", "normal")
    events = len(session.store.events())
    assert merge(session.path, pack(far, tmp_path / "far.zip")) == 20
    assert merge(session.path, far) == 0
    assert len(session.store.events()) == events + 20
    assert all(reading.done for name in "ab" for reading in session.reader(name).readings().values())


def test_what_is_not_this_session_is_refused(session: Session, tmp_path: Path) -> None:
    from streamview.errors import StreamviewError
    from streamview.review import create_session

    with create_session(tmp_path / "other.sqlite", [replace(CASES[0], answer="x")], ["a"], vocabulary=WORDS):
        pass
    with pytest.raises(StreamviewError, match="another session"):
        merge(session.path, tmp_path / "other.sqlite")
    zipped = pack(session.path, tmp_path / "s.zip")
    with zipfile.ZipFile(zipped) as archive:
        manifest, data = archive.read("manifest.json"), bytearray(archive.read("session.sqlite"))
    data[-1] ^= 1
    with zipfile.ZipFile(tmp_path / "changed.zip", "w") as archive:
        archive.writestr("manifest.json", manifest)
        archive.writestr("session.sqlite", bytes(data))
    with pytest.raises(StreamviewError, match="differs from the hash"):
        unpack(tmp_path / "changed.zip", tmp_path / "new.sqlite")
    assert not (tmp_path / "new.sqlite").exists()
    (tmp_path / "text.zip").write_text("no zip")
    with pytest.raises(StreamviewError, match="no packed session"):
        unpack(tmp_path / "text.zip", tmp_path / "new.sqlite")
    with pytest.raises(StreamviewError, match="exists"):
        pack(session.path, zipped)


def test_slides_without_a_job_are_read_without_a_network(job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    slides = job.parent / "slides"
    table = tmp_path / "slides.csv"
    table.write_text(f"path,label\n{slides / 'miller.svs'},benign\n{slides / 'smith.svs'},malignant\n")
    path = tmp_path / "s.sqlite"
    assert main(["review", "new", str(table), "-o", str(path), "--readers", "a"]) == 0
    assert "2 slides, unaided, readers a" in capsys.readouterr().out
    with Session(path) as session:
        assert session.vocabulary.verdicts == ("benign", "malignant")
        assert {case.truth for case in session.cases.values()} == {"benign", "malignant"}
        reader = session.reader("a")
        assert [step.modality for step in reader.steps] == ["unaided", "unaided"]
        sitting = Sitting(reader)
        sitting.decide("benign", 3)
        assert not sitting.sheet().revealing
        sitting.decide("malignant", 3)
        assert sitting.sheet().message == "All slides are read. Thank you."
    assert main(["review", "stats", str(path), "-o", str(tmp_path / "stats")]) == 0
    assert main(["review", "new", str(table), "-o", str(tmp_path / "t.sqlite"), "--readers", "a", "--design", "staged"]) == 1
    assert "has no answer of a network" in capsys.readouterr().err
    assert main(["review", "new", str(slides), "-o", str(tmp_path / "u.sqlite"), "--readers", "a"]) == 1
    assert "doe.svs: not a slide" in capsys.readouterr().err
    assert main(["review", "new", str(slides / "smith.svs"), "-o", str(tmp_path / "u.sqlite"), "--readers", "a"]) == 1
    assert "name the verdicts with --verdicts" in capsys.readouterr().err
