"""The comparison of two trainings sees every difference, and the batches are those of the paper."""

import copy
import itertools
import json
import random

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from experiments.equivalence import __main__ as command
from experiments.equivalence.compare import compare_trainings
from experiments.equivalence.images import MEAN, STD, crop_box, draw_batches, list_images


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Five noisy pictures of each of two classes, of different sizes."""
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for name, level in (("dark", 80), ("light", 180)):
        (folder / name).mkdir()
        for number in range(5):
            pixels = rng.normal(level, 30, (60 + 10 * number, 90, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    (folder / "dark" / "notes.txt").write_text("not an image")
    return folder


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 6, 3), nn.ReLU(), nn.AdaptiveMaxPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(6, 2)).double()


def test_images_are_listed_by_class(folder, tmp_path) -> None:
    classes, images = list_images(folder)
    assert classes == ["dark", "light"]
    assert [(path.parent.name, number) for path, number in images] == [("dark", 0)] * 5 + [("light", 1)] * 5
    with pytest.raises(SystemExit, match="a folder for each of two or more classes"):
        list_images(tmp_path)


def test_an_epoch_has_every_image_once_and_batches_repeat(folder) -> None:
    _, images = list_images(folder)
    first, again = (list(itertools.islice(draw_batches(images, 5, 32, seed=1), 4)) for _ in range(2))
    assert all(torch.equal(*pair) for one, other in zip(first, again, strict=True) for pair in zip(one, other, strict=True))
    assert sorted(torch.cat([classes for _, classes in first[:2]]).tolist()) == [0] * 5 + [1] * 5
    pixels, classes = first[0]
    assert pixels.shape == (5, 3, 32, 32)
    assert pixels.dtype == torch.float64
    grey = (pixels * torch.tensor(STD).view(1, 3, 1, 1) + torch.tensor(MEAN).view(1, 3, 1, 1)).mean((1, 2, 3)) * 255
    assert ((grey > 130) == (classes == 1)).all()


def test_a_crop_is_of_the_paper() -> None:
    draw, areas = random.Random(0), []
    for _ in range(300):
        left, top, right, bottom = crop_box(200, 150, draw)
        assert 0 <= left < right <= 200
        assert 0 <= top < bottom <= 150
        areas.append((right - left) * (bottom - top) / (200 * 150))
        assert 0.73 <= (right - left) / (bottom - top) <= 1.36
    assert min(areas) == pytest.approx(0.08, abs=0.01)
    assert max(areas) > 0.8


def test_streamed_training_is_conventional_training(folder) -> None:
    _, images = list_images(folder)
    start = network()
    before = copy.deepcopy(start.state_dict())
    result = compare_trainings(start, draw_batches(images, 5, 40, 0), steps=12, tile=(8, 8), rate=0.05, tell=lambda line: None)
    assert result.weights < 1e-12
    assert result.loss_difference(result.streamed) < 1e-12
    assert 0 < result.control_weights < 1e-12
    assert result.loss_difference(result.control) < 1e-12
    assert result.moved > 1e-3
    assert (len(result.streamed), result.precision) == (12, "float64")
    assert all(torch.equal(before[name], tensor) for name, tensor in start.state_dict().items())


def test_a_training_that_differs_is_seen(folder, monkeypatch) -> None:
    """The streamed one sees its images a little lighter."""
    import streamview

    class Lighter(nn.Module):
        def __init__(self, module: nn.Module, tile) -> None:
            super().__init__()
            self.module = module

        def forward(self, image):
            return self.module(image * (1 + 1e-6))

    monkeypatch.setattr(streamview, "stream", Lighter)
    _, images = list_images(folder)
    result = compare_trainings(network(), draw_batches(images, 5, 40, 0), steps=5, tile=(8, 8), rate=0.05, tell=lambda line: None)
    assert result.weights > 1e-9
    assert result.loss_difference(result.streamed) > 1e-9
    assert result.control_weights < 1e-12


@pytest.mark.slow
def test_the_command_writes_table_and_plot(folder, tmp_path, monkeypatch, capsys) -> None:
    arguments = ["--images", str(folder), "-o", str(tmp_path / "out"), "--batch", "2", "--steps", "2", "--float32-steps", "3"]
    monkeypatch.setattr("sys.argv", ["experiments.equivalence", *arguments])
    command.main()
    record = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [(each["precision"], len(each["streamed"])) for each in record] == [("float64", 2), ("float32", 3)]
    assert record[0]["weights"] < 1e-9
    assert (tmp_path / "out" / "table.md").read_text() == capsys.readouterr().out
    with Image.open(tmp_path / "out" / "losses.png") as picture:
        assert picture.width == 1200
