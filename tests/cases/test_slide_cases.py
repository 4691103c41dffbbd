"""Slides that failed in the field, cases 01 to 06: what is expected of each, as values."""

import contextlib
import io
import os
import shlex
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from streamview.cli import main
from streamview.errors import SlideError, SlideWarning
from streamview.geometry import Region
from streamview.slides import Slide, can_open, open_slide
from streamview.slides.sampling import Sampler


def picture(height: int = 600, width: int = 700, seed: int = 1) -> np.ndarray:
    """The picture of the cases' script."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    base = np.stack([80 + 120 * x / width, 60 + 150 * y / height, 120 + 60 * np.sin(x / 37) * np.cos(y / 23)], -1)
    return np.clip(base + rng.normal(0, 12, base.shape), 0, 255).astype(np.uint8)


def whole(slide: Slide, level: int = 0) -> np.ndarray:
    return slide.read(Region(0, 0, *slide.levels[level].shape, level)).astype(int)


def run(*arguments: object) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of a command."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main([os.fspath(argument) if isinstance(argument, Path) else str(argument) for argument in arguments])
    return status, out.getvalue(), err.getvalue()


@pytest.mark.parametrize("levels", [1, 2])
@pytest.mark.parametrize("kind", ["ome", "plain"])
def test_01_pyramids_in_subdirectories(cases: Path, levels: int, kind: str) -> None:
    with open_slide(cases / f"01-subifd-pyramids/sub{levels}-{kind}.{'ome.' if kind == 'ome' else ''}tif") as slide:
        assert [level.shape for level in slide.levels] == [(1024 >> level, 1024 >> level) for level in range(levels + 1)]
        assert slide.mpp == ((0.5, 0.5) if kind == "ome" else None)
        for level in range(levels + 1):
            assert np.abs(whole(slide, level) - picture(1024, 1024)[:: 2**level, :: 2**level]).mean() < 12, "JPEG of noise"


@pytest.mark.parametrize(
    ("name", "mpp"), [("cm.tif", 0.25), ("aperio-comma.svs", 0.5), ("mm-x-only.ome.tif", 0.5), ("angstrom.ome.tif", 0.5)]
)
def test_02_units(cases: Path, name: str, mpp: float) -> None:
    with open_slide(cases / "02-resolutions" / name) as slide:
        assert slide.mpp == pytest.approx((mpp, mpp), rel=1e-9)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("dpi72.tif", "352.8 um/px, 72 dpi: a resolution of print"),
        ("dpi300.tif", "84.67 um/px, 300 dpi: a resolution of print"),
        ("absurd.tif", "2.5e-06 um/px, expected 0.05 to 20"),
        ("aperio-500.svs", "aperio.MPP states 500 um/px, expected 0.05 to 20"),
        ("aperio-0.0005.svs", "aperio.MPP states 0.0005 um/px, expected 0.05 to 20"),
    ],
)
def test_02_what_is_no_measurement(cases: Path, tmp_path: Path, name: str, reason: str) -> None:
    path = cases / "02-resolutions" / name
    with open_slide(path) as slide:
        assert slide.mpp is None
        assert slide.mpp_source.startswith("unknown (")
        assert reason in slide.mpp_source
    _, out, _ = run("info", path)
    assert reason in out
    assert out.count("--mpp") == 1
    status, _, err = run("predict", "-i", path, "-m", "demo", "-o", tmp_path / "job")
    assert status == 1
    assert "--mpp" in err
    assert "finer scan" not in err
    with open_slide(path, mpp=500) as slide:
        assert slide.mpp == (500, 500), "the user may state any"


@pytest.mark.parametrize("tag", ["rgb", "ycbcr"])
@pytest.mark.parametrize("stream", ["rgb", "ycc"])
def test_03_colour_of_jpeg_streams(cases: Path, tag: str, stream: str) -> None:
    truth = np.load(cases / "03-jpeg-colours/truth.npy").astype(int)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        slide = open_slide(cases / f"03-jpeg-colours/tag-{tag}-stream-{stream}.tif")
    with slide:
        difference = whole(slide) - truth
    assert np.abs(difference.mean((0, 1))).max() < 1
    assert np.abs(difference).mean() < 4, "of noise, after JPEG; wrong colours are off by 45"
    texts = [str(warning.message) for warning in caught]
    contradiction = tag != stream.replace("ycc", "ycbcr")
    assert len(texts) == contradiction
    assert all("colour" in text and f"tag says {tag.upper()}" in text for text in texts)


def test_04_tiffs_of_all_kinds(cases: Path) -> None:
    folder, image = cases / "04-tiff-kinds", picture(517, 643).astype(int)
    alpha = np.full(image.shape[:2], 255)
    alpha[:100], alpha[100:200] = 0, 128
    composited = (image * alpha[..., None] + 255 * (255 - alpha[..., None])) / 255
    red = image[..., 0]
    expected = {
        "alpha-associated.tif": composited,
        "alpha-unassociated.tif": composited,
        "palette.tif": np.dstack([red, 255 - red, np.full_like(red, 78)]),
        "min-is-white.tif": np.repeat(red[..., None], 3, 2),
        "bilevel.tif": np.repeat((red > 128)[..., None] * 255, 3, 2),
        "small-tiles.tif": image[:40, :50],
        "smaller-first.tif": image,
    }
    for name, pixels in expected.items():
        with open_slide(folder / name) as slide:
            assert slide.shape == pixels.shape[:2], name
            assert slide.mpp == (0.5, 0.5), name
            assert np.abs(whole(slide) - pixels).max() <= (1 if "alpha" in name else 0), name
    for name in ("min-is-white.tif", "bilevel.tif"):
        with open_slide(folder / name, channel=0) as slide:
            assert np.array_equal(whole(slide), expected[name]), name


IMAGES = ("v04.ome.zarr", "v05.ome.zarr", "v05.ome.zarr.zip", "bf2raw.zarr", "bf2raw.zarr/0", "rgba.ome.zarr", "unit-um.ome.zarr")


@pytest.mark.parametrize("name", IMAGES)
def test_05_zarr_images(cases: Path, name: str) -> None:
    with open_slide(cases / "05-zarrs" / name) as slide:
        assert [level.shape for level in slide.levels] == [(800, 1000), (400, 500), (200, 250)]
        assert slide.mpp == (0.5, 0.5)
        for level in range(3):
            assert np.array_equal(whole(slide, level), picture(800, 1000)[:: 2**level, :: 2**level])
    assert run("info", cases / "05-zarrs" / name)[0] == 0


def test_05_lost_chunks_are_an_error_and_the_rest_is_readable(cases: Path, tmp_path: Path) -> None:
    path = cases / "05-zarrs/lost-chunks.ome.zarr"
    with open_slide(path) as slide:
        assert np.array_equal(slide.read(Region(0, 0, 250, 100)), picture(800, 1000)[:250, :100])
        with pytest.raises(SlideError, match=r"level 0 has lost its chunk \(0, 1, 0\) \(level 0: 12 of 48 chunks absent\)"):
            slide.read(Region(200, 0, 100, 100))
        assert "level 0: 12 of 48 chunks absent" in slide.reader
    status, _, err = run("convert", path, "-o", tmp_path / "a.ome.zarr")
    assert status == 1
    assert "12 of 48 chunks absent" in err


def test_05_shapes_are_believed_before_scales(cases: Path) -> None:
    with pytest.warns(SlideWarning, match=r"level 1 3 by its scale, 2 by its shape; level 2 9 by its scale, 4 by its shape"):
        slide = open_slide(cases / "05-zarrs/scales-disagree.ome.zarr")
    with slide:
        assert [level.downsample for level in slide.levels] == [(1, 1), (2, 2), (4, 4)]
        grid = Sampler(slide, None, 2.0)
        assert grid.shape == (200, 250)
        assert np.array_equal(grid.read(0, 200, 0, 250), picture(800, 1000)[::4, ::4])


def test_06_names(cases: Path, tmp_path: Path) -> None:
    folder = os.fsencode(cases / "06-names")
    names = [name for name in os.listdir(folder) if name.endswith((b".tif", b".ndpi"))]
    assert len(names) == 4
    for number, name in enumerate(names):
        path = Path(os.fsdecode(folder), os.fsdecode(name))
        with open_slide(path) as slide:
            assert np.array_equal(whole(slide), picture(300, 300))
        assert run("info", path)[0] == 0
        target = tmp_path / str(number) / f"{os.fsdecode(name)[:-4]}.zarr"  # as long as the slide's own name
        assert run("convert", path, "-o", target)[0] == 0
        with open_slide(target) as slide:
            assert np.array_equal(whole(slide), picture(300, 300))


@pytest.mark.parametrize(
    ("name", "words"), [("pipe.svs", "a named pipe"), ("lfs.safetensors", "git-lfs pointer"), ("page.safetensors", "a web page")]
)
def test_06_what_is_no_slide_is_named_at_once(cases: Path, name: str, words: str) -> None:
    path = cases / "06-names" / name
    status, _, err = run("info", path)
    assert status == 1
    assert words in err
    assert not can_open(path)


def test_commands_that_refusals_advise_work(cases: Path, tmp_path: Path) -> None:
    """Whatever of a case is refused, the ``streamview`` command that the message names works on that file."""
    for number, path in enumerate(_paths(cases)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SlideWarning)
            try:
                open_slide(path).close()
                continue
            except SlideError as error:
                message = str(error)
        if "streamview convert --channel N" in message:
            assert run("convert", path, "--channel", 0, "-o", tmp_path / str(number))[0] == 0
        if "such as streamview " in message:
            assert run(*shlex.split(message.partition("such as streamview ")[2].partition(";")[0]))[0] == 0


def _paths(cases: Path) -> Iterator[Path]:
    for folder in sorted(cases.glob("0[1-6]-*")):
        yield from (path for path in sorted(folder.iterdir()) if path.suffix != ".npy")


def test_napari_and_view_open_what_the_rest_opens(cases: Path) -> None:
    reader = pytest.importorskip("streamview_napari.reader")
    view = pytest.importorskip("streamview_napari.view")
    for path in _paths(cases):
        opens = can_open(path)
        assert opens or path.suffix in (".safetensors", ".svs"), path
        assert opens == (reader.get_reader(os.fspath(path)) is not None), path
        if opens:
            view.check(os.fspath(path))
