"""Networks, cards and labelled regions for the tests of fine-tuning."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from streamview.geometry import Region
from streamview.labels.regions import Example
from streamview.networks import Model
from streamview.networks.cards import assumed_document, parse_card

MEAN, STD = (0.7, 0.6, 0.7), (0.2, 0.25, 0.2)


def small_network(outputs: int = 2, *, norm: bool = False, dropout: float = 0.0) -> nn.Sequential:
    """Three strides, two convolutions at each, pooling and a linear layer; He's weights."""
    layers: list[nn.Module] = []
    for source, target in ((3, 6), (6, 8), (8, 12)):
        layers += [nn.Conv2d(source, target, 3, 2, 1), *([nn.BatchNorm2d(target)] if norm else []), nn.ReLU()]
        layers += [nn.Conv2d(target, target, 3, 1, 1), nn.ReLU()]
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(dropout), nn.Linear(12, outputs)]
    network = nn.Sequential(*layers)
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    return network


def tiny(num_classes: int = 2) -> nn.Sequential:
    """A function that `load_model` can import: ``tests.support.finetuning:tiny``."""
    return small_network(num_classes, dropout=0.1)


def tiny_normed(num_classes: int = 2) -> nn.Sequential:
    """The same with BatchNorm."""
    return small_network(num_classes, norm=True, dropout=0.3)


def settle_norms(module: nn.Module) -> None:
    """Give BatchNorm statistics and weights that matter."""
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.uniform_(norm.running_mean, -0.2, 0.2)
            nn.init.uniform_(norm.running_var, 0.5, 1.5)
            nn.init.uniform_(norm.weight, 0.5, 1.5)


def model_of(
    module: nn.Module, classes: Sequence[str] = ("a", "b"), task: str = "class", architecture: str = "tests.support.finetuning:tiny"
) -> Model:
    document = assumed_document(architecture, classes, mean=MEAN, std=STD)
    document["streamview"] = {"task": task}
    return Model(module.eval().requires_grad_(False), parse_card(document, name="sample", file="card"), "0" * 64)


def picture(seed: int, height: int = 64, width: int = 64) -> NDArray[np.uint8]:
    """Noise on two scales, of its own mean colour."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(60, 220, (height // 8 + 1, width // 8 + 1, 3)).repeat(8, 0).repeat(8, 1)[:height, :width]
    return np.clip(coarse + rng.integers(-30, 30, (height, width, 3)), 0, 255).astype(np.uint8)


def examples_of(labels: Sequence[str], height: int = 64, width: int = 64, **more: object) -> list[Example]:
    """One patient and one picture a label, each with a margin around its region."""
    return [
        Example(picture(i, height + 8, width + 8), label, Region(4, 4, height, width), f"p{i}", f"s{i}", **more)
        for i, label in enumerate(labels)
    ]


def separable(count: int, side: int = 64) -> list[Example]:
    """Reddish pictures of class a, bluish ones of class b, by turns, one a patient."""
    found = []
    for i in range(count):
        image = picture(i, side, side).astype(int)
        image[..., 0 if i % 2 else 2] -= 60
        found.append(Example(np.clip(image, 0, 255).astype(np.uint8), "ab"[i % 2], None, f"p{i}", f"s{i}"))
    return found


def pixels(example: Example) -> Tensor:
    """Normalised pixels (1, 3, H, W) of a region, float64, read at once."""
    with example.open() as slide:
        image = slide.read(example.region or Region(0, 0, *slide.shape))
    mean, std = (torch.tensor(v, dtype=torch.float64).view(1, 3, 1, 1) for v in (MEAN, STD))
    return (torch.from_numpy(image).permute(2, 0, 1)[None].double() / 255 - mean) / std
