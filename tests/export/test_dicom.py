"""DICOM exports: values lie where they were computed, by what pydicom, highdicom and wsidicom read from the files alone."""

from __future__ import annotations

import sys
import tracemalloc
import warnings
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom.sr.codedict import codes
from wsidicom import WsiDicom
from wsidicom.geometry import PointMm

import streamview
from streamview.cli import main
from streamview.errors import StreamviewError
from streamview.export.dicom import Storage, Verdict, read_source, write_annotations, write_dicom, write_parametric_maps, write_report
from streamview.export.dicom import write as writing
from streamview.export.hotspots import find_hotspots
from streamview.export.job import export_job
from streamview.geometry import Region
from streamview.results import RESEARCH_USE, Saliency, SaliencyMap
from streamview.results.maps import Plane
from streamview.review import Session
from streamview.slides import open_slide
from tests.support.dicom import ROTATED, write_dicom_slide
from tests.support.slides import SyntheticSlide
from tests.test_exports import RAW, make_job, planted

CREATED = datetime(2026, 2, 3, 4, 5, 6)
UPRIGHT = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
SHAPE = (1220, 1416)
PLANTED = slice(300, 480), slice(600, 900)  # a black rectangle on the slide, in level-0 px


@pytest.fixture(scope="module")
def pixels() -> NDArray[np.uint8]:
    rgb = np.random.default_rng(0).integers(100, 256, (*SHAPE, 3), np.uint8)
    rgb[PLANTED] = 0
    return rgb


@pytest.fixture(scope="module")
def slide_path(pixels: NDArray[np.uint8], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dicom_slide(tmp_path_factory.mktemp("slide"), pixels, levels=2)


def maps_of(path: Path, region: Region, factor: int) -> Saliency:
    """Maps that are 1 where the slide is black, over blocks of `factor` level-0 px."""
    with open_slide(path) as slide:
        black = (slide.read(Region(0, 0, *slide.shape)) == 0).all(-1)
        blocks = black[region.y : region.y_stop : factor, region.x : region.x_stop : factor]
        return planted(blocks, slide, region, factor)


def onto_source(path: Path, source: Path, shape: tuple[int, int]) -> NDArray[np.float64]:
    """Lay a map on the slide's level 0, from both files' own geometry: NaN where it says nothing."""
    image, slide = hd.imread(path), pydicom.dcmread(source, stop_before_pixels=True)
    matrix = image.get_total_pixel_matrix(apply_real_world_transform=True, apply_voi_transform=False)
    to_slide = hd.spatial.PixelToReferenceTransformer.for_image(image, for_total_pixel_matrix=True)
    to_pixel = hd.spatial.ReferenceToPixelTransformer.for_image(slide, for_total_pixel_matrix=True, round_output=False)
    ratio = np.array(image.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing, float)
    ratio = (ratio / np.array(slide.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing, float)).round(6)
    columns, rows = np.meshgrid(np.arange(matrix.shape[1]), np.arange(matrix.shape[0]))
    centres = to_pixel(to_slide(np.stack([columns.ravel(), rows.ravel()], 1)))
    np.testing.assert_allclose(centres[:, 2], 0, atol=1e-6)
    laid = np.full(shape, np.nan)
    corners = centres[:, 1::-1] - (ratio - 1) / 2  # of the first of the level-0 pixels that a pixel covers
    np.testing.assert_allclose(corners, corners.round(), atol=1e-4)
    for y in range(int(ratio[0])):
        for x in range(int(ratio[1])):
            at_y, at_x = corners.round().astype(int).T
            laid[at_y + y, at_x + x] = matrix.ravel()
    return laid


@pytest.mark.parametrize("values", ["float32", "uint16"])
@pytest.mark.parametrize(
    ("region", "factor", "orientation", "sparse"),
    [
        (Region(0, 0, *SHAPE), 1, ROTATED, False),
        (Region(212, 540, 600, 700), 1, ROTATED, True),
        (Region(212, 540, 600, 720), 4, UPRIGHT, False),
        (Region(36, 24, 1140, 1380), 2, (0.0, 1.0, 0.0, -1.0, 0.0, 0.0), False),
    ],
    ids=["whole", "part of a sparse slide", "part at a coarser mpp", "part of two levels, turned"],
)
def test_a_planted_mask_lies_on_the_same_pixels_of_the_source(
    values, region: Region, factor: int, orientation, sparse: bool, pixels, tmp_path: Path
) -> None:
    path = write_dicom_slide(tmp_path / "slide", pixels, spacing=(0.0005, 0.00025), orientation=orientation, levels=2, sparse=sparse)
    expected = np.full(SHAPE, np.nan)
    window = slice(region.y, region.y_stop), slice(region.x, region.x_stop)
    expected[window] = (pixels == 0).all(-1)[window]
    headers = write_parametric_maps(maps_of(path, region, factor), "absolute", read_source(path), tmp_path, CREATED, Storage(values))
    np.testing.assert_allclose(onto_source(tmp_path / "absolute-0.dcm", path, SHAPE), expected, atol=1e-12)
    for level, header in enumerate(headers):
        image = hd.imread(tmp_path / f"absolute-{level}.dcm")
        matrix = image.get_total_pixel_matrix(apply_real_world_transform=True, apply_voi_transform=False)
        assert image.DimensionOrganizationType == "TILED_FULL"
        assert ("FloatPixelData" in image, "PixelData" in image) == ((values == "float32"), (values == "uint16"))
        window = image.SharedFunctionalGroupsSequence[0].FrameVOILUTSequence[0]  # the usual linear function allows no width below 1
        assert (window.VOILUTFunction, window.WindowWidth > 0) == ("LINEAR_EXACT", True)
        assert (image.SOPInstanceUID, image.FrameOfReferenceUID) == (header.SOPInstanceUID, "1.2.3.3")
        # a coarser level covers the same area: its first pixel's corner is that of the finest
        assert matrix.shape == tuple(-(-side // (factor * 2**level)) for side in region.shape)
        corner = hd.spatial.ImageToReferenceTransformer.for_image(image, for_total_pixel_matrix=True)(np.array([[0.0, 0.0]]))
        first = hd.spatial.ImageToReferenceTransformer.for_image(hd.imread(tmp_path / "absolute-0.dcm"), for_total_pixel_matrix=True)
        np.testing.assert_allclose(corner, first(np.array([[0.0, 0.0]])), atol=1e-9)


def test_every_tile_and_level_holds_the_maps_raw_values(slide_path: Path, tmp_path: Path) -> None:
    region = Region(10, 20, 1130, 1200)
    saliency = maps_of(slide_path, region, 1)
    values = np.random.default_rng(1).normal(size=region.shape).astype(np.float32)
    values[500:520, 1000:1100] = np.nan
    saliency.maps["signed"] = replace(saliency.maps["signed"], values=Plane(values))
    source = read_source(slide_path)
    headers = write_parametric_maps(saliency, "signed", source, tmp_path, CREATED)
    assert [(one.TotalPixelMatrixRows, one.TotalPixelMatrixColumns) for one in headers] == [(1130, 1200), (565, 600), (283, 300)]
    assert len({one.SeriesInstanceUID for one in headers}) == len({one.PyramidUID for one in headers}) == 1
    assert [one.InstanceNumber for one in headers] == [1, 2, 3]
    for level in range(3):
        image = hd.imread(tmp_path / f"signed-{level}.dcm")
        matrix = image.get_total_pixel_matrix(apply_real_world_transform=False, apply_voi_transform=False)
        np.testing.assert_array_equal(matrix, values)
        values = streamview.results.maps.halve(values)
    write_parametric_maps(saliency, "signed", source, tmp_path, CREATED, Storage("uint16", (0,)))
    image = hd.imread(tmp_path / "signed-0.dcm")
    stored = image.get_total_pixel_matrix(apply_real_world_transform=False, apply_voi_transform=False)
    (mapping,) = image.SharedFunctionalGroupsSequence[0].RealWorldValueMappingSequence
    raw = np.asarray(saliency.maps["signed"].values)
    assert ((stored == 0) == np.isnan(raw)).all()
    assert (mapping.RealWorldValueFirstValueMapped, mapping.RealWorldValueLastValueMapped) == (1, 65535)
    step = (np.nanmax(raw) - np.nanmin(raw)) / 65534
    real = stored * mapping.RealWorldValueSlope + mapping.RealWorldValueIntercept
    assert np.nanmax(np.abs(np.where(stored == 0, np.nan, real) - raw)) <= step / 2 * 1.001


def test_levels_are_chosen(slide_path: Path, tmp_path: Path) -> None:
    saliency, source = maps_of(slide_path, Region(0, 0, *SHAPE), 1), read_source(slide_path)
    (header,) = write_parametric_maps(saliency, "absolute", source, tmp_path, CREATED, Storage(levels=(1,)))
    assert (header.TotalPixelMatrixRows, "PyramidUID" in header) == (610, False)
    assert [path.name for path in tmp_path.iterdir()] == ["absolute-1.dcm"]
    (header,) = write_parametric_maps(saliency, "absolute", source, tmp_path, CREATED, Storage(levels=(9,)))
    assert (header.TotalPixelMatrixRows, source.header.TotalPixelMatrixRows) == (305, SHAPE[0])
    with pytest.raises(StreamviewError, match="expected one or more, 0 the finest"):
        Storage(levels=())


class Rows:
    """Values that exist only while they are read."""

    def __init__(self, shape: tuple[int, int]) -> None:
        self.shape = shape

    def __getitem__(self, key: tuple[slice, slice]) -> NDArray[np.float32]:
        rows, columns = (range(*part.indices(side)) for part, side in zip(key, self.shape, strict=True))
        return np.add.outer(np.array(rows, np.float32), np.array(columns, np.float32))


def test_a_stored_map_is_never_held_whole(slide_path: Path, tmp_path: Path) -> None:
    saliency, source = maps_of(slide_path, Region(0, 0, *SHAPE), 1), read_source(slide_path)
    levels = [Plane(Rows((8192 >> level, 4096 >> level))) for level in range(5)]
    saliency.maps["absolute"] = SaliencyMap("absolute", levels[0], (1.0, 1.0), (0.0, 0.0), tuple(levels[1:]))
    write_parametric_maps(saliency, "absolute", source, tmp_path, CREATED, Storage(levels=(4,)))  # what highdicom loads once
    tracemalloc.start()
    write_parametric_maps(saliency, "absolute", source, tmp_path, CREATED, Storage(levels=(0,)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (tmp_path / "absolute-0.dcm").stat().st_size > levels[0].nbytes == 2**27
    assert peak < levels[0].nbytes / 3


def test_the_source_and_the_exports_open_side_by_side(slide_path: Path, tmp_path: Path) -> None:
    region = Region(212, 540, 600, 700)
    saliency, source = maps_of(slide_path, region, 1), read_source(slide_path)
    folder = write_dicom(saliency, RAW, source, tmp_path / "out", CREATED)
    assert {path.name for path in folder.iterdir()} == {
        *("absolute-0.dcm", "absolute-1.dcm", "signed-0.dcm", "signed-1.dcm", "hotspots.dcm", "report.dcm")
    }
    image = hd.imread(folder / "absolute-0.dcm")
    matrix = image.get_total_pixel_matrix(apply_real_world_transform=False, apply_voi_transform=False)
    rows, columns = np.nonzero(matrix)
    to_slide = hd.spatial.PixelToReferenceTransformer.for_image(image, for_total_pixel_matrix=True)
    first, last = (PointMm(*to_slide(np.array([[each(columns), each(rows)]]))[0, :2].tolist()) for each in (np.min, np.max))
    with WsiDicom.open([*slide_path.parent.iterdir(), *folder.iterdir()]) as wsi:
        assert (wsi.size.height, wsi.size.width) == SHAPE
        (annotations,) = wsi.annotations
        (group,) = annotations.groups
        (hotspot,) = group.annotations
        level = wsi.levels[0]
        system = level.default_instance.image_coordinate_system
        assert system is not None
        at = [system.slide_to_image(point) for point in (first, last)]
        (left, top), (right, bottom) = ((round(p.x / level.pixel_spacing.width), round(p.y / level.pixel_spacing.height)) for p in at)
        assert (slice(top, bottom + 1), slice(left, right + 1)) == PLANTED
        around = np.asarray(wsi.read_region((left - 1, top - 1), 0, (right - left + 3, bottom - top + 3)).convert("RGB"))
    black = (around == 0).all(-1)
    assert black[1:-1, 1:-1].all()
    assert black.sum() == black[1:-1, 1:-1].size
    # outlines run where the map meets half of its largest value, on the border of the black rectangle
    coordinates = np.array([(point[0], point[1]) for point in hotspot.geometry.to_coords()])
    spacing = np.array([0.0005, 0.0005])
    in_pixels = coordinates / spacing if coordinates.max() < 10 else coordinates
    np.testing.assert_allclose(in_pixels.min(0), (600, 300), atol=1e-3)
    np.testing.assert_allclose(in_pixels.max(0), (900, 480), atol=1e-3)


def test_hotspots_carry_their_measurements(slide_path: Path, tmp_path: Path) -> None:
    saliency, source = maps_of(slide_path, Region(212, 540, 600, 700), 1), read_source(slide_path)
    hotspots = find_hotspots(saliency, RAW)
    write_annotations(saliency, RAW, hotspots, source, tmp_path / "hotspots.dcm", CREATED)
    read = hd.ann.annread(tmp_path / "hotspots.dcm")
    (group,) = read.get_annotation_groups()
    (outline,) = group.get_graphic_data("2D")
    np.testing.assert_allclose(outline[:, ::-1], hotspots[0].polygon.exterior, atol=1e-3)
    names, measured, units = group.get_measurements()
    assert [name.meaning for name in names] == ["Area", "Share of the map's mass", "Peak, share of the display's cap", "Peak, raw"]
    assert units[0] == codes.UCUM.SquareMillimeter
    np.testing.assert_allclose(measured[0], [180 * 300 * 0.0005**2, 1, 1, 1], rtol=1e-3)
    assert (read.PixelOriginInterpretation, read.ReferencedImageSequence[0].ReferencedSOPInstanceUID) == ("VOLUME", "1.2.3.4.1")
    assert group.algorithm_identification is not None
    assert (group.algorithm_identification.version, group.algorithm_identification.name) == ("ab" * 32, "planted <&>")


def test_the_report_says_what_was_answered_for_what_and_by_whom(slide_path: Path, tmp_path: Path) -> None:
    region = Region(212, 540, 600, 700)
    saliency, source = maps_of(slide_path, region, 1), read_source(slide_path)
    maps = write_parametric_maps(saliency, "absolute", source, tmp_path, CREATED)
    verdicts = [Verdict("reader-1", "unaided", "normal", 2), Verdict("reader-1", "aided", "Läsion")]
    write_report(replace(saliency.prediction, trained=False), source, tmp_path / "report.dcm", CREATED, maps=maps, verdicts=verdicts)
    report = hd.sr.srread(tmp_path / "report.dcm")
    assert (report.SOPClassUID.name, report.StudyInstanceUID) == ("Comprehensive 3D SR Storage", "1.2.3.1")
    (answer,) = report.content.get_planar_roi_measurement_groups()
    corners = answer.roi.value
    slide = pydicom.dcmread(slide_path, stop_before_pixels=True)
    to_image = hd.spatial.ReferenceToImageTransformer.for_image(slide, for_total_pixel_matrix=True)
    in_pixels = to_image(np.asarray(corners))[:, :2]
    np.testing.assert_allclose([in_pixels.min(0), in_pixels.max(0)], [(540, 212), (1240, 812)], atol=0.01)  # float32 mm
    assert answer.roi.frame_of_reference_uid == slide.FrameOfReferenceUID
    measured = {one.name.meaning: one.value for one in answer.get_measurements()}
    assert measured == pytest.approx(
        {"Probability of normal": 0.1192, "Logit of normal": 0, "Probability of lesion": 0.8808, "Logit of lesion": 2}, abs=1e-4
    )
    assert answer.finding_type.meaning == "lesion"
    texts = " ".join(str(item.value) for item in answer[0].ContentSequence if item.ValueType == "TEXT")
    assert all(each in texts for each in (RESEARCH_USE, "random", "ab" * 32, saliency.prediction.identity.key, "trained = no"))
    groups = report.content.get_image_measurement_groups()
    measured = []
    for group in groups:
        (reading,) = (one.value.meaning for one in group.get_qualitative_evaluations() if one.name.meaning == "Reading")
        (reader,) = [item.value for item in group[0].ContentSequence if item.ValueType == "PNAME"]
        measured.append((str(reader), reading, group.finding_type.meaning, [one.value for one in group.get_measurements()]))
    assert measured == [("reader-1", "unaided", "normal", [2]), ("reader-1", "aided", "Läsion", [])]
    evidence = {
        instance.ReferencedSOPInstanceUID
        for study in report.CurrentRequestedProcedureEvidenceSequence
        for series in study.ReferencedSeriesSequence
        for instance in series.ReferencedSOPSequence
    }
    assert evidence == {"1.2.3.4.1", *(one.SOPInstanceUID for one in maps)}
    shown = [item for item in answer[0].ContentSequence if item.ValueType == "IMAGE"]
    assert [item.referenced_sop_instance_uid for item in shown] == [one.SOPInstanceUID for one in maps]
    with pytest.raises(StreamviewError, match="expected unaided or aided"):
        Verdict("reader-1", "blind", "normal")  # type: ignore[arg-type]


def test_a_report_of_several_classes_or_of_values(slide_path: Path, tmp_path: Path) -> None:
    prediction, source = maps_of(slide_path, Region(212, 540, 600, 700), 1).prediction, read_source(slide_path)
    findings = {}
    for task, logits in (("multilabel", (1, 2)), ("multilabel", (-1, -2)), ("regression", (0.5, 7))):
        answer = replace(prediction, task=task, logits=np.array(logits, np.float32))
        write_report(answer, source, tmp_path / "report.dcm", CREATED)
        (group,) = hd.sr.srread(tmp_path / "report.dcm").content.get_planar_roi_measurement_groups()
        assert group.finding_type is None
        present = [one.value.meaning for one in group.get_qualitative_evaluations() if one.name.meaning == "Class present"]
        findings[task, logits] = (present, len(group.get_measurements()))
    assert list(findings.values()) == [(["normal", "lesion"], 4), ([], 4), ([], 2)]


def test_identities_are_the_slides_and_the_bytes_the_same_each_time(slide_path: Path, tmp_path: Path) -> None:
    saliency, source = maps_of(slide_path, Region(212, 540, 600, 700), 1), read_source(slide_path)
    one, other = (write_dicom(saliency, RAW, source, tmp_path / name, CREATED) for name in ("one", "other"))
    for path in one.iterdir():
        assert path.read_bytes() == (other / path.name).read_bytes(), path.name
        header = pydicom.dcmread(path)
        assert (str(header.PatientName), header.PatientID, header.StudyInstanceUID) == ("Müller^Änne", "P1", "1.2.3.1")
        assert RESEARCH_USE in header.SeriesDescription
    everything = [pydicom.dcmread(path).SOPInstanceUID for path in one.iterdir()]
    assert len(set(everything)) == len(everything)
    later = write_dicom(saliency, RAW, source, tmp_path / "later", CREATED, storage=Storage("uint16"))
    assert {pydicom.dcmread(path).SOPInstanceUID for path in later.glob("a*")}.isdisjoint(everything)


def test_what_fails_leaves_nothing(slide_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saliency, source = maps_of(slide_path, Region(212, 540, 600, 700), 1), read_source(slide_path)

    def fail(*_args: object, **_options: object) -> None:
        raise StreamviewError("in between")

    monkeypatch.setattr(writing, "write_report", fail)
    with pytest.raises(StreamviewError, match="in between"):
        write_dicom(saliency, RAW, source, tmp_path / "out", CREATED)
    assert list(tmp_path.iterdir()) == []


def test_the_command_exports_a_jobs_maps_as_dicom(slide_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    region = Region(212, 540, 600, 700)
    make_job(tmp_path / "job", slide_path, region, np.ones((600, 700), bool), 1)
    command = ["export", str(tmp_path / "job"), "--format", "dicom", "-o", str(tmp_path / "out")]
    assert main([*command, "--dicom-values", "uint16", "--dicom-levels", "1"]) == 0
    (folder,) = (tmp_path / "out" / "level-0.dcm").iterdir()
    assert folder.name.endswith(".dicom")
    assert {path.name for path in folder.glob("[as]*")} == {"absolute-1.dcm", "signed-1.dcm"}
    assert "PixelData" in pydicom.dcmread(folder / "absolute-1.dcm")
    capsys.readouterr()
    assert main(command) == 1
    assert "exists already" in capsys.readouterr().err


def test_a_slide_that_is_not_dicom_is_refused_before_anything_is_written(
    synthetic_slide: SyntheticSlide, slide_path: Path, tmp_path: Path
) -> None:
    job = make_job(tmp_path / "job", synthetic_slide.path, Region(0, 0, 64, 64), np.ones((64, 64), bool), 1)
    with pytest.raises(StreamviewError, match=r"is not a DICOM slide .*never invented: leave out the format dicom"):
        export_job(job, ("ome-tiff", "dicom"))
    assert not (tmp_path / "job" / "export").exists()
    saliency = maps_of(slide_path, Region(0, 0, 64, 64), 1)
    other = replace(saliency.prediction.identity, source="another")
    for refused in (
        lambda: write_parametric_maps(
            replace(saliency, prediction=replace(saliency.prediction, identity=other)),
            "absolute",
            read_source(slide_path),
            tmp_path,
            CREATED,
        ),
        lambda: write_report(replace(saliency.prediction, identity=other), read_source(slide_path), tmp_path / "report.dcm", CREATED),
    ):
        with pytest.raises(StreamviewError, match="another slide"):
            refused()


def test_a_slide_without_a_frame_of_reference_is_refused(pixels: NDArray[np.uint8], tmp_path: Path) -> None:
    path = write_dicom_slide(tmp_path, pixels[:256, :256])
    header = pydicom.dcmread(path)
    del header.FrameOfReferenceUID, header.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence
    header.save_as(path)
    with pytest.raises(StreamviewError, match="has no FrameOfReferenceUID, PixelSpacing, which its DICOM exports must share"):
        read_source(path)


def test_without_the_extra_the_remedy_is_named(slide_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "highdicom", None)
    with pytest.raises(StreamviewError, match=r"needs highdicom: pip install 'streamview\[dicom\]'"):
        read_source(slide_path)


@pytest.mark.parametrize("name", ["camelyon_multiframe.dcm", "boxes_0.dcm", "boxes_1.dcm"])
def test_real_slides_carry_maps_on_their_pixels(name: str, shared_data: Path, tmp_path: Path) -> None:
    path = shared_data / "slides" / name
    with open_slide(path) as slide:
        shape = slide.shape
        region = Region(0, 0, *shape) if min(shape) < 100 else Region(64, 128, 512, 640)
        mask = np.random.default_rng(2).random((region.height // 2, region.width // 2)) < 0.3
        saliency = planted(mask, slide, region, 2)
    source = read_source(path)
    assert source.header.SOPInstanceUID == slide.properties["dicom.SOPInstanceUID"]
    folder = write_dicom(saliency, RAW, source, tmp_path / "out", CREATED)
    expected = np.full(shape, np.nan)
    expected[region.y : region.y_stop, region.x : region.x_stop] = np.kron(mask, np.ones((2, 2)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a UID of the slide is longer than the standard allows
        reference = tmp_path / "source.dcm"  # the slide with the origin that the exports take it to have
        source.header.save_as(reference)
        np.testing.assert_array_equal(onto_source(folder / "absolute-0.dcm", reference, shape), expected)
        for each in folder.iterdir():
            assert pydicom.dcmread(each).StudyInstanceUID == source.header.StudyInstanceUID


def test_a_review_session_is_exported_as_reports(slide_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job, session = tmp_path / "job", tmp_path / "session.sqlite"
    make_job(job, slide_path, Region(212, 540, 600, 700), np.ones((600, 700), bool), 1)
    assert main(["review", "new", str(job), "-o", str(session), "--readers", "a,b"]) == 0
    with Session(session) as opened:
        reader = opened.reader("b")
        step = reader.current()
        assert step is not None
        reader.decide(step, "lesion", 4, seconds=9)
    command = ["review", "export", str(session), "-o", str(tmp_path / "v.csv"), "--dicom", str(tmp_path / "reports")]
    capsys.readouterr()
    assert main(command) == 1
    assert "give --names too" in capsys.readouterr().err
    assert not (tmp_path / "v.csv").exists()
    assert main([*command, "--names"]) == 0
    (path,) = (tmp_path / "reports").iterdir()
    assert path.name == f"{step.case}.dcm"
    (group,) = hd.sr.srread(path).content.get_image_measurement_groups()
    assert (group.tracking_identifier, group.finding_type.meaning) == ("verdict of b, unaided", "lesion")
    assert [one.value for one in group.get_measurements()] == [4]
    assert main([*command[:4], str(tmp_path / "w.csv"), *command[5:], "--names"]) == 1
    assert "exists; choose another name" in capsys.readouterr().err
