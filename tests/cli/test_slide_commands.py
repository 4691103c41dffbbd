"""``streamview info`` and ``convert`` as a user runs them."""

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from streamview.cli.console import Bars
from streamview.errors import Cancelled, SlideWarning
from streamview.geometry import Region
from streamview.progress import Step
from streamview.slides import open_slide
from tests.support.commands import Run
from tests.support.slides import SyntheticSlide


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
    described = json.loads(out)
    assert status == 0
    assert (described["width"], described["height"], described["mpp"]) == (2220, 2967, [0.499, 0.499])
    assert described["extent_mm"] == pytest.approx([1.480533, 1.10778])
    assert described["levels"] == [{"height": 2967, "width": 2220, "downsample": [1.0, 1.0], "tile": [240, 240], "compression": "jpeg"}]
    assert described["hidden"]["pictures"] == ["label", "macro", "thumbnail"]
    assert {"aperio.Filename", "aperio.User", "aperio.ScanScope ID", "tiff.ImageDescription"} <= set(described["hidden"]["properties"])
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
    properties = []
    for name, options in (("safe", []), ("all", ["--keep-metadata"])):
        assert run("convert", synthetic_slide.path, "-o", tmp_path / name, *options)[0] == 0
        properties.append(json.loads((tmp_path / name / "zarr.json").read_text())["attributes"]["streamview"]["properties"])
    assert properties[0]["aperio.AppMag"] == "20"
    assert "tiff.ImageDescription" not in properties[0]
    assert properties[1]["tiff.ImageDescription"].startswith("Aperio")
    assert properties[0].items() <= properties[1].items()


def test_convert_goes_on_or_refuses(run: Run, synthetic_slide: SyntheticSlide, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(_: object, step: Step) -> None:
        if step.done == 1:
            raise Cancelled

    for options, answer, first_words in (([], 0, ["resuming"]), (["--restart"], 0, []), (["--codec", "lz4"], 1, [])):
        out_path = tmp_path / f"{len(options)}.ome.zarr"
        with monkeypatch.context() as patched:
            patched.setattr(Bars, "__call__", stop)
            status, out, _ = run("convert", synthetic_slide.path, "-o", out_path)
        assert status == 130
        assert "the same command resumes from there, with --restart it starts over" in out
        status, out, error = run("convert", synthetic_slide.path, "-o", out_path, *options)
        assert status == answer
        assert [line.split(":")[0] for line in out.splitlines() if line.startswith("resuming")] == first_words
        assert ("another codec" in error) == (answer == 1)
