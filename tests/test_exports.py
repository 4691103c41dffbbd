"""Exports of maps: a map that equals a planted mask lies on that mask to the pixel in every form, by the file's own metadata."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tracemalloc
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import tifffile
import zarr
from PIL import Image
from scipy import ndimage

from streamview.cli import main
from streamview.errors import Cancelled, StreamviewError
from streamview.export.geojson import write_hotspots
from streamview.export.hotspots import find_hotspots
from streamview.export.job import export_job
from streamview.export.ometiff import write_ome_tiff
from streamview.export.omezarr import write_ome_zarr
from streamview.export.png import render_png
from streamview.export.table import write_hotspot_table
from streamview.geometry import Region
from streamview.jobs import Job, RegionResult, StoredMap
from streamview.labels.annotations import rasterise, read_annotations
from streamview.progress import Report, Step
from streamview.results import RESEARCH_USE, Identity, Prediction, Saliency, SaliencyMap, Target, open_saliency, save_saliency
from streamview.results.display import PRESETS, DisplayChoice, Recipe
from streamview.results.glass import Glass, glass_mask
from streamview.slides import Slide, open_slide
from streamview.slides.thumbnail import thumbnail
from tests.support.slides import SyntheticSlide

RAW = Recipe("absolute", blur_um=0.0, cap_percentile=100.0, threshold=0.5, outline=False)
OME = {"ome": "http://www.openmicroscopy.org/Schemas/OME/2016-06"}


def planted(mask: np.ndarray, slide: Slide, region: Region, factor: int, *, trained: bool = True) -> Saliency:
    """Maps whose value is 1 where the mask is, over blocks of `factor` level-0 pixels; `mask` has one entry a block."""
    mpp = None if slide.mpp is None else (slide.mpp[0] * factor, slide.mpp[1] * factor)
    identity = Identity("ab" * 32, "cd" * 32, slide.identity, region, mpp, "float32")
    answer = Prediction(
        slide.name, region, mask.shape, mpp, "class", ("normal", "lesion"), np.array([0, 2], np.float32), identity, "planted <&>", trained
    )  # fmt: skip
    step, origin = (float(factor),) * 2, (region.y + (factor - 1) / 2, region.x + (factor - 1) / 2)
    values = mask.astype(np.float32)
    maps = {"absolute": SaliencyMap("absolute", values, step, origin), "signed": SaliencyMap("signed", -values, step, origin)}
    return Saliency(answer, Target("lesion", 1), (0.2, 0.2, 0.2), (243, 243, 243), maps)  # type: ignore[arg-type]


def make_job(folder: Path, path: Path, region: Region, mask: np.ndarray, factor: int) -> Job:
    job = Job(folder)
    with open_slide(path) as slide:
        maps = planted(mask, slide, region, factor)
        stored = job.saliency_path(slide.name, region)
        save_saliency(maps, stored)
        entry = StoredMap(stored.relative_to(folder).as_posix(), maps.target)
        job.add(RegionResult(maps.prediction, "run-1", slide.mpp, 1.0, (entry,), str(path)))
    return job


def onto_slide(values: np.ndarray, corner: tuple[float, float], step: tuple[float, float], shape: tuple[int, int]) -> np.ndarray:
    """Lay an image on the slide: level-0 pixel (y, x) gets the pixel that covers its centre, -1 where there is none."""
    (rows, row_ok), (columns, column_ok) = (
        ((index := np.floor((np.arange(n) + 0.5 - c) / s).astype(int)).clip(0, size - 1), (index >= 0) & (index < size))
        for n, c, s, size in zip(shape, corner, step, values.shape, strict=True)
    )
    return np.where(row_ok[:, None] & column_ok, values[np.ix_(rows, columns)], -1)


def placed_tiff(path: Path, mpp: tuple[float, float], shape: tuple[int, int], level: int = 0) -> np.ndarray:
    with tifffile.TiffFile(path) as file:
        pixels = ElementTree.fromstring(file.ome_metadata or "").find("ome:Image/ome:Pixels", OME)
        assert pixels is not None
        plane = pixels.find("ome:Plane", OME)
        assert plane is not None
        assert {pixels.get(f"PhysicalSize{a}Unit") for a in "XY"} | {plane.get(f"Position{a}Unit") for a in "XY"} == {"µm"}
        step = tuple(float(pixels.attrib[f"PhysicalSize{a}"]) / m * 2**level for a, m in zip("YX", mpp, strict=True))
        corner = tuple(float(plane.attrib[f"Position{a}"]) / m for a, m in zip("YX", mpp, strict=True))
        return onto_slide(file.series[0].levels[level].asarray(), corner, step, shape)  # type: ignore[arg-type]


def placed_zarr(path: Path, mpp: tuple[float, float], shape: tuple[int, int], channel: int = 0) -> np.ndarray:
    group = zarr.open_group(path, mode="r")
    dataset = group.attrs["ome"]["multiscales"][0]["datasets"][0]
    scale, translation = (transform[transform["type"]][1:] for transform in dataset["coordinateTransformations"])
    step = tuple(s / m for s, m in zip(scale, mpp, strict=True))
    corner = tuple(t / m - s / 2 + 0.5 for t, m, s in zip(translation, mpp, step, strict=True))
    return onto_slide(group[dataset["path"]][channel], corner, step, shape)  # type: ignore[arg-type]


def check_every_form(path: Path, mask: np.ndarray, region: Region, factor: int, folder: Path, picture: int) -> None:
    """`mask` is that of the whole slide's level 0, in whole blocks of `factor` px of the region."""
    blocks = mask[region.y : region.y_stop : factor, region.x : region.x_stop : factor]
    job = make_job(folder / "job", path, region, blocks, factor)
    written = export_job(job, ("ome-zarr", "ome-tiff", "geojson"), out=folder / "out", display=DisplayChoice("paper", 0.0, 0.5))
    names = {found.name.removeprefix(f"x{region.x}-y{region.y}-w{region.width}-h{region.height}") for found in written}
    assert names == {".ome.zarr", "-absolute.ome.tif", "-signed.ome.tif", "-paper.geojson"}
    shutil.rmtree(job.folder / "saliency")  # the copies stand alone
    by_name = {"".join(found.suffixes): found for found in written if "-signed" not in found.name}
    with open_slide(path) as slide:
        expected = np.where(mask, 1.0, 0.0)
        outside = np.ones(slide.shape, bool)
        outside[region.y : region.y_stop, region.x : region.x_stop] = False
        expected[outside] = -1  # nothing is said there
        assert slide.mpp is not None
        np.testing.assert_array_equal(placed_tiff(by_name[".ome.tif"], slide.mpp, slide.shape), expected)
        np.testing.assert_array_equal(placed_zarr(by_name[".ome.zarr"], slide.mpp, slide.shape), expected)
        drawn = read_annotations(by_name[".geojson"], slide.shape)
        near = ndimage.binary_dilation(mask, iterations=max(factor, 2)) & ~ndimage.binary_erosion(mask, iterations=max(factor, 2))
        differs = rasterise(drawn, Region(0, 0, *slide.shape)) != (
            expected == 1
        )  # outlines are smooth between pixels, which rounds off corners
        assert not (differs & ~near).any()
        assert differs.sum() < 0.01 * mask.sum()
        document = json.loads(by_name[".geojson"].read_text())
        area = sum(one["properties"]["measurements"]["Area mm^2"] for one in document["features"])
        assert area == pytest.approx((expected == 1).sum() * slide.mpp[0] * slide.mpp[1] / 1e6, rel=0.01)

        kept = open_saliency(by_name[".ome.zarr"])
        png = render_png(slide, kept, RAW, folder / "a.png", picture)
        with Image.open(png) as image:
            left, top, width, height = map(int, image.text["picture"].split(","))
            assert image.text["region"] == str(region)
            shown = np.asarray(image)[top : top + height, left : left + width]
        assert (height, width) == region.shape  # one px of the picture is one of the slide
        tissue = thumbnail(slide, region, region.shape)
        changed = (shown != tissue).any(-1)
        inside = expected[region.y : region.y_stop, region.x : region.x_stop] == 1
        glass = glass_mask(tissue, slide.background, max(int(0.0005 * height * width), 16))
        wanted = inside & ~glass
        if factor == 1:
            np.testing.assert_array_equal(changed, wanted)
        else:  # the picture is smooth between the map's pixels, which rounds off corners
            wrong = {(y, x): (np.roll(changed, (y, x), (0, 1)) != wanted).sum() for y in (-1, 0, 1) for x in (-1, 0, 1)}
            assert min(wrong, key=wrong.__getitem__) == (0, 0)
            assert wrong[0, 0] < 0.02 * wanted.sum()


@pytest.mark.parametrize("factor", [1, 4])
def test_a_planted_mask_lies_on_the_slide_in_every_form(synthetic_slide: SyntheticSlide, tmp_path: Path, factor: int) -> None:
    mask = synthetic_slide.lesion
    region = Region(0, 0, *mask.shape) if factor == 1 else Region(131, 77, 1200, 2000)
    if factor > 1:
        part = mask[region.y : region.y_stop, region.x : region.x_stop][::factor, ::factor]
        mask = np.zeros_like(mask)
        mask[region.y : region.y_stop, region.x : region.x_stop] = np.kron(part, np.ones((factor, factor))) > 0
    assert mask.sum() > 1000
    check_every_form(synthetic_slide.path, mask, region, factor, tmp_path, 4096)


@pytest.mark.slow
@pytest.mark.parametrize("factor", [1, 8])
def test_a_composed_slide_of_real_tissue(shared_data: Path, tmp_path: Path, factor: int) -> None:
    path = tmp_path / "planted.svs"
    tool = shared_data.parent / "tools/compose_planted.py"
    command = [sys.executable, str(tool), str(path), "--size", "4096", "--seed", "5", "--lesion", "0.05"]
    subprocess.run(command, check=True, capture_output=True)
    mask = np.kron(np.load(path.with_suffix(".mask.npy")), np.ones((256, 256))) > 0
    check_every_form(path, mask, Region(0, 0, 4096, 4096) if factor == 1 else Region(256, 512, 3072, 2560), factor, tmp_path, 8192)


@pytest.fixture
def small_job(synthetic_slide: SyntheticSlide, tmp_path: Path) -> Job:
    region = Region(100, 60, 1300, 1100)
    return make_job(tmp_path / "job", synthetic_slide.path, region, synthetic_slide.lesion[100:1400, 60:1160], 1)


def test_the_ome_tiff_is_a_valid_pyramid(small_job: Job, tmp_path: Path) -> None:
    (path,) = (one for one in export_job(small_job, ["ome-tiff"]) if "-absolute" in one.name)
    assert path.is_relative_to(small_job.folder / "export")
    with tifffile.TiffFile(path) as file:
        assert file.is_bigtiff
        (series,) = file.series
        assert [level.shape for level in series.levels] == [(1300, 1100), (650, 550), (325, 275)]
        finest, *coarser = (level.keyframe for level in series.levels)
        assert len(finest.subifds) == 2
        assert [page.subfiletype for page in (finest, *coarser)] == [0, 1, 1]
        for number, page in enumerate((finest, *coarser)):
            assert (page.tile, page.dtype, page.compression.name, page.predictor.name) == (
                (512, 512),
                "float32",
                "ADOBE_DEFLATE",
                "FLOATINGPOINT",
            )
            assert page.resolutionunit.name == "CENTIMETER"
            assert page.resolution == pytest.approx((1e4 / 0.5 / 2**number,) * 2)
        root = ElementTree.fromstring(file.ome_metadata)
        image = root.find("ome:Image", OME)
        facts = {m.get("K"): m.text for m in root.iterfind(".//ome:MapAnnotation/ome:Value/ome:M", OME)}
    stored = open_saliency(small_job.folder / small_job.slides()[0].regions[0].maps[0].path)
    key = stored.prediction.identity.key
    assert RESEARCH_USE in image.find("ome:Description", OME).text
    assert key in image.find("ome:Description", OME).text
    assert (facts["identity"], facts["note"], facts["model"]) == (key, RESEARCH_USE, "planted <&>")
    assert facts["region X,Y,WIDTH,HEIGHT in level-0 px"] == "60,100,1100,1300"
    assert facts["top left corner X,Y in level-0 px"] == "60,100"
    with tifffile.TiffFile(path) as file:
        for kept, level in zip(stored.maps["absolute"].levels, file.series[0].levels, strict=True):
            np.testing.assert_array_equal(level.asarray(), kept)


def test_the_other_forms_say_whose_they_are(small_job: Job) -> None:
    paths = export_job(small_job, ["ome-zarr", "geojson", "png"], png_size=1100)
    key = small_job.slides()[0].regions[0].prediction.identity.key
    kept, hotspots, picture = paths
    root = zarr.open_group(kept, mode="r").attrs["streamview"]
    assert (root["note"], root["prediction"]["identity"]["key"]) == (RESEARCH_USE, key)
    document = json.loads(hotspots.read_text())
    assert (document["streamview"]["note"], document["streamview"]["identity"]["key"]) == (RESEARCH_USE, key)
    assert {one["properties"]["metadata"]["note"] for one in document["features"]} == {RESEARCH_USE}
    with Image.open(picture) as image:
        assert max(image.size) <= 1100
        assert RESEARCH_USE in image.text["streamview"]
        assert key in image.text["streamview"]


def test_hotspots_are_ranked_closed_and_as_qupath_takes_them(synthetic_slide: SyntheticSlide, tmp_path: Path) -> None:
    values = np.zeros((200, 300), np.float32)
    values[20:40, 30:60] = 1.0
    values[100:110, 200:210] = 9.0
    values[25:30, 40:50] = 0.0  # a hole
    with open_slide(synthetic_slide.path) as slide:
        maps = planted(values > 0, slide, Region(8, 16, 400, 600), 2, trained=False)
    maps.maps["absolute"] = replace(maps.maps["absolute"], values=values)
    found = find_hotspots(maps, replace(RAW, threshold=0.05))
    assert [(spot.peak, spot.peak_raw) for spot in found] == [(1.0, 9.0), (pytest.approx(1 / 9), 1.0)]
    assert [spot.area for spot in found] == pytest.approx(
        [4 * 10.9**2, 4 * 550], rel=0.03
    )  # at 5% the line runs almost through the next pixels
    assert [spot.area_mm2 for spot in found] == pytest.approx([spot.area * 0.25e-6 for spot in found])
    assert [spot.mass for spot in found] == pytest.approx([900 / 1450, 550 / 1450])
    assert find_hotspots(maps, replace(RAW, threshold=0.05), most=1)[0].peak_raw == 9.0
    document = json.loads(write_hotspots(maps, replace(RAW, threshold=0.05), tmp_path / "a.geojson").read_text())
    first, second = document["features"]
    (ring,) = first["geometry"]["coordinates"]
    assert ring[0] == ring[-1]
    np.testing.assert_allclose([np.min(ring, 0), np.max(ring, 0)], [[415.1, 207.1], [436.9, 228.9]], atol=0.01)
    assert len(second["geometry"]["coordinates"]) == 2
    properties = first["properties"]
    assert (properties["objectType"], properties["name"], properties["isLocked"]) == ("annotation", "Hotspot 1", False)
    assert properties["classification"] == {"name": "lesion", "color": [0xD7, 0xFF, 0x3E]}
    assert list(properties["measurements"]) == ["Rank", "Area mm^2", "Share of the map's mass", "Peak (share of cap)", "Peak (raw)"]
    assert "untrained" in properties["metadata"]["warning"]
    assert first["id"] != second["id"]
    assert document["streamview"]["threshold"] == pytest.approx(0.45)


def test_a_map_without_positive_values_has_no_hotspots(synthetic_slide: SyntheticSlide, tmp_path: Path) -> None:
    with open_slide(synthetic_slide.path) as slide:
        maps = planted(np.ones((20, 30), bool), slide, Region(0, 0, 20, 30), 1)
    path = write_hotspots(maps, replace(RAW, method="signed"), tmp_path / "a.geojson")
    assert json.loads(path.read_text())["features"] == []


def test_cells_that_reach_over_the_region_are_cut_to_it(synthetic_slide: SyntheticSlide) -> None:
    with open_slide(synthetic_slide.path) as slide:
        maps = planted(np.ones((3, 4), bool), slide, Region(10, 20, 80, 100), 32)
    (spot,) = find_hotspots(maps, RAW)
    assert spot.area == 80 * 100
    np.testing.assert_array_equal(spot.polygon.exterior.max(0), (90, 120))


def test_without_mpp_nothing_is_said_in_um(tmp_path: Path) -> None:
    from streamview.slides import as_slide

    maps = planted(np.ones((20, 30), bool), as_slide(np.zeros((20, 30, 3), np.uint8)), Region(0, 0, 20, 30), 1)
    document = json.loads(write_hotspots(maps, RAW, tmp_path / "a.geojson").read_text())
    assert list(document["features"][0]["properties"]["measurements"])[:2] == ["Rank", "Area px^2"]
    with tifffile.TiffFile(write_ome_tiff(maps, "absolute", tmp_path / "a.ome.tif")) as file:
        assert "PhysicalSize" not in file.ome_metadata
        np.testing.assert_array_equal(file.asarray(), np.ones((20, 30)))


def test_ome_tiff_is_written_in_memory_independent_of_the_height(synthetic_slide: SyntheticSlide, tmp_path: Path) -> None:
    def peak(height: int) -> int:
        with open_slide(synthetic_slide.path) as slide:
            maps = planted(np.zeros((height, 1024), bool), slide, Region(0, 0, height, 1024), 1)
        stored = save_saliency(maps, tmp_path / f"{height}.ome.zarr")
        del maps
        tracemalloc.start()
        write_ome_tiff(stored, "absolute", tmp_path / f"{height}.ome.tif")
        memory = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return memory

    peak(1024)  # what is allocated once
    assert peak(8192) < 1.3 * peak(2048)


def test_nothing_is_replaced_and_nothing_half_written_stays(small_job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = export_job(small_job, ["geojson"], out=tmp_path / "out")
    before = written[0].read_bytes()
    with pytest.raises(StreamviewError, match=r"exists already; remove it, or export to another folder with -o"):
        export_job(small_job, out=tmp_path / "out")
    assert written[0].read_bytes() == before
    assert [path for path in (tmp_path / "out").rglob("*") if path.is_file()] == written

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("streamview.export.ometiff._tiles", fail)
    with pytest.raises(StreamviewError, match="the disk is full"):
        export_job(small_job, ["ome-tiff"], out=tmp_path / "full")
    assert [path for path in (tmp_path / "full").rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("form", ["tiff", "zarr", "png"])
def test_an_export_says_how_far_it_is_and_leaves_nothing_when_cancelled(small_job: Job, tmp_path: Path, form: str) -> None:
    (record,) = small_job.slides()
    (result,) = record.regions
    maps = open_saliency(small_job.folder / result.maps[0].path)
    out = tmp_path / "cancelled"
    out.mkdir()

    def write(name: str, report: Report) -> None:
        if form == "tiff":
            write_ome_tiff(maps, "absolute", out / f"{name}.ome.tif", report)
        elif form == "zarr":
            write_ome_zarr(maps, RAW, out / f"{name}.ome.zarr", report)
        else:
            with open_slide(str(result.source)) as slide:
                render_png(slide, maps, RAW, out / f"{name}.png", report=report)

    steps: list[Step] = []
    write("whole", steps.append)
    assert steps[0].done == 0
    assert steps[-1].done == steps[-1].total > 0
    assert all(later.done >= step.done for step, later in pairwise(steps))

    def cancel(step: Step) -> None:
        if step.done:
            raise Cancelled("cancelled")

    with pytest.raises(Cancelled):
        write("stopped", cancel)
    assert [path.name.partition(".")[0] for path in out.iterdir()] == ["whole"]


def test_hostile_records_cannot_choose_where_files_are_read_or_written(small_job: Job, tmp_path: Path) -> None:
    (record,) = (small_job.folder / "slides").glob("*.json")
    good = record.read_text()
    elsewhere = small_job.folder / "saliency"
    values = json.loads(good)
    values["slide_id"] = "../../evil name\n.svs"
    record.write_text(json.dumps(values))
    (path,) = export_job(small_job, ["geojson"], out=tmp_path / "out")
    assert path.resolve().is_relative_to((tmp_path / "out").resolve())
    assert path.parent.name.startswith("_.._evil name_.svs-")
    values["regions"][0]["maps"][0]["path"] = "../outside.ome.zarr"
    shutil.copytree(next(elsewhere.rglob("*.ome.zarr")), tmp_path / "outside.ome.zarr")
    record.write_text(json.dumps(values))
    with pytest.raises(StreamviewError, match="lies outside"):
        export_job(small_job, ["geojson"], out=tmp_path / "again")
    record.write_text(good)
    next(elsewhere.rglob("*.ome.zarr")).joinpath("link").symlink_to(record)
    with pytest.raises(StreamviewError, match="is a link"):
        export_job(small_job, ["ome-zarr"], out=tmp_path / "links")


def test_a_picture_needs_the_slide_that_was_explained(small_job: Job, tmp_path: Path) -> None:
    (record,) = (small_job.folder / "slides").glob("*.json")
    good = record.read_text()
    record.write_text(good.replace('synthetic.svs"', 'gone.svs"'))
    with pytest.raises(StreamviewError, match="is missing, but a picture shows the slide"):
        export_job(small_job, ["png"])
    other = tmp_path / "other.ome.tif"
    tifffile.imwrite(other, np.zeros((600, 600, 3), np.uint8), photometric="rgb", tile=(256, 256))
    values = json.loads(good)
    values["regions"][0]["source"] = str(other)
    record.write_text(json.dumps(values))
    with pytest.raises(StreamviewError, match="is not the slide that the map explains"):
        export_job(small_job, ["png"])
    values["regions"][0]["source"] = None
    record.write_text(json.dumps(values))
    with pytest.raises(StreamviewError, match="was not a file"):
        export_job(small_job, ["png"])


def test_the_command_line(small_job: Job, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job, out = str(small_job.folder), str(tmp_path / "out")
    name = small_job.slides()[0].slide_id
    options = ["--display", "paper", "--blur", "0", "--threshold", "0.5"]
    assert main(["export", job, "--format", "geojson", "png", "--slide", name, "-o", out, "--png-size", "1200", *options]) == 0
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 2
    assert all(line.startswith("written: ") and Path(line.removeprefix("written: ")).is_file() for line in said)
    wrong = [
        (["--slide", "b.svs"], f"has no slide b.svs, only {name}"),
        (["--display", "evidence"], "no evidence map here"),
        (["--threshold", "3"], "a share of the cap, 0 to 1"),
        (["--blur", "nan"], "expected 0 or more"),
        (["--format", "png", "--png-size", "10"], "expected 1100 to 16384 px"),
    ]
    for arguments, message in wrong:
        assert main(["export", job, "-o", str(tmp_path / "wrong"), *arguments]) == 1
        assert message in capsys.readouterr().err
    assert main(["export", str(tmp_path / "none")]) == 1
    assert "has no maps to export" in capsys.readouterr().err


def test_the_maps_of_a_real_run_with_several_targets(
    synthetic_slide: SyntheticSlide, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job, region = tmp_path / "job", "700,500,512,640"
    assert main(["saliency", "-i", str(synthetic_slide.path), "-o", str(job), "-m", "demo", "--region", region, "--target", "all"]) == 0
    assert main(["export", str(job), "--png-size", "1100"]) == 0
    names = sorted(path.name.removeprefix("x700-y500-w512-h640") for path in (job / "export/synthetic.svs").iterdir())
    endings = ["-absolute.ome.tif", "-evidence.geojson", "-evidence.ome.tif", "-evidence.png", "-signed.ome.tif", ".ome.zarr"]
    every = {f"-{target}{ending}" for target in ("0-normal", "1-lesion") for ending in endings}
    assert names == sorted(every - {"-0-normal-evidence.geojson"})  # the card names lesion as the class of interest
    assert "Hotspots are of lesion, the class of interest on the card of demo, and this map explains normal" in capsys.readouterr().err
    assert PRESETS["evidence"].blur_um == 6.0
    place = job / "export/synthetic.svs" / "x700-y500-w512-h640-1-lesion-evidence.geojson"
    for one in read_annotations(place, (1501, 2203)):
        assert all((part.exterior.min(0) >= (500, 700)).all() and (part.exterior.max(0) <= (1140, 1212)).all() for part in one.polygons)
    pictures = sorted(path.name for path in (job / "saliency/synthetic.svs").glob("*.png"))
    assert pictures == [f"x700-y500-w512-h640-{target}-evidence.png" for target in ("0-normal", "1-lesion")]
    assert main(["export", str(job), "--format", "geojson", "-o", str(tmp_path / "again")]) == 0


def test_picture_canvas_and_hotspots_draw_one_shape(synthetic_slide: SyntheticSlide, tmp_path: Path) -> None:
    """A disc that the region's border cuts: the outline of every form runs where the map meets the threshold, open at the border."""
    region = Region(300, 400, 512, 512)
    rows, columns = np.mgrid[:512, :512]
    values = np.clip(1.5 - np.hypot(rows - 256, columns) / 200, 0, 1).astype(np.float32)  # 0.5 at a distance of 200
    with open_slide(synthetic_slide.path) as slide:
        maps = planted(values > 0, slide, region, 1)
        maps.maps["absolute"] = replace(maps.maps["absolute"], values=values)
        recipe = replace(RAW, outline=True, heat=False, glass=False)
        with Image.open(render_png(slide, maps, recipe, tmp_path / "a.png", 2048)) as image:
            left, top, width, height = map(int, image.text["picture"].split(","))
            shown = np.asarray(image)[top : top + height, left : left + width]
    scale = height / 512
    y, x = np.nonzero((abs(shown.astype(int) - (0xFF, 0xE1, 0x4A)) < 8).all(-1))
    y, x = (y + 0.5) / scale - 0.5, (x + 0.5) / scale - 0.5  # px of the map
    np.testing.assert_allclose(np.hypot(y - 256, x), 200, atol=2)  # the line is 3 px wide
    assert x.min() < 1  # and reaches the border
    (spot,) = find_hotspots(maps, recipe)
    corners = spot.polygon.exterior - (300.5, 400.5)
    inner = corners[:, 1] > -0.5
    np.testing.assert_allclose(np.hypot(corners[inner, 0] - 256, corners[inner, 1]), 200, atol=0.1)
    assert spot.area == pytest.approx(np.pi * 200**2 / 2 + 200, rel=0.01)  # closed along the border


def test_hotspots_are_those_of_a_class_of_interest(synthetic_slide: SyntheticSlide, tmp_path: Path) -> None:
    with open_slide(synthetic_slide.path) as slide:
        maps = planted(np.ones((20, 30), bool), slide, Region(0, 0, 20, 30), 1)
    named = replace(maps, prediction=replace(maps.prediction, positive=("lesion",)))
    assert len(find_hotspots(named, RAW)) == 1
    normal = replace(named, target=Target("normal", 0))
    for write in (write_hotspots, write_hotspot_table):
        with pytest.raises(StreamviewError, match=r"Hotspots are of lesion, .*, and this map explains normal: explain lesion for hotspots"):
            write(normal, RAW, tmp_path / "a")
    assert list(tmp_path.iterdir()) == []
    assert len(find_hotspots(replace(maps, target=Target("normal", 0)), RAW)) == 1  # the card names none


def test_hotspots_leave_out_glass_as_pictures_do(synthetic_slide: SyntheticSlide) -> None:
    values = np.ones((40, 60), bool)
    with open_slide(synthetic_slide.path) as slide:
        maps = planted(values, slide, Region(0, 0, 40, 60), 1)
    mask = np.zeros((20, 30), bool)
    mask[:, 15:] = True
    glass = Glass.over_region(mask, maps.prediction.region)
    assert find_hotspots(maps, RAW)[0].area == 40 * 60
    assert find_hotspots(maps, RAW, glass=glass)[0].area == pytest.approx(40 * 30, rel=0.01)
    assert find_hotspots(maps, replace(RAW, glass=False), glass=glass)[0].area == 40 * 60
