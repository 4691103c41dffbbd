"""Whether the napari window answers while it fine-tunes: how late its event loop is and how long a pan takes, idle and training.

::

    LIBGL_ALWAYS_SOFTWARE=1 xvfb-run -a -s "-screen 0 1600x1000x24" python -m benchmarks.responsiveness

The demo's network, all layers, learns from four regions of 1024 x 1024 px on two synthetic slides, through the panel, as a user starts it.
"As ever" is the same training with its threads at the window's own priority. The states take turns, for machines are not equally fast all
the time.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

from benchmarks.screenshots import pause, wait

__all__ = ["main"]

_TICK = 10  # ms
_PANS = 12


def main() -> None:
    """Measure, and print a line a state."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=8.0, help="of each measurement (default: 8)")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each state (default: 3)")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as place:
        os.environ["NAPARI_CONFIG"] = str(Path(place) / "settings.yaml")
        _measure(Path(place), options.seconds, options.rounds)


def _measure(place: Path, seconds: float, rounds: int) -> None:
    from streamview_napari.panels import finetuning

    polite = finetuning.yield_to_window
    viewer, section = _open(place)
    found: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in ("idle", "training", "training, as ever")}
    for number in range(rounds):
        for name, (late, pans) in found.items():
            finetuning.yield_to_window = polite if name == "training" else lambda: None
            if name != "idle":
                section.folder.setText(str(place / f"{number}-{name}"))
                wait(section.run.isEnabled)
                section.run.click()
                wait(lambda: section._history is not None)
            late += _lateness(seconds)
            pans += _pans(viewer)
            if name != "idle":
                section.stop()
                wait(lambda: not section.task.running)
    for name, (late, pans) in found.items():
        print(f"{name:20} event loop late: {_said(late)}   pan: {_said(pans)}")
    viewer.close()


def _open(place: Path) -> tuple[Any, Any]:
    """A window with labelled regions on two slides, and the section that trains on them, ready."""
    from streamview_napari.settings import settings
    from streamview_napari.view import add_layers, view

    from streamview.geometry import Region
    from streamview.labels.regions import Example
    from streamview.slides.synthetic import write_synthetic_slide

    paths = [place / f"{name}.svs" for name in "ab"]
    for seed, path in enumerate(paths):
        write_synthetic_slide(path, size=(2048, 2048), mpp=0.5, seed=seed)
    viewer = view(paths[0])
    add_layers(viewer, str(paths[1]))
    dock = viewer.window.dock_widgets["Panel (streamview)"]
    settings().panel.folder = str(place)
    section = next(found for found in dock.sections if found.title == "Fine-tune")
    wait(lambda: dock.state.loaded is not None)
    section.unfold.emit()
    regions = {"normal": Region(0, 0, 1024, 1024), "lesion": Region(1024, 1024, 1024, 1024)}
    dock.state.label(tuple(Example(str(path), label, region) for path in paths for label, region in regions.items()))
    section.controls["preset"].value = "all"
    section.controls["batch"].value = 1
    section.anyway.setChecked(True)
    return viewer, section


def _lateness(seconds: float) -> list[float]:
    """By how many seconds each tick of a timer of 10 ms came late."""
    from qtpy.QtCore import Qt, QTimer

    ticks: list[float] = []
    timer = QTimer(timerType=Qt.TimerType.PreciseTimer, interval=_TICK)
    timer.timeout.connect(lambda: ticks.append(time.perf_counter()))
    timer.start()
    pause(round(1000 * seconds))
    timer.stop()
    return [max(0.0, after - before - _TICK / 1000) for before, after in itertools.pairwise(ticks)]


def _pans(viewer: Any) -> list[float]:
    """Seconds from each move of the camera until the canvas is drawn."""
    from qtpy.QtWidgets import QApplication

    drawn = 0

    def count(event: Any) -> None:
        nonlocal drawn
        drawn += 1

    events = viewer.window._qt_viewer.canvas._scene_canvas.events.draw
    events.connect(count, position="last")
    taken = []
    _, y, x = viewer.scene.camera.center
    for number in range(1, _PANS):
        pause(50)
        before, start = drawn, time.perf_counter()
        viewer.scene.camera.center = (0.0, y + 20 * (number % 4), x + 5 * number)
        while drawn == before and time.perf_counter() - start < 10:
            QApplication.processEvents()
        taken.append(time.perf_counter() - start)
    events.disconnect(count)
    return taken


def _said(seconds: list[float]) -> str:
    ordered = sorted(1000 * second for second in seconds)
    return f"median {statistics.median(ordered):5.1f} ms, p95 {ordered[int(0.95 * (len(ordered) - 1))]:6.1f} ms, most {ordered[-1]:6.1f} ms"


if __name__ == "__main__":
    main()
