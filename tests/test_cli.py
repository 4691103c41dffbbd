"""The commands as a user runs them: what they print, write and return."""

import csv
import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
import warnings
from argparse import ArgumentParser, _SubParsersAction
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from streamview import __version__
from streamview.cli import main
from streamview.cli.console import Bars
from streamview.cli.parser import build_parser
from streamview.errors import Cancelled, SlideWarning
from streamview.geometry import Region
from streamview.jobs import Job
from streamview.progress import Step
from streamview.results import ExplanationMethod, open_saliency
from streamview.slides import open_slide
from streamview.system.doctor import Check, check_window, examine
from tests.support.slides import SyntheticSlide
from tests.support.zoo import import_timm

Run = Callable[..., tuple[int, str, str]]


def subparsers() -> dict[str, ArgumentParser]:
    (action,) = (action for action in build_parser()._actions if isinstance(action, _SubParsersAction))
    return dict(action.choices)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command; return its status, stdout and stderr."""

    def call(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        status = main([str(argument) for argument in arguments])
        return status, *capsys.readouterr()

    return call


def rows_of(job: Path) -> list[dict[str, str]]:
    with (job / "predictions.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_commands_are_those_of_the_product() -> None:
    assert list(subparsers()) == [
        "demo",
        "info",
        "convert",
        "predict",
        "saliency",
        "finetune",
        "evaluate",
        "verify",
        "models",
        "jobs",
        "export",
        "report",
        "faithfulness",
        "review",
        "doctor",
        "view",
    ]


@pytest.mark.parametrize("name", list(subparsers()))
def test_every_command_has_help_with_an_example_that_parses(name: str) -> None:
    parser = subparsers()[name]
    text = parser.format_help()
    (example,) = re.findall(r"^example:\n  streamview (.+)$", text, re.MULTILINE)
    assert build_parser().parse_args(shlex.split(example)).command == name
    assert parser.description
    for action in parser._actions:
        assert action.help, f"{name}: {action.dest} says nothing"
    for flag in re.findall(r"--[a-z_-]+", text):
        assert "_" not in flag


def test_version_and_no_command(capsys: pytest.CaptureFixture[str], run: Run) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"streamview {__version__}\n"
    status, out, _ = run()
    assert status == 2
    assert "streamview demo" in out
    with pytest.raises(SystemExit) as ended:
        main(["predict"])
    assert ended.value.code == 2


@pytest.mark.parametrize(
    ("line", "command", "reason"),
    [
        ("predict --modl demo -i a -o b", "predict", "unknown option --modl; did you mean --model?"),
        ("saliency -i a -o b -m demo --skip_errors", "saliency", "unknown option --skip_errors; did you mean --skip-errors?"),
        ("convert a -o b --frobnicate=3", "convert", "unknown option --frobnicate ("),
        ("models inspect demo --jsn", "models inspect", "unknown option --jsn; did you mean --json?"),
        ("export -q job", "export", "unknown option -q"),
        ("predict -i a -o b", "predict", "required: -m/--model"),
        ("preditc -i a", "predict", "no command 'preditc'; did you mean predict?"),
        ("models inspct demo", "models inspect", "no command 'inspct'; did you mean inspect?"),
        ("xyz", "", "no command 'xyz'; there are demo, info, convert"),
        ("--memory 2GB predict", "", "options of a command come after its name"),
        ("predict -i a -o b -m demo --region 0 0 512 512", "predict", "not understood: 0 512 512; write the numbers of one option as 0,0"),
        ("demo extra", "demo", "not understood: extra"),
        ("convert a -o b --target-mpp fine", "convert", "'fine': expected micrometres, such as 0.5 or 0.5um"),
        ("export job --format pgn", "export", "invalid choice: 'pgn'"),
    ],
)
def test_a_command_line_that_makes_no_sense_shows_that_commands_usage(
    capsys: pytest.CaptureFixture[str], line: str, command: str, reason: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(line.split())
    err = capsys.readouterr().err
    assert ended.value.code == 2
    assert err.startswith(f"usage: streamview {command}".rstrip())
    assert reason in err.splitlines()[-1]


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


WRITING = {
    "predict": "-i slide.svs -m demo",
    "saliency": "-i slide.svs -m demo",
    "convert": "slide.svs",
    "export": "job",
    "report": "job",
    "finetune": "-i labels.csv -m demo",
    "evaluate": "-i labels.csv -m demo",
    "verify": "-m demo",
    "demo": "",
}


def test_every_command_that_writes_is_tried() -> None:
    writing = [name for name, parser in subparsers().items() if any("--output" in action.option_strings for action in parser._actions)]
    assert sorted(writing) == sorted(WRITING)


@pytest.mark.parametrize("command", WRITING)
def test_an_output_that_cannot_be_written_is_refused_before_anything_else(run: Run, tmp_path: Path, command: str) -> None:
    (tmp_path / "file").write_text("")
    places = {"": "expected a path", f"{tmp_path}/file/x": "is a file, so nothing"}
    places |= {"s3://bucket/x": "on this machine"} | ({"/proc/x": "cannot write in /proc"} if Path("/proc/self").exists() else {})
    for place, reason in places.items():
        status, out, err = run(command, *WRITING[command].split(), "-o", place)
        assert (status, out, err.count("\n")) == (1, "", 1)
        assert err.startswith(f"error: -o {place!r}" if not place or "://" in place else f"error: -o {place}: ")
        assert reason in err
    if command in ("demo", "export"):
        assert "is a file, but the output is a folder" in run(command, *WRITING[command].split(), "-o", tmp_path / "file")[2]
    if command == "verify":
        assert "--json /proc/x: cannot write in /proc" in run("verify", "-m", "demo", "--json", "/proc/x")[2]


def test_info(run: Run, synthetic_slide: SyntheticSlide, tmp_path: Path) -> None:
    status, out, err = run("info", synthetic_slide.path)
    assert (status, err) == (0, "")
    expected = [
        "synthetic.svs",
        "2203 x 1501 px",
        "0.5 um/px (aperio.MPP)",
        "1.101 x 0.7505 mm",
        "no ICC profile",
        "its tiles, read directly; 3",
    ]
    expected += ["0      2203   1501    1                  256 x 256  jpeg", "properties: "]
    for text in expected:
        assert text in out
    assert "0.25 um/px (given (--mpp))" in run("info", synthetic_slide.path, "--mpp", "0.25")[1]
    plain = tmp_path / "plain.tif"
    Image.fromarray(np.zeros((40, 30, 3), np.uint8)).save(plain)
    assert "set it with --mpp" in run("info", plain)[1]


def test_info_as_json_holds_no_private_value(run: Run, shared_data: Path) -> None:
    status, out, _ = run("info", shared_data / "slides/CMU-1-Small-Region.svs", "--json")
    found = json.loads(out)
    assert status == 0
    assert (found["width"], found["height"], found["mpp"]) == (2220, 2967, [0.499, 0.499])
    assert found["extent_mm"] == pytest.approx([1.480533, 1.10778])
    assert found["levels"] == [{"height": 2967, "width": 2220, "downsample": [1.0, 1.0], "tile": [240, 240], "compression": "jpeg"}]
    assert found["hidden"]["pictures"] == ["label", "macro", "thumbnail"]
    assert {"aperio.Filename", "aperio.User", "aperio.ScanScope ID", "tiff.ImageDescription"} <= set(found["hidden"]["properties"])
    for value in ("CPAPERIOCS", "b414003d", "12/29/09"):
        assert value not in out


def test_info_of_a_channel(run: Run, tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 256, (2, 64, 64), np.uint8)
    metadata = {"axes": "CYX", "Channel": {"Name": ["DAPI", "FITC"]}}
    tifffile.imwrite(tmp_path / "a.ome.tif", values, photometric="minisblack", tile=(64, 64), metadata=metadata)
    status, _, err = run("info", tmp_path / "a.ome.tif")
    assert (status, "2 channels of 8 bit: DAPI, FITC" in err) == (1, True)
    assert "channel 1 (FITC) as grey" in run("info", tmp_path / "a.ome.tif", "--channel", "FITC")[1]
    assert run("convert", tmp_path / "a.ome.tif", "--channel", "1", "-o", tmp_path / "grey.ome.zarr")[0] == 0
    with open_slide(tmp_path / "grey.ome.zarr") as pyramid:
        assert np.array_equal(pyramid.read(Region(0, 0, 64, 64))[..., 0], values[1])


def test_a_warning_about_a_slide_is_one_line(run: Run, synthetic_slide: SyntheticSlide, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamview.slides.tiff_backend.decode_jpeg", lambda data, out, *rest: out.fill(3))
    with warnings.catch_warnings():
        warnings.simplefilter("always", SlideWarning)
        status, out, err = run("info", synthetic_slide.path)
    assert (status, "OpenSlide (aperio): its tiles read directly differ" in out) == (0, True)
    assert err.startswith("warning: synthetic.svs: OpenSlide reads it, slower")
    assert err.count("\n") == 1


def test_convert(run: Run, synthetic_slide: SyntheticSlide, tmp_path: Path) -> None:
    out_path = tmp_path / "new" / "slide.ome.zarr"
    status, out, err = run("convert", synthetic_slide.path, "-o", out_path)
    assert status == 0
    assert out.index("writes at most") < out.index("written: ")
    assert "peak memory" in out
    assert "pyramid: " in err
    with open_slide(out_path) as pyramid:
        assert pyramid.shape == (1501, 2203)
        assert pyramid.mpp == (0.5, 0.5)
    assert run("info", out_path)[0] == 0


def test_convert_a_part_at_another_mpp(run: Run, synthetic_slide: SyntheticSlide, tmp_path: Path) -> None:
    out_path = tmp_path / "part.ome.zarr"
    options = ["--region", "200,100,1000,1201", "--target-mpp", "1", "--levels", "2", "--codec", "lz4"]
    status, out, _ = run("convert", synthetic_slide.path, "-o", out_path, *options)
    assert status == 0
    assert "500 x 600 px, levels: 2; writes at most 1 MB" in out
    with open_slide(out_path) as pyramid:
        assert ([level.shape for level in pyramid.levels], pyramid.mpp) == ([(600, 500), (300, 250)], (1.0, 1.0))


def test_convert_keeps_only_safe_properties_unless_told(run: Run, synthetic_slide: SyntheticSlide, tmp_path: Path) -> None:
    found = []
    for name, options in (("safe", []), ("all", ["--keep-metadata"])):
        assert run("convert", synthetic_slide.path, "-o", tmp_path / name, *options)[0] == 0
        found.append(json.loads((tmp_path / name / "zarr.json").read_text())["attributes"]["streamview"]["properties"])
    assert found[0]["aperio.AppMag"] == "20"
    assert "tiff.ImageDescription" not in found[0]
    assert found[1]["tiff.ImageDescription"].startswith("Aperio")
    assert found[0].items() <= found[1].items()


def test_convert_goes_on_or_refuses(run: Run, synthetic_slide: SyntheticSlide, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(_: object, step: Step) -> None:
        if step.done == 1:
            raise Cancelled

    for options, answer, said in (([], 0, ["resuming"]), (["--restart"], 0, []), (["--codec", "lz4"], 1, [])):
        out_path = tmp_path / f"{len(options)}.ome.zarr"
        with monkeypatch.context() as patched:
            patched.setattr(Bars, "__call__", stop)
            status, out, _ = run("convert", synthetic_slide.path, "-o", out_path)
        assert status == 130
        assert "the same command resumes from there, with --restart it starts over" in out
        status, out, error = run("convert", synthetic_slide.path, "-o", out_path, *options)
        assert status == answer
        assert [line.split(":")[0] for line in out.splitlines() if line.startswith("resuming")] == said
        assert ("another codec" in error) == (answer == 1)


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


def test_models_lists_what_a_user_chooses_by(run: Run) -> None:
    from streamview_models import ALIASES, MODELS

    status, out, _ = run("models")
    lines = {line.split()[0]: line for line in out.splitlines()}
    assert status == 0
    assert set(MODELS) <= set(lines)
    assert re.search(r"normal, lesion +0\.5 +yes +Apache-2\.0", lines["demo"])
    assert "no (--untrained)" in lines["resnet18"]
    for short, name in ALIASES.items():
        assert f"{short} = {name}" in out


@pytest.mark.slow
def test_models_inspect_says_whether_a_network_streams(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forms = ("timm:NAME", "torchvision:NAME", "package.module:function", "FILE.pt2", "a folder")
    assert all(form in run("models")[1].splitlines()[-1] for form in forms)
    status, out, err = run("models", "inspect", "resnet18")
    assert (status, err) == (0, "")
    assert re.search(r"mean of layer4.1.relu: 512 channels, stride 32 x 32 px\n  sees +435 x 435 px\n", out)
    for side in (2048, 8192, 32768):
        assert re.search(rf" {side} x {side} px: prediction [\d.]+ [MG]B, about .*; saliency [\d.]+ [MG]B, about ", out)
    status, out, _ = run("models", "inspect", "demo", "--json")
    assert (status, json.loads(out)["cuts"][0]["kind"]) == (0, "max")

    source = "from torch import nn\ndef build():\n    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), Sort(), nn.Linear(4, 2))\n"
    sort = "class Sort(nn.Module):\n    def forward(self, x):\n        return x.flatten(2).sort(2)[0].mean(2)\n"
    (tmp_path / "mine.py").write_text(source + sort)
    monkeypatch.syspath_prepend(tmp_path)
    status, out, err = run("models", "inspect", "mine:build")
    assert (status, err) == (1, "")
    assert out.startswith("Sequential cannot be streamed\n  reason  Sequential cannot be streamed: 2.sort: ")
    assert "  layer   2.sort\n" in out
    assert "  advice  " in out
    status, _, err = run("models", "inspect", "no_such_network")
    assert status == 1
    assert err.startswith("error: model 'no_such_network' is unknown")


@pytest.mark.slow
def test_models_inspect_takes_names_without_weights(run: Run) -> None:
    import_timm()
    status, out, _ = run("models", "inspect", "timm:resnet10t")
    assert status == 0
    assert re.search(r"cut +mean of layer4\.0\.act2: 512 channels", out)


def test_the_doctor_says_what_is_missing_and_what_to_do(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    window = Check("napari and Qt", True, "napari", needed=False)
    monkeypatch.setattr("streamview.system.doctor.check_window", lambda: window)
    status, out, _ = run("doctor")
    assert (status, out.splitlines()[-1]) == (0, "ready")
    for name in ("python", "torch", "cuda", "openslide", "tifffile", "zarr", "napari and Qt", "disk", "memory"):
        assert re.search(rf"^(ok|-) +{name} ", out, re.MULTILINE), name

    monkeypatch.setitem(sys.modules, "zarr", None)  # importing it now fails as if it were not installed
    (check,) = (check for check in examine() if check.name == "zarr")
    assert not check.ok
    status, out, _ = run("doctor")
    assert status == 1
    assert re.search(r"^missing  zarr .*; pip install --force-reinstall zarr$", out, re.MULTILINE)
    assert out.splitlines()[-1].startswith("not ready")


def test_a_window_without_a_display_is_refused_before_qt_is_touched(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for key in ("DISPLAY", "WAYLAND_DISPLAY", "QT_QPA_PLATFORM"):
        monkeypatch.delenv(key, raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr("streamview.system.doctor.importlib.util.find_spec", lambda name: object())
    assert not check_window().ok
    status, _, err = run("view", tmp_path)
    assert status == 1
    assert err.startswith("error: cannot open a window: installed, but there is no display; ")
    monkeypatch.setattr("streamview.system.doctor.importlib.util.find_spec", lambda name: None)
    assert "pip install 'streamview[napari]'" in run("view", tmp_path)[2]


def test_bars_show_the_time_left_on_a_terminal_and_one_line_elsewhere(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Bars() as bars:
        for done in range(5):
            bars(Step("forward pass", done, 4, done * 0.5))
    assert capsys.readouterr().err == "forward pass: 4 steps, 2.0 s\n"
    with Bars() as bars:
        for done in range(7):
            bars(Step("forward pass", done, 6, done * 40.0))
    said = ["2 of 6 steps, 3 min left", "3 of 6 steps, 2 min left", "5 of 6 steps, 1 min left", "6 steps, 240.0 s"]
    assert capsys.readouterr().err == "".join(f"forward pass: {line}\n" for line in said)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with Bars() as bars:
        for task in ("forward pass", "backward pass"):
            for done in range(3):
                bars(Step(task, done, 4, done * 0.5))
            bars(Step(task, 4, 4, 2.0))
    err = capsys.readouterr().err
    assert "100%" in err
    assert "4/4 steps" in err
    assert " left" in err
    assert err.index("forward pass") < err.index("backward pass")


def test_a_second_ctrl_c_stops_at_once() -> None:
    before = signal.getsignal(signal.SIGINT)
    with Bars() as bars:
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(Cancelled):
            bars(Step("forward pass", 1, 4, 0.5))
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


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
    ("options", "said"),
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
    run: Run, synthetic_slide: SyntheticSlide, tmp_path: Path, options: list[str], said: str
) -> None:
    command = ["saliency", "-i", synthetic_slide.path, "-o", tmp_path / "job", "-m", "demo", "--region", "600,300,320,256"]
    status, out, err = run(*command, *options)
    assert status != 0
    assert said in out + err
