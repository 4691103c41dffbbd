"""How regions are chosen: inside the slide, over the tissue, the same every time."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamview.cohort.policy import RegionPolicy, choose_regions
from streamview.errors import ModelError, RegionError, SlideError
from streamview.geometry import Region
from streamview.networks import load_card
from streamview.slides.array import ArraySlide
from streamview.slides.tissue import Tissue, covered, tissue_share, union_covered

CARD = load_card("demo")


def slide_of(height: int, width: int, mpp: float = 0.5) -> Any:
    """A slide of which only the size matters."""
    return ArraySlide(np.broadcast_to(np.uint8(255), (height, width, 3)), mpp)


def tissue_of(mask: np.ndarray, shape: tuple[int, int]) -> Tissue:
    return Tissue(np.asarray(mask, bool), shape, 20)


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_a_grid_covers_the_tissue_and_stays_inside(data: st.DataObject) -> None:
    height, width = data.draw(st.integers(40, 3000)), data.draw(st.integers(40, 3000))
    mpp = data.draw(st.sampled_from([0.5, 0.25, 0.2027, 0.121]))
    rows, columns = data.draw(st.integers(2, 40)), data.draw(st.integers(2, 40))
    mask = np.random.default_rng(data.draw(st.integers(0, 99))).random((rows, columns)) < data.draw(st.floats(0.05, 1))
    mask[rows // 2, columns // 2] = True
    slide, tissue = slide_of(height, width, mpp), tissue_of(mask, (height, width))
    side, overlap = data.draw(st.integers(32, 400)), data.draw(st.sampled_from([0.0, 0.25, 0.5]))
    policy = RegionPolicy("grid", side, overlap, least_tissue=0.0)
    regions = choose_regions(policy, slide, tissue, CARD)
    assert regions == choose_regions(policy, slide, tissue, CARD)
    assert list(regions) == sorted(regions)
    assert len(set(regions)) == len(regions)
    assert all(region.inside(slide.shape) for region in regions)
    assert len({region.shape for region in regions}) == 1  # of the size that the network was trained on, so one plan does
    rest = math.ceil(0.5 / mpp)  # at the slide's far edges less than a pixel of the network's grid is left
    edges = Region(height - rest, 0, rest, width), Region(0, width - rest, height, rest)
    assert union_covered(tissue, [*regions, *edges]) == pytest.approx(1, abs=1e-6)
    fewer = choose_regions(replace(policy, most=2), slide, tissue, CARD)
    assert set(fewer) <= set(regions)
    assert len(fewer) == min(2, len(regions))
    most = sorted((tissue_share(tissue, region) for region in regions), reverse=True)[: len(fewer)]
    assert sorted((tissue_share(tissue, region) for region in fewer), reverse=True) == pytest.approx(most)


def test_squares_with_little_tissue_are_left_out() -> None:
    mask = np.zeros((10, 10))
    mask[:5, :5] = 1
    mask[9, 9] = 1
    slide, tissue = slide_of(1000, 1000), tissue_of(mask, (1000, 1000))
    every = choose_regions(RegionPolicy("grid", 250, least_tissue=0), slide, tissue, CARD)
    regions = choose_regions(RegionPolicy("grid", 250, least_tissue=0.5), slide, tissue, CARD)
    assert set(regions) == {region for region in every if tissue_share(tissue, region) >= 0.5}
    assert 0 < len(regions) < len(every)
    with pytest.raises(RegionError, match=r"no square of 640 px is at least 1 tissue \(the most is"):
        choose_regions(RegionPolicy("grid", 640, least_tissue=1), slide, tissue, CARD)
    with pytest.raises(SlideError, match="no tissue was found"):
        choose_regions(RegionPolicy("grid", 640), slide, tissue_of(np.zeros((4, 4)), (1000, 1000)), CARD)


def test_the_whole_slide_and_pieces_of_tissue() -> None:
    mask = np.zeros((20, 20))
    mask[1:4, 1:4] = mask[12:19, 12:19] = 1
    slide, tissue = slide_of(8000, 8000), tissue_of(mask, (8000, 8000))
    assert choose_regions(RegionPolicy(), slide, tissue, CARD) == (Region(0, 0, 8000, 8000),)
    pieces = choose_regions(RegionPolicy("tissue"), slide, tissue, CARD)
    assert len(pieces) == 2
    assert sum(covered(tissue, piece) for piece in pieces) == pytest.approx(1)
    assert choose_regions(RegionPolicy("tissue", most=1), slide, tissue, CARD) == pieces[:1]  # with most tissue


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_tissue_in_regions_that_overlap_counts_once(data: st.DataObject) -> None:
    mask = np.random.default_rng(data.draw(st.integers(0, 99))).random((8, 8)) < 0.6
    mask[0, 0] = True
    tissue = tissue_of(mask, (80, 80))
    cell = st.integers(0, 7)
    corners = data.draw(st.lists(st.tuples(cell, cell, st.integers(1, 8), st.integers(1, 8)), min_size=1, max_size=5))
    regions = [Region(y * 10, x * 10, min(h, 8 - y) * 10, min(w, 8 - x) * 10) for y, x, h, w in corners]
    painted = np.zeros((80, 80), bool)
    for region in regions:
        painted[region.y : region.y_stop, region.x : region.x_stop] = True
    fine = mask.repeat(10, 0).repeat(10, 1)
    assert union_covered(tissue, regions) == pytest.approx((painted & fine).sum() / fine.sum(), abs=1e-5)


def test_policies_say_what_they_are_and_what_is_wrong() -> None:
    assert str(RegionPolicy()) == "whole slide"
    assert str(RegionPolicy("tissue", most=3)) == "each piece of tissue, at most 3 with most tissue"
    grid = RegionPolicy("grid", 2048, 0.25, 0.1)
    assert str(grid) == "grid of 2048 px squares of which at least 0.1 is tissue, overlapping by 25%"
    assert RegionPolicy("grid").on(replace(CARD, input_size=(512, 2048))).side == 2048
    sizeless: Any = SimpleNamespace(name="mine", input_size=None)
    with pytest.raises(ModelError, match="states no size; give the side of the squares with grid="):
        RegionPolicy("grid").on(sizeless)
    for wrong in ({"kind": "none"}, {"side": 8}, {"overlap": 1.0}, {"overlap": float("nan")}, {"least_tissue": 2.0}, {"most": 0}):
        with pytest.raises(RegionError, match="expected"):
            RegionPolicy(**wrong)
