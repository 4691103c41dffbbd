"""Whatever is wrong with the input is said in one line that names the cause and the remedy, and leaves nothing that looks finished."""

import errno
import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import tifffile
import torch
import zarr
from streamview_models import folder
from torch import nn

from streamview.cli import main
from streamview.errors import ModelError, SlideError, StreamviewError
from streamview.export.job import export_job
from streamview.files import atomic
from streamview.inference.explain import predict
from streamview.jobs import Job
from streamview.networks import Model, load_model
from streamview.progress import Step
from streamview.slides import open_slide
from streamview.slides.pyramid import build_pyramid
from tests.support.slides import SyntheticSlide

Refusal = Callable[..., str]
REGION = ("--region", "700,400,320,300")


@pytest.fixture
def refusal(capsys: pytest.CaptureFixture[str]) -> Refusal:
    """Run a command that must fail; return its one-line error."""

    def call(*arguments: object) -> str:
        capsys.readouterr()
        status = main([str(argument) for argument in arguments])
        errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert status == 1
        assert len(errors) == 1
        return errors[0]

    return call


@pytest.fixture
def job(tmp_path: Path) -> Path:
    return tmp_path / "job"


def finished(place: Path) -> list[str]:
    """What under a folder could be taken for a result."""
    patterns = ("*.ome.zarr", "*.png", "predictions.csv")
    return [str(path.relative_to(place)) for pattern in patterns for path in place.rglob(pattern) if not path.name.startswith(".")]


def model_folder(place: Path, change: Callable[[dict[str, torch.Tensor], dict[str, Any]], object]) -> Path:
    """The demo's network in a folder of the user, changed."""
    place.mkdir()
    card = json.loads((folder("demo") / "card.json").read_text())
    weights = safetensors.torch.load_file(folder("demo") / "weights.safetensors")
    change(weights, card)
    (place / "card.json").write_text(json.dumps(card))
    safetensors.torch.save_file(weights, place / "weights.safetensors")
    return place


def classes(card: dict[str, Any], *names: str) -> None:
    """Give a card other classes, of which none is of interest."""
    card.update(num_classes=len(names), class_names=list(names))
    del card["streamview"]["positive"]


@pytest.mark.parametrize("command", ["info", "convert", "predict", "saliency"])
def test_missing_file(refusal: Refusal, job: Path, command: str) -> None:
    arguments = {"info": ["gone.svs"], "convert": ["gone.svs", "-o", job]}.get(command, ["-i", "gone.svs", "-o", job, "-m", "demo"])
    assert refusal(command, *arguments) == "error: gone.svs: no such file or folder; check the path"


@pytest.mark.parametrize(("content", "found"), [(b"hello, world", "not a slide"), (b"", "an empty file"), (b"II*\0", "")])
def test_not_a_slide(refusal: Refusal, tmp_path: Path, job: Path, content: bytes, found: str) -> None:
    path = tmp_path / "letter.svs"
    path.write_bytes(content)
    message = refusal("predict", "-i", path, "-o", job, "-m", "demo")
    assert message.startswith(f"error: letter.svs: {found}")
    assert ";" in message  # the remedy follows
    assert finished(job) == ["predictions.csv"]
    assert ",failed," in (job / "predictions.csv").read_text()


def test_unreadable_tile(refusal: Refusal, synthetic_slide: SyntheticSlide, tmp_path: Path, job: Path) -> None:
    path = tmp_path / "damaged.svs"
    shutil.copy(synthetic_slide.path, path)
    with tifffile.TiffFile(path) as tiff:
        offset = tiff.pages[0].dataoffsets[12]  # rows 256.. and columns 768.. of 9 tiles a row
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(b"\0" * 64)
    for command in ("predict", "saliency"):
        message = refusal(command, "-i", path, "-o", job, "-m", "demo", "--region", "700,200,300,300")
        assert message.startswith("error: damaged.svs: unreadable tile at level 0, position 768,256")
        assert message.endswith("; get the file again or avoid it")
    assert finished(job) == ["predictions.csv"]
    assert "unreadable" in refusal("convert", path, "-o", tmp_path / "damaged.ome.zarr")
    assert not finished(tmp_path / "damaged.ome.zarr")
    # what does not touch the tile still works
    assert main(["predict", "-i", str(path), "-o", str(job), "-m", "demo", *REGION]) == 1
    assert main(["predict", "-i", str(path), "-o", str(job), "-m", "demo", "--region", "100,900,256,256"]) == 0


def test_region_outside_the_slide(refusal: Refusal, synthetic_slide: SyntheticSlide, job: Path) -> None:
    message = refusal("saliency", "-i", synthetic_slide.path, "-o", job, "-m", "demo", "--region", "2000,0,400,400")
    assert "region 2000,0,400,400" in message
    assert "2203 x 1501 px; give a region inside it" in message


@pytest.mark.parametrize(
    ("region", "found"), [("1,2,3", "X,Y,WIDTH,HEIGHT"), ("0,0,0,5", "must be positive"), ("a,b,c,d", "whole numbers")]
)
def test_region_that_is_none(refusal: Refusal, synthetic_slide: SyntheticSlide, job: Path, region: str, found: str) -> None:
    assert found in refusal("predict", "-i", synthetic_slide.path, "-o", job, "-m", "demo", "--region", region)
    assert not job.exists()


def test_region_smaller_than_the_network_can_take(refusal: Refusal, synthetic_slide: SyntheticSlide, job: Path) -> None:
    message = refusal("predict", "-i", synthetic_slide.path, "-o", job, "-m", "demo", "--region", "0,0,31,400")
    assert "synthetic.svs: image of 400 x 31 px" in message
    assert message.endswith("use a larger region")


def test_wrong_channel_count(refusal: Refusal, synthetic_slide: SyntheticSlide, tmp_path: Path, job: Path) -> None:
    grey = tmp_path / "grey.tif"
    tifffile.imwrite(grey, np.zeros((256, 256), np.uint8), tile=(64, 64))
    message = refusal("predict", "-i", grey, "-o", job, "-m", "demo")
    assert message.startswith("error: grey.tif: ")
    assert "RGB" in message
    model = load_model("demo")
    with pytest.raises(SlideError, match=r"\(64, 64, 4\) and type uint8: expected 8-bit RGB"):
        predict(model, np.zeros((64, 64, 4), np.uint8))
    module = nn.Sequential(nn.Conv2d(5, 2, 3), nn.ReLU(), nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(2, 2)).eval()
    with pytest.raises(ModelError, match=r"takes images of 5 channels, a slide has 3: use a model for RGB"):
        predict(Model(module, model.card, "0" * 64), np.zeros((64, 64, 3), np.uint8), mpp=0.5)


def test_unknown_model(refusal: Refusal, synthetic_slide: SyntheticSlide, job: Path) -> None:
    message = refusal("predict", "-i", synthetic_slide.path, "-o", job, "-m", "resnet81")
    assert "model 'resnet81' is unknown (near: resnet18" in message
    assert "or a folder that holds card.json and weights.safetensors" in message
    assert not job.exists()


def test_a_definition_without_weights_names_untrained(refusal: Refusal, synthetic_slide: SyntheticSlide, job: Path) -> None:
    assert "give --untrained" in refusal("saliency", "-i", synthetic_slide.path, "-o", job, "-m", "camelyon17")


def test_weights_that_do_not_fit_the_card(refusal: Refusal, synthetic_slide: SyntheticSlide, tmp_path: Path, job: Path) -> None:
    home = model_folder(tmp_path / "mine", lambda weights, card: classes(card, "a", "b", "c"))
    message = refusal("predict", "-i", synthetic_slide.path, "-o", job, "-m", home)
    assert "does not fit its card" in message
    assert "expected 3x" in message
    assert "fix architecture or num_classes" in message


def test_nan_weights(refusal: Refusal, synthetic_slide: SyntheticSlide, tmp_path: Path, job: Path) -> None:
    home = model_folder(tmp_path / "mine", lambda weights, card: next(iter(weights.values())).view(-1)[3:5].fill_(float("nan")))
    message = refusal("predict", "-i", synthetic_slide.path, "-o", job, "-m", home)
    assert "2 of " in message
    assert "are NaN or infinite; expected finite weights: export them again" in message


@pytest.mark.parametrize("name", ["weights.pt", "weights.safetensors"])
def test_a_pickle_with_code_is_never_run(refusal: Refusal, synthetic_slide: SyntheticSlide, tmp_path: Path, job: Path, name: str) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (tmp_path / "executed",))

    home = model_folder(tmp_path / "mine", lambda weights, card: None)
    (home / "weights.safetensors").unlink()
    (home / name).write_bytes(pickle.dumps({"features.0.weight": Trap()}))
    message = refusal("predict", "-i", synthetic_slide.path, "-o", job, "-m", home)
    assert "pickle that can run code" in message
    assert "safetensors.torch.save_file" in message
    assert not (tmp_path / "executed").exists()
    pickle.loads((home / name).read_bytes())
    assert (tmp_path / "executed").exists()  # the trap is a real one


def test_missing_mpp_names_the_flag_that_mends_it(refusal: Refusal, tmp_path: Path, job: Path) -> None:
    path = tmp_path / "plain.tif"
    tifffile.imwrite(path, np.full((300, 300, 3), 200, np.uint8), tile=(64, 64), photometric="rgb")
    message = refusal("predict", "-i", path, "-o", job, "-m", "demo")
    assert message.startswith("error: plain.tif: micrometres per pixel are unknown, but 0.5 is asked for")
    assert message.endswith("with --mpp")
    assert main(["predict", "-i", str(path), "-o", str(job), "-m", "demo", "--mpp", "0.5"]) == 0
    assert "more than 10% coarser" in refusal("predict", "-i", path, "-o", job, "-m", "demo", "--mpp", "1.0")
    assert "positive number" in refusal("predict", "-i", path, "-o", job, "-m", "demo", "--mpp", "-1")


def test_what_the_run_cannot_have(refusal: Refusal, synthetic_slide: SyntheticSlide, job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = ["saliency", "-i", synthetic_slide.path, "-o", job, *REGION]
    assert "expected an amount such as 2GB" in refusal(*command, "-m", "demo", "--memory", "plenty")
    assert "is unknown: expected auto, cpu or cuda" in refusal(*command, "-m", "demo", "--device", "abacus")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "use --device cpu" in refusal(*command, "-m", "demo", "--device", "cuda")
    assert "the model demo has normal, lesion; name one of them" in refusal(*command, "-m", "demo", "--target", "tumour")
    assert not job.exists()
    message = refusal(*command, "-m", "demo", "--memory", "20MB")
    assert message.startswith("error: memory 20 MB: the process needs ")
    assert message.endswith("give more")


def test_class_evidence_where_the_network_has_none(
    refusal: Refusal, job: Path, synthetic_slide: SyntheticSlide, monkeypatch: pytest.MonkeyPatch
) -> None:
    def two_layers(*_: object, **__: object) -> Model:
        head = [nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)]
        return Model(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), *head).eval().requires_grad_(False), load_model("demo").card, "0" * 64)

    monkeypatch.setattr("streamview.networks.load_model", two_layers)
    command = ["saliency", "-i", synthetic_slide.path, "-o", job, "-m", "mine", *REGION]
    message = refusal(*command, "--display", "evidence")
    assert "does not end in pooling and one linear layer" in message
    assert message.endswith("use --display detail or paper")
    assert not job.exists()
    assert main([str(part) for part in command]) == 0
    assert sorted(finished(job))[1].endswith("-paper.png")


def test_an_output_that_cannot_be(refusal: Refusal, synthetic_slide: SyntheticSlide, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    assert "is a file, but a job is a folder" in refusal("predict", "-i", synthetic_slide.path, "-o", file, "-m", "demo", *REGION)
    assert "exists already; remove it or choose another name" in refusal("convert", synthetic_slide.path, "-o", file)
    assert "file" in refusal("convert", synthetic_slide.path, "-o", file / "below.ome.zarr")
    assert file.read_text() == "mine"


@pytest.mark.parametrize("command", ["convert", "saliency"])
def test_full_disk_while_arrays_are_written(
    refusal: Refusal, synthetic_slide: SyntheticSlide, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    out = tmp_path / ("out.ome.zarr" if command == "convert" else "job")
    monkeypatch.setattr(zarr.Array, "__setitem__", full)
    inputs = [synthetic_slide.path] if command == "convert" else ["-m", "demo", *REGION, "-i", synthetic_slide.path]
    message = refusal(command, *inputs, "-o", out)
    assert "the disk is full; free some space" in message
    assert finished(tmp_path) == ([] if command == "convert" else ["job/predictions.csv"])


def test_full_disk_while_the_job_is_written(
    refusal: Refusal, synthetic_slide: SyntheticSlide, job: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(atomic.os, "replace", full)
    message = refusal("predict", "-i", synthetic_slide.path, "-o", job, "-m", "demo", *REGION)
    assert "the disk is full; free some space or write to another disk, then run again" in message
    assert not [path for path in job.rglob("*") if path.is_file()]


@pytest.mark.parametrize(("command", "task"), [("convert", "pyramid"), ("predict", "forward pass"), ("saliency", "backward pass")])
def test_ctrl_c_at_a_step(
    synthetic_slide: SyntheticSlide,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: str,
    task: str,
) -> None:
    def stop(_: object, step: Step) -> None:
        if (step.task, step.done) == (task, 1):  # some is written by now
            raise KeyboardInterrupt

    monkeypatch.setattr("streamview.cli.console.Bars.__call__", stop)
    out = tmp_path / "out"
    inputs = [str(synthetic_slide.path)] if command == "convert" else ["-m", "demo", *REGION, "-i", str(synthetic_slide.path)]
    assert main([command, *inputs, "-o", str(out)]) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "cancelled"
    left = [path for path in out.rglob("*") if path.is_file()]
    assert all(path.parent.name == "runs" for path in left)
    assert command != "convert" or not out.exists()


def test_every_slide_is_looked_at_before_the_first_is_computed(refusal: Refusal, synthetic_slide: SyntheticSlide, job: Path) -> None:
    command = ["predict", "-o", job, "-m", "demo", *REGION, "-i", synthetic_slide.path]
    assert refusal(*command, "gone.svs") == "error: gone.svs: no such file or folder; check the path"
    assert not (job / "slides").exists()  # nothing was computed, and a typing error is no slide
    assert not finished(job)
    assert refusal(*command, "gone.svs", "--skip-errors").startswith("error: gone.svs")
    assert "gone.svs" not in (job / "predictions.csv").read_text()
    (last,) = (run for run in (json.loads(path.read_text()) for path in (job / "runs").iterdir()) if run["answered"])
    assert last["failed"] == ["gone.svs"]


@pytest.mark.parametrize(
    "options",
    [("--region", "2000,0,400,400"), ("--mpp", "0"), ("--mpp", "3"), ("--pad-to", "64"), ("--memory", "20MB"), ("--region", "0,0,31,400")],
    ids=" ".join,
)
def test_a_wrong_option_is_no_failed_slide(refusal: Refusal, synthetic_slide: SyntheticSlide, job: Path, options: tuple[str, ...]) -> None:
    assert main(["predict", "-i", str(synthetic_slide.path), "-o", str(job), "-m", "demo", *REGION]) == 0
    before = (job / "predictions.csv").read_text()
    refusal("predict", "-i", synthetic_slide.path, "-o", job, "-m", "demo", *options)
    assert (job / "predictions.csv").read_text() == before


def test_no_output_is_written_into_an_image(refusal: Refusal, synthetic_slide: SyntheticSlide, tmp_path: Path) -> None:
    image = tmp_path / "a.ome.zarr"
    with open_slide(synthetic_slide.path) as slide:
        build_pyramid(slide, image).close()
    before = sorted(image.rglob("*"))
    inputs = ["-m", "demo", "-i", synthetic_slide.path]
    for output in (image, image / "job", image / "0"):
        for command in ("predict", "saliency", "verify"):
            assert "lies in the OME-Zarr image" in refusal(command, *inputs, "-o", output, *REGION)
    assert "lies in the OME-Zarr image" in refusal("convert", synthetic_slide.path, "-o", image / "b.ome.zarr")
    assert sorted(image.rglob("*")) == before


@pytest.mark.parametrize("command", ["predict", "saliency", "convert"])
def test_places_where_nothing_can_be_written(refusal: Refusal, synthetic_slide: SyntheticSlide, tmp_path: Path, command: str) -> None:
    inputs = [synthetic_slide.path] if command == "convert" else ["-m", "demo", *REGION, "-i", synthetic_slide.path]
    (tmp_path / "file").touch()
    for place in ("/proc/x", tmp_path / ("x" * 300), tmp_path / "file" / "below", "/dev/null/x"):
        message = refusal(command, *inputs, "-o", place)
        assert str(place) in message
        assert any(remedy in message for remedy in ("choose another", "check")), message


@pytest.mark.parametrize("code", [errno.EFBIG, errno.EIO, errno.ESTALE, errno.ENAMETOOLONG, errno.ENOTDIR, errno.ENXIO, errno.ENODEV])
def test_whatever_the_file_system_refuses_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(atomic.os, "replace", refuse)
    with pytest.raises(StreamviewError, match=rf"a\.txt: cannot be written \({os.strerror(code)}\); check the disk") as caught:
        atomic.write_text(tmp_path / "a.txt", "text")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(atomic.os, "replace", lambda *_: (_ for _ in ()).throw(BrokenPipeError(errno.EPIPE, "pipe")))
    with pytest.raises(BrokenPipeError):  # of a reader that went away, which the command line handles
        atomic.write_text(tmp_path / "a.txt", "text")


@pytest.mark.slow
def test_a_limit_on_the_size_of_files_is_one_line(synthetic_slide: SyntheticSlide, tmp_path: Path) -> None:
    limit = "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)); "
    script = limit + "from streamview.cli import main; sys.exit(main())"
    command = ["saliency", "-i", str(synthetic_slide.path), "-o", str(tmp_path / "job"), "-m", "demo", *REGION]
    done = subprocess.run([sys.executable, "-c", script, *command], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "cannot be written (File too large)" in done.stderr


def test_an_image_that_one_stands_in_has_a_name(synthetic_slide: SyntheticSlide, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = tmp_path / "a::b.ome.zarr"  # colons are no URL
    assert main(["convert", str(synthetic_slide.path), "-o", str(image), "--region", "600,300,400,400"]) == 0
    monkeypatch.chdir(image)
    with open_slide(".") as slide:
        assert slide.name == "a::b.ome.zarr"
    assert main(["predict", "-i", ".", "-o", str(tmp_path / "job"), "-m", "demo"]) == 0
    assert [record.slide_id for record in Job(tmp_path / "job").slides()] == ["a::b.ome.zarr"]


@pytest.mark.slow
def test_slides_of_any_name_and_a_job_with_colons(
    synthetic_slide: SyntheticSlide, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [os.fsdecode(b"latin\xe9.svs"), "x" * 236 + ".svs", "\u00fc" * 100 + ".svs", ".hidden.svs", "new\nline.svs"]
    for name in names:
        os.link(synthetic_slide.path, tmp_path / name) if os.stat(tmp_path).st_dev == os.stat(synthetic_slide.path).st_dev else shutil.copy(
            synthetic_slide.path, tmp_path / name
        )
    job = tmp_path / "job::1"
    inputs = [str(tmp_path / name) for name in names]
    assert main(["saliency", "-i", *inputs, "-o", str(job), "-m", "demo", *REGION]) == 0
    assert "5 of 5 slides answered" in capsys.readouterr().out
    assert sorted(record.slide_id for record in Job(job).slides()) == sorted(names)
    assert len(list((job / "saliency").iterdir())) == 5
    written = export_job(Job(job), ("png", "geojson"), out=tmp_path / "out")
    assert len({path.parent for path in written}) == 5
    assert main(["jobs", "rm", str(job), "--slide", names[0]]) == 0
    assert len(Job(job).slides()) == 4


def test_a_class_called_all_is_not_explained_in_silence(
    synthetic_slide: SyntheticSlide, tmp_path: Path, job: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = model_folder(tmp_path / "mine", lambda weights, card: classes(card, "all", 'a,"b"\nc|d'))
    assert (
        main(["saliency", "-i", str(synthetic_slide.path), "-o", str(job), "-m", str(home), *REGION, "--target", "all", 'a,"b"\nc|d']) == 0
    )
    assert "warning: --target all means the class of that name" in capsys.readouterr().err
    ((result,),) = (record.regions for record in Job(job).slides())
    assert [stored.target.index for stored in result.maps if stored.target is not None] == [0, 1]
