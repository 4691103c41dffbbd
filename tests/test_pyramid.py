import errno
import json
import subprocess
import sys

import numpy as np
import pytest
import yaozarrs
import zarr
from ome_zarr_models.v05 import Image

from streamview.errors import Cancelled, RegionError, SlideError
from streamview.geometry import Region
from streamview.pyramid import build_pyramid, open_pyramid
from streamview.slides import Slide, as_slide, open_slide


def rgb(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


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


def test_progress_is_told(tmp_path):
    steps = []
    build_pyramid(as_slide(rgb(2100, 30)), tmp_path / "a.ome.zarr", report=steps.append)
    assert [(step.done, step.total) for step in steps] == [(n, 4) for n in range(5)]  # shards of 2, 1, 1


@pytest.mark.parametrize("at", [0, 1, 3])
def test_cancelling_leaves_nothing(tmp_path, at):
    def report(step):
        if step.done == at:
            raise Cancelled("stopped")

    with pytest.raises(Cancelled):
        build_pyramid(as_slide(rgb(2100, 30)), tmp_path / "a.ome.zarr", report=report)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_said_and_leaves_nothing(tmp_path, monkeypatch):
    async def full(self, key, value):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(zarr.storage.LocalStore, "set", full)
    with pytest.raises(SlideError, match="disk is full; free some space"):
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
    assert [path.name for path in tmp_path.rglob("*")] == ["a.ome.zarr", "theirs"]


def test_a_lost_shard_is_noticed(tmp_path):
    build_pyramid(as_slide(rgb(2100, 30)), tmp_path / "a.ome.zarr")
    (tmp_path / "a.ome.zarr/0/c/0/1/0").unlink()
    with pytest.raises(SlideError, match=r"level 0 has lost its shard \(0, 1, 0\)"):
        open_pyramid(tmp_path / "a.ome.zarr")


def test_a_damaged_shard_is_named(tmp_path):
    build_pyramid(as_slide(rgb(30, 30)), tmp_path / "a.ome.zarr")
    shard = tmp_path / "a.ome.zarr/0/c/0/0/0"
    shard.write_bytes(bytes(shard.stat().st_size))
    with open_pyramid(tmp_path / "a.ome.zarr") as pyramid, pytest.raises(SlideError, match=r"unreadable at level 0.*convert"):
        pyramid.read(Region(0, 0, 30, 30))


def test_links_out_of_the_folder_are_refused(tmp_path):
    build_pyramid(as_slide(rgb(30, 30)), tmp_path / "a.ome.zarr")
    shard = tmp_path / "a.ome.zarr/0/c/0/0/0"
    shard.rename(tmp_path / "outside")
    shard.symlink_to(tmp_path / "outside")
    with pytest.raises(SlideError, match="link that leaves the folder"):
        open_pyramid(tmp_path / "a.ome.zarr")


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
        ({"shape": (3, 64, 64), "dtype": "uint16"}, "type uint16: expected 8-bit RGB"),
        ({"shape": (1, 64, 64)}, "expected 8-bit RGB"),
        ({"shape": (3, 2**40, 2**20)}, "declares 1048576 x 1099511627776 px"),
        ({"shape": (3, 2**20, 2**20), "chunks": (3, 2**15, 2**15)}, "pieces of 3072 MiB"),
    ],
)
def test_unfit_arrays_are_refused(tmp_path, options, message):
    write_group(tmp_path / "a.zarr", **options)
    with pytest.raises(SlideError, match=message):
        open_pyramid(tmp_path / "a.zarr")


def test_unfit_groups_are_refused(tmp_path):
    zarr.create_group(str(tmp_path / "plain.zarr"))
    with pytest.raises(SlideError, match="no OME-Zarr image of axes c, y, x"):
        open_pyramid(tmp_path / "plain.zarr")
    with pytest.raises(SlideError, match="not a zarr group"):
        open_pyramid(tmp_path / "none.zarr")
    build_pyramid(as_slide(rgb(30, 30)), tmp_path / "a.ome.zarr")
    (tmp_path / "a.ome.zarr/0/zarr.json").unlink()
    with pytest.raises(SlideError, match="a level is missing"):
        open_pyramid(tmp_path / "a.ome.zarr")


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
from streamview.pyramid import build_pyramid
from streamview.slides import as_slide
tile = np.random.default_rng(0).integers(0, 256, (2048, 2048, 3), np.uint8)
class Endless:
    name, mpp, mpp_source, background, identity = "endless", None, "unknown", (255, 255, 255), "0" * 64
    shape = int(sys.argv[1]), 4096
    def read(self, region):
        return tile[: region.height, : region.width].copy()
with tempfile.TemporaryDirectory() as folder:
    build_pyramid(Endless(), folder + "/a.ome.zarr")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""
    small, large = (int(subprocess.check_output([sys.executable, "-c", program, str(n)])) for n in (8192, 32768))
    assert large < small + 60, f"{small} MB for 8192 rows, {large} MB for 32768"
