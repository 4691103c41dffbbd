import gc
import struct
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tifffile

from streamview.errors import RegionError, SlideError
from streamview.geometry import Region
from streamview.slides import Slide, as_slide, open_slide
from streamview.slides.openslide_backend import OpenSlideSlide
from streamview.slides.slide import composite, positive_mpp
from streamview.slides.synthetic import write_synthetic_slide
from streamview.slides.tiff_backend import TiffSlide

# name: (height, width), mpp x rounded or None, what the source of the mpp begins with, backend
REAL = {
    "CMU-1-Small-Region.svs": ((2967, 2220), 0.499, "aperio.MPP", "TiffSlide"),
    "test3-DAPI-2-387.ndpi": ((4864, 3968), 0.228, "hamamatsu", "OpenSlideSlide"),
    "camelyon_multiframe.dcm": ((700, 1152), None, "unknown (dicom through OpenSlide states 28.97 um/px", "OpenSlideSlide"),
    "OS-1-detail.ome.tif": ((1101, 1101), 0.227, "OME PhysicalSize", "TiffSlide"),
    "OS-2-ndpi.ome.tif": ((2202, 2202), 0.227, "OME PhysicalSize", "TiffSlide"),
    "small.svs": ((16, 16), 0.499, "aperio.MPP", "TiffSlide"),
    "boxes.tiff": ((250, 300), None, "unknown (TIFF resolution states 352.8", "TiffSlide"),
    "boxes_0.dcm": ((16, 16), 0.499, "dicom", "OpenSlideSlide"),
    "boxes_1.dcm": ((16, 16), 0.499, "dicom", "OpenSlideSlide"),
}


def rgb(height=300, width=400, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def write_tiff(path, pixels, **options):
    tifffile.imwrite(path, pixels, **{"photometric": "rgb", "tile": (64, 64), "metadata": None} | options)
    return path


@pytest.mark.parametrize("name", REAL)
def test_real_slides_open_and_read_whole(shared_data, name):
    shape, mpp, source, backend = REAL[name]
    with open_slide(shared_data / "slides" / name) as slide:
        assert isinstance(slide, Slide)
        assert (slide.name, slide.shape, type(slide).__name__) == (name, shape, backend)
        assert (None if slide.mpp is None else round(slide.mpp[1], 3)) == mpp
        assert slide.mpp_source.startswith(source)
        for number, level in enumerate(slide.levels):
            pixels = slide.read(Region(0, 0, *level.shape, number))
            assert pixels.shape == (*level.shape, 3)
            assert pixels.dtype == np.uint8
            assert pixels.flags.c_contiguous
            assert pixels.std() > 1


def test_the_files_of_one_dicom_series_are_one_source(shared_data):
    with open_slide(shared_data / "slides/boxes_0.dcm") as a, open_slide(shared_data / "slides/boxes_1.dcm") as b:
        assert a.identity == b.identity


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("not_a_slide.svs", "not a slide .* expected a slide that"),
        ("truncated.svs", "truncated: .* ends at byte 1100000; copy or download"),
    ],
)
def test_broken_files_are_refused_on_opening(shared_data, name, message):
    with pytest.raises(SlideError, match=message) as caught:
        open_slide(shared_data / "broken" / name)
    assert "\n" not in str(caught.value)


def test_an_unreadable_tile_is_named_and_the_handle_opened_anew(shared_data):
    with open_slide(shared_data / "broken/unreadable.svs") as slide:
        for _ in range(2):
            with pytest.raises(SlideError, match=r"unreadable at level 0, X,Y,WIDTH,HEIGHT 0,0,16,16: .*Bogus marker.*get the file again"):
                slide.read(Region(0, 0, 16, 16))


@pytest.mark.parametrize("reader", [open_slide, OpenSlideSlide])
def test_one_corrupt_tile_leaves_the_rest_readable(tmp_path, reader):
    path = tmp_path / "slide.svs"
    write_synthetic_slide(path, size=(1100, 1100))
    with tifffile.TiffFile(path) as file:
        offset, count = file.pages[0].dataoffsets[6], file.pages[0].databytecounts[6]  # the second of the second row of 5 x 5
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(b"\0" * count)
    named = {open_slide: "tile at level 0, position 256,256", OpenSlideSlide: "at level 0, X,Y,WIDTH,HEIGHT 300,300,20,20"}[reader]
    with reader(path) as slide:
        assert type(slide) is (TiffSlide if reader is open_slide else OpenSlideSlide)
        before = slide.read(Region(0, 0, 200, 200))
        with pytest.raises(SlideError, match=f"unreadable {named}: .*get the file again"):
            slide.read(Region(300, 300, 20, 20))
        assert np.array_equal(slide.read(Region(0, 0, 200, 200)), before)


def test_a_corrupt_tiff_tile_is_named(tmp_path):
    path = write_tiff(tmp_path / "a.tif", rgb(), compression="jpeg")
    with tifffile.TiffFile(path) as file:
        offset = file.pages[0].dataoffsets[8]
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(b"\0" * 400)
    with open_slide(path) as slide, pytest.raises(SlideError, match="unreadable tile at level 0, position 64,64: "):
        slide.read(Region(0, 0, 300, 400))


def test_any_cut_of_a_tiff_is_refused(tmp_path):
    whole = write_tiff(tmp_path / "whole.tif", rgb(), bigtiff=True).read_bytes()
    cut = tmp_path / "cut.tif"
    for size in (len(whole) - 1, len(whole) // 2, 40, 16):
        cut.write_bytes(whole[:size])
        with pytest.raises(SlideError, match="truncated"):
            open_slide(cut)


def test_a_loop_of_directories_is_refused(tmp_path):
    path = tmp_path / "loop.tif"
    path.write_bytes(b"II*\0" + struct.pack("<IHI", 8, 0, 8))
    with pytest.raises(SlideError, match="loop"):
        open_slide(path)


@pytest.mark.parametrize(
    "options", [{}, {"planarconfig": "separate"}, {"tile": None, "rowsperstrip": 7}, {"compression": "zlib", "bigtiff": True}]
)
def test_tiff_regions_equal_the_array(tmp_path, options):
    pixels = rgb()
    stored = np.moveaxis(pixels, 2, 0) if "planarconfig" in options else pixels
    with open_slide(write_tiff(tmp_path / "a.tif", stored, **options)) as slide:
        for region in (Region(0, 0, 300, 400), Region(60, 100, 70, 131), Region(299, 399, 1, 1), Region(64, 128, 64, 64)):
            assert np.array_equal(slide.read(region), pixels[region.y : region.y_stop, region.x : region.x_stop])


def test_ome_tiff_pyramid_and_its_physical_size(tmp_path):
    path, pixels = tmp_path / "a.ome.tif", rgb()
    with tifffile.TiffWriter(path, ome=True) as writer:
        metadata = {"axes": "YXS", "PhysicalSizeX": 500.0, "PhysicalSizeXUnit": "nm", "PhysicalSizeY": 0.25, "PhysicalSizeYUnit": "µm"}
        writer.write(pixels, subifds=1, tile=(64, 64), photometric="rgb", metadata=metadata)
        writer.write(pixels[::2, ::2], subfiletype=1, tile=(64, 64), photometric="rgb", metadata=None)
    with open_slide(path) as slide:
        assert (slide.mpp, slide.mpp_source) == ((0.25, 0.5), "OME PhysicalSize")
        assert [level.downsample for level in slide.levels] == [(1.0, 1.0), (2.0, 2.0)]
        assert np.array_equal(slide.read(Region(10, 20, 30, 40, level=1)), pixels[::2, ::2][10:40, 20:60])


def test_tiff_resolution_is_an_mpp_when_it_can_be(tmp_path):
    with open_slide(write_tiff(tmp_path / "a.tif", rgb(), resolution=(20000, 40000), resolutionunit="CENTIMETER")) as slide:
        assert (slide.mpp, slide.mpp_source) == ((0.25, 0.5), "TIFF resolution")


def test_transparent_pixels_lie_on_the_background(tmp_path):
    pixels = np.dstack([rgb(64, 64), np.full((64, 64), 255, np.uint8)])
    pixels[:10, :, 3] = 0
    with open_slide(write_tiff(tmp_path / "a.tif", pixels, extrasamples=["unassalpha"])) as slide:
        read = slide.read(Region(0, 0, 64, 64))
    assert (read[:10] == 255).all()
    assert np.array_equal(read[10:], pixels[10:, :, :3])


def test_compositing_weighs_by_alpha():
    rgba = np.array([[[0, 100, 255, 51], [9, 9, 9, 0], [1, 2, 3, 255]]], np.uint8)
    assert composite(rgba, (200, 200, 200)).tolist() == [[[160, 180, 211], [200, 200, 200], [1, 2, 3]]]


@pytest.mark.parametrize(
    ("pixels", "options", "found"),
    [
        (rgb().astype(np.uint16), {}, "type uint16"),
        (rgb()[..., 0], {"photometric": "minisblack"}, "axes YX"),
        (
            np.zeros((3, 64, 64), np.uint8),
            {"photometric": "minisblack", "tile": None, "metadata": {"axes": "CYX"}, "ome": True},
            "axes CYX",
        ),
    ],
)
def test_anything_but_8_bit_rgb_is_refused_by_name(tmp_path, pixels, options, found):
    with pytest.raises(SlideError, match=f"{found}.*expected 8-bit RGB"):
        open_slide(write_tiff(tmp_path / "a.tif", pixels, **options))


def test_one_huge_strip_is_refused(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, shape=(10_000, 10_000, 3), dtype=np.uint8, photometric="rgb", rowsperstrip=10_000, metadata=None)
    with pytest.raises(SlideError, match=r"pieces of 286 MiB.*tiled pyramid"):
        open_slide(path)


def test_missing_empty_and_foreign_paths(tmp_path):
    (tmp_path / "empty.svs").touch()
    for name, message in (("no.svs", "no such file"), ("empty.svs", "an empty file"), ("", "without an OME-Zarr image")):
        with pytest.raises(SlideError, match=message):
            open_slide(tmp_path / name)


def test_mpp_is_overridden_and_its_source_named(synthetic_slide):
    with open_slide(synthetic_slide.path, mpp=0.25) as slide, open_slide(synthetic_slide.path) as plain:
        assert (slide.mpp, slide.mpp_source) == ((0.25, 0.25), "given (--mpp)")
        assert slide.identity == plain.identity
        assert np.array_equal(slide.read(Region(5, 6, 7, 8)), plain.read(Region(5, 6, 7, 8)))


@pytest.mark.parametrize("mpp", [0, -1.0, float("nan"), float("inf")])
def test_a_senseless_mpp_is_refused_when_given_and_unknown_when_stated(tmp_path, mpp):
    with pytest.raises(SlideError, match=r"mpp=.*positive"):
        as_slide(rgb(), mpp)
    assert positive_mpp(mpp, mpp, "aperio.MPP") == (None, f"unknown (aperio.MPP states {mpp}, not a positive number)")


def test_a_slide_that_states_zero_opens_without_mpp(tmp_path):
    write_synthetic_slide(tmp_path / "zero.svs", size=(300, 300), mpp=0)
    with open_slide(tmp_path / "zero.svs") as slide:
        assert slide.mpp is None
        assert slide.mpp_source.startswith("unknown")


def test_regions_outside_are_refused(synthetic_slide):
    with open_slide(synthetic_slide.path) as slide:
        for region in (Region(1500, 0, 2, 2), Region(0, -1, 2, 2), Region(0, 0, 376, 10, 1), Region(0, 0, 1, 1, 7)):
            with pytest.raises(RegionError):
                slide.read(region)


@pytest.mark.parametrize("level", [0, 1])
def test_pieces_equal_the_whole_also_where_the_downsample_is_odd(synthetic_slide, level):
    with open_slide(synthetic_slide.path) as slide:
        height, width = slide.levels[level].shape
        assert level == 0 or not slide.levels[1].downsample[0].is_integer()
        whole = slide.read(Region(0, 0, height, width, level))
        pieces = [slide.read(Region(y, 0, min(100, height - y), width, level)) for y in range(0, height, 100)]
        assert np.array_equal(np.concatenate(pieces), whole)


def test_threads_read_the_same(synthetic_slide):
    with open_slide(synthetic_slide.path) as slide, ThreadPoolExecutor(8) as pool:
        whole = slide.read(Region(0, 0, *slide.shape))
        regions = [Region(y, x, 101, 137) for y in range(0, 1400, 200) for x in range(0, 2000, 200)]
        for region, pixels in zip(regions, pool.map(slide.read, regions), strict=True):
            assert np.array_equal(pixels, whole[region.y : region.y_stop, region.x : region.x_stop])


def test_a_closed_slide_says_so(synthetic_slide):
    slide = open_slide(synthetic_slide.path)
    slide.close()
    slide.close()
    with pytest.raises(SlideError, match="already closed"):
        slide.read(Region(0, 0, 1, 1))


def test_a_forgotten_slide_closes_itself(synthetic_slide):
    slide = open_slide(synthetic_slide.path)
    slide.read(Region(0, 0, 600, 600))
    file = slide._file.filehandle
    del slide
    gc.collect()
    deadline = time.monotonic() + 10
    while not file.closed and time.monotonic() < deadline:  # the last to let go may be one of its threads
        time.sleep(0.01)
    assert file.closed


def test_identity_is_of_the_content(tmp_path):
    first = write_tiff(tmp_path / "a.tif", rgb())
    renamed = tmp_path / "b.tif"
    renamed.write_bytes(first.read_bytes())
    other = write_tiff(tmp_path / "c.tif", rgb(seed=1))
    identities = []
    for path in (first, renamed, other):
        with open_slide(path) as slide:
            identities.append(slide.identity)
    assert identities[0] == identities[1] != identities[2]


def test_an_array_is_a_slide():
    pixels = rgb()
    slide = as_slide(pixels, 0.5)
    assert isinstance(slide, Slide)
    assert (slide.shape, slide.mpp, slide.background) == ((300, 400), (0.5, 0.5), (255, 255, 255))
    read = slide.read(Region(1, 2, 3, 4))
    assert np.array_equal(read, pixels[1:4, 2:6])
    read[:] = 0
    assert pixels[1:4, 2:6].any(), "reading must copy"
    assert as_slide(pixels.copy()).identity == slide.identity != as_slide(pixels[:, ::-1]).identity
    assert as_slide(slide) is slide
    assert as_slide(slide, 0.25).mpp == (0.25, 0.25)


@pytest.mark.parametrize(("shape", "dtype"), [((4, 4), "uint8"), ((4, 4, 4), "uint8"), ((4, 4, 3), "float32"), ((0, 4, 3), "uint8")])
def test_other_arrays_are_refused(shape, dtype):
    with pytest.raises(SlideError, match="expected 8-bit RGB"):
        as_slide(np.zeros(shape, dtype))


def test_other_sources_are_refused():
    with pytest.raises(SlideError, match="open files with open_slide"):
        as_slide("slide.svs")
