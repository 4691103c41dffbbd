"""The tables: typed, safe, documented, and read back by what statisticians use."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamview.jobs import Job, SlideWork
from streamview.jobs.tables import PATIENTS, REGIONS, SLIDES, Column
from tests.support.jobs import answer

PAGE = Path(__file__).parents[2] / "docs" / "tables.md"
KINDS = {"text": "text", "whole": "whole number", "float32": "number (float32)", "float64": "number (float64)", "time": "time (UTC)"}
NAMES = ('=1+1, "quoted"', "error", "all", "two\nlines")


def work(result: Any, number: int) -> SlideWork:
    return SlideWork(
        f"w{number}", (result.prediction.identity.key,), "whole slide", None, 0.5, False, "run-1", "2026-11-27T12:00:00+00:00", 1.5
    )


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """Three patients, five slides: two failed, one of them with an earlier answer; awkward ids."""
    job = Job(tmp_path / "job")
    rows = [("a.svs", "0012", "pos"), ("b.svs", "0012", "pos"), ("=c.svs", "-7", "@neg"), ("d.svs", "+x", "")]
    for number, (name, patient, label) in enumerate(rows):
        result = answer(name, logits=(0.1, float(number)))
        result = replace(result, prediction=replace(result.prediction, class_names=NAMES[:2]), source=f"/slides/\udce9/{name}", maps=())
        job.add(result, patient_id=patient, label=label)
        job.complete(name, work(result, number))
    job.fail("d.svs", 'truncated,\n at "3"', "run-2", patient_id="+x")
    job.fail("e.svs", "=unreadable", "run-2", patient_id="lost")
    job.write_tables()
    return job


def documented(title: str) -> list[tuple[str, str, str]]:
    part = re.split(r"^## ", PAGE.read_text(), flags=re.MULTILINE)
    (text,) = (one for one in part if one.startswith(title))
    rows = [line.strip("|").split(" | ") for line in text.splitlines() if line.startswith("| `")]
    return [(name.strip().strip("`").replace("<class>", ""), kind.strip(), meaning.strip()) for name, kind, meaning in rows]


@pytest.mark.parametrize(("title", "columns"), [("predictions", REGIONS), ("slides", SLIDES), ("patients", PATIENTS)])
def test_the_dictionary_says_what_the_writers_write(title: str, columns: tuple[Column, ...]) -> None:
    assert documented(f"{title}.csv") == [(column.name, KINDS[column.kind], column.meaning) for column in columns]


def test_statuses_of_slides_and_patients(job: Job) -> None:
    with (job.folder / "slides.csv").open(newline="") as file:
        slides = {row["slide_id"]: row for row in csv.DictReader(file)}
    assert {name: row["status"] for name, row in slides.items()} == {
        "a.svs": "ok", "b.svs": "ok", "'=c.svs": "ok", "d.svs": "failed", "e.svs": "failed",
    }  # fmt: skip
    assert slides["d.svs"]["prediction"] == ""  # an earlier answer does not count once a slide has failed
    assert (slides["d.svs"]["error"], slides["d.svs"]["other_answers"]) == ('truncated, at "3"', "1")
    assert slides["e.svs"]["error"] == "'=unreadable"
    assert slides["a.svs"]["source"] == "/slides/\\udce9/a.svs"
    with (job.folder / "patients.csv").open(newline="") as file:
        patients = {row["patient_id"]: row for row in csv.DictReader(file)}
    assert {name: row["status"] for name, row in patients.items()} == {"0012": "ok", "'-7": "ok", "'+x": "failed", "lost": "failed"}
    assert (patients["0012"]["label"], patients["0012"]["slide_ids"], patients["0012"]["slides_answered"]) == ("pos", "a.svs; b.svs", "2")
    assert float(patients["0012"]["logit_error"]) == 0.5  # the mean of 0 and 1
    assert patients["0012"]["aggregation"] == "mean of logits over 2 slides, unweighted"


def test_pandas_reads_the_csv(job: Job) -> None:
    pandas = pytest.importorskip("pandas")
    slides = pandas.read_csv(job.folder / "slides.csv", dtype={"slide_id": str, "patient_id": str, "label": str})
    assert slides.patient_id.tolist()[0:2] != [12, 12]
    assert "0012" in slides.patient_id.tolist()
    assert str(slides["regions"].dtype).startswith(("float", "Int"))
    ok = slides[slides.status == "ok"]
    assert ok["prob_error"].between(0, 1).all()
    assert slides[slides.status == "failed"]["prob_error"].isna().all()
    assert pandas.to_datetime(ok.finished, utc=True).notna().all()
    probabilities = json.loads((job.folder / "slides" / "a.svs.json").read_text())["regions"][0]["prediction"]["probabilities"]
    row = ok[ok.slide_id == "a.svs"].iloc[0]
    assert np.float32(row["prob_error"]) == np.float32(probabilities[1])  # nothing is lost on the way


def test_parquet_has_the_types_of_the_dictionary(job: Job) -> None:
    parquet, polars = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("polars")
    types = {"text": "string", "whole": "int64", "float32": "float", "float64": "double", "time": "timestamp[s, tz=UTC]"}
    for name, columns in (("predictions", REGIONS), ("slides", SLIDES), ("patients", PATIENTS)):
        schema = parquet.read_schema(job.folder / f"{name}.parquet")
        expected = [(column.name, types[column.kind]) for column in columns if not column.name.endswith("_")]
        fixed = [(field.name, str(field.type)) for field in schema if not field.name.startswith(("prob_", "logit_"))]
        assert [(name, kind.replace("timestamp[ms", "timestamp[s")) for name, kind in fixed] == expected
        assert {str(field.type) for field in schema if field.name.startswith(("prob_", "logit_"))} == {"float"}
        assert all(field.nullable for field in schema)
        assert schema.field(expected[0][0]).metadata[b"meaning"].decode() == columns[0].meaning
        with (job.folder / f"{name}.csv").open(newline="") as file:
            assert next(csv.reader(file)) == schema.names
    slides = polars.read_parquet(job.folder / "slides.parquet")
    assert slides["patient_id"].to_list().count("0012") == 2
    assert slides.filter(polars.col("slide_id") == "=c.svs")["label"].to_list() == ["@neg"]  # no apostrophe where there are no formulas
    assert slides["prob_error"].null_count() == 2
    assert slides["prob_error"].is_nan().sum() == 0


def test_r_reads_the_csv_as_it_does_by_its_own_rules(job: Job) -> None:
    """R's read.csv: a header, doubled quotes, one row per record, empty cells missing; checked by those rules, since R may not be here."""
    text = (job.folder / "slides.csv").read_text()
    assert "\r" not in text
    assert not text.startswith("\ufeff")
    rows = list(csv.reader(text.splitlines(keepends=True), doublequote=True, strict=True))
    assert len({len(row) for row in rows}) == 1
    assert not any(cell in ("NA", "NaN", "nan", "None", "null", "inf") for row in rows for cell in row)
    kinds = {column.name: column.kind for column in SLIDES}
    for name, *cells in zip(*rows, strict=True):
        kind = kinds.get(name, "float32")
        if kind in ("float32", "float64", "whole"):
            assert all(cell == "" or np.isfinite(float(cell)) for cell in cells)


def test_no_nan_in_json(job: Job) -> None:
    for path in job.folder.rglob("*.json"):
        json.loads(path.read_text(), parse_constant=pytest.fail)
