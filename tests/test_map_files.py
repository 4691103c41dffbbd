"""Differences of results, results with their display, and the table of hotspots."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from streamview.errors import StreamviewError
from streamview.export.omezarr import stored_recipe, write_ome_zarr
from streamview.export.table import write_hotspot_table
from streamview.geometry import Region
from streamview.results import RESEARCH_USE, Identity, Prediction, Saliency, SaliencyMap, Target, difference, open_saliency, save_saliency
from streamview.results.display import PALETTES, PRESETS


def result(values: np.ndarray, *, weights: str = "ab" * 32, target: str = "tumour", x: int = 64) -> Saliency:
    height, width = values.shape
    region = Region(32, x, 2 * height, 2 * width)
    identity = Identity(weights, "cd", "ef", region, (0.5, 0.5), "float32")
    logits = np.array([0, 2], np.float32)
    prediction = Prediction("slide.svs", region, (height, width), (0.5, 0.5), "class", ("normal", "tumour"), logits, identity, "demo", True)
    maps: dict[Any, SaliencyMap] = {
        method: SaliencyMap(method, values.astype(np.float32), (2.0, 2.0), (32.5, x + 0.5)) for method in ("absolute", "signed")
    }
    return Saliency(prediction, Target(target, int(target == "tumour")), (0.2, 0.2, 0.2), (255, 255, 255), maps)


@pytest.fixture
def values() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(600, 700)).astype(np.float32)


def test_a_difference_is_one_less_the_other_at_every_level(values: np.ndarray, tmp_path: Path) -> None:
    first = save_saliency(result(values), tmp_path / "a.ome.zarr")
    second = save_saliency(result(values[::-1], target="normal"), tmp_path / "b.ome.zarr")
    found = difference(first, second)
    assert found.target.name == "tumour over normal"
    for level, (one, other) in enumerate(zip(first.maps["signed"].levels, second.maps["signed"].levels, strict=True)):
        np.testing.assert_array_equal(np.asarray(found.maps["signed"].levels[level]), np.asarray(one) - np.asarray(other))
    assert found.maps["signed"].placed(1) == first.maps["signed"].placed(1)
    assert second.prediction.identity.key[:12] in found.prediction.warnings[-1]


def test_two_networks_are_told_apart(values: np.ndarray) -> None:
    found = difference(result(values), result(values / 2, weights="12" * 32))
    assert found.target.name == "tumour by demo ababab over tumour by demo 121212"


def test_what_does_not_lie_on_each_other_is_not_subtracted(values: np.ndarray) -> None:
    with pytest.raises(StreamviewError, match="one region of one slide"):
        difference(result(values), result(values, x=96))
    coarse = result(values[::2, ::2])
    coarse = replace(coarse, prediction=replace(coarse.prediction, region=result(values).prediction.region))
    with pytest.raises(StreamviewError, match="same grid"):
        difference(result(values), coarse)


def test_a_result_keeps_its_display(values: np.ndarray, tmp_path: Path) -> None:
    recipe = replace(PRESETS["detail"], blur_um=1.25, colours=PALETTES["viridis"], heat=False, cap=3.5)
    stored = save_saliency(result(values), tmp_path / "a.ome.zarr")
    for number, saliency in enumerate((result(values), stored)):  # in memory, on disk
        path = write_ome_zarr(saliency, recipe, tmp_path / f"{number}.ome.zarr")
        assert stored_recipe(path) == recipe
        again = open_saliency(path)
        assert again.prediction.identity == saliency.prediction.identity
        np.testing.assert_array_equal(np.asarray(again.maps["signed"].values), values)
    assert stored_recipe(tmp_path / "a.ome.zarr") is None
    with pytest.raises(StreamviewError, match=r"ends in \.ome\.zarr"):
        write_ome_zarr(stored, recipe, tmp_path / "b.zip")


@pytest.mark.parametrize(
    "damage",
    [
        {"method": "other"}, {"blur_um": -1}, {"blur_um": "x"}, {"opacity": 7}, {"colours": ["#000000"]}, {"colours": ["red", "blue"]},
        {"heat": 1}, {"cap": 0}, {"cap": float("inf")}, {"more": 1},
    ],
)  # fmt: skip
def test_a_display_that_is_not_sound_is_left_aside(damage: dict[str, Any], values: np.ndarray, tmp_path: Path) -> None:
    path = write_ome_zarr(result(values), PRESETS["detail"], tmp_path / "a.ome.zarr")
    group = zarr.open_group(path, mode="r+")
    group.attrs["streamview_display"] = {**group.attrs["streamview_display"], **damage}  # type: ignore[dict-item]
    assert stored_recipe(path) is None


def test_hotspots_are_a_table_in_level_0_pixels(tmp_path: Path) -> None:
    values = np.zeros((600, 700), np.float32)
    values[100:200, 300:450] = 2.0
    values[400:420, 50:60] = 1.5
    path = write_hotspot_table(result(values), replace(PRESETS["detail"], blur_um=0.0), tmp_path / "a.csv")
    with path.open(newline="") as file:
        first, second = csv.DictReader(file)
    assert first["rank"] == "1"
    assert [float(first[name]) for name in ("x", "y", "width", "height")] == pytest.approx([664, 232, 300, 200], abs=2)
    assert float(first["area_px2"]) == pytest.approx(300 * 200, rel=0.02)
    assert float(first["area_mm2"]) == pytest.approx(float(first["area_px2"]) * 0.25**2 / 1e6, rel=1e-5)
    assert (first["peak"], first["peak_raw"]) == ("1", "2")
    assert float(first["share_of_mass"]) + float(second["share_of_mass"]) == pytest.approx(1, abs=1e-4)
    assert first["note"] == RESEARCH_USE
