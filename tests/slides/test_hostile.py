"""Files that lie about themselves, or reach for what is not theirs."""

import json
import shutil

import numpy as np
import pytest
import zarr

from streamview.errors import SlideError
from streamview.geometry import Region
from streamview.slides import as_slide, open_slide
from streamview.slides.pyramid import build_pyramid


@pytest.fixture
def pyramid(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (1100, 700, 3), np.uint8)
    build_pyramid(as_slide(pixels, 0.5), tmp_path / "a.ome.zarr").close()
    return tmp_path / "a.ome.zarr"


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("path", ["../outside/0", "/etc", "0/../../outside/0", "..\\outside", ".", "", 7, None])
def test_a_level_outside_the_image_is_refused(pyramid, path):
    shutil.copytree(pyramid, pyramid.parent / "outside")

    def change(content):
        content["attributes"]["ome"]["multiscales"][0]["datasets"][0]["path"] = path

    edit(pyramid / "zarr.json", change)
    with pytest.raises(SlideError, match=r"lies outside the image; expected a name inside"):
        open_slide(pyramid)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("shape", [3, 10**9, 10**9], "levels are|declares 1000000000 x"),
        ("shape", [3, 1100, 701], "expected each half of the one before|has lost its shard"),
        ("shape", [3, 0, 0], "declares|levels are"),
        ("shape", [3, -5, 700], "not a zarr group|level is missing or damaged"),
        ("data_type", "uint16", "8-bit RGB|differs in kind"),
        ("shape", "large", "level is missing or damaged|not a zarr group"),
    ],
)
def test_a_level_that_states_nonsense_is_refused(pyramid, key, value, message):
    edit(pyramid / "0/zarr.json", lambda content: content.update({key: value}))
    with pytest.raises(SlideError, match=message):
        open_slide(pyramid)


@pytest.mark.parametrize("scale", [0, -1.0, "nan", None, [], 1e400])
def test_a_senseless_scale_is_refused(pyramid, scale):
    def change(content):
        for dataset in content["attributes"]["ome"]["multiscales"][0]["datasets"]:
            dataset["coordinateTransformations"][0]["scale"] = [1.0, scale, scale]

    edit(pyramid / "zarr.json", change)
    with pytest.raises(SlideError, match="no OME-Zarr image"):
        open_slide(pyramid)


def test_a_foreign_array_of_3e18_bytes_is_refused_before_it_is_read(tmp_path):
    group = zarr.create_group(str(tmp_path / "a.ome.zarr"), zarr_format=3)
    group.create_array("0", shape=(3, 10**9, 10**9), dtype="uint8", chunks=(3, 512, 512))
    axes = [{"name": name, "type": "space"} for name in "cyx"]
    datasets = [{"path": "0", "coordinateTransformations": [{"type": "scale", "scale": [1, 1, 1]}]}]
    group.attrs["ome"] = {"version": "0.5", "multiscales": [{"axes": axes, "datasets": datasets}]}
    with pytest.raises(SlideError, match="declares 1000000000 x 1000000000 px"):
        open_slide(tmp_path / "a.ome.zarr")


def test_a_link_out_of_the_folder_is_refused_and_one_inside_is_not(pyramid, tmp_path):
    (tmp_path / "secret").write_text("x")
    (pyramid / "inside").symlink_to(pyramid / "0")
    open_slide(pyramid).close()
    (pyramid / "1/stolen").symlink_to(tmp_path / "secret")
    with pytest.raises(SlideError, match="1/stolen is a link that leaves the folder"):
        open_slide(pyramid)


def test_a_damaged_chunk_is_named_and_the_rest_stays_readable(pyramid):
    shard = pyramid / "0/c/0/0/0"
    data = bytearray(shard.read_bytes())
    data[10:40] = bytes(30)  # in the first chunk
    shard.write_bytes(data)
    with open_slide(pyramid) as slide:
        with pytest.raises(SlideError, match=r"unreadable at level 0, X,Y,WIDTH,HEIGHT 5,6,7,8"):
            slide.read(Region(6, 5, 8, 7))
        assert slide.read(Region(600, 600, 50, 50)).std() > 10


@pytest.fixture
def mirax(tmp_path):
    """The skeleton of an MRXS: enough to see what is missing."""
    (tmp_path / "a.mrxs").write_bytes(b"\xff\xd8")
    (tmp_path / "a").mkdir()
    stated = "\ufeff[GENERAL]\nSLIDE_ID = 100%\n[HIERARCHICAL]\nINDEXFILE = Index.dat\n[DATAFILE]\n"
    stated += "FILE_COUNT = 2\nFILE_0 = Data0000.dat\nFILE_1 = {}\n"
    for name in ("Index.dat", "Data0000.dat", "Data0001.dat"):
        (tmp_path / "a" / name).write_bytes(b"")

    def write(last="Data0001.dat"):
        (tmp_path / "a/Slidedat.ini").write_text(stated.format(last), "utf-8")
        return tmp_path / "a.mrxs"

    return write


@pytest.mark.parametrize("name", ["Data0001.dat", "Index.dat", "Slidedat.ini"])
def test_a_missing_part_of_an_mrxs_is_named(mirax, tmp_path, name):
    path = mirax()
    (tmp_path / "a" / name).unlink()
    with pytest.raises(SlideError, match=rf"a\.mrxs: .*{name}.* missing; copy the"):
        open_slide(path)


def test_an_mrxs_reaches_for_nothing_outside(mirax, tmp_path):
    (tmp_path / "other.dat").write_bytes(b"")
    with pytest.raises(SlideError, match=r"a/\.\./other\.dat is missing"):
        open_slide(mirax("../other.dat"))


def test_a_complete_mrxs_is_left_to_openslide(mirax):
    with pytest.raises(SlideError, match=r"not a slide|OpenSlide cannot open it"):
        open_slide(mirax())


def test_a_damaged_index_of_an_mrxs_is_named(mirax, tmp_path):
    path = mirax()
    (tmp_path / "a/Slidedat.ini").write_text("no sections here")
    with pytest.raises(SlideError, match=r"Slidedat\.ini is damaged"):
        open_slide(path)
