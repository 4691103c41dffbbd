"""Results, maps and outlines belong to their slide: they hide, come back and leave with it, in a real window."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import streamview
from streamview.geometry import Region
from streamview.results import Saliency, open_saliency
from streamview.slides.synthetic import write_synthetic_slide
from tests.support.real_window import REAL_WINDOW

pytestmark = REAL_WINDOW
LIMIT = 60_000  # ms
REGION = Region(128, 256, 256, 256)


@pytest.fixture(scope="module")
def computed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two slides, a.svs and b.svs, and for each the folder of a saved saliency."""
    folder = tmp_path_factory.mktemp("slides")
    model = streamview.load_model("demo")
    for seed, name in enumerate("ab"):
        write_synthetic_slide(folder / f"{name}.svs", size=(768, 1024), mpp=0.5, seed=seed)
        with streamview.open_slide(folder / f"{name}.svs") as slide:
            streamview.saliency(model, slide, REGION, out=folder / f"{name}.ome.zarr")
    return {path.name: path for path in folder.iterdir()}


@pytest.fixture
def opened(window: Callable[[Any], Any], computed: dict[str, Path], qtbot: Any) -> tuple[Any, Any]:
    """A window on a.svs and its dock, with the demo's network loaded."""
    from streamview_napari.view import view

    viewer = window(view(computed["a.svs"]))
    dock = viewer.window.dock_widgets["Panel (streamview)"]
    qtbot.waitUntil(lambda: dock.state.loaded is not None, timeout=LIMIT)
    return viewer, dock


def answer(dock: Any, path: Path) -> Saliency:
    """Give the window a result, as the end of a run does."""
    from streamview_napari.requests.answers import Answer

    saliency = open_saliency(path)
    dock.state.answer(Answer(saliency.prediction, saliency, 1.0))
    return saliency


def on_show(viewer: Any) -> set[str]:
    """Names of the visible layers."""
    return {layer.name for layer in viewer.layers if layer.visible}


def listed(dock: Any) -> list[str]:
    """The table of answers, a line a row."""
    table = next(section for section in dock.sections if section.title == "Result").table
    return [" ".join(table.item(row, column).text() for column in range(table.columnCount())) for row in range(table.rowCount())]


def test_maps_and_answers_hide_come_back_and_leave_with_their_slide(opened: tuple[Any, Any], computed: dict[str, Path]) -> None:
    from streamview_napari.view import add_layers

    viewer, dock = opened
    first = answer(dock, computed["a.ome.zarr"])
    evidence = f"Class evidence (extent): {first.target}"
    ours = {evidence, f"Outline: {evidence}", "Analysed"}
    assert on_show(viewer) == ours | {"a.svs"}
    assert "a.svs | demo" in viewer.canvas.overlays.text.text
    assert len(listed(dock)) == 1
    assert "demo" in listed(dock)[0]

    add_layers(viewer, str(computed["b.svs"]))
    assert on_show(viewer) == {"b.svs"}
    assert not viewer.canvas.overlays.text.visible
    assert listed(dock) == []
    assert dock.state.map is None

    second = answer(dock, computed["b.ome.zarr"])
    assert dock.state.result is second
    assert "b.svs | demo" in viewer.canvas.overlays.text.text
    assert "a.svs" not in viewer.canvas.overlays.text.text
    shown = dock.state.map_layer
    assert dock.state.map.saliency is second

    viewer.layers.selection.active = viewer.layers["a.svs"]
    assert on_show(viewer) == ours | {"a.svs"}
    assert dock.state.map_layer is shown  # one layer, taken over
    assert dock.state.map.saliency is first
    assert "a.svs | demo" in viewer.canvas.overlays.text.text

    viewer.layers.remove("a.svs")
    assert dock.state.result is second
    assert "a.svs" not in viewer.canvas.overlays.text.text
    viewer.layers.remove("b.svs")
    assert on_show(viewer) == set()
    assert listed(dock) == []

    add_layers(viewer, str(computed["a.svs"]))
    assert dock.state.result is first
    assert on_show(viewer) == ours | {"a.svs"}


def test_a_map_of_another_slide_is_not_laid_over_the_one_on_show(opened: tuple[Any, Any], computed: dict[str, Path]) -> None:
    from streamview_napari.view import add_layers

    viewer, dock = opened
    add_layers(viewer, str(computed["b.ome.zarr"]))
    assert on_show(viewer) == {"a.svs"}
    assert listed(dock) == []
    layer = next(layer for layer in viewer.layers if layer.name.startswith("Class evidence"))
    layer.visible = True  # against advice: it is marked
    assert viewer.canvas.overlays.text.text.startswith("NOT OF THE SLIDE ON SHOW: b.svs")

    add_layers(viewer, str(computed["b.svs"]))
    assert dock.state.map.source == dock.state.slide.identity
    assert "b.svs" in on_show(viewer)
    assert "a.svs" not in on_show(viewer)
    assert len(listed(dock)) == 1


def test_what_was_analysed_is_outlined_also_where_the_map_is_empty(opened: tuple[Any, Any], computed: dict[str, Path]) -> None:
    viewer, dock = opened
    answer(dock, computed["a.ome.zarr"])
    ends = viewer.layers["Analysed"].data
    low, high = ends[:, 0].min(0), (ends[:, 0] + ends[:, 1]).max(0)
    width = viewer.layers["Analysed"].edge_width
    np.testing.assert_allclose(low, (np.array([REGION.y, REGION.x]) - 0.5) * 0.5, atol=width)
    np.testing.assert_allclose(high, (np.array([REGION.y_stop, REGION.x_stop]) - 0.5) * 0.5, atol=width)


def test_an_answer_of_another_network_is_marked(opened: tuple[Any, Any], computed: dict[str, Path], qtbot: Any) -> None:
    _, dock = opened
    answer(dock, computed["a.ome.zarr"])
    result = next(section for section in dock.sections if section.title == "Result")
    usual = result.table.item(0, 0).foreground().color()
    assert "not the chosen" not in result.warning.text()
    panel = next(section for section in dock.sections if section.title == "Model and region")
    panel.choose("imagenette")
    qtbot.waitUntil(lambda: dock.state.loaded is not None and dock.state.loaded.spec == "imagenette", timeout=LIMIT)
    assert result.table.item(0, 0).foreground().color() != usual
    assert "demo, which is not the chosen network" in result.warning.text()
    assert "not the chosen one" in result.table.item(0, 0).toolTip()


@pytest.mark.slow
def test_a_result_takes_over_the_layer_of_the_last_one(opened: tuple[Any, Any], computed: dict[str, Path]) -> None:
    viewer, dock = opened
    answer(dock, computed["a.ome.zarr"])
    before = list(viewer.layers)
    for _ in range(3):
        saliency = answer(dock, computed["a.ome.zarr"])
    assert list(viewer.layers) == before
    assert dock.state.map.saliency is saliency
    assert len(listed(dock)) == 4
    dock.state.select(dock.state.answers[0])
    assert list(viewer.layers) == before
    assert dock.state.map.saliency is dock.state.answers[0].saliency


@pytest.mark.slow
def test_the_second_slide_of_a_job_is_offered_and_opens_with_its_maps(
    window: Callable[[Any], Any], computed: dict[str, Path], tmp_path: Path
) -> None:
    from qtpy.QtCore import Qt
    from qtpy.QtTest import QTest
    from streamview_napari.requests.answers import Answer, RunFacts
    from streamview_napari.requests.keep import keep_results
    from streamview_napari.view import view

    from streamview.inference.compute import Compute

    answers = []
    for name in "ab":
        saliency = open_saliency(computed[f"{name}.ome.zarr"])
        run = RunFacts("demo", False, str(computed[f"{name}.svs"]), None, Compute(tile=(64, 64)))
        answers.append(Answer(saliency.prediction, saliency, 1.0, (64, 64), run))
    viewer = window(view(keep_results(answers, tmp_path / "job")))
    dock = viewer.window.dock_widgets["Panel (streamview)"]
    assert {"a.svs", "Analysed"} <= on_show(viewer)
    chooser = next(section for section in dock.sections if section.title == "Slide").choice
    assert [chooser.itemText(row) for row in range(chooser.count())] == ["a.svs", "b.svs (in the job)"]
    chooser.setFocus()
    QTest.keyClick(chooser, Qt.Key.Key_Down)
    assert dock.state.slide.name == "b.svs"
    assert {"b.svs", "Analysed"} <= on_show(viewer)
    assert "a.svs" not in on_show(viewer)
    assert dock.state.map.source == dock.state.slide.identity
    assert [chooser.itemText(row) for row in range(chooser.count())] == ["a.svs", "b.svs"]
