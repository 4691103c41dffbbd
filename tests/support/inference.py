"""A model around any network, and what plain autograd says of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from streamview.networks import Model
from streamview.networks.cards import parse_card
from tests.support.networks import Excite

__all__ = ["MEAN", "STD", "Gated", "distance", "make_model", "whole"]

MEAN, STD = (0.7, 0.5, 0.6), (0.2, 0.25, 0.3)


def make_model(
    module: nn.Module, *, mpp: float | None = None, task: str = "class", names: tuple[str, ...] = ("normal", "tumour"), **extra: Any
) -> Model:
    card = {
        "spec_version": "1.0",
        "architecture": "camelyon17-2048",
        "num_classes": len(names),
        "class_names": list(names),
        "patch_size_pixels": None,
        "spacing_um_px": mpp,
        "transform": [{"name": "ToTensor"}, {"name": "Normalize", "arguments": {"mean": list(MEAN), "std": list(STD)}}],
        "streamview": {"task": task, **extra},
    }
    return Model(
        module.eval().requires_grad_(False).to(memory_format=torch.channels_last), parse_card(card, name="test", file="card.json"), "0" * 64
    )


def whole(
    model: Model, pixels: NDArray[np.uint8], target: int, against: int | None = None
) -> tuple[Tensor, NDArray[np.float32], NDArray[np.float32]]:
    """Logits, max over channels of the gradient, and gradient x (input - glass), by plain autograd in float64."""
    module = model.module.double()
    mean, std = (torch.tensor(v, dtype=torch.float64).view(1, 3, 1, 1) for v in (MEAN, STD))
    image = ((torch.from_numpy(pixels).permute(2, 0, 1)[None].double() / 255 - mean) / std).requires_grad_()
    logits = module(image)[0]
    score = logits[target] if against is None else logits[target] - logits[against]
    grad = torch.autograd.grad(score, image)[0]
    signed = (grad * (image - (1 - mean) / std)).sum(1)
    model.module.float()
    return logits.detach(), grad.abs().amax(1)[0].numpy(), signed[0].detach().numpy()


def distance(found: Any, expected: NDArray[np.float32]) -> float:
    return float(np.linalg.norm(np.asarray(found) - expected) / np.linalg.norm(expected))


class Gated(nn.Module):
    """Squeeze-excitation, twice, with a branch around the second, and a head that reads the first means too."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.SiLU())
        self.first, self.second = Excite(8), Excite(8)
        self.middle = nn.Conv2d(8, 8, 3, padding=1)
        self.last = nn.Linear(16, outputs)

    def forward(self, image: Tensor) -> Tensor:
        x = self.stem(image)
        means = x.mean((2, 3))
        x = self.first(x)
        x = x + self.second(self.middle(x).relu())
        return self.last(torch.cat([x.amax((2, 3)), means * torch.tanh(means)], 1))
