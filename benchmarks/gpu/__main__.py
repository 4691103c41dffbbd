"""Check and measure on a GPU, within minutes.

    make gpu                                    # checks, then measures; results in gpu.json as they come
    python -m benchmarks.gpu --render gpu.json  # the tables of docs/benchmarks.md

Exit status 1 when a check failed.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.report import PAGE, insert, tables
from streamview.files import atomic


def main(arguments: list[str] | None = None) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, default=Path("gpu.json"), help="where the results go (default: gpu.json)")
    parser.add_argument("--minutes", type=float, default=9.0, help="time for all; what is left then is not measured (default: 9)")
    parser.add_argument("--only", nargs="+", choices=("checks", "measures", "slide"), default=("checks", "slide", "measures"))
    parser.add_argument("--render", type=Path, metavar="JSON", help="write the tables of earlier results into docs/benchmarks.md, and end")
    options = parser.parse_args(arguments)
    if options.render is not None:
        insert(PAGE, json.loads(options.render.read_text()))
        return 0
    if not torch.cuda.is_available():
        print(f"no GPU: torch {torch.__version__} sees no CUDA device, so nothing was checked or measured")
        return 0
    device = torch.device("cuda", torch.cuda.current_device())
    record = run(device, options.json, set(options.only), time.monotonic() + 60 * options.minutes)
    print(tables(record))
    return 1 if any(not row["passed"] for row in record["checks"]) else 0


def run(device: torch.device, path: Path, parts: set[str], deadline: float) -> dict[str, Any]:
    """All checks and measures until the deadline; the record is written after each."""
    from benchmarks.gpu.checks import CHECKS
    from benchmarks.gpu.measures import cases, measure, measure_slide

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    record: dict[str, Any] = {"device": name, "torch": torch.__version__, "python": platform.python_version()}
    record |= {"checks": [], "slides": [], "measures": [], "left_out": []}
    warnings.simplefilter("ignore")

    def keep(part: str, row: dict[str, Any]) -> None:
        record[part].append(row)
        print(part, json.dumps(row), flush=True)
        atomic.write_text(path, json.dumps(record, indent=1) + "\n")

    if "checks" in parts:
        for check in CHECKS:
            keep("checks", _checked(check, device))
    if "slide" in parts:
        for precision in ("float32", "bf16"):
            keep("slides", measure_slide(device, precision=precision))
    for case in cases() if "measures" in parts else ():
        if time.monotonic() < deadline:
            keep("measures", measure(case, device))
        else:
            record["left_out"].append(str(case))
    return record


def _checked(check: Any, device: torch.device) -> dict[str, Any]:
    start = time.monotonic()
    try:
        said, passed = check(device), True
    except Exception as error:  # noqa: BLE001 (a check that fails in any way is a result)
        frames = traceback.extract_tb(error.__traceback__)
        at = next((f"{Path(f.filename).name}:{f.lineno}" for f in reversed(frames) if "streamview/" in f.filename), "")
        said, passed = f"{type(error).__name__} {at}: {str(error)[:400]}", False
    return {"name": check.__name__.replace("_", " "), "passed": passed, "result": said, "seconds": round(time.monotonic() - start, 1)}


if __name__ == "__main__":
    sys.exit(main())
