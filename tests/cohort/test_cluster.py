"""Workers: the results of one process, file by file, and clear words where there are none."""

from __future__ import annotations

import ast
import asyncio
from pathlib import Path
from typing import Any

import pytest

import streamview
from streamview.cohort.cluster import ModelChoice, run_on_cluster
from streamview.cohort.run import run_slides
from streamview.cohort.settings import Settings
from streamview.cohort.work import Outcome, Work
from streamview.cohort.worklist import read_worklist
from streamview.errors import StreamviewError
from streamview.inference.compute import Compute
from streamview.jobs import Job
from tests.support.cohort import contents, write_cohort

pytest.importorskip("distributed")
MODEL = streamview.load_model("demo")
PAGE = Path(__file__).parents[2] / "docs" / "cohorts.md"


def on_cluster(folder: Path, job: Path, **options: Any) -> list[Outcome]:
    outcomes: list[Outcome] = []
    settings = Settings("maps", targets=("lesion",), compute=Compute(memory=options.pop("memory", None)))
    work = Work(MODEL, Job(job), "run", settings, skip_errors=True)
    run_on_cluster(
        work, ModelChoice("demo"), read_worklist([folder]), command=["saliency"], told=outcomes.append, tell=lambda line: None, **options
    )  # fmt: skip
    return outcomes


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of Dask's own, about ports and loops
def test_two_workers_give_the_files_of_one_process(tmp_path: Path) -> None:
    folder = tmp_path / "slides"
    write_cohort(folder, 4, broken=1)
    outcomes = on_cluster(folder, tmp_path / "job", workers=2)
    assert sorted(outcome.status for outcome in outcomes) == ["answered"] * 3 + ["failed"]
    work = Work(MODEL, Job(tmp_path / "alone"), "run", Settings("maps", targets=("lesion",)), skip_errors=True)
    run_slides(work, read_worklist([folder]), command=["saliency"], told=lambda outcome: None)
    assert contents(tmp_path / "job") == contents(tmp_path / "alone")
    assert any(name.startswith("saliency/") for name in contents(tmp_path / "job"))
    assert {outcome.status for outcome in on_cluster(folder, tmp_path / "job", workers=1)} == {"answered before", "failed before"}


def test_memory_is_that_of_all_workers(tmp_path: Path) -> None:
    write_cohort(tmp_path / "slides", 1)
    with pytest.raises(StreamviewError, match=r"memory=1\.0 GB for 4 workers: each needs at least 600 MB; give more, or fewer workers"):
        on_cluster(tmp_path / "slides", tmp_path / "job", workers=4, memory="1GB")


def test_a_scheduler_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamview.cohort.cluster._ANSWERS_WITHIN", "1s")
    write_cohort(tmp_path / "slides", 1)
    with pytest.raises(StreamviewError, match="no Dask scheduler answers there"):
        on_cluster(tmp_path / "slides", tmp_path / "job", scheduler="tcp://127.0.0.1:1")


@pytest.mark.filterwarnings("ignore")
def test_workers_of_many_threads_are_refused(tmp_path: Path) -> None:
    distributed = pytest.importorskip("distributed")
    write_cohort(tmp_path / "slides", 1)
    with (
        distributed.LocalCluster(n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None) as cluster,
        pytest.raises(StreamviewError, match="has 2 threads; start workers of one thread each"),
    ):
        on_cluster(tmp_path / "slides", tmp_path / "job", scheduler=cluster.scheduler_address)


@pytest.mark.filterwarnings("ignore")
def test_the_documented_slurm_workers_end_before_their_hour() -> None:
    jobqueue = pytest.importorskip("dask_jobqueue")
    block = next(part for part in PAGE.read_text().split("```") if part.startswith("python\nfrom dask_jobqueue"))
    call = next(node for node in ast.walk(ast.parse(block.removeprefix("python\n"))) if isinstance(node, ast.Call))
    options = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}

    async def script() -> str:
        async with jobqueue.SLURMCluster(**options, asynchronous=True, scheduler_options={"dashboard_address": None}) as cluster:
            return cluster.job_script()

    text = asyncio.run(script())
    assert "#SBATCH -p gpu" in text
    assert "#SBATCH -t 01:00:00" in text
    assert "#SBATCH --gres=gpu:1" in text
    assert "--lifetime 55m --lifetime-stagger 4m" in text
    assert "--nthreads 1" in text
