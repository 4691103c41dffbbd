"""Regions drawn, moved, dropped and undone with mouse and keys on the canvas, and what becomes of those that nobody touches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from streamview_napari.canvas.region_layers import regions_on
from streamview_napari.requests.regions import within

from streamview.geometry import Region
from streamview.inspection.report import Sides
from streamview.labels.regions import Example
from streamview.slides.slide import SlideBase, shape_levels
from streamview.slides.synthetic import write_synthetic_slide
from tests.support.real_window import REAL_WINDOW

MPP = 0.5
LIMIT = 60_000  # ms that anything may take on a busy machine
SIDE = 100_000  # px of a large slide


class Hand:
    """A hand on mouse and keys over the canvas of a window; places are level-0 px ``(y, x)`` of a slide of `mpp`."""

    def __init__(self, viewer: Any, qtbot: Any, mpp: float) -> None:
        self.viewer, self.qtbot, self.mpp = viewer, qtbot, mpp

    @property
    def canvas(self) -> Any:
        return self.viewer.window._qt_viewer.canvas.native

    def point(self, y: float, x: float) -> Any:
        """Where the upper left corner of a level-0 pixel is on the canvas."""
        from qtpy.QtCore import QPoint

        camera = self.viewer.scene.camera
        width, height = self.canvas.width(), self.canvas.height()
        down, right = ((np.array((y, x)) - 0.5) * self.mpp - np.array(camera.center[-2:])) * camera.zoom
        return QPoint(round(width / 2 + right), round(height / 2 + down))

    def drag(self, start: tuple[float, float], stop: tuple[float, float], *, release: bool = True) -> None:
        """Press the left button at one level-0 position ``(y, x)`` and go to another."""
        first, last = self.point(*start), self.point(*stop)
        self._mouse("MouseMove", first)
        self._mouse("MouseButtonPress", first)
        for part in (0.3, 0.6, 1.0):
            self._mouse("MouseMove", first + (last - first) * part, held=True)
        if release:
            self.let_go(stop)

    def let_go(self, at: tuple[float, float]) -> None:
        self._mouse("MouseButtonRelease", self.point(*at))

    def click(self, at: tuple[float, float]) -> None:
        for kind in ("MouseMove", "MouseButtonPress", "MouseButtonRelease"):
            self._mouse(kind, self.point(*at))

    def _mouse(self, kind: str, at: Any, *, held: bool = False) -> None:
        """Send the canvas one event of the left button; the screen's own pointer stays, since every process on the screen shares it."""
        from qtpy.QtCore import QEvent, QPointF, Qt
        from qtpy.QtGui import QMouseEvent
        from qtpy.QtWidgets import QApplication

        left, none = Qt.MouseButton.LeftButton, Qt.MouseButton.NoButton
        button = none if kind == "MouseMove" else left
        buttons = left if held or kind == "MouseButtonPress" else none
        place = (QPointF(at), QPointF(self.canvas.mapToGlobal(at)))
        event = QMouseEvent(getattr(QEvent.Type, kind), *place, button, buttons, Qt.KeyboardModifier.NoModifier)
        QApplication.sendEvent(self.canvas, event)
        self.qtbot.wait(20)

    def press(self, button: Any) -> None:
        """Click on a button of the dock."""
        from qtpy.QtCore import Qt
        from qtpy.QtTest import QTest

        QTest.mouseClick(button, Qt.MouseButton.LeftButton)

    def key(self, key: str, *, control: bool = False, shift: bool = False, on: Any = None) -> None:
        from qtpy.QtCore import Qt
        from qtpy.QtTest import QTest

        modifier = Qt.KeyboardModifier.NoModifier
        for held, name in ((control, "ControlModifier"), (shift, "ShiftModifier")):
            modifier = modifier | getattr(Qt.KeyboardModifier, name) if held else modifier
        QTest.keyClick(on or self.canvas, getattr(Qt.Key, f"Key_{key}"), modifier)
        if control or shift:  # else Qt takes it to be held down in the tests that follow, whose clicks on rows would toggle them
            QTest.keyRelease(on or self.canvas, Qt.Key.Key_Control, Qt.KeyboardModifier.NoModifier)
        self.qtbot.wait(20)


class Window(Hand):
    """A window of 1280 x 800 on two slides."""

    def __init__(self, window: Callable[[Any], Any], slides: list[Path], qtbot: Any) -> None:
        from streamview_napari.view import add_layers, view

        super().__init__(window(view(slides[0])), qtbot, MPP)
        self.viewer.window._qt_window.resize(1280, 800)
        self.dock = self.viewer.window.dock_widgets["Panel (streamview)"]
        self.labels, self.run = (next(s for s in self.dock.sections if s.title == title) for title in ("Labels", "Model and region"))
        qtbot.waitUntil(lambda: self.dock.state.loaded is not None, timeout=LIMIT)
        for slide in slides[1:]:
            add_layers(self.viewer, str(slide))
        self.state = self.dock.state
        self.select(slides[0].name)
        qtbot.wait(300)
        self.viewer.reset_view()
        qtbot.wait(50)

    def select(self, name: str) -> None:
        self.viewer.layers.selection.active = self.viewer.layers[name]

    def layer(self, *, labelled: bool = False) -> Any:
        """Return the layer of the slide worked on."""
        layers = regions_on(self.viewer, labelled=labelled)
        return next((layer for layer, record in layers if record.slide is self.state.slide_layer), None)

    def drawn(self, *, labelled: bool = False) -> list[Region]:
        """What the layer of the slide worked on shows, in level-0 px."""
        layer = self.layer(labelled=labelled)
        return [] if layer is None else [within(vertices, self.state.slide.shape, None) for vertices in layer.data]

    def regions(self) -> list[Region | None]:
        return [example.region for example in self.state.labels]

    def choose_class(self, name: str) -> None:
        self.labels.label.setCurrentText(name)
        self.labels.label.activated.emit(self.labels.label.currentIndex())


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("slides")
    paths = [folder / f"{name}.svs" for name in "ab"]
    for seed, path in enumerate(paths):
        write_synthetic_slide(path, size=(768, 1024), mpp=MPP, seed=seed)
    return paths


@pytest.fixture
def opened(window: Callable[[Any], Any], slides: list[Path], qtbot: Any) -> Window:
    return Window(window, slides, qtbot)


def near(found: Region, expected: Region, px: float = 3) -> bool:
    """Whether two regions are the same but for the screen's pixels."""
    edges = [(r.y, r.x, r.y_stop, r.x_stop) for r in (found, expected)]
    return float(np.abs(np.subtract(*edges)).max()) <= px


FIRST, SECOND = Region(100, 100, 300, 200), Region(200, 500, 256, 256)


def drag_over(window: Window, region: Region) -> None:
    window.drag((region.y, region.x), (region.y_stop, region.x_stop))


@pytest.mark.usefixtures("qapp")
class TestOnTheCanvas:
    pytestmark = REAL_WINDOW

    def test_a_rectangle_being_dragged_is_none_yet(self, opened: Window) -> None:
        opened.press(opened.run.draw)
        opened.drag((100, 100), (400, 300), release=False)
        opened.run.refresh()
        opened.qtbot.waitUntil(lambda: not opened.run.task.debounce.isActive(), timeout=LIMIT)
        assert opened.run.extent.text() == "Drag a rectangle over the tissue."
        assert opened.run.forecast.text() == ""
        opened.let_go((400, 300))
        opened.qtbot.waitUntil(lambda: opened.run.task.forecast is not None, timeout=LIMIT)
        assert near(opened.run.task.forecast.region, FIRST)

    @pytest.mark.slow
    def test_a_click_makes_nothing_a_small_drag_a_word_and_a_drag_a_region(self, opened: Window) -> None:
        opened.press(opened.run.draw)
        opened.click((300, 300))
        assert opened.drawn() == []
        assert "zoom in" in opened.run.extent.text()
        opened.drag((100, 100), (120, 400))
        assert opened.drawn() == []
        assert opened.layer().mode == "add_rectangle", "the next drag may succeed"
        loaded = opened.state.loaded
        sides = Sides(smallest=150, period=1, remainders=(0,), largest=None)
        opened.state.loaded = replace(loaded, streaming=replace(loaded.streaming, sides=sides))
        opened.drag((100, 100), (240, 400))
        assert opened.drawn() == []
        assert opened.run.extent.text() == "Too small for the network: it takes 150 × 150 px · 0.075 × 0.075 mm or more."
        drag_over(opened, FIRST)
        (region,) = opened.drawn()
        assert near(region, FIRST)
        assert opened.layer().mode == "select"
        assert opened.viewer.layers.selection.active is opened.state.slide_layer
        opened.qtbot.waitUntil(lambda: opened.run.task.forecast is not None, timeout=LIMIT)
        assert opened.run.task.forecast.region == region
        assert "Too small" not in opened.run.extent.text()

        # so with labels, where the word is in their section
        opened.labels.unfold.emit()
        opened.choose_class("lesion")
        opened.press(opened.labels.draw)
        opened.click((300, 300))
        opened.drag((300, 300), (310, 400))
        assert opened.state.labels == ()
        assert opened.drawn(labelled=True) == []
        assert "zoom in" in opened.labels.message.text()
        assert len(opened.layer(labelled=True).features) == 0
        drag_over(opened, SECOND)
        (example,) = opened.state.labels
        assert (example.label, near(example.region, SECOND)) == ("lesion", True)
        assert not opened.labels.message.isVisibleTo(opened.labels)

    @pytest.mark.slow
    def test_escape_ends_drawing_also_in_the_midst_of_a_drag_and_from_the_dock(self, opened: Window) -> None:
        opened.press(opened.run.draw)
        assert opened.layer().mode == "add_rectangle"
        opened.key("Escape", on=opened.run.draw)  # where the click has left the keyboard
        assert opened.layer().mode == "select"
        assert opened.viewer.layers.selection.active is opened.state.slide_layer
        opened.press(opened.run.draw)
        drag_over(opened, FIRST)
        before = opened.drawn()
        opened.press(opened.run.draw)
        opened.drag((450, 500), (700, 900), release=False)
        assert len(opened.layer().data) == 2
        opened.key("Escape")
        opened.let_go((700, 900))
        assert opened.drawn() == before
        assert opened.layer().mode == "select"
        opened.press(opened.run.draw)  # and it can be drawn again
        drag_over(opened, SECOND)
        assert near(opened.drawn()[1], SECOND)

        opened.labels.unfold.emit()
        opened.choose_class("lesion")
        opened.press(opened.labels.draw)
        drag_over(opened, FIRST)
        opened.drag((450, 500), (700, 900), release=False)
        opened.key("Escape")
        opened.let_go((700, 900))
        assert len(opened.state.labels) == len(opened.drawn(labelled=True)) == 1
        assert not opened.labels.draw.isChecked()
        assert opened.viewer.layers.selection.active is opened.state.slide_layer
        opened.press(opened.labels.draw)
        opened.key("Escape", on=opened.labels.draw)
        assert not opened.labels.draw.isChecked()
        assert opened.layer(labelled=True).mode == "select"

    @pytest.mark.slow
    def test_control_z_undoes_what_was_drawn_moved_set_and_deleted(self, opened: Window) -> None:
        opened.labels.unfold.emit()
        opened.press(opened.run.draw)
        drag_over(opened, FIRST)
        opened.choose_class("lesion")
        opened.press(opened.labels.draw)
        drag_over(opened, FIRST)
        drag_over(opened, SECOND)
        opened.press(opened.labels.draw)
        steps = [(opened.drawn(), opened.state.labels)]

        # moved by the mouse
        layer = opened.layer(labelled=True)
        opened.viewer.layers.selection.active = layer
        opened.drag((300, 600), (420, 700))
        steps.append((opened.drawn(), opened.state.labels))
        assert opened.state.labels[0] is steps[0][1][0], "the one that was not touched is the same"
        moved, original = opened.state.labels[1].region, steps[0][1][1].region
        assert moved is not None
        assert original is not None
        assert moved.shape == original.shape
        assert near(moved, Region(original.y + 120, original.x + 100, *original.shape))

        # set from the table
        opened.choose_class("normal")
        opened.labels.table.selectRow(0)
        opened.press(opened.labels.apply)
        steps.append((opened.drawn(), opened.state.labels))
        assert [example.label for example in opened.state.labels] == ["normal", "lesion"]

        # deleted by the key, with the layer active, and by the button
        opened.viewer.layers.selection.active = layer
        opened.click((300, 200))
        assert layer.selected_data == {0}
        opened.key("Delete")
        steps.append((opened.drawn(), opened.state.labels))
        assert len(opened.state.labels) == 1
        opened.labels.table.selectRow(0)
        opened.press(opened.labels.remove)
        assert opened.state.labels == ()
        drawn = opened.layer()
        opened.viewer.layers.selection.active = drawn
        opened.click((300, 200))
        opened.key("Delete")
        assert opened.drawn() == []

        for regions, labels in [(steps[0][0], ()), *reversed(steps)]:
            opened.key("Z", control=True)
            assert opened.drawn() == regions
            assert opened.state.labels == labels
            assert opened.drawn(labelled=True) == [example.region for example in labels]
            assert list(layer.features["label"]) == [example.label for example in labels]
        for count in (1, 0):
            opened.key("Z", control=True)
            assert len(opened.state.labels) == count
        opened.key("Z", control=True)
        assert opened.drawn() == []
        opened.key("Z", control=True)  # nothing is left to undo

    @pytest.mark.slow
    def test_regions_belong_to_their_slide(self, opened: Window) -> None:
        opened.press(opened.run.draw)
        drag_over(opened, FIRST)
        first = opened.layer()
        opened.select("b.svs")
        assert not first.visible
        assert opened.drawn() == []
        assert opened.run._drawing.rectangle() is None
        opened.press(opened.run.draw)
        drag_over(opened, SECOND)
        second = opened.layer()
        assert (first.visible, second.visible) == (False, True)
        opened.select("a.svs")
        assert (first.visible, second.visible) == (True, False)
        assert near(opened.drawn()[0], FIRST)
        opened.viewer.layers.remove(opened.viewer.layers["b.svs"])
        assert second not in opened.viewer.layers
        opened.key("Z", control=True)
        assert opened.drawn() == [], "what was drawn on the slide that is gone is no step"

    def test_run_is_off_when_the_rectangle_is_gone(self, opened: Window) -> None:
        opened.press(opened.run.draw)
        drag_over(opened, FIRST)
        opened.qtbot.waitUntil(opened.run.run.isEnabled, timeout=LIMIT)
        opened.viewer.layers.remove(opened.layer())
        opened.qtbot.wait(600)
        assert opened.run.request().drawn is None
        assert opened.run.extent.text() == "Drag a rectangle over the tissue."


class Large(SlideBase):
    """A white slide of 100,000 px a side at 0.243 um/px."""

    def __init__(self) -> None:
        sides = [SIDE // 4**level for level in range(4)]
        super().__init__("large.tif", shape_levels([(side, side) for side in sides]), ((0.243, 0.243), "test"), "large")

    def read(self, region: Region) -> np.ndarray:
        return np.full((region.height, region.width, 3), 255, np.uint8)


@pytest.mark.usefixtures("qapp")
class TestManyRegions:
    pytestmark = REAL_WINDOW

    @pytest.mark.slow
    def test_those_that_nobody_touches_keep_their_numbers(self, window: Callable[[Any], Any], qtbot: Any) -> None:
        """500 on a slide of 100,000 px at 0.243 um/px, where float32 micrometres moved nine of ten."""
        import napari
        from napari.layers import Layer
        from streamview_napari.canvas.camera import fly_to
        from streamview_napari.canvas.layers import slide_layer

        viewer = window(napari.Viewer())
        viewer.add_layer(Layer.create(*slide_layer(Large(), path="/large.tif")))
        _, dock = viewer.window.add_plugin_dock_widget("streamview", "Panel")
        state, random = dock.state, np.random.default_rng(0)
        places = [(2200 * (n // 45), 2200 * (n % 45)) for n in range(0, 2000, 4)]
        regions = [Region(*(np.add(place, random.integers(0, 900, 2))), *random.integers(64, 1200, 2)) for place in places]
        labels = tuple(Example("/large.tif", "lesion", region) for region in regions)
        state.label(labels)
        ((layer, _),) = regions_on(viewer, labelled=True)
        assert layer.data[0].dtype == np.float32

        # one is moved by the mouse
        at = 308
        fly_to(viewer, regions[at], state.slide.mpp)
        viewer.layers.selection.active = layer
        layer.mode = "select"
        qtbot.wait(100)
        hand = Hand(viewer, qtbot, 0.243)
        y, x = (regions[at].y + regions[at].height // 2, regions[at].x + regions[at].width // 2)
        hand.drag((y, x), (y + 40, x + 31))
        assert [number for number, (old, new) in enumerate(zip(labels, state.labels, strict=True)) if old is not new] == [at]
        moved = state.labels[at].region
        assert moved is not None
        assert moved.shape == regions[at].shape
        assert near(moved, Region(regions[at].y + 40, regions[at].x + 31, *moved.shape), px=5)

        # all are filled in anew, and one more is drawn
        after = state.labels
        state.label(after)
        dock_labels = next(section for section in dock.sections if section.title == "Labels")
        dock_labels.unfold.emit()
        dock_labels.add_class("normal")
        hand.press(dock_labels.draw)
        hand.drag((y + 900, x + 900), (y + 1300, x + 1200))
        assert [old is new for old, new in zip(after, state.labels, strict=False)] == [True] * 500
        assert len(state.labels) == 501


@pytest.mark.usefixtures("qapp")
class TestTable:
    pytestmark = REAL_WINDOW

    @pytest.mark.slow
    def test_rows_are_told_apart_and_names_can_be_read(
        self, window: Callable[[Any], Any], tmp_path: Path, qtbot: Any, screenshots: Path
    ) -> None:
        from qtpy.QtCore import Qt
        from qtpy.QtWidgets import QScrollArea

        slide = tmp_path / "camelyon17-20.svs"
        write_synthetic_slide(slide, size=(768, 1024), mpp=MPP, seed=0)
        opened = Window(window, [slide], qtbot)
        labels = opened.labels
        labels.unfold.emit()
        opened.choose_class("lesion")
        opened.press(labels.draw)
        for x in (100, 400, 700):
            drag_over(opened, Region(300, x, 200, 200))
        opened.press(labels.draw)
        opened.state.label(
            tuple(replace(example, region=replace(example.region, height=200, width=200)) for example in opened.state.labels)
        )
        qtbot.wait(300)
        table = labels.table
        columns = [column for column in range(table.columnCount()) if not table.isColumnHidden(column)]
        rows = [tuple(table.item(row, column).text() for column in columns) for row in range(3)]
        assert len(set(rows)) == 3
        titles = [table.horizontalHeaderItem(column).text() for column in columns]
        assert titles == ["Slide", "Class", "x, y in mm"], "no column of patients where none is named"
        for column in columns:  # nothing is cut off, titles included
            assert table.columnWidth(column) >= table.sizeHintForColumn(column), titles[columns.index(column)]
            assert table.columnWidth(column) >= table.horizontalHeader().sectionSizeHint(column)
        assert table.textElideMode() == Qt.TextElideMode.ElideMiddle
        opened.state.label(tuple(replace(example, patient="p12") for example in opened.state.labels))
        assert not table.isColumnHidden(2)
        qtbot.wait(300)
        for column in range(table.columnCount()):
            assert table.columnWidth(column) >= table.sizeHintForColumn(column)
        opened.dock.findChild(QScrollArea).ensureWidgetVisible(labels)
        qtbot.wait(100)
        picture = screenshots / "napari-labels.png"
        Image.fromarray(opened.viewer.screenshot(canvas_only=False, flash=False)).save(picture)
        assert picture.stat().st_size > 100_000
