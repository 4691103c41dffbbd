"""Lesions by resolution: what is composed, how networks are compared, and the command from tiles to table."""

import json
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn.functional import cross_entropy

from experiments.camelyon16_tiles.compose import SIDE as TILE
from experiments.camelyon16_tiles.compose import Tiles
from experiments.regression import __main__ as regression
from experiments.regression.data import amplify_detail
from experiments.regression.data import compose_slides as compose_values
from experiments.resolution import __main__ as resolution
from experiments.resolution.data import SHARES, compose_slides, compose_windows
from experiments.statistics import compare, measure
from experiments.training import Stage, lower_resolution, outputs, train
from streamview.evaluation.bootstrap import area_under_curve


def noise(level: int, count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(level, 25, (count, TILE, TILE, 3)).clip(0, 240).astype(np.uint8)


@pytest.fixture(scope="module")
def tiles() -> Tiles:
    return Tiles(noise(190, 2, 0), noise(110, 2, 1))


def quiet(line: str) -> None:
    """Say nothing."""


def test_lower_resolution_takes_means_of_squares() -> None:
    pixels = np.arange(2 * 4 * 6 * 3, dtype=np.uint8).reshape(2, 4, 6, 3)
    assert np.array_equal(lower_resolution(pixels, 1), pixels)
    lower = lower_resolution(pixels, 2)
    assert lower.shape == (2, 2, 3, 3)
    assert lower[1, 1, 2, 0] == np.round(pixels[1, 2:4, 4:6, 0].mean())


def test_slides_have_lesions_of_their_size(tiles) -> None:
    slides = compose_slides(tiles, 12, seed=3)
    assert slides.pixels.shape == (12, 512, 512, 3)
    assert slides.sizes[::2] == ("",) * 6
    assert slides.sizes[1::2] == (*SHARES, *SHARES)
    for pixels, lesion, size in zip(slides.pixels, slides.lesions, slides.sizes, strict=True):
        tissue = (pixels != 243).any(-1)
        share = lesion.sum() / tissue.sum()
        low, high = SHARES[size] if size else (0.0, 0.0)
        assert low * 0.9 <= share <= high * 1.1
        if size:
            assert pixels[lesion].mean() < pixels[tissue & ~lesion].mean() - 50


def test_every_other_window_holds_lesion(tiles) -> None:
    """Stains are drawn alike for both classes, so texture tells them: here there is none, and the windows must look alike."""
    windows = compose_windows(tiles, 8, seed=1, tell=quiet)
    assert windows.shape == (8, 128, 128, 3)
    assert np.array_equal(windows, compose_windows(tiles, 8, seed=1, tell=quiet))


def test_equal_networks_are_not_called_different() -> None:
    rng = np.random.default_rng(0)
    positive = np.arange(60) % 2 == 1
    better = positive + rng.normal(0, 0.3, 60)
    worse = positive + rng.normal(0, 3.0, 60)
    statistic = partial(area_under_curve, positive=positive)
    assert compare(statistic, better, better) == 1
    assert compare(statistic, better, 7 * better - 3) == 1  # scales do not matter
    assert compare(statistic, worse, better) < 0.01
    assert compare(statistic, worse, better) == compare(statistic, better, worse)


def test_the_test_of_no_difference_is_of_its_level(monkeypatch) -> None:
    """Of two networks that are equally good, p is below 0.2 in about a fifth of all cases."""
    monkeypatch.setattr("experiments.statistics._PERMUTATIONS", 200)
    rng = np.random.default_rng(1)
    positive = np.arange(40) % 2 == 1
    values = [compare(partial(area_under_curve, positive=positive), *(positive + rng.normal(0, 1, (2, 40))), seed) for seed in range(40)]
    assert 2 <= sum(value < 0.2 for value in values) <= 16
    assert np.median(values) > 0.25


def test_intervals_are_of_the_same_draws() -> None:
    positive = np.arange(40) % 2 == 1
    scores = positive + np.random.default_rng(2).normal(0, 1, 40)
    one, other = (measure(area_under_curve(values, positive), 40) for values in (scores, scores + 5))
    assert one == other
    assert one.low < one.value < one.high


@pytest.mark.parametrize("initialise", ["he", "lsuv"])
def test_a_network_learns_what_it_is_told(initialise) -> None:
    rng = np.random.default_rng(0)
    labels = torch.arange(64) % 2
    images = (120 + 60 * labels.numpy()[:, None, None, None] + rng.normal(0, 20, (64, 24, 24, 3))).clip(0, 255).astype(np.uint8)
    layers = [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.AdaptiveMaxPool2d(1), nn.Flatten()]
    network = nn.Sequential(*layers, nn.Linear(8, 2))
    train(network, [Stage(images, labels, 8, 8, 1e-2)], cross_entropy, initialise=initialise, decay=0.9, seed=0, tell=quiet)
    assert not network.training
    assert (outputs(network, images).argmax(1) == labels.numpy()).mean() > 0.95


def test_the_finest_detail_is_amplified_and_nothing_else() -> None:
    pixels = noise(128, 1, 5)[0]
    assert np.abs(amplify_detail(pixels, 1.0, 1.0, 0.0).astype(int) - pixels).max() <= 1
    coarse, fine = (amplify_detail(pixels, factor, 1.0, 0.0) for factor in (0.5, 2.0))
    assert fine.std() > 1.5 * coarse.std()
    assert np.abs(lower_resolution(fine[None], 16).astype(float) - lower_resolution(coarse[None], 16)).mean() < 2
    assert amplify_detail(pixels, 1.0, 1.0, 10.0).mean() == pytest.approx(pixels.mean() + 10, abs=0.5)


def test_values_are_of_the_slides(tiles) -> None:
    slides = compose_values(tiles, 6, seed=0)
    assert slides.pixels.shape == (6, 256, 256, 3)
    assert np.all(np.abs(slides.values) <= 1)
    assert len(set(slides.values)) == 6


@pytest.fixture
def folder(tmp_path):
    for number, (name, sources) in enumerate({"normal": ("tumor_004", "tumor_064"), "tumor": ("tumor_001", "tumor_064")}.items()):
        (tmp_path / name).mkdir()
        for source in sources:
            for place, pixels in enumerate(noise(190 - 80 * number, 2, number)):
                Image.fromarray(pixels).save(tmp_path / name / f"{source}_{place}_0.png")
    return tmp_path


@pytest.mark.slow
def test_the_commands_run_from_tiles_to_table(folder, monkeypatch, capsys) -> None:
    size = {"resolution": "--windows 330 --regions 16 --epochs 1 1 --slides 24", "regression": "--training 32 --epochs 1 --slides 12"}
    for name, command in (("resolution", resolution), ("regression", regression)):
        out = folder / name
        monkeypatch.setattr("sys.argv", [name, "--tiles", str(folder), "-o", str(out), *size[name].split()])
        command.main()
        assert (out / "table.md").read_text() == capsys.readouterr().out
        assert len(json.loads((out / "results.json").read_text())) == 2
        with Image.open(out / "trend.png") as picture:
            assert picture.width == 1080
    monkeypatch.setattr("experiments.resolution.networks.train", None)  # networks that are there are not trained again
    monkeypatch.setattr("sys.argv", ["resolution", "--tiles", str(folder), "-o", str(folder / "resolution"), *size["resolution"].split()])
    before = (folder / "resolution" / "table.md").read_text()
    resolution.main()
    assert (folder / "resolution" / "table.md").read_text() == before
