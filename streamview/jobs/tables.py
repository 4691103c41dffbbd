"""The tables of a job, written from its records: regions, slides and patients.

A table is rows of typed values with a stated meaning and unit for every column (`REGIONS`, `SLIDES`, `PATIENTS`; docs/tables.md is tested
against them). CSV and Parquet are two ways of writing the same rows.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from streamview.files import atomic
from streamview.jobs.aggregation import Aggregate, Group, aggregate, aggregate_slides, by_policy
from streamview.jobs.records import RegionResult, SlideRecord, StoredMap, region_id
from streamview.results import RESEARCH_USE, Prediction
from streamview.streaming.memory import return_freed_blocks

if TYPE_CHECKING:
    import pyarrow

__all__ = [
    "PATIENTS",
    "REGIONS",
    "SLIDES",
    "Column",
    "Kind",
    "Row",
    "Table",
    "slide_row",
    "text_cell",
    "to_csv",
    "to_parquet",
    "write_tables",
]

Kind = Literal["text", "whole", "float32", "float64", "time"]
Value = str | int | float | datetime | None
Row = dict[str, Value]
_AGGREGATE = "aggregate"
_FORMULA = ("=", "+", "-", "@", "\t", "\r")  # https://owasp.org/www-community/attacks/CSV_Injection


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table.

    Parameters
    ----------
    name
        Its name; one that ends in an underscore stands for a column per class.
    kind
        Type of its values, any of which may be missing.
    meaning
        What it holds, with the unit.
    digits
        Significant digits in CSV; None for as many as the value has.
    """

    name: str
    kind: Kind
    meaning: str
    digits: int | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """A table of typed values.

    Parameters
    ----------
    columns
        In order, those of the classes included.
    rows
        Values by column; a column may be absent where there is no value.
    """

    columns: tuple[Column, ...]
    rows: Sequence[Row]


_SLIDE = (
    Column("slide_id", "text", "file name of the slide; `name~digest` where the job has another slide of that name"),
    Column("patient_id", "text", "the patient, as your table states it"),
    Column("label", "text", "the true label, as your table states it"),
)
_ANSWER = (
    Column("prediction", "text", "the predicted class; for multilabel those at 0.5 or above, separated by `; `; empty for regression"),
    Column("prob_", "float32", "probability (0..1) of each class; absent for regression"),
    Column("logit_", "float32", "logit of each class; the output for regression"),
)
_NETWORK = (
    Column("model_id", "text", "name of the network on its card"),
    Column("weights_sha256", "text", "hash of the weights"),
    Column("run_id", "text", "the run that computed it: `runs/<run_id>.json`"),
)
_COVERED = "share (0..1) of the slide's tissue inside the regions that count; empty if not measured, or if regions named by you overlap"
_STATUS = Column("status", "text", "`ok`; `failed`; `not aggregated`: regions cannot be put together; `superseded`: the slide was replaced")
_ERROR = Column("error", "text", "why there is no answer")

REGIONS: tuple[Column, ...] = (
    *_SLIDE,
    Column("region_id", "text", "the region, by position and size; `aggregate` in the row for the slide"),
    Column("level", "whole", "level of the slide that the next four refer to, always 0"),
    Column("x", "whole", "left edge, level-0 pixels"),
    Column("y", "whole", "top edge, level-0 pixels"),
    Column("width", "whole", "level-0 pixels"),
    Column("height", "whole", "level-0 pixels"),
    Column("mpp", "float64", "um per level-0 pixel, horizontally; empty if unknown", 6),
    Column("width_um", "float64", "width in um", 6),
    Column("tissue_covered", "float64", "share (0..1) of the slide's tissue inside the region; in `aggregate` rows as in slides.csv", 4),
    *_ANSWER,
    *_NETWORK,
    _STATUS,
    _ERROR,
    Column("maps", "text", "targets explained, separated by `; `"),
    Column("precision", "text", "precision of the streamed part: `float32`, `bf16` or `fp16`"),
    Column("aggregation", "text", "how the answers for regions were put together"),
    Column("regions", "text", "`region_id`s that the answer is from, separated by `; `"),
    Column("policy", "text", "how the regions were chosen"),
    Column("grid_mpp", "float64", "um/px of the network's grid, horizontally", 6),
    Column("mpp_source", "text", "where the slide's mpp is from: `given`, `file` or `unknown`"),
    Column("padded", "text", "WIDTHxHEIGHT in px of the network's grid that the region was zero-padded to"),
    Column("identity", "text", "hash of all that decides the values; the same in maps and exports"),
    Column("source", "text", "path or URL of the slide; bytes that are not UTF-8 as `\\udcXX`"),
    Column("warnings", "text", "what the reader must know, one sentence each"),
)
SLIDES: tuple[Column, ...] = (
    *_SLIDE,
    _STATUS,
    *_ANSWER,
    Column("regions", "whole", "number of regions that count"),
    Column("without_tissue", "whole", "number of regions that were answered and left out for lack of tissue"),
    Column("tissue_covered", "float64", _COVERED, 4),
    Column("policy", "text", "how the regions were chosen"),
    Column("aggregation", "text", "how their answers were put together"),
    Column("other_answers", "whole", "number of other answers for the slide, by other networks or settings: see predictions.csv"),
    *_NETWORK,
    Column("precision", "text", "precision of the streamed part: `float32`, `bf16` or `fp16`"),
    Column("finished", "time", "when the slide was completed, UTC"),
    Column("seconds", "float64", "time that its last run took", 4),
    _ERROR,
    Column("source", "text", "path or URL of the slide; bytes that are not UTF-8 as `\\udcXX`"),
    Column("warnings", "text", "what the reader must know, one sentence each"),
)
PATIENTS: tuple[Column, ...] = (
    Column("patient_id", "text", "the patient"),
    Column("label", "text", "true labels of the patient's slides, each once, separated by `; `"),
    Column("status", "text", "`ok`; `incomplete`: some slides have no answer; `failed`: none has; `not aggregated`"),
    *_ANSWER,
    Column("slides", "whole", "number of slides of the patient in this job"),
    Column("slides_answered", "whole", "number of them that the answer is from"),
    Column("slide_ids", "text", "those, separated by `; `"),
    Column("least_tissue_covered", "float64", "the smallest `tissue_covered` of them", 4),
    Column("aggregation", "text", "how the slides' answers were put together"),
    *_NETWORK[:2],
    _ERROR,
)


def write_tables(folder: Path, records: Sequence[SlideRecord], damaged: Mapping[str, str]) -> list[Path]:
    """Write ``predictions``, ``slides`` and, if patients are known, ``patients`` as CSV, and as Parquet if pyarrow is installed.

    Parameters
    ----------
    folder
        The job.
    records
        Records of the slides.
    damaged
        Errors of the records that cannot be read, by file stem.

    Returns
    -------
    list of Path
        The written files.

    Raises
    ------
    StreamviewError
        If they cannot be written.
    """
    whole = [slide_row(record) for record in records] + [
        {"slide_id": stem, "status": "failed", "error": text} for stem, text in damaged.items()
    ]
    tables = {"predictions": _regions(records, damaged), "slides": _table(SLIDES, whole)}
    patients = _patients(records)
    if patients:
        tables["patients"] = _table(PATIENTS, patients)
    written, parquet = [], find_spec("pyarrow") is not None
    if parquet:
        return_freed_blocks()  # pyarrow takes some 90 MB, which must not come on top of what a run has freed
    for name, table in tables.items():
        written.append(folder / f"{name}.csv")
        atomic.write_text(written[-1], to_csv(table))
        if parquet:
            written.append(folder / f"{name}.parquet")
            to_parquet(table, written[-1])
    return written


def to_csv(table: Table) -> str:
    """Return a table as CSV: a header, missing values empty, text that a spreadsheet would take for a formula after an apostrophe."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(column.name for column in table.columns)
    for row in table.rows:
        writer.writerow(_cell(column, row.get(column.name)) for column in table.columns)
    return text.getvalue()


def to_parquet(table: Table, path: Path) -> None:
    """Write a table as Parquet: nullable columns, the meaning of each in its metadata.

    Raises
    ------
    StreamviewError
        If it cannot be written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds: dict[Kind, pyarrow.DataType] = {
        "text": pa.string(), "whole": pa.int64(), "float32": pa.float32(), "float64": pa.float64(), "time": pa.timestamp("s", "UTC"),
    }  # fmt: skip
    schema = pa.schema(
        [pa.field(column.name, kinds[column.kind], metadata={"meaning": column.meaning}) for column in table.columns],
        metadata={"note": RESEARCH_USE},
    )
    columns = [[_plain(row.get(column.name)) for row in table.rows] for column in table.columns]
    arrays = [pa.array(values, field.type) for values, field in zip(columns, schema, strict=True)]
    with atomic.replacing(path) as temporary:
        pq.write_table(pa.Table.from_arrays(arrays, schema=schema), temporary)


def text_cell(text: str) -> str:
    """Return a text as a cell of CSV that no spreadsheet takes for a formula."""
    return f"'{text}" if text.startswith(_FORMULA) else text


def _cell(column: Column, value: Value) -> str:
    if value is None:
        return ""
    if column.kind == "text":
        return text_cell(str(value))
    if isinstance(value, datetime):
        return value.strftime("%Y-%m-%dT%H:%M:%SZ")
    if column.kind == "float32":
        return str(np.float32(value))
    return str(value) if column.digits is None or isinstance(value, int) else f"{value:.{column.digits}g}"


def _plain(value: Value) -> Value:
    """A value that Parquet can hold: text is UTF-8."""
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value


def _table(columns: Iterable[Column], rows: Sequence[Row]) -> Table:
    """A table with a column per class in place of each that stands for one."""
    names = list(dict.fromkeys(key for row in rows for key in row if key.startswith(("prob_", "logit_"))))
    placed: list[Column] = []
    for column in columns:
        if column.name.endswith("_"):
            of_classes = [name for name in names if name.startswith(column.name)]
            placed += [Column(name, column.kind, column.meaning, column.digits) for name in of_classes]
        else:
            placed.append(column)
    return Table(tuple(placed), rows)


def _regions(records: Iterable[SlideRecord], damaged: Mapping[str, str]) -> Table:
    """One row per region, an aggregate row per slide and policy, one row per failed slide or damaged record."""
    rows = [row for record in records for row in _rows(record)]
    rows += [{"slide_id": stem, "region_id": _AGGREGATE, "status": "failed", "error": error} for stem, error in damaged.items()]
    return _table(REGIONS, rows)


def _rows(record: SlideRecord) -> Iterable[Row]:
    slide = _named(record)
    for group in by_policy(record):
        for result in group.results:
            yield slide | _region(result) | {"status": "ok", "policy": group.policy}
        yield slide | _aggregated(group, aggregate(group))
    for result in record.regions:
        reason = record.superseded(result)
        if reason is not None:
            yield slide | _region(result) | {"status": "superseded", "error": reason}
    if record.error is not None:
        failed: Row = {"region_id": _AGGREGATE, "status": "failed", "error": record.error, "run_id": record.run_id}
        yield slide | failed | {"source": record.source}


def slide_row(record: SlideRecord) -> Row:
    """Return the row of a slide in the table of slides: of several answers the last one."""
    row = _named(record) | {"run_id": record.run_id, "source": record.source, "error": record.error}
    groups = by_policy(record)
    if record.error is not None:  # an earlier answer, if any, is in the table of regions
        return row | {"status": "failed", "other_answers": len(groups)}
    if not groups:
        return row | {"status": "superseded" if record.regions else "not aggregated"}
    group, whole = groups[-1], aggregate(groups[-1])
    prediction, work = group.results[-1].prediction, group.work
    warnings = dict.fromkeys(warning for result in whole.regions for warning in result.prediction.warnings)
    row |= {
        "status": "ok" if whole.prediction is not None else "not aggregated",
        "error": whole.reason,
        "regions": len(whole.regions),
        "without_tissue": len(whole.without_tissue),
        "tissue_covered": whole.tissue_covered,
        "policy": group.policy,
        "aggregation": whole.method or None,
        "other_answers": len(groups) - 1,
        "model_id": prediction.model_name,
        "weights_sha256": prediction.identity.weights_sha256,
        "run_id": group.results[-1].run_id if work is None else work.run_id,
        "precision": prediction.identity.precision,
        "finished": None if work is None else datetime.fromisoformat(work.finished),
        "seconds": None if work is None else work.seconds,
        "warnings": " ".join(warnings) or None,
    }
    return row if whole.prediction is None else row | _answer(whole.prediction)


def _patients(records: Iterable[SlideRecord]) -> list[Row]:
    """One row per patient, where patients are known."""
    by_patient: dict[str, list[SlideRecord]] = {}
    for record in records:
        if record.patient_id:
            by_patient.setdefault(record.patient_id, []).append(record)
    return [_patient(patient, slides) for patient, slides in sorted(by_patient.items())]


def _patient(patient: str, records: Sequence[SlideRecord]) -> Row:
    answered: list[tuple[SlideRecord, Group, Aggregate, Prediction]] = []
    for record in records:
        groups = by_policy(record) if record.error is None else []
        whole = aggregate(groups[-1]) if groups else None
        if whole is not None and whole.prediction is not None:
            answered.append((record, groups[-1], whole, whole.prediction))
    labels = dict.fromkeys(record.label for record in records if record.label)
    row: Row = {"patient_id": patient, "label": "; ".join(labels) or None, "slides": len(records), "slides_answered": len(answered)}
    if not answered:
        return row | {"status": "failed", "error": "no slide has an answer"}
    shares = [whole.tissue_covered for _, _, whole, _ in answered if whole.tissue_covered is not None]
    row |= {"slide_ids": "; ".join(record.slide_id for record, *_ in answered), "least_tissue_covered": min(shares, default=None)}
    _, group, _, first = answered[0]
    stated = group.results[-1].aggregation if group.work is None else group.work.aggregation
    prediction, method = aggregate_slides([prediction for *_, prediction in answered], stated)
    row |= {"model_id": first.model_name, "weights_sha256": first.identity.weights_sha256}
    if prediction is None:
        return row | {"status": "not aggregated", "error": method}
    return row | _answer(prediction) | {"status": "ok" if len(answered) == len(records) else "incomplete", "aggregation": method}


def _named(record: SlideRecord) -> Row:
    return {"slide_id": record.slide_id, "patient_id": record.patient_id or None, "label": record.label or None}


def _region(result: RegionResult) -> Row:
    prediction, region = result.prediction, result.prediction.region
    row = _policy(result) | _answer(prediction) | {key: getattr(region, key) for key in ("level", "x", "y", "width", "height")}
    if result.mpp is not None:
        row |= {"mpp": result.mpp[1], "width_um": region.width * result.mpp[1]}
    return row | {
        "region_id": region_id(region),
        "regions": region_id(region),
        "aggregation": "none: one region",
        "tissue_covered": result.tissue_covered,
        "maps": "; ".join(_map_name(stored, result.prediction.identity.method) for stored in result.maps) or None,
        "identity": prediction.identity.key,
        "warnings": " ".join(prediction.warnings) or None,
    }


def _aggregated(group: Group, whole: Aggregate) -> Row:
    row: Row = {"region_id": _AGGREGATE, "regions": "; ".join(region_id(counted.prediction.region) for counted in whole.regions) or None}
    row |= _policy(group.results[-1]) | {"tissue_covered": whole.tissue_covered, "policy": group.policy}
    if whole.prediction is None:
        return row | {"status": "not aggregated", "error": whole.reason}
    warnings = dict.fromkeys(warning for counted in whole.regions for warning in counted.prediction.warnings)
    return row | _answer(whole.prediction) | {"status": "ok", "aggregation": whole.method, "warnings": " ".join(warnings) or None}


def _policy(result: RegionResult) -> Row:
    """The columns that all answers of one network and settings share."""
    prediction, identity = result.prediction, result.prediction.identity
    return {
        "model_id": prediction.model_name,
        "weights_sha256": identity.weights_sha256,
        "precision": identity.precision,
        "run_id": result.run_id,
        "grid_mpp": None if identity.mpp is None else identity.mpp[1],
        "mpp_source": identity.slide_mpp_source,
        "padded": None if identity.padded is None else f"{identity.padded[1]}x{identity.padded[0]}",
        "source": result.source,
    }


def _answer(prediction: Prediction) -> Row:
    values: Row = {"prediction": prediction.label}
    if prediction.probabilities is not None:
        values |= {f"prob_{name}": float(p) for name, p in zip(prediction.class_names, prediction.probabilities, strict=True)}
    return values | {f"logit_{name}": float(logit) for name, logit in zip(prediction.class_names, prediction.logits, strict=True)}


def _map_name(stored: StoredMap, method: str | None) -> str:
    name = stored.path if stored.target is None else stored.target.name
    return name if method is None else f"{name} by {method}"
