"""Verdicts in a job: measured by the command, resumed, shown wherever the map is."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from streamview.cli import main
from streamview.errors import Cancelled, JobWarning, StreamviewError
from streamview.export.report import write_report
from streamview.faithfulness import Settings, measure_job, read_faithfulness
from streamview.faithfulness.job import Telling, measure_maps, stored_maps
from streamview.faithfulness.localisation import localise_map, read_area
from streamview.faithfulness.store import faithfulness_folder
from streamview.jobs import Job
from streamview.networks import load_model
from streamview.results import open_saliency
from streamview.slides import open_slide
from streamview.slides.synthetic import write_synthetic_slide

QUICK = Settings(patch=64, steps=3, rankings=1, shuffles=1, noises=0)
COMMAND = ["--patch", "64", "--steps", "3", "--rankings", "1", "--shuffles", "1", "--target", "lesion"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a slide, its lesion as mask and GeoJSON, and a job with maps of two targets."""
    folder = tmp_path_factory.mktemp("made")
    lesion = write_synthetic_slide(folder / "slide.svs", size=(512, 512))
    Image.fromarray(lesion).save(folder / "slide.png")
    assert main(["saliency", "-i", str(folder / "slide.svs"), "-o", str(folder / "job"), "-m", "demo", "--target", "lesion", "normal"]) == 0
    return folder


@pytest.fixture
def job(made: Path, tmp_path: Path) -> Job:
    return Job(shutil.copytree(made / "job", tmp_path / "job"))


@pytest.fixture(scope="module")
def measured_folder(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The job with the maps of the lesion measured."""
    job = Job(shutil.copytree(made / "job", tmp_path_factory.mktemp("measured") / "job"))
    measure_maps(lesion_maps(job), load_model, QUICK)
    return job.folder


@pytest.fixture
def measured_job(measured_folder: Path, tmp_path: Path) -> Job:
    return Job(shutil.copytree(measured_folder, tmp_path / "job"))


def lesion_maps(job: Job) -> Any:
    (maps,) = stored_maps(job, targets=["lesion"])
    return maps


def test_the_command_stores_verdicts_that_every_shell_shows(made: Path, job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["faithfulness", str(job.folder), "--annotations", str(made), *COMMAND]
    assert main(command) == 0
    out, err = capsys.readouterr()
    assert "forecast: the work of " in out
    assert "peak memory" in out
    assert "faithfulness: " in err  # progress
    maps = lesion_maps(job)
    measured = read_faithfulness(maps.saliency)
    assert measured is not None
    for method in ("absolute", "signed", "evidence"):
        assert f"{method}: {measured.line(method)}" in out
        for detail in measured.details(method):
            assert f"  {detail}" in out
        if measured.failures(method):
            assert f"warning: the map {method} of lesion fails" in err
    assert measured.settings.steps == 3
    assert measured.annotations == str(made)
    assert measured.of("evidence").localisation.energy > 0.5
    # the same again is read
    assert main(command) == 0
    out, _ = capsys.readouterr()
    assert "forecast" not in out
    assert measured.line("evidence") in out
    assert main(["jobs", "list", str(job.folder)]) == 0
    assert f"    lesion, evidence: {measured.line('evidence')}" in capsys.readouterr().out
    # the other target has none
    assert [read_faithfulness(one.saliency) is None for one in stored_maps(job)] == [
        str(one.saliency.target) != "lesion" for one in stored_maps(job)
    ]


def test_the_report_shows_the_verdict_with_its_curves_and_warns_where_a_check_failed(measured_job: Job) -> None:
    job, maps = measured_job, lesion_maps(measured_job)
    ((_, measured),) = measure_job(job, load_model, QUICK, maps=[maps])  # read, not measured again
    assert measured == read_faithfulness(maps.saliency)
    page, sidecar = write_report(job)
    text = page.read_text()
    assert measured.line("evidence") in text
    assert "Areas under the curves: deletion" in text
    assert text.count("<strong>Warning: </strong>Faithfulness") == bool(measured.failures("evidence"))
    path = faithfulness_folder(maps.saliency.path) / "faithfulness.json"
    values = json.loads(path.read_text())
    for shuffle in values["maps"][2]["shuffled"]:
        shuffle["rank"] = 0.9
    path.write_text(json.dumps(values))
    page, sidecar = write_report(job)
    assert "<strong>Warning: </strong>Faithfulness: passes 3 of 4; fails parameter randomisation" in page.read_text()
    shown = [one for slide in json.loads(sidecar.read_text())["slides"] for one in slide["maps"]]
    (checked,) = [one["faithfulness"] for one in shown if one["target"] == "lesion"]
    assert checked["failed"]
    assert checked["checks"]["parameter randomisation"] is False
    assert [one["faithfulness"] for one in shown if one["target"] == "normal"] == [None]


def test_a_stopped_measurement_goes_on_and_gives_what_an_unbroken_one_gives(job: Job) -> None:
    maps, calls, told = lesion_maps(job), 0, list[str]()

    def stop(step: Any) -> None:
        nonlocal calls
        calls += 1
        if step.task == "faithfulness" and step.done > step.total // 2:
            raise Cancelled("stopped")

    with pytest.raises(Cancelled):
        measure_maps(maps, load_model, QUICK, telling=Telling(tell=told.append, report=stop))
    assert "unfinished: " in told[-1]
    assert read_faithfulness(maps.saliency) is None
    partial = list(faithfulness_folder(maps.saliency.path).parent.iterdir())
    assert len(partial) == 1
    assert partial[0].name.endswith(".partial")
    totals: list[int] = []
    resumed = measure_maps(maps, load_model, QUICK, telling=Telling(tell=told.append, report=lambda step: totals.append(step.total)))
    assert told[-1].startswith("resuming: ")
    whole: list[int] = []
    again = measure_maps(maps, load_model, QUICK, restart=True, telling=Telling(report=lambda step: whole.append(step.total)))
    assert totals[-1] < 0.7 * whole[-1]
    assert resumed.maps == again.maps
    assert resumed.random == again.random
    assert read_faithfulness(maps.saliency) == again


@pytest.mark.slow
def test_other_settings_do_not_go_on_from_unfinished_work(job: Job) -> None:
    maps = lesion_maps(job)

    def stop(step: Any) -> None:
        if step.done > step.total // 2 and step.task == "faithfulness":
            raise Cancelled("stopped")

    with pytest.raises(Cancelled):
        measure_maps(maps, load_model, QUICK, telling=Telling(report=stop))
    other = Settings(patch=64, steps=2, rankings=1, shuffles=1, noises=0)
    with pytest.raises(StreamviewError, match=r"another settings.*restart"):
        measure_maps(maps, load_model, other)
    assert measure_maps(maps, load_model, other, restart=True).settings == other


def test_a_damaged_verdict_is_told_and_not_shown_and_that_of_another_result_is_none(measured_job: Job) -> None:
    maps = lesion_maps(measured_job)
    path = faithfulness_folder(maps.saliency.path) / "faithfulness.json"
    values = json.loads(path.read_text())
    values["target"]["index"] = 0
    path.write_text(json.dumps(values))
    assert read_faithfulness(maps.saliency) is None
    path.write_text("{")
    with pytest.warns(JobWarning, match="damaged"):
        assert read_faithfulness(maps.saliency) is None


def test_removing_a_region_removes_what_was_measured_of_it(measured_job: Job) -> None:
    job, maps = measured_job, lesion_maps(measured_job)
    folder = faithfulness_folder(maps.saliency.path)
    assert folder.is_dir()
    job.remove("slide.svs", maps.saliency.prediction.region)
    assert not folder.exists()


def test_what_cannot_be_measured_is_said_and_the_rest_goes_on(made: Path, job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["faithfulness", str(job.folder), "--patch", "512", "--target", "lesion"]) == 1
    _, err = capsys.readouterr()
    assert "1 of the patches of 512 px in 512 x 512 px hold tissue" in err
    assert "--patch" in err
    assert main(["faithfulness", str(job.folder), "-m", "camelyon16-tiles", "--target", "lesion"]) == 1
    assert "has other weights or another card" in capsys.readouterr().err
    assert main(["faithfulness", str(job.folder), "--target", "nothing"]) == 1
    assert "has no maps of nothing" in capsys.readouterr().err
    assert main(["faithfulness", str(job.folder), "--slide", "b.svs"]) == 1
    assert "has no slide b.svs, only slide.svs" in capsys.readouterr().err
    assert main(["faithfulness", str(made)]) == 1
    assert "is not a job folder" in capsys.readouterr().err


def test_annotations_are_read_as_mask_or_polygons_in_place(made: Path, tmp_path: Path) -> None:
    lesion = np.asarray(Image.open(made / "slide.png"))
    rows, columns = np.flatnonzero(lesion.any(1)), np.flatnonzero(lesion.any(0))
    box = (int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1)
    ring = [[box[1], box[0]], [box[3], box[0]], [box[3], box[2]], [box[1], box[2]], [box[1], box[0]]]
    feature = {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [ring]}, "properties": {}}
    (tmp_path / "slide.geojson").write_text(json.dumps(feature))
    maps = open_saliency(made / "job" / lesion_path(made))
    with open_slide(made / "slide.svs") as slide:
        region = maps.prediction.region
        mask, boxed = (read_area(path, slide, region, (1.0, 1.0)) for path in (made / "slide.png", tmp_path))
        assert np.array_equal(mask.mask, lesion)
        assert np.array_equal(np.argwhere(boxed.mask)[[0, -1]], [[box[0], box[1]], [box[2] - 1, box[3] - 1]])
        half = lesion[::2, ::2]
        Image.fromarray(half).save(tmp_path / "half.png")
        coarse = read_area(tmp_path / "half.png", slide, region, (1.0, 1.0))
        assert (coarse.step, coarse.origin) == ((2.0, 2.0), (0.5, 0.5))
        fine, rough = (localise_map(maps.maps["evidence"], area).energy for area in (mask, coarse))
        assert fine == pytest.approx(rough, abs=0.02)
        Image.fromarray(lesion[:100]).save(tmp_path / "part.png")
        with pytest.raises(StreamviewError, match="expected a picture of the whole slide"):
            read_area(tmp_path / "part.png", slide, region, (1.0, 1.0))
        with pytest.raises(StreamviewError, match=r"has no annotations of slide\.svs"):
            read_area(made / "job", slide, region, (1.0, 1.0))


def lesion_path(made: Path) -> str:
    (record,) = Job(made / "job").slides()
    return next(stored.path for stored in record.regions[0].maps if str(stored.target) == "lesion")


@pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecatedSince20", "ignore::DeprecationWarning:napari")
def test_napari_says_the_verdict_in_a_line_a_map_and_warns_on_the_canvas(measured_job: Job) -> None:
    pytest.importorskip("napari")
    from streamview_napari.canvas.layers import saliency_layers
    from streamview_napari.requests.answers import describe_failures, describe_faithfulness

    maps = lesion_maps(measured_job)
    measured = read_faithfulness(maps.saliency)
    assert measured is not None
    text, failed = describe_faithfulness(maps.saliency)
    assert text.splitlines()[2] == f"Class evidence (extent). {measured.line('evidence')}"
    assert failed == any(measured.failures(method) for method in maps.saliency.maps)
    path = faithfulness_folder(maps.saliency.path) / "faithfulness.json"
    values = json.loads(path.read_text())
    values["maps"][2]["shuffled"][0]["rank"] = -0.9
    path.write_text(json.dumps(values))
    assert describe_faithfulness(maps.saliency)[1]
    assert describe_failures(maps.saliency, "evidence") == "FAILS parameter randomisation"
    captions = [options["metadata"]["streamview"].caption for _, options, _ in saliency_layers(maps.saliency)]
    assert captions[-1].splitlines()[-1] == "FAILS parameter randomisation"
