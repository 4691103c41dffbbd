"""The section of display controls: they act at once, and nothing is recomputed."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from qtpy.QtCore import QSize, Qt, QTimer
from qtpy.QtGui import QIcon, QImage, QPixmap
from qtpy.QtWidgets import QButtonGroup, QComboBox, QHBoxLayout, QLabel, QPushButton, QSizePolicy

from streamview.errors import StreamviewError
from streamview.export.png import find_glass
from streamview.results import Method, difference
from streamview.results.display import PALETTES, PRESETS, TITLES, Recipe, colours, kind_title
from streamview_napari.canvas.captions import badge, value_under
from streamview_napari.canvas.display import Canvas, recipe_of
from streamview_napari.panels.forms import Form
from streamview_napari.panels.section import Section, Shortcut, error_label, labelled, quiet_label, show_row
from streamview_napari.panels.theme import set_role
from streamview_napari.records import MapLayer, expect_map, map_on
from streamview_napari.requests.controls import DisplayControls

if TYPE_CHECKING:
    from napari.components import ViewerModel
    from napari.layers import Image

    from streamview.results import Saliency
    from streamview.results.glass import Glass
    from streamview_napari.state import State

__all__ = ["DisplaySection"]

_WIDEST = {"evidence": 30.0, "signed": 20.0, "absolute": 150.0}  # um at the right end of the blur's slider
_STEP = 0.05  # of the opacity, a key press
_OVER, _UNDER = "teal-lime", "sky"  # colours of a difference: the first larger, the second larger


class DisplaySection(Section):
    """How the map worked on is shown."""

    title = "Display"

    def __init__(self, viewer: ViewerModel, state: State) -> None:
        super().__init__(viewer, state)
        self.canvas = Canvas(viewer, state)
        self._next_recipe: Recipe | None = None
        self._later = QTimer(self, singleShot=True, interval=0)
        self._later.timeout.connect(self.apply)
        self._read = QTimer(self, singleShot=True, interval=40)
        self._read.timeout.connect(self._read_out)
        self._build()
        state.events.map_selected.connect(self._select)
        state.events.recipe_changed.connect(self._follow)
        state.events.answers_changed.connect(self._offer)
        viewer.cursor.events.position.connect(self._moved)
        viewer.scene.camera.events.zoom.connect(self._moved)
        self._select(state.map_layer)
        self._later.start()  # once the dock listens

    def _build(self) -> None:
        controls = self.controls = Form(DisplayControls)
        self.map, self.blur, self.threshold, self.cap, self.opacity, self.colours, self.glass, self.lock = controls.natives
        controls.changed.connect(self._changed)
        self.column.addLayout(controls.row("method"))
        self._build_kind()
        for name in ("blur_um", "threshold", "cap_percentile", "opacity"):
            self.column.addLayout(controls.row(name))
        self.blur_px = controls["blur_um"].unit
        self.blur_px.setToolTip("The blur in pixels of the network's grid.")
        self._build_colours()
        self._build_comparison()
        self._build_readout()

    def _build_kind(self) -> None:
        """Outline or heat."""
        self.kind = QButtonGroup(self)
        row = QHBoxLayout()
        row.setSpacing(0)
        for number, (text, tip) in enumerate(
            (("Outline", "Only the edges of what is shown."), ("Heat", "Only the colours."), ("Both", "Colours and edges."))
        ):
            button = QPushButton(text)
            button.setCheckable(True)
            button.setToolTip(tip)
            set_role(button, "choice")
            self.kind.addButton(button, number)
            row.addWidget(button)
        self.kind.idClicked.connect(lambda number: self._want(outline=number != 1, heat=number != 0))
        self.column.addLayout(row)

    def _build_colours(self) -> None:
        """Colours, glass and the common scale."""
        self.colours.setIconSize(QSize(64, 12))
        for number, palette in enumerate(PALETTES.values()):
            self.colours.setItemIcon(number, _swatch(palette))
        self.reset = QPushButton("Reset")
        self.reset.setToolTip("The usual display of this map.")
        self.reset.clicked.connect(self._reset)
        self.column.addLayout(self.controls.row("colours", beside=(self.reset,)))
        row = QHBoxLayout()
        row.addWidget(self.glass)
        row.addStretch()
        row.addWidget(self.lock)
        self.column.addLayout(row)

    def _build_comparison(self) -> None:
        """The other results of the region."""
        self.other = QComboBox()
        self.other.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Fixed)
        self.other.setToolTip("Another result for the same region: of another class or another network.")
        self.subtract = QPushButton("Subtract")
        self.subtract.setToolTip("Show where this map is larger (teal to lime) and where that one is (blue), on one scale.")
        self.subtract.clicked.connect(self._subtract)
        self._compare = labelled("Compare with", self.other, self.subtract)
        self.column.addLayout(self._compare)

    def _build_readout(self) -> None:
        """The badge of a blurred map, the values under the cursor, and what went wrong."""
        self.badge = QLabel()
        set_role(self.badge, "badge")
        self.badge.setSizePolicy(QSizePolicy.Policy.Maximum, QSizePolicy.Policy.Fixed)
        self.column.addWidget(self.badge)
        self.readout = quiet_label("Move over the map to read its values.")
        self.readout.setFixedHeight(3 * self.readout.fontMetrics().lineSpacing() + 4)  # raw, blurred, answer: nothing below it moves
        self.readout.setAlignment(Qt.AlignmentFlag.AlignTop)
        self.readout.setToolTip("Raw and shown value of the map under the cursor, and the network's answer.")
        self.column.addWidget(self.readout)
        self.problem = error_label()
        self.column.addWidget(self.problem)

    def shortcuts(self) -> list[Shortcut]:
        """Keys for opacity, and to look below the maps."""
        return [
            Shortcut("opacity_down", "Map less opaque", lambda: self._step(-_STEP)),
            Shortcut("opacity_up", "Map more opaque", lambda: self._step(_STEP)),
            Shortcut("hide", "Hold to look below the maps", self.canvas.hide, self.canvas.reveal),
        ]

    def release(self) -> None:
        """Let go of the viewer."""
        self._later.stop()
        self._read.stop()
        self.viewer.cursor.events.position.disconnect(self._moved)
        self.viewer.scene.camera.events.zoom.disconnect(self._moved)
        self.canvas.close()

    def apply(self) -> None:
        """Show the map as the controls say, if they have changed."""
        layer, recipe = self.state.map_layer, self._next_recipe
        self._next_recipe = None
        if layer is not None and recipe is not None and recipe != recipe_of(layer):
            self.canvas.show(layer, recipe)
        else:
            self._follow()

    def _want(self, **changes: Any) -> None:
        """Note what the controls ask for; of what comes while the canvas is drawn only the last is shown."""
        if self.state.map_layer is None or None in changes.values():
            return
        self._next_recipe = replace(self._next_recipe or recipe_of(self.state.map_layer), **changes)
        self._later.start()

    def _select(self, layer: Image | None) -> None:
        self._next_recipe = None
        record = map_on(layer)
        self.fill(record is not None)
        if layer is None or record is None:
            return
        self.problem.hide()
        self._find_glass(layer, record)
        cap = self.state.caps.get(record.recipe.method)
        if cap is not None and record.recipe.cap != cap:
            self.canvas.show(layer, replace(record.recipe, cap=cap))
        self._follow()

    def _follow(self) -> None:
        """Let the controls say how the map is shown."""
        record = self.state.map
        if record is None or self._next_recipe is not None:
            return
        shown, recipe, saliency = record.shown.shown, record.recipe, record.saliency
        name = next((name for name, palette in PALETTES.items() if palette == recipe.colours), "custom")
        with self.controls.changed.blocked():
            self.controls["method"].choices = [(kind_title(saliency, method), method) for method in TITLES if method in saliency.maps]
            self.controls["blur_um"].max = max(_WIDEST[recipe.method], recipe.blur_um)
            if self.colours.findText("custom") >= 0:
                self.colours.removeItem(self.colours.findText("custom"))
            if name == "custom":
                self.colours.addItem(_swatch(recipe.colours), name, name)
            self.controls.fill(
                method=recipe.method,
                blur_um=recipe.blur_um,
                threshold=shown.threshold,
                cap_percentile=recipe.cap_percentile,
                opacity=recipe.opacity,
                colours=name,
                glass=recipe.glass,
                lock=recipe.cap is not None,
            )
        self.kind.button(2 if recipe.outline and recipe.heat else int(recipe.heat)).setChecked(True)
        self.blur_px.setText(f"{max(shown.blur_px):.3g} px")
        self.cap.setEnabled(recipe.cap is None)
        self.badge.setText(badge(record.shown))
        self.badge.setVisible(bool(self.badge.text()))
        self.note(saliency.target.name)
        self._offer()

    def _changed(self, name: str) -> None:
        value = self.controls[name].value
        if name == "method":
            self._present(value)
        elif name == "lock":
            self._lock(value)
        elif name == "colours":
            self._want(colours=PALETTES.get(value))
        elif name == "threshold":
            self._want(threshold=value, floor_percentile=0.0)
        else:
            self._want(**{name: value})

    def _present(self, method: Method) -> None:
        """Show another map of the result in place of this one."""
        layer, record = self.state.map_layer, self.state.map
        if layer is None or record is None or method == record.recipe.method:
            return
        answer = self.state.answer_of(record.saliency)
        if answer is not None:
            self.canvas.present(answer, method=method)

    def _reset(self) -> None:
        record = self.state.map
        if record is not None:
            method = record.recipe.method
            usual = next(recipe for recipe in PRESETS.values() if recipe.method == method)
            self._next_recipe = replace(usual, cap=self.state.caps.get(method))
            self._later.start()

    def _lock(self, on: bool) -> None:
        record = self.state.map
        if record is None:
            return
        self.apply()
        method = record.recipe.method
        if on:
            self.state.caps[method] = record.cap
        else:
            self.state.caps.pop(method, None)
        for other in list(self.viewer.layers):
            shown = map_on(other)
            if shown is not None and shown.recipe.method == method:
                self.canvas.show(other, replace(shown.recipe, cap=self.state.caps.get(method)))

    def _step(self, by: float) -> None:
        if self.state.map_layer is not None:
            self._want(opacity=min(max(round((self._next_recipe or recipe_of(self.state.map_layer)).opacity + by, 2), 0.0), 1.0))

    def _offer(self) -> None:
        """List the results that the map can be compared with."""
        shown = None if self.state.map is None else self.state.map.saliency
        others = (
            []
            if shown is None
            else [each.saliency for each in self.state.answers_here if each.saliency is not None and _comparable(shown, each.saliency)]
        )
        self.other.clear()
        for saliency in others:
            self.other.addItem(f"{saliency.target.name}, {saliency.prediction.model_name}", saliency)
        show_row(self._compare, bool(others))

    def _subtract(self) -> None:
        from napari.layers import Layer

        from streamview_napari.canvas.layers import map_layer

        record, second = self.state.map, self.other.currentData()
        if record is None or second is None:
            return
        self.apply()
        first, recipe = record.saliency, replace(record.recipe, outline=False)
        try:
            differences = [difference(first, second), difference(second, first)]
        except StreamviewError as error:
            self._fail(str(error))
            return
        recipe = replace(recipe, cap=None)
        tuples = [map_layer(each, replace(recipe, colours=PALETTES[name])) for each, name in zip(differences, (_OVER, _UNDER), strict=True)]
        map_layers = [Layer.create(*each) for each in tuples]
        cap = max(expect_map(each).cap for each in map_layers)
        for other in self.viewer.layers:
            if map_on(other) is not None:
                other.visible = False
        for each in reversed(map_layers):
            self.viewer.add_layer(each)
            self.canvas.show(each, replace(recipe_of(each), cap=cap))

    def _find_glass(self, layer: Image, record: MapLayer) -> None:
        """Look for glass in a thread, once a region."""
        saliency, slide = record.saliency, self.state.slide
        key = saliency.prediction.identity.key
        if key in self.canvas.glass:
            if record.shown.glass is None:
                self.canvas.mask(layer, self.canvas.glass[key])
            return
        if slide is None or slide.identity != saliency.prediction.identity.source:
            return

        def show_glass(glass: Glass) -> None:
            self.canvas.glass[key] = glass
            for other in list(self.viewer.layers):
                shown = map_on(other)
                if shown is not None and shown.saliency.prediction.identity.key == key:
                    self.canvas.mask(other, glass)

        self.state.start(lambda report: find_glass(slide, saliency.prediction.region), done=show_glass, failed=self._fail)

    def _fail(self, text: str) -> None:
        self.problem.setText(text)
        self.problem.show()

    def _moved(self, event: Any = None) -> None:
        if not self._read.isActive():
            self._read.start()

    def _read_out(self) -> None:
        layer = self.state.map_layer
        if layer is None:
            return
        text = value_under(layer, tuple(self.viewer.cursor.position))
        self.readout.setText(text.replace(" | ", "\n") or "Move over the map to read its values.")
        self.viewer.help = text


def _comparable(saliency: Saliency, other: Saliency) -> bool:
    if other is saliency:
        return False
    one, two = saliency.prediction, other.prediction
    return one.identity.source == two.identity.source and one.region == two.region and one.shape == two.shape


def _swatch(palette: tuple[str, ...]) -> QIcon:
    rgb, _ = colours(Recipe("absolute", 0, colours=palette), np.linspace(0, 1, 64, dtype=np.float32))
    row = np.ascontiguousarray(np.repeat((rgb * 255).astype(np.uint8)[None], 12, axis=0))
    return QIcon(QPixmap.fromImage(QImage(row.data, 64, 12, 64 * 3, QImage.Format.Format_RGB888).copy()))
