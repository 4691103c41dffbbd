"""Outlines: where they run, how wide they are, and what is too small for one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from streamview_napari.canvas.outline import contours, line_width, vectors

from streamview.results.display import Recipe
from streamview.results.shown_map import ShownMap
from tests.support.maps import make_maps

CENTRE, RADIUS = (700.0, 900.0), 300.0


def disc(size: tuple[int, int] = (1200, 1800)) -> np.ndarray:
    rows, columns = np.mgrid[: size[0], : size[1]]
    return np.clip(1.5 - np.hypot(rows - CENTRE[0], columns - CENTRE[1]) / (2 * RADIUS), 0, 2)


def test_the_outline_runs_where_the_map_meets_the_threshold() -> None:
    # The values fall from 1.5 at the centre and are 1 at the radius.
    shown = ShownMap(make_maps(disc(), place=(50, 60), step=2), Recipe("signed", blur_um=0.0, cap=2.0, threshold=0.5))
    (line,) = contours(shown)
    y, x = 50 + 0.5 + 2 * CENTRE[0], 60 + 0.5 + 2 * CENTRE[1]
    np.testing.assert_allclose(np.hypot(line[:, 0] - y, line[:, 1] - x), 2 * RADIUS, atol=1.0)
    np.testing.assert_array_equal(line[0], line[-1])


def test_the_outline_does_not_run_along_the_border_of_the_map() -> None:
    half = np.zeros((640, 960))
    half[:, :480] = 1
    (line,) = contours(ShownMap(make_maps(half, place=(50, 60), step=2), Recipe("signed", blur_um=0.0, cap=1.0, threshold=0.5)))
    # from the upper border to the lower, half a level-0 pixel beyond the centres of the outermost pixels
    np.testing.assert_allclose(sorted((line[0, 0], line[-1, 0])), (49.5, 49.5 + 1280))
    np.testing.assert_allclose(line[:, 1], 59.5 + 960, atol=1)
    assert contours(ShownMap(make_maps(np.ones((640, 960))), Recipe("signed", blur_um=0.0, cap=1.0))) == []
    assert contours(ShownMap(make_maps(-np.ones((640, 960))), Recipe("signed", blur_um=0.0))) == []


@given(st.floats(1e-4, 1e3))
def test_the_line_is_three_to_four_pixels_wide_at_any_zoom(zoom: float) -> None:
    assert 3 <= line_width(zoom) * zoom <= 4


def test_the_halo_lies_below_and_on_both_sides() -> None:
    square = np.array([[0, 0], [0, 100], [100, 100], [100, 0], [0, 0]], float)
    found, colours = vectors([square], 4.0)
    assert found.shape == (12, 2, 2)
    np.testing.assert_allclose(colours[:8], np.tile([0, 0, 0, 1], (8, 1)))
    np.testing.assert_allclose(colours[8:, :3] * 255, np.tile([0xFF, 0xE1, 0x4A], (4, 1)))
    # Two vectors of width 4, two to each side: the halo is 8 wide, the line 4.
    first, second, line = found[0], found[4], found[8]
    np.testing.assert_allclose((first[0] + second[0]) / 2, line[0])
    assert np.linalg.norm(first[0] - second[0]) == pytest.approx(4.0)
    np.testing.assert_allclose(line, [[0, -1], [0, 102]])  # a quarter of the width over each joint


def test_areas_no_larger_than_their_outline_get_none_until_one_zooms_in() -> None:
    small = np.array([[0, 0], [0, 9], [9, 9], [0, 0]], float)
    assert len(vectors([small], 1.0)[0]) == 9
    assert vectors([small], 4.0)[0].shape == (0, 2, 2)
    assert vectors([], 4.0)[0].shape == (0, 2, 2)


def test_many_points_are_thinned() -> None:
    angle = np.linspace(0, 2 * np.pi, 40001)
    circle = 1000 * np.stack([np.sin(angle), np.cos(angle)], axis=1)
    found, _ = vectors([circle], 1.0)
    assert len(found) <= 3 * 4001
    np.testing.assert_allclose(np.linalg.norm(found[-100:, 0], axis=1), 1000, atol=1)


def test_the_canvas_the_picture_and_hotspots_draw_the_same_line() -> None:
    from streamview.export.hotspots import find_hotspots

    values = np.clip(1.5 - np.hypot(*(np.indices((400, 450)) - np.array([200, 0])[:, None, None])) / 300, 0, 2)
    recipe = Recipe("signed", blur_um=0.0, cap=2.0, threshold=0.5)
    maps = make_maps(values, place=(50, 60), step=2)
    (line,) = contours(ShownMap(maps, recipe))
    (spot,) = find_hotspots(maps, recipe)
    corners = {tuple(corner) for corner in (spot.polygon.exterior - 0.5).round(4)}
    assert len(corners - {tuple(point) for point in line.round(4)}) <= 2  # those where it is closed along the border
    assert not (line[0] == line[-1]).all()
    assert {line[0, 1], line[-1, 1]} == {59.5}
