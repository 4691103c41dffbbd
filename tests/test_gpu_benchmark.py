"""`make gpu` without a GPU: it says that there is none, and its own logic runs on the CPU."""

import json
import time
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import checks, report
from benchmarks.gpu.__main__ import main, run
from benchmarks.gpu.measures import Case, cases, measure

CPU = torch.device("cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_it_says_that_there_is_no_gpu(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["--json", str(tmp_path / "gpu.json")]) == 0
    assert capsys.readouterr().out.startswith("no GPU: ")
    assert not (tmp_path / "gpu.json").exists()


def fails(device: torch.device) -> str:
    raise AssertionError("too far")


def holds(device: torch.device) -> str:
    return "near"


def test_a_check_that_fails_is_a_row_and_the_others_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(checks, "CHECKS", (fails, holds))
    record = run(CPU, tmp_path / "gpu.json", {"checks", "measures"}, time.monotonic())
    assert [(row["name"], row["passed"]) for row in record["checks"]] == [("fails", False), ("holds", True)]
    assert "too far" in record["checks"][0]["result"]
    assert not record["measures"]  # no time was left
    assert len(record["left_out"]) == len(list(cases()))
    written = json.loads((tmp_path / "gpu.json").read_text())
    assert written["checks"] == record["checks"]
    assert "FAILS" in report.tables(record)


@pytest.mark.filterwarnings("ignore")
def test_checks_that_need_no_gpu_hold_on_the_cpu() -> None:
    assert "worst error" in checks.random_networks(CPU, 6)
    assert "relative L2" in checks.full_float32(CPU)
    assert "before and after" in checks.flags_are_restored(CPU)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["prediction", "saliency", "training"])
def test_a_case_is_measured_and_shown(kind: str) -> None:
    rows = [measure(Case("resnet18", 64, kind, "float32", contestant), CPU) for contestant in ("conventional", "streamview")]
    assert all(row["seconds"] > 0 for row in rows)
    assert rows[1]["planned_bytes"] > 0
    record = {"device": "a GPU", "torch": "2", "python": "3", "checks": [], "slides": [], "measures": rows, "left_out": []}
    (line,) = [line for line in report.tables(record).splitlines() if line.startswith("| resnet18")]
    assert f"{rows[1]['seconds'] / rows[0]['seconds']:.2f}" in line


def test_tables_take_the_place_of_earlier_ones(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- gpu: begin -->\nold\n<!-- gpu: end -->\nafter\n")
    record = {"device": "a GPU", "torch": "2", "python": "3", "checks": [], "slides": [], "measures": [], "left_out": []}
    report.insert(page, record)
    assert page.read_text() == "before\n<!-- gpu: begin -->\nOn a GPU, torch 2, Python 3.\n<!-- gpu: end -->\nafter\n"
