"""Pictures of the whole napari window for the pages: ``python -m benchmarks.screenshots [FOLDER]``, under a screen (`make screenshots`)."""

from __future__ import annotations

import os
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

SIZE = (1700, 1290)  # of the window, px
PATIENCE = 240_000  # ms


def main(folder: Path) -> None:
    """Take all pictures."""
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as place:
        os.environ["NAPARI_CONFIG"] = str(Path(place) / "settings.yaml")
        from streamview.geometry import Region
        from streamview.synthetic import write_synthetic_slide

        path = Path(place) / "lymph-node.svs"
        mask = write_synthetic_slide(path, size=(4096, 4096), mpp=0.5, seed=6)
        rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
        middle = round(float(rows.mean())), round(float(columns.mean()))
        side = 2048
        y, x = (min(max(at - side // 2, 0), 4096 - side) for at in middle)
        take(path, Region(y, x, side, side), folder)


def take(path: Path, region: Any, folder: Path) -> None:
    """Work with the window as a user does, and take a picture at every stage."""
    from napari.settings import get_settings
    from PIL import Image
    from streamview_napari._regions import corners, fly_to
    from streamview_napari.view import view

    from streamview import inference

    get_settings().application.save_window_geometry = False
    viewer = view(path)
    window = viewer.window._qt_window
    window.resize(*SIZE)
    dock = viewer.window.dock_widgets["Panel (streamview)"]
    sections = {section.title: section for section in dock.sections}
    panel = sections["Model and region"]
    mpp = (0.5, 0.5)

    def shoot(name: str) -> None:
        pause(700)
        picture = Image.fromarray(viewer.screenshot(canvas_only=False, flash=False)).convert("RGB")
        picture.save(folder / name, quality=88, subsampling=0, optimize=True)
        print(folder / name)

    wait(lambda: dock.state.loaded is not None)
    panel.start_drawing()
    viewer.layers["Regions"].add_rectangles(corners(region, mpp))
    fly_to(viewer, region, mpp)
    wait(panel.run.isEnabled)

    panel.run.click()
    wait(lambda: panel._live_layers and half_done(panel._live_layers[-1]))
    shoot("napari-running.jpg")
    wait(lambda: panel._running is None)
    lesion = "lesion"
    if dock.state.result.target.name != lesion:
        dock.state.events.explanation_wanted.emit(dock.state.result.prediction, lesion)
        wait(lambda: panel._running is None)
    wait(lambda: sections["Hotspots"].hotspots)
    shoot("napari.jpg")

    display = sections["Display"]
    display.kind.button(0).click()
    sections["Hotspots"].fly(0)
    shoot("napari-outline.jpg")
    display.kind.button(2).click()

    fly_to(viewer, region, mpp)
    engine = inference.explain

    def exhausted(*arguments: Any, **options: Any) -> Any:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8589934592 bytes")

    inference.explain = exhausted
    panel.run.click()
    wait(lambda: panel.problem.isVisibleTo(panel))
    inference.explain = engine
    shoot("napari-error.jpg")
    viewer.close()


def half_done(layer: Any) -> bool:
    """Whether the lower half of a map that is being computed is there."""
    values = np.asarray(layer.data)
    return bool(values[: len(values) * 5 // 8].any())


def pause(milliseconds: int) -> None:
    """Let the window work."""
    from qtpy.QtTest import QTest

    QTest.qWait(milliseconds)


def wait(until: Callable[[], Any]) -> None:
    """Let the window work until something is so."""
    for _ in range(PATIENCE // 20):
        if until():
            return
        pause(20)
    raise TimeoutError("the window did not get there")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "docs/images"))
