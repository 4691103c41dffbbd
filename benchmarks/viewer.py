"""The napari window in numbers: first picture, panning with and without a map, and changes of the display.

::

    LIBGL_ALWAYS_SOFTWARE=1 xvfb-run -a -s "-screen 0 1600x1000x24" python -m benchmarks.viewer

The pyramid of 100,000 x 80,000 px is a lazy array that repeats one tile, read in no time, so that what napari and the plugin take is
all that is seen. The map over it covers the whole slide and is such an array as well; its blur is computed where one looks. The map whose
display is changed has 8192 x 8192 px and lies on disk. A figure ends when the canvas rests: all is sliced, uploaded and drawn.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamview.geometry import Region
from streamview.results import Identity, Prediction, Saliency, SaliencyMap, Target, save_saliency
from streamview.results.display import PALETTES, PRESETS, Recipe

__all__ = ["main", "measure"]

_SIZE = (80_000, 100_000)
_MAP = 8192
_MPP = (0.25, 0.25)
_TILE = 512
_ZOOMS = (1.0, 0.2, 0.03)  # screen px per px of the slide
_SHARE = 0.3  # of the view, a step of panning


class Repeated:
    """One level of a virtual image: a tile, repeated; (h, w) or (h, w, 3)."""

    def __init__(self, tile: NDArray[Any], shape: tuple[int, int]) -> None:
        self._tile = tile
        self.shape = (*shape, *tile.shape[2:])
        self.dtype, self.ndim = tile.dtype, tile.ndim
        self.size = int(np.prod(self.shape))

    def __getitem__(self, key: Any) -> NDArray[Any]:
        rows, columns = (range(size)[part] for part, size in zip(key[:2], self.shape, strict=False))
        return self._tile[np.ix_(np.asarray(rows) % _TILE, np.asarray(columns) % _TILE)]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.asarray(self[:, :], dtype)


def _levels(tile: NDArray[Any], size: tuple[int, int]) -> list[Repeated]:
    found = [Repeated(tile, size)]
    while max(found[-1].shape[:2]) > 1024:
        height, width = found[-1].shape[:2]
        found.append(Repeated(tile, (-(-height // 2), -(-width // 2))))
    return found


def _result(maps: dict[Any, SaliencyMap], size: tuple[int, int]) -> Saliency:
    region = Region(0, 0, *size)
    identity = Identity("ab" * 32, "cd" * 32, "virtual", region, _MPP, "float32")
    logits = np.array([0.0, 2.0], np.float32)
    prediction = Prediction("virtual", region, size, _MPP, "class", ("normal", "tumour"), logits, identity, "virtual", True)
    return Saliency(prediction, Target("tumour", 1), (0.2, 0.2, 0.2), (255, 255, 255), maps)


def _spots(size: int, pitch: int) -> NDArray[np.float32]:
    """Blobs on a grid, a quarter of the area above half of the peak, with noise from px to px as gradients have it."""
    wave = np.sin(np.arange(size) * 2 * np.pi / pitch).astype(np.float32)
    values = np.maximum(wave[:, None] * wave, 0)
    values *= np.random.default_rng(0).normal(1, 1, values.shape).astype(np.float32)
    return values


def _virtual_map() -> Saliency:
    levels: Any = _levels(_spots(_TILE, 256), _SIZE)
    return _result({"signed": SaliencyMap("signed", levels[0], (1.0, 1.0), (0.0, 0.0), tuple(levels[1:]))}, _SIZE)


def _stored_map(folder: Path) -> Saliency:
    fine = _spots(_MAP, 1365)
    coarse = fine.reshape(256, 32, 256, 32).mean((1, 3))
    maps: dict[Any, SaliencyMap] = {
        "absolute": SaliencyMap("absolute", np.abs(fine), (1.0, 1.0), (0.0, 0.0)),
        "signed": SaliencyMap("signed", fine, (1.0, 1.0), (0.0, 0.0)),
        "evidence": SaliencyMap("evidence", coarse, (32.0, 32.0), (15.5, 15.5)),
    }
    return save_saliency(_result(maps, (_MAP, _MAP)), folder / "map.ome.zarr")


class Window:
    """A napari window, and when its canvas rests."""

    def __init__(self) -> None:
        import napari
        from qtpy.QtWidgets import QApplication

        self.viewer = napari.Viewer(show=True)
        self._application: Any = QApplication.instance()
        # Nothing public says when the canvas was drawn.
        self._canvas: Any = self.viewer.window._qt_viewer.canvas._scene_canvas
        self._drawn = 0
        self._canvas.events.draw.connect(self._count, position="last")
        self.rest()

    def _count(self, event: Any) -> None:
        self._drawn += 1

    def rest(self) -> None:
        """Return when nothing is left to draw."""
        from vispy import gloo

        quiet = 0
        while quiet < 3:
            before = self._drawn
            self._application.processEvents()
            quiet = quiet + 1 if self._drawn == before else 0
        gloo.gl.glFinish()

    def timed(self, change: Callable[[], Any]) -> float:
        """Seconds from a change until the canvas rests."""
        start = time.perf_counter()
        change()
        self.rest()
        return time.perf_counter() - start

    def close(self) -> None:
        """Close it."""
        self.viewer.close()
        self._application.processEvents()


def _add(window: Window, tuples: list[Any]) -> list[Any]:
    from napari.layers import Layer

    return [window.viewer.add_layer(Layer.create(*each)) for each in tuples]


def _slide_tuple() -> Any:
    rng = np.random.default_rng(1)
    tile = (rng.normal((205, 160, 200), 25, (_TILE, _TILE, 3))).clip(0, 255).astype(np.uint8)
    options = {"scale": _MPP, "units": ("um", "um"), "axis_labels": ("y", "x"), "contrast_limits": (0, 255)}
    return _levels(tile, _SIZE), options | {"multiscale": True, "rgb": True, "name": "slide"}, "image"


def _pan(window: Window, number: int) -> float:
    """Seconds of one step of a walk over the slide."""
    camera = window.viewer.scene.camera
    step = _SHARE * min(window.viewer.canvas.size) / camera.zoom
    _, y, x = camera.center
    there = 1 if number % 8 < 4 else -1  # and back, to stay on the slide
    to = (0.0, y + there * step * (1 if number % 2 else 0.4), x + there * step)
    return window.timed(lambda: setattr(camera, "center", to))


def _opened(with_map: bool) -> tuple[Window, float]:
    """A window on the slide, and the seconds until it showed something."""
    from streamview_napari.canvas.display import Canvas
    from streamview_napari.canvas.layers import map_layer

    window, saliency = Window(), _virtual_map()

    def show() -> None:
        _add(window, [_slide_tuple()])
        if with_map:
            Canvas(window.viewer)
            _add(window, [map_layer(saliency, PRESETS["detail"])])
        window.viewer.reset_view()

    return window, window.timed(show)


def _panning(count: int) -> Iterator[tuple[str, list[float]]]:
    """The bare layer and the one with a map by turns, since machines are not equally fast all the time."""
    seconds: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(min(count, 5)):
        for with_map, found in seconds.items():
            window, took = _opened(with_map)
            found.append(took)
            window.close()
    windows = {with_map: _opened(with_map)[0] for with_map in seconds}
    names = {False: "bare", True: "with map"}
    yield from ((f"first picture, {names[with_map]}", found) for with_map, found in seconds.items())
    for zoom in _ZOOMS:
        for window in windows.values():
            window.viewer.scene.camera.center = (0.0, *(side / 2 * mpp for side, mpp in zip(_SIZE, _MPP, strict=True)))
            window.viewer.scene.camera.zoom = zoom / _MPP[0]
            window.rest()
        seconds = {False: [], True: []}
        for number in range(count):
            for with_map, window in windows.items():
                seconds[with_map].append(_pan(window, number))
        yield from ((f"pan at {zoom:g} screen px per px, {names[with_map]}", found) for with_map, found in seconds.items())
    for window in windows.values():
        window.close()


def _changing(folder: Path, count: int) -> Iterator[tuple[str, list[float]]]:
    from streamview_napari.canvas.display import Canvas
    from streamview_napari.canvas.layers import saliency_layers
    from streamview_napari.records import expect_map

    window = Window()
    _add(window, [_slide_tuple()])
    canvas = Canvas(window.viewer)
    layers = _add(window, saliency_layers(_stored_map(folder)))
    side = _MAP * _MPP[0]
    for method in ("evidence", "signed", "absolute"):
        layer = next(found for found in layers if expect_map(found).recipe.method == method)
        for other in layers:
            other.visible = other is layer
        usual: Recipe = expect_map(layer).recipe
        for view, share in (("whole", 1.0), ("part", 0.1)):
            window.viewer.scene.camera.center = (0.0, side / 2, side / 2)
            window.viewer.scene.camera.zoom = min(window.viewer.canvas.size) / (side * share)
            window.rest()
            changes: dict[str, Callable[[int], dict[str, Any]]] = {
                "blur": lambda n, usual=usual: {"blur_um": usual.blur_um * (0.4 + 1.2 * ((n * 7) % count) / count)},
                "cap": lambda n: {"cap_percentile": 92 + 7.9 * ((n * 7) % count) / count},
                "threshold": lambda n: {"threshold": 0.1 + 0.8 * ((n * 7) % count) / count, "floor_percentile": 0.0},
                "opacity": lambda n: {"opacity": 0.2 + 0.7 * ((n * 7) % count) / count},
                "colours": lambda n: {"colours": list(PALETTES.values())[n % 2]},
                "kind": lambda n: {"heat": n % 3 != 0, "outline": n % 3 != 1},
            }
            for name, make in changes.items():
                recipes = [replace(usual, **make(n)) for n in range(count)]
                yield f"{name}, {method}, {view}", [window.timed(lambda to=to: canvas.show(layer, to)) for to in recipes]  # noqa: B023
            canvas.show(layer, usual)
    canvas.close()
    window.close()


def measure(count: int) -> dict[str, list[float]]:
    """Seconds of each figure, by its name; `count` of each but the first pictures."""
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, seconds in (*_panning(count), *_changing(Path(folder), count)):
            found[name] = seconds
            milliseconds = sorted(1000 * second for second in seconds)
            worst = milliseconds[min(int(0.95 * len(milliseconds)), len(milliseconds) - 1)]
            print(f"{name:44} median {statistics.median(milliseconds):7.0f} ms   p95 {worst:7.0f} ms   n {len(milliseconds)}", flush=True)
    return found


def main() -> None:
    """Measure, and print each figure as it is known, then what the aims ask for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=30, help="repetitions of each figure (default: 30)")
    parser.add_argument("--json", metavar="FILE", help="write all seconds there")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    found = measure(options.count)
    for name, seconds in found.items():
        if name.startswith("pan") and name.endswith("with map"):
            bare = statistics.median(found[name.replace("with map", "bare")])
            print(f"{name}: {statistics.median(seconds) / bare:.2f} x the bare layer (aim: 2)")
    slow = [name for name, seconds in found.items() if name.count(",") == 2 and statistics.median(seconds) > 0.3]
    print(f"changes of the display above 300 ms (median): {', '.join(slow) or 'none'}")
    if options.json:
        Path(options.json).write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
