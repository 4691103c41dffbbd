import numpy as np
import pytest
import tifffile

from streamview.errors import SlideError, SlideWarning
from streamview.geometry import Region
from streamview.slides import open_slide, tiff_backend
from streamview.slides.openslide_backend import OpenSlideSlide
from streamview.slides.synthetic import write_synthetic_slide
from streamview.slides.tiff_backend import TiffSlide

APERIO = "Aperio Image Library v11.2.1\r\n{w}x{h} [0,0 {w}x{h}] (128x128) J2K/{kind} Q=70|AppMag = 20|MPP = 0.5"
FACTS = ("name", "shape", "mpp", "mpp_source", "identity", "background", "properties", "associated", "icc_profile")


def rgb(height, width, seed=0):
    coarse = np.random.default_rng(seed).integers(0, 256, (-(-height // 16), -(-width // 16), 3), np.uint8)
    return np.kron(coarse, np.ones((16, 16, 1), np.uint8))[:height, :width]


def write_jp2000(path, compression):
    pixels = rgb(300, 400)
    description = APERIO.format(w=400, h=300, kind=compression)
    options = {"photometric": "rgb" if compression == 33005 else "ycbcr", "tile": (128, 128), "compression": compression}
    tifffile.imwrite(path, pixels, description=description, metadata=None, **options)
    return path


def both(path):
    reference = OpenSlideSlide(path)
    return TiffSlide(path, like=reference if reference.properties["openslide.vendor"] == "aperio" else None), reference


@pytest.mark.parametrize("name", ["CMU-1-Small-Region.svs", "small.svs", "boxes.tiff"])
def test_both_readers_give_the_same_pixels_of_real_files(shared_data, name):
    direct, reference = both(shared_data / "slides" / name)
    with direct, reference, open_slide(shared_data / "slides" / name) as chosen:
        whole = Region(0, 0, *direct.shape)
        assert np.array_equal(direct.read(whole), reference.read(whole))
        assert chosen.reader.startswith("its tiles, read directly; ")


def test_both_readers_give_the_same_pixels_and_facts_of_an_aperio_slide(synthetic_slide):
    direct, reference = both(synthetic_slide.path)
    with direct, reference:
        assert np.array_equal(direct.read(Region(0, 0, *direct.shape)), reference.read(Region(0, 0, *direct.shape)))
        assert [level.shape for level in direct.levels] == [level.shape for level in reference.levels]
        for fact in FACTS:
            assert getattr(direct, fact) == getattr(reference, fact)


def test_a_coarser_level_holds_the_pixels_that_are_stored(synthetic_slide):
    with tifffile.TiffFile(synthetic_slide.path) as file, open_slide(synthetic_slide.path) as slide:
        stored = next(page for page in file.pages if page.is_tiled and page.shape[:2] == slide.levels[1].shape).asarray()
        assert np.array_equal(slide.read(Region(0, 0, *slide.levels[1].shape, 1)), stored)


def test_jpeg_2000_in_rgb_is_read_directly_where_it_equals_openslide(tmp_path):
    path = write_jp2000(tmp_path / "a.svs", 33005)
    with open_slide(path) as slide:
        assert slide.reader.startswith("its tiles, read directly")
        assert slide.levels[0].compression == "aperio jp2000 rgb"
        assert np.array_equal(slide.read(Region(0, 0, 300, 400)), rgb(300, 400))


def test_jpeg_2000_in_ycbcr_is_left_to_openslide(tmp_path):
    with open_slide(write_jp2000(tmp_path / "a.svs", 33003)) as slide:
        assert slide.reader.startswith("OpenSlide (aperio): aperio jp2000 ycbc")
        assert slide.read(Region(0, 0, 300, 400)).shape == (300, 400, 3)


def test_where_tiles_differ_openslide_reads_and_says_so(synthetic_slide, monkeypatch):
    decode = tiff_backend.decode_jpeg

    def otherwise(data, out, *rest):
        decode(data, out, *rest)
        out[-1, -1] ^= 1

    with open_slide(synthetic_slide.path) as slide:
        facts = [getattr(slide, fact) for fact in FACTS]
    monkeypatch.setattr(tiff_backend, "decode_jpeg", otherwise)
    with pytest.warns(SlideWarning, match=r"synthetic\.svs: OpenSlide reads it, slower: its tiles read directly differ at level 0"):
        slide = open_slide(synthetic_slide.path)
    with slide:
        assert isinstance(slide, OpenSlideSlide)
        assert "differ at level 0, X,Y,WIDTH,HEIGHT" in slide.reader
        assert [getattr(slide, fact) for fact in FACTS] == facts


def test_a_slide_of_which_no_tile_can_be_compared_is_left_to_openslide(tmp_path):
    path = tmp_path / "a.svs"
    write_synthetic_slide(path, size=(600, 600))
    with tifffile.TiffFile(path) as file:
        tiles = [(o, n) for page in file.pages if page.is_tiled for o, n in zip(page.dataoffsets, page.databytecounts, strict=True)]
    with path.open("r+b") as file:
        for offset, count in tiles:
            file.seek(offset)
            file.write(bytes(count))
    with open_slide(path) as slide:
        assert slide.reader == "OpenSlide (aperio): the tiles to compare are unreadable"
        with pytest.raises(SlideError, match="unreadable at level 0"):
            slide.read(Region(0, 0, 10, 10))


def test_left_out_tiles_of_aperio_are_left_to_openslide(tmp_path):
    path = tmp_path / "a.svs"
    write_synthetic_slide(path, size=(600, 600))
    with tifffile.TiffFile(path) as file:
        counts = file.pages[0].tags["TileByteCounts"]
        place, size = counts.valueoffset, counts.valuebytecount // counts.count
    with path.open("r+b") as file:
        file.seek(place)
        file.write(bytes(size))
    with open_slide(path) as slide:
        assert slide.reader == "OpenSlide (aperio): some tiles are left out"
        assert (slide.read(Region(0, 0, 200, 200)) == 255).all()
