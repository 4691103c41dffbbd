"""Read tables written by Excel, R or pandas: cells by column, with line numbers."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from streamview.errors import LabelError
from streamview.files.kinds import describe_file

__all__ = ["Row", "parse_mpp", "parse_number", "read_table"]

_SEPARATORS = (",", ";", "\t", "|", " ")
_SPACES = "\ufeff\u200b"  # that str.strip leaves
_STATED = re.compile(r'"?sep=([^"\r\n])"?[^\w\r\n]*(?:\r\n|\r|\n)')
_COMMA = re.compile(r"[+-]?\d+,\d+(?:[eE][+-]?\d+)?")
_THOUSANDS = re.compile(r"[+-]?[1-9]\d{0,2},\d{3}")


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a table.

    Parameters
    ----------
    line
        Number of its first line in the file, from 1.
    cells
        Text by column, without spaces around it.
    """

    line: int
    cells: dict[str, str]


def read_table(path: Path, known: Sequence[str], required: Sequence[str]) -> tuple[tuple[str, ...], tuple[Row, ...]]:
    """Read a table with a header; empty lines are skipped.

    UTF-8 or Excel's UTF-16, with or without a byte order mark; separated by commas, semicolons, tabs, bars or spaces, whichever gives the
    required columns; optionally with Excel's first line ``sep=;``.

    Parameters
    ----------
    path
        The file.
    known
        Columns matched regardless of case.
    required
        Columns that the table must have.

    Returns
    -------
    tuple
        Names of the columns, and the rows.

    Raises
    ------
    LabelError
        If the file is missing or is not such a table, a column is missing or appears twice, or a line has more cells than columns.
    """
    expected = f"expected a CSV table with the columns {','.join(required)}"
    text = _decode(_read(path, expected), path, expected)
    stated = _STATED.match(text)
    skipped, candidates = 0, list(_SEPARATORS)
    if stated is not None:
        skipped, candidates, text = 1, [stated[1], *_SEPARATORS], text[stated.end() :]
    header = next((line for line in text.splitlines() if line.strip()), "")
    separator = max(candidates, key=lambda mark: _suits(header, mark, required))
    rows: list[tuple[int, list[str]]] = []
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True, skipinitialspace=separator == " ")
        line = skipped + 1
        for cells in reader:
            rows.append((line, [_strip(cell) for cell in cells]))
            line = skipped + reader.line_num + 1
    except csv.Error as error:
        raise LabelError(f"{path} is not a CSV table ({error}); {expected}") from None
    rows = [(line, cells) for line, cells in rows if any(cells)]
    columns = [next((name for name in known if name == cell.casefold()), cell) for cell in (rows[0][1] if rows else [])]
    _check_columns(path, columns, required)
    for line, cells in rows[1:]:
        if any(cells[len(columns) :]):
            remedy = "quote cells that hold the separator; of R, write without row names (row.names = FALSE)"
            raise LabelError(f"{path}, line {line}: {len(cells)} cells under {len(columns)} columns; {remedy}")
    parsed = [Row(line, dict(zip(columns, [*cells, *[""] * len(columns)], strict=False))) for line, cells in rows[1:]]
    return tuple(column for column in columns if column), tuple(parsed)


def parse_number(text: str) -> float:
    """Parse a number, also with Excel's decimal comma.

    Raises
    ------
    ValueError
        If it is not a number, or could also have a thousands separator: ``1,024``.
    """
    if _COMMA.fullmatch(text) and not _THOUSANDS.fullmatch(text):
        text = text.replace(",", ".")
    return float(text)


def parse_mpp(row: Row, table: str) -> float | None:
    """Return um per level-0 pixel from the column ``mpp``; None if it is empty.

    Raises
    ------
    LabelError
        If it is not a positive number; the message names the table and line.
    """
    text = row.cells.get("mpp")
    if not text:
        return None
    try:
        mpp = parse_number(text)
    except ValueError:
        mpp = math.nan
    if not (math.isfinite(mpp) and mpp > 0):
        raise LabelError(f"{table}, line {row.line}: mpp {text!r}; expected micrometres per level-0 pixel above 0, or nothing")
    return mpp


def _read(path: Path, expected: str) -> bytes:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise LabelError(f"{path} does not exist; {expected}") from None
    except OSError as error:
        raise LabelError(f"{path} cannot be read ({error.strerror or error}); {expected}") from None
    kind = describe_file(data[:512])
    if data.startswith((b"PK\x03\x04", b"\xd0\xcf\x11\xe0")):
        raise LabelError(f"{path} is {kind}, which Excel's own formats are; {expected}: save it as 'CSV UTF-8'")
    if kind:
        raise LabelError(f"{path} is {kind}; {expected}")
    return data


def _decode(data: bytes, path: Path, expected: str) -> str:
    encoding = "utf-8-sig"
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        encoding = "utf-16"
    elif b"\x00" in data[:2]:
        encoding = "utf-16-be" if data[:1] == b"\x00" else "utf-16-le"
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        raise LabelError(f"{path} cannot be read ({error}); {expected} in UTF-8: save it as 'CSV UTF-8'") from None
    if "\x00" in text:
        raise LabelError(f"{path} is not text; {expected}")
    return text


def _suits(header: str, separator: str, required: Sequence[str]) -> tuple[int, int]:
    """The number of required columns and of all columns that a separator gives; spaces must give all required columns to count."""
    try:
        cells = [_strip(cell).casefold() for cell in next(csv.reader([header], delimiter=separator, skipinitialspace=separator == " "), [])]
    except csv.Error:
        return 0, 0
    matching = sum(name in cells for name in required)
    return (matching, len(cells)) if separator != " " else (matching if matching == len(required) else 0, 0)


def _check_columns(path: Path, columns: Sequence[str], required: Sequence[str]) -> None:
    for name in columns:
        places = [str(place) for place, other in enumerate(columns, 1) if other == name]
        if name and len(places) > 1:
            raise LabelError(f"{path} has the column {name} twice (columns {' and '.join(places)}); delete or rename one")
    absent = [name for name in required if name not in columns]
    if absent:
        shown = ", ".join(column for column in columns if column) or "nothing"
        remedy = "add it, separate the columns by commas, semicolons or tabs, and name them in the first line"
        raise LabelError(f"{path} has no column {' and no column '.join(absent)} (found: {shown}); {remedy}")


def _strip(cell: str) -> str:
    return cell.strip().strip(_SPACES).strip()
