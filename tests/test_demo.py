"""The demo finds its lesion, and says by how much with the right arithmetic."""

import math
from pathlib import Path

import numpy as np
import pytest

from streamview.cli import main
from streamview.demo import run_demo, run_demo_on
from streamview.errors import StreamviewError
from streamview.faithfulness.localisation import share_inside
from streamview.jobs import Job
from streamview.results import SaliencyMap, open_saliency
from streamview.slides import open_slide
from tests.support.slides import SyntheticSlide


def a_map(values: np.ndarray, step: float = 1.0, origin: float = 0.0) -> SaliencyMap:
    return SaliencyMap("signed", values.astype(np.float32), (step, step), (origin, origin))


def test_share_inside_is_the_positive_mass_on_the_lesion() -> None:
    lesion = np.zeros((4, 6), bool)
    lesion[1:3, 2:5] = True
    values = np.full((4, 6), 1.0)
    assert share_inside(a_map(values), lesion) == pytest.approx(6 / 24)
    values[1, 2], values[0, 0] = 7.0, -100.0  # what is negative does not count
    assert share_inside(a_map(values), lesion) == pytest.approx(12 / 29)
    assert math.isnan(share_inside(a_map(-values.clip(0)), lesion))


def test_share_inside_of_a_coarser_map_counts_the_pixels_nearest_to_each_of_its_own() -> None:
    lesion = np.zeros((8, 8), bool)
    lesion[:4, :2] = True  # half of the first cell of a 2 x 2 map
    values = np.array([[3.0, 1.0], [0.0, 0.0]])
    assert share_inside(a_map(values, 4.0, 1.5), lesion) == pytest.approx(3 * 8 / (3 * 16 + 16))
    # cells off the slide's edge hold no pixel and no mass
    wide = np.zeros((3, 3))
    wide[:2, :2], wide[2, 2] = values, 50.0
    assert share_inside(a_map(wide, 4.0, 1.5), lesion) == pytest.approx(3 * 8 / (3 * 16 + 16))


def test_the_demo_from_the_slide_file_to_the_figures(tmp_path: Path) -> None:
    told: list[str] = []
    forecasts = []
    for _ in range(2):  # again into the same folder, as `make demo` does
        result = run_demo(tmp_path, size=512, tell=told.append, announce=lambda slide, ahead: forecasts.append((slide.name, ahead)))
    assert [name for name, _ in forecasts] == ["synthetic.svs"] * 4
    assert len({path.name for path in tmp_path.iterdir()} ^ {"synthetic.svs", "synthetic.ome.zarr", "lesion.png", "job"}) == 0
    assert result.answer.prediction.label == "lesion"
    assert result.answer.prediction.trained
    shares = {row.what.split(",")[0]: row.inside for row in result.localisation}
    assert shares.keys() == {"absolute", "signed", "evidence"}
    assert len(result.localisation) == 4
    assert 0.005 < result.lesion_share < 0.1
    assert min(shares["signed"], shares["evidence"]) >= 5 * result.lesion_share
    assert [path.name.rsplit("-", 1)[1] for path in result.answer.pictures] == ["evidence.png", "detail.png", "paper.png"]
    assert all(path.stat().st_size > 10_000 for path in result.answer.pictures)
    with open_slide(tmp_path / "synthetic.svs") as slide, open_slide(tmp_path / "synthetic.ome.zarr") as pyramid:
        assert slide.shape == pyramid.shape == (512, 512)
        assert slide.mpp == pyramid.mpp == (0.5, 0.5)
    (record,) = Job(result.job).slides()
    (region,) = record.regions
    stored = open_saliency(result.job / region.maps[0].path)
    assert stored.target.name == "lesion"
    assert stored.maps["signed"].values.shape == (512, 512)


def test_a_slide_too_small_for_a_lesion_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StreamviewError, match="512 px a side or more"):
        run_demo(tmp_path / "out", size=100, tell=print, announce=print)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_command_prints_what_a_user_needs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "-o", str(tmp_path / "out"), "--size", "512", "--untrained"]) == 0
    out, err = capsys.readouterr()
    assert out.index("forecast: 512 x 512 px") < out.index("prediction: ")
    for word in (
        "peak memory",
        "absolute, positive part",
        "signed, blurred by 3 um, then negatives cut",
        "evidence, positive part",
        "took ",
    ):
        assert word in out
    assert out.count("picture: ") == 3
    assert "warning: The weights are random" in err
    assert "forward pass: " in err
    assert "backward pass: " in err


@pytest.mark.slow
def test_a_slide_of_tissue_is_explained_by_the_network_that_knows_tissue(synthetic_slide: SyntheticSlide, tmp_path: Path) -> None:
    told: list[str] = []
    result = run_demo_on(synthetic_slide.path, tmp_path / "out", tell=told.append, announce=lambda slide, ahead: None)
    prediction = result.answer.prediction
    assert (prediction.model_name, prediction.class_names) == ("camelyon16-tiles", ("normal", "tumour"))
    assert "not for diagnosis" in told[0]
    assert any("not for diagnosis" in warning for warning in prediction.warnings)
    assert math.isnan(result.lesion_share)
    assert result.localisation == ()
    assert [path.name.rsplit("-", 1)[1] for path in result.answer.pictures] == ["evidence.png", "detail.png", "paper.png"]


@pytest.mark.slow
def test_the_demo_on_a_slide_from_the_command_line(
    synthetic_slide: SyntheticSlide, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo", "-i", str(synthetic_slide.path), "-o", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "tumour" in printed
    assert "lesion covers" not in printed
    assert main(["demo", "-i", str(tmp_path / "absent.svs"), "-o", str(tmp_path / "out")]) != 0
