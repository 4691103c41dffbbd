"""The section that runs a network where the user looks: model, region, forecast, run."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from qtpy.QtCore import QEvent, Qt
from qtpy.QtGui import QColor
from qtpy.QtWidgets import QFileDialog, QLabel, QPushButton, QWidget

from streamview.errors import StreamviewError
from streamview.progress import Report, Step
from streamview_napari.canvas import layers
from streamview_napari.canvas.camera import centre_of
from streamview_napari.canvas.display import ReadyMap, make_ready
from streamview_napari.canvas.drawn_regions import Drawing
from streamview_napari.canvas.live_layers import LiveLayers
from streamview_napari.canvas.live_map import LiveMap
from streamview_napari.panels.forms import Form
from streamview_napari.panels.run_section import RunSection
from streamview_napari.panels.section import Shortcut, quiet_label
from streamview_napari.panels.theme import colours, set_role
from streamview_napari.requests.answers import Answer, RunFacts
from streamview_napari.requests.controls import RunControls
from streamview_napari.requests.inference import (
    REGIONS,
    InferenceRequest,
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
    from streamview.slides import Slide
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
        self._build()
        self._lay_out()
        self._untrained: set[str] = set()  # networks of which only random weights are known
        self._spec = ""  # what the network being loaded or loaded is called
        self._live: LiveMap | None = None
        self._live_slide: Slide | None = None  # that runs
        self._live_layers = LiveLayers(viewer)
        self._numbers = itertools.count(1)
        self._why_none = ""  # why what was drawn is no region
        self._drawing = Drawing(viewer, state, changed=self.refresh, told=self._tell)
        self._connect()
        self._slide_changed(state.slide_layer)
        state.start(lambda report: _surroundings(), done=self._known, failed=self.fail)

    def _build(self) -> None:
        stored = settings().panel
        region = stored.region if stored.region in REGIONS else "2048"
        self.controls = Form(RunControls, region=region, memory=str(self.state.compute.memory or ""), maps=bool(stored.maps))
        natives = self.controls.natives
        self.model, self.region, self.device, self.precision, self.memory, self.even_glass, self.method, self.maps = natives
        self.model.setEnabled(False)
        self.browse = QPushButton("Browse…")
        self.browse.setToolTip("A network of your own: a card.json or config.json with its weights beside it, or an exported .pt2 file.")
        self.card = quiet_label()
        self.card.setToolTip("From the network's card: classes, resolution and licence.")
        self.streaming = quiet_label()
        self.streaming.setToolTip("How the network is divided so that memory does not depend on the region's size.")
        self.streaming.hide()
        self.draw = QPushButton("Draw")
        self.draw.setToolTip("Drag a rectangle over the tissue; the selected or else the last one counts.")
        self.extent = QLabel()
        self.extent.setWordWrap(True)

    def _lay_out(self) -> None:
        self.column.addLayout(self.controls.row("model", beside=(self.browse,)))
        self.column.addWidget(self.card)
        self.column.addWidget(self.streaming)
        self.column.addLayout(self.controls.row("region", beside=(self.draw,)))
        self.column.addLayout(self.controls.row("device", "precision"))
        self.column.addLayout(self.controls.row("memory", "even_glass"))
        self.column.addLayout(self.controls.row("method", beside=(self.maps,)))
        below: tuple[QWidget, ...] = (self.extent, self.forecast)
        for widget in below:
            self.column.addWidget(widget)
        self.column.addLayout(self.buttons())
        progress: tuple[QWidget, ...] = (self.bar, self.message, self.problem)
        for widget in progress:
            self.column.addWidget(widget)

    def _connect(self) -> None:
        self.controls.changed.connect(self._changed)
        self.browse.clicked.connect(self._browse)
        self.draw.clicked.connect(self.start_drawing)
        events = self.state.events
        events.slide_changed.connect(self._slide_changed)
        events.explanation_wanted.connect(self.explain)
        events.model_wanted.connect(self.choose)
        events.machine_changed.connect(self.refresh)

    def controls_of_run(self) -> tuple[QWidget, ...]:
        """All that describes the run."""
        return (*self.controls.natives, self.browse, self.draw)

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

    def _changed(self, name: str) -> None:
        if name == "model":
            if self.model.currentData() != self._spec:
                self._load()
        elif name in ("region", "maps"):
            setattr(settings().panel, name, self.controls[name].value)
            if self.controls["region"].value == "drawn" and self._drawing.rectangle() is None:
                self.start_drawing()
            self.refresh()
        elif self.model.isEnabled():  # until then the devices are not all known
            if self.controls.valid:
                self.state.compute_with(self.controls.value.compute)
            else:
                self.extent.setText("")
                self.write_forecast("")
            self.refresh()

    # ------------------------------------------------------------------------------------------------------------------------ the network

    def _known(self, choices: tuple[list[Entry], bool]) -> None:
        entries, cuda = choices
        stored = settings().panel
        self._untrained = {entry.spec for entry in entries if not entry.trained}
        with self.controls.changed.blocked():
            if cuda:
                self.device.addItem("cuda", "cuda")
            self.device.setCurrentIndex(max(0, self.device.findData(self.state.compute.device)))
            self.controls["model"].choices = [(entry.name, entry.spec) for entry in entries]
            if self.model.findData(stored.model) < 0 and Path(stored.model).exists():
                self._add_file(stored.model)
            self.model.setCurrentIndex(max(0, self.model.findData(stored.model)))
        self._colour_models()
        self.model.setEnabled(True)
        self._changed("device")
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
            if self.model.itemData(place) in self._untrained:
                self.model.setItemData(place, colour, Qt.ItemDataRole.ForegroundRole)

    def _add_file(self, spec: str) -> int:
        place: int = self.model.findData(spec)
        if place < 0:
            path = Path(spec)
            self.model.addItem(path.parent.name if path.name in ("card.json", "config.json") else path.name, spec)
            place = self.model.count() - 1
        return place

    def _browse(self) -> None:
        kinds = "Networks (card.json config.json *.pt2);;All files (*)"
        spec, _ = QFileDialog.getOpenFileName(self, "Open a network", "", kinds)
        if spec:
            self.choose(spec)

    def choose(self, spec: str) -> None:
        """Load the network of this name, folder or file."""
        with self.controls.changed.blocked():
            self.model.setCurrentIndex(self._add_file(spec))
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
        untrained = spec in self._untrained
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
        self.state.warm_up()
        self.refresh()

    def _not_loaded(self, spec: str, text: str) -> None:
        if spec == self._spec:
            self.card.hide()
            self.fail(text)

    # ------------------------------------------------------------------------------------------------------------------------- the region

    def _tell(self, text: str) -> None:
        self._why_none = text
        self.extent.setText(text)

    def start_drawing(self) -> None:
        """Let the user drag a rectangle, on a layer made for it."""
        if self.state.slide_layer is None:
            return
        self._drawing.draw(True)
        self.region.setCurrentIndex(self.region.findData("drawn"))
        self.refresh()

    # ----------------------------------------------------------------------------------------------------------------------- the forecast

    def _slide_changed(self, layer: Image | None) -> None:
        self.fill(layer is not None)
        self.refresh()

    def request(self, target: str | None = None, region: Region | None = None) -> InferenceRequest | None:
        """Return the run that the controls describe; None without slide or network, or where a control holds what it cannot."""
        if self.state.slide is None or self.state.loaded is None or not self.controls.valid:
            return None
        return InferenceRequest(
            self.state.loaded,
            self.state.slide,
            self.controls["region"].value,
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
        request = self.request()
        self.run.setEnabled(request is not None and not self.task.running and (request.choice != "drawn" or request.drawn is not None))
        self.draw.setEnabled(self.state.slide_layer is not None)
        self.task.changed()

    def make_forecast(self) -> Callable[[], RunForecast] | None:
        """Return what makes the forecast, in a thread; None without slide, network or rectangle."""
        request = self.request()
        if request is None or self.state.closed:
            return None
        if request.choice == "drawn" and request.drawn is None:
            self.extent.setText(self._why_none or "Drag a rectangle over the tissue.")
            self.forecast.setText("")
            return None
        self.forecast.setText("Working out what it will take…")
        return partial(forecast_run, request, self.state.folder)

    def show_forecast(self, forecast: RunForecast) -> None:
        """Show what the run will take."""
        self._why_none = ""
        self.extent.setText(forecast.size)
        self.write_forecast("\n".join(text for text in (forecast.resolution, str(forecast)) if text), fits=forecast.fits)
        self.problem.hide()
        self.allow(forecast.fits)

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
        out = self.state.folder / f"{next(self._numbers):04d}.ome.zarr"
        user_mpp = request.slide.mpp[0] if request.slide.mpp is not None and request.slide.mpp_source.startswith("given") else None
        loaded = request.loaded
        run = RunFacts(loaded.spec, not loaded.model.card.trained, self.state.slide_path, user_mpp, request.compute)
        caps = dict(self.state.caps)
        self._live_slide = request.slide
        self.state.analyse(request.slide.identity, region)

        def work(report: Report) -> tuple[Answer, ReadyMap | None]:
            answer = compute(request, region, out, report, live.watch, forecast)
            answer = replace(answer, run=replace(run, compute=replace(run.compute, tile=answer.tile)))
            if answer.saliency is None:
                return answer, None
            recipe = layers.first_recipe(answer.saliency)
            cap = caps.get(recipe.method)
            return answer, make_ready(answer.saliency, recipe if cap is None else replace(recipe, cap=cap), request.slide)

        self.set_running(True)
        self.task.run(
            work,
            done=lambda result: self.state.answer(*result),
            failed=self.fail,
            cancelled=lambda: self.say("Cancelled."),
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
        live, slide = self._live, self._live_slide
        if live is not None and slide is not None:
            self._live_layers.draw(live, slide.mpp, visible=self.state.source == slide.identity)

    def run_ended(self) -> None:
        """Take away what was drawn of the run."""
        self._live_layers.hide()
        self._live, self._live_slide = None, None
        self.state.analyse("", None)
        super().run_ended()
        self.run.setEnabled(self.task.forecast is None or self.task.forecast.fits)


def _surroundings() -> tuple[list[Entry], bool]:
    """The networks that are known, and whether there is a CUDA device."""
    import torch

    return known_models(), torch.cuda.is_available()
