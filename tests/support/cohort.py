"""Cohorts of small slides, commands on them in processes of their own, and what a job holds apart from times and names of runs."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from streamview.slides.synthetic import write_synthetic_slide

__all__ = ["command", "contents", "start", "write_cohort"]

_OF_RUNS = ("run_id", "finished", "seconds")


def write_cohort(folder: Path, count: int, broken: int = 0, side: int = 256) -> list[Path]:
    """Write so many different slides, of which the last are broken."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"slide-{number:04d}.svs" for number in range(count)]
    write_synthetic_slide(paths[0], size=(side, side), seed=1)
    pixels = paths[0].read_bytes()
    for number, path in enumerate(paths):
        path.write_bytes(pixels[:1000] if number >= count - broken else pixels + number.to_bytes(4, "little"))
    return paths


def command(slides: Path | list[Path], job: Path, *options: str) -> list[str]:
    """A command line that predicts for them."""
    named = [str(slides)] if isinstance(slides, Path) else [str(path) for path in slides]
    return [sys.executable, "-m", "streamview.cli", "predict", "-i", *named, "-o", str(job), "-m", "demo", "--skip-errors", *options]


def start(arguments: list[str]) -> subprocess.Popen[str]:
    """Start it, in a session of its own."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        arguments, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )  # fmt: skip


def contents(job: Path) -> dict[str, Any]:
    """Records, tables and maps of a job, without what differs between two runs of the same."""
    held: dict[str, Any] = {}
    for path in sorted((job / "slides").glob("*.json")):
        record = json.loads(path.read_text())
        for part in (record, *record["regions"], *record["completed"]):
            for name in _OF_RUNS:
                part.pop(name, None)
        for region in record["regions"]:
            region["plan"] = None  # the forecast of time
        held[path.name] = record
    for path in job.glob("*.csv"):
        with path.open(newline="") as file:
            held[path.name] = [{key: value for key, value in row.items() if key not in _OF_RUNS} for row in csv.DictReader(file)]
    for path in sorted((job / "saliency").rglob("*")):
        if path.is_file() and path.name != "zarr.json":
            held[path.relative_to(job).as_posix()] = path.read_bytes()
    return held
