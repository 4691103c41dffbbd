"""Composed regions: the lesion is where its mask says, and nothing but the tissue tells it; the experiment runs from tiles to table."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from streamview_models.camelyon16_tiles import build

from experiments.camelyon16_tiles import __main__ as command
from experiments.camelyon16_tiles.calibrate import margins_on
from experiments.camelyon16_tiles.compose import GLASS, SIDE, Stock, Tiles, compose_slide, compose_training_region, load_tiles
from experiments.camelyon16_tiles.train import Recipe, Stage, input_tensor, train


def blank(level: int, count: int = 2) -> np.ndarray:
    return np.full((count, SIDE, SIDE, 3), level, np.uint8)


def textured(period: int, count: int, seed: int) -> np.ndarray:
    """Tiles of stripes in pink and violet, of a period in px."""
    rng = np.random.default_rng(seed)
    tiles = []
    for _ in range(count):
        y, x = np.mgrid[:SIDE, :SIDE]
        wave = np.sin(2 * np.pi * (y * np.cos(a := rng.uniform(0, 3)) + x * np.sin(a)) / period)
        tiles.append(np.array([190, 130, 170]) + wave[..., None] * np.array([40, 50, 20]) + rng.normal(0, 4, (SIDE, SIDE, 3)))
    return np.clip(tiles, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def tiles() -> Tiles:
    return Tiles(textured(12, 3, 0), textured(40, 3, 1))


@pytest.mark.parametrize("round_lesion", [False, True])
def test_a_slide_shows_tumour_exactly_where_its_mask_says(round_lesion) -> None:
    pixels, lesion = compose_slide(Tiles(blank(200), blank(100)), (6, 8), 0.1, np.random.default_rng(0), round_lesion=round_lesion)
    assert pixels.shape == (6 * SIDE, 8 * SIDE, 3)
    assert np.array_equal(lesion, (pixels == 100).all(-1))
    tissue = (pixels != GLASS).all(-1)
    assert lesion.sum() / tissue.sum() == pytest.approx(0.1, abs=0.02)
    along_tiles = lesion.reshape(6, SIDE, 8, SIDE).mean((1, 3))
    assert set(np.unique(along_tiles)) == {0.0, 1.0} or round_lesion
    assert round_lesion == bool(((along_tiles > 0) & (along_tiles < 1)).any())


def test_a_slide_without_a_lesion_has_no_tumour() -> None:
    pixels, lesion = compose_slide(Tiles(blank(200), blank(100)), (4, 4), 0.0, np.random.default_rng(0), round_lesion=True)
    assert not lesion.any()
    assert not (pixels == 100).any()


def test_training_regions_have_a_lesion_of_about_the_share_asked_for(tiles) -> None:
    normal, tumour = Stock(tiles.normal), Stock(tiles.tumour)
    rng = np.random.default_rng(0)
    for share in (0.0, 0.05, 0.4):
        lesions = [compose_training_region(normal, tumour, 160, share, rng)[1].mean() for _ in range(30)]
        assert np.mean(lesions) == pytest.approx(share, abs=0.6 * share)
    first, again = (compose_training_region(normal, tumour, 128, 0.2, np.random.default_rng(5)) for _ in range(2))
    assert np.array_equal(first[0], again[0])
    assert np.array_equal(first[1], again[1])


def stained(hematoxylin: float, seed: int) -> np.ndarray:
    """Tiles of spots whose amount of hematoxylin is scaled."""
    spots = textured(30, 3, seed)[..., :1] / 255
    density = hematoxylin * spots * np.array([0.65, 0.70, 0.29]) + 0.2 * np.array([0.07, 0.99, 0.11])
    return (GLASS * 10.0**-density).astype(np.uint8)


def test_colour_does_not_tell_the_lesion() -> None:
    """Tumour tiles with a third of the hematoxylin of the normal ones: inside the lesion the colour is as often darker as lighter."""
    pale, dark = stained(0.2, 0), stained(0.6, 0)
    assert pale.mean() > dark.mean() + 30
    normal, tumour = Stock(dark), Stock(pale)
    rng = np.random.default_rng(0)
    darker = []
    for _ in range(80):
        pixels, lesion = compose_training_region(normal, tumour, 128, 0.3, rng)
        tissue = pixels.max(-1) < 225
        darker.append(pixels[lesion & tissue].mean() < pixels[tissue & ~lesion].mean())
    assert 0.25 < np.mean(darker) < 0.75


def write_tiles(folder: Path, tiles: Tiles, sources: tuple[str, ...]) -> None:
    for label, stack in (("normal", tiles.normal), ("tumor", tiles.tumour)):
        (folder / label).mkdir(parents=True)
        for source in sources:
            for number, tile in enumerate(stack):
                Image.fromarray(tile).save(folder / label / f"{source}_{number}_0.png")


def test_tiles_are_read_by_source_slide(tiles, tmp_path) -> None:
    write_tiles(tmp_path, tiles, ("tumor_001", "tumor_064"))
    assert np.array_equal(load_tiles(tmp_path, ["tumor_064"]).tumour, tiles.tumour)
    assert len(load_tiles(tmp_path, ["tumor_001", "tumor_064"]).normal) == 6
    with pytest.raises(SystemExit, match="no PNG of tumor_004"):
        load_tiles(tmp_path, ["tumor_004"])


def test_training_and_test_share_no_source_slide() -> None:
    assert command.TEST not in command.TRAINING


def test_the_trained_network_is_the_one_that_is_built(tiles) -> None:
    """BatchNorm is folded away: the weights fit `build`, and what it learned is what it was trained on."""
    recipe = replace(Recipe(), windows=Stage(2, 6, (96,), (0.2, 0.7)), regions=Stage(1, 2, (128,), (0.1, 0.5)), steps=6, learning_rate=1e-2)
    told: list[str] = []
    network = train(tiles, recipe, tell=told.append)
    assert len(told) == 3
    fresh = build()
    fresh.load_state_dict(network.state_dict())
    image = input_tensor(np.random.default_rng(0).integers(0, 256, (1, 128, 128, 3), np.uint8))
    assert torch.allclose(fresh(image), network(image), atol=1e-5)
    assert not network.training


@pytest.mark.slow
def test_the_command_writes_weights_table_and_figure(tiles, tmp_path, monkeypatch, capsys) -> None:
    write_tiles(tmp_path / "tiles", tiles, ("tumor_001", "tumor_004", "tumor_064"))
    quick = replace(Recipe(), windows=Stage(6, 6, (96,), (0.2, 0.7)), regions=Stage(1, 2, (128,), (0.1, 0.5)), steps=8, learning_rate=1e-2)
    monkeypatch.setattr(command, "Recipe", lambda: quick)
    monkeypatch.setattr(command, "margins_on", lambda network, tiles, count, seed: margins_on(network, tiles, 4, seed))
    out = tmp_path / "out"
    monkeypatch.setattr("sys.argv", ["x", "--tiles", str(tmp_path / "tiles"), "-o", str(out), "--slides", "4"])
    command.main()
    kept = {"trained.safetensors", "trained-on-two-thirds.safetensors"}
    assert {path.name for path in out.iterdir()} == kept | {"weights.safetensors", "results.json", "table.md", "figure.jpg"}
    results = json.loads((out / "results.json").read_text())
    auc = results["metrics"]["outputs"][1]["auc"]["value"]
    assert 0 <= auc <= 1  # after 56 steps it depends on the processor's rounding
    assert f"AUC {auc:#.3g}" in (out / "table.md").read_text()
    assert (out / "table.md").read_text() in capsys.readouterr().out
