import errno
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import yaozarrs
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from ome_zarr_models.v05 import Image

from streamview.errors import RegionError, SlideError
from streamview.geometry import Region
from streamview.slides import Slide, as_slide, open_slide
from streamview.slides.pyramid import build_pyramid, pyramid_shapes
from streamview.slides.sampling import Sampler
from tests.support.pyramids import rgb


def halved(pixels):
    """Mean of the pixels that each 2 x 2 block has, rounded half up, by counting."""
    height, width = (-(-n // 2) for n in pixels.shape[:2])
    total, count = np.zeros((height, width, 3), int), np.zeros((height, width, 1), int)
    for dy in (0, 1):
        for dx in (0, 1):
            part = pixels[dy::2, dx::2]
            total[: part.shape[0], : part.shape[1]] += part
            count[: part.shape[0], : part.shape[1]] += 1
    return (2 * total + count) // (2 * count)


def transformations(path):
    """Scale and translation (y, x) of every level."""
    datasets = zarr.open_group(str(path), mode="r").attrs["ome"]["multiscales"][0]["datasets"]
    return [tuple(t[t["type"]][1:] for t in dataset["coordinateTransformations"]) for dataset in datasets]


@pytest.fixture(scope="module")
def odd():
    """2967 rows over 2 shards, 4111 columns over 3, both odd."""
    return np.tile(rgb(989, 4111), (3, 1, 1))


@pytest.fixture(scope="module")
def built(odd, tmp_path_factory):
    return build_pyramid(as_slide(odd, 0.25), tmp_path_factory.mktemp("pyramid") / "odd.ome.zarr")


def test_level_0_is_the_slide_and_the_others_exact_block_means(odd, built):
    assert [level.shape for level in built.levels] == [(2967, 4111), (1484, 2056), (742, 1028), (371, 514)]
    assert [level.downsample for level in built.levels] == [(2.0**k, 2.0**k) for k in range(4)]
    expected = odd
    for number, level in enumerate(built.levels):
        assert np.array_equal(built.read(Region(0, 0, *level.shape, number)), expected)
        expected = halved(expected)


def test_it_is_a_slide(odd, built):
    assert isinstance(built, Slide)
    assert (built.mpp, built.mpp_source, built.name) == ((0.25, 0.25), "given (--mpp)", "odd.ome.zarr")
    assert built.identity == as_slide(odd).identity
    pixels = built.read(Region(2000, 2000, 100, 90))
    assert pixels.flags.c_contiguous
    assert np.array_equal(pixels, odd[2000:2100, 2000:2090])
    with pytest.raises(RegionError):
        built.read(Region(0, 0, 372, 1, 3))


def test_its_metadata(tmp_path, built):
    path = tmp_path / "link"
    path.symlink_to(built.arrays[0].store.root)
    ome = json.loads((path / "zarr.json").read_text())["attributes"]["ome"]
    assert ome["version"] == "0.5"
    image = ome["multiscales"][0]
    assert [(axis["name"], axis.get("unit")) for axis in image["axes"]] == [("c", None), ("y", "micrometer"), ("x", "micrometer")]
    for k, dataset in enumerate(image["datasets"]):
        scale, translation = (t[t["type"]] for t in dataset["coordinateTransformations"])
        assert scale == [1, 2**k * 0.25, 2**k * 0.25]
        assert translation == [0, 0.25 * (2**k - 1) / 2, 0.25 * (2**k - 1) / 2]
    assert [channel["window"] for channel in ome["omero"]["channels"]] == [{"min": 0, "max": 255, "start": 0, "end": 255}] * 3
    for array in built.arrays:
        assert (array.chunks, array.shards, array.metadata.dimension_names) == ((3, 512, 512), (3, 2048, 2048), ("c", "y", "x"))


def test_other_programs_find_it_valid(built):
    path = str(built.arrays[0].store.root)
    Image.from_zarr(zarr.open_group(path, mode="r"))
    yaozarrs.validate_zarr_store(path)


def test_without_mpp_there_are_no_units(tmp_path):
    with build_pyramid(as_slide(rgb(1100, 30)), tmp_path / "a.ome.zarr") as pyramid:
        assert (pyramid.mpp, pyramid.mpp_source) == (None, "unknown")
        ome = dict(zarr.open_group(str(tmp_path / "a.ome.zarr"), mode="r").attrs)["ome"]
    image = ome["multiscales"][0]
    assert all("unit" not in axis for axis in image["axes"])
    assert image["datasets"][1]["coordinateTransformations"] == [
        {"type": "scale", "scale": [1.0, 2.0, 2.0]},
        {"type": "translation", "translation": [0.0, 0.5, 0.5]},
    ]
    yaozarrs.validate_zarr_store(str(tmp_path / "a.ome.zarr"))
    with open_slide(tmp_path / "a.ome.zarr", mpp=0.5) as slide:
        assert (slide.mpp, slide.mpp_source) == ((0.5, 0.5), "given (--mpp)")


def test_nothing_depends_on_name_or_time(tmp_path):
    pixels = rgb(40, 50)
    contents = []
    for name in ("a.ome.zarr", "deep/b.ome.zarr"):
        root = tmp_path / name
        build_pyramid(as_slide(pixels, 0.5), root)
        contents.append({path.relative_to(root): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()})
    assert contents[0] == contents[1]


def test_a_slide_file_keeps_its_background_and_source(synthetic_slide, tmp_path):
    with open_slide(synthetic_slide.path) as slide, build_pyramid(slide, tmp_path / "a.ome.zarr") as pyramid:
        assert (pyramid.identity, pyramid.background, pyramid.mpp_source) == (slide.identity, slide.background, "aperio.MPP")
        assert np.array_equal(pyramid.read(Region(700, 900, 300, 200)), slide.read(Region(700, 900, 300, 200)))


def test_a_colour_profile_is_kept(tmp_path):
    slide = as_slide(rgb(30, 30))
    slide.icc_profile = bytes(range(256))
    with build_pyramid(slide, tmp_path / "a.ome.zarr") as pyramid:
        assert pyramid.icc_profile == slide.icc_profile


def test_progress_is_told(tmp_path):
    steps = []
    build_pyramid(as_slide(rgb(2100, 30)), tmp_path / "a.ome.zarr", report=steps.append)
    assert [(step.done, step.total) for step in steps] == [(n, 4) for n in range(5)]  # shards of 2, 1, 1


def test_a_folder_that_may_not_be_written(tmp_path, monkeypatch):
    def forbidden(path, *_, **__):
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    with monkeypatch.context() as patched:
        patched.setattr(os, "mkdir", forbidden)  # as for root a mode of 0500 forbids nothing
        with pytest.raises(SlideError, match=r"cannot be written \(Read-only file system\); check the folder"):
            build_pyramid(as_slide(rgb(30, 30)), tmp_path / "a.ome.zarr")
    assert not list(tmp_path.iterdir())


def test_an_unreadable_slide_leaves_nothing(tmp_path, shared_data):
    with open_slide(shared_data / "broken/unreadable.svs") as slide, pytest.raises(SlideError, match="unreadable at level 0"):
        build_pyramid(slide, tmp_path / "a.ome.zarr")
    assert not list(tmp_path.iterdir())


def test_an_existing_output_is_refused_and_kept(tmp_path):
    out = tmp_path / "a.ome.zarr"
    out.write_text("precious")
    with pytest.raises(SlideError, match="exists already"):
        build_pyramid(as_slide(rgb(30, 30)), out)
    assert out.read_text() == "precious"


def test_an_output_that_appears_meanwhile_is_kept(tmp_path):
    out = tmp_path / "a.ome.zarr"

    def report(step):
        if step.done == step.total:
            out.mkdir()
            (out / "theirs").touch()

    with pytest.raises(SlideError, match="another program"):
        build_pyramid(as_slide(rgb(30, 30)), out, report=report)
    assert [path.name for path in out.rglob("*")] == ["theirs"]
    shutil.rmtree(out)
    steps = []
    build_pyramid(as_slide(rgb(30, 30)), out, report=steps.append)
    assert [step.total for step in steps] == [0]  # it was all there but for the name
    assert not (tmp_path / ".a.ome.zarr.partial").exists()


def test_a_lost_shard_is_noticed(tmp_path):
    build_pyramid(as_slide(rgb(2100, 30)), tmp_path / "a.ome.zarr")
    (tmp_path / "a.ome.zarr/0/c/0/1/0").unlink()
    with pytest.raises(SlideError, match=r"level 0 has lost its shard \(0, 1, 0\)"):
        open_slide(tmp_path / "a.ome.zarr")


def test_a_damaged_shard_is_named(tmp_path):
    build_pyramid(as_slide(rgb(30, 30)), tmp_path / "a.ome.zarr")
    shard = tmp_path / "a.ome.zarr/0/c/0/0/0"
    shard.write_bytes(bytes(shard.stat().st_size))
    with open_slide(tmp_path / "a.ome.zarr") as pyramid, pytest.raises(SlideError, match=r"unreadable at level 0.*convert"):
        pyramid.read(Region(0, 0, 30, 30))


def test_links_out_of_the_folder_are_refused(tmp_path):
    build_pyramid(as_slide(rgb(30, 30)), tmp_path / "a.ome.zarr")
    shard = tmp_path / "a.ome.zarr/0/c/0/0/0"
    shard.rename(tmp_path / "outside")
    shard.symlink_to(tmp_path / "outside")
    with pytest.raises(SlideError, match="link that leaves the folder"):
        open_slide(tmp_path / "a.ome.zarr")


@pytest.mark.parametrize(("codec", "stored"), [("zstd", "zstd"), ("lz4", "blosc")])
def test_both_codecs_keep_every_pixel(tmp_path, odd, codec, stored):
    pixels = odd[:700, :600]
    with build_pyramid(as_slide(pixels), tmp_path / "a.ome.zarr", codec=codec) as pyramid:
        assert np.array_equal(pyramid.read(Region(0, 0, 700, 600)), pixels)
    metadata = json.loads((tmp_path / "a.ome.zarr/0/zarr.json").read_text())
    assert stored in [inner["name"] for inner in metadata["codecs"][0]["configuration"]["codecs"]]
    Image.from_zarr(zarr.open_group(str(tmp_path / "a.ome.zarr"), mode="r"))


def test_the_number_of_levels(tmp_path):
    slide = as_slide(rgb(40, 70))
    assert pyramid_shapes(slide) == ((40, 70),)
    assert pyramid_shapes(slide, levels=3) == ((40, 70), (20, 35), (10, 18))
    assert pyramid_shapes(slide, levels=8)[-1] == (1, 1)
    with build_pyramid(slide, tmp_path / "a.ome.zarr", levels=3) as pyramid:
        assert [level.shape for level in pyramid.levels] == [(40, 70), (20, 35), (10, 18)]
    for levels in (0, -1, 9):
        with pytest.raises(SlideError, match=f"{levels} levels: expected 1 to 8 for 70 x 40 px"):
            build_pyramid(slide, tmp_path / "b.ome.zarr", levels=levels)


_PX = st.integers(1, 300)


@given(st.tuples(_PX, _PX), st.tuples(st.integers(0, 99), st.integers(0, 99)), st.sampled_from([None, 0.5, 0.7, 2]))
@settings(max_examples=40, deadline=None)
def test_a_part_at_some_mpp_lies_where_its_pixels_were(tmp_path_factory, shape, corner, mpp):
    slide = as_slide(rgb(400, 400), 0.5)
    region = Region(*corner, *shape)
    out = tmp_path_factory.mktemp("part") / "a.ome.zarr"
    with build_pyramid(slide, out, region=region, mpp=mpp, levels=1) as pyramid:
        grid = Sampler(slide, region, mpp)
        assert pyramid.mpp == (mpp or 0.5,) * 2
        assert np.array_equal(pyramid.read(Region(0, 0, *pyramid.shape)), grid.read(0, grid.shape[0], 0, grid.shape[1]))
    ((scale, translation),) = transformations(out)
    assert scale == list(pyramid.mpp)
    # the outer corner of pixel (0, 0) is that of the region, where centres of the slide's pixels are at multiples of its mpp
    assert np.allclose(np.subtract(translation, np.divide(scale, 2)), 0.5 * (np.asarray(corner) - 0.5), rtol=0, atol=1e-9)


def test_every_level_of_a_part_has_the_same_corner(tmp_path):
    build_pyramid(as_slide(rgb(300, 300), 0.25), tmp_path / "a.ome.zarr", region=Region(40, 60, 200, 210), mpp=1, levels=4)
    placed = transformations(tmp_path / "a.ome.zarr")
    assert [scale for scale, _ in placed] == [[1.0, 1.0], [2.0, 2.0], [4.0, 4.0], [8.0, 8.0]]
    assert [translation for _, translation in placed] == [[10 + (2**k - 0.25) / 2, 15 + (2**k - 0.25) / 2] for k in range(4)]
    yaozarrs.validate_zarr_store(str(tmp_path / "a.ome.zarr"))
    Image.from_zarr(zarr.open_group(str(tmp_path / "a.ome.zarr"), mode="r"))


def test_a_part_has_an_identity_of_its_own(tmp_path):
    slide = as_slide(rgb(300, 300), 0.5)
    asked = [{}, {"region": Region(0, 0, 300, 300)}, {"mpp": 0.5}, {"levels": 2}, {"region": Region(0, 0, 300, 299)}]
    asked += [{"region": Region(0, 1, 300, 299)}, {"mpp": 1}, {"mpp": 2}, {"region": Region(0, 0, 300, 299), "mpp": 2}]
    found = []
    for number, options in enumerate(asked):
        with build_pyramid(slide, tmp_path / f"{number}.ome.zarr", **options) as pyramid:
            found.append(pyramid.identity)
    assert found[:4] == [slide.identity] * 4
    assert len({*found[3:]}) == len(found[3:])


def test_a_pyramid_of_a_part_has_pixels_of_its_own(tmp_path):
    """Its place in the slide is for programs that show both; as a slide it begins at 0."""
    slide = as_slide(rgb(300, 300), 0.5)
    with build_pyramid(slide, tmp_path / "a.ome.zarr", region=Region(100, 120, 90, 80)) as part:
        assert (part.shape, part.mpp, part.mpp_source) == ((90, 80), (0.5, 0.5), "given (--mpp)")
        assert np.array_equal(part.read(Region(10, 20, 30, 40)), slide.read(Region(110, 140, 30, 40)))
        with build_pyramid(part, tmp_path / "b.ome.zarr") as again:
            assert again.identity == part.identity
    attributes = dict(zarr.open_group(str(tmp_path / "a.ome.zarr"), mode="r").attrs)["streamview"]
    assert attributes["part"] == {"slide": slide.identity, "region": "120,100,80,90", "scale": [1.0, 1.0]}


def test_a_part_that_cannot_be(tmp_path):
    with pytest.raises(RegionError, match="give a region inside it"):
        build_pyramid(as_slide(rgb(30, 30)), tmp_path / "a.ome.zarr", region=Region(0, 0, 31, 30))
    with pytest.raises(SlideError, match="state the slide's with mpp="):
        build_pyramid(as_slide(rgb(30, 30)), tmp_path / "a.ome.zarr", mpp=2)
    with pytest.raises(SlideError, match="more than 10% coarser"):
        build_pyramid(as_slide(rgb(30, 30), 0.5), tmp_path / "a.ome.zarr", mpp=0.25)
    assert not list(tmp_path.iterdir())


def write_group(path, shape, dtype="uint8", axes="cyx", chunks=None, version="0.5", names=None):
    group = zarr.create_group(str(path), zarr_format=2 if version == "0.4" else 3)
    group.create_array("0", shape=shape, dtype=dtype, chunks=chunks or tuple(min(n, 64) for n in shape))
    transformations = [{"type": "scale", "scale": [1.0] * (len(axes) - 2) + [0.5, 0.4]}]
    units = {"y": {"unit": "micrometer"}, "x": {"unit": "micrometer"}}
    image = {
        "axes": [{"name": axis, **units.get(axis, {})} for axis in axes],
        "datasets": [{"path": "0", "coordinateTransformations": transformations}],
        "version": version,
    }
    group.attrs.update({"multiscales": [image]} if version == "0.4" else {"ome": {"version": version, "multiscales": [image]}})
    return group["0"]


@pytest.mark.parametrize(("version", "axes"), [("0.5", "cyx"), ("0.4", "tczyx")])
def test_images_of_other_programs_open(tmp_path, version, axes):
    pixels = rgb(70, 90)
    array = write_group(
        tmp_path / "a.zarr", (1,) * (len(axes) - 3) + (3, 70, 90) if axes == "cyx" else (1, 3, 1, 70, 90), axes=axes, version=version
    )
    array[...] = np.moveaxis(pixels, 2, 0).reshape(array.shape)
    with open_slide(tmp_path / "a.zarr") as slide:
        assert (slide.mpp, slide.mpp_source) == ((0.5, 0.4), "OME-Zarr scale")
        assert np.array_equal(slide.read(Region(5, 6, 50, 60)), pixels[5:55, 6:66])
        assert len(slide.identity) == 64


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shape": (3, 64, 64), "dtype": "uint16"}, r"type uint16\): expected 8-bit RGB"),
        ({"shape": (1, 64, 64)}, "expected 8-bit RGB"),
        ({"shape": (3, 2**40, 2**20)}, "declares 1048576 x 1099511627776 px"),
        ({"shape": (3, 2**20, 2**20), "chunks": (3, 2**15, 2**15)}, "pieces of 3072 MiB"),
    ],
)
def test_unfit_arrays_are_refused(tmp_path, options, message):
    write_group(tmp_path / "a.zarr", **options)
    with pytest.raises(SlideError, match=message):
        open_slide(tmp_path / "a.zarr")


def test_unfit_groups_are_refused(tmp_path):
    zarr.create_group(str(tmp_path / "plain.zarr"))
    with pytest.raises(SlideError, match="no OME-Zarr image of axes c, y, x"):
        open_slide(tmp_path / "plain.zarr")
    with pytest.raises(SlideError, match="no such file or folder"):
        open_slide(tmp_path / "none.zarr")
    build_pyramid(as_slide(rgb(30, 30)), tmp_path / "a.ome.zarr")
    (tmp_path / "a.ome.zarr/0/zarr.json").unlink()
    with pytest.raises(SlideError, match="a level is missing"):
        open_slide(tmp_path / "a.ome.zarr")


def test_real_slides_convert(shared_data, tmp_path):
    for number, path in enumerate(sorted((shared_data / "slides").iterdir())):
        with open_slide(path) as slide, build_pyramid(slide, tmp_path / f"{number}.ome.zarr") as pyramid:
            assert (pyramid.shape, pyramid.identity) == (slide.shape, slide.identity)
            corner = Region(0, 0, min(300, slide.shape[0]), min(300, slide.shape[1]))
            assert np.array_equal(pyramid.read(corner), slide.read(corner))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from Linux's ru_maxrss")
def test_memory_does_not_grow_with_the_slide():
    program = """
import resource, sys, tempfile
import numpy as np
from streamview.slides.pyramid import build_pyramid
from streamview.slides import Level
tile = np.random.default_rng(0).integers(0, 256, (2048, 2048, 3), np.uint8)
class Endless:
    name, mpp, mpp_source, background, identity = "endless", None, "unknown", (255, 255, 255), "0" * 64
    shape, properties, icc_profile = (int(sys.argv[1]), 4096), {}, None
    levels = (Level(shape, (1.0, 1.0)),)
    def read(self, region):
        return tile[: region.height, : region.width].copy()
with tempfile.TemporaryDirectory() as folder:
    build_pyramid(Endless(), folder + "/a.ome.zarr")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""
    small, large = (int(subprocess.check_output([sys.executable, "-c", program, str(n)])) for n in (8192, 32768))
    assert large < small + 60, f"{small} MB for 8192 rows, {large} MB for 32768"
