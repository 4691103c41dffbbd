import numpy as np
import openslide
import pytest
from scipy import ndimage

from streamview.geometry import Region
from streamview.slides import open_slide
from streamview.slides.synthetic import synthetic_region, write_synthetic_slide


@pytest.fixture(scope="module")
def painted():
    return synthetic_region(1500, 1400, seed=3, lesion_share=0.1)


def test_the_seed_decides_every_byte(painted):
    again, other = (synthetic_region(1500, 1400, seed=seed, lesion_share=0.1) for seed in (3, 5))
    assert all(np.array_equal(a, b) for a, b in zip(painted, again, strict=True))
    assert not np.array_equal(painted[0], other[0])


def test_the_lesion_has_the_asked_share_of_the_tissue(painted):
    image, lesion = painted
    assert image.shape == (1500, 1400, 3)
    assert image.dtype == np.uint8
    tissue = ndimage.binary_closing(image.min(-1) < 225, iterations=4)
    assert 0.085 < lesion.sum() / tissue.sum() < 0.115
    pieces, _ = ndimage.label(lesion)
    assert np.bincount(pieces.ravel())[1:].max() > 0.98 * lesion.sum()


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_all_or_nothing(share):
    image, lesion = synthetic_region(256, 300, seed=1, lesion_share=share)
    tissue = image.min(-1) < 200
    assert tissue.mean() > 0.3
    assert lesion[tissue].mean() == share if share == 0 else lesion[tissue].mean() > 0.95


def test_mean_colour_does_not_tell_but_nuclear_size_does(painted):
    image, lesion = painted
    inside = ndimage.binary_erosion(lesion, iterations=30)
    tissue = ndimage.binary_closing(image.min(-1) < 225, iterations=4)
    outside = ndimage.binary_erosion(tissue & ~ndimage.binary_dilation(lesion, iterations=30), iterations=40)
    blocks = ndimage.uniform_filter(image.astype(np.float32), (65, 65, 0))
    spread = blocks[outside].std(0)
    assert (np.abs(blocks[inside].mean(0) - blocks[outside].mean(0)) < 2.5 * spread.clip(3)).all()

    dark = ndimage.binary_opening(image[..., 0] < np.percentile(image[..., 0][tissue], 45), iterations=1)
    radius = ndimage.distance_transform_edt(dark)
    peaks = (radius == ndimage.maximum_filter(radius, 9)) & (radius > 2)
    assert np.percentile(radius[peaks & inside], 75) > 1.3 * np.percentile(radius[peaks & outside], 75)


def test_glass_is_glass(painted):
    corner = painted[0][:40, :40]
    assert abs(corner.mean() - 243) < 1
    assert corner.std() < 4


def test_the_file_is_an_aperio_pyramid(synthetic_slide):
    assert openslide.OpenSlide.detect_format(synthetic_slide.path) == "aperio"
    with open_slide(synthetic_slide.path) as slide:
        assert slide.shape == (1501, 2203) == synthetic_slide.lesion.shape
        assert (slide.mpp, slide.mpp_source) == ((0.5, 0.5), "aperio.MPP")
        assert [level.shape for level in slide.levels] == [(1501, 2203), (375, 550)]
        pixels = slide.read(Region(0, 0, *slide.shape))
    lesion = synthetic_slide.lesion
    assert lesion.any()
    assert pixels[lesion].mean() < 180
    assert pixels[:40, :40].mean() > 240


def test_a_slide_without_lesion(tmp_path):
    assert not write_synthetic_slide(tmp_path / "clean.svs", size=(300, 300), lesion=False).any()


@pytest.mark.parametrize(("sides", "share"), [((300, 300), 1.5), ((300, 300), -0.1), ((300, 40), 0.1)])
def test_nonsense_is_refused(sides, share):
    with pytest.raises(ValueError, match="expected"):
        synthetic_region(*sides, seed=0, lesion_share=share)
