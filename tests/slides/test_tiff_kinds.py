"""TIFFs as programs write them: directories, tiles, colours and transparency of every kind, and names."""

import multiprocessing
import os
import pickle
import shutil
import socket

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

from streamview.errors import SlideError, SlideWarning
from streamview.geometry import Region
from streamview.slides import as_slide, can_open, open_slide
from streamview.slides.slide import composite


def rgb(height=150, width=200, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def write(path, pixels, **options):
    tifffile.imwrite(path, pixels, **{"photometric": "rgb", "tile": (64, 64), "metadata": None} | options)
    return path


def read(path, level=0, **options):
    with open_slide(path, **options) as slide:
        return slide.read(Region(0, 0, *slide.levels[level].shape, level))


@pytest.mark.parametrize("bigtiff", [False, True])
@pytest.mark.parametrize("ome", [False, True])
@pytest.mark.parametrize("count", [0, 1, 3])
def test_any_number_of_subdirectories(tmp_path, count, ome, bigtiff):
    pixels, path = rgb(256, 256), tmp_path / ("a.ome.tif" if ome else "a.tif")
    options = {"photometric": "rgb", "tile": (32, 32)}
    with tifffile.TiffWriter(path, bigtiff=bigtiff, ome=ome) as writer:
        writer.write(pixels, subifds=count, metadata={"axes": "YXS"} if ome else None, **options)
        for level in range(1, count + 1):
            writer.write(pixels[:: 2**level, :: 2**level], subfiletype=1, metadata=None, **options)
        if not ome:
            writer.write(rgb(40, 90), metadata=None, **options)  # another page behind them, such as a label
    for level in range(count + 1):
        assert np.array_equal(read(path, level), pixels[:: 2**level, :: 2**level])


def test_the_larger_image_is_the_slide_wherever_it_stands(tmp_path):
    pixels, path = rgb(256, 256), tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as writer:  # a thumbnail whose sub-directory is the scan
        writer.write(pixels[::4, ::4], subifds=1, photometric="rgb", tile=(32, 32), metadata=None)
        writer.write(pixels, photometric="rgb", tile=(32, 32), metadata=None)
    assert np.array_equal(read(path), pixels)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (0, 2, 3)])
def test_levels_in_any_order_and_of_any_factor(tmp_path, order):
    pixels, path = rgb(256, 320), tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as writer:
        for level in order:
            options = {"photometric": "rgb", "tile": (32, 32), "metadata": None, "subfiletype": int(level > 0)}
            writer.write(pixels[:: 2**level, :: 2**level], **options)
    for number, level in enumerate(sorted(order)):
        assert np.array_equal(read(path, number), pixels[:: 2**level, :: 2**level])


def test_several_images_of_one_file(tmp_path):
    path, twins = tmp_path / "a.ome.tif", tmp_path / "b.ome.tif"
    sizes = {"label": (3.0, rgb(50, 80)), "scan": (0.5, rgb()), "macro": (9.0, rgb(90, 90))}
    with tifffile.TiffWriter(path, ome=True) as writer:
        for name, (mpp, pixels) in sizes.items():
            writer.write(pixels, photometric="rgb", metadata={"axes": "YXS", "Name": name, "PhysicalSizeX": mpp, "PhysicalSizeY": mpp})
    with open_slide(path) as slide:
        assert (slide.mpp, slide.associated) == ((0.5, 0.5), ("label", "macro"))
        assert np.array_equal(slide.read(Region(0, 0, 150, 200)), rgb())
    with tifffile.TiffWriter(twins, ome=True) as writer:
        for name in ("first", "second"):
            writer.write(rgb(seed=len(name)), photometric="rgb", metadata={"axes": "YXS", "Name": name})
    with pytest.warns(SlideWarning, match="2 images of 200 x 150 px: first, second; the first is read"):
        open_slide(twins).close()


@pytest.mark.parametrize(
    "options",
    [
        {"compression": "lzw", "predictor": True},
        {"compression": "zstd", "bigtiff": True},
        {"compression": "jpeg2000"},
        {"compression": "packbits", "tile": None, "rowsperstrip": 64},
        {"tile": (16, 16), "byteorder": ">"},
    ],
)
def test_stored_in_any_way(tmp_path, options):
    assert np.array_equal(read(write(tmp_path / "a.tif", rgb(), **options)), rgb())


@pytest.mark.parametrize("rows", [64, 1000])
def test_jpeg_in_strips_of_which_the_last_is_short(tmp_path, rows):
    smooth = np.asarray(Image.fromarray(rgb(8, 8)).resize((200, 150)))
    path = write(tmp_path / "a.tif", smooth, tile=None, rowsperstrip=rows, compression="jpeg", compressionargs={"level": 95})
    assert np.abs(read(path).astype(int) - smooth).max() < 20


@pytest.mark.parametrize("marked", [True, False])
def test_a_colour_that_no_marker_states_is_the_tags(tmp_path, marked):
    smooth = np.asarray(Image.fromarray(rgb(8, 8)).resize((64, 64)))
    tile = imagecodecs.jpeg8_encode(smooth, level=98, colorspace="RGB", outcolorspace="RGB")
    if not marked:
        at = tile.index(b"\xff\xee")
        tile = tile[:at] + tile[at + 2 + int.from_bytes(tile[at + 2 : at + 4], "big") :]
        frame = tile.index(b"\xff\xc0")
        tile = bytearray(tile)
        for number in range(3):  # named 1, 2, 3 and no longer R, G, B
            tile[frame + 10 + 3 * number] = number + 1
        scan = tile.index(b"\xff\xda")
        for number in range(3):
            tile[scan + 5 + 2 * number] = number + 1
        tile = bytes(tile)
    options = {"shape": (64, 64, 3), "dtype": np.uint8, "compression": "jpeg", "photometric": "rgb", "tile": (64, 64), "metadata": None}
    tifffile.imwrite(tmp_path / "a.tif", iter([tile]), **options)
    with tifffile.TiffFile(tmp_path / "a.tif", mode="r+b") as file:
        file.pages[0].tags["PhotometricInterpretation"].overwrite(2)  # which the writer has made YCbCr
    assert np.abs(read(tmp_path / "a.tif").astype(int) - smooth).max() < 20


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_palettes_of_8_and_16_bits(tmp_path, dtype, bits):
    count = 2 ** (8 * np.dtype(dtype).itemsize)
    colours = np.random.default_rng(1).integers(0, 256, (3, count)).astype(np.uint16)
    index = np.random.default_rng(0).integers(0, count, (150, 200)).astype(dtype)
    path = write(tmp_path / "a.tif", index, photometric="palette", colormap=colours * (257 if bits == 16 else 1))
    assert np.array_equal(read(path), colours.T[index])
    with pytest.raises(SlideError, match="palette; leave out channel="):
        open_slide(path, channel=0)


def test_few_bits_and_inversion(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 2, (150, 200)).astype(bool)
    expected = np.repeat(pixels[..., None] * np.uint8(255), 3, 2)
    assert np.array_equal(read(write(tmp_path / "a.tif", ~pixels, photometric="miniswhite")), expected)
    for compression in ("group3", "group4", "tiff_ccitt", "packbits"):
        Image.fromarray(pixels).save(tmp_path / "fax.tif", compression=compression)
        assert np.array_equal(read(tmp_path / "fax.tif"), expected), compression
    sixteen = np.random.default_rng(0).integers(0, 65536, (150, 200), np.uint16)
    path = write(tmp_path / "b.tif", 65535 - sixteen, photometric="miniswhite")
    grey = np.floor(sixteen / 257 + 0.5)
    assert np.abs(read(path, channel=0)[..., 0] - grey).max() <= 1


@pytest.mark.parametrize("compression", [None, "jpeg2000", "lzw"])
@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_transparency_premultiplied_and_straight(tmp_path, planar, compression):
    alpha = np.random.default_rng(1).choice([0, 100, 255], (150, 200)).astype(np.uint8)
    straight = np.dstack([rgb(), alpha])
    premultiplied = np.dstack([(rgb() * (alpha[..., None] / 255)).round().astype(np.uint8), alpha])
    expected = rgb() * (alpha[..., None] / 255) + 255 * (1 - alpha[..., None] / 255)
    for pixels, kind in ((straight, "unassalpha"), (premultiplied, "assocalpha")):
        stored = np.moveaxis(pixels, 2, 0) if planar == "separate" else pixels
        path = write(tmp_path / f"{kind}.tif", stored, extrasamples=[kind], planarconfig=planar, compression=compression)
        assert np.abs(read(path) - expected).max() <= 1.5
        with open_slide(path) as slide:
            assert slide.pixel_source == f"tiff;alpha={'straight' if kind == 'unassalpha' else 'premultiplied'}"


def test_a_fourth_sample_of_no_stated_kind_is_no_transparency(tmp_path):
    path = write(tmp_path / "a.tif", np.dstack([rgb(), rgb()[..., 0]]), extrasamples=["unspecified"])
    assert np.array_equal(read(path), rgb())


def test_premultiplied_pixels_brighter_than_their_alpha_are_white_and_not_dark():
    assert composite(np.array([[[255, 0, 0, 100]]], np.uint8), (255, 255, 255), premultiplied=True).tolist() == [[[255, 155, 155]]]


@pytest.mark.parametrize(("photometric", "samples"), [("separated", 4), ("cielab", 3)])
def test_other_colours_are_refused_without_advice_that_gives_wrong_pixels(tmp_path, photometric, samples):
    path = write(tmp_path / "a.tif", np.zeros((64, 64, samples), np.uint8), photometric=photometric)
    with pytest.raises(SlideError, match="expected 8-bit RGB") as caught:
        open_slide(path)
    assert "--channel" not in str(caught.value)


@pytest.mark.parametrize("name", ["a.ndpi", "a.svs", "a.mrxs", "a.scn", "a.dcm", "a.zarr", "a", "a:b.tif", "a\nb.tif", "a.tif ", "é.tif"])
def test_a_file_is_what_it_holds_whatever_its_name(tmp_path, name):
    path = write(tmp_path / "plain.tif", rgb())
    shutil.copy(path, tmp_path / name)
    (tmp_path / "link").symlink_to(tmp_path / name)
    assert np.array_equal(read(tmp_path / name), rgb())
    assert np.array_equal(read(tmp_path / "link"), rgb())


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "an empty file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "git-lfs pointer"),
        (b"\n<!DOCTYPE html>\n<html>", "a web page"),
        (b"\x89PNG\r\n\x1a\n", "a PNG picture"),
        (b"<?xml version='1.0'?><Error/>", "an XML document"),
        (bytes(1000), "a file of zeros"),
        (b"PK\5\6" + bytes(18), "a zip archive without an OME-Zarr image"),
    ],
)
def test_what_is_no_slide_is_named(tmp_path, content, words):
    for name in ("a.svs", "a.tif", "a.ndpi", "a.mrxs"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(SlideError, match=words):
            open_slide(tmp_path / name)
        assert not can_open(tmp_path / name)


def test_special_files_and_folders_are_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe.svs")
    (tmp_path / "link.svs").symlink_to("gone.svs")
    (tmp_path / "series").mkdir()
    (tmp_path / "series/1.dcm").write_bytes(b"")
    (tmp_path / "mirax").mkdir()
    (tmp_path / "mirax/Slidedat.ini").write_bytes(b"")
    words = {"pipe.svs": "a named pipe", "link.svs": "a link to gone.svs", "series": "1 DICOM files", "mirax": "open mirax.mrxs beside it"}
    words |= {".": "a folder without an OME-Zarr image"}
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(tmp_path / "s.svs"))
        for name, expected in {**words, "s.svs": "a socket", "/dev/null": "a device", "a\0b": "null byte"}.items():
            with pytest.raises(SlideError, match=expected):
                open_slide(tmp_path / name)


def test_slides_are_pickled_as_how_they_were_opened(tmp_path, synthetic_slide):
    planes = {"photometric": "minisblack", "metadata": {"axes": "CYX"}, "ome": True}
    channels = write(tmp_path / "c.tif", rgb()[..., :2].transpose(2, 0, 1).copy(), **planes)
    slides = [open_slide(write(tmp_path / "a.tif", rgb()), mpp=0.3), open_slide(synthetic_slide.path), as_slide(rgb(), 0.5)]
    slides.append(open_slide(channels, channel=1))
    for slide in slides:
        with slide, pickle.loads(pickle.dumps(slide)) as again:
            facts = [(each.shape, each.mpp, each.mpp_source, each.identity, each.pixel_source, each.reader) for each in (slide, again)]
            assert facts[0] == facts[1]
            assert np.array_equal(again.read(Region(3, 4, 50, 60)), slide.read(Region(3, 4, 50, 60)))


def read_part(slide):
    return slide.read(Region(3, 4, 50, 60))


def test_workers_that_are_spawned_read_them(tmp_path):
    with open_slide(write(tmp_path / "a.tif", rgb())) as slide, multiprocessing.get_context("spawn").Pool(1) as pool:
        assert np.array_equal(pool.apply(read_part, (slide,)), read_part(slide))
