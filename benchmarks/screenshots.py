"""Pictures of the whole napari window for the pages: ``python -m benchmarks.screenshots [FOLDER]``, under a screen (`make screenshots`).

``python -m benchmarks.screenshots FOLDER --tour`` takes instead what a user sees in turn, at two sizes and in both themes, to be looked at.

The picture of fine-tuning needs real tissue: a folder ``normal`` and one ``tumor`` of H&E tiles of 256 px, here ones of CAMELYON16 (CC0).
"""

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
TILES = Path("../shared/data/camelyon16_tiles")
PATIENTS = 10


def main(folder: Path) -> None:
    """Take all pictures."""
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as place:
        os.environ["NAPARI_CONFIG"] = str(Path(place) / "settings.yaml")
        from streamview.geometry import Region
        from streamview.slides.synthetic import write_synthetic_slide

        path = Path(place) / "lymph-node.svs"
        mask = write_synthetic_slide(path, size=(4096, 4096), mpp=0.5, seed=6)
        rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
        middle = round(float(rows.mean())), round(float(columns.mean()))
        side = 2048
        y, x = (min(max(at - side // 2, 0), 4096 - side) for at in middle)
        take(path, Region(y, x, side, side), folder)
        if TILES.is_dir():
            take_finetuning(Path(place), folder)
        else:
            print(f"{TILES} is not there: no picture of fine-tuning")


def tour(folder: Path) -> None:
    """Take first view, drawn region, run, normal and lesion results, two slides, training, and a job, as PNGs."""
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as place:
        os.environ["NAPARI_CONFIG"] = str(Path(place) / "settings.yaml")
        from streamview.slides.synthetic import write_synthetic_slide

        paths = [Path(place) / f"{name}.svs" for name in ("lymph-node-a", "lymph-node-b")]
        lesion = write_synthetic_slide(paths[0], size=(4096, 4096), mpp=0.5, seed=6)
        write_synthetic_slide(paths[1], size=(3072, 4096), mpp=0.5, seed=7)
        for size, theme in (((1280, 800), "dark"), ((1280, 800), "light"), ((1920, 1080), "dark"), ((1920, 1080), "light")):
            show(paths, lesion, folder, size, theme, Path(place) / f"job-{size[0]}-{theme}")


def show(paths: list[Path], lesion: np.ndarray, folder: Path, size: tuple[int, int], theme: str, job: Path) -> None:
    """Go through the window at one size, in one theme."""
    from napari.settings import get_settings
    from streamview_napari.canvas.camera import fly_to
    from streamview_napari.requests.keep import keep_results
    from streamview_napari.requests.regions import corners
    from streamview_napari.view import add_layers, view

    from streamview.geometry import Region
    from streamview.labels.regions import Example

    get_settings().application.save_window_geometry = False
    get_settings().appearance.theme = theme
    rows, columns = (np.flatnonzero(lesion.any(axis)) for axis in (1, 0))
    y, x = (min(max(round(float(found.mean())) - 512, 0), 4096 - 1024) for found in (rows, columns))
    regions = {"lesion": Region(y, x, 1024, 1024), "normal": Region((y + 2048) % 3072, (x + 2048) % 3072, 1024, 1024)}
    mpp = (0.5, 0.5)

    def opened(path: Path) -> tuple[Any, Any, dict[str, Any]]:
        viewer = view(path)
        viewer.window._qt_window.showNormal()
        viewer.window._qt_window.setGeometry(0, 0, *size)
        dock = viewer.window.dock_widgets["Panel (streamview)"]
        wait(lambda: dock.state.loaded is not None)
        return viewer, dock, {section.title: section for section in dock.sections}

    def shoot(viewer: Any, name: str) -> None:
        from PIL import Image

        pause(900)
        Image.fromarray(viewer.screenshot(canvas_only=False, flash=False)).save(folder / f"{size[0]}-{theme}-{name}.png")
        print(folder / f"{size[0]}-{theme}-{name}.png", flush=True)

    folder.mkdir(parents=True, exist_ok=True)
    viewer, dock, sections = opened(paths[0])
    panel = sections["Model and region"]
    pause(1500)
    shoot(viewer, "1-first-view")
    for number, (name, region) in enumerate(regions.items()):
        panel.start_drawing()
        viewer.layers["Regions"].add_rectangles(corners(region, None))
        fly_to(viewer, region, mpp)
        wait(lambda region=region: panel.task.forecast is not None and panel.task.forecast.region == region)
        if name == "lesion":
            shoot(viewer, "2-drawn")
        panel.run.click()
        if name == "lesion":
            wait(lambda: panel._live is not None and panel._live.values is not None and panel._live.values.any())
            shoot(viewer, "3-running")
        wait(lambda number=number: len(dock.state.answers) == number + 1 and not panel.task.running)
        pause(1500)
        shoot(viewer, f"4-result-{name}")
    add_layers(viewer, str(paths[1]))
    shoot(viewer, "5-second-slide")
    keep_results(dock.state.answers, job)
    dock.state.select_slide(viewer.layers["lymph-node-a.svs"])
    dock.state.change_labels(tuple(Example(str(paths[0]), name, region) for name, region in regions.items()))
    dock.tabs.setCurrentIndex(1)
    sections["Fine-tune"].unfold.emit()
    shoot(viewer, "6-train")
    dock.state.saved(dock.state.answers)
    viewer.close()
    viewer, dock, sections = opened(job)
    pause(1500)
    shoot(viewer, "7-job")
    viewer.close()


def take(path: Path, region: Any, folder: Path) -> None:
    """Work with the window as a user does, and take a picture at every stage."""
    from napari.settings import get_settings
    from PIL import Image
    from streamview_napari.canvas.camera import fly_to
    from streamview_napari.requests.regions import corners
    from streamview_napari.view import view

    from streamview.inference.prepared import PreparedRun

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
    viewer.layers["Regions"].add_rectangles(corners(region, None))
    fly_to(viewer, region, mpp)
    wait(lambda: panel.task.forecast is not None)

    panel.run.click()
    wait(lambda: any(layer.name.startswith("Being computed: gradient") and half_done(layer) for layer in viewer.layers))
    shoot("napari-running.jpg")
    wait(lambda: not panel.task.running)
    lesion = "lesion"
    if dock.state.result.target.name != lesion:
        dock.state.events.explanation_wanted.emit(dock.state.result.prediction, lesion)
        wait(lambda: not panel.task.running)
    wait(lambda: sections["Hotspots"].hotspots)
    shoot("napari.jpg")

    display = sections["Display"]
    display.kind.button(0).click()
    sections["Hotspots"].fly(0)
    shoot("napari-outline.jpg")
    display.kind.button(2).click()

    fly_to(viewer, region, mpp)
    engine = PreparedRun.explain

    def exhausted(*arguments: Any, **options: Any) -> Any:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8589934592 bytes")

    PreparedRun.explain = exhausted  # type: ignore[method-assign]
    panel.press()
    wait(lambda: panel.problem.isVisibleTo(panel))
    PreparedRun.explain = engine  # type: ignore[method-assign]
    shoot("napari-error.jpg")
    viewer.close()


def take_finetuning(place: Path, folder: Path) -> None:
    """Label regions of slides of real tissue, fine-tune on them, and take a picture of what came out."""
    from napari.settings import get_settings
    from PIL import Image
    from qtpy.QtWidgets import QScrollArea
    from streamview_napari.canvas.camera import fly_to
    from streamview_napari.settings import settings
    from streamview_napari.view import view

    from streamview.geometry import Region
    from streamview.labels.regions import Example, write_labels

    labels = []
    for number in range(PATIENTS):
        path = place / f"node-{number + 1:02d}.svs"
        lesion = compose(path, np.random.default_rng(number))
        normal = Region(1536 if lesion.y <= 768 else 256, lesion.x, 512, 512)
        labels += [Example(path, "lesion", lesion, f"p{number + 1:02d}"), Example(path, "normal", normal, f"p{number + 1:02d}")]
    write_labels(place / "labels.csv", labels)
    get_settings().application.save_window_geometry = False
    viewer = view(place / "node-01.svs")
    viewer.window._qt_window.resize(*SIZE)
    dock = viewer.window.dock_widgets["Panel (streamview)"]
    sections = {section.title: section for section in dock.sections}
    found, tune = sections["Labels"], sections["Fine-tune"]
    settings().panel.folder = str(place)
    wait(lambda: dock.state.loaded is not None)
    for section in (found, tune):
        section.unfold.emit()
    found.load_table(place / "labels.csv")
    wait(lambda: len(dock.state.labels) == len(labels))
    tune.controls["preset"].value = "careful"
    for name, text in {"learning_rate": "2e-3", "epochs": "12"}.items():
        tune.controls[name].native.setText(text)
    wait(tune.run.isEnabled)
    tune.run.click()
    wait(lambda: not tune.task.running)
    wait(tune.run.isEnabled)
    fly_to(viewer, Region(0, 0, 2304, 2304), dock.state.slide.mpp)
    area = dock.findChild(QScrollArea)
    area.verticalScrollBar().setValue(found.parentWidget().y())
    pause(700)
    picture = Image.fromarray(viewer.screenshot(canvas_only=False, flash=False)).convert("RGB")
    picture.save(folder / "napari-finetuning.jpg", quality=88, subsampling=0, optimize=True)
    print(folder / "napari-finetuning.jpg")
    viewer.close()


def compose(path: Path, rng: np.random.Generator) -> Any:
    """Write a slide of 2304 px of normal tiles with 3 x 3 tiles of tumour; return a region within them."""
    import tifffile
    from PIL import Image

    from streamview.geometry import Region

    files = {kind: sorted((TILES / kind).glob("*.png")) for kind in ("normal", "tumor")}
    tiles = {kind: [np.asarray(Image.open(file).convert("RGB")) for file in found] for kind, found in files.items()}
    row, column = rng.integers(0, 5, 2)
    image = np.empty((2304, 2304, 3), np.uint8)
    for y, x in np.ndindex(9, 9):
        kind = "tumor" if row <= y < row + 3 and column <= x < column + 3 else "normal"
        tile = np.rot90(tiles[kind][rng.integers(len(tiles[kind]))], rng.integers(4))
        image[y * 256 : (y + 1) * 256, x * 256 : (x + 1) * 256] = tile
    text = "Aperio Image Library v11.2.1 \r\n2304x2304 [0,0 2304x2304] (256x256) JPEG/RGB Q=90|AppMag = 40|MPP = 0.243"
    tifffile.imwrite(
        path, image, photometric="rgb", compression="jpeg", compressionargs={"level": 90}, tile=(256, 256), description=text, metadata=None
    )
    return Region(int(row) * 256 + 128, int(column) * 256 + 128, 512, 512)


def half_done(layer: Any) -> bool:
    """Whether the lower half of a map that is being computed is there."""
    values = np.asarray(layer.data)
    return bool(values[: len(values) * 5 // 8].any())


def pause(milliseconds: int) -> None:
    """Let the window work; QTest.qWait, which vispy replaces, would take a whole processor for it."""
    from qtpy.QtCore import QEventLoop, QTimer

    loop = QEventLoop()
    QTimer.singleShot(milliseconds, loop.quit)
    loop.exec()


def wait(until: Callable[[], Any]) -> None:
    """Let the window work until something is so."""
    for _ in range(PATIENCE // 20):
        if until():
            return
        pause(20)
    raise TimeoutError("the window did not get there")


if __name__ == "__main__":
    chosen = Path(sys.argv[1] if len(sys.argv) > 1 else "docs/images")
    tour(chosen) if "--tour" in sys.argv else main(chosen)
