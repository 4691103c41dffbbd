"""Display: recipes against independent arithmetic, lazy parts against the whole, and the PNG's contents."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from streamview.errors import StreamviewError
from streamview.export.png import overlay, render_png
from streamview.geometry import Region
from streamview.results import Identity, Prediction, Saliency, SaliencyMap, Target, save_saliency
from streamview.results.display import (
    PALETTES,
    PRESETS,
    DisplayChoice,
    Recipe,
    apply_recipe,
    blur,
    blurred_overview,
    colours,
    default_preset,
    draw_map,
    show,
    usual_recipe,
)
from streamview.results.glass import glass_mask
from streamview.slides import as_slide
from streamview.slides.thumbnail import thumbnail


def spot_saliency(
    side: int = 600, *, mpp: tuple[float, float] | None = (0.5, 0.5), spot: tuple[slice, slice] = np.s_[200:360, 240:400], **changes: object
) -> Saliency:
    """One bright square on faint noise, in all three maps; the evidence on a grid of 16 px."""
    rng = np.random.default_rng(1)
    signed = rng.normal(size=(side, side)).astype(np.float32)
    signed[spot] += 20
    cells = side // 16
    coarse = np.maximum(signed, 0)[: cells * 16, : cells * 16].reshape(cells, 16, cells, 16).mean((1, 3))
    region = Region(0, 0, side, side)
    identity = Identity("ab", "cd", "ef", region, mpp, "float32")
    values: dict[str, object] = {"trained": True, "warnings": ()}
    prediction = Prediction(
        "slide.svs",
        region,
        (side, side),
        mpp,
        "class",
        ("normal", "tumour"),
        np.array([0, 2], np.float32),
        identity,
        "demo",
        **(values | changes),  # type: ignore[arg-type]
    )
    maps = {
        "absolute": SaliencyMap("absolute", abs(signed), (1.0, 1.0), (0.0, 0.0)),
        "signed": SaliencyMap("signed", signed, (1.0, 1.0), (0.0, 0.0)),
        "evidence": SaliencyMap("evidence", coarse, (16.0, 16.0), (7.5, 7.5)),
    }
    return Saliency(prediction, Target("tumour", 1), (0.2, 0.2, 0.2), (255, 255, 255), maps)  # type: ignore[arg-type]


def tissue(side: int = 600) -> np.ndarray:
    """Pink noise with a clear band at the top and one small clear hole."""
    pixels = np.random.default_rng(2).integers(120, 200, (side, side, 3)).astype(np.uint8)
    pixels[: side // 10] = 250
    pixels[side // 2 : side // 2 + 8, 20:28] = 250
    return pixels


def test_the_paper_preset_is_the_papers_arithmetic() -> None:
    saliency = spot_saliency()
    # 4 um at 0.5 um/px are 8 px: blurred at full resolution, as the grid below would not resolve it.
    recipe = replace(PRESETS["paper"], blur_um=3.5)
    shown = show(saliency, recipe)
    assert shown.blur_px == (7.0, 7.0)
    expected = ndimage.gaussian_filter(np.asarray(saliency.maps["absolute"].values), 7.0, mode="nearest")
    cap, floor = np.percentile(expected, 99, method="inverted_cdf"), np.percentile(expected, 50, method="inverted_cdf")
    expected = np.where(expected >= floor, np.minimum(expected / cap, 1), 0)
    np.testing.assert_allclose(shown.levels[0][:, :], expected, atol=1e-5)
    assert 0.49 < (np.asarray(shown.levels[0]) > 0).mean() < 0.51


def test_negatives_are_cut_after_the_blur() -> None:
    saliency = spot_saliency(64, spot=np.s_[0:0, 0:0])
    stripes = np.where(np.arange(64) % 2 == 0, 1.0, -1.0).astype(np.float32) * np.ones((64, 1), np.float32)
    stripes[20:30, 20:30] += 1
    cancelled = replace(saliency, maps={"signed": SaliencyMap("signed", stripes, (1.0, 1.0), (0.0, 0.0))})
    stripes[50:60, 50:60] -= 5
    made = show(cancelled, replace(PRESETS["detail"], blur_um=1.5))
    shown = np.asarray(made.levels[0])
    assert 0.5 < made.cap < 1.2  # of the positive square; the deeper negative one has no say
    assert shown[25, 25] > 0.9
    assert not shown[40:, 40:].any()


@pytest.mark.parametrize("sigma_um", [0.7, 4.0, 12.0])
def test_any_part_of_a_shown_level_equals_the_whole(sigma_um: float, tmp_path: Path) -> None:
    saliency = save_saliency(spot_saliency(1100), tmp_path / "r.ome.zarr")
    level = show(saliency, replace(PRESETS["detail"], blur_um=sigma_um, threshold=0.0)).levels[0]
    whole = level[:, :]
    height, width = level.shape
    assert whole.any()
    spot = np.s_[height // 4 : height // 3, width // 4 : width // 3]
    for key in [spot, np.s_[3:40, 100 : width - 1], np.s_[height - 5 :, :7], np.s_[::3, 1:50:2], np.s_[4], np.s_[..., 5], np.s_[7, 2:9]]:
        np.testing.assert_allclose(level[key], whole[key], atol=1e-6)


def test_a_wide_blur_is_shown_on_a_coarser_grid_and_stays_the_same() -> None:
    saliency = spot_saliency(2048, spot=np.s_[600:1200, 700:1500])
    recipe = Recipe("signed", blur_um=20.0, threshold=0.0)  # 40 px
    shown = show(saliency, recipe)
    assert shown.levels[0].shape == (512, 512)  # 10 px there; a level further would be 5 px, but the record ends at 512
    assert (shown.steps[0], shown.origins[0]) == ((4.0, 4.0), (1.5, 1.5))
    exact = ndimage.gaussian_filter(np.asarray(saliency.maps["signed"].values), 40.0, mode="nearest")
    exact = exact.reshape(512, 4, 512, 4).mean((1, 3))
    np.testing.assert_allclose(np.asarray(shown.levels[0]), np.clip(exact / shown.cap, 0, 1), atol=0.01)


def test_the_blur_of_every_level_adds_up_to_what_was_asked() -> None:
    shown = show(spot_saliency(2048), Recipe("signed", blur_um=1.2))  # 2.4 px
    for step, level in zip(shown.steps, shown.levels, strict=True):
        factor = step[0]
        assert (level.sigma[0] * factor) ** 2 + (factor**2 - 1) / 12 == pytest.approx(2.4**2)
    assert len(shown.levels) == 3


def test_without_mpp_the_blur_scales_with_the_region_as_in_the_paper() -> None:
    for side in (512, 2048):
        shown = show(spot_saliency(side, mpp=None), PRESETS["paper"])
        assert shown.blur_px[0] == pytest.approx(50 * side / 8192)


def test_a_map_of_zeros_shows_nothing_and_a_few_peaks_stay_visible() -> None:
    assert not apply_recipe(np.zeros((4, 4), np.float32), 0.0, 0.0).any()
    saliency = spot_saliency(64)
    peaks = np.zeros((64, 64), np.float32)
    peaks[5, 6] = 2.0
    lonely = replace(saliency, maps={"absolute": SaliencyMap("absolute", peaks, (1.0, 1.0), (0.0, 0.0))})
    shown = show(lonely, Recipe("absolute", blur_um=0.0, cap_percentile=99.0, floor_percentile=50.0))
    assert shown.cap == 2.0
    np.testing.assert_array_equal(np.argwhere(np.asarray(shown.levels[0])), [[5, 6]])


def test_a_cap_that_is_given_takes_the_place_of_the_percentile() -> None:
    shown = show(spot_saliency(), replace(PRESETS["detail"], cap=40.0, blur_um=0.0))
    assert shown.cap == 40.0
    assert shown.levels[0][300, 300] == pytest.approx(float(spot_saliency().maps["signed"].values[300, 300]) / 40)


def test_an_overview_at_hand_changes_nothing() -> None:
    saliency, recipe = spot_saliency(), replace(PRESETS["paper"], blur_um=5.0)
    ahead = show(saliency, recipe, blurred_overview(saliency, "absolute", 5.0))
    assert (ahead.cap, ahead.threshold) == (show(saliency, recipe).cap, show(saliency, recipe).threshold)


def test_a_large_map_is_blurred_the_same_in_threads() -> None:
    values = np.random.default_rng(0).normal(size=(700, 1301)).astype(np.float32)
    one = ndimage.gaussian_filter1d(values, 2.5, 0, mode="nearest")
    np.testing.assert_array_equal(blur(values, (2.5, 4.0)), ndimage.gaussian_filter1d(one, 4.0, 1, mode="nearest"))


def test_colours_run_from_teal_to_lime_and_hidden_is_transparent() -> None:
    rgb, alpha = colours(PRESETS["evidence"], np.array([0.0, 0.5, 1.0], np.float32))
    np.testing.assert_allclose(np.rint(rgb * 255), [[0x0A, 0x7F, 0x8C], [0x18, 0xC2, 0x8C], [0xD7, 0xFF, 0x3E]])
    np.testing.assert_allclose(alpha, [0, 0.775, 1])


def test_glass_is_masked_but_small_holes_are_tissue() -> None:
    mask = glass_mask(tissue(), (250, 250, 250), smallest=400)
    assert mask[:50].all()
    assert not mask[70:].any()


def test_evidence_for_a_class_that_is_not_of_interest_looks_different(tmp_path: Path) -> None:
    alarm, slide = spot_saliency(1024, positive=("tumour",)), as_slide(tissue(1024), mpp=0.5)
    normal = replace(alarm, target=Target("normal", 0))
    assert usual_recipe(spot_saliency(64)) == usual_recipe(alarm) == PRESETS["evidence"]
    for preset in PRESETS:
        assert usual_recipe(alarm, preset) == PRESETS[preset]
        assert usual_recipe(normal, preset) == replace(PRESETS[preset], colours=PALETTES["sky"], outline=False)
        assert DisplayChoice(preset).recipe(normal) == (preset, usual_recipe(normal, preset))
    for saliency, outlined in ((alarm, True), (normal, False)):
        with Image.open(render_png(slide, saliency, usual_recipe(saliency), tmp_path / f"{saliency.target}.png")) as picture:
            yellow = (np.abs(np.asarray(picture).astype(int) - (0xFF, 0xE1, 0x4A)).sum(-1) < 30).sum()
        assert (yellow > 500) == outlined
    assert not np.array_equal(draw_map(alarm), draw_map(normal))
    regression = replace(alarm, prediction=replace(alarm.prediction, task="regression", positive=()))
    assert usual_recipe(regression, "patches") == replace(PRESETS["patches"], cap=None)


def test_weak_evidence_for_a_class_of_interest_has_weak_colours() -> None:
    answered = spot_saliency(256, positive=("tumour",))
    top = show(answered, usual_recipe(answered)).cap
    weak = replace(answered, prediction=replace(answered.prediction, logits=np.array([3 * top, 0], np.float32)))
    recipe = usual_recipe(weak)
    assert recipe.lacking == pytest.approx(3 * top)
    shown = show(weak, recipe)
    assert shown.cap == pytest.approx(4 * top)
    assert shown.levels[0][:, :].max() == pytest.approx(0.25, rel=0.1)  # a quarter of what would make it the answer
    assert usual_recipe(weak, "detail").lacking == usual_recipe(replace(weak, target=Target("normal", 0))).lacking == 0
    assert usual_recipe(replace(weak, prediction=replace(weak.prediction, positive=()))).lacking == 0  # all classes count alike


@pytest.mark.parametrize(
    ("task", "target", "lacking"),
    [
        ("class", Target("a", 0), 2.5),
        ("class", Target("b", 1), 0.0),
        ("class", Target("a-b", 0, 1), 2.5),
        ("class", Target("b-a", 1, 0), 0.0),
        ("multilabel", Target("a", 0), 0.5),
        ("multilabel", Target("b", 1), 0.0),
        ("regression", Target("a", 0), 0.0),
    ],
)
def test_what_a_target_lacks_to_be_the_answer(task: Any, target: Target, lacking: float) -> None:
    prediction = replace(spot_saliency(64).prediction, task=task, class_names=("a", "b"), logits=np.array([-0.5, 2.0], np.float32))
    assert prediction.lacks(target) == lacking


def test_the_default_is_evidence_where_there_is_some() -> None:
    saliency = spot_saliency(64)
    assert default_preset(saliency) == "evidence"
    without = replace(saliency, maps={"absolute": saliency.maps["absolute"]})
    assert default_preset(without) == "paper"
    with pytest.raises(StreamviewError, match="no evidence map here, only absolute"):
        show(without, PRESETS["evidence"])


@pytest.mark.parametrize("shape", [(60, 80), (33, 47), (600, 600), (900, 750)])
def test_a_thumbnail_keeps_the_area_means(shape: tuple[int, int]) -> None:
    ramp = np.broadcast_to(np.linspace(0, 255, 600)[:, None, None], (600, 600, 3)).astype(np.uint8)
    small = thumbnail(as_slide(ramp), Region(30, 20, 480, 520), shape)
    assert small.shape == (*shape, 3)
    centres = 30 + (np.arange(shape[0]) + 0.5) * 480 / shape[0] - 0.5
    np.testing.assert_allclose(small[:, 0, 0], centres * 255 / 599, atol=1.6)


def test_a_thumbnail_is_the_same_by_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    slide = as_slide(tissue())
    whole = thumbnail(slide, Region(5, 7, 500, 560), (123, 140))
    monkeypatch.setattr("streamview.slides.thumbnail._STRIP_BYTES", 3 * 560 * 40)
    by_strips = thumbnail(slide, Region(5, 7, 500, 560), (123, 140))
    assert np.abs(whole.astype(int) - by_strips).max() <= 1


@pytest.mark.parametrize("preset", ["evidence", "detail", "paper"])
def test_the_overlay_colours_the_spot_and_spares_the_glass(preset: str) -> None:
    saliency = spot_saliency()
    recipe = replace(PRESETS[preset], blur_um=4.0, outline=False)  # type: ignore[index]
    pixels = tissue()
    picture, _ = overlay(pixels, saliency, show(saliency, recipe), (250, 250, 250))
    change = np.abs(picture.astype(int) - pixels).sum(-1)
    assert change[220:340, 260:380].mean() > 60
    assert not change[:50].any()
    if preset != "paper":  # the upper half of the paper's display is half the picture, whatever it shows
        assert change[450:, 450:].mean() < 1


def test_heat_and_outline_and_glass_can_each_be_switched() -> None:
    saliency, picture = spot_saliency(), np.full((600, 600, 3), 255, np.uint8)  # all of it glass
    usual = replace(PRESETS["detail"], outline=False)

    def changed(recipe: Recipe) -> float:
        drawn, _ = overlay(picture, saliency, show(saliency, recipe), (255, 255, 255))
        return float((drawn != picture).any(-1).mean())

    assert changed(usual) == 0
    heat = changed(replace(usual, glass=False))
    assert heat > 0.05
    assert changed(replace(usual, glass=False, heat=False)) == 0
    assert 0 < changed(replace(usual, glass=False, heat=False, outline=True)) < heat


def test_the_map_lies_where_the_tissue_is_on_a_reduced_picture() -> None:
    saliency = spot_saliency(600, spot=np.s_[202:362, 241:403])
    shown = show(saliency, Recipe("signed", blur_um=2.0, threshold=0.3, outline=False))
    grey = np.full((150, 150, 3), 128, np.uint8)
    picture, _ = overlay(grey, saliency, shown, (250, 250, 250))
    change = np.abs(picture.astype(float) - 128).sum(-1)
    centre = [float((change * index).sum() / change.sum()) for index in np.indices(change.shape)]
    # Rows 202..361 are centred at 281.5, which is picture row (281.5 + 0.5) / 4 - 0.5.
    np.testing.assert_allclose(centre, [70.0, 80.0], atol=0.15)


def test_the_png_fits_2048_and_says_what_it_is(tmp_path: Path) -> None:
    slide = as_slide(np.tile(tissue(1024), (3, 1, 1)), mpp=0.5)
    path = render_png(slide, spot_saliency(1024, trained=False, warnings=("odd mpp",)), PRESETS["evidence"], tmp_path / "deep" / "a.png")
    with Image.open(path) as picture:
        assert max(picture.size) <= 2048
        assert "Research use only" in picture.info["streamview"]
        pixels = np.asarray(picture)
    yellow = (np.abs(pixels.astype(int) - (0xFF, 0xE1, 0x4A)).sum(-1) < 30).sum()
    assert yellow > 500  # the outline
    banner = (pixels == (0xFD, 0xF0, 0xDC)).all(-1).sum()
    assert banner > 10_000  # the warning that the network is untrained


def test_the_png_of_any_shape_is_drawn(tmp_path: Path) -> None:
    saliency = spot_saliency(1024, mpp=None)
    for region in (Region(0, 0, 1024, 40), Region(100, 0, 30, 900)):
        cut = tuple(slice(start, stop) for start, stop in ((region.y, region.y_stop), (region.x, region.x_stop)))
        signed = SaliencyMap("signed", np.asarray(saliency.maps["signed"].values)[cut], (1.0, 1.0), (float(region.y), float(region.x)))
        prediction = replace(saliency.prediction, region=region, shape=region.shape, slide_name="Präparat.svs")
        part = replace(saliency, prediction=prediction, maps={"signed": signed})
        path = render_png(as_slide(tissue(1024)), part, PRESETS["detail"], tmp_path / "a.png")
        with Image.open(path) as picture:
            assert max(picture.size) <= 2048
