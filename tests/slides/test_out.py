"""Reading into an array of the caller's."""

import numpy as np
import pytest
import tifffile

from streamview.geometry import Region
from streamview.slides import as_slide, open_slide
from streamview.slides.openslide_backend import OpenSlideSlide
from streamview.slides.pyramid import build_pyramid


def alpha(path, pixels):
    tifffile.imwrite(path, np.dstack([pixels, pixels[..., :1]]), photometric="rgb", extrasamples=["unassalpha"], tile=(64, 64))
    return open_slide(path)


def planar(path, pixels):
    tifffile.imwrite(path, np.moveaxis(pixels, 2, 0), photometric="rgb", planarconfig="separate", tile=(64, 64), metadata=None)
    return open_slide(path)


@pytest.fixture(params=["array", "tiles", "alpha", "planar", "openslide", "zarr", "measured"])
def slide(request, synthetic_slide, tmp_path):
    with open_slide(synthetic_slide.path) as whole:
        pixels = whole.read(Region(0, 0, 700, 900))
    opened = {
        "array": lambda: as_slide(pixels),
        "tiles": lambda: open_slide(synthetic_slide.path),
        "alpha": lambda: alpha(tmp_path / "a.tif", pixels),
        "planar": lambda: planar(tmp_path / "p.tif", pixels),
        "openslide": lambda: OpenSlideSlide(synthetic_slide.path),
        "zarr": lambda: build_pyramid(as_slide(pixels), tmp_path / "z.ome.zarr"),
        "measured": lambda: open_slide(synthetic_slide.path, mpp=0.3),
    }[request.param]()
    with opened:
        yield opened


@pytest.mark.parametrize("region", [Region(0, 0, 256, 256), Region(17, 250, 300, 530), Region(256, 0, 256, 900), Region(699, 899, 1, 1)])
def test_the_array_is_filled_and_nothing_beside_it(slide, region):
    expected = slide.read(region)
    assert expected.flags.c_contiguous
    around = np.full((region.height + 4, region.width + 6, 3), 7, np.uint8)
    inside = around[2:-2, 3:-3]
    assert slide.read(region, inside) is inside
    assert np.array_equal(inside, expected)
    inside[...] = 7
    assert (around == 7).all()


def test_other_arrays_are_refused(slide):
    read_only = np.zeros((5, 6, 3), np.uint8)
    read_only.flags.writeable = False
    for out in (np.zeros((6, 5, 3), np.uint8), np.zeros((5, 6, 3)), np.zeros((5, 12, 3), np.uint8)[:, ::2], read_only):
        with pytest.raises(ValueError, match=r"expected writeable uint8 \(5, 6, 3\) with contiguous rows"):
            slide.read(Region(0, 0, 5, 6), out)
