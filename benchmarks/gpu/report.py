"""The results of a GPU as tables of docs/benchmarks.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.report import markdown
from streamview.files import atomic

__all__ = ["PAGE", "insert", "tables"]

PAGE = Path(__file__).parents[2] / "docs/benchmarks.md"
_BEGIN, _END = "<!-- gpu: begin -->", "<!-- gpu: end -->"
_GB = 2**30


def insert(page: Path, record: Mapping[str, Any]) -> None:
    """Put the tables of a record between their marks in a page."""
    before, _, rest = page.read_text(encoding="utf-8").partition(_BEGIN)
    _, _, after = rest.partition(_END)
    atomic.write_text(page, f"{before}{_BEGIN}\n{tables(record)}\n{_END}{after}")


def tables(record: Mapping[str, Any]) -> str:
    """Checks, whole calls and passes of a record."""
    parts = [f"On {record['device']}, torch {record['torch']}, Python {record['python']}."]
    if record["checks"]:
        lines = [[row["name"], "holds" if row["passed"] else "FAILS", row["result"]] for row in record["checks"]]
        parts.append(markdown(("check", "", "what was seen"), lines))
    if record["slides"]:
        parts.append(markdown(_SLIDE, [_slide(row) for row in record["slides"]]))
    if record["measures"]:
        parts.append(markdown(_PASS, _passes(record["measures"])))
    if record["left_out"]:
        parts.append(f"Not measured, for want of time: {len(record['left_out'])} of {len(record['left_out']) + len(record['measures'])}.")
    return "\n\n".join(parts)


_SLIDE = (
    "saliency of a slide",
    "precision",
    "whole call, s",
    "forecast, s",
    "peak, GB",
    "forecast, GB",
    "planning, s",
    "reading, s",
    "overlap",
)


def _slide(row: Mapping[str, Any]) -> list[str]:
    return [
        f"{row['size']} x {row['size']} px", row["precision"], f"{row['seconds']:.2f}", _number(row["forecast_seconds"]),
        f"{row['peak_bytes'] / _GB:.1f}", f"{row['forecast_bytes'] / _GB:.1f}", f"{row['planning_seconds']:.2f}",
        f"{row['reading_seconds']:.2f}", f"{row['overlap']:.0%}",
    ]  # fmt: skip


_PASS = (
    "network", "px", "pass", "precision", "conventional, s", "streamview, s", "ratio", "conventional, GB", "streamview, GB", "planned, GB",
    "forecast, s",
)  # fmt: skip


def _passes(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    def key(row: Mapping[str, Any]) -> tuple[Any, ...]:
        return row["network"], row["size"], row["kind"], row["precision"]

    others = {key(row): row for row in rows if row["contestant"] == "conventional"}
    lines = []
    for row in (row for row in rows if row["contestant"] == "streamview"):
        other = others.get(key(row), {})
        ratio = f"{row['seconds'] / other['seconds']:.2f}" if "seconds" in row and "seconds" in other else ""
        lines.append(
            [
                row["network"], str(row["size"]), row["kind"], row["precision"], other.get("note", _number(other.get("seconds"))),
                row.get("note", _number(row.get("seconds"))), ratio, _gigabytes(other.get("peak_bytes")), _gigabytes(row.get("peak_bytes")),
                _gigabytes(row.get("planned_bytes")), _number(row.get("forecast_seconds")),
            ]
        )  # fmt: skip
    return lines


def _number(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds:.3g}"


def _gigabytes(amount: int | None) -> str:
    return "" if amount is None else f"{amount / _GB:.2f}"
