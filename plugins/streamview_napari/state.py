"""What the sections of the dock share: the slide, the result and the map that the user works on.

Sections are made with the viewer and this state. `State` watches a viewer's layers, so that slides and results that the reader, the
command line or a script has added count like those of the dock; what it knows of a layer is its record, see ``records``. All events are
emitted on the GUI thread.
"""

from __future__ import annotations

import gc
import tempfile
import weakref
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from napari.utils.notifications import show_warning
from psygnal import Signal, SignalGroup

from streamview.inference.compute import Compute
from streamview.progress import Report, Step
from streamview_napari.records import MapLayer, SlideLayer, expect_map, map_on, note, slide_on
from streamview_napari.requests.answers import Answer
from streamview_napari.requests.history import History
from streamview_napari.requests.warmup import warm_up
from streamview_napari.settings import settings
from streamview_napari.tasks import Courier, Work

if TYPE_CHECKING:
    from napari.components import ViewerModel
    from napari.layers import Image, Layer

    from streamview.geometry import Region
    from streamview.inspection.certificate import Certificate
    from streamview.labels.regions import Example
    from streamview.results import Method, Saliency
    from streamview.results.shown_map import ShownMap
    from streamview.slides import Slide
    from streamview_napari.requests.models import Loaded

__all__ = ["Events", "State"]

_Result = TypeVar("_Result")


class Events(SignalGroup):
    """What may happen.

    ``slide_changed(layer)``: another slide is worked on, or its mpp was given; None when there is none. ``model_changed(loaded)``.
    ``answers_changed()``: there is one more answer for the slide worked on, or one was verified, or the slide has changed.
    ``answer_selected(answer, ready)``: it is the one worked on, None when there is none; ``ready`` is its map made ready in a thread,
    or None. ``map_selected(layer)``: a layer of the answer worked on, or None. ``recipe_changed()``: a map is shown by another recipe.
    ``explanation_wanted(prediction, target)``: the user wants maps of another target, by name. ``machine_changed()``: another device or
    memory bound was chosen. ``labels_changed(labels)``: regions were labelled, or where they are kept has changed.
    ``example_wanted(example)``: the user wants to see a labelled region. ``model_wanted(spec)``: the user wants to run this network.
    """

    slide_changed = Signal(object)
    model_changed = Signal(object)
    answers_changed = Signal()
    answer_selected = Signal(object, object)
    map_selected = Signal(object)
    recipe_changed = Signal()
    explanation_wanted = Signal(object, str)
    machine_changed = Signal()
    labels_changed = Signal(object)
    example_wanted = Signal(object)
    model_wanted = Signal(str)


class State:
    """The slide, result and map worked on in one viewer, and the work under way there.

    Parameters
    ----------
    viewer
        Its layers are watched from now on.
    """

    def __init__(self, viewer: ViewerModel) -> None:
        self.viewer = viewer
        self.events = Events()
        self.answers: list[Answer] = []
        self.loaded: Loaded | None = None
        self._compute: Compute | None = None
        self.labels: tuple[Example, ...] = ()
        self.table: Path | None = None
        self.history = History()
        """What the user can undo."""
        self._slide: Image | None = None
        self._map: Image | None = None
        self._shown: ShownMap | None = None  # by that layer
        self._sources: set[str] = set()  # identities of the slides that were worked on
        self._selected: dict[str, Answer] = {}  # by the slide's identity, empty where no slide is open
        self._analysing: tuple[str, Region | None] = ("", None)
        self.caps: dict[Method, float] = {}
        """Raw values that get the full colour on every map of a kind, where the user wants one scale for all."""
        self._works: list[Work] = []
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._left: list[SlideLayer] = []  # of slides without a layer, which work may still read
        self._courier = Courier()
        self._warm = False
        self._saved: set[tuple[str, str]] = set()  # what was exported or kept
        self.closed = False
        viewer.layers.events.inserted.connect(self._inserted)
        viewer.layers.events.removed.connect(self._removed)
        viewer.layers.selection.events.active.connect(self._activated)
        for layer in list(viewer.layers):
            self._add(layer)

    @property
    def slide_layer(self) -> Image | None:
        """Layer of the slide worked on: the one that was added or made active last."""
        return self._slide

    @property
    def slide(self) -> Slide | None:
        """The open slide of that layer, with the mpp that the user gave where its file states none."""
        record = slide_on(self._slide)
        return None if record is None else record.source

    @property
    def slide_path(self) -> str | None:
        """From where it was opened; None where that is not known."""
        record = slide_on(self._slide)
        return None if record is None else record.path

    @property
    def map_layer(self) -> Image | None:
        """The map layer worked on."""
        return self._map

    @property
    def map(self) -> MapLayer | None:
        """What that layer shows."""
        return map_on(self._map)

    @property
    def source(self) -> str:
        """Identity of the slide worked on; empty where there is none."""
        return "" if self.slide is None else self.slide.identity

    def concerns(self, source: str) -> bool:
        """Whether what was computed for a slide may be shown now: that slide is worked on, or none is and that one was never here."""
        return source == self.source if self.source else source not in self._sources

    @property
    def answers_here(self) -> list[Answer]:
        """The answers that may be shown now, oldest first."""
        return [answer for answer in self.answers if self.concerns(answer.source)]

    @property
    def selected(self) -> Answer | None:
        """The answer worked on."""
        return self._selected.get(self.source)

    @property
    def result(self) -> Saliency | None:
        """The maps of the answer worked on."""
        return None if self.selected is None else self.selected.saliency

    def select_slide(self, layer: Image | None) -> None:
        """Work on another slide, and on the answer that was worked on there."""
        if layer is not self._slide:
            self._slide = layer
            if self.source:
                self._sources.add(self.source)
            if self.answers_here:
                self._selected.setdefault(self.source, self.answers_here[-1])
            self.events.slide_changed.emit(layer)
            self.events.answers_changed.emit()
            self.events.answer_selected.emit(self.selected, None)

    def forget_answers(self) -> None:
        """Forget all answers; no map is worked on any more."""
        if self.answers:
            self.answers.clear()
            self._selected.clear()
            self.events.answers_changed.emit()
            self.events.answer_selected.emit(None, None)

    @property
    def folder(self) -> Path:
        """Where results lie until they are exported: a temporary folder, removed on closing."""
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="streamview-", ignore_cleanup_errors=True)
        return Path(self._folder.name)

    def load(self, loaded: Loaded | None) -> None:
        """Work with another network."""
        self.loaded = loaded
        self.events.model_changed.emit(loaded)

    @property
    def compute(self) -> Compute:
        """On which device, and within which memory: as in the settings until the user chooses."""
        if self._compute is None:
            stored = settings().panel
            self._compute = Compute(stored.device, stored.memory or None)
        return self._compute

    def compute_with(self, compute: Compute) -> None:
        """Compute on this device within this memory from now on; the settings keep both."""
        stored = settings().panel
        stored.device, stored.memory = compute.device, str(compute.memory or "")
        if compute != self._compute:
            self._compute = compute
            self.events.machine_changed.emit()

    def label(self, labels: tuple[Example, ...], table: Path | None = None) -> None:
        """Work with these labelled regions, of any slides; `table` is the file that holds exactly them, None while they are not saved."""
        self.labels, self.table = labels, table
        self.events.labels_changed.emit(labels)

    def change_labels(self, labels: tuple[Example, ...], table: Path | None = None) -> None:
        """As `label`, for a change that the user can undo; what is undone is in no file."""
        before = self.labels
        self.history.add(lambda: self.label(before))
        self.label(labels, table)

    def answer(self, answer: Answer, ready: object = None) -> None:
        """Count an answer, once, and work on it if it is for the slide worked on."""
        if answer.saliency is not None and any(answer.saliency is known.saliency for known in self.answers):
            return
        self.answers.append(answer)
        if self.concerns(answer.source):
            self.events.answers_changed.emit()
            self.select(answer, ready)
        else:
            self._selected[answer.source] = answer

    def analyse(self, source: str, region: Region | None) -> None:
        """Say which region of which slide is being analysed; None: none any more."""
        self._analysing = source, region
        self.events.answers_changed.emit()

    @property
    def regions(self) -> list[Region]:
        """What was or is being analysed of the slide worked on."""
        source, region = self._analysing
        regions = dict.fromkeys(answer.prediction.region for answer in self.answers_here)
        return [*regions, *([] if region is None or not self.concerns(source) else [region])]

    @property
    def unsaved(self) -> list[Answer]:
        """What was computed in this window and neither exported nor kept."""
        return [answer for answer in self.answers if answer.run is not None and _facts(answer) not in self._saved]

    def saved(self, answers: Iterable[Answer]) -> None:
        """Note that these are exported or kept."""
        self._saved |= {_facts(answer) for answer in answers}

    def certify(self, answer: Answer, certificate: Certificate) -> Answer:
        """Keep the certificate with an answer; return that."""
        certified = replace(answer, certificate=certificate)
        self.answers[self.answers.index(answer)] = certified
        for source, selected in self._selected.items():
            if selected is answer:
                self._selected[source] = certified
        for layer in () if answer.saliency is None else self.maps_of(answer.saliency):
            note(layer, replace(expect_map(layer), certificate=certificate))
        self.events.answers_changed.emit()
        return certified

    def select(self, answer: Answer | None, ready: object = None) -> None:
        """Work on another answer of the slide worked on."""
        if answer is not self.selected:
            if answer is None:
                self._selected.pop(self.source, None)
            else:
                self._selected[self.source] = answer
            self.events.answer_selected.emit(answer, ready)

    def answer_of(self, saliency: Saliency) -> Answer | None:
        """Return the answer that has these maps; None of those that are made of others, as differences are."""
        return next((answer for answer in self.answers if answer.saliency is saliency), None)

    def select_map(self, layer: Image | None) -> None:
        """Work on another map, and on the answer that it shows; a layer may show another map than it did."""
        record = map_on(layer)
        shown = None if record is None else record.shown
        if layer is self._map and shown is self._shown:
            return
        self._map, self._shown = layer, shown
        answer = None if self.map is None else self.answer_of(self.map.saliency)
        if answer is not None and self.concerns(answer.source):
            self.select(answer)
        self.events.map_selected.emit(layer)

    def maps_of(self, saliency: Saliency) -> list[Image]:
        """Return the layers that show a result, the lowest first."""
        return [layer for layer in self.viewer.layers if (record := map_on(layer)) is not None and record.saliency is saliency]

    def start(
        self,
        function: Callable[[Report], _Result],
        *,
        done: Callable[[_Result], None],
        failed: Callable[[str], None],
        cancelled: Callable[[], None] | None = None,
        progress: Callable[[Step], None] | None = None,
    ) -> Work:
        """Run a function in a thread; it is cancelled when the viewer closes. All that is called back is called on the GUI thread.

        Parameters
        ----------
        function
            Gets a `Report` to call after every step; this raises `Cancelled` where the user asked for it. It touches no layer.
        done
            Called with what the function returned.
        failed
            Called with the text of any error.
        cancelled
            Called when it was cancelled.
        progress
            Called with the latest `Step`, at most some twenty times a second.
        """
        self._close_left()
        work = Work(function, done=done, failed=failed, cancelled=cancelled, progress=progress)
        self._works = [other for other in self._works if other.running] + [work]
        work.start()
        return work

    def warm_up(self) -> None:
        """Do beforehand what the first use would wait for; once.

        napari collects garbage whenever a layer is removed, which takes half a second among torch's objects: from then on they are left
        out, until the window or the dock closes.
        """
        if not self._warm:
            self._warm = True
            self.start(lambda report: warm_up(), done=lambda nothing: gc.freeze(), failed=lambda text: None)

    def post(self, key: object, function: Callable[[], None]) -> None:
        """Have a function called on the GUI thread soon; of those with the same key only the last."""
        self._courier.post(key, function)

    @property
    def running(self) -> bool:
        """Whether the network runs on a region."""
        return self._analysing[1] is not None

    @property
    def busy(self) -> bool:
        """Whether work is under way."""
        return any(work.running for work in self._works)

    def close(self) -> None:
        """Cancel all work, wait for it, close the slides whose layers are gone, and let go of the viewer; once."""
        if self.closed:
            return
        self.closed = True
        for work in self._works:
            work.cancel()
        for work in self._works:
            work.wait()
        self._works.clear()
        self._close_left()
        for layer in self.viewer.layers:
            record = slide_on(layer)
            if record is not None and record.tiles is not None:
                record.tiles.stop()
                record.tiles.loaded.disconnect()
                record.tiles.failed.disconnect()
                layer.__dict__.pop("set_view_slice", None)
        self._courier.close()
        gc.unfreeze()
        if self._folder is not None:
            self._folder.cleanup()
        self.viewer.layers.events.inserted.disconnect(self._inserted)
        self.viewer.layers.events.removed.disconnect(self._removed)
        self.viewer.layers.selection.events.active.disconnect(self._activated)

    def _close_left(self) -> None:
        """Close the slides whose layers are gone, unless work may still read them."""
        if not self.busy:
            while self._left:
                record = self._left.pop()
                if record.tiles is not None:
                    record.tiles.stop()
                record.source.close()

    def _inserted(self, event: Any) -> None:
        self._add(event.value)

    def _add(self, layer: Layer) -> None:
        if slide_on(layer) is not None:
            self.select_slide(layer)
            self._load(layer)
        record = map_on(layer)
        if record is not None and self.answer_of(record.saliency) is None:
            self.answers += [Answer(saliency.prediction, saliency) for saliency in record.siblings]
            self.answer(Answer(record.saliency.prediction, record.saliency, run=record.run, certificate=record.certificate))
        if record is not None and layer.visible and self.concerns(record.source):
            self.select_map(layer)

    def _load(self, layer: Layer) -> None:
        """Have a slide drawn from what is there, never waiting for its file, and drawn anew when more has come."""
        record = slide_on(layer)
        tiles = None if record is None else record.tiles
        if tiles is None:
            return
        shown, courier = weakref.ref(layer), self._courier  # the tiles must not keep the layer that they are of

        def draw() -> None:
            layer = shown()
            if layer is not None:
                with tiles.without_waiting():
                    type(layer).set_view_slice(layer)

        def draw_anew() -> None:
            layer = shown()
            if layer is not None:
                layer.refresh(extent=False)

        layer.set_view_slice = draw
        tiles.loaded.connect(lambda: courier.post(shown, draw_anew))
        tiles.failed.connect(lambda text: courier.post(text, lambda: show_warning(text)))

    def _removed(self, event: Any) -> None:
        layer = event.value
        record = slide_on(layer)
        if record is not None and record.path is not None:
            self._left.append(record)
            self._close_left()
        if layer is self._slide:
            slides = [other for other in self.viewer.layers if slide_on(other) is not None]
            self.select_slide(slides[-1] if slides else None)
        if layer is self._map:
            maps = [other for other in self.viewer.layers if (shown := map_on(other)) is not None and self.concerns(shown.source)]
            self.select_map(next((other for other in reversed(maps) if other.visible), None))

    def _activated(self, event: Any) -> None:
        if slide_on(event.value) is not None:
            self.select_slide(event.value)
        elif (record := map_on(event.value)) is not None and self.concerns(record.source):
            self.select_map(event.value)


def _facts(answer: Answer) -> tuple[str, str]:
    """What tells an answer from others, however often it was computed."""
    return answer.prediction.identity.key, "" if answer.saliency is None else str(answer.saliency.target)
