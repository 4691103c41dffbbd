"""The view without a browser: layers, jobs, pictures, and what is committed of the bundle."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("anywidget")

import streamview_jupyter
from streamview_jupyter.messages import Tile
from streamview_jupyter.sources import decode_values

import streamview
from streamview import Compute
from streamview.errors import Cancelled, StreamviewError
from streamview.results.display import usual_recipe
from streamview.slides.synthetic import write_synthetic_slide

HOME = Path(streamview_jupyter.__file__).parent


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    path = tmp_path_factory.mktemp("view") / "slide.svs"
    write_synthetic_slide(path, size=(512, 768))
    with streamview.open_slide(path) as slide:
        yield slide


@pytest.fixture(scope="module")
def model() -> Any:
    return streamview.load_model("demo")


@pytest.fixture(scope="module")
def result(slide: Any, model: Any) -> Any:
    return streamview.saliency(model, slide, target="lesion")


@pytest.fixture
def view(slide: Any) -> Iterator[Any]:
    view = slide.view()
    yield view
    view.close()


def test_the_bundle_is_built_from_its_sources() -> None:
    files = sorted([*(f"js/{path.name}" for path in (HOME / "js").iterdir()), "package.json", "package-lock.json"])
    digest = hashlib.sha256(b"".join((HOME / file).read_bytes() for file in files)).hexdigest()
    for name in ("widget.js", "widget.css"):
        built = (HOME / "static" / name).read_bytes()
        assert digest in built[:200].decode(), f"{name} is not of these sources: run `npm ci && npm run build` in {HOME.name}"
    assert (HOME / "static" / "widget.js").stat().st_size <= 500_000


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("npm") is None, reason="needs npm")
def test_the_bundle_is_built_anew_to_the_same_bytes(tmp_path: Path) -> None:
    for name in ("js", "package.json", "package-lock.json", "build.mjs", "tsconfig.json"):
        (shutil.copytree if (HOME / name).is_dir() else shutil.copy)(HOME / name, tmp_path / name)
    for command in (["npm", "ci"], ["npm", "run", "check"], ["npm", "run", "build"]):
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
        if command[1] == "ci" and done.returncode:
            pytest.skip("npm reaches no registry")
        assert done.returncode == 0, done.stdout + done.stderr
    for name in ("widget.js", "widget.css"):
        assert (tmp_path / "static" / name).read_bytes() == (HOME / "static" / name).read_bytes()


def test_a_layer_is_live(view: Any, result: Any) -> None:
    layer = view.add_saliency(result, opacity=0.7, colormap="viridis")
    assert view.layers == (layer,)
    (described,) = view._layers
    assert (described["opacity"], described["colormap"], described["title"]) == (0.7, "viridis", "Class evidence (extent): lesion")
    layer.opacity = 0.3
    assert view._layers[0]["opacity"] == 0.3
    epoch, cap = layer.epoch, layer.cap
    layer.blur_um = 25.0
    assert layer.epoch == epoch + 1
    assert layer.cap < cap  # a wider blur has a lower peak
    assert view._layers[0]["cap"] == layer.cap
    assert layer.recipe.blur_um == 25.0
    with pytest.raises(Exception, match="greater than 1"):
        layer.opacity = 2.0
    view.remove(layer)
    assert view.layers == ()
    assert view._layers == []


def test_nothing_is_shown_on_glass(view: Any, result: Any) -> None:
    """The paper's blur of 100 um reaches far over the edge of the tissue."""
    layer = view.add_saliency(result, "paper")
    shown = layer.source.shown
    height, width = shown.map.levels[1].shape
    values = decode_values(layer.source.tile(Tile(1, 0, 1, 0, 0)), (min(256, height), min(256, width)))
    hidden = shown.hidden(1, (0, values.shape[0]), (0, values.shape[1]))
    assert hidden.any()
    assert not hidden.all()
    assert (values[hidden] == 0).all()
    assert (values[~hidden] > 0).any()


def test_what_does_not_fit_is_refused(view: Any, result: Any) -> None:
    other = streamview_jupyter.view(np.zeros((64, 64, 3), np.uint8))
    with pytest.raises(StreamviewError, match="open a view of that slide"):
        other.add_saliency(result)
    with pytest.raises(StreamviewError, match="unknown display setting colour: expected some of"):
        view.add_saliency(result, colour="red")
    with pytest.raises(StreamviewError, match="mpp is unknown"):
        other.goto(x=1, y=1, mpp=0.5)
    with pytest.raises(StreamviewError, match="no result to report"):
        view.to_html()
    assert view.layers == ()
    other.close()


def test_a_run_is_that_of_the_core(view: Any, model: Any, result: Any) -> None:
    job = view.run(model, target="lesion", compute=Compute(memory="2GB"))
    with pytest.raises(StreamviewError, match="is running"):
        view.run(model)
    found = job.result(120)
    assert job.done
    assert job.forecast is not None
    assert found.prediction.identity == result.prediction.identity
    for method, one in result.maps.items():
        np.testing.assert_array_equal(found.maps[method].values, one.values)
    assert [layer.saliency for layer in view.layers] == [found]
    assert view.layers[0].recipe.cap == pytest.approx(view.layers[0].source.shown.shown.cap)
    assert view._slide["predictions"][0]["answer"] == result.prediction.answer
    assert view._job["state"] == "done"
    assert len(view._layers) == 1  # what was shown while it was computed is gone
    alone = view.run(model, region=[0, 0, 256, 256], maps=False).result(60)
    assert alone.region == streamview.Region(0, 0, 256, 256)
    assert len(view.layers) == 1


def test_rows_are_shown_while_they_are_computed(view: Any, model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamview_jupyter.widget._LIVE_PERIOD", 0.0)
    seen: list[Any] = []
    view.observe(lambda change: seen.extend(layer for layer in change.new if layer["title"].startswith("Being computed")), "_layers")
    view.run(model, compute=Compute(tile=(64, 128))).result(120)
    assert len({layer["epoch"] for layer in seen}) > 2
    assert all(layer["cap"] > 0 for layer in seen[1:])


def test_cancelled_and_failed_runs_say_so(view: Any, model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    job = view.run(model)
    job.cancel()
    with pytest.raises(Cancelled):
        job.result(60)
    assert view._job["text"] == "Cancelled"
    job = view.run(model, target="no such class")
    with pytest.raises(StreamviewError, match="no such class"):
        job.result(60)
    assert "no such class" in view._job["text"]
    assert view.layers == ()
    view.run(model)  # and the view is ready for another


def test_a_result_that_cannot_be_shown_is_said_and_kept(view: Any, model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> Any:
        raise StreamviewError("row 7 cannot be read")

    monkeypatch.setattr("streamview_jupyter.slide_widget.find_glass", refuse)
    assert view.run(model, target="lesion").result(60).target.name == "lesion"
    assert (view._job["state"], view._job["text"]) == ("failed", "row 7 cannot be read")
    assert view.layers == ()


def test_closing_stops_the_run_and_all_threads(slide: Any, model: Any) -> None:
    before = set(threading.enumerate())
    view = slide.view()
    job = view.run(model, compute=Compute(tile=(32, 64)))
    view.close()
    job._thread.join(30)
    assert job.done
    assert set(threading.enumerate()) - before == set()


def test_a_saved_notebook_shows_a_picture(view: Any, result: Any) -> None:
    plain, _ = view._repr_mimebundle_()
    view.add_saliency(result)
    overlaid, _ = view._repr_mimebundle_()
    for data in (plain, overlaid):
        assert data["image/png"].startswith(b"\x89PNG")
        assert "application/vnd.jupyter.widget-view+json" in data
    assert plain["image/png"] != overlaid["image/png"]


def test_one_file_holds_what_the_view_shows(view: Any, result: Any, tmp_path: Path) -> None:
    view.add_saliency(result)
    path = view.to_html(tmp_path / "review.html")
    text = path.read_text()
    assert "default-src 'none'" in text
    assert result.prediction.answer.split(" ")[0] in text


def test_regions_hotspots_and_going_there(view: Any, result: Any, tmp_path: Path) -> None:
    from streamview.export.geojson import write_hotspots
    from streamview.export.hotspots import find_hotspots

    assert view.hotspots == ()
    layer = view.add_saliency(result)
    expected = [(each.peak, each.area) for each in find_hotspots(result, layer.recipe, glass=layer.source.shown.glass)]
    assert [(each.peak, each.area) for each in view.hotspots] == expected != []
    view.add_regions(write_hotspots(result, usual_recipe(result), tmp_path / "hotspots.geojson"))
    assert len(view._regions) >= len(view.hotspots)
    assert all(0 <= x <= 768 and 0 <= y <= 512 for ring in view._regions for x, y in ring["points"])
    view.goto(x=100, y=200, mpp=0.5)
    assert view._target == {"number": 1, "x": 100.0, "y": 200.0, "scale": 0.5 / view.slide.mpp[1]}
    view.goto(x=100, y=200)
    assert view._target["number"] == 2


def test_two_results_side_by_side_and_their_difference(slide: Any, model: Any, result: Any) -> None:
    other = streamview.saliency(model, slide, target="normal")
    box = streamview_jupyter.compare(slide, result, other)
    first, second = box.children[0].children
    third = box.children[1]
    assert [len(each.layers) for each in (first, second, third)] == [1, 1, 2]
    assert third.layers[0].cap == third.layers[1].cap
    with pytest.raises(StreamviewError, match="link views of one resolution"):
        streamview_jupyter.link(first, streamview_jupyter.view(np.zeros((64, 64, 3), np.uint8), mpp=5.0))
    for each in (first, second, third):
        each.close()
