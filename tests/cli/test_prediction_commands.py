"""``streamview predict`` and ``saliency`` as a user runs them: what they print, write and return."""

import json
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from streamview.jobs import Job
from streamview.results import ExplanationMethod, open_saliency
from streamview.slides import open_slide
from tests.support.commands import Run, rows_of
from tests.support.slides import SyntheticSlide


@pytest.mark.parametrize("region", [["--region", "-5,0,10,10"], ["--region=-5,0,10,10"], ["--region", "-.5mm,0,10,10"]])
def test_a_negative_region_is_said_to_be_one(run: Run, synthetic_slide: SyntheticSlide, tmp_path: Path, region: list[str]) -> None:
    status, _, err = run("predict", "-i", synthetic_slide.path, "-o", tmp_path / "job", "-m", "demo", *region)
    assert (status, "starts outside the slide; x and y must be 0 or more" in err) == (1, True)
    assert not (tmp_path / "job").exists()


def test_regions_in_micrometres_are_those_in_pixels(run: Run, synthetic_slide: SyntheticSlide, tmp_path: Path) -> None:
    for number, region in enumerate(("600,300,640,512", "300um,0.15mm,640x512", "0.3mm 150um 320um 256um")):
        command = ["-i", synthetic_slide.path, "-o", tmp_path / str(number), "-m", "demo", "--region", region, "--memory", "50%"]
        assert run("predict", *command)[0] == 0
    answers = [rows_of(tmp_path / str(number))[0] for number in range(3)]
    assert {(row["x"], row["y"], row["width"], row["height"], row["prob_lesion"]) for row in answers} == {
        ("600", "300", "640", "512", answers[0]["prob_lesion"])
    }
    part = tmp_path / "part.ome.zarr"
    assert run("convert", synthetic_slide.path, "-o", part, "--region", "100um,50um,500x600", "--target-mpp", "1um")[0] == 0
    with open_slide(part) as pyramid:
        assert (pyramid.levels[0].shape, pyramid.mpp) == ((300, 250), (1.0, 1.0))
    plain = tmp_path / "plain.tif"
    Image.fromarray(np.zeros((40, 30, 3), np.uint8)).save(plain)
    assert "the mpp of plain.tif is unknown" in run("convert", plain, "-o", tmp_path / "x.ome.zarr", "--region", "0,0,5um,5um")[2]


def test_predict_keeps_failed_slides_as_rows_and_says_so(run: Run, synthetic_slide: SyntheticSlide, tmp_path: Path) -> None:
    bad, other, job = tmp_path / "bad.svs", tmp_path / "other.svs", tmp_path / "job"
    bad.write_text("no slide")
    shutil.copy(synthetic_slide.path, other)
    command = ["predict", "-o", job, "-m", "demo", "--region", "600,300,640,512", "--memory", "2GB", "--device", "cpu", "-i"]

    status, out, err = run(*command, bad, other)
    assert status == 1
    assert "0 of 2 slides answered" in out
    assert err.startswith("error: bad.svs: not a slide")
    assert "1 slides left: --skip-errors" in err
    assert [(row["slide_id"], row["status"]) for row in rows_of(job)] == [("bad.svs", "failed")]

    status, out, err = run(*command, bad, other, synthetic_slide.path, "--skip-errors")
    assert status == 1
    assert "2 of 3 slides answered" in out
    assert "network: demo on cpu" in out
    assert len(re.findall(r"forecast: 640 x 512 px in \d+ steps? of .* on cpu: peak memory [\d.]+ [MG]B, a few seconds", out)) == 2
    assert "forward pass: " in err
    told = r"^2 of 3 slides done \(1 failed before, 1 answered\), about .* left$.*^3 of 3 slides done \("
    assert re.search(told, err, re.MULTILINE | re.DOTALL)
    rows = rows_of(job)
    assert [(row["slide_id"], row["region_id"], row["status"]) for row in rows] == [
        ("bad.svs", "aggregate", "failed"),
        ("other.svs", "x600-y300-w640-h512", "ok"),
        ("other.svs", "aggregate", "ok"),
        ("synthetic.svs", "x600-y300-w640-h512", "ok"),
        ("synthetic.svs", "aggregate", "ok"),
    ]
    assert rows[0]["error"].startswith("bad.svs: not a slide")
    assert rows[1]["prob_lesion"] == rows[3]["prob_lesion"] != ""
    assert rows[1]["mpp"] == "0.5"
    records = [json.loads(path.read_text()) for path in sorted((job / "runs").glob("*.json"))]
    last = max(records, key=lambda record: record["answered"])
    assert last["failed"] == ["bad.svs"]
    assert last["command"][0] == "predict"
    assert last["answered"] == 2
    assert all(record.regions[0].plan["forecast_bytes"] > 0 for record in Job(job).slides()[1:])
    assert last["finished"]
    assert last["peak_bytes"] > 0


def test_slides_of_the_same_name_are_kept_apart(run: Run, synthetic_slide: SyntheticSlide, tmp_path: Path) -> None:
    job, twin = tmp_path / "job", tmp_path / synthetic_slide.path.name
    twin.write_bytes(synthetic_slide.path.read_bytes() + b"\0")  # other pixels, as far as anybody can tell
    command = ["-o", job, "-m", "demo", "--region", "600,300,320,320"]
    status, _, _ = run("predict", "-i", synthetic_slide.path, twin, *command)
    assert status == 0
    assert run("saliency", "-i", twin, *command)[0] == 0
    first, second = Job(job).slides()
    first, second = (first, second) if first.source == str(synthetic_slide.path) else (second, first)
    assert [record.slide_id.startswith("synthetic.svs~") for record in (first, second)] == [True, True]  # neither comes first
    assert [len(record.regions) for record in (first, second)] == [1, 1]
    assert (not first.regions[0].maps, len(second.regions[0].maps)) == (True, 1)
    assert sorted(row["slide_id"] for row in rows_of(job)) == sorted([first.slide_id, second.slide_id] * 2)
    (tmp_path / "link").symlink_to(tmp_path)
    status, out, _ = run("predict", "-i", twin, tmp_path / "link" / twin.name, *command)
    assert status == 0
    assert "1 of 1 slides answered, 1 of them before (--redo" in out
    status, out, _ = run("jobs", "list", job)
    assert status == 0
    assert "x600-y300-w320-h320  demo  normal (p = " in out
    assert "with maps" in out
    status, out, _ = run("jobs", "rm", job, "--slide", second.slide_id, "--region", "600,300,320,320")
    assert (status, out) == (0, f"removed: {second.slide_id} 600,300,320,320\n")
    assert {row["slide_id"] for row in rows_of(job)} == {first.slide_id}
    assert not list((job / "saliency").rglob("*.ome.zarr"))
    assert run("jobs", "rm", job, "--slide", "gone.svs")[2].startswith("error: ")
    assert "is not a job folder" in run("jobs", "list", tmp_path)[2]


def test_saliency(run: Run, synthetic_slide: SyntheticSlide, tmp_path: Path) -> None:
    job = tmp_path / "job"
    command = ["saliency", "-i", synthetic_slide.path, "-o", job, "-m", "demo", "--region", "600,300,384,321", "--target"]
    status, out, err = run(*command, "lesion")
    assert status == 0
    for earlier, later in (("forecast: ", "prediction: "), ("prediction: ", "maps of lesion: "), ("picture: ", "took ")):
        assert out.index(earlier) < out.index(later)
    assert err.index("forward pass: ") < err.index("backward pass: ")
    stored = job / "saliency/synthetic.svs/x600-y300-w384-h321.ome.zarr"
    maps = open_saliency(stored)
    assert maps.target.name == "lesion"
    assert maps.maps["absolute"].values.shape == (321, 384)
    assert sorted(path.name for path in stored.parent.iterdir()) == ["x600-y300-w384-h321-evidence.png", stored.name]
    (record,) = Job(job).slides()
    (result,) = record.regions
    (kept,) = result.maps
    assert (job / str(kept.picture)).is_file()
    assert job / kept.path == stored
    assert result.source == str(synthetic_slide.path)
    assert result.prediction.identity.key == maps.prediction.identity.key

    assert run(*command, "normal", "--display", "detail")[0] == 0
    assert open_saliency(stored).target.name == "normal"
    assert len(Job(job).slides()[0].regions) == 1
    status, _, err = run(*command, "lesion", "--untrained")
    assert status == 1
    assert "holds maps of synthetic.svs by demo" in err
    assert "choose another job folder" in err
    assert open_saliency(stored).prediction.trained


def test_saliency_of_several_targets(run: Run, synthetic_slide: SyntheticSlide, tmp_path: Path) -> None:
    job = tmp_path / "job"
    command = ["saliency", "-i", synthetic_slide.path, "-o", job, "-m", "demo", "--region", "600,300,384,321", "--target"]
    status, out, err = run(*command, "lesion-normal", "all", "lesion")
    assert status == 0
    assert re.search(r"a few seconds for 3 targets; writes at most \d+ MB, [\d.]+ [GT]B are free", out)
    assert err.count("forward pass: ") == 1
    assert err.count("3 backward passes: ") == 1
    for named in (r"lesion-normal, score = [\d.]+", r"normal, p = 0\.\d+", r"lesion, p = [01]\.\d+"):
        assert re.search(rf"^maps of {named}: absolute, signed, evidence in ", out, re.MULTILINE)
    place = job / "saliency/synthetic.svs"
    names = ["x600-y300-w384-h321-1v0-lesion-normal", "x600-y300-w384-h321-0-normal", "x600-y300-w384-h321-1-lesion"]
    assert sorted(path.name for path in place.iterdir()) == sorted(name + end for name in names for end in (".ome.zarr", "-evidence.png"))
    difference, normal, lesion = (open_saliency(place / f"{name}.ome.zarr") for name in names)
    assert (difference.target.index, difference.target.against, difference.target_probability) == (1, 0, None)
    evidence = lesion.maps["evidence"].values[:] - normal.maps["evidence"].values[:]
    assert np.array_equal(difference.maps["evidence"].values, evidence)
    with Image.open(place / f"{names[0]}-evidence.png") as picture:
        assert "target lesion-normal" in picture.text["streamview"]
    ((result,),) = (record.regions for record in Job(job).slides())
    assert [(str(stored.target), (job / str(stored.picture)).is_file()) for stored in result.maps] == [
        ("lesion-normal", True),
        ("normal", True),
        ("lesion", True),
    ]
    assert rows_of(job)[0]["maps"] == "lesion-normal; normal; lesion"
    assert "1v0-lesion-normal.ome.zarr" in (job / "summary.md").read_text()
    assert result.plan["maps"] == 3

    status, _, err = run(*command, "normal", "tumour", "--device", "cpu")
    assert status == 1
    assert err.startswith("error: target 'tumour': the model demo has normal, lesion; name one of them, or two as a-b")
    status, _, err = run(*command, "normal", "lesion", "--untrained")
    assert status == 1
    assert "h321-0-normal.ome.zarr: holds maps of synthetic.svs by demo" in err


@pytest.mark.slow
def test_saliency_by_several_methods_side_by_side(run: Run, synthetic_slide: SyntheticSlide, tmp_path: Path) -> None:
    job = tmp_path / "job"
    command = ["saliency", "-i", synthetic_slide.path, "-o", job, "-m", "demo", "--region", "600,300,320,256", "--target", "lesion"]
    texts = ("gradient", "smoothgrad:samples=2", "integrated-gradients:steps=2", "grad-cam", "occlusion:patch=200")
    for text in texts:
        status, out, err = run(*command, "--method", text)
        assert status == 0, err
        method = ExplanationMethod.parse(text)
        assert (f"maps: by {method.described}" in out) == (text != "gradient")
        assert ("Completeness for lesion: the attributions sum to" in err) == (method.name == "integrated-gradients")
        (stored,) = (job / "saliency/synthetic.svs").glob(f"x600-y300-w320-h256{method.tag and f'-{method.tag}'}.ome.zarr")
        assert open_saliency(stored).prediction.identity.method == (None if text == "gradient" else str(method))
    assert [row["maps"] for row in rows_of(job) if row["maps"]] == [
        "lesion" if text == "gradient" else f"lesion by {ExplanationMethod.parse(text)}" for text in texts
    ]
    assert len({row["identity"] for row in rows_of(job) if row["maps"]}) == len(texts)
    assert "computes them again" in run(*command, "--method", texts[1])[1]
    status, out, err = run("export", job, "-o", tmp_path / "export")
    assert status == 0, err
    named = sorted(path.name for path in (tmp_path / "export").rglob("*") if path.suffix in (".tif", ".png"))
    assert sum(ExplanationMethod.parse(texts[1]).tag in name for name in named) == 3
    assert run("report", job)[0] == 0
    page = (job / "review.html").read_text()
    for text in texts[1:]:
        assert ExplanationMethod.parse(text).described in page


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--method", "lime"], "method lime: expected gradient, smoothgrad"),
        (["--method", "smoothgrad:samples=0"], "samples 0: expected a whole number, 1 to"),
        (
            ["--method", "smoothgrad", "--display", "evidence"],
            "--display evidence: SmoothGrad gives no class evidence",
        ),
        (["--method", "grad-cam", "--display", "paper"], "--display paper: Grad-CAM gives one map"),
        (["--method", "occlusion:patch=257"], "a patch of 257 px is larger than the region, 320 x 256 px"),
        (["--method", "occlusion:patch=5"], "3328 patches, each a forward pass"),
    ],
)
def test_methods_that_do_not_fit_are_refused(
    run: Run, synthetic_slide: SyntheticSlide, tmp_path: Path, options: list[str], reason: str
) -> None:
    command = ["saliency", "-i", synthetic_slide.path, "-o", tmp_path / "job", "-m", "demo", "--region", "600,300,320,256"]
    status, out, err = run(*command, *options)
    assert status != 0
    assert reason in out + err


def test_a_full_disk_is_foreseen(run: Run, synthetic_slide: SyntheticSlide, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamview.inference.prepared.free_disk", lambda path: 2**20)
    command = ["-i", synthetic_slide.path, "-o", tmp_path / "job", "-m", "demo", "--region", "600,300,300,300"]
    _, out, err = run("saliency", *command, "--target", "all")
    assert "writes at most 2 MB, 1 MB are free" in out
    assert "warning: the disk may be too small for the maps: free some space" in err
    _, out, err = run("predict", *command)
    assert "disk" not in err
    assert "writes" not in out


def test_what_was_assumed_of_a_model_is_said_once_and_kept(
    run: Run, synthetic_slide: SyntheticSlide, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    from streamview import networks

    load, note = networks.load_model, "w.ckpt: 'model.' was taken off every name"
    monkeypatch.setattr(networks, "load_model", lambda *args, **options: replace(load(*args, **options), notes=(note,)))
    twin, job = tmp_path / "twin.svs", tmp_path / "job"
    shutil.copy(synthetic_slide.path, twin)
    status, _, err = run("predict", "-i", synthetic_slide.path, twin, "-o", job, "-m", "demo", "--region", "600,300,256,256")
    assert status == 0
    assert err.count(note) == 1
    assert all(note in record.regions[0].prediction.warnings for record in Job(job).slides())
    assert f"- twin.svs: {note}" in (job / "summary.md").read_text()


def test_untrained_is_said_everywhere(run: Run, synthetic_slide: SyntheticSlide, tmp_path: Path) -> None:
    command = ["-i", synthetic_slide.path, "-o", tmp_path / "job", "-m", "imagenette", "--region", "700,400,256,256"]
    assert "--untrained" in run("predict", *command)[2]
    status, out, err = run("saliency", *command, "--untrained", "--display", "paper")
    assert status == 0
    assert "imagenette (untrained, random weights)" in out
    assert "warning: The weights are random (--untrained)" in err
    assert "untrained" in (tmp_path / "job/summary.md").read_text()
    assert not open_saliency(tmp_path / "job/saliency/synthetic.svs/x700-y400-w256-h256.ome.zarr").prediction.trained


def test_ctrl_c_leaves_nothing_that_looks_finished(synthetic_slide: SyntheticSlide, tmp_path: Path) -> None:
    command = ["saliency", "-i", str(synthetic_slide.path), "-o", "job", "-m", "demo", "--region", "100,100,1400,1400"]
    with subprocess.Popen(
        [sys.executable, "-m", "streamview.cli", *command], cwd=tmp_path, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stderr is not None
        first = process.stderr.readline()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert first.startswith("forward pass: ")
    assert err == "\ncancelling at the next step; Ctrl-C again stops at once\ncancelled\n"
    assert process.returncode == 130
    assert "forecast: " in out
    (record,) = (path for path in tmp_path.rglob("*") if path.is_file())
    assert record.parent == tmp_path / "job/runs"
    assert json.loads(record.read_text())["finished"] is None
