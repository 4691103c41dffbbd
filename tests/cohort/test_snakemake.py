"""The documented Snakemake rule, where Snakemake is installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.cohort import write_cohort

PAGE = Path(__file__).parents[2] / "docs" / "cohorts.md"


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("snakemake") is None, reason="Snakemake is not installed")
def test_the_documented_rule_predicts_and_keeps_failed_slides(tmp_path: Path) -> None:
    rule = next(part for part in PAGE.read_text().split("```") if part.startswith("yaml\nrule predict"))
    (tmp_path / "Snakefile").write_text(rule.removeprefix("yaml\n"))
    write_cohort(tmp_path / "slides", 3, broken=1)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["snakemake", "--cores", "1"], cwd=tmp_path, env=os.environ | {"PATH": path}, capture_output=True, text=True, check=False
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "job" / "slides.csv").read_text().count(",ok,") == 2
