"""Real windows: the sections for display, hotspots and export over a job's maps."""

from __future__ import annotations

import csv
import json
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage
from streamview_napari.records import MapLayer, expect_map, map_on, note, slide_on

from streamview.export.hotspots import Hotspot
from streamview.jobs import Job, RegionResult, StoredMap
from streamview.labels.annotations import Polygon
from streamview.results import Saliency, Target, open_saliency, save_saliency
from streamview.results.display import PALETTES, PRESETS
from streamview.slides import open_slide
from streamview.slides.synthetic import write_synthetic_slide
from tests.support.maps import make_maps
from tests.support.real_window import REAL_WINDOW

pytestmark = REAL_WINDOW
MPP, STEP, PLACE = 0.5, 2, (200, 304)
SPOTS = ((150, 160, 40.0), (420, 380, 22.0))  # row, column and width in px of the maps, the larger one first


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A job whose maps have two round spots, on a grid of two level-0 pixels."""
    folder = tmp_path_factory.mktemp("job")
    write_synthetic_slide(folder / "planted.svs", size=(1536, 1536), mpp=MPP, seed=3)
    rows, columns = np.mgrid[:640, :512]
    values = sum(np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / 2 / width**2) for y, x, width in SPOTS)
    noise = np.random.default_rng(0).normal(size=values.shape)
    with open_slide(folder / "planted.svs") as slide:
        made = make_maps(values * (1 + 0.5 * noise), mpp=(2 * MPP, 2 * MPP), place=PLACE, step=STEP, source=slide.identity)
    job = Job(folder / "job")
    path = job.saliency_path("planted.svs", made.prediction.region)
    save_saliency(made, path)
    stored = StoredMap(str(path.relative_to(job.folder)))
    job.add(RegionResult(made.prediction, "run", maps=(stored,), source=str(folder / "planted.svs")))
    job.write_tables()
    return job.folder


@pytest.fixture
def shell(window: Callable[[Any], Any], job: Path, qtbot: Any) -> Any:
    """A window on the job, with the three sections."""
    import napari
    from streamview_napari.panels.display import DisplaySection
    from streamview_napari.panels.export import ExportSection
    from streamview_napari.panels.hotspots import HotspotSection
    from streamview_napari.state import State
    from streamview_napari.view import add_layers

    viewer = window(napari.Viewer(show=True))
    add_layers(viewer, str(job))

    class Shell:
        pass

    shell = Shell()
    shell.viewer, shell.state = viewer, State(viewer)
    shell.display, shell.hotspots, shell.export = (
        section(viewer, shell.state) for section in (DisplaySection, HotspotSection, ExportSection)
    )
    for section in (shell.display, shell.hotspots, shell.export):
        qtbot.addWidget(section)
    yield shell
    for section in (shell.display, shell.hotspots, shell.export):
        section.release()
    shell.state.close()
    for layer in list(viewer.layers):
        slide = slide_on(layer)
        if slide is not None:
            slide.source.close()


def record(shell: Any) -> MapLayer:
    return expect_map(shell.state.map_layer)


def settled(shell: Any, qtbot: Any) -> None:
    qtbot.waitUntil(lambda: not shell.display._later.isActive(), timeout=5000)
    qtbot.wait(20)


def drawn(shell: Any, qtbot: Any) -> np.ndarray:
    qtbot.wait(150)
    return np.asarray(shell.viewer.screenshot(canvas_only=True, flash=False))[..., :3].astype(int)


@pytest.mark.slow
def test_every_display_control_acts_at_once_and_alone(shell: Any, qtbot: Any, screenshots: Path) -> None:
    display, viewer = shell.display, shell.viewer
    qtbot.waitUntil(lambda: record(shell).shown.glass is not None, timeout=10_000)  # looked for in a thread
    assert record(shell).recipe.method == "evidence"
    viewer.scene.camera.zoom *= 1.5

    # Map: another layer, in place of this one.
    display.map.setCurrentIndex(display.map.findText("Gradient x input (detail)"))
    display.map.activated.emit(display.map.currentIndex())
    assert record(shell).recipe.method == "signed"
    assert [layer.visible for layer in viewer.layers if map_on(layer) is not None] == [False, True, False]
    recipe = PRESETS["detail"]
    assert record(shell).recipe == recipe
    assert display.blur.value() == 3.0
    assert display.blur_px.text() == "3 px"
    assert display.badge.text() == "Blurred over 3 px"

    changes: list[tuple[Callable[[], Any], dict[str, Any]]] = [
        (lambda: display.blur.setValue(6.5), {"blur_um": 6.5}),
        (lambda: display.threshold.setValue(35), {"threshold": 0.35}),
        (lambda: display.cap.setValue(97.0), {"cap_percentile": 97.0}),
        (lambda: display.opacity.setValue(0.9), {"opacity": 0.9}),
        (lambda: display.kind.button(0).click(), {"heat": False}),
        (lambda: display.kind.button(1).click(), {"heat": True, "outline": False}),
        (lambda: display.kind.button(2).click(), {"outline": True}),
        (lambda: display.glass.setChecked(False), {"glass": False}),
    ]
    before = drawn(shell, qtbot)
    for change, expected in changes:
        change()
        settled(shell, qtbot)
        recipe = replace(recipe, **expected)
        assert record(shell).recipe == recipe, expected
        after = drawn(shell, qtbot)
        if "glass" not in expected:  # the planted spots lie on tissue
            assert (np.abs(after - before).sum(-1) > 10).sum() > 200, expected
        before = after
    display.colours.setCurrentText("viridis")
    display.colours.activated.emit(display.colours.currentIndex())
    settled(shell, qtbot)
    recipe = replace(recipe, colours=PALETTES["viridis"])
    assert record(shell).recipe == recipe
    assert display.blur_px.text() == "6.5 px"

    # napari's own controls and these stay in step.
    shell.state.map_layer.opacity = 0.3
    assert display.opacity.value() == pytest.approx(0.3)
    for shortcut in display.shortcuts():
        if shortcut.name == "opacity_up":
            shortcut.press()
    settled(shell, qtbot)
    assert shell.state.map_layer.opacity == pytest.approx(0.35)

    # One scale: other maps of the kind get this one's cap; without it they have their own again.
    cap = record(shell).cap
    display.lock.setChecked(True)
    assert record(shell).recipe.cap == cap
    assert not display.cap.isEnabled()
    display.lock.setChecked(False)
    assert record(shell).recipe.cap is None

    display.reset.click()
    settled(shell, qtbot)
    assert record(shell).recipe == PRESETS["detail"]
    viewer.cursor.position = tuple(np.array(PLACE) * MPP + 2 * MPP * np.array(SPOTS[0][:2]))
    qtbot.waitUntil(lambda: "raw" in display.readout.text(), timeout=3000)
    assert "lesion: p = 0.881" in display.readout.text()
    Image.fromarray(viewer.screenshot(canvas_only=False, flash=False)).save(screenshots / "display.png")


def spot_place(number: int) -> np.ndarray:
    """Centre of a spot in the world: its pixel, from the map's own placement on the slide."""
    return (np.array(PLACE) + (STEP - 1) / 2 + STEP * np.array(SPOTS[number][:2])) * MPP


def test_hotspots_are_ranked_and_flown_to(shell: Any, qtbot: Any, screenshots: Path) -> None:
    from qtpy.QtCore import Qt
    from qtpy.QtTest import QTest
    from streamview_napari.panels.hotspots import field_around

    hotspots, camera, canvas = shell.hotspots, shell.viewer.scene.camera, shell.viewer.canvas
    hotspots.resize(340, 300)
    hotspots.show()
    notes: list[str] = []
    hotspots.note_changed.connect(notes.append)
    qtbot.waitUntil(lambda: hotspots.table.rowCount() == len(SPOTS), timeout=10_000)
    shares = [float(hotspots.table.item(row, 3).text().rstrip("%")) for row in range(2)]
    assert shares[0] > shares[1]
    area = float(hotspots.table.item(0, 2).text())
    assert 0 < area < 640 * 512 * (2 * MPP / 1000) ** 2
    peak = hotspots.hotspots[0]
    assert hotspots.table.item(0, 1).text() == f"{peak.peak:.2f}"
    assert hotspots.table.item(0, 1).toolTip() == f"peak {peak.peak:.3g} of the cap, raw {peak.peak_raw:.3g}"
    following, before = hotspots.shortcuts()
    for press, number in ((following, 0), (following, 1), (following, 0), (before, 1)):
        press.press()
        np.testing.assert_allclose(camera.center[-2:], spot_place(number), atol=16 * STEP * MPP)  # evidence has pixels of 16
    assert hotspots.table.currentRow() == 1

    # By mouse, then by keys: the same flight, at a magnification that is said.
    camera.center, camera.zoom = (0.0, 0.0, 0.0), 0.1
    row = hotspots.table.visualItemRect(hotspots.table.item(0, 1)).center()
    QTest.mouseClick(hotspots.table.viewport(), Qt.MouseButton.LeftButton, pos=row)
    np.testing.assert_allclose(camera.center[-2:], spot_place(0), atol=16 * STEP * MPP)
    clicked = camera.zoom
    expected = field_around(hotspots.hotspots[0], (MPP, MPP), min(canvas.size))
    assert camera.zoom == pytest.approx(expected.zoom)
    assert notes[-1] == f"2 found; {expected}"
    camera.center, camera.zoom = (0.0, 0.0, 0.0), 0.1
    QTest.keyClick(hotspots.table, Qt.Key.Key_Return)
    np.testing.assert_allclose(camera.center[-2:], spot_place(0), atol=16 * STEP * MPP)
    assert camera.zoom == clicked
    QTest.keyClick(hotspots.table, Qt.Key.Key_Down)
    QTest.keyClick(hotspots.table, Qt.Key.Key_Return)
    np.testing.assert_allclose(camera.center[-2:], spot_place(1), atol=16 * STEP * MPP)
    Image.fromarray(shell.viewer.screenshot(canvas_only=False, flash=False)).save(screenshots / "hotspot-flight.png")
    hotspots.grab().save(str(screenshots / "hotspots.png"))
    shell.display.threshold.setValue(90)
    qtbot.waitUntil(lambda: float(hotspots.table.item(0, 2).text()) < area, timeout=10_000)


@pytest.mark.parametrize(
    ("size_um", "mpp", "canvas", "power", "side"),
    [
        (100, 0.25, 800, 20, 400),  # small: 20x
        (100, 0.5, 800, 20, 400),  # whatever the slide's resolution
        (500, 0.25, 800, 10, 800),  # does not fit at 20x
        (2000, 0.25, 800, 10 * 800 / 2400, 2400),  # nor at 10x: as large as it fits
        (100, 0.25, 400, 10, 400),  # on a small canvas 20x would show less than 250 um
        (100, 0.25, 200, 8, 250),
    ],
)
def test_a_flight_ends_at_a_stated_field(size_um: float, mpp: float, canvas: float, power: float, side: float) -> None:
    from streamview_napari.panels.hotspots import field_around

    ring = np.array([[0, 0], [0, 1], [1, 1], [1, 0]]) * size_um / mpp + (1000.5, 2000.5)
    field = field_around(Hotspot(Polygon(ring), 1.0, None, 0.5, 1.0, 3.0, (0.0, 0.0)), (mpp, mpp), canvas)
    assert (field.power, field.side) == pytest.approx((power, side))
    assert canvas / field.zoom == pytest.approx(side)
    np.testing.assert_allclose(field.centre, np.array((1000, 2000)) * mpp + size_um / 2)
    assert str(field) == f"{power:.2g}x, field {side:.0f} µm"
    assert str(field_around(Hotspot(Polygon(ring), 1.0, None, 0.5, 1.0, 3.0, (0.0, 0.0)), None, canvas)).endswith(" px")


@pytest.mark.slow
def test_a_class_that_is_not_of_interest_has_no_hotspots(shell: Any, qtbot: Any) -> None:
    hotspots, layer = shell.hotspots, shell.state.map_layer
    qtbot.waitUntil(lambda: hotspots.table.rowCount() == len(SPOTS), timeout=10_000)
    record = expect_map(layer)
    prediction = replace(record.saliency.prediction, positive=("lesion",))
    normal = replace(record.saliency, prediction=prediction, target=Target("normal", 0))
    note(layer, replace(record, saliency=normal))
    shell.state.select_map(None)
    shell.state.select_map(layer)
    qtbot.waitUntil(lambda: "this map explains normal: explain lesion" in hotspots.message.text(), timeout=5000)
    assert not hotspots.table.isVisibleTo(hotspots)
    assert hotspots.table.rowCount() == 0
    hotspots.step(1)  # flies nowhere


def test_exports_are_reloaded_in_place(shell: Any, qtbot: Any, tmp_path: Path) -> None:
    import tifffile
    from napari.components import ViewerModel
    from streamview_napari.view import add_layers

    display = shell.display
    display.blur.setValue(9.0)
    display.threshold.setValue(40)
    display.glass.setChecked(False)  # is looked for on the slide, which the export does not hold
    settled(shell, qtbot)
    recipe = record(shell).recipe
    forms = {"view": "a.png", "picture": "b.png", "ome-tiff": "c.ome.tif", "ome-zarr": "d.ome.zarr", "geojson": "e.geojson", "csv": "f.csv"}
    for form, name in forms.items():
        with qtbot.waitCallback(timeout=20_000) as written:
            shell.export.export(form, tmp_path / name, done=written)
        assert not shell.export.problem.isVisibleTo(shell.export)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(forms.values())  # nothing half-written is left

    # OME-Zarr: the same values, the same place in the world, the same display.
    made: Saliency = record(shell).saliency
    again = ViewerModel()
    add_layers(again, str(tmp_path / "d.ome.zarr"))
    layer, original = again.layers[-1], shell.state.map_layer
    np.testing.assert_allclose(layer.extent.world, original.extent.world)
    assert expect_map(layer).recipe == recipe
    np.testing.assert_array_equal(np.asarray(layer.data), np.asarray(original.data))
    assert open_saliency(tmp_path / "d.ome.zarr").prediction.identity == made.prediction.identity

    # OME-TIFF: the peak by the file's own placement is where the spot is in the world.
    with tifffile.TiffFile(tmp_path / "c.ome.tif") as file:
        values = file.series[0].asarray()
        np.testing.assert_array_equal(values, np.asarray(made.maps["evidence"].values))
    # GeoJSON: the first hotspot lies around the larger spot, level-0 pixels by the map layer's own placement.
    document = json.loads((tmp_path / "e.geojson").read_text())
    ring = np.array(document["features"][0]["geometry"]["coordinates"][0])[:-1, ::-1]
    centre = (ring.min(0) + ring.max(0)) / 2 - 0.5
    truth = np.array(PLACE) + (STEP - 1) / 2 + STEP * np.array(SPOTS[0][:2])
    np.testing.assert_allclose(centre, truth, atol=16 * STEP)
    world = centre * MPP
    y, x = (round(float(at)) for at in original.world_to_data(world))
    assert np.asarray(original.data)[y, x] >= 90
    with (tmp_path / "f.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["rank"] for row in rows] == [str(rank) for rank in range(1, len(document["features"]) + 1)]
    assert rows[0]["note"].startswith("Research use only")
    assert float(rows[0]["area_mm2"]) == pytest.approx(document["features"][0]["properties"]["measurements"]["Area mm^2"], rel=1e-4)
    seen = Image.open(tmp_path / "a.png")
    assert seen.size[0] > 300
    assert made.prediction.identity.key in seen.text["streamview"]

    # What cannot be written is said as text, and leaves nothing behind.
    shell.export.export("csv", "/proc/no/f.csv")
    qtbot.waitUntil(lambda: shell.export.problem.text() != "", timeout=5000)
    assert shell.export.save.isEnabled()
    shell.export.copy_python()
    assert "does not say how" in shell.export.problem.text()
    shell.export.about.click()
    assert shell.export.sheet.isVisible()


def test_an_export_shows_its_progress_and_is_cancelled(shell: Any, qtbot: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from qtpy.QtCore import Qt
    from qtpy.QtTest import QTest
    from qtpy.QtWidgets import QFileDialog

    from streamview.export import ometiff

    export, tiles = shell.export, ometiff._tiles
    export.show()
    format = export.controls["format"].native
    format.setFocus()
    QTest.keyClicks(format, "OME-T")
    assert "QuPath" in format.toolTip()
    gate = threading.Event()

    def slowed(*what: Any) -> Any:
        gate.wait(30)
        yield from tiles(*what)

    monkeypatch.setattr(ometiff, "_tiles", slowed)
    monkeypatch.setattr(QFileDialog, "getSaveFileName", lambda *asked: (str(tmp_path / asked[2]), ""))
    QTest.mouseClick(export.save, Qt.MouseButton.LeftButton)
    assert not export.save.isVisible()
    qtbot.waitUntil(lambda: export.bar.isVisible() and export.bar.maximum() > 0, timeout=20_000)
    assert export.message.text().startswith("Writing OME-TIFF of lesion to planted-lesion-evidence.ome.tif, ")
    QTest.mouseClick(export.cancel, Qt.MouseButton.LeftButton)
    gate.set()
    qtbot.waitUntil(export.save.isVisible, timeout=20_000)
    assert export.message.text() == "Cancelled: planted-lesion-evidence.ome.tif is not written."
    assert not export.bar.isVisible()
    assert list(tmp_path.iterdir()) == []
    QTest.mouseClick(export.save, Qt.MouseButton.LeftButton)
    qtbot.waitUntil(lambda: export.message.text().startswith("Written: "), timeout=20_000)
    assert [path.name for path in tmp_path.iterdir()] == ["planted-lesion-evidence.ome.tif"]


@pytest.mark.slow
def test_two_results_of_one_region_are_compared(shell: Any) -> None:
    from napari.layers import Layer
    from streamview_napari.canvas.layers import saliency_layers

    from streamview.results import Target

    made: Saliency = record(shell).saliency
    maps = {
        method: replace(found, values=ndimage.shift(np.asarray(found.values), (0, 8)), coarser=()) for method, found in made.maps.items()
    }
    other = replace(made, maps=maps, target=Target("normal", 0), path=None)
    assert not shell.display.subtract.isVisibleTo(shell.display)
    for data, options, kind in saliency_layers(other):
        shell.viewer.add_layer(Layer.create(data, options, kind))
    shell.viewer.layers.selection.active = next(layer for layer in shell.viewer.layers if layer.name == "Class evidence (extent): lesion")
    assert shell.display.subtract.isVisibleTo(shell.display)
    shell.display.subtract.click()
    both = [layer for layer in shell.viewer.layers if " over " in layer.name and map_on(layer) is not None]
    assert [expect_map(layer).saliency.target.name for layer in both] == ["normal over lesion", "lesion over normal"]
    assert len({expect_map(layer).cap for layer in both}) == 1
    first, second = (np.asarray(layer.data) for layer in both)
    assert first.any()
    assert not (first.astype(bool) & second.astype(bool)).any()
    shell.export.copy_python()
    assert "made of other maps" in shell.export.problem.text()
