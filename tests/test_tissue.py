"""Tissue: found to the pixel where it was painted, boxed, measured, cropped to and padded."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import streamview
from streamview.cli import main
from streamview.errors import RegionError, SlideError
from streamview.geometry import Region
from streamview.inference.compute import Compute
from streamview.jobs import Job
from streamview.results import open_saliency
from streamview.slides import as_slide, open_slide
from streamview.slides.padding import PaddedSampler
from streamview.slides.sampling import Sampler
from streamview.slides.synthetic import write_synthetic_slide
from streamview.slides.tissue import Tissue, covered, find_tissue, otsu, tissue_boxes, tissue_region, tissue_regions
from tests.support.slides import SyntheticSlide

PINK = (196, 120, 172)


def painted(shape: tuple[int, int], *boxes: tuple[int, int, int, int]) -> np.ndarray:
    """Glass with noise, and tissue in boxes (y, x, height, width)."""
    rng = np.random.default_rng(3)
    rgb = np.full((*shape, 3), 243, np.int16)
    for y, x, height, width in boxes:
        rgb[y : y + height, x : x + width] = PINK
    return (rgb + rng.integers(-2, 3, rgb.shape)).clip(0, 255).astype(np.uint8)


def of(mask: np.ndarray, factor: int = 1) -> Tissue:
    return Tissue(mask, (mask.shape[0] * factor, mask.shape[1] * factor), 20)


def test_planted_boxes_are_found_to_the_pixel() -> None:
    slide = as_slide(painted((400, 600), (50, 60, 100, 80), (260, 300, 90, 200)), 8.0)
    tissue = find_tissue(slide)
    corners = 4 * 6  # the median takes a few pixels from each of eight corners
    assert np.abs(int(tissue.mask.sum()) - (100 * 80 + 90 * 200)) <= corners
    assert tissue_boxes(tissue) == (Region(260, 300, 90, 200), Region(50, 60, 100, 80))
    assert tissue_boxes(tissue, margin=109) == (Region(260, 300, 90, 200), Region(50, 60, 100, 80))
    assert tissue_boxes(tissue, margin=160) == (Region(50, 60, 300, 440),)
    assert tissue_region(tissue, "a") == Region(50, 60, 300, 440)
    assert tissue_region(tissue, "a", (32, 64)) == Region(32, 0, 320, 512)
    assert covered(tissue, Region(0, 0, 200, 600)) == pytest.approx(8000 / 26000, abs=1e-3)
    assert covered(tissue, Region(0, 0, 400, 600)) == 1.0
    assert np.array_equal(find_tissue(slide).mask, tissue.mask)


def test_specks_go_and_small_holes_are_filled_but_large_ones_stay() -> None:
    rgb = painted((400, 600), (50, 60, 300, 300), (200, 500, 8, 8))
    rgb[100:108, 100:108] = 243  # a lumen of 80 um
    rgb[200:300, 200:300] = 243  # 1 mm of glass
    mask = find_tissue(as_slide(rgb, 10.0)).mask
    assert not mask[190:220, 490:520].any()
    assert mask[98:110, 98:110].all()
    assert not mask[205:295, 205:295].any()


@pytest.mark.parametrize("colour", [(243, 243, 243), (255, 255, 255), (228, 222, 231), (206, 204, 205)])
def test_a_blank_slide_has_no_tissue(colour: tuple[int, int, int]) -> None:
    noise = np.random.default_rng(0).integers(-3, 4, (300, 400, 3))
    slide = as_slide((np.array(colour) + noise).clip(0, 255).astype(np.uint8), 8.0)
    tissue = find_tissue(slide)
    assert not tissue.mask.any()
    assert tissue_boxes(tissue) == ()
    assert covered(tissue, Region(0, 0, 300, 400)) == 0.0
    with pytest.raises(SlideError, match=r"a\.svs: no tissue .* answer whole slides, or name the part with region="):
        tissue_region(tissue, "a.svs")


def test_a_slide_full_of_tissue_is_tissue() -> None:
    slide = as_slide(painted((300, 400), (0, 0, 300, 400)), 8.0)
    assert find_tissue(slide).mask.all()


def test_the_painted_slide(synthetic_slide: SyntheticSlide) -> None:
    with open_slide(synthetic_slide.path) as slide:
        tissue = find_tissue(slide)
        assert tissue.step == pytest.approx((16, 16), rel=0.02)  # 8 um
        rows, columns = ((np.arange(n) / step).astype(int) for n, step in zip(tissue.shape, tissue.step, strict=True))
        assert tissue.mask[np.ix_(rows, columns)][synthetic_slide.lesion].mean() > 0.99
        assert 0.5 < tissue.mask.mean() < 0.8
        box = tissue_region(tissue, "a")
        assert covered(tissue, box) == 1.0
        assert box.height * box.width < 0.95 * 1501 * 2203


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [("CMU-1-Small-Region.svs", 0.35, 0.45), ("OS-1-detail.ome.tif", 0.97, 1.0), ("OS-2-ndpi.ome.tif", 0.7, 0.9)],
)
def test_real_tissue(shared_data: Path, name: str, low: float, high: float) -> None:
    """On glass; without any glass; and stained so that only nuclei are dark."""
    with open_slide(shared_data / "slides" / name) as slide:
        assert low <= find_tissue(slide).mask.mean() <= high


def test_memory_is_bounded_by_the_choice_of_the_level(synthetic_slide: SyntheticSlide, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamview.slides.tissue._LARGEST", 2_000)
    with open_slide(synthetic_slide.path) as slide:
        coarse = find_tissue(slide)
        assert 1_800 <= coarse.mask.size <= 2_000
        monkeypatch.undo()
        fine = tissue_region(find_tissue(slide), "a")
    box = tissue_region(coarse, "a")
    step = max(coarse.step)
    edges = [np.array([one.y, one.x, one.y_stop, one.x_stop]) for one in (box, fine)]
    assert np.abs(edges[0] - edges[1]).max() <= 3 * step


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 10**6), factor=st.integers(1, 5), data=st.data())
def test_coverage_is_the_share_of_level_0_pixels(seed: int, factor: int, data: st.DataObject) -> None:
    mask = np.random.default_rng(seed).random((9, 7)) < 0.4
    mask[4, 3] = True
    height, width = 9 * factor, 7 * factor
    y, x = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    region = Region(y, x, data.draw(st.integers(1, height - y)), data.draw(st.integers(1, width - x)))
    whole = np.kron(mask, np.ones((factor, factor)))
    assert covered(of(mask, factor), region) == pytest.approx(whole[y : region.y_stop, x : region.x_stop].sum() / whole.sum())


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 10**6), margin=st.integers(0, 12), factor=st.integers(1, 3))
def test_boxes_hold_all_tissue_and_are_further_apart_than_the_margin(seed: int, margin: int, factor: int) -> None:
    mask = np.random.default_rng(seed).random((16, 16)) < 0.08
    boxes = tissue_boxes(of(mask, factor), margin)
    rest = np.kron(mask, np.ones((factor, factor))) > 0
    for box in boxes:
        part = rest[box.y : box.y_stop, box.x : box.x_stop]
        assert all(edge.any() for edge in (part[0], part[-1], part[:, 0], part[:, -1]))
        part[:] = False
    assert not rest.any()
    for a in boxes:
        for b in boxes:
            gap = max(max(a.y, b.y) - min(a.y_stop, b.y_stop), max(a.x, b.x) - min(a.x_stop, b.x_stop))
            assert a == b or gap > margin


def test_the_threshold_is_otsus() -> None:
    filters = pytest.importorskip("skimage.filters")
    rng = np.random.default_rng(0)
    for share in (0.02, 0.3, 0.9):
        values = np.where(rng.random((200, 200)) < share, rng.normal(80, 20, (200, 200)), rng.normal(8, 3, (200, 200)))
        found = values.clip(0, 255).astype(np.uint8)
        assert abs(otsu(found) - filters.threshold_otsu(found)) <= 1
    assert otsu(np.full((5, 5), 7, np.uint8)) == 0


def test_a_padded_grid_is_the_region_and_zeros() -> None:
    sampler = Sampler(as_slide(painted((90, 70), (20, 20, 40, 40)), 0.5), Region(10, 20, 60, 50), 0.75)
    padded = PaddedSampler(sampler, (64, 48))
    whole = padded.read(0, 64, 0, 48)
    assert sampler.shape == (40, 33)
    np.testing.assert_array_equal(whole[:40, :33], sampler.read(0, 40, 0, 33))
    assert not whole[40:].any()
    assert not whole[:, 33:].any()
    np.testing.assert_array_equal(padded.read(35, 60, 30, 48), whole[35:60, 30:48])
    np.testing.assert_array_equal(padded.read(50, 60, 3, 9), whole[50:60, 3:9])
    with pytest.raises(RegionError, match="33 x 40 px on the network's grid, more than the 48 x 32 px"):
        PaddedSampler(sampler, (32, 48))


def test_a_padded_answer_is_that_of_the_padded_image(synthetic_slide: SyntheticSlide) -> None:
    model = streamview.load_model("demo")
    region = Region(600, 800, 150, 210)
    with open_slide(synthetic_slide.path) as slide:
        found = streamview.saliency(model, slide, region, "lesion", pad_to=256, compute=Compute(tile=(64, 128)))
        plain = streamview.saliency(model, slide, region, "lesion")
        pixels = np.zeros((256, 256, 3), np.uint8)
        pixels[:150, :210] = slide.read(region)
    whole = streamview.saliency(model, pixels, None, "lesion", mpp=0.5, compute=Compute(tile=(256, 256)))
    assert found.prediction.logits == pytest.approx(whole.prediction.logits, rel=1e-4, abs=1e-4)
    assert found.prediction.shape == found.maps["absolute"].values.shape == (150, 210)
    np.testing.assert_allclose(found.maps["absolute"].values, whole.maps["absolute"].values[:150, :210], rtol=1e-3, atol=1e-6)
    assert found.maps["evidence"].values.shape == (5, 7)  # cells of 32 px whose centre is on the region
    np.testing.assert_allclose(found.maps["evidence"].values, whole.maps["evidence"].values[:5, :7], rtol=1e-3, atol=1e-4)
    assert found.maps["absolute"].origin == plain.maps["absolute"].origin
    identity = found.prediction.identity
    assert (identity.padded, plain.prediction.identity.padded) == ((256, 256), None)
    assert identity.key != plain.prediction.identity.key
    assert type(identity).from_dict(identity.to_dict()) == identity
    assert any("zeros at the right and below make it 256 x 256 px" in warning for warning in found.prediction.warnings)


def rows(job: Path) -> list[dict[str, str]]:
    with (job / "predictions.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_table_states_the_tissue_covered(synthetic_slide: SyntheticSlide, tmp_path: Path) -> None:
    job = tmp_path / "job"
    assert main(["predict", "-i", str(synthetic_slide.path), "-o", str(job), "-m", "demo", "--region", "300,200,512,640"]) == 0
    with open_slide(synthetic_slide.path) as slide:
        expected = covered(find_tissue(slide), Region(200, 300, 640, 512))
    assert 0.05 < expected < 0.4
    assert {row["tissue_covered"] for row in rows(job)} == {f"{expected:.4f}"}
    assert f"{expected:.1%}" in (job / "summary.md").read_text()


def test_crop_and_pad_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, job = str(tmp_path / "a.svs"), tmp_path / "job"
    write_synthetic_slide(path, size=(501, 640), seed=2)
    assert main(["saliency", "-i", path, "-o", str(job), "-m", "demo", "--regions", "tissue", "--pad-to", "768"]) == 0
    (record,) = Job(job).slides()
    (result,) = record.regions
    with open_slide(path) as slide:
        assert result.prediction.region == tissue_region(find_tissue(slide), slide.name, (32.0, 32.0))
    assert result.tissue_covered == 1.0
    assert result.prediction.region.shape != (501, 640)
    maps = open_saliency(job / result.maps[0].path)
    assert maps.maps["absolute"].values.shape == result.prediction.region.shape
    capsys.readouterr()
    for given_, said in [
        ("256", "more than the 256 x 256 px"),
        ("card", "states sides of 256 to 4096 px"),
        ("-3", "whole number of px"),
    ]:
        assert main(["predict", "-i", path, "-o", str(job), "-m", "demo", "--regions", "tissue", f"--pad-to={given_}"]) == 1
        assert said in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["predict", "-i", path, "-o", str(job), "-m", "demo", "--regions", "tissue", "--region", "0,0,512,512"])


def test_a_blank_slide_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tifffile = pytest.importorskip("tifffile")
    path = tmp_path / "blank.ome.tif"
    tifffile.imwrite(
        path, painted((300, 300)), photometric="rgb", tile=(256, 256), metadata={"axes": "YXS", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5}
    )
    assert main(["predict", "-i", str(path), "-o", str(tmp_path / "job"), "-m", "demo"]) == 0
    assert {row["tissue_covered"] for row in rows(tmp_path / "job")} == {"0"}
    assert main(["predict", "-i", str(path), "-o", str(tmp_path / "job"), "-m", "demo", "--regions", "tissue"]) == 1
    assert "no tissue was found to crop to" in capsys.readouterr().err


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 50), st.integers(0, 70), st.integers(1, 12), st.integers(1, 12)), min_size=1, max_size=6),
    st.sampled_from((0.0, 37.0, 120.0)),
    st.sampled_from((1.0, 32.0, 50.3)),
    st.sampled_from((0.0, 90.0, 5000.0)),
)
def test_regions_of_tissue_hold_all_of_it_once(boxes: list[tuple[int, int, int, int]], near: float, align: float, least: float) -> None:
    mask = np.zeros((60, 80), np.bool_)
    for y, x, height, width in boxes:
        mask[y : y + height, x : x + width] = True
    tissue = of(mask, 10)
    regions = tissue_regions(tissue, "a", near, (align, align), (least, least))
    count = np.zeros(tissue.shape, np.uint8)
    for region in regions:
        assert region.inside(tissue.shape)
        assert all(side >= min(least, whole) for side, whole in zip(region.shape, tissue.shape, strict=True))
        count[region.y : region.y_stop, region.x : region.x_stop] += 1
    assert count.max() == 1
    assert count[mask.repeat(10, 0).repeat(10, 1)].all()
    assert len(tissue_regions(tissue, "a", 1e6)) == 1


def test_each_piece_of_tissue_is_a_region_and_a_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tifffile = pytest.importorskip("tifffile")
    path, job = tmp_path / "two.ome.tif", tmp_path / "job"
    pixels = painted((1800, 2400), (100, 100, 300, 280), (1400, 1900, 310, 300), (1400, 2250, 60, 60))  # the last is 25 um from the second
    tifffile.imwrite(path, pixels, photometric="rgb", tile=(256, 256), metadata={"axes": "YXS", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5})
    assert main(["predict", "-i", str(path), "-o", str(job), "-m", "demo", "--regions", "tissue"]) == 0
    printed = capsys.readouterr().out
    (record,) = Job(job).slides()
    regions = [result.prediction.region for result in record.regions]
    assert len(regions) == 2
    assert sum(region.height * region.width for region in regions) < 350 * 350 + 380 * 480  # one box around both: 3.3 million px
    assert sum(result.tissue_covered or 0 for result in record.regions) == pytest.approx(1)
    assert [row["region_id"] for row in rows(job) if row["x"]] == [f"x{r.x}-y{r.y}-w{r.width}-h{r.height}" for r in regions]
    for region in regions:
        assert f"prediction for the region {region}: " in printed
    assert "1 of 1 slides answered" in printed
    assert all(result.plan["steps"] > 0 for result in record.regions)


def test_a_scrap_of_tissue_is_large_enough_for_a_network(tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile")
    path, job = tmp_path / "scrap.ome.tif", tmp_path / "job"
    tifffile.imwrite(
        path,
        painted((1200, 1200), (500, 20, 440, 440)),
        photometric="rgb",
        tile=(256, 256),
        metadata={"axes": "YXS", "PhysicalSizeX": 0.25, "PhysicalSizeY": 0.25},
    )
    assert main(["predict", "-i", str(path), "-o", str(job), "-m", "demo", "--regions", "tissue"]) == 0
    ((result,),) = (record.regions for record in Job(job).slides())
    assert min(result.prediction.region.shape) >= 512  # 256 px at the network's 0.5 um
