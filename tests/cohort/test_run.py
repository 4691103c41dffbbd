"""Cohorts that are killed, shared among processes and resumed: every slide once, and the results of an undisturbed run."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import streamview
from streamview.cohort.forecast import forecast_cohort
from streamview.cohort.policy import RegionPolicy
from streamview.cohort.regions import ClaimedSlide
from streamview.cohort.run import run_slides
from streamview.cohort.settings import Settings
from streamview.cohort.work import Outcome, Work
from streamview.cohort.worklist import read_worklist
from streamview.errors import Cancelled
from streamview.export.job import export_job
from streamview.files.atomic import discard
from streamview.geometry import Region
from streamview.jobs import Job
from streamview.jobs.maps import slide_maps
from streamview.results import open_saliency
from streamview.slides.synthetic import write_synthetic_slide
from tests.support.cohort import command, contents, start, write_cohort

MODEL = streamview.load_model("demo")


def run(folder: Path, job: Path, settings: Settings = Settings(), **options: Any) -> list[Outcome]:
    outcomes: list[Outcome] = []
    work = Work(MODEL, Job(job), f"run-{time.monotonic_ns()}", settings, skip_errors=True, **options)
    run_slides(work, read_worklist([folder]), command=["predict"], told=outcomes.append)
    return outcomes


def statuses(outcomes: list[Outcome]) -> dict[str, str]:
    return {outcome.slide_id: outcome.status for outcome in outcomes}


def test_what_is_done_is_skipped_and_what_failed_waits_for_a_change(tmp_path: Path) -> None:
    paths = write_cohort(tmp_path / "slides", 4, broken=1)
    names = [path.name for path in paths]
    first = statuses(run(tmp_path / "slides", tmp_path / "job"))
    assert first == dict.fromkeys(names[:3], "answered") | {names[3]: "failed"}
    before = contents(tmp_path / "job")
    assert statuses(run(tmp_path / "slides", tmp_path / "job")) == dict.fromkeys(names[:3], "answered before") | {names[3]: "failed before"}
    assert contents(tmp_path / "job") == before
    assert statuses(run(tmp_path / "slides", tmp_path / "job", retry_failed=True))[names[3]] == "failed"
    assert set(statuses(run(tmp_path / "slides", tmp_path / "job", redo=True)).values()) == {"answered", "failed"}
    paths[3].write_bytes(paths[0].read_bytes() + b"mended")
    paths[1].write_bytes(paths[1].read_bytes() + b"replaced")
    last = statuses(run(tmp_path / "slides", tmp_path / "job"))
    assert last == {names[0]: "answered before", names[1]: "answered", names[2]: "answered before", names[3]: "answered"}
    other = statuses(run(tmp_path / "slides", tmp_path / "job", Settings(aggregation="maximum of lesion")))
    assert set(other.values()) == {"answered"}  # of the same regions, which are not recomputed
    assert all(len(record.regions) == 1 + (record.slide_id == names[1]) for record in Job(tmp_path / "job").slides())


def test_a_run_that_is_stopped_in_a_slide_goes_on_at_its_region(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "slides").mkdir()
    write_synthetic_slide(tmp_path / "slides" / "a.svs", size=(512, 512))
    settings = Settings("maps", targets=("lesion",), policy=RegionPolicy("grid", 256))
    computed: list[str] = []
    explain = ClaimedSlide._explain

    def counted(self, region, *rest):
        if len(computed) == 2:
            computed.clear()
            raise Cancelled("stopped by the user")
        computed.append(str(region))
        return explain(self, region, *rest)

    monkeypatch.setattr(ClaimedSlide, "_explain", counted)
    with pytest.raises(Cancelled):
        run(tmp_path / "slides", tmp_path / "job", settings)
    assert (tmp_path / "job" / "predictions.csv").is_file()
    assert [entry.name for entry in (tmp_path / "job" / "leases").iterdir()] == []
    monkeypatch.setattr(ClaimedSlide, "_explain", explain)
    (outcome,) = run(tmp_path / "slides", tmp_path / "job", settings)
    (record,) = Job(tmp_path / "job").slides()
    assert len(record.regions) == len(record.completed[0].regions) == 4
    assert outcome.regions == 2
    run(tmp_path / "slides", tmp_path / "whole", settings)
    assert contents(tmp_path / "job") == contents(tmp_path / "whole")
    ((whole,),) = slide_maps(Job(tmp_path / "whole"), record)  # one map of all regions
    assert whole.saliency.prediction.region == Region(0, 0, 512, 512)
    values = np.asarray(whole.saliency.maps["absolute"].values)
    for result in record.regions:
        region = result.prediction.region
        part = open_saliency(tmp_path / "whole" / result.maps[0].path).maps["absolute"].values
        np.testing.assert_array_equal(values[region.y : region.y_stop, region.x : region.x_stop], part)
        assert result.maps[0].picture is None  # one picture shows all of them
    assert len(list((tmp_path / "whole").rglob("*.png"))) == 1
    assert {outcome.status for outcome in run(tmp_path / "slides", tmp_path / "whole", settings)} == {"answered before"}
    discard(tmp_path / "whole" / record.regions[0].maps[0].path)  # somebody made room
    (again,) = run(tmp_path / "slides", tmp_path / "whole", settings)
    assert (again.status, again.regions) == ("answered", 1)
    written = export_job(Job(tmp_path / "whole"), ["ome-zarr", "geojson"], out=tmp_path / "export")
    assert len(written) == 2
    stored = open_saliency(next(path for path in written if path.suffix == ".zarr"))
    np.testing.assert_array_equal(stored.maps["absolute"].values, values)


def test_a_slide_with_which_processes_keep_ending_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cohort(tmp_path / "slides", 1)
    claim = Job.claim

    def after_deaths(self, slide_id, run_id):
        lease = claim(self, slide_id, run_id)
        lease.deaths = 3
        return lease

    monkeypatch.setattr(Job, "claim", after_deaths)
    (outcome,) = run(tmp_path / "slides", tmp_path / "job")
    assert outcome.status == "failed"
    assert "3 processes ended while they worked on it" in outcome.error


def test_the_forecast_of_a_cohort_writes_nothing_and_names_who_will_fail(tmp_path: Path) -> None:
    write_cohort(tmp_path / "slides", 3, broken=1)
    work = Work(MODEL, Job(tmp_path / "job"), "run", Settings("maps", targets=("lesion",)))
    ahead = forecast_cohort(work, read_worklist([tmp_path / "slides"]))
    assert (ahead.slides, ahead.regions, ahead.answered) == (2, 2, 0)
    ((name, reason),) = ahead.refused
    assert name == "slide-0002.svs"
    assert "slide-0002.svs" in reason
    assert ahead.disk_bytes > 2 * 2 * 4 * 256 * 256
    assert "2 slides, 2 regions, 1 will fail: a few seconds a slide, peak memory" in str(ahead)
    assert not (tmp_path / "job").exists()


@pytest.mark.slow
def test_one_terminal_waits_for_the_other(tmp_path: Path) -> None:
    folder, job = tmp_path / "slides", tmp_path / "job"
    write_cohort(folder, 5, broken=1)
    both = [start(command(folder, job, "--json-progress")) for _ in range(2)]
    events = [[json.loads(line) for line in each.communicate(timeout=200)[0].splitlines() if line.startswith("{")] for each in both]
    assert [each.returncode for each in both] == [1, 1]  # the broken one
    done = [event["slide_id"] for each in events for event in each if event["event"] == "done" and event["status"] == "answered"]
    assert sorted(done) == [f"slide-{number:04d}.svs" for number in range(4)]  # each by one of them
    run(folder, tmp_path / "alone")
    assert contents(job) == contents(tmp_path / "alone")


def killed_and_resumed(arguments: list[str], rng: random.Random, kills: int) -> int:
    """Run a command, kill it and all it started at random moments of its work, and run it to the end; return its exit status."""
    runs = Path(arguments[arguments.index("-o") + 1]) / "runs"
    for _ in range(kills):
        begun = len(list(runs.glob("*.json")))
        process = start(arguments)
        while process.poll() is None and len(list(runs.glob("*.json"))) == begun:
            time.sleep(0.02)
        time.sleep(rng.uniform(0, 1.5))
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    process = start(arguments)
    process.communicate(timeout=250)
    return process.returncode


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_sixty_slides_killed_ten_times(tmp_path: Path) -> None:
    folder = tmp_path / "slides"
    write_cohort(folder, 60, broken=5)
    run(folder, tmp_path / "undisturbed")
    assert killed_and_resumed(command(folder, tmp_path / "job"), random.Random(4), 10) == 1
    assert contents(tmp_path / "job") == contents(tmp_path / "undisturbed")
    records = Job(tmp_path / "job").slides()
    assert [len(record.completed) for record in records] == [1] * 55 + [0] * 5
    runs = [json.loads(path.read_text()) for path in (tmp_path / "job" / "runs").iterdir()]
    assert len(runs) == 11
    assert sum(run["finished"] is None for run in runs) == 10
    assert [entry for entry in (tmp_path / "job").rglob("*.partial") if "slides" in entry.parts and not entry.name.startswith(".")] == []


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_workers_that_are_killed_lose_nothing(tmp_path: Path) -> None:
    psutil = pytest.importorskip("psutil")
    folder = tmp_path / "slides"
    write_cohort(folder, 60, broken=5)
    run(folder, tmp_path / "alone")
    client = start(command(folder, tmp_path / "job", "--workers", "2", "--memory", "4GB"))
    killed = 0
    while client.poll() is None and killed < 2:
        answered = len(list((tmp_path / "job" / "slides").glob("*.json")))
        if answered > 8 + 14 * killed:
            workers = [
                child for child in psutil.Process(client.pid).children(recursive=True) if "spawn_main" in " ".join(child.cmdline())
            ]  # fmt: skip
            workers[0].kill()
            killed += 1
        time.sleep(0.1)
    output = client.communicate(timeout=400)[0]
    assert killed == 2, output
    assert client.returncode == 1, output
    assert contents(tmp_path / "job") == contents(tmp_path / "alone")
