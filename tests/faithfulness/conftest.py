"""A linear network, whose gradient map is the truth, and a region of tissue that it sees."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import streamview
from streamview.faithfulness import Settings
from streamview.networks import Model
from streamview.results import Saliency
from tests.support.inference import make_model

SIDE = 96
SETTINGS = Settings(patch=8, steps=6, rankings=5, shuffles=2, noises=1)


def linear_network(seed: int = 0) -> nn.Sequential:
    """Pooling of one convolution of one pixel: the score is a sum over pixels."""
    torch.manual_seed(seed)
    layers = nn.Sequential(nn.Conv2d(3, 6, 1, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 2))
    with torch.no_grad():  # dark red and blue speak for the second output, dark green against it
        layers.get_submodule("0").weight[:3, :, 0, 0] = torch.eye(3)
        layers.get_submodule("3").weight[1, :3] = torch.tensor([-2.0, 3.0, -1.5])
    return layers


def tissue(seed: int = 0) -> np.ndarray:
    """Blocks of 8 px of random colours, darker than glass."""
    return np.kron(np.random.default_rng(seed).integers(20, 200, (SIDE // 8, SIDE // 8, 3)), np.ones((8, 8, 1))).astype(np.uint8)


@pytest.fixture(scope="session")
def model() -> Model:
    return make_model(linear_network())


@pytest.fixture(scope="session")
def run(model: Model) -> streamview.PreparedRun:
    return streamview.prepare(model, tissue())


@pytest.fixture(scope="session")
def saliency(run: streamview.PreparedRun) -> Saliency:
    return run.explain(["tumour"])[0]
