"""A review session in a real window: how long the next slide takes, and pictures for the page.

``python -m benchmarks.review [--pictures FOLDER]``, under a screen. A reader reads 20 slides of 1536 px, staged; the time of each
next slide is from the press of the verdict until its first pixels are drawn.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

SLIDES, SIDE = 20, 1536
SIZE = (1500, 980)  # of the window, px
PATIENCE = 120.0  # s


def main() -> None:
    """Read the session and say what it took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=Path, metavar="FOLDER", help="write napari-review.jpg and napari-review-own.jpg there")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as place:
        os.environ["NAPARI_CONFIG"] = str(Path(place) / "settings.yaml")
        session = make(Path(place))
        times, actions = read(session, options.pictures)
    spread = f"median {statistics.median(times):.2f} s, longest {max(times):.2f} s"
    print(f"next slide, from the verdict to its first pixels, {len(times)} times: {spread}")
    print(f"actions: {actions / SLIDES:.1f} a slide, with the mouse")


def make(folder: Path) -> Path:
    """Make a job of synthetic slides and a session of it."""
    from streamview.cli import main as streamview
    from streamview.slides.synthetic import write_synthetic_slide

    (folder / "slides").mkdir()
    for seed in range(SLIDES):
        write_synthetic_slide(folder / "slides" / f"node-{seed:02d}.svs", size=(SIDE, SIDE), seed=seed, lesion=seed % 2 == 0)
    streamview(["saliency", "-i", str(folder / "slides"), "-o", str(folder / "job"), "-m", "demo", "--target", "lesion", "--quiet"])
    streamview(["review", "new", str(folder / "job"), "-o", str(folder / "session.sqlite"), "--readers", "a", "--seed", "1"])
    return folder / "session.sqlite"


def read(session: Path, pictures: Path | None) -> tuple[list[float], int]:
    """Read all slides; return the times of the next ones in s, and how many actions all took."""
    from napari.settings import get_settings
    from streamview_napari.view import review

    get_settings().application.save_window_geometry = False
    viewer = review(session, "a")
    viewer.window._qt_window.showNormal()
    viewer.window._qt_window.setGeometry(0, 0, *SIZE)
    reading = viewer.window.dock_widgets["Review (streamview)"].reading
    times, actions = [], 0

    def shown() -> bool:
        sight = reading.sitting.sheet().sight
        return sight is None or (reading._slide.layer is not None and reading._slide.layer.name == sight.title)

    wait(shown)
    for number in range(SLIDES):
        pause(1.5)  # a glance, in which the next slide is made ready
        if pictures is not None and number == 3:
            shoot(viewer, pictures / "napari-review-own.jpg")
        row = int("lesion" in reading.session.cases[reading.sitting.step.case].answer)
        reading.verdicts.steps[row][3].click()
        reading.go.click()
        wait(lambda: reading.state.map_layer is not None and reading.state.map_layer.visible)
        if pictures is not None and row == 1 and number >= 3:
            pause(1.5)
            shoot(viewer, pictures / "napari-review.jpg")
        started = time.perf_counter()
        reading.go.click()
        wait(shown)
        viewer.screenshot(canvas_only=True, flash=False)  # drawn
        if number < SLIDES - 1:
            times.append(time.perf_counter() - started)
        actions += 3
    viewer.close()
    return times, actions


def shoot(viewer: Any, path: Path) -> None:
    """Save a picture of the whole window."""
    from PIL import Image

    picture = Image.fromarray(viewer.screenshot(canvas_only=False, flash=False)).convert("RGB")
    picture.save(path, quality=88, subsampling=0, optimize=True)
    print(path)


def pause(seconds: float) -> None:
    """Let the window work."""
    from qtpy.QtWidgets import QApplication

    stop = time.monotonic() + seconds
    while time.monotonic() < stop:
        QApplication.processEvents()
        time.sleep(0.005)


def wait(until: Callable[[], Any]) -> None:
    """Let the window work until something is so."""
    from qtpy.QtWidgets import QApplication

    stop = time.monotonic() + PATIENCE
    while not until():
        QApplication.processEvents()
        if time.monotonic() > stop:
            raise TimeoutError("the window did not get there")


if __name__ == "__main__":
    main()
