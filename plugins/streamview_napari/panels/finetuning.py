"""The section that fine-tunes the network on the labelled regions: controls, forecast, curves, and what came out."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from qtpy.QtGui import QShowEvent
from qtpy.QtWidgets import QApplication, QFileDialog, QLabel, QPushButton, QWidget

from streamview.errors import StreamviewError
from streamview.finetuning.forecast import TrainingForecast
from streamview.finetuning.split import CASES
from streamview.progress import Report, Step
from streamview_napari.panels.finetuning_curves import Curves
from streamview_napari.panels.finetuning_result import Outcome
from streamview_napari.panels.forms import Form
from streamview_napari.panels.run_section import RunSection
from streamview_napari.panels.section import quiet_label
from streamview_napari.panels.theme import set_role
from streamview_napari.requests.finetuning import (
    FinetuningRequest,
    TuningControls,
    command,
    describe_end,
    describe_forecast,
    describe_heads,
    describe_training,
    find_obstacle,
    forecast_finetuning,
    is_begun,
    is_unfinished,
    needs_new_head,
    propose_folder,
    train,
    values_of,
)
from streamview_napari.settings import settings
from streamview_napari.tasks import yield_to_window

if TYPE_CHECKING:
    from napari.components import ViewerModel

    from streamview.finetuning import FinetuneResult
    from streamview.finetuning.history import History
    from streamview_napari.state import State

__all__ = ["FinetuningSection"]


class FinetuningSection(RunSection[TrainingForecast]):
    """Tune a copy of the chosen network on the labelled regions, watch it, stop it, compare it, use it or not."""

    title = "Fine-tune"
    opens = "room"

    def __init__(self, viewer: ViewerModel, state: State) -> None:
        super().__init__(viewer, state, run="Start", stop="Stop")
        self.forecast.setToolTip("Timed on a sample on this machine.")
        self.run.setToolTip("Tune a copy of the network; the base is never changed.")
        self.cancel.setToolTip("Stop after the present step; it can go on later.")
        self._build()
        self._lay_out()
        self._proposed = ""  # the folder that the user has not chosen
        self._history: History | None = None  # set by the thread that trains
        self._latest: Step | None = None
        self._epochs = 0
        self._remarks: list[str] = []
        self._connect()
        self._propose()

    def _build(self) -> None:
        self.subject = quiet_label()
        self.controls = Form(TuningControls, preset="head", folder=Path(), **values_of("head"))
        self.folder, self.anew, self.anyway = (self.controls[name].native for name in ("folder", "restart", "force"))
        self.browse = QPushButton("Browse…")
        self.browse.setToolTip("Choose the folder.")
        self.heads = quiet_label()
        self.obstacle = QLabel()
        self.obstacle.setWordWrap(True)
        set_role(self.obstacle, "warning")
        self.copy = QPushButton("Copy as CLI")
        self.copy.setToolTip("Copy the command line that does the same; the labels must be saved.")
        self.curves = Curves(self.viewer)
        self.outcome = Outcome(self.state)
        hidden: tuple[QWidget, ...] = (self.anew, self.heads, self.obstacle, self.anyway)
        for widget in hidden:
            widget.hide()

    def _lay_out(self) -> None:
        self.column.addWidget(self.subject)
        for name in ("preset", "train"):
            self.column.addLayout(self.controls.row(name))
        self.column.addLayout(self.controls.grid("learning_rate", "weight_decay", "batch", "validation", "epochs", "patience"))
        self.column.addLayout(self.controls.row("folder", beside=(self.browse,)))
        above: tuple[QWidget, ...] = (self.anew, self.heads, self.obstacle, self.anyway, self.forecast)
        for widget in above:
            self.column.addWidget(widget)
        self.column.addLayout(self.buttons(self.copy))
        below: tuple[QWidget, ...] = (self.bar, self.message, self.problem, self.curves, self.outcome)
        for widget in below:
            self.column.addWidget(widget)

    def _connect(self) -> None:
        self.controls.changed.connect(self._changed)
        self.browse.clicked.connect(self._browse)
        self.copy.clicked.connect(self.copy_command)
        events = self.state.events
        for event in (events.labels_changed, events.model_changed):
            event.connect(lambda change: self._propose())
        events.machine_changed.connect(self.refresh)

    def controls_of_run(self) -> tuple[QWidget, ...]:
        """All that describes the training."""
        return (*self.controls.natives, self.browse)

    def showEvent(self, event: QShowEvent) -> None:
        """Make the forecast when the section is opened; while it is closed none is made."""
        super().showEvent(event)
        self.refresh()

    # ----------------------------------------------------------------------------------------------------------------------- the controls

    def _changed(self, name: str) -> None:
        if name == "preset":
            self.controls.fill(**values_of(self.controls["preset"].value))
        self.refresh()

    def _propose(self) -> None:
        """Offer a folder, unless the user has chosen one."""
        self.fill(self.state.slide_layer is not None or bool(self.state.labels))
        loaded = self.state.loaded
        if loaded is not None and not self.task.running and self.folder.text() == self._proposed:
            spec = Path(loaded.spec)
            name = spec.parent.name if spec.name in ("card.json", "config.json") else spec.stem
            self._proposed = str(propose_folder(self.state.table, Path(settings().panel.folder).expanduser(), name))
            self.controls.fill(folder=Path(self._proposed))
        self.refresh()

    def _browse(self) -> None:
        chosen = QFileDialog.getExistingDirectory(self, "Folder of the tuned network", str(Path(self.folder.text()).parent))
        if chosen:
            self.folder.setText(chosen)

    def request(self) -> FinetuningRequest | None:
        """Return the fine-tuning that the controls describe; None without network or labels.

        Raises
        ------
        StreamviewError
            When a control holds what it cannot.
        """
        loaded, labels = self.state.loaded, self.state.labels
        if loaded is None or not labels:
            return None
        controls, memory = self.controls.value, self.state.compute.memory
        return FinetuningRequest(
            loaded,
            labels,
            controls.settings(),
            controls.folder,
            self.state.compute.device,
            None if memory is None else str(memory),
            force=self.anyway.isVisibleTo(self) and controls.force,
            new_head=needs_new_head(labels, loaded.model.card),
            restart=self.anew.isVisibleTo(self) and controls.restart,
        )

    # ----------------------------------------------------------------------------------------------------------------------- the forecast

    def refresh(self) -> None:
        """Make the forecast anew when nothing has changed for a moment."""
        if self.state.closed or self.task.running:
            return
        self.run.setEnabled(False)
        loaded, labels = self.state.loaded, self.state.labels
        obstacle = None if loaded is None else find_obstacle(labels, loaded.model.card)
        self.obstacle.setText(
            f"With fewer than {CASES} patients of a class the result mostly reflects chance: {(obstacle or '').removeprefix('patients: ')}."
        )
        for widget in (self.obstacle, self.anyway):
            widget.setVisible(obstacle is not None)
        count = f"{len(labels)} labelled region{'s' * (len(labels) != 1)}" if labels else "labelled regions: draw some above"
        drawn = loaded is not None and not loaded.model.card.trained
        name = "" if loaded is None else f"{loaded.model.card.name}{' (random weights)' if drawn else ''}"
        self.subject.setText("" if loaded is None else f"A copy of {name} learns from {count}.")
        set_role(self.subject, "warning" if drawn else "quiet")
        self.heads.setText("" if loaded is None else describe_heads(labels, loaded.model.card))
        self.heads.setVisible(bool(self.heads.text()))
        out = Path(self.folder.text().strip()).expanduser()
        self.anew.setVisible(is_begun(out))
        self.run.setText("Go on" if is_unfinished(out) and not self.anew.isChecked() else "Start")
        self.task.changed()

    def make_forecast(self) -> Callable[[], TrainingForecast] | None:
        """Return what makes the forecast, in a thread; None while the section is closed, or where nothing could be trained."""
        if self.state.closed or not self.isVisible():
            return None
        if not self.state.labels:
            self.write_forecast("")
            return None
        try:
            request = self.request()
        except StreamviewError as error:
            self.write_forecast(str(error), fits=False)
            return None
        if request is None:
            return None
        if self.obstacle.isVisibleTo(self) and not request.force:
            self.write_forecast("")
            return None
        self.write_forecast("Working out what it will take…")
        return partial(forecast_finetuning, request)

    def show_forecast(self, forecast: TrainingForecast) -> None:
        """Show what the training will take."""
        self.write_forecast(describe_forecast(forecast))
        self.allow(True)

    def write_forecast(self, text: str, *, fits: bool = True) -> None:
        """Say what the training will take, or why it cannot be."""
        super().write_forecast(text, fits=fits)
        self.forecast.setVisible(bool(text))

    # ----------------------------------------------------------------------------------------------------------------------- the training

    def start(self) -> None:
        """Tune a copy of the network on the labelled regions, or go on with it."""
        if self.task.running:
            return
        try:
            request = self.request()
        except StreamviewError as error:
            self.fail(str(error))
            return
        if request is None:
            return
        self._history, self._latest, self._remarks, self._epochs = None, None, [], request.settings.epochs

        forecast = self.task.forecast

        def watch(history: History) -> None:
            self._history = history

        def work(report: Report) -> FinetuneResult:
            yield_to_window()
            return train(request, forecast, report, watch, self._remarks.append)

        self.set_running(True)
        self.outcome.hide()
        self.task.run(
            work,
            done=partial(self._tuned, request),
            failed=self._failed,
            cancelled=partial(self._stopped, request.out),
            progress=self._step,
        )

    def copy_command(self) -> None:
        """Copy the command line that does the same to the clipboard."""
        table = self.state.table
        try:
            request = self.request()
        except StreamviewError as error:
            self.fail(str(error))
            return
        if request is None or table is None:
            self.fail("The command line reads the labels from a file: save them first, in Labels above.")
            return
        QApplication.clipboard().setText(command(request, table, self.controls["preset"].value))
        self.problem.hide()
        self.message.setText("Copied.")
        self.message.show()

    def _step(self, step: Step) -> None:
        self._latest = step

    def draw_run(self) -> None:
        """Show where the training is."""
        step, history, epochs = self._latest, self._history, self._epochs
        if step is not None:
            self.bar.setRange(0, step.total)
            self.bar.setValue(step.done)
            self.note(f"{step.done / max(step.total, 1):.0%}")
            if self.cancel.isEnabled():
                self.message.setText("\n".join([*self._remarks, describe_training(step, history, epochs)]))
        if history is not None and history is not self.curves.history:
            self.curves.draw(history)

    def run_ended(self) -> None:
        """Show how far it came."""
        self.draw_run()
        super().run_ended()

    def _tuned(self, request: FinetuningRequest, result: FinetuneResult) -> None:
        self._history = result.history
        self.draw_run()
        self.note("done")
        self.refresh()
        self._propose()
        self.outcome.show_result(result, request.loaded.spec, request.out)

    def _stopped(self, out: Path) -> None:
        self.note("stopped")
        self.refresh()
        self.message.setText(describe_end(self._history, out))
        self.message.show()

    def _failed(self, text: str) -> None:
        self.note("")
        self.refresh()
        self.fail(text)
