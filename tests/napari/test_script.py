"""Copy as script: what is copied computes the same map, bit for bit."""

from __future__ import annotations

import runpy
import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from streamview_napari.canvas.layers import job_layers
from streamview_napari.requests.answers import RunFacts
from streamview_napari.requests.script import Origin, about, command, find_origin, python

from streamview.cli import main
from streamview.errors import StreamviewError
from streamview.inference.compute import Compute
from streamview.results import ExplanationMethod, Saliency, open_saliency
from streamview.results.display import PRESETS, usual_recipe
from streamview.slides.synthetic import write_synthetic_slide
from tests.support.maps import make_maps

pytestmark = pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecatedSince20", "ignore::DeprecationWarning:napari")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Saliency:
    """A result as the command line leaves it, in steps that a default would not choose."""
    folder = tmp_path_factory.mktemp("made with spaces")
    write_synthetic_slide(folder / "it's a slide.svs", size=(512, 512), seed=5)
    arguments = ["-i", str(folder / "it's a slide.svs"), "-o", str(folder / "job"), "-m", "demo", "--target", "lesion"]
    assert main(["saliency", *arguments, "--region", "128,0,384,320", "--tile", "160,192"]) == 0
    (path,) = (folder / "job" / "saliency").glob("*/*.ome.zarr")
    return open_saliency(path)


def assert_same(found: Saliency, made: Saliency) -> None:
    assert found.prediction.identity == made.prediction.identity
    assert found.target == made.target
    for method, one in made.maps.items():
        np.testing.assert_array_equal(np.asarray(found.maps[method].values), np.asarray(one.values))


def test_the_command_line_computes_the_same_map(made: Saliency, tmp_path: Path) -> None:
    said = command(made, find_origin(made), PRESETS["evidence"], str(tmp_path / "again"))
    assert "--tile 160,192" in said
    words = shlex.split(said)
    assert words[0] == "streamview"
    assert main(words[1:]) == 0
    (path,) = (tmp_path / "again" / "saliency").glob("*/*.ome.zarr")
    assert_same(open_saliency(path), made)


def test_the_python_script_computes_the_same_map_and_draws_it(
    made: Saliency, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = tmp_path / "script.py"
    script.write_text(python(made, find_origin(made), PRESETS["evidence"]), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(script))
    assert capsys.readouterr().out.strip() == made.prediction.answer_for(made.target)
    assert_same(open_saliency(tmp_path / "map.ome.zarr"), made)
    assert (tmp_path / "map.png").stat().st_size > 10_000


@pytest.mark.parametrize("method", [pytest.param("smoothgrad:samples=2,noise=0.1,seed=3", marks=pytest.mark.slow), "grad-cam"])
def test_a_map_by_another_method_is_computed_again_by_it(
    made: Saliency, method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    origin = find_origin(made)
    assert main(["saliency", "-i", origin.slide, "-o", str(tmp_path / "job"), "-m", "demo", "--target", "lesion", "--method", method]) == 0
    (path,) = (tmp_path / "job" / "saliency").glob("*/*.ome.zarr")
    other = open_saliency(path)
    recipe = usual_recipe(other)
    origin = find_origin(other)
    words = shlex.split(command(other, origin, recipe, str(tmp_path / "again")))
    assert words[words.index("--method") + 1] == method
    assert main(words[1:]) == 0
    (path,) = (tmp_path / "again" / "saliency").glob("*/*.ome.zarr")
    assert_same(open_saliency(path), other)
    (tmp_path / "script.py").write_text(python(other, origin, recipe), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    runpy.run_path("script.py")
    assert_same(open_saliency(tmp_path / "map.ome.zarr"), other)
    assert other.prediction.identity.method in (method, None)
    assert ExplanationMethod.parse(method).described in about(other, recipe, origin)


def test_a_map_of_a_slide_with_even_glass_is_computed_again_so(
    made: Saliency, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    origin = find_origin(made)
    assert main(["saliency", "-i", origin.slide, "-o", str(tmp_path / "job"), "-m", "demo", "--target", "lesion", "--glass", "flat"]) == 0
    (path,) = (tmp_path / "job" / "saliency").glob("*/*.ome.zarr")
    even = open_saliency(path)
    assert even.prediction.identity.key != made.prediction.identity.key
    recipe, origin = usual_recipe(even), find_origin(even)
    words = shlex.split(command(even, origin, recipe))
    assert words[words.index("--glass") + 1] == "flat"
    (tmp_path / "script.py").write_text(python(even, origin, recipe), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    runpy.run_path("script.py")
    assert open_saliency(tmp_path / "map.ome.zarr").prediction.identity.key == even.prediction.identity.key
    assert "Glass: flat" in about(even, recipe, origin)


def test_a_script_refuses_another_network(made: Saliency, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = python(made, find_origin(made), PRESETS["evidence"]).replace(made.prediction.identity.key, "0" * 64)
    (tmp_path / "script.py").write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="not the one"):
        runpy.run_path("script.py")


def test_a_run_of_the_window_says_how_it_was_computed() -> None:
    run = RunFacts("demo", True, "/slides/a b.svs", 0.25, Compute("cpu", "2GB"))
    origin = find_origin(make_maps(np.ones((64, 64))), run)
    assert origin == Origin("demo", "/slides/a b.svs", untrained=True, mpp=0.25, compute=Compute("cpu", "2GB"))
    said = command(make_maps(np.ones((64, 64))), origin, PRESETS["detail"])
    assert "'/slides/a b.svs'" in said
    assert "--memory 2GB" in said
    assert "--display detail" in said
    assert said.endswith("--untrained")


def test_what_cannot_be_computed_again_says_so(made: Saliency, tmp_path: Path) -> None:
    with pytest.raises(StreamviewError, match="made of other maps"):
        find_origin(make_maps(np.ones((64, 64))))
    with pytest.raises(StreamviewError, match="open the job folder"):
        find_origin(replace(made, path=tmp_path / "a" / "b" / "c.ome.zarr"))


def test_about_names_all_that_decides_a_map(made: Saliency) -> None:
    said = about(made, PRESETS["evidence"], find_origin(made), "Exact: 3 windows")
    identity = made.prediction.identity
    for fact in (identity.weights_sha256, identity.key, "lesion, p = ", "float32", "steps of 192 x 160 px", "Exact: 3 windows"):
        assert fact in said
    assert said.endswith("Research use only. Not for diagnosis.")
    assert "linear layer" in said


def test_layers_of_a_job_lead_back_to_it(made: Saliency) -> None:
    folder = made.path.parents[2]
    layers = job_layers(folder)
    saliency = layers[-1][1]["metadata"]["streamview"].saliency
    assert find_origin(saliency).compute.tile == (160, 192)
    layers[0][1]["metadata"]["streamview"].source.close()
