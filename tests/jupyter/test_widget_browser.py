"""The widget in a real JupyterLab and Notebook: what a user sees, and what reaches Python."""

from __future__ import annotations

from ast import literal_eval
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from tests.support.lab import wait_for

# Smaller than a tile of the finest level, so that every level is read
_SLIDE = """
import numpy as np, torch, streamview, streamview_jupyter
from streamview.slides.synthetic import write_synthetic_slide
torch.set_num_threads(1)
write_synthetic_slide("a.svs", size=(1536, 2048))
slide = streamview.open_slide("a.svs")
model = streamview.load_model("demo")
v = streamview_jupyter.view(slide, theme="light")
v
"""
_HOSTILE = "<img src=x onerror=alert(1)>"
_CODES = "() => performance.getEntriesByType('resource').length"


@pytest.fixture(scope="module")
def tab(open_in: Callable[..., Any]) -> Iterator[Any]:
    """One notebook for all tests of this module, its slide in sight."""
    with open_in("widget.ipynb", _SLIDE, "1 + 1") as tab:
        tab.run(0)
        tab.ready()
        yield tab


@pytest.fixture
def mapped(tab: Any) -> None:
    """Have one map, and its strongest place in sight, whichever tests came before."""
    tab.value("if not v.layers: v.run(model, region='768,128,640,640').result(60)")
    tab.page.wait_for_selector(".sv-map h3:has-text('Class evidence')")
    tab.value(
        "layer = v.layers[-1]; m = layer.saliency.maps['evidence']; i, j = np.unravel_index(np.argmax(m.values[:]), m.values.shape)\n"
        "y, x = m.origin[0] + i * m.step[0], m.origin[1] + j * m.step[1]; v.goto(x=x, y=y, mpp=0.6)"
    )
    tab.page.wait_for_timeout(1500)


def overlay(tab: Any) -> Any:
    return tab.pixels(".sv-overlay")


def test_the_slide_is_what_the_kernel_reads(tab: Any) -> None:
    def settled() -> bool:
        return tab.page.evaluate("document.querySelector('.sv-stage .openseadragon-canvas canvas') !== null")

    wait_for(settled)
    tab.page.wait_for_timeout(1000)
    shown = tab.pixels(".sv-stage .openseadragon-canvas canvas")[..., :3].astype(float)
    height, width, _ = shown.shape
    middle = shown[height // 2 - 40 : height // 2 + 40, width // 2 - 40 : width // 2 + 40].mean((0, 1))
    x, y, across, down = map(float, tab.value("print(*v.viewport)").split())
    scale = height / down
    box = [round(n) for n in (y + down / 2 - 40 / scale, x + across / 2 - 40 / scale, 80 / scale, 80 / scale)]
    read = tab.value(f"from streamview import Region; print(*slide.read(Region({box[0]}, {box[1]}, {box[2]}, {box[3]})).mean((0, 1)))")
    np.testing.assert_allclose(middle, [float(n) for n in read.split()], atol=3)


def test_a_drawn_region_reaches_python(tab: Any) -> None:
    stage = tab.page.locator(".sv-stage")
    box = stage.bounding_box()
    tab.page.get_by_role("button", name="Draw a region").click()
    tab.page.mouse.move(box["x"] + 150, box["y"] + 120)
    tab.page.mouse.down()
    tab.page.mouse.move(box["x"] + 350, box["y"] + 300, steps=5)
    tab.page.mouse.up()
    text = wait_for(lambda: (found := tab.value("print(v.selection)")) != "None" and found)
    _, _, width, height = literal_eval(text)
    assert 0 < width <= 2048
    assert 0 < height <= 1536
    x, y, across, _ = map(float, tab.value("print(*v.viewport)").split())
    scale = box["width"] / across
    np.testing.assert_allclose(literal_eval(text), [x + 150 / scale, y + 120 / scale, 200 / scale, 180 / scale], atol=2)
    assert "Selected" in tab.page.locator(".sv-readout").inner_text()
    # a click without a drag makes nothing
    tab.page.get_by_role("button", name="Draw a region").click()
    tab.page.mouse.click(box["x"] + 200, box["y"] + 200)
    assert tab.value("print(v.selection)") == text
    tab.page.keyboard.press("Escape")
    assert tab.page.get_by_role("button", name="Draw a region").get_attribute("aria-pressed") == "false"


def test_a_run_completes_and_its_map_shows(tab: Any) -> None:
    tab.value("v.selection = [768, 128, 640, 640]")
    tab.value("job = v.run(model)")
    tab.page.wait_for_selector(".sv-job:not([hidden])")
    assert tab.value("print(job.result(60).target.name)") == "lesion"
    assert tab.value("print(job.forecast is not None, job.done, len(v.layers))") == "True True 1"
    tab.page.wait_for_selector(".sv-map h3:has-text('Class evidence')")
    assert "lesion" in tab.page.locator(".sv-answer h3").inner_text()
    assert "demo" in tab.page.locator(".sv-job-text").inner_text()
    coloured = wait_for(lambda: (n := int((overlay(tab)[..., 3] > 0).sum())) > 200 and n)
    assert coloured > 200


@pytest.mark.usefixtures("mapped")
def test_colours_change_without_a_tile(tab: Any) -> None:
    tab.value("layer.threshold = 0.0; layer.outline = False; batch_sizes = []; real = v._server._deliver")
    tab.value("v._server._deliver = lambda batch: (batch_sizes.append(len(batch)), real(batch))")
    tab.page.wait_for_timeout(400)
    before = overlay(tab)
    for change in (
        "layer.opacity = 0.9",
        "layer.colormap = 'turbo'",
        "layer.cap = layer.cap / 3",
        "layer.threshold = 0.4",
        "layer.outline = True",
    ):
        tab.value(change)
        wait_for(lambda: not np.array_equal(overlay(tab), before))  # noqa: B023
        before = overlay(tab)
    yellow = (np.abs(before[..., :3].astype(int) - (0xFF, 0xE1, 0x4A)).sum(-1) < 6) & (before[..., 3] > 250)
    assert yellow.sum() > 100  # the outline
    # the same from the browser reaches Python
    slider = tab.page.locator(".sv-map").get_by_label("Opacity")
    slider.focus()
    for _ in range(5):
        tab.page.keyboard.press("ArrowLeft")
    assert wait_for(lambda: tab.value("print(round(layer.opacity, 2))") == "0.85")
    assert tab.value("print(batch_sizes)") == "[]"
    tab.value("v._server._deliver = real")
    # another blur is computed by the kernel
    tab.value("layer.blur_um = 20")
    assert wait_for(lambda: not np.array_equal(overlay(tab), before))


@pytest.mark.usefixtures("mapped")
def test_the_colours_are_those_of_the_core(tab: Any) -> None:
    tab.value("layer.threshold = 0.1; layer.outline = False; layer.colormap = 'teal-lime'; layer.opacity = 1.0; layer.blur_um = 6")
    tab.value("layer.cap = layer.source.shown.shown.cap; v.goto(x=x, y=y, mpp=0.5)")
    tab.page.wait_for_timeout(2500)
    shown = overlay(tab)
    x, y, across, down = map(float, tab.value("print(*v.viewport)").split())
    code = f"""
import numpy as np
from streamview.results.display import colours
height, width = {shown.shape[0]}, {shown.shape[1]}
ys = {y} + np.linspace(0.2, 0.8, 9) * {down}; xs = {x} + np.linspace(0.3, 0.7, 9) * {across}
share = np.array([[layer.source.shown.share(b, a) or 0 for a in xs] for b in ys], np.float32)
rgb, alpha = colours(layer.recipe, np.where(share >= 0.1, share, 0))
print(*np.concatenate([np.rint(255 * rgb), np.rint(255 * alpha)[..., None]], -1).astype(int).ravel())
"""
    expected = np.array([int(n) for n in tab.value(code).split()]).reshape(9, 9, 4)
    rows = np.rint(np.linspace(0.2, 0.8, 9) * shown.shape[0]).astype(int)
    columns = np.rint(np.linspace(0.3, 0.7, 9) * shown.shape[1]).astype(int)
    found = shown[np.ix_(rows, columns)].astype(int)
    inside = (expected[..., 3] > 0) & (found[..., 3] > 0)
    assert inside.sum() > 10, (expected[..., 3], found[..., 3], across, down, shown.shape)
    assert ((expected[..., 3] > 0) == (found[..., 3] > 0)).mean() > 0.85  # but for the edge of what is shown
    assert np.median(np.abs(expected - found)[inside].max(-1)) <= 12  # one screen px is not one px of the map


@pytest.mark.usefixtures("mapped")
def test_the_raw_value_under_the_cursor_is_the_kernels(tab: Any) -> None:
    box = tab.page.locator(".sv-stage").bounding_box()
    tab.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    text = wait_for(lambda: "raw" in (found := tab.page.locator(".sv-readout").inner_text()) and found)
    x, y, across, down = map(float, tab.value("print(*v.viewport)").split())
    raw = float(tab.value(f"print(layer.saliency.maps['evidence'] is not None and layer.source.raw({y + down / 2}, {x + across / 2}))"))
    assert float(text.split("raw ")[1]) == pytest.approx(raw, rel=0.02)
    assert float(tab.value("print(v.cursor_value)")) == pytest.approx(raw, rel=0.02)


@pytest.mark.usefixtures("mapped")
def test_cancel_stops_a_run(tab: Any) -> None:
    tab.value("from streamview import Compute; job = v.run(model, region='0,0,2048,1536', compute=Compute(tile=(64, 64)))")
    tab.page.get_by_role("button", name="Cancel").click()
    assert "cancelled" in tab.value("try: print(job.result(60))\nexcept streamview.StreamviewError as error: print(error)")
    wait_for(lambda: tab.page.locator(".sv-job-text").inner_text() == "Cancelled")
    assert tab.value("print(len(v.layers))") == "1"


@pytest.mark.usefixtures("mapped")
def test_no_shortcut_reaches_the_notebook(tab: Any) -> None:
    cells = "window.jupyterapp.shell.currentWidget.content.widgets.length"
    before = tab.page.evaluate(cells)
    tab.page.locator(".sv-stage").focus()
    opacity = float(tab.value("print(layer.opacity)"))
    for key in ("a", "b", "x", "d", "d", "m", "Enter", "0", "0", "ArrowUp", "["):
        tab.page.keyboard.press(key)
    assert tab.page.evaluate(cells) == before
    assert wait_for(lambda: float(tab.value("print(layer.opacity)")) == pytest.approx(opacity - 0.05))
    tab.page.keyboard.press("0")
    tab.page.wait_for_timeout(800)  # until it rests
    tab.page.keyboard.press("v")
    assert wait_for(lambda: tab.value("print(v.selection)") == "[0, 0, 2048, 1536]")  # after 0, all is in sight
    tab.page.keyboard.press("?")
    assert tab.page.locator(".sv-help").is_visible()
    tab.page.keyboard.press("Escape")
    assert not tab.page.locator(".sv-help").is_visible()


@pytest.mark.usefixtures("mapped")
def test_a_hostile_name_stays_text(tab: Any) -> None:
    tab.page.evaluate("() => { window.alert = () => { window.attacked = true } }")
    tab.value(f"v._slide = v._slide | {{'name': {_HOSTILE!r}}}; layer.saliency.prediction")
    tab.value(
        "from dataclasses import replace; p = layer.saliency.prediction\n"
        f"v._add_prediction(replace(p, model_name={_HOSTILE!r}, class_names=({_HOSTILE!r}, 'b')))"
    )
    wait_for(lambda: _HOSTILE in tab.page.locator(".sv-answers").inner_text())
    assert tab.page.locator(".sv-root img").count() == 0
    assert tab.page.evaluate("window.attacked") is None


def test_two_views_of_one_slide_and_a_closed_one(tab: Any) -> None:
    """Two views of one widget share its state; closing it takes its threads along."""
    tab.value("import threading")
    tab.set_cell(1, "display(v); w = streamview_jupyter.view(slide); streamview_jupyter.link(v, w); display(w)")
    tab.run(1)
    tab.ready(3)
    tab.value("v.goto(x=300, y=900, mpp=0.5)")
    wait_for(
        lambda: tab.value("print(v.viewport is not None and w.viewport is not None and abs(v.viewport[0] - w.viewport[0]) < 40)") == "True"
    )
    tab.value("w.close(); v.close()")
    wait_for(lambda: tab.page.locator(".sv-root").count() == 0)
    assert tab.value("print([t.name for t in threading.enumerate() if t.name.startswith('streamview tiles')])") == "[]"


@pytest.mark.slow
def test_notebook_7_shows_it_too_and_a_restart_is_noticed(open_in: Callable[..., Any]) -> None:
    with open_in("seven.ipynb", _SLIDE, app="notebook", scheme="dark") as tab:
        tab.run(0)
        tab.ready()
        assert tab.page.locator(".sv-stage .openseadragon-canvas canvas").first.is_visible()
        tab.page.evaluate("window.jupyterapp.shell.currentWidget.sessionContext.session.kernel.restart()")
        tab.page.wait_for_timeout(3000)
        tab.run(0)
        tab.ready()
