"""The uint8 pyramid of a shown map is the recipe's own arithmetic, wherever it is looked at."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from streamview.results.display import PRESETS, Recipe, show
from streamview.results.glass import Glass
from streamview.results.shown_map import ShownMap
from tests.support.maps import make_maps

SIZE = (1300, 1537)


@pytest.fixture(scope="module")
def values() -> np.ndarray:
    rng = np.random.default_rng(5)
    return ndimage.gaussian_filter(rng.normal(size=SIZE), 3) * 20 + rng.normal(size=SIZE) * 0.1


@pytest.mark.parametrize("blur_um", [0.0, 0.7, 1.9])
def test_the_finest_level_is_the_recipe_in_per_cent(values: np.ndarray, blur_um: float) -> None:
    saliency = make_maps(values)
    recipe = Recipe("signed", blur_um=blur_um, threshold=0.3)
    shown, core = ShownMap(saliency, recipe), show(saliency, recipe)
    assert (shown.shown.cap, shown.shown.threshold) == (core.cap, core.threshold)
    assert shown.levels[0].shape == SIZE
    expected = core.levels[0][:, :]
    found = shown.levels[0][:, :]
    assert found.dtype == np.uint8
    np.testing.assert_allclose(found[expected > 0], np.floor(expected[expected > 0] * 100), atol=1)
    # Threshold is the colour map's: whole per cent on the same side of it, but for rounding.
    assert ((found >= 30) != (expected > 0)).mean() < 1e-4


def test_levels_finer_than_the_blur_needs_are_interpolated(values: np.ndarray) -> None:
    saliency = make_maps(values)
    shown = ShownMap(saliency, Recipe("signed", blur_um=16.0))
    assert len(shown.shown.levels) < len(shown.levels)
    exact = ndimage.gaussian_filter(saliency.maps["signed"].values, 32.0, mode="nearest")
    # At the edge each level repeats its own outermost pixels, as the recipe has it.
    inner = slice(128, SIZE[0] - 128), slice(128, SIZE[1] - 128)
    np.testing.assert_allclose(shown.blurred(0, (0, SIZE[0]), (0, SIZE[1]))[inner], exact[inner], atol=0.02 * shown.shown.cap)


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from([0.0, 1.0, 2.5, 20.0]),
    st.integers(0, 2),
    st.tuples(st.integers(0, 1), st.integers(1, 700)),
    st.data(),
)
def test_parts_equal_the_whole(values: np.ndarray, blur_um: float, level: int, step: tuple[int, int], data: st.DataObject) -> None:
    shown = ShownMap(make_maps(values), Recipe("signed", blur_um=blur_um))
    height, width = shown.levels[level].shape
    top, left = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    bottom, right = data.draw(st.integers(top, height)), data.draw(st.integers(left, width))
    whole = np.asarray(shown.levels[level])
    part = shown.levels[level][top : bottom : step[0] + 1, left:right]
    # Blurring by tiles rounds otherwise than blurring whole, by a part in a million: at the border of two whole per cents.
    assert part.shape == whole[top : bottom : step[0] + 1, left:right].shape
    np.testing.assert_allclose(part.astype(int), whole[top : bottom : step[0] + 1, left:right].astype(int), atol=1)
    assert (part != whole[top : bottom : step[0] + 1, left:right]).sum() <= 2


def test_only_what_needs_new_pixels_asks_for_them(values: np.ndarray) -> None:
    shown = ShownMap(make_maps(values), PRESETS["detail"])
    recipe = PRESETS["detail"]
    for changes in ({"threshold": 0.4}, {"opacity": 0.9}, {"colours": ("#000000", "#ffffff")}, {"heat": False}, {"outline": False}):
        recipe = replace(recipe, **changes)
        assert not shown.set(recipe), changes
    for changes in ({"blur_um": 1.0}, {"cap_percentile": 98.0}, {"cap": 0.5}):
        recipe = replace(recipe, **changes)
        assert shown.set(recipe), changes
    assert shown.shown.cap == 0.5
    assert not shown.set(replace(recipe, glass=False))  # nothing is known of glass


def test_what_lies_on_glass_is_hidden_in_place(values: np.ndarray) -> None:
    saliency = make_maps(np.ones(SIZE) + np.abs(values), place=(100, 200), step=2)
    shown = ShownMap(saliency, Recipe("signed", blur_um=0.0))
    mask = np.zeros((65, 77), bool)
    mask[20:40, 30:50] = True  # its pixels are 40 level-0 pixels wide
    shown.glass = Glass(mask, (40.0, 40.0), (119.5, 219.5))
    found = shown.levels[0][:, :] == 0
    expected = np.zeros(SIZE, bool)
    expected[20 * 20 : 40 * 20, 30 * 20 : 50 * 20] = True
    np.testing.assert_array_equal(found, expected)
    assert shown.set(replace(shown.shown.recipe, glass=False))
    assert (shown.levels[0][:, :] > 0).all()


def test_raw_values_are_those_of_the_record(values: np.ndarray) -> None:
    saliency = make_maps(values, place=(100, 200), step=2)
    shown = ShownMap(saliency, Recipe("signed", blur_um=0.0))
    raw = saliency.maps["signed"].values
    # Level-0 pixels 100 and 101 are row 0, the last two row 1299.
    assert shown.raw(100, 200) == shown.raw(101.4, 201.4) == raw[0, 0]
    assert shown.raw(102, 205) == raw[1, 2]
    assert shown.raw(100 + 2 * 1300 - 1, 200) == raw[1299, 0]
    assert shown.raw(99, 200) is None
    assert shown.raw(100 + 2 * 1300, 200) is None
    share = shown.share(102, 205)
    assert share == pytest.approx(min(max(float(raw[1, 2]) / shown.shown.cap, 0), 1))


def test_a_map_without_positive_values_shows_nothing() -> None:
    shown = ShownMap(make_maps(-np.ones((600, 700))), PRESETS["detail"])
    assert not np.asarray(shown.levels[0]).any()
    assert shown.share(10, 10) is None
