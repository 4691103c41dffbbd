"""The one task of a section: forecasts when the controls rest, runs, is cancelled; work is started by hand here, not in threads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from streamview_napari.tasks import ForecastTask

pytestmark = pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecatedSince20", "ignore::DeprecationWarning:napari")


class Started:
    """Work that ends when the test says so."""

    def __init__(self, function: Callable[..., Any], **callbacks: Any) -> None:
        self.function, self.callbacks, self.cancelled = function, callbacks, False

    def cancel(self) -> None:
        self.cancelled = True


class Section:
    """What it was told, in order."""

    def __init__(self) -> None:
        self.wanted: str | None = "a"
        self.told: list[Any] = []
        self.started: list[Started] = []
        self.task: ForecastTask[str] = ForecastTask(self, self.start)  # type: ignore[arg-type]
        self.task.debounce.setInterval(0)

    def start(self, function: Callable[..., Any], **callbacks: Any) -> Started:
        self.started.append(Started(function, **callbacks))
        return self.started[-1]

    def make_forecast(self) -> Callable[[], str] | None:
        wanted = self.wanted
        return None if wanted is None else lambda: f"forecast of {wanted}"

    def show_forecast(self, forecast: str) -> None:
        self.told.append(forecast)

    def forecast_failed(self, text: str) -> None:
        self.told.append(("no forecast", text))

    def draw_run(self) -> None:
        pass

    def run_ended(self) -> None:
        assert not self.task.running
        self.told.append("ended")


@pytest.fixture
def section(qapp: Any) -> Any:
    made = Section()
    yield made
    made.task.close()


def rest(section: Section, qtbot: Any, count: int) -> Started:
    qtbot.waitUntil(lambda: len(section.started) == count, timeout=5000)
    return section.started[-1]


def finish(work: Started) -> None:
    work.callbacks["done"](work.function(None))


def test_many_changes_make_one_forecast(section: Section, qtbot: Any) -> None:
    for _ in range(5):
        section.task.changed()
    finish(rest(section, qtbot, 1))
    assert section.told == ["forecast of a"]
    assert section.task.forecast == "forecast of a"
    qtbot.wait(20)
    assert len(section.started) == 1


def test_a_forecast_of_what_has_changed_since_is_dropped_and_made_anew(section: Section, qtbot: Any) -> None:
    section.task.changed()
    first = rest(section, qtbot, 1)
    section.wanted = "b"
    section.task.changed()
    finish(first)
    assert section.told == []
    assert section.task.forecast is None
    finish(rest(section, qtbot, 2))
    assert section.told == ["forecast of b"]


@pytest.mark.parametrize("end", ["done", "failed", "cancelled"])
def test_a_run_ends_once_and_keeps_its_forecast(section: Section, qtbot: Any, end: str) -> None:
    section.task.changed()
    finish(rest(section, qtbot, 1))
    section.task.run(
        lambda report: "result",
        done=section.told.append,
        failed=section.told.append,
        cancelled=lambda: section.told.append("cancelled"),
        progress=lambda step: None,
    )
    assert section.task.running
    assert section.task.redraw.isActive()
    assert section.task.cancel()
    work = section.started[-1]
    assert work.cancelled
    if end == "cancelled":
        work.callbacks["cancelled"]()
    else:
        work.callbacks[end](end)
    assert section.told == ["forecast of a", "ended", end]
    assert not section.task.cancel()
    assert not section.task.redraw.isActive()
    assert section.task.forecast == "forecast of a"


def test_settings_that_change_during_a_run_are_forecast_after_it(section: Section, qtbot: Any) -> None:
    section.task.changed()
    finish(rest(section, qtbot, 1))
    section.task.run(lambda report: "result", done=section.told.append, failed=section.told.append, cancelled=list, progress=print)
    section.wanted = "b"
    section.task.changed()
    qtbot.wait(20)
    assert len(section.started) == 2, "nothing is forecast while it runs"
    finish(section.started[-1])
    assert section.task.forecast is None, "it was of other settings"
    finish(rest(section, qtbot, 3))
    assert section.told == ["forecast of a", "ended", "result", "forecast of b"]


def test_a_forecast_dropped_by_a_run_is_made_after_it(section: Section, qtbot: Any) -> None:
    section.task.changed()
    forecasting = rest(section, qtbot, 1)
    section.task.run(lambda report: "result", done=section.told.append, failed=section.told.append, cancelled=list, progress=print)
    finish(forecasting)
    assert section.told == []
    finish(section.started[1])
    finish(rest(section, qtbot, 3))
    assert section.told == ["ended", "result", "forecast of a"]


def test_nothing_is_forecast_when_it_is_closed(section: Section, qtbot: Any) -> None:
    section.task.changed()
    forecasting = rest(section, qtbot, 1)
    section.task.close()
    finish(forecasting)
    section.task.changed()
    qtbot.wait(20)
    assert section.told == []
    assert len(section.started) == 1
    assert section.task.forecast is None
