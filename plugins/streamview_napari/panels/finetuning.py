"""The section that fine-tunes the network on the labelled regions: controls, forecast, curves, and what came out."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from qtpy.QtCore import QTimer
from qtpy.QtGui import QShowEvent
from qtpy.QtWidgets import (
    QApplication,
    QCheckBox,
    QFileDialog,
    QHBoxLayout,
    QLabel,
    QLineEdit,
    QProgressBar,
    QPushButton,
)

from streamview.errors import StreamviewError, TrainingError
from streamview.finetuning.split import CASES
from streamview.progress import Report, Step
from streamview_napari.panels.finetuning_controls import Controls
from streamview_napari.panels.finetuning_results import Outcome
from streamview_napari.panels.loss_curves import Curves
from streamview_napari.panels.section import BAR_STYLE, ERROR_STYLE, RUN_STYLE, Section, labelled, quiet_label
from streamview_napari.requests.finetuning import (
    Tuning,
    command,
    describe_end,
    describe_heads,
    describe_training,
    find_obstacle,
    foresee,
    is_begun,
    is_unfinished,
    needs_new_head,
    propose_folder,
    train,
)
from streamview_napari.settings import settings
from streamview_napari.tasks import yield_to_window

if TYPE_CHECKING:
    from napari.components import ViewerModel

    from streamview.finetuning import FinetuneResult
    from streamview.finetuning.history import History
    from streamview_napari.state import State
    from streamview_napari.tasks import Work

__all__ = ["FinetuningSection"]

_DEBOUNCE = 300  # ms without a change before the forecast is made anew
_REDRAW = 500  # ms between two drawings of progress and curves


class FinetuningSection(Section):
    """Tune a copy of the chosen network on the labelled regions, watch it, stop it, compare it, use it or not."""

    title = "Fine-tune"
    folded = True

    def __init__(self, viewer: ViewerModel, state: State) -> None:
        super().__init__(viewer, state)
        self.subject = quiet_label()
        self.controls = Controls()
        self.folder = QLineEdit()
        self.folder.setToolTip("Where the tuned network goes: a folder that opens like any other network.")
        self.browse = QPushButton("Browse…")
        self.browse.setToolTip("Choose the folder.")
        self.anew = QCheckBox("Begin anew")
        self.anew.setToolTip("A training lies in this folder already; it is overwritten.")
        self.heads = quiet_label()
        self.obstacle = QLabel()
        self.obstacle.setWordWrap(True)
        self.obstacle.setStyleSheet("color: #e8a860;")
        self.anyway = QCheckBox("Train anyway")
        self.anyway.setToolTip("With so few patients the figures below say little of new ones.")
        self.forecast = quiet_label()
        self.forecast.setToolTip("Timed on a sample on this machine.")
        self.run = QPushButton("Start")
        self.run.setStyleSheet(RUN_STYLE)
        self.run.setToolTip("Tune a copy of the network; the base is never changed.")
        self.run.setEnabled(False)
        self.cancel = QPushButton("Stop")
        self.cancel.setToolTip("Stop after the present step; it can go on later.")
        self.cancel.setEnabled(False)
        self.copy = QPushButton("Copy as CLI")
        self.copy.setToolTip("Copy the command line that does the same; the labels must be saved.")
        self.bar = QProgressBar()
        self.bar.setFixedHeight(8)
        self.bar.setTextVisible(False)
        self.bar.setStyleSheet(BAR_STYLE)
        self.said = quiet_label()
        self.curves = Curves()
        self.outcome = Outcome(state)
        self.problem = QLabel()
        self.problem.setWordWrap(True)
        self.problem.setStyleSheet(ERROR_STYLE)
        self._lay_out()

        self._foreseeing: Work | None = None
        self._running: Work | None = None
        self._stale = False
        self._proposed = ""  # the folder that the user has not chosen
        self._watched: History | None = None  # set by the thread that trains
        self._latest: Step | None = None
        self._epochs = 0
        self._told: list[str] = []
        self._debounce = QTimer(self, interval=_DEBOUNCE, singleShot=True)
        self._debounce.timeout.connect(self._foresee)
        self._redraw = QTimer(self, interval=_REDRAW)
        self._redraw.timeout.connect(self._draw)
        for hidden in (self.anew, self.heads, self.obstacle, self.anyway, self.bar, self.said, self.problem):
            hidden.hide()
        self.controls.changed.connect(self.refresh)
        self.folder.textChanged.connect(self.refresh)
        self.browse.clicked.connect(self._browse)
        for box in (self.anyway, self.anew):
            box.toggled.connect(self.refresh)
        self.run.clicked.connect(self.start)
        self.cancel.clicked.connect(self.stop)
        self.copy.clicked.connect(self.copy_command)
        for event in (state.events.labels_changed, state.events.model_changed):
            event.connect(lambda found: self._propose())
        state.events.machine_changed.connect(self.refresh)
        self._propose()

    def _lay_out(self) -> None:
        self.column.addWidget(self.subject)
        self.column.addWidget(self.controls)
        self.column.addLayout(labelled("Folder", self.folder, self.browse))
        for widget in (self.anew, self.heads, self.obstacle, self.anyway, self.forecast):
            self.column.addWidget(widget)
        row = QHBoxLayout()
        row.addWidget(self.run, 2)
        row.addWidget(self.cancel, 1)
        row.addWidget(self.copy, 1)
        self.column.addLayout(row)
        for shown in (self.bar, self.said, self.problem, self.curves, self.outcome):
            self.column.addWidget(shown)

    def release(self) -> None:
        """Foresee and draw nothing more."""
        self._debounce.stop()
        self._redraw.stop()

    def showEvent(self, event: QShowEvent) -> None:
        """Make the forecast when the section is opened; while it is closed none is made."""
        super().showEvent(event)
        self.refresh()

    # ----------------------------------------------------------------------------------------------------------------------- the controls

    def _propose(self) -> None:
        """Offer a folder, unless the user has chosen one."""
        self.fill(self.state.slide_layer is not None or bool(self.state.labels))
        loaded = self.state.loaded
        if loaded is not None and self._running is None and self.folder.text() == self._proposed:
            asked = Path(loaded.asked)
            name = asked.parent.name if asked.name in ("card.json", "config.json") else asked.stem
            self._proposed = str(propose_folder(self.state.table, Path(settings().panel.folder).expanduser(), name))
            self.folder.setText(self._proposed)
        self.refresh()

    def _browse(self) -> None:
        chosen = QFileDialog.getExistingDirectory(self, "Folder of the tuned network", str(Path(self.folder.text()).parent))
        if chosen:
            self.folder.setText(chosen)

    def request(self) -> Tuning | None:
        """Return the fine-tuning that the controls describe; None without network or labels.

        Raises
        ------
        TrainingError
            When a control holds what it cannot.
        """
        loaded, labels = self.state.loaded, self.state.labels
        if loaded is None or not labels:
            return None
        if not self.folder.text().strip():
            raise TrainingError("the tuned network has no folder: name one")
        kept = settings().panel
        return Tuning(
            loaded,
            labels,
            self.controls.settings(),
            Path(self.folder.text().strip()).expanduser(),
            kept.device,
            kept.memory or None,
            force=self.anyway.isVisibleTo(self) and self.anyway.isChecked(),
            new_head=needs_new_head(labels, loaded.model.card),
            restart=self.anew.isVisibleTo(self) and self.anew.isChecked(),
        )

    # ----------------------------------------------------------------------------------------------------------------------- the forecast

    def refresh(self) -> None:
        """Make the forecast anew when nothing has changed for a moment."""
        if self.state.closed or self._running is not None:
            return
        self.run.setEnabled(False)
        loaded, labels = self.state.loaded, self.state.labels
        obstacle = None if loaded is None else find_obstacle(labels, loaded.model.card)
        self.obstacle.setText(f"Fewer than {CASES} patients of a class teach chance: {(obstacle or '').removeprefix('patients: ')}.")
        for widget in (self.obstacle, self.anyway):
            widget.setVisible(obstacle is not None)
        count = f"{len(labels)} labelled region{'s' * (len(labels) != 1)}" if labels else "labelled regions: draw some above"
        self.subject.setText("" if loaded is None else f"A copy of {loaded.model.card.name} learns from {count}.")
        self.heads.setText("" if loaded is None else describe_heads(labels, loaded.model.card))
        self.heads.setVisible(bool(self.heads.text()))
        out = Path(self.folder.text().strip()).expanduser()
        self.anew.setVisible(is_begun(out))
        self.run.setText("Go on" if is_unfinished(out) and not self.anew.isChecked() else "Start")
        self._debounce.start()

    def _foresee(self) -> None:
        if self._running is not None or self.state.closed or not self.isVisible():
            return
        if self._foreseeing is not None:
            self._stale = True
            return
        if not self.state.labels:
            self._foretell("")
            return
        try:
            request = self.request()
        except StreamviewError as error:
            self._foretell(str(error), fits=False)
            return
        if request is None:
            return
        if self.obstacle.isVisibleTo(self) and not request.force:
            self._foretell("")
            return
        self._foretell("Working out what it will take…")
        self._foreseeing = self.state.start(
            lambda report: foresee(request), done=self._foreseen, failed=partial(self._foreseen, fits=False)
        )

    def _foreseen(self, text: str, fits: bool = True) -> None:
        self._foreseeing = None
        if self._stale:
            self._stale = False
            self._debounce.start()
        elif self._running is None:
            self._foretell(text, fits=fits)
            self.run.setEnabled(fits)

    def _foretell(self, text: str, *, fits: bool = True) -> None:
        self.forecast.setText(text)
        self.forecast.setVisible(bool(text))
        self.forecast.setStyleSheet("color: #a0a4ab;" if fits else "color: #e8a860;")

    # ----------------------------------------------------------------------------------------------------------------------- the training

    def start(self) -> None:
        """Tune a copy of the network on the labelled regions, or go on with it."""
        if self._running is not None:
            return
        try:
            request = self.request()
        except StreamviewError as error:
            self._fail(str(error))
            return
        if request is None:
            return
        self._watched, self._latest, self._told, self._epochs = None, None, [], request.settings.epochs

        def watch(history: History) -> None:
            self._watched = history

        def work(report: Report) -> FinetuneResult:
            yield_to_window()
            return train(request, report, watch, self._told.append)

        self._set_running(True)
        self.said.setText("Starting…")
        self._running = self.state.start(
            work,
            done=partial(self._tuned, request),
            failed=self._failed,
            cancelled=partial(self._stopped, request.out),
            progress=self._step,
        )
        self._redraw.start()

    def stop(self) -> None:
        """Ask the training to stop."""
        if self._running is not None:
            self._running.cancel()
            self.cancel.setEnabled(False)
            self.said.setText("Stopping after this step…")

    def copy_command(self) -> None:
        """Copy the command line that does the same to the clipboard."""
        table = self.state.table
        try:
            request = self.request()
        except StreamviewError as error:
            self._fail(str(error))
            return
        if request is None or table is None:
            self._fail("The command line reads the labels from a file: save them first, in Labels above.")
            return
        QApplication.clipboard().setText(command(request, table, self.controls.preset.currentData()))
        self.problem.hide()
        self.said.setText("Copied.")
        self.said.show()

    def _step(self, step: Step) -> None:
        self._latest = step

    def _draw(self) -> None:
        """Show where it is; seldom, for each change has the whole window drawn, which the training pays for where no card draws it."""
        step, history, epochs = self._latest, self._watched, self._epochs
        if step is not None:
            self.bar.setRange(0, step.total)
            self.bar.setValue(step.done)
            self.note(f"{step.done / max(step.total, 1):.0%}")
            if self.cancel.isEnabled():
                self.said.setText("\n".join([*self._told, describe_training(step, history, epochs)]))
        if history is not None and history is not self.curves.history:
            self.curves.draw(history)

    def _tuned(self, request: Tuning, result: FinetuneResult) -> None:
        self._watched = result.history
        self._end("done")
        self._propose()
        self.outcome.show_result(result, request.loaded.asked, request.out)

    def _stopped(self, out: Path) -> None:
        self._end("stopped")
        self.said.setText(describe_end(self._watched, out))
        self.said.show()

    def _failed(self, text: str) -> None:
        self._end("")
        self._fail(text)

    def _end(self, note: str) -> None:
        self._running = None
        self._redraw.stop()
        self._draw()
        self._set_running(False)
        self.note(note)
        self.refresh()

    def _set_running(self, running: bool) -> None:
        for widget in (self.bar, self.said):
            widget.setVisible(running)
        self.bar.setRange(0, 0 if running else 1)
        for control in (self.controls, self.folder, self.browse, self.anew, self.anyway):
            control.setEnabled(not running)
        self.cancel.setEnabled(running)
        self.run.setEnabled(False)
        if running:
            self.problem.hide()
            self.outcome.hide()

    def _fail(self, text: str) -> None:
        self.problem.setText(text)
        self.problem.show()
