"""How long the napari window stands still in the first minute, what the end of a run costs, and whether memory stays flat.

::

    LIBGL_ALWAYS_SOFTWARE=1 xvfb-run -a -s "-screen 0 1920x1080x24" python -m benchmarks.stalls [--runs 20] [--delay 0.05]

A stall is the time in which the event loop answers nothing: how late a timer of 5 ms comes. The slide has 20,000 x 20,000 px, and every
read takes `--delay` seconds longer than it would, as on a slow disk. Processor time is that of the window's thread alone, so that other
work on the machine counts as little as it can.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.cohort import write_whole_slide
from benchmarks.screenshots import pause, wait

__all__ = ["main"]

_TICK = 5  # ms
_SIDE = 20_000  # px of the slide


class Stalls:
    """The worst stall of each thing that a user does, and what the window's thread worked for it."""

    def __init__(self) -> None:
        from qtpy.QtCore import Qt, QTimer

        self.found: dict[str, tuple[float, float]] = {}
        self._last = time.perf_counter()
        self._worst = 0.0
        self._timer = QTimer(timerType=Qt.TimerType.PreciseTimer, interval=_TICK)
        self._timer.timeout.connect(self._tick)
        self._timer.start()

    def _tick(self) -> None:
        now = time.perf_counter()
        self._worst, self._last = max(self._worst, now - self._last - _TICK / 1000), now

    @contextmanager
    def during(self, name: str) -> Iterator[None]:
        """Watch what happens in this block, and until a second after it."""
        self._worst, self._last, before = 0.0, time.perf_counter(), time.thread_time()
        yield
        pause(1000)
        self._tick()
        self.found[name] = self._worst, time.thread_time() - before
        print(f"{name:46} worst stall {1000 * self._worst:6.0f} ms   processor {1000 * self.found[name][1]:6.0f} ms", flush=True)


def main() -> None:
    """Measure, and print a line for each thing that a user does."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20, help="of the network (default: 20)")
    parser.add_argument("--delay", type=float, default=0.05, help="seconds that every read takes longer (default: 0.05)")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as place:
        os.environ["NAPARI_CONFIG"] = str(Path(place) / "settings.yaml")
        _measure(Path(place), options.runs, options.delay)


def _measure(place: Path, runs: int, delay: float) -> None:
    from qtpy.QtWidgets import QApplication
    from streamview_napari.view import view

    from streamview.system.machine import resident_memory

    application = QApplication.instance() or QApplication([])
    path = place / "slide.svs"
    write_whole_slide(path, (_SIDE, _SIDE), 0.4)
    _slow_down(delay)
    stalls = Stalls()
    with stalls.during("open"):
        viewer = view(path)
        viewer.window._qt_window.showMaximized()
    panel = viewer.window.dock_widgets["Panel (streamview)"]
    sections = {section.title: section for section in panel.sections}
    inference, display = sections["Model and region"], sections["Display"]
    with stalls.during("while all is warmed up"):
        wait(lambda: panel.state.loaded is not None)
        pause(5000)
    with stalls.during("first draw"):
        _click(inference.draw)
        pause(300)
        _drag(viewer)
    memories: list[int] = []
    for number in range(runs):
        ends: list[float] = []
        with stalls.during(f"run {number + 1}"):
            _look_at(viewer, number)
            wait(lambda: inference.task.forecast is not None)
            _when_ended(inference, ends)
            _click(inference.run)
            wait(lambda: len(panel.state.answers) == number + 1)  # noqa: B023
            pause(1500)
            ends.append(time.thread_time())
        print(f"{'  its end':46} {'':22}   processor {1000 * (ends[-1] - ends[0]):6.0f} ms", flush=True)
        memories.append(resident_memory())
    with stalls.during("30 moves of the threshold"):
        for number in range(30):
            display.threshold.setValue(10 + number)
            pause(20)
    with stalls.during("30 moves of the blur"):
        for number in range(30):
            display.blur.setValue(2 + number / 3)
            pause(20)
    with stalls.during("another theme"):
        viewer.theme = "light" if viewer.theme == "dark" else "dark"
    for factor in (0.05, 0.2, 1.0, 4.0):
        with stalls.during(f"zoom to {factor:g} screen px a px"):
            viewer.scene.camera.zoom = factor / 0.5
    with stalls.during("40 layers deleted"):
        start = time.perf_counter()
        units = {"units": ("um", "um"), "axis_labels": ("y", "x")}
        names = [viewer.add_labels(_small(), name=f"extra {number}", **units).name for number in range(40)]
        print(f"  40 layers added in {time.perf_counter() - start:.1f} s")
        start = time.perf_counter()
        viewer.layers.selection = {viewer.layers[name] for name in names}
        viewer.layers.remove_selected()
        print(f"  deleted in {time.perf_counter() - start:.2f} s")
    worst = max(stall for name, (stall, _) in stalls.found.items() if name != "40 layers deleted")
    print(f"worst stall of all: {1000 * worst:.0f} ms")
    if len(memories) > 3:
        print(f"resident memory after runs 3 and {runs}: {memories[2] / 2**20:.0f} and {memories[-1] / 2**20:.0f} MB", end=", ")
        print(f"{memories[-1] / memories[2] - 1:+.1%}; median {statistics.median(memories) / 2**20:.0f} MB")
    viewer.close()
    del application


def _slow_down(delay: float) -> None:
    """Let every read of a slide wait, as a slow disk makes it."""
    from streamview.slides.slide import Slide

    read = Slide.read

    def slow(self: Any, *arguments: Any, **options: Any) -> Any:
        time.sleep(delay)
        return read(self, *arguments, **options)

    Slide.read = slow  # type: ignore[method-assign]


def _when_ended(inference: Any, ends: list[float]) -> None:
    ended: Callable[[], None] = type(inference).run_ended

    def timed() -> None:
        ends.append(time.thread_time())
        ended(inference)

    inference.run_ended = timed


def _click(button: Any) -> None:
    from qtpy.QtCore import Qt
    from qtpy.QtTest import QTest

    QTest.mouseClick(button, Qt.MouseButton.LeftButton)


def _drag(viewer: Any) -> None:
    """Drag the mouse over the canvas, from its middle to the right and down."""
    from qtpy.QtCore import QPoint, Qt
    from qtpy.QtTest import QTest

    canvas = viewer.window._qt_viewer.canvas.native
    at = canvas.rect().center()
    to = QPoint(at.x() + 200, at.y() + 150)
    QTest.mouseMove(canvas, at)
    QTest.mousePress(canvas, Qt.MouseButton.LeftButton, Qt.KeyboardModifier.NoModifier, at)
    for step in range(1, 11):
        QTest.mouseMove(canvas, QPoint(at.x() + 20 * step, at.y() + 15 * step))
        pause(10)
    QTest.mouseRelease(canvas, Qt.MouseButton.LeftButton, Qt.KeyboardModifier.NoModifier, to)


def _look_at(viewer: Any, number: int) -> None:
    viewer.scene.camera.center = (0.0, 2000.0 + 150 * number, 3000.0)
    viewer.scene.camera.zoom = 0.5


def _small() -> Any:
    import numpy as np

    return np.zeros((64, 64), np.uint8)


if __name__ == "__main__":
    main()
