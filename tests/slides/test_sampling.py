import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamview.errors import RegionError, SlideError
from streamview.geometry import Region
from streamview.slides import as_slide, open_slide
from streamview.slides.sampling import Sampler


def rgb(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def naive(pixels, region, shape, scale):
    """Area means of single grid pixels in float64, one overlap at a time."""
    out = np.empty((*shape, 3))
    for i in range(shape[0]):
        for j in range(shape[1]):
            total, area = np.zeros(3), 0.0
            y0, y1 = region.y + i * scale[0], min(region.y + (i + 1) * scale[0], pixels.shape[0])
            x0, x1 = region.x + j * scale[1], min(region.x + (j + 1) * scale[1], pixels.shape[1])
            for y in range(math.floor(y0), math.ceil(y1)):
                for x in range(math.floor(x0), math.ceil(x1)):
                    share = (min(y + 1, y1) - max(y, y0)) * (min(x + 1, x1) - max(x, x0))
                    total, area = total + share * pixels[y, x], area + share
            out[i, j] = total / area
    return out


@st.composite
def samplers(draw):
    height, width = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    y, x = draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))
    region = Region(y, x, draw(st.integers(1, height - y)), draw(st.integers(1, width - x)))
    pixels = rgb(height, width, draw(st.integers(0, 9)))
    return pixels, Sampler(as_slide(pixels, 0.5), region, 0.5 * draw(st.floats(1.0, 9.0)))


@given(samplers())
@settings(max_examples=100, deadline=None)
def test_equals_the_naive_mean(case):
    pixels, sampler = case
    expected = naive(pixels, sampler.region, sampler.shape, sampler.scale)
    read = sampler.read(0, sampler.shape[0], 0, sampler.shape[1])
    assert np.abs(read - expected).max() <= 0.5 + 1e-3


@given(samplers(), st.data())
@settings(max_examples=150, deadline=None)
def test_any_piece_equals_the_whole_bit_for_bit(case, data):
    _, sampler = case
    height, width = sampler.shape
    whole = sampler.read(0, height, 0, width)
    assert whole.shape == (height, width, 3)
    y0, x0 = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    y1, x1 = data.draw(st.integers(y0 + 1, height)), data.draw(st.integers(x0 + 1, width))
    assert np.array_equal(sampler.read(y0, y1, x0, x1), whole[y0:y1, x0:x1])


def test_strips_of_a_pyramid_equal_the_whole_over_block_borders(synthetic_slide):
    with open_slide(synthetic_slide.path) as slide:
        for mpp in (0.5, 0.62, 0.9, 2.0, 2.3, 7.7):
            sampler = Sampler(slide, Region(3, 5, 1490, 2190), mpp)
            height, width = sampler.shape
            whole = sampler.read(0, height, 0, width)
            strips = [sampler.read(y, min(y + 97, height), 0, width) for y in range(0, height, 97)]
            assert np.array_equal(np.concatenate(strips), whole)
            columns = [sampler.read(0, height, x, min(x + 331, width)) for x in range(0, width, 331)]
            assert np.array_equal(np.concatenate(columns, 1), whole)


def test_blocks_worked_on_at_once_leave_no_trace(monkeypatch):
    sampler = Sampler(as_slide(rgb(120, 150), 0.5), None, 0.83)
    whole = sampler.read(0, *sampler.shape[:1], 0, sampler.shape[1])
    monkeypatch.setattr("streamview.slides.sampling._BLOCK", 17)
    assert np.array_equal(sampler.read(0, *sampler.shape[:1], 0, sampler.shape[1]), whole)


def test_the_nearest_finer_level_is_read(synthetic_slide):
    class Spy:
        def __init__(self, slide):
            self.slide, self.levels_read = slide, set()

        def __getattr__(self, name):
            return getattr(self.slide, name)

        def read(self, region):
            self.levels_read.add(region.level)
            return self.slide.read(region)

    with open_slide(synthetic_slide.path) as slide:
        for mpp, level in ((None, 0), (0.5, 0), (1.9, 0), (2.0, 1), (3.0, 1)):
            spy = Spy(slide)
            Sampler(spy, None, mpp).read(0, 10, 0, 10)
            assert spy.levels_read == {level}


def test_twice_as_coarse_is_the_block_mean_rounded_half_up():
    pixels = rgb(64, 48)
    total = pixels.reshape(32, 2, 24, 2, 3).sum((1, 3), dtype=int)
    assert np.array_equal(Sampler(as_slide(pixels, 0.5), None, 1.0).read(0, 32, 0, 24), (total + 2) // 4)


def test_a_plain_colour_stays():
    pixels = np.full((50, 60, 3), 243, np.uint8)
    sampler = Sampler(as_slide(pixels, 0.31), None, 1.0)
    assert (sampler.read(0, sampler.shape[0], 0, sampler.shape[1]) == 243).all()


def test_level_0_as_it_is():
    pixels = rgb(20, 30)
    sampler = Sampler(as_slide(pixels), Region(2, 3, 10, 12))
    assert (sampler.shape, sampler.scale, sampler.mpp) == ((10, 12), (1.0, 1.0), None)
    assert np.array_equal(sampler.read(1, 4, 2, 9), pixels[3:6, 5:12])


def test_a_slightly_coarser_slide_is_read_as_it_is():
    sampler = Sampler(as_slide(rgb(20, 30), 0.54), None, 0.5)
    assert (sampler.shape, sampler.scale, sampler.mpp) == ((20, 30), (1.0, 1.0), (0.54, 0.54))


def test_grid_shape_and_mpp():
    sampler = Sampler(as_slide(rgb(101, 202), 0.25), Region(0, 0, 101, 202), 1.0)
    assert (sampler.shape, sampler.scale, sampler.mpp) == ((25, 50), (4.0, 4.0), (1.0, 1.0))
    assert Sampler(as_slide(rgb(3, 3), 0.25), None, 4.0).shape == (1, 1)


def test_refusals():
    slide = as_slide(rgb(20, 30), 0.6)
    with pytest.raises(SlideError, match=r"0\.6 um/px .* more than 10% coarser than the 0\.5"):
        Sampler(slide, None, 0.5)
    with pytest.raises(SlideError, match=r"unknown.*mpp="):
        Sampler(as_slide(rgb(20, 30)), None, 0.5)
    for region in (Region(15, 0, 6, 6), Region(0, 0, 5, 5, level=1)):
        with pytest.raises(RegionError, match="expected one inside level 0"):
            Sampler(slide, region)
    for piece in ((0, 21, 0, 1), (3, 3, 0, 1), (-1, 2, 0, 1), (0, 1, 0, 31)):
        with pytest.raises(RegionError, match="part of the grid"):
            Sampler(slide).read(*piece)


@pytest.mark.parametrize("rows", [1, 97, 10_000])
def test_strips_read_ahead_are_the_whole_in_order(rows):
    sampler = Sampler(as_slide(rgb(120, 150), 0.5), None, 0.83)
    starts, strips = zip(*sampler.strips(rows), strict=True)
    assert starts == tuple(range(0, sampler.shape[0], rows))
    assert np.array_equal(np.concatenate(strips), sampler.read(0, sampler.shape[0], 0, sampler.shape[1]))


def test_what_a_strip_raises_is_raised_where_it_is_asked_for(shared_data):
    with open_slide(shared_data / "broken/unreadable.svs") as slide, pytest.raises(SlideError, match="unreadable"):
        list(Sampler(slide).strips(8))
