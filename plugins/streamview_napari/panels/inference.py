"""The section that runs a network where the user looks: model, region, forecast, run."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, cast

from qtpy.QtCore import QEvent, Qt
from qtpy.QtGui import QColor
from qtpy.QtWidgets import QCheckBox, QComboBox, QFileDialog, QLabel, QLineEdit, QPushButton, QSizePolicy, QWidget

from streamview.errors import StreamviewError
from streamview.inference.compute import Compute
from streamview.progress import Report, Step
from streamview_napari.canvas import layers
from streamview_napari.canvas.camera import centre_of
from streamview_napari.canvas.drawn_regions import Drawing
from streamview_napari.canvas.live_map import LiveMap
from streamview_napari.panels.run_section import RunSection
from streamview_napari.panels.section import Shortcut, labelled, quiet_label
from streamview_napari.panels.theme import colours, set_role
from streamview_napari.records import expect_map, map_on, note
from streamview_napari.requests.answers import Answer, RunFacts
from streamview_napari.requests.inference import (
    REGIONS,
    InferenceRequest,
    RegionChoice,
    RunForecast,
    compute,
    describe_progress,
    find_region,
    forecast_run,
)
from streamview_napari.requests.models import describe_card, describe_streaming, known_models, load
from streamview_napari.settings import settings

if TYPE_CHECKING:
    from napari.components import ViewerModel
    from napari.layers import Image

    from streamview.geometry import Region
    from streamview.results import Prediction
    from streamview_napari.canvas.layers import LayerTuple
    from streamview_napari.requests.models import Entry, Loaded
    from streamview_napari.state import State

__all__ = ["InferenceSection"]


class InferenceSection(RunSection[RunForecast]):
    """Choose a network and a region, see what the run will take, run it."""

    title = "Model and region"

    def __init__(self, viewer: ViewerModel, state: State) -> None:
        super().__init__(viewer, state, run="Run", stop="Cancel")
        self.forecast.setToolTip("Timed on a sample of this region on this machine.")
        self.run.setToolTip("Compute the prediction, and its maps where they are wanted.")
        self.cancel.setToolTip("Stop after the present step; nothing half-computed is kept.")
        self._build_model()
        self._build_region()
        self._lay_out()
        self._spec = ""  # what the network being loaded or loaded is called
        self._live: LiveMap | None = None
        self._live_layers: list[Image] = []
        self._numbers = itertools.count(1)
        self._drawing = Drawing(viewer, state, changed=self.refresh)
        self._connect()
        self._slide_changed(state.slide_layer)
        state.start(lambda report: _surroundings(), done=self._known, failed=self.fail)

    def _build_model(self) -> None:
        self.model = QComboBox()
        self.model.setToolTip("The network that answers. Those marked (random weights) come without trained ones.")
        self.model.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Fixed)
        self.model.addItem("Looking for networks…")
        self.model.setEnabled(False)
        self.browse = QPushButton("Browse…")
        self.browse.setToolTip("A network of your own: a card.json or config.json with its weights beside it, or an exported .pt2 file.")
        self.card = quiet_label()
        self.card.setToolTip("From the network's card: classes, resolution and licence.")
        self.streaming = quiet_label()
        self.streaming.setToolTip("How the network is divided so that memory does not depend on the region's size.")
        self.streaming.hide()

    def _build_region(self) -> None:
        stored = settings().panel
        self.region = QComboBox()
        self.region.setToolTip("Which part of the slide the network sees. Sizes in px are those of the network's grid.")
        self.region.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Fixed)
        for choice, text in REGIONS.items():
            self.region.addItem(text, choice)
        self.region.setCurrentIndex(max(0, self.region.findData(stored.region)))
        self.draw = QPushButton("Draw")
        self.draw.setToolTip("Drag a rectangle over the tissue; the selected or else the last one counts.")
        self.device = QComboBox()
        self.device.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Fixed)
        self.device.setToolTip("Where it is computed; automatic takes a CUDA graphics card where there is one.")
        self.device.addItem("automatic", "auto")
        self.device.addItem("cpu", "cpu")
        self.memory = QLineEdit(str(self.state.compute.memory or ""))
        self.memory.setPlaceholderText("memory: auto")
        self.memory.setFixedWidth(104)
        self.memory.setAccessibleName("Memory")
        self.memory.setToolTip("Bound on the memory of the program (CUDA: of the card), such as 2GB; empty: half of what is free.")
        self.maps = QCheckBox("Map what the answer rests on")
        self.maps.setToolTip("Without maps only the prediction is computed, in a third of the time or less.")
        self.maps.setChecked(bool(stored.maps))
        self.extent = QLabel()
        self.extent.setWordWrap(True)

    def _lay_out(self) -> None:
        self.column.addLayout(labelled("Model", self.model, self.browse))
        self.column.addWidget(self.card)
        self.column.addWidget(self.streaming)
        self.column.addLayout(labelled("Region", self.region, self.draw))
        self.column.addLayout(labelled("Device", self.device, self.memory))
        below: tuple[QWidget, ...] = (self.maps, self.extent, self.forecast)
        for widget in below:
            self.column.addWidget(widget)
        self.column.addLayout(self.buttons())
        progress: tuple[QWidget, ...] = (self.bar, self.message, self.problem)
        for widget in progress:
            self.column.addWidget(widget)

    def _connect(self) -> None:
        self.model.activated.connect(self._model_chosen)
        self.browse.clicked.connect(self._browse)
        self.region.currentIndexChanged.connect(self._region_chosen)
        self.draw.clicked.connect(self.start_drawing)
        self.device.currentIndexChanged.connect(self._machine_chosen)
        self.memory.editingFinished.connect(self._machine_chosen)
        self.maps.toggled.connect(self._maps_toggled)
        events = self.state.events
        events.slide_changed.connect(self._slide_changed)
        events.explanation_wanted.connect(self.explain)
        events.model_wanted.connect(self.choose)
        events.machine_changed.connect(self.refresh)

    def controls_of_run(self) -> tuple[QWidget, ...]:
        """All that describes the run."""
        return (self.model, self.browse, self.region, self.draw, self.device, self.memory, self.maps)

    def shortcuts(self) -> list[Shortcut]:
        """Run, cancel, draw."""
        return [
            Shortcut("run", "Run the network on the region", self.run.click),
            Shortcut("cancel", "Cancel the run", self.cancel.click),
            Shortcut("draw", "Draw a region", self.start_drawing),
        ]

    def release(self) -> None:
        """Forecast and draw nothing more."""
        super().release()
        self._drawing.release()

    # ------------------------------------------------------------------------------------------------------------------------ the network

    def _known(self, choices: tuple[list[Entry], bool]) -> None:
        entries, cuda = choices
        if cuda:
            self.device.addItem("cuda", "cuda")
        stored = settings().panel
        self.device.setCurrentIndex(max(0, self.device.findData(self.state.compute.device)))
        self.model.clear()
        for entry in entries:
            self.model.addItem(entry.name, entry.spec)
            self.model.setItemData(self.model.count() - 1, not entry.trained, _UNTRAINED)
        if self.model.findData(stored.model) < 0 and Path(stored.model).exists():
            self._add_file(stored.model)
        self._colour_models()
        self.model.setEnabled(True)
        self._machine_chosen()
        self.model.setCurrentIndex(max(0, self.model.findData(stored.model)))
        self._load()

    def changeEvent(self, event: QEvent) -> None:
        """Colour the networks anew in another theme."""
        super().changeEvent(event)
        if event.type() == QEvent.Type.StyleChange and hasattr(self, "model"):
            self._colour_models()

    def _colour_models(self) -> None:
        """Name networks with random weights in the colour of warnings."""
        colour = QColor(*colours(self.viewer.theme).warning)
        for place in range(self.model.count()):
            if self.model.itemData(place, _UNTRAINED):
                self.model.setItemData(place, colour, Qt.ItemDataRole.ForegroundRole)

    def _add_file(self, spec: str) -> int:
        place = self.model.findData(spec)
        if place < 0:
            path = Path(spec)
            self.model.addItem(path.parent.name if path.name in ("card.json", "config.json") else path.name, spec)
            place = self.model.count() - 1
            self.model.setItemData(place, False, _UNTRAINED)
        return place

    def _browse(self) -> None:
        kinds = "Networks (card.json config.json *.pt2);;All files (*)"
        spec, _ = QFileDialog.getOpenFileName(self, "Open a network", "", kinds)
        if spec:
            self.choose(spec)

    def choose(self, spec: str) -> None:
        """Load the network of this name, folder or file."""
        place = self.model.findData(spec)
        self.model.setCurrentIndex(place if place >= 0 else self._add_file(spec))
        self._load()

    def _model_chosen(self) -> None:
        if self.model.currentData() != self._spec:
            self._load()

    def _load(self) -> None:
        spec = self._spec = str(self.model.currentData())
        self.state.load(None)
        self.problem.hide()
        self.card.setText("Loading…")
        self.card.show()
        self.streaming.hide()
        self.extent.setText("")
        self.forecast.setText("")
        self.refresh()
        untrained = bool(self.model.currentData(_UNTRAINED))
        set_role(self.model, "warning" if untrained else "plain")
        set_role(self.card, "quiet")
        self._loading = self.state.start(
            lambda report: load(spec, untrained=untrained), done=self._loaded, failed=partial(self._not_loaded, spec)
        )

    def _loaded(self, loaded: Loaded) -> None:
        if loaded.spec != self._spec:
            return
        self.card.setText(describe_card(loaded.model.card))
        set_role(self.card, "quiet" if loaded.model.card.trained else "warning")
        self.card.setToolTip("\n".join((loaded.model.card.name, loaded.model.card.use, *loaded.model.notes)))
        self.streaming.setText(describe_streaming(loaded.streaming))
        self.streaming.setToolTip(str(loaded.streaming))
        self.streaming.show()
        settings().panel.model = loaded.spec
        self.state.load(loaded)
        self.refresh()

    def _not_loaded(self, spec: str, text: str) -> None:
        if spec == self._spec:
            self.card.hide()
            self.fail(text)

    # ------------------------------------------------------------------------------------------------------------------------- the region

    def _region_chosen(self) -> None:
        settings().panel.region = self.region.currentData()
        if self.region.currentData() == "drawn" and self._drawing.rectangle() is None:
            self.start_drawing()
        self.refresh()

    def start_drawing(self) -> None:
        """Let the user drag a rectangle, on a layer made for it."""
        if self.state.slide_layer is None:
            return
        self._drawing.start()
        self.region.setCurrentIndex(self.region.findData("drawn"))
        self.refresh()

    # ----------------------------------------------------------------------------------------------------------------------- the forecast

    def _slide_changed(self, layer: Image | None) -> None:
        self.fill(layer is not None)
        self.refresh()

    def _machine_chosen(self) -> None:
        if self.model.isEnabled():  # until then the devices are not all known
            self.state.compute_with(Compute(str(self.device.currentData()), self.memory.text().strip() or None))

    def _maps_toggled(self, maps: bool) -> None:
        settings().panel.maps = maps
        self.refresh()

    def request(self, target: str | None = None, region: Region | None = None) -> InferenceRequest | None:
        """Return the run that the controls describe; None without slide or network."""
        if self.state.slide is None or self.state.loaded is None:
            return None
        return InferenceRequest(
            self.state.loaded,
            self.state.slide,
            cast(RegionChoice, self.region.currentData()),
            centre_of(self.viewer),
            self._drawing.rectangle(),
            self.state.compute,
            self.maps.isChecked() or target is not None,
            target,
            region,
        )

    def refresh(self) -> None:
        """Make the forecast anew when nothing has changed for a moment."""
        if self.state.closed:
            return
        self.run.setEnabled(False)
        self.draw.setEnabled(self.state.slide_layer is not None)
        self.task.changed()

    def make_forecast(self) -> Callable[[], RunForecast] | None:
        """Return what makes the forecast, in a thread; None without slide, network or rectangle."""
        request = self.request()
        if request is None or self.state.closed:
            return None
        if request.choice == "drawn" and request.drawn is None:
            self.extent.setText("Drag a rectangle over the tissue.")
            self.forecast.setText("")
            return None
        self.forecast.setText("Working out what it will take…")
        return partial(forecast_run, request, self.state.folder)

    def show_forecast(self, forecast: RunForecast) -> None:
        """Show what the run will take."""
        self.extent.setText(forecast.size)
        self.write_forecast("\n".join(text for text in (forecast.resolution, str(forecast)) if text), fits=forecast.fits)
        self.problem.hide()
        self.run.setEnabled(forecast.fits)

    def forecast_failed(self, text: str) -> None:
        """Say why there is no forecast."""
        self.extent.setText("")
        super().forecast_failed(text)

    # ---------------------------------------------------------------------------------------------------------------------------- the run

    def start(self) -> None:
        """Run the network on the region."""
        request = self.request()
        if request is None or self.task.running:
            return
        try:
            region = self.task.forecast.region if request.choice == "tissue" and self.task.forecast is not None else find_region(request)
        except StreamviewError as error:
            self.fail(str(error))
            return
        self._start(request, region)

    def explain(self, prediction: Prediction, target: str) -> None:
        """Compute the maps of another target, on the region of an answer."""
        request = self.request(target, prediction.region)
        if request is None or self.task.running:
            return
        if request.slide.identity != prediction.identity.source or request.loaded.model.sha256 != prediction.identity.weights_sha256:
            self.fail(f"Choose the slide {prediction.slide_name} and the network {prediction.model_name} first: the answer is theirs.")
            return
        self._start(request, prediction.region)

    def _start(self, request: InferenceRequest, region: Region) -> None:
        forecast = self.task.forecast
        live = self._live = LiveMap()
        self._live_layers = []
        out = self.state.folder / f"{next(self._numbers):04d}.ome.zarr"
        user_mpp = request.slide.mpp[0] if request.slide.mpp is not None and request.slide.mpp_source.startswith("given") else None
        loaded = request.loaded
        run = RunFacts(loaded.spec, not loaded.model.card.trained, self.state.slide_path, user_mpp, request.compute)
        self._drawing.outline(region)

        def work(report: Report) -> tuple[Answer, list[LayerTuple]]:
            answer = compute(request, region, out, report, live.watch, forecast)
            return answer, [] if answer.saliency is None else layers.saliency_layers(answer.saliency)

        self.set_running(True)
        self.task.run(
            work,
            done=lambda result: self._answered(*result, run),
            failed=self.fail,
            cancelled=lambda: None,
            progress=partial(self._step, request.maps),
        )

    def _step(self, maps: bool, step: Step) -> None:
        from streamview.streaming.run.timing import format_seconds

        self.bar.setRange(0, step.total)
        self.bar.setValue(step.done)
        if self.cancel.isEnabled():
            self.message.setText(describe_progress(step, maps=maps, format_seconds=format_seconds))

    def draw_run(self) -> None:
        """Draw what has been computed so far: the evidence, which is known before the gradient, and what there is of that."""
        live = self._live
        if live is None or live.values is None or live.prediction is None:
            return
        if not self._live_layers:
            from napari.layers import Layer

            slide = self.state.slide
            mpp = None if slide is None else slide.mpp
            layer_tuple = layers.live_layer("gradient", live.target, live.values, mpp, live.step, live.origin)
            tuples = [layer_tuple]
            if live.evidence is not None:
                evidence = live.evidence
                tuples.insert(0, layers.live_layer("evidence", live.target, evidence.values, mpp, evidence.step, evidence.origin))
            active = self.viewer.layers.selection.active
            self._live_layers = [self.viewer.add_layer(Layer.create(*layer_tuple)) for layer_tuple in tuples]
            self.viewer.layers.selection.active = active
        gradient = self._live_layers[-1]
        if gradient.data is not live.values:
            gradient.data = live.values
        gradient.contrast_limits = (0, live.peak)
        gradient.refresh()

    def _answered(self, answer: Answer, tuples: list[LayerTuple], run: RunFacts) -> None:
        from napari.layers import Layer

        for layer in self.viewer.layers:
            if map_on(layer) is not None:
                layer.visible = False
        # counted before its layers appear, which would count it without its time
        self.state.answer(answer)
        for data, options, kind in tuples:
            layer = Layer.create(data, options, kind)
            note(layer, replace(expect_map(layer), run=replace(run, compute=replace(run.compute, tile=answer.tile))))
            self.viewer.add_layer(layer)
        if self.state.slide_layer is not None:
            self.viewer.layers.selection.active = self.state.slide_layer

    def run_ended(self) -> None:
        """Take away what was drawn of the run."""
        for layer in self._live_layers:
            if layer in self.viewer.layers:
                self.viewer.layers.remove(layer)
        self._live, self._live_layers = None, []
        super().run_ended()
        self.run.setEnabled(self.task.forecast is not None and self.task.forecast.fits)


_UNTRAINED = 0x0101  # Qt.ItemDataRole.UserRole + 1: whether the network has random weights


def _surroundings() -> tuple[list[Entry], bool]:
    """The networks that are known, and whether there is a CUDA device."""
    import torch

    return known_models(), torch.cuda.is_available()
