"""Every real file through convert, predict and saliency; run it with ``pytest -m slow -s tests/test_real_slides.py`` to see the table."""

import time
from pathlib import Path

import numpy as np
import pytest

from streamview.cli import main
from streamview.geometry import Region
from streamview.jobs import Job
from streamview.results import open_saliency
from streamview.slides import open_slide

pytestmark = pytest.mark.slow

# file -> --mpp that the demo's network needs (0.5 um/px), where the file states none or one too coarse; and whether it is too small for it
SLIDES = {
    "CMU-1-Small-Region.svs": (None, False),
    "OS-1-detail.ome.tif": (None, False),
    "OS-2-ndpi.ome.tif": (None, False),
    "boxes.tiff": ("0.5", False),
    "boxes_0.dcm": (None, True),
    "boxes_1.dcm": (None, True),
    "camelyon_multiframe.dcm": ("0.5", False),
    "small.svs": (None, True),
    "test3-DAPI-2-387.ndpi": (None, False),
}
BROKEN = {"not_a_slide.svs": "not a slide", "truncated.svs": "truncated", "unreadable.svs": "unreadable"}


def cli(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def test_the_table_names_every_file(shared_data: Path) -> None:
    assert {path.name for path in (shared_data / "slides").iterdir()} == set(SLIDES)
    assert {path.name for path in (shared_data / "broken").iterdir()} == set(BROKEN)


@pytest.mark.parametrize("name", SLIDES)
def test_convert_keeps_every_pixel(shared_data: Path, tmp_path: Path, name: str) -> None:
    assert cli("convert", shared_data / "slides" / name, "-o", tmp_path / "a.ome.zarr") == 0
    with open_slide(shared_data / "slides" / name) as slide, open_slide(tmp_path / "a.ome.zarr") as pyramid:
        assert pyramid.shape == slide.shape
        assert pyramid.mpp == pytest.approx(slide.mpp)
        everything = Region(0, 0, *slide.shape)
        assert np.array_equal(slide.read(everything), pyramid.read(everything))


@pytest.mark.parametrize("network", ["resnet18", "demo"])
@pytest.mark.parametrize("name", SLIDES)
def test_predict_and_saliency(shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, network: str) -> None:
    mpp, small = SLIDES[name]
    path, job = shared_data / "slides" / name, tmp_path / "job"
    options = ["-i", path, "-o", job, "-m", network, *(["--untrained"] if network == "resnet18" else ["--mpp", mpp] if mpp else [])]
    start = time.monotonic()
    status = cli("predict", *options), cli("saliency", *options)
    took = time.monotonic() - start
    output = capsys.readouterr()
    if small and network == "demo":
        assert status == (1, 1)
        assert "use a larger region" in output.err
        assert list(Job(job).slides()) == []  # refused before the run began, which leaves no failed row
        summary = f"refused: {output.err.strip().splitlines()[-1]}"
    else:
        assert status == (0, 0)
        (record,) = Job(job).slides()
        (result,) = record.regions
        with open_slide(path) as slide:
            assert result.prediction.region.shape == slide.shape
        (stored,) = result.maps
        maps = open_saliency(job / stored.path)
        assert maps.maps["absolute"].values.shape == result.prediction.shape
        assert (job / str(stored.picture)).is_file()
        grid = result.prediction.shape
        summary = f"{result.prediction.label}, {grid[1]} x {grid[0]} px, maps {', '.join(maps.maps)}, {took:.1f} s"
    with capsys.disabled():
        print(f"\n{name} | {network} {' '.join(map(str, options[6:]))} | {summary}", end="")


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_are_refused(shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    path = shared_data / "broken" / name
    for command in (
        ["convert", path, "-o", tmp_path / "a.ome.zarr"],
        ["predict", "-i", path, "-o", tmp_path / "job", "-m", "resnet18", "--untrained"],
        ["saliency", "-i", path, "-o", tmp_path / "job", "-m", "resnet18", "--untrained"],
    ):
        assert cli(*command) == 1
        (error,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("error: "))
        assert error.startswith(f"error: {name}: {BROKEN[name]}")
    assert not list(tmp_path.rglob("*.ome.zarr"))
    with capsys.disabled():
        print(f"\n{name} | {error}", end="")
