"""A picture that shows nothing of a map says why, and so do the command line and the export."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import streamview
from streamview.cli import main
from streamview.export.png import draw_png
from streamview.results import Saliency, SaliencyMap
from streamview.results.display import PRESETS, Recipe, empty_reason, show
from streamview.slides import as_slide
from streamview.slides.synthetic import write_synthetic_slide

SIDE = 96
TISSUE = np.full((SIDE, SIDE, 3), 150, np.uint8)
DETAIL = replace(PRESETS["detail"], blur_um=0.0)


@pytest.fixture(scope="module")
def saliency() -> Saliency:
    return streamview.saliency(streamview.load_model("demo"), TISSUE, None, "lesion", mpp=0.5)


def with_values(saliency: Saliency, values: np.ndarray) -> Saliency:
    return replace(saliency, maps={"signed": SaliencyMap("signed", values.astype(np.float32), (1.0, 1.0), (0.0, 0.0))})


def spot() -> np.ndarray:
    values = np.zeros((SIDE, SIDE))
    values[40:50, 40:50] = np.arange(1, 11)
    return values


@pytest.mark.parametrize(
    ("values", "recipe", "pixels", "reason"),
    [
        (np.zeros((SIDE, SIDE)), DETAIL, TISSUE, "zero everywhere, so no pixel of the region changes the output for lesion"),
        (np.full((SIDE, SIDE), -1.0), DETAIL, TISSUE, "no positive value, so nothing in the region supports lesion"),
        (-spot(), DETAIL, TISSUE, "no positive value, so nothing in the region supports lesion"),
        (spot(), replace(DETAIL, cap=100.0), TISSUE, "no value of the map reaches the threshold, 0.15 of the cap of 100"),
        (spot(), DETAIL, np.full_like(TISSUE, 255), "the whole region is empty glass"),
        (spot(), DETAIL, np.where(np.arange(SIDE)[:, None, None] < 80, 255, TISSUE).astype(np.uint8), "threshold only on empty glass"),
        (spot(), DETAIL, TISSUE, None),
    ],
)
def test_the_picture_says_why(
    saliency: Saliency, tmp_path: Path, values: np.ndarray, recipe: Recipe, pixels: np.ndarray, reason: str | None
) -> None:
    picture = draw_png(as_slide(pixels, 0.5), with_values(saliency, values), recipe, tmp_path / "a.png")
    with Image.open(picture.path) as image:
        written = image.text.get("empty")
        height = image.height
    assert written == picture.empty
    assert (reason is None) == (picture.empty is None)
    assert reason is None or reason in str(picture.empty)
    full = draw_png(as_slide(TISSUE, 0.5), with_values(saliency, spot()), DETAIL, tmp_path / "b.png")
    with Image.open(full.path) as image:
        assert (height > image.height) == (reason is not None)  # the reason is a line of the picture


def test_a_blur_can_leave_nothing(saliency: Saliency) -> None:
    values = np.full((SIDE, SIDE), -1.0)
    values[40, 40] = 1
    maps = with_values(saliency, values)
    assert "after a blur of 3 um the map has no positive value" in str(empty_reason(maps, show(maps, PRESETS["detail"])))


def test_the_command_line_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    write_synthetic_slide(tmp_path / "a.svs", size=(300, 300), seed=1)
    monkeypatch.setitem(PRESETS, "detail", replace(DETAIL, cap=1e9))  # type: ignore[arg-type]
    command = ["-i", str(tmp_path / "a.svs"), "-o", str(tmp_path / "job"), "-m", "demo", "--display", "detail"]
    assert main(["saliency", *command]) == 0
    assert "warning: x0-y0-w300-h300-detail.png: Nothing is shown: no value of the map reaches the threshold" in capsys.readouterr().err
    assert main(["export", str(tmp_path / "job"), "--display", "detail", "--format", "png", "geojson"]) == 0
    err = capsys.readouterr().err
    assert err.count("Nothing is shown: no value of the map reaches the threshold") == 2
    (areas,) = (tmp_path / "job/export").rglob("*.geojson")
    assert json.loads(areas.read_text())["features"] == []
