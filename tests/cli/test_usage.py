"""The commands as a user meets them: help, mistakes, progress, the models there are and what the machine lacks."""

import json
import re
import shlex
import signal
import sys
from pathlib import Path

import pytest

from streamview import __version__
from streamview.cli import main
from streamview.cli.console import Bars
from streamview.cli.parser import build_parser
from streamview.errors import Cancelled
from streamview.progress import Step
from streamview.system.doctor import Check, check_window, examine
from tests.support.commands import Run, subparsers
from tests.support.zoo import import_timm


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
    expected = ["2 of 6 steps, 3 min left", "3 of 6 steps, 2 min left", "5 of 6 steps, 1 min left", "6 steps, 240.0 s"]
    assert capsys.readouterr().err == "".join(f"forward pass: {line}\n" for line in expected)
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
