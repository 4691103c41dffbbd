"""Maps of several regions as one: each in its place, the nearest where they overlap, NaN where there is none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamview.geometry import Region
from streamview.results import Identity, Prediction, Saliency, SaliencyMap, Target, open_saliency, save_saliency
from streamview.results.blurring import blur
from streamview.results.display import PRESETS, show
from streamview.results.maps import Plane, halve
from streamview.results.stitching import stitch

TARGET = Target("lesion", 1)


def part(region: Region, values: np.ndarray, scale: int = 1) -> Saliency:
    """The map of one region, on a grid of `scale` level-0 pixels."""
    identity = Identity("w", "c", "pixels", region, (0.5 * scale,) * 2, "float32")
    prediction = Prediction(
        "a.svs", region, values.shape, (0.5 * scale,) * 2, "class", ("normal", "lesion"), np.zeros(2, np.float32), identity, "demo", True
    )  # fmt: skip
    origin = region.y + (scale - 1) / 2, region.x + (scale - 1) / 2
    maps = {method: SaliencyMap(method, Plane(values), (scale, scale), origin) for method in ("absolute", "signed")}
    return Saliency(prediction, TARGET, (1.0,) * 3, (255,) * 3, maps)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_every_pixel_is_that_of_the_nearest_region(data: st.DataObject) -> None:
    scale, side = data.draw(st.sampled_from([1, 2, 4])), st.integers(1, 12)
    boxes = data.draw(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20), side, side), min_size=2, max_size=5, unique=True))
    rng = np.random.default_rng(0)
    parts = [part(Region(y * scale, x * scale, h * scale, w * scale), rng.random((h, w), np.float32), scale) for y, x, h, w in boxes]
    whole = stitch(data.draw(st.permutations(parts)), parts[0].prediction)
    region, values = whole.prediction.region, np.asarray(whole.maps["signed"].values)
    assert values.shape == (region.height // scale, region.width // scale) == whole.prediction.shape
    ordered = sorted(parts, key=lambda one: one.prediction.region)
    for i in range(values.shape[0]):
        for j in range(values.shape[1]):
            y, x = region.y // scale + i, region.x // scale + j
            near = []
            for one in ordered:
                box, (h, w) = one.prediction.region, one.prediction.shape
                top, left = box.y // scale, box.x // scale
                if 0 <= y - top < h and 0 <= x - left < w:
                    distance = max(abs((y - top + 0.5) / h - 0.5), abs((x - left + 0.5) / w - 0.5))
                    near.append((np.float32(distance), one.maps["signed"].values[y - top, x - left]))
            if near:
                assert values[i, j] == min(near, key=lambda pair: pair[0])[1]
            else:
                assert np.isnan(values[i, j])
    window = np.asarray(whole.maps["signed"].values[1:4, 2:7])
    np.testing.assert_array_equal(window, values[1:4, 2:7])


def test_a_stitched_map_is_stored_and_shown_like_any_other(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    parts = [part(Region(0, x, 700, 600), rng.random((700, 600), np.float32)) for x in (0, 1500)]
    whole = stitch(parts, parts[1].prediction)
    assert whole.prediction.region == Region(0, 0, 700, 2100)
    assert whole.prediction.identity.key not in {one.prediction.identity.key for one in parts}
    other = stitch([parts[0], part(Region(0, 1500, 700, 600), rng.random((700, 600), np.float32))], parts[1].prediction)
    assert other.prediction.identity == whole.prediction.identity  # of the same regions of the same pixels
    stored = save_saliency(whole, tmp_path / "whole.ome.zarr")
    for saliency in (whole, stored, open_saliency(tmp_path / "whole.ome.zarr")):
        values = np.asarray(saliency.maps["absolute"].values)
        assert np.isnan(values[:, 600:1500]).all()
        np.testing.assert_array_equal(values[:, :600], parts[0].maps["absolute"].values)
        shown = show(saliency, replace(PRESETS["paper"], blur_um=2.0))
        levels = [np.asarray(level[:, :]) for level in shown.levels]
        assert all(np.isfinite(level).all() for level in levels)
        assert levels[0][:, : levels[0].shape[1] * 590 // 2100].any()
        assert not levels[0][:, levels[0].shape[1] * 610 // 2100 : levels[0].shape[1] * 1490 // 2100].any()
    assert stored.prediction.identity == whole.prediction.identity


def test_what_is_absent_does_not_count() -> None:
    values = np.arange(30, dtype=np.float32).reshape(5, 6)
    absent = values.copy()
    absent[1:3, 2:4] = np.nan
    assert halve(absent)[1, 1] == values[3, 2:4].mean()
    assert np.isnan(halve(np.full((4, 4), np.nan, np.float32))).all()
    constant = np.where(np.isnan(absent), np.nan, np.float32(3))
    blurred = blur(constant.astype(np.float32), (1.0, 1.0))
    assert np.isnan(blurred[1:3, 2:4]).all()
    assert blurred[~np.isnan(blurred)] == pytest.approx(3)
