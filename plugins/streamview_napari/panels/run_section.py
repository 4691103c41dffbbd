"""What the sections that run something have in common: a forecast, a button to run and one to stop, progress, and what went wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Generic, TypeVar

from qtpy.QtWidgets import QHBoxLayout, QProgressBar, QPushButton, QWidget

from streamview_napari.panels.section import Section, error_label, quiet_label
from streamview_napari.panels.theme import set_role
from streamview_napari.tasks import ForecastTask

if TYPE_CHECKING:
    from napari.components import ViewerModel

    from streamview_napari.state import State

__all__ = ["RunSection"]

_Forecast = TypeVar("_Forecast")


class RunSection(Section, Generic[_Forecast]):
    """A section that forecasts and runs what its controls describe; see `ForecastTask`.

    Parameters
    ----------
    viewer, state
        As for `Section`.
    run, stop
        What stands on the two buttons.
    """

    def __init__(self, viewer: ViewerModel, state: State, *, run: str, stop: str) -> None:
        super().__init__(viewer, state)
        self.forecast = quiet_label()
        self.run = QPushButton(run)
        set_role(self.run, "run")
        self.run.setEnabled(False)
        self.cancel = QPushButton(stop)
        self.cancel.setEnabled(False)
        self.bar = QProgressBar()
        self.bar.setFixedHeight(8)
        self.bar.setTextVisible(False)
        set_role(self.bar, "progress")
        self.message = quiet_label()
        self.problem = error_label()
        hidden: tuple[QWidget, ...] = (self.bar, self.message, self.problem)
        for widget in hidden:
            widget.hide()
        self.task: ForecastTask[_Forecast] = ForecastTask(self, state.start, parent=self)
        self._waiting = False  # for the forecast, to run then
        self.run.clicked.connect(self.press)
        self.cancel.clicked.connect(self.stop)

    def controls_of_run(self) -> tuple[QWidget, ...]:
        """What the user cannot change while it runs."""
        return ()

    def buttons(self, *more: QPushButton) -> QHBoxLayout:
        """Return the row of the buttons."""
        row = QHBoxLayout()
        row.addWidget(self.run, 2)
        for button in (self.cancel, *more):
            row.addWidget(button, 1)
        return row

    def release(self) -> None:
        """Forecast and draw nothing more."""
        self.task.close()

    def press(self) -> None:
        """Run what the controls describe, as soon as it is known what that takes."""
        if self.task.running:
            return
        if self.task.forecast is not None:
            self.start()
            return
        self._wait(True)

    def _wait(self, waiting: bool) -> None:
        self._waiting = waiting
        self.run.setEnabled(not waiting)
        self.cancel.setEnabled(waiting)
        self.message.setVisible(waiting)
        self.message.setText("Runs as soon as the forecast is there…" if waiting else "")

    def start(self) -> None:
        """Run what the controls describe."""
        raise NotImplementedError

    def stop(self) -> None:
        """Ask the run to stop, or wait for its forecast no longer."""
        if self._waiting:
            self._wait(False)
            self.say("Cancelled.")
        elif self.task.cancel():
            self.cancel.setEnabled(False)
            self.message.setText("Stopping after this step…")

    def allow(self, fits: bool) -> None:
        """Let the user run what was forecast, or not; run it if it was waited for."""
        waited = self._waiting
        if waited:
            self._wait(False)
        self.run.setEnabled(fits)
        if waited and fits:
            self.start()

    def make_forecast(self) -> Callable[[], _Forecast] | None:
        """Return what makes the forecast, in a thread."""
        raise NotImplementedError

    def show_forecast(self, forecast: _Forecast) -> None:
        """Show the forecast."""
        raise NotImplementedError

    def forecast_failed(self, text: str) -> None:
        """Say why there is no forecast."""
        self.write_forecast(text, fits=False)
        self.allow(False)

    def write_forecast(self, text: str, *, fits: bool = True) -> None:
        """Say what the run will take, or why it cannot be."""
        self.forecast.setText(text)
        set_role(self.forecast, "quiet" if fits else "warning")

    def draw_run(self) -> None:
        """Draw what the run has come to."""

    def run_ended(self) -> None:
        """Let the controls be used again."""
        self.set_running(False)

    def set_running(self, running: bool) -> None:
        """Let buttons, bar and controls say whether it runs."""
        for widget in (self.bar, self.message):
            widget.setVisible(running)
        self.bar.setRange(0, 0 if running else 1)
        for control in self.controls_of_run():
            control.setEnabled(not running)
        self.cancel.setEnabled(running)
        self.run.setEnabled(False)
        if running:
            self.unfold.emit()
            self.problem.hide()
            self.message.setText("Starting…")

    def say(self, text: str) -> None:
        """Say what became of a run."""
        self.message.setText(text)
        self.message.show()

    def fail(self, text: str) -> None:
        """Say what went wrong."""
        self.problem.setText(text)
        self.problem.show()
