"""Maps by method and resolution: what is measured, and the command from networks to table."""

import json

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from streamview_models.camelyon17 import build

from experiments.camelyon16_tiles.compose import Tiles
from experiments.resolution.data import MPP, compose_slides
from experiments.resolution.networks import LAYERS
from experiments.saliency import __main__ as command
from experiments.saliency.measure import BASELINES, MAPS, explain_slide, measure_maps, model_of


def network(factor: int):
    torch.manual_seed(factor)
    return build(2, width=8, layers=LAYERS[factor])


@pytest.fixture(scope="module")
def slides():
    rng = np.random.default_rng(0)
    normal, tumour = (rng.normal(level, 25, (2, 256, 256, 3)).clip(0, 240).astype(np.uint8) for level in (190, 110))
    return command._with_lesion(compose_slides(Tiles(normal, tumour), 12, seed=1), 2)


def test_only_slides_with_a_lesion_to_be_seen_are_explained(slides) -> None:
    assert slides.sizes == ("medium", "large")
    assert slides.lesions.any((1, 2)).all()


def test_every_method_explains_the_same_slide(slides) -> None:
    model = model_of(network(4), 4 * MPP)
    assert model.card.mpp == 4 * MPP
    maps = explain_slide(model, slides.pixels[0][::4, ::4], 4 * MPP)
    assert list(maps) == list(MAPS)
    for name, (saliency, recipe) in maps.items():
        assert recipe.method in saliency.maps, name
        assert str(saliency.target) == "metastasis"


def test_maps_and_baselines_are_measured(slides) -> None:
    rows = measure_maps(model_of(network(4), 4 * MPP), slides, 4, 4 * MPP, tell=lambda line: None)
    assert list(rows) == [*MAPS, *BASELINES]
    for pointing, energy, precision in rows.values():
        assert 0 <= pointing.value <= 1
        assert energy.value >= 0
        assert 0 < precision.value <= 1
    assert rows["random"][1].value == pytest.approx(1, abs=0.05)


@pytest.mark.slow
def test_the_command_runs_from_networks_to_table(tmp_path, monkeypatch, capsys) -> None:
    rng = np.random.default_rng(0)
    for name, level in (("normal", 190), ("tumor", 110)):
        (tmp_path / name).mkdir()
        for source in ("tumor_001", "tumor_004", "tumor_064"):
            pixels = rng.normal(level, 25, (256, 256, 3)).clip(0, 240).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{source}_0_0.png")
    for factor in LAYERS:
        state = {name: tensor.contiguous() for name, tensor in network(factor).state_dict().items()}
        safetensors.torch.save_file(state, tmp_path / f"network-{factor}x.safetensors")
    out = tmp_path / "out"
    arguments = ["--tiles", str(tmp_path), "--networks", str(tmp_path), "-o", str(out), "--slides", "2"]
    monkeypatch.setattr("sys.argv", ["saliency", *arguments])
    command.main()
    assert (out / "table.md").read_text() == capsys.readouterr().out
    assert len(json.loads((out / "results.json").read_text())) == len(LAYERS) + 1
    with Image.open(out / "figure.jpg") as picture:
        assert picture.width > 1000
