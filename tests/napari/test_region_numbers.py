"""Regions in numbers: what was drawn as whole pixels, steps that are undone, and what is too small."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from streamview_napari.requests.history import History
from streamview_napari.requests.regions import corners, describe_too_small, within

from streamview.geometry import Region

SIDE = 100_000  # px of a large slide
EDGES = st.integers(0, SIDE - 5000)
REGIONS = st.builds(Region, EDGES, EDGES, st.integers(1, 4000), st.integers(1, 4000))


def test_what_is_undone_is_no_step_and_what_is_gone_is_forgotten() -> None:
    history, value = History(), [0]

    def change(new: int, of: object = None) -> None:
        before = value[0]
        history.add(lambda: change(before), of)
        value[0] = new

    assert not history.undo()
    for number in (1, 2, 3):
        change(number)
    assert history.undo()
    assert value == [2]
    gone = object()
    change(4, gone)
    history.forget(gone)
    assert history.undo()
    assert value == [1]
    history.add(lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        history.undo()
    change(5)
    assert history.undo(), "a step that fails leaves the next ones alone"
    assert value == [1]
    for number in range(500):
        change(number)
    assert sum(iter(history.undo, False)) == 100


@given(REGIONS, st.floats(-50, 50), st.floats(-50, 50), st.integers(0, 2**32))
def test_what_is_moved_keeps_its_size_to_the_pixel(region: Region, down: float, right: float, seed: int) -> None:
    wide = (2 * SIDE, 2 * SIDE)
    moved = (corners(region, None) + np.float64((down + 50, right + 50))).astype(np.float32)
    noise = np.random.default_rng(seed).integers(-2, 3, moved.shape) * np.spacing(np.float32(SIDE))
    after = within(moved + noise.astype(np.float32), wide, None)
    assert after.shape == region.shape
    assert abs(after.y - region.y - down - 50) <= 0.6
    assert abs(after.x - region.x - right - 50) <= 0.6


@given(REGIONS, st.integers(1, 127) | st.integers(63, 66), st.sampled_from([0, 1]), st.sampled_from([0, 1]), st.integers(-2, 2))
def test_an_edge_that_is_dragged_leaves_the_one_opposite(region: Region, parts: int, axis: int, dragged: int, ulps: int) -> None:
    """Also where the new edge is on the middle of a pixel, as one in 128 is at this size, and the other off by what float32 rounds."""
    vertices = corners(region, None).astype(np.float32)
    first = vertices[:, axis] == vertices[:, axis].min()
    moved = first if dragged == 0 else ~first
    vertices[moved, axis] += np.float32((2 * dragged - 1) * parts / 128)
    vertices[~moved, axis] += ulps * np.spacing(vertices.max())
    after = within(vertices, (2 * SIDE, 2 * SIDE), None)
    edges = [(each.y, each.y_stop) if axis == 0 else (each.x, each.x_stop) for each in (after, region)]
    assert edges[0][1 - dragged] == edges[1][1 - dragged]


def test_rectangles_too_small_to_be_meant_or_for_the_network_are_refused_in_words() -> None:
    assert describe_too_small((320, 320), 10.0, (0, 0), None) is None
    assert "32 × 32 px of the screen" in str(describe_too_small((319, 400), 10.0, (0, 0), None))
    assert describe_too_small((320, 640), 1.0, (320, 640), None) is None
    assert describe_too_small((320, 639), 1.0, (320, 640), (0.5, 0.5)) == (
        "Too small for the network: it takes 640 × 320 px · 0.32 × 0.16 mm or more."
    )
