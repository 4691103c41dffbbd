"""The plugin's only threads: work runs beside the window, and what it has to say arrives on the GUI thread.

The engine works by callbacks, so no generator of napari's ``thread_worker`` is needed, whose RuntimeErrors superqt would swallow (torch
reports exhausted memory as one). Whatever is raised becomes a text for the user.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from qtpy.QtCore import QObject, QTimer, Signal, Slot

from streamview.errors import Cancelled, StreamviewError
from streamview.progress import Report, Step

__all__ = ["Courier", "ForecastTask", "Start", "Work", "describe_error", "yield_to_window"]

_PERIOD = 0.05  # s between two reports that reach the window
_POLITE = 10  # niceness: about a tenth of a processor that the window wants as well
_DEBOUNCE = 300  # ms without a change before a forecast is made anew
_COURIER = 60  # ms that what is posted may wait for more of its kind
_REDRAW = 500  # ms between two drawings of what a run has come to: each has the whole window drawn, which the run pays for
_LOG = logging.getLogger(__name__)
_Result = TypeVar("_Result")
_Forecast = TypeVar("_Forecast")


@dataclass(frozen=True, slots=True, eq=False)
class _Ended:
    """How work ended: what to call, and with what."""

    call: Callable[..., None] | None
    arguments: tuple[Any, ...] = ()


class Work(QObject):
    """One function in one thread; see `streamview_napari.state.State.start` for the parameters."""

    _reported = Signal(object)

    def __init__(
        self,
        function: Callable[[Report], Any],
        *,
        done: Callable[[Any], None],
        failed: Callable[[str], None],
        cancelled: Callable[[], None] | None = None,
        progress: Callable[[Step], None] | None = None,
    ) -> None:
        super().__init__()
        self._function, self._done, self._failed, self._cancelled, self._progress = function, done, failed, cancelled, progress
        self._stop = threading.Event()
        self._last = 0.0
        self._silent = False
        self.running = False
        self._thread = threading.Thread(target=self._run, name="streamview work", daemon=True)
        self._reported.connect(self._hear)

    def start(self) -> None:
        """Begin; `running` is True until its end was called back."""
        self.running = True
        self._thread.start()

    def cancel(self) -> None:
        """Ask it to stop at its next step."""
        self._stop.set()

    def wait(self) -> None:
        """Return when the thread has ended; nothing is called back from now on."""
        self._silent, self.running = True, False
        if self._thread.ident is not None:
            self._thread.join()

    def _report(self, step: Step) -> None:
        if self._stop.is_set():
            raise Cancelled("cancelled")
        now = time.monotonic()
        if now - self._last >= _PERIOD:
            self._last = now
            self._reported.emit(step)

    def _run(self) -> None:
        try:
            ended = _Ended(self._done, (self._function(self._report),))
        except Cancelled:
            ended = _Ended(self._cancelled)
        except Exception as error:  # noqa: BLE001  # the thread is a shell's boundary: what is raised here is shown in the dock
            if not isinstance(error, StreamviewError):
                _LOG.exception("unexpected internal error")
            ended = _Ended(self._failed, (describe_error(error),))
        self._reported.emit(ended)

    @Slot(object)  # type: ignore[untyped-decorator]
    def _hear(self, message: Step | _Ended) -> None:
        if self._silent:
            return
        if isinstance(message, Step):
            if self._progress is not None:
                self._progress(message)
            return
        self.running = False
        if message.call is not None:
            message.call(*message.arguments)


class Courier(QObject):
    """Has functions called on the GUI thread, from whichever thread; of those with the same key that wait only the last is called."""

    _posted = Signal()

    def __init__(self) -> None:
        super().__init__()
        self._waiting: dict[object, Callable[[], None]] = {}
        self._lock = threading.Lock()
        self._timer = QTimer(self, singleShot=True, interval=_COURIER)
        self._timer.timeout.connect(self._deliver)
        self._posted.connect(self._wait)

    def post(self, key: object, function: Callable[[], None]) -> None:
        """Have a function called soon."""
        with self._lock:
            first = not self._waiting
            self._waiting[key] = function
        if first:
            self._posted.emit()

    def close(self) -> None:
        """Call nothing more."""
        self._timer.stop()
        with self._lock:
            self._waiting.clear()

    @Slot()  # type: ignore[untyped-decorator]
    def _wait(self) -> None:
        if not self._timer.isActive():
            self._timer.start()

    def _deliver(self) -> None:
        with self._lock:
            waiting, self._waiting = self._waiting, {}
        for function in waiting.values():
            function()


class Start(Protocol):
    """What starts work in a thread: `streamview_napari.state.State.start`."""

    def __call__(
        self,
        function: Callable[[Report], _Result],
        *,
        done: Callable[[_Result], None],
        failed: Callable[[str], None],
        cancelled: Callable[[], None] | None = None,
        progress: Callable[[Step], None] | None = None,
    ) -> Work:
        """Run a function in a thread."""


class TaskOwner(Protocol[_Forecast]):
    """What a section does for its `ForecastTask`; all is called on the GUI thread."""

    def make_forecast(self) -> Callable[[], _Forecast] | None:
        """Return what makes the forecast of what is set up now, to be called in a thread; None where there is nothing to forecast."""

    def show_forecast(self, forecast: _Forecast) -> None:
        """Show the forecast of what is set up now."""

    def forecast_failed(self, text: str) -> None:
        """Say why there is none."""

    def draw_run(self) -> None:
        """Draw what the run has come to; called about twice a second."""

    def run_ended(self) -> None:
        """Make ready for the next run; called before what the end itself calls back."""


class ForecastTask(Generic[_Forecast]):
    """One thing that the user sets up, and runs: a forecast when the controls rest, then the run, then its result, or its cancellation.

    Forecast and run never go on at the same time as another of their kind. A forecast of what has changed since is dropped and made anew.

    Parameters
    ----------
    owner
        The section.
    start
        Starts work in a thread.
    parent
        With which its timers end.
    """

    def __init__(self, owner: TaskOwner[_Forecast], start: Start, parent: QObject | None = None) -> None:
        self.forecast: _Forecast | None = None
        """Of what is set up now; None until it is known."""
        self._owner, self._start = owner, start
        self._forecasting: Work | None = None
        self._running: Work | None = None
        self._stale = False
        self._closed = False
        self.debounce = QTimer(parent, interval=_DEBOUNCE, singleShot=True)
        self.debounce.timeout.connect(self._make_forecast)
        self.redraw = QTimer(parent, interval=_REDRAW)
        self.redraw.timeout.connect(owner.draw_run)

    @property
    def running(self) -> bool:
        """Whether the run is under way."""
        return self._running is not None

    def changed(self) -> None:
        """Make the forecast anew when nothing has changed for a moment."""
        if not self._closed:
            self.forecast = None
            self._stale = self._forecasting is not None
            self.debounce.start()

    def run(
        self,
        function: Callable[[Report], _Result],
        *,
        done: Callable[[_Result], None],
        failed: Callable[[str], None],
        cancelled: Callable[[], None],
        progress: Callable[[Step], None],
    ) -> None:
        """Run a function, as `Start` does; while it runs, the owner draws."""

        def ended() -> None:
            self._running = None
            self.redraw.stop()
            if self.forecast is None:  # the settings changed during the run
                self.changed()
            self._owner.run_ended()

        def finished(result: _Result) -> None:
            ended()
            done(result)

        def broke(text: str) -> None:
            ended()
            failed(text)

        def stopped() -> None:
            ended()
            cancelled()

        self._running = self._start(function, done=finished, failed=broke, cancelled=stopped, progress=progress)
        self.redraw.start()

    def cancel(self) -> bool:
        """Ask the run to stop at its next step; return whether there is one."""
        if self._running is not None:
            self._running.cancel()
        return self.running

    def close(self) -> None:
        """Forecast and draw nothing more."""
        self._closed, self.forecast = True, None
        self.debounce.stop()
        self.redraw.stop()

    def _make_forecast(self) -> None:
        if self.running or self._closed:
            return
        if self._forecasting is not None:
            self._stale = True
            return
        function = self._owner.make_forecast()
        if function is not None:
            self._forecasting = self._start(lambda report: function(), done=self._forecast_made, failed=self._forecast_failed)

    def _forecast_made(self, forecast: _Forecast) -> None:
        if self._still_wanted():
            self.forecast = forecast
            self._owner.show_forecast(forecast)

    def _forecast_failed(self, text: str) -> None:
        if self._still_wanted():
            self._owner.forecast_failed(text)

    def _still_wanted(self) -> bool:
        """Whether what was forecast is what is set up now; if not, make the forecast anew."""
        self._forecasting = None
        if self._stale:
            self._stale = False
            self.debounce.start()
            return False
        return not (self.running or self._closed)


def yield_to_window() -> None:
    """Let the window go first wherever it and the present thread want the processor; to be called at the start of long work.

    On Linux the threads that this one makes later, torch's among them, take this over. Elsewhere nothing is changed.
    """
    if sys.platform == "linux":
        thread = threading.get_native_id()
        os.setpriority(os.PRIO_PROCESS, thread, max(os.getpriority(os.PRIO_PROCESS, thread), _POLITE))


def describe_error(error: BaseException) -> str:
    """Say what went wrong: the message alone of errors that the user can mend, else the kind of error too."""
    if isinstance(error, StreamviewError):
        return str(error)
    if isinstance(error, MemoryError) or "out of memory" in str(error) or "can't allocate memory" in str(error):
        return f"Memory ran out: {_first_line(error)}. Give a smaller memory budget or a smaller region."
    return f"{type(error).__name__}: {_first_line(error)}"


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
