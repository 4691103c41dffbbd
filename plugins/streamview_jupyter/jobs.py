"""A run of a network in a thread of the kernel, so that the notebook and the view stay usable."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any, Literal

from streamview.errors import Cancelled, StreamviewError
from streamview.geometry import Region
from streamview.inference.compute import Compute
from streamview.inference.forecast import Forecast
from streamview.inference.strips import Strip
from streamview.networks import Model
from streamview.progress import Step
from streamview.results import Prediction, Saliency
from streamview.slides import Slide

__all__ = ["Job", "State"]

State = Literal["forecast", "running", "done", "failed", "cancelled"]
_PERIOD = 0.2  # s between two reports that reach the browser
_LOG = logging.getLogger(__name__)


class Job:
    """A run that `View.run` has started.

    Parameters
    ----------
    number
        Of this job in its view.
    model, slide, region, target, maps, compute
        As for `View.run`.
    changed
        Called from the thread when there is something new to say.
    watch
        Called with every finished strip of a map.
    """

    def __init__(
        self,
        number: int,
        model: Model,
        slide: Slide,
        region: Region,
        target: int | str | None,
        maps: bool,
        compute: Compute,
        changed: Callable[[Job], None],
        watch: Callable[[Strip], None],
    ) -> None:
        self.number = number
        self.state: State = "forecast"
        self.forecast: Forecast | None = None
        self.error: StreamviewError | None = None
        self._model, self._slide, self._region, self._target, self._maps, self._compute = model, slide, region, target, maps, compute
        self._changed, self._watch = changed, watch
        self._result: Prediction | Saliency | None = None
        self._step: Step | None = None
        self._last = 0.0
        self._stop, self._ended = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._work, name="streamview job", daemon=True)

    def start(self) -> None:
        """Begin; returns at once."""
        self._thread.start()

    def cancel(self) -> None:
        """Stop at the next step; nothing half-computed is left."""
        self._stop.set()

    @property
    def done(self) -> bool:
        """Whether it has ended, one way or another."""
        return self._ended.is_set()

    def result(self, timeout: float | None = None) -> Saliency | Prediction:
        """Wait for the end, and return the maps, or the prediction where no maps were asked for.

        Parameters
        ----------
        timeout
            Seconds to wait at most; None: as long as it takes.

        Raises
        ------
        TimeoutError
            When it has not ended by then.
        Cancelled, StreamviewError
            When it was cancelled, or why it failed.
        """
        if not self._ended.wait(timeout):
            raise TimeoutError(f"the job has not ended after {timeout} s; it goes on")
        if self.error is not None:
            raise self.error
        if self._result is None:
            raise Cancelled("the job was cancelled")
        return self._result

    @property
    def finished(self) -> Prediction | Saliency | None:
        """The result; None before it is done, and where there is none."""
        return self._result if self.state == "done" else None

    @property
    def description(self) -> dict[str, Any]:
        """What the browser has to know of it."""
        step = self._step
        return {
            "number": self.number,
            "state": self.state,
            "text": self._text(),
            "fraction": None if step is None or not step.total else step.done / step.total,
        }

    def __repr__(self) -> str:
        return f"<Job {self.number}: {self._text()}>"

    def _text(self) -> str:
        from streamview.streaming.run.timing import format_seconds

        if self.state == "failed":
            return str(self.error)
        if self.state == "cancelled":
            return "Cancelled"
        if self.state == "done":
            prediction = self._result.prediction if isinstance(self._result, Saliency) else self._result
            return "Done" if prediction is None else f"{prediction.model_name}: {prediction.answer}"
        if self.state == "forecast":
            return "Forecast: timing a sample of the region"
        text = "Starts"
        if self._step is not None:
            share = f", {self._step.done / self._step.total:.0%}" if self._step.total else ""
            text = f"{self._step.task.capitalize()}{share}"
            if self._step.remaining is not None:
                text += f", {format_seconds(self._step.remaining)} left"
        return text if self.forecast is None else f"{text} ({_forecast(self.forecast)})"

    def _work(self) -> None:
        try:
            self._changed(self)
            self._result = self._compute_result()
            self.state = "done"
        except Cancelled:
            self.state = "cancelled"
        except StreamviewError as error:
            self.error, self.state = error, "failed"
        except Exception as error:  # noqa: BLE001  # the thread is a shell's boundary: what is raised here is shown in the view
            _LOG.exception("unexpected internal error")
            self.error, self.state = StreamviewError(f"unexpected internal error: {type(error).__name__}: {error}"), "failed"
        try:
            self._changed(self)
        finally:
            self._ended.set()

    def _compute_result(self) -> Prediction | Saliency:
        from streamview.inference.prepared import prepare

        run = prepare(self._model, self._slide, self._region, compute=self._compute)
        self._check()
        self.forecast = run.forecast(int(self._maps))
        self._check()
        self.state = "running"
        self._changed(self)
        if not self._maps:
            return run.predict(self.forecast.plan, self._report)
        (saliency,) = run.explain([self._target], self.forecast.plan, None, self._report, self._watch)
        return saliency

    def _check(self) -> None:
        if self._stop.is_set():
            raise Cancelled("the job was cancelled")

    def _report(self, step: Step) -> None:
        self._check()
        self._step = step
        now = time.monotonic()
        if now - self._last >= _PERIOD:
            self._last = now
            self._changed(self)


def _forecast(forecast: Forecast) -> str:
    from streamview.streaming.memory import format_bytes
    from streamview.streaming.run.timing import format_seconds

    duration = "" if forecast.seconds is None else f"about {format_seconds(forecast.seconds)}, "
    return f"forecast: {duration}peak memory {format_bytes(forecast.peak_bytes)}"
