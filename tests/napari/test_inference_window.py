"""The dock in a real window: open, forecast, draw, run, cancel, fail, close."""

from __future__ import annotations

import gc
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from streamview.geometry import Region
from streamview.inference import prepared
from streamview.inference.compute import Compute
from streamview.inference.prepared import PreparedRun, prepare
from streamview.inspection import verification
from streamview.progress import Step
from streamview.streaming.capture import capture
from tests.support.dock import LIMIT, open_dock, section
from tests.support.real_window import REAL_WINDOW

pytestmark = REAL_WINDOW
MPP = 0.5  # of the slide of the fixture `slide_path`


@pytest.fixture
def opened(window: Callable[[Any], Any], slide_path: Path, qtbot: Any) -> tuple[Any, Any]:
    """A window on the slide, and its dock with the demo's network loaded."""
    return open_dock(window, slide_path, qtbot)


@pytest.mark.slow
def test_a_method_is_chosen_forecast_and_run(opened: tuple[Any, Any], qtbot: Any) -> None:
    _, dock = opened
    panel = section(dock, "Model and region")
    qtbot.waitUntil(lambda: panel.task.forecast is not None and panel.run.isEnabled(), timeout=LIMIT)
    assert panel.request().compute.method.name == "gradient"
    assert "passes" not in panel.forecast.text()
    titles = [panel.method.itemText(place) for place in range(panel.method.count())]
    assert titles == ["Gradient", "SmoothGrad", "Integrated gradients", "Grad-CAM", "Occlusion"]
    panel.method.setCurrentIndex(titles.index("Integrated gradients"))
    qtbot.waitUntil(lambda: "34 forward passes and 32 backward passes" in panel.forecast.text(), timeout=LIMIT)
    panel.method.setCurrentIndex(titles.index("Grad-CAM"))
    qtbot.waitUntil(
        lambda: panel.task.forecast is not None and panel.task.forecast.request.compute.method.name == "grad-cam", timeout=LIMIT
    )
    panel.run.click()
    qtbot.waitUntil(lambda: dock.state.map is not None, timeout=LIMIT)
    assert list(dock.state.map.saliency.maps) == ["evidence"]
    assert dock.state.map.saliency.prediction.identity.method == "grad-cam"


def draw(viewer: Any, dock: Any, region: Region, qtbot: Any) -> Any:
    """Drag a rectangle as a user does, on the layer that Draw makes; return the section once it is ready to run."""
    from streamview_napari.requests.regions import corners

    panel = section(dock, "Model and region")
    panel.draw.click()
    layer = viewer.layers["Regions"]
    assert viewer.layers.selection.active is layer
    assert layer.mode == "add_rectangle"
    layer.add_rectangles(corners(region, None))
    assert layer.mode == "select"
    qtbot.waitUntil(lambda: panel.task.forecast is not None, timeout=LIMIT)
    assert panel.task.forecast.region == region
    return panel


def count_preparations(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Return a list that grows by what is prepared from now on."""
    prepared: list[Any] = []

    def counted(*args: Any, **options: Any) -> PreparedRun:
        prepared.append(args)
        return prepare(*args, **options)

    monkeypatch.setattr("streamview.inference.prepared.prepare", counted)
    return prepared


def small_steps(monkeypatch: pytest.MonkeyPatch, pause: Callable[[], float]) -> list[Step]:
    """Let the engine take steps of 32 rows, and its time over each; return the steps it has reported."""
    explain, told = PreparedRun.explain, []

    def slowly(self: PreparedRun, targets: Any, plan: Any, outs: Any, report: Any, watch: Any) -> Any:
        def slowed(step: Step) -> None:
            told.append(step)
            time.sleep(pause())
            report(step)

        return explain(self, targets, plan, outs, slowed, watch)

    plan = PreparedRun.plan

    def small(self: PreparedRun, *how: Any, **named: Any) -> Any:
        return plan(replace(self, compute=replace(self.compute, tile=(32, 512))), *how, **named)

    monkeypatch.setattr(PreparedRun, "plan", small)
    monkeypatch.setattr(PreparedRun, "explain", slowly)
    return told


def count(monkeypatch: pytest.MonkeyPatch) -> tuple[list[str], list[Any], list[Any]]:
    """From now on: the slide of every run that is prepared, every network that is captured, the plan of every run."""
    preparations: list[str] = []
    captures: list[Any] = []
    plans: list[Any] = []
    captured, complete = capture.capture, PreparedRun._complete

    def counted(model: Any, slide: Any, *args: Any, **options: Any) -> PreparedRun:
        preparations.append(slide.name)
        return prepare(model, slide, *args, **options)

    def counted_capture(module: Any, *args: Any, **options: Any) -> Any:
        captures.append(module)
        return captured(module, *args, **options)

    def recorded(run: PreparedRun, call: Any, plan: Any, *rest: Any) -> Any:
        plans.append(plan)
        return complete(run, call, plan, *rest)

    monkeypatch.setattr(prepared, "prepare", counted)
    monkeypatch.setattr(capture, "capture", counted_capture)
    monkeypatch.setattr(PreparedRun, "_complete", recorded)
    return preparations, captures, plans


def test_draw_cancel_run_and_look_at_the_answer(
    opened: tuple[Any, Any], qtbot: Any, monkeypatch: pytest.MonkeyPatch, screenshots: Path
) -> None:
    viewer, dock = opened
    region = Region(128, 256, 384, 256)
    pauses = [0.15]
    told = small_steps(monkeypatch, pause=lambda: pauses[-1])
    panel = draw(viewer, dock, region, qtbot)
    prepared = count_preparations(monkeypatch)
    assert panel.extent.text() == "256 × 384 px · 0.13 × 0.19 mm"
    assert "peak memory" in panel.forecast.text()
    assert section(dock, "Slide").extent.text() == "1024 × 768 px · 0.51 × 0.38 mm\n0.5 µm/px (aperio.MPP)"
    assert viewer.canvas.overlays.scale_bar.visible
    result = section(dock, "Result")
    assert not result.filled

    # cancelled midway: nothing is left, and it can run again
    panel.run.click()
    assert not panel.run.isEnabled()
    assert panel.bar.height() == 8
    qtbot.waitUntil(lambda: len(told) > 5, timeout=LIMIT)
    ticks: list[float] = []
    for _ in range(10):  # the window answers while the engine works
        start = time.perf_counter()
        qtbot.wait(1)
        ticks.append(time.perf_counter() - start)
    assert sorted(ticks)[5] < 0.25
    panel.cancel.click()
    qtbot.waitUntil(lambda: not panel.task.running, timeout=LIMIT)
    assert panel.message.text() == "Cancelled."
    known = len(told)
    qtbot.wait(100)
    assert len(told) == known
    assert not result.filled
    assert not panel.bar.isVisible()
    assert list(dock.state.folder.iterdir()) == []
    assert [layer.name for layer in viewer.layers if layer.visible] == ["planted.svs", "Regions"]

    # to the end, the map appearing on the way
    pauses.append(0.04)
    panel.task.redraw.setInterval(20)
    panel.run.click()
    seen: list[np.ndarray] = []

    def live() -> bool:
        names = [layer.name for layer in viewer.layers if layer.name.startswith("Being computed")]
        if names and np.asarray(viewer.layers[names[-1]].data).any():
            assert [name.split(",")[0] for name in names] == ["Being computed: evidence", "Being computed: gradient"]
            seen.append(np.array(viewer.layers[names[-1]].data))
        return result.filled

    qtbot.waitUntil(live, timeout=LIMIT)
    assert seen
    for snapshot in seen:  # the map comes from the last rows to the first, however much of it the window saw
        rows = snapshot.any(axis=1)
        assert rows[rows.argmax() :].all()
    assert "left" in panel.message.text() or "%" in panel.message.text()
    (answer,) = dock.state.answers
    assert answer.saliency is dock.state.result
    assert answer.prediction.region == region
    assert not any(layer.visible for layer in viewer.layers if layer.name.startswith(("Being computed", "For the next run")))
    shown = [layer.name for layer in dock.state.maps_of(dock.state.result) if layer.visible]
    assert shown == [f"Class evidence (extent): {answer.prediction.label}"]
    assert result.table.rowCount() == 1
    assert result.target.currentText() == answer.prediction.label
    run = dock.state.map.run
    assert (run.model, run.untrained, Path(run.slide).name, run.mpp, run.compute.tile[0]) == ("demo", False, "planted.svs", None, 32)

    # its pixels are the ones asked for: the corners of map, rectangle and slide meet in the world
    chooser = section(dock, "Display").map
    chooser.setCurrentIndex(chooser.findData("signed"))
    chooser.activated.emit(chooser.currentIndex())
    fine = dock.state.map_layer
    assert fine.name.startswith("Gradient x input")
    first, last = fine.extent.world[0] - fine.scale / 2, fine.extent.world[1] + fine.scale / 2
    np.testing.assert_allclose(first, ((region.y - 0.5) * MPP, (region.x - 0.5) * MPP), atol=1e-9)
    np.testing.assert_allclose(last, ((region.y_stop - 0.5) * MPP, (region.x_stop - 0.5) * MPP), atol=1e-9)
    slide = viewer.layers["planted.svs"]
    np.testing.assert_allclose(slide.world_to_data((region.y * MPP, region.x * MPP)), (region.y, region.x), atol=1e-9)
    regions = viewer.layers["Regions"]
    np.testing.assert_allclose(regions.data_to_world(regions.data[0].min(0)), first, atol=1e-9)

    # another class is computed on the same region, and the table leads back
    other = next(name for name in answer.prediction.class_names if name != answer.prediction.label)
    result.target.setCurrentText(other)
    result.target.activated.emit(result.target.currentIndex())
    qtbot.waitUntil(lambda: len(dock.state.answers) == 2, timeout=LIMIT)
    assert dock.state.result.target.name == other
    assert dock.state.answers[1].prediction.identity == answer.prediction.identity
    viewer.scene.camera.center = (0.0, 0.0, 0.0)
    result.table.cellClicked.emit(0, 0)
    assert dock.state.result is answer.saliency
    np.testing.assert_allclose(viewer.scene.camera.center[-2:], ((128 + 192 - 0.5) * MPP, (256 + 128 - 0.5) * MPP))

    # none of this was prepared again after the forecast, and all of it ran by the plan that was shown
    assert prepared == []
    assert {answer.tile for answer in dock.state.answers} == {panel.task.forecast.forecast.plan.tile}

    # the certificate stays with the layers
    monkeypatch.setattr(verification, "verify", partial(verification.verify, windows=1))
    result.verify.click()
    qtbot.waitUntil(lambda: dock.state.map.certificate is not None, timeout=LIMIT)
    assert dock.state.map.certificate.passed
    assert result.certificate.text().startswith("Exact: 1 window ")

    qtbot.wait(200)
    picture = screenshots / "napari-dock.png"
    Image.fromarray(viewer.screenshot(canvas_only=False, flash=False)).save(picture)
    assert picture.stat().st_size > 100_000


def test_a_run_is_prepared_once_and_carries_out_the_forecast_that_was_shown(
    opened: tuple[Any, Any], qtbot: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    viewer, dock = opened
    preparations, captures, plans = count(monkeypatch)
    panel = draw(viewer, dock, Region(128, 256, 256, 256), qtbot)
    plan = panel.task.forecast.forecast.plan
    panel.run.click()
    qtbot.waitUntil(lambda: len(dock.state.answers) == 1 and not panel.task.running, timeout=LIMIT)
    assert preparations == ["planted.svs"]
    assert len(captures) <= 1  # none where it was captured to say how it streams
    assert [executed is plan for executed in plans] == [True]

    # maps of another class on the same region need no other preparation
    prediction = dock.state.answers[0].prediction
    other = next(name for name in prediction.class_names if name != prediction.label)
    dock.state.events.explanation_wanted.emit(prediction, other)
    qtbot.waitUntil(lambda: len(dock.state.answers) == 2 and not panel.task.running, timeout=LIMIT)
    assert dock.state.result.target.name == other
    assert preparations == ["planted.svs"]
    assert [executed is plan for executed in plans] == [True, True]

    # other settings are another run; pressed before the forecast is there, Run waits for it
    panel.maps.click()
    assert panel.task.forecast is None
    panel.run.click()
    assert panel.message.text() == "Runs as soon as the forecast is there…"
    assert not panel.task.running
    qtbot.waitUntil(lambda: len(dock.state.answers) == 3, timeout=LIMIT)
    assert dock.state.answers[2].saliency is None
    assert preparations == ["planted.svs"] * 2
    assert plans[2] is panel.task.forecast.forecast.plan


@pytest.mark.parametrize(
    ("error", "said"),
    [
        pytest.param(
            RuntimeError("mat1 and mat2 shapes cannot be multiplied\nsecond line"),
            "RuntimeError: mat1 and mat2 shapes cannot be multiplied",
            marks=pytest.mark.slow,
        ),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory"), "Memory ran out"),
        pytest.param(MemoryError(), "Memory ran out", marks=pytest.mark.slow),
    ],
)
def test_errors_of_the_engine_reach_the_user_and_it_can_run_again(
    opened: tuple[Any, Any], qtbot: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception, said: str
) -> None:
    viewer, dock = opened
    panel = draw(viewer, dock, Region(128, 256, 256, 256), qtbot)
    explain = PreparedRun.explain

    def fail(self: PreparedRun, targets: Any, plan: Any, outs: Any, report: Any, watch: Any) -> Any:
        def broken(step: Step) -> None:
            report(step)
            if step.task == "backward pass":
                raise error

        # not the engine's own retry in smaller steps, which is tested elsewhere
        return explain(self, targets, plan, outs, broken, watch)

    monkeypatch.setattr(PreparedRun, "explain", fail)
    monkeypatch.setattr("streamview.streaming.run.out_of_memory.ran_out", lambda *a, **k: False)
    with caplog.at_level(logging.CRITICAL):
        panel.run.click()
        qtbot.waitUntil(lambda: panel.problem.isVisibleTo(panel), timeout=LIMIT)
    assert panel.problem.text().startswith(said)
    assert "second line" not in panel.problem.text()
    assert panel.run.isEnabled()
    assert not panel.cancel.isEnabled()
    assert dock.state.answers == []
    monkeypatch.setattr(PreparedRun, "explain", explain)
    panel.maps.setChecked(False)
    qtbot.waitUntil(lambda: panel.task.forecast is not None, timeout=LIMIT)
    panel.run.click()
    qtbot.waitUntil(lambda: len(dock.state.answers) == 1, timeout=LIMIT)
    assert not panel.problem.isVisibleTo(panel)
    assert dock.state.answers[0].saliency is None
    assert section(dock, "Result").target.currentText() == "choose a class to explain"


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="open files are counted where Linux lists them")
def test_closing_the_window_stops_the_run_and_leaves_no_thread_or_file(
    qapp: Any, own_settings: Path, tmp_path: Path, qtbot: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def handles() -> list[str]:
        found = []
        for link in Path("/proc/self/fd").iterdir():
            try:
                found.append(os.readlink(link))
            except OSError:
                continue
        return [place for place in found if place.endswith(".tif") or "streamview-" in place]

    from streamview_napari.view import view

    path = tmp_path / "plain.tif"
    pixels = np.random.default_rng(0).integers(0, 256, (640, 768, 3), np.uint8)
    tifffile.imwrite(path, pixels, photometric="rgb", tile=(128, 128), resolution=(20_000, 20_000), resolutionunit="CENTIMETER")
    viewer = view(path)
    dock = viewer.window.dock_widgets["Panel (streamview)"]
    qtbot.waitUntil(lambda: dock.state.loaded is not None, timeout=LIMIT)
    told = small_steps(monkeypatch, pause=lambda: 0.05 if len(told) < 4 else 0.5)
    panel = draw(viewer, dock, Region(0, 0, 512, 512), qtbot)
    assert handles()
    panel.run.click()
    qtbot.waitUntil(lambda: len(told) > 3, timeout=LIMIT)
    assert any(thread.name == "streamview work" for thread in threading.enumerate())
    folder = dock.state.folder
    viewer.close()
    assert not any(thread.name == "streamview work" for thread in threading.enumerate())
    known = len(told)
    qtbot.wait(200)
    gc.collect()
    assert len(told) == known
    assert told[-1].done < told[-1].total
    assert handles() == []
    assert not folder.exists()


@pytest.mark.slow
def test_removing_the_dock_stops_the_run_and_gives_the_keys_back(
    opened: tuple[Any, Any], qtbot: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    viewer, dock = opened
    assert "Shift+R" in {str(key) for key in viewer.keymap}
    told = small_steps(monkeypatch, pause=lambda: 0.05 if len(told) < 4 else 0.5)
    panel = draw(viewer, dock, Region(0, 0, 512, 512), qtbot)
    panel.run.click()
    qtbot.waitUntil(lambda: len(told) > 3, timeout=LIMIT)
    viewer.window.remove_dock_widget(dock)
    assert dock.state.closed
    assert not any(thread.name == "streamview work" for thread in threading.enumerate())
    assert "Shift+R" not in {str(key) for key in viewer.keymap}
    viewer.layers["planted.svs"].refresh()  # the slide is still open
    # a new dock finds the slide
    _, again = viewer.window.add_plugin_dock_widget("streamview", "Panel")
    assert again.state.slide_layer is viewer.layers["planted.svs"]


def test_keys_sheet_and_settings(opened: tuple[Any, Any], qtbot: Any, tmp_path: Path, own_settings: Path) -> None:
    from napari import settings
    from streamview_napari.panels.keys import bind
    from streamview_napari.panels.section import Shortcut

    viewer, dock = opened
    kept = settings.get_plugin_settings("streamview")
    assert {shortcut.name for shortcut in dock._shortcuts} == set(type(kept.keys).model_fields)
    dock.show_keys()
    assert dock.sheet.isVisible()
    dock.sheet.close()
    panel = section(dock, "Model and region")
    panel.region.setCurrentIndex(panel.region.findData("whole"))
    panel.memory.setText("3GB")
    panel.memory.editingFinished.emit()
    assert (kept.panel.region, kept.panel.memory) == ("whole", "3GB")
    assert "3GB" in (own_settings / "streamview.yaml").read_text()
    pressed: list[str] = []
    kept.keys.run = "Alt-F7"
    bind(viewer, [Shortcut("run", "Run", partial(pressed.append, "run"))], dock)
    from napari.utils.key_bindings import coerce_keybinding

    viewer.keymap[coerce_keybinding("Alt-F7")](viewer)
    assert pressed == ["run"]


@pytest.mark.slow
def test_memory_and_precision_are_chosen_by_hand_and_a_bound_that_is_none_waits(opened: tuple[Any, Any], qtbot: Any) -> None:
    from qtpy.QtCore import Qt
    from qtpy.QtTest import QTest
    from qtpy.QtWidgets import QApplication, QLabel

    viewer, dock = opened
    panel = draw(viewer, dock, Region(128, 256, 256, 256), qtbot)
    QTest.mouseClick(panel.memory, Qt.MouseButton.LeftButton)
    QTest.keyClicks(panel.memory, "2 apples")
    assert not panel.run.isEnabled()
    QTest.keyClick(panel.memory, Qt.Key.Key_Return)
    problems = [label for label in panel.findChildren(QLabel) if label.isVisible() and "expected an amount such as 2GB" in label.text()]
    assert len(problems) == 1
    assert problems[0].y() > panel.memory.y() >= problems[0].y() - 60
    qtbot.wait(500)
    assert not panel.run.isEnabled(), "no run within a bound of before"
    QTest.keyClick(panel.memory, Qt.Key.Key_A, Qt.KeyboardModifier.ControlModifier)
    QTest.keyClicks(panel.memory, "9GB")  # of the whole process, which has run other tests before
    assert not problems[0].isVisible()
    panel.precision.setFocus()
    QTest.keyClicks(panel.precision, "bf")
    assert dock.state.compute == Compute("auto", "9GB", precision="bf16")
    qtbot.waitUntil(panel.run.isEnabled, timeout=LIMIT)
    panel.run.click()

    def answered() -> None:
        assert dock.state.answers, (panel.forecast.text(), panel.message.text(), panel.problem.text())

    qtbot.waitUntil(answered, timeout=LIMIT)
    assert dock.state.answers[0].prediction.identity.precision == "bf16"
    section(dock, "Export").copy_command()
    assert "--precision bf16" in QApplication.clipboard().text()


def test_the_dock_is_no_wider_than_it_says(opened: tuple[Any, Any]) -> None:
    _, dock = opened
    widths = {found.title: found.minimumSizeHint().width() for found in dock.sections}
    assert max(widths.values()) <= dock.minimumWidth() - 22 - 18, widths  # its margins and a scroll bar


def test_every_control_has_a_help_text(opened: tuple[Any, Any]) -> None:
    from qtpy.QtWidgets import QAbstractButton, QAbstractSlider, QComboBox, QLineEdit, QTableWidget, QWidget

    def explained(widget: QWidget) -> bool:
        parent = widget.parentWidget()
        return bool(widget.toolTip()) or (isinstance(parent, QWidget) and bool(parent.toolTip()))

    _, dock = opened
    # the parts of scroll bars, spin boxes, tables and tab bars are Qt's own
    found = [
        widget
        for kind in (QAbstractButton, QAbstractSlider, QComboBox, QLineEdit, QTableWidget)
        for widget in dock.findChildren(kind)
        if not widget.objectName().startswith(("qt_", "Scroll")) and type(widget).__name__ not in ("QScrollBar", "QTableCornerButton")
    ]
    assert len(found) > 15
    assert [(type(widget).__name__, getattr(widget, "text", str)()) for widget in found if not explained(widget)] == []


@pytest.mark.slow
def test_the_same_with_pyqt6(slide_path: Path) -> None:
    if find_spec("PyQt6") is None:
        pytest.skip("PyQt6 is not installed: `pip install PyQt6` to run the window's tests with it")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__, "-o", "qt_api=pyqt6"]
    environment = os.environ | {"QT_API": "pyqt6", "PYTEST_QT_API": "pyqt6"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout[-3000:]
