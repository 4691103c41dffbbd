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
from typing import Any

from qtpy.QtCore import QObject, Signal, Slot

from streamview.errors import Cancelled, StreamviewError
from streamview.progress import Report, Step

__all__ = ["Work", "describe_error", "yield_to_window"]

_PERIOD = 0.05  # s between two reports that reach the window
_POLITE = 10  # niceness: about a tenth of a processor that the window wants as well
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class _Ended:
    """How work ended: what to call, and with what."""

    call: Callable[..., None] | None
    arguments: tuple[Any, ...] = ()


class Work(QObject):
    """One function in one thread; see `streamview_napari.state.State.start` for the parameters."""

    _told = Signal(object)

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
        self._told.connect(self._hear)

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
            self._told.emit(step)

    def _run(self) -> None:
        try:
            ended = _Ended(self._done, (self._function(self._report),))
        except Cancelled:
            ended = _Ended(self._cancelled)
        except Exception as error:  # noqa: BLE001  # the thread is a shell's boundary: what is raised here is shown in the dock
            if not isinstance(error, StreamviewError):
                _LOG.exception("an error that is no user's to mend")
            ended = _Ended(self._failed, (describe_error(error),))
        self._told.emit(ended)

    @Slot(object)  # type: ignore[untyped-decorator]
    def _hear(self, told: Step | _Ended) -> None:
        if self._silent:
            return
        if isinstance(told, Step):
            if self._progress is not None:
                self._progress(told)
            return
        self.running = False
        if told.call is not None:
            told.call(*told.arguments)


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
