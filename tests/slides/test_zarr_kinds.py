"""OME-Zarr as programs write it: axes, versions, places, and what is absent."""

import json
import os
import pickle
import shlex
import shutil
import zipfile

import numpy as np
import pytest
import zarr

from streamview.cli import main
from streamview.errors import SlideError, SlideWarning
from streamview.geometry import Region
from streamview.slides import as_slide, can_open, open_slide
from streamview.slides.pyramid import build_pyramid

PIXELS = np.random.default_rng(0).integers(1, 256, (128, 192, 3), np.uint8)
AXES = {"c": {"name": "c", "type": "channel"}, "t": {"name": "t", "type": "time"}} | {
    axis: {"name": axis, "type": "space", "unit": "micrometer"} for axis in "zyx"
}


def write(root, pixels=PIXELS, axes="cyx", version="0.5", levels=2, scales=(0.5, 1.0), chunk=32, omero=None, path="", **options):
    """An image of strided levels in any order of axes, in a group of its own."""
    fmt = 3 if version == "0.5" else 2
    group = zarr.open_group(root, mode="a", zarr_format=fmt, path=path)
    for level in range(levels):
        values = pixels[:: 2**level, :: 2**level]
        while values.ndim < len(axes):
            values = values[None]
        others = [axis for axis in axes if axis not in "yxc"]
        order = [values.ndim - 3 + "yxc".index(axis) if axis in "yxc" else others.index(axis) for axis in axes]
        values = values.transpose(order)
        chunks = tuple(chunk if axis in "yx" else 1 if axis != "c" else values.shape[axes.index("c")] for axis in axes)
        array = group.create_array(str(level), shape=values.shape, chunks=chunks, dtype=values.dtype, **options)
        array[...] = values
    sets = []
    for level, scale in zip(range(levels), scales, strict=True):
        sets.append(
            {"path": str(level), "coordinateTransformations": [{"type": "scale", "scale": [scale if a in "yx" else 1 for a in axes]}]}
        )
    image = {"axes": [AXES[axis] for axis in axes], "datasets": sets}
    content = {"multiscales": [image]} | ({} if omero is None else {"omero": {"channels": omero}})
    group.attrs.update({"ome": {"version": "0.5", **content}} if fmt == 3 else content)
    return root


def read(path, level=0):
    with open_slide(path) as slide:
        return slide.read(Region(0, 0, *slide.levels[level].shape, level))


@pytest.mark.parametrize("axes", ["cyx", "yxc", "tczyx", "czyx", "xyc"])
@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_axes_in_any_order(tmp_path, axes, version):
    path = write(tmp_path / "a.zarr", axes=axes, version=version)
    for level in (0, 1):
        assert np.array_equal(read(path, level), PIXELS[:: 2**level, :: 2**level])
    with open_slide(path) as slide:
        assert slide.mpp == (0.5, 0.5)
        assert np.array_equal(slide.read(Region(5, 9, 40, 70)), PIXELS[5:45, 9:79])


@pytest.mark.parametrize("separator", [".", "/"])
def test_separators_shards_and_lost_chunks_of_each(tmp_path, separator):
    options = {"chunk_key_encoding": {"name": "v2", "separator": separator}}
    flat = write(tmp_path / "a.zarr", version="0.4", **options)
    sharded = write(tmp_path / "b.zarr", shards=(3, 64, 64))
    for path, lost in ((flat, f"0/0{separator}1{separator}1"), (sharded, "0/c/0/1/1")):
        assert np.array_equal(read(path), PIXELS)
        (path / lost).unlink()
        with open_slide(path) as slide, pytest.raises(SlideError, match=r"level 0 has lost its (chunk|shard) \(0, 1, 1\)"):
            slide.read(Region(0, 0, *slide.shape))
        with open_slide(path) as slide:
            assert np.array_equal(slide.read(Region(0, 0, 30, 192)), PIXELS[:30])


@pytest.mark.parametrize("fill", [0, 255, 7])
@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_chunks_left_out_for_being_all_fill_value_are_told_from_lost_ones(tmp_path, fill, version):
    pixels = PIXELS.copy()
    pixels[:96, :96] = fill
    path = write(tmp_path / "a.zarr", pixels, version=version, fill_value=fill, config={"write_empty_chunks": False})
    names = [name for name in ("0/0/0/0", "0/0.0.0", "0/c/0/0/0") if (path / name).exists()]
    assert not names, "left out by the writer"
    assert np.array_equal(read(path), pixels)
    assert "chunks absent" in open_slide(path).reader
    lost = next(path / name for name in ("0/0.3.3", "0/0/3/3", "0/c/0/3/3") if (path / name).exists())
    lost.unlink()
    with open_slide(path) as slide, pytest.raises(SlideError, match=r"has lost its chunk \(0, 3, 3\)"):
        slide.read(Region(100, 100, 20, 20))


def test_an_image_without_any_chunk_is_lost_and_not_empty(tmp_path):
    path = write(tmp_path / "a.zarr")
    for level in "01":
        shutil.rmtree(path / level / "c")
    with open_slide(path) as slide, pytest.raises(SlideError, match=r"24 of 24 chunks absent"):
        slide.read(Region(0, 0, 20, 20))


def test_one_level_alone_gives_no_evidence(tmp_path):
    black = write(tmp_path / "black.zarr", levels=1, scales=(0.5,))
    shutil.rmtree(black / "0/c/0/1")
    with open_slide(black) as slide, pytest.raises(SlideError, match="lost its chunk"):
        slide.read(Region(40, 0, 10, 10))
    white = write(tmp_path / "white.zarr", levels=1, scales=(0.5,), fill_value=255)
    shutil.rmtree(white / "0/c/0/1")
    with open_slide(white) as slide, pytest.warns(SlideWarning, match=r"level 0: 6 of 24 chunks absent; they are read as white"):
        assert (slide.read(Region(40, 0, 10, 10)) == 255).all()


def test_a_fill_value_that_is_none_leaves_nothing_out(tmp_path):
    pixels = PIXELS.copy()
    pixels[:96, :96] = 0
    path = write(tmp_path / "a.zarr", pixels, version="0.4", config={"write_empty_chunks": False})
    stated = path / "0/.zarray"
    stated.write_text(json.dumps(json.loads(stated.read_text()) | {"fill_value": None}))
    with open_slide(path) as slide, pytest.raises(SlideError, match=r"has lost its chunk"):
        slide.read(Region(0, 0, 20, 20))


def test_levels_out_of_order_and_without_scales(tmp_path):
    path = write(tmp_path / "a.zarr")
    content = json.loads((path / "zarr.json").read_text())
    sets = content["attributes"]["ome"]["multiscales"][0]["datasets"]
    for entry in sets:
        del entry["coordinateTransformations"]
    sets.reverse()
    (path / "zarr.json").write_text(json.dumps(content))
    with pytest.warns(SlideWarning, match="out of order"):
        slide = open_slide(path)
    with slide:
        assert [(level.shape, level.downsample) for level in slide.levels] == [((128, 192), (1, 1)), ((64, 96), (2, 2))]
        assert (slide.mpp, slide.mpp_source) == (None, "unknown (OME-Zarr axes have no scale)")


def channels(*names, colours=None):
    return [
        {"label": name} | ({"color": colour} if colour else {}) for name, colour in zip(names, colours or [None] * len(names), strict=True)
    ]


def test_transparency_and_stains(tmp_path):
    alpha = np.random.default_rng(1).integers(0, 256, (128, 192, 1), np.uint8)
    rgba = np.concatenate([PIXELS, alpha], 2)
    expected = PIXELS * (alpha / 255) + 255 * (1 - alpha / 255)
    assert np.abs(read(write(tmp_path / "a.zarr", rgba, levels=1, scales=(0.5,))) - expected).max() < 1
    names = channels("Red", "Green", "Blue", "Alpha")
    assert np.abs(read(write(tmp_path / "b.zarr", rgba, levels=1, scales=(0.5,), omero=names, axes="yxc")) - expected).max() < 1
    assert np.array_equal(read(write(tmp_path / "c.zarr", omero=channels("Channel 0", "Channel 1", "Channel 2"))), PIXELS)
    primaries = channels("H&E r", "H&E g", "H&E b", colours=("FF0000", "00FF00", "0000FF"))
    assert np.array_equal(read(write(tmp_path / "d.zarr", omero=primaries)), PIXELS)
    stains = write(tmp_path / "e.zarr", rgba, levels=1, scales=(0.5,), omero=channels("DAPI", "FITC", "Cy3", "Cy5"))
    with pytest.raises(SlideError, match=r"4 channels of 8 bit: DAPI, FITC, Cy3, Cy5 .*--channel N"):
        open_slide(stains)
    with open_slide(stains, channel="Cy3") as slide:
        assert np.array_equal(slide.read(Region(0, 0, 128, 192))[..., 0], PIXELS[..., 2])
        assert slide.pixel_source == "zarr;channel=2"


def packed(folder, path, inside="", compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as file:
        for entry in sorted(folder.rglob("*")):
            if entry.is_file():
                file.write(entry, f"{inside}{entry.relative_to(folder)}")
    return path


@pytest.mark.parametrize(
    ("name", "inside", "compression"),
    [("a.ome.zarr.zip", "", 0), ("a.zarr.zip", "a.zarr/", 0), ("a.ozx", "", 0), ("a", "x/y.zarr/", zipfile.ZIP_DEFLATED)],
)
def test_zip_files_are_read_in_place(tmp_path, name, inside, compression):
    folder = write(tmp_path / "folder.zarr")
    path = packed(folder, tmp_path / name, inside, compression)
    with open_slide(path) as slide, open_slide(folder) as expected, pickle.loads(pickle.dumps(slide)) as again:
        assert np.array_equal(slide.read(Region(3, 5, 99, 101)), PIXELS[3:102, 5:106])
        assert np.array_equal(again.read(Region(3, 5, 99, 101)), PIXELS[3:102, 5:106])
        assert slide.identity == expected.identity
        assert slide.name == name
    (folder / "0/c/0/1/1").unlink()
    with open_slide(packed(folder, tmp_path / "lost.zip")) as slide, pytest.raises(SlideError, match=r"1 of 24 chunks absent"):
        slide.read(Region(0, 0, 128, 192))


def test_a_zip_of_our_own_pyramid_and_a_damaged_one(tmp_path):
    build_pyramid(as_slide(PIXELS, 30), tmp_path / "a.ome.zarr").close()
    path = packed(tmp_path / "a.ome.zarr", tmp_path / "a.zip")
    with open_slide(path) as slide:
        assert slide.mpp == (30, 30), "what the user stated is not doubted again"
        assert np.array_equal(slide.read(Region(0, 0, 128, 192)), PIXELS)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(SlideError, match="damaged zip archive"):
        open_slide(path)


def collection(root, paths, ome):
    zarr.open_group(root, mode="w", zarr_format=3).attrs["ome"] = {"version": "0.5", **ome}
    for path in paths:
        write(root, path=path)
    return root


def plate(root, wells, fields):
    group = collection(root, [], {"plate": {"wells": [{"path": well} for well in wells]}})
    for well in wells:
        zarr.open_group(root, path=well, mode="a", zarr_format=3).attrs["ome"] = {"well": {"images": [{"path": f} for f in fields]}}
        for field in fields:
            write(root, path=f"{well}/{field}")
    return group


def test_collections_open_the_one_image_or_name_the_choices(tmp_path, capsys):
    one = collection(tmp_path / "one.zarr", ["0"], {"bioformats2raw.layout": 3})
    plain = collection(tmp_path / "plain.zarr", ["image"], {})
    well = plate(tmp_path / "well.zarr", ["A/1"], ["0"])
    for path in (one, plain, well, packed(one, tmp_path / "one.zip")):
        assert np.array_equal(read(path), PIXELS)
    two = collection(tmp_path / "two files.zarr", ["0", "1"], {"bioformats2raw.layout": 3})
    many = plate(tmp_path / "many.zarr", ["A/1", "B/2"], ["0", "1"])
    for path, shown in (
        (two, "2 images: 0, 1"),
        (many, "4 images: A/1/0, A/1/1, B/2/0, B/2/1"),
        (packed(two, tmp_path / "2.zip"), "2 images: 0, 1"),
    ):
        with pytest.raises(SlideError, match=shown) as caught:
            open_slide(path)
        command = shlex.split(str(caught.value).partition("such as streamview ")[2])
        assert main(command) == 0
        capsys.readouterr()
        with open_slide(command[1]) as slide:
            assert slide.name == "_".join(os.path.relpath(command[1], tmp_path).split("/"))
            assert np.array_equal(slide.read(Region(0, 0, 128, 192)), PIXELS)
    assert np.array_equal(read(many / "B/2/1"), PIXELS)
    with pytest.raises(SlideError, match="array of zarr, not an image"):
        open_slide(one / "0/0")


def test_an_image_is_named_by_its_folder_also_from_within(tmp_path, monkeypatch):
    monkeypatch.chdir(write(tmp_path / "a.zarr"))
    with open_slide(".") as slide:
        assert slide.name == "a.zarr"


def test_pipes_in_an_image_are_refused(tmp_path):
    path = write(tmp_path / "a.zarr")
    (path / "0/c/0/1/1").unlink()
    os.mkfifo(path / "0/c/0/1/1")
    with pytest.raises(SlideError, match="a pipe or device"):
        open_slide(path)
    assert not can_open(path)


def test_large_single_levels_of_other_pixels_are_other_sources(tmp_path, monkeypatch):
    monkeypatch.setattr("streamview.slides.omezarr._SMALL", 1)
    other = PIXELS.copy()
    other[100:, 150:] = 5
    first, second = (write(tmp_path / name, pixels, levels=1, scales=(0.5,)) for name, pixels in (("a.zarr", PIXELS), ("b.zarr", other)))
    with open_slide(first) as a, open_slide(second) as b:
        assert a.identity != b.identity
