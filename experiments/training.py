"""Training of the paper's networks by streaming whole regions, in stages, from their labels alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import streamview
from streamview.finetuning.initialisation import he_weights, unit_variance

__all__ = ["MEAN", "STD", "Stage", "input_tensor", "lower_resolution", "outputs", "train"]

MEAN, STD = 0.75, 0.2
"""Of pixels (0..1) of stained tissue, about; the networks' input is ``(pixel / 255 - MEAN) / STD``."""
_INITIAL_BATCHES = 10
_AT_ONCE = 8  # images of a pass without gradients


@dataclass(frozen=True, slots=True, eq=False)
class Stage:
    """A part of a training.

    Parameters
    ----------
    images
        uint8 (n, h, w, 3).
    targets
        (n, ...), as the loss takes them.
    batch
        Images of an optimiser step.
    epochs
        How often every image is seen, each time turned by quarters and mirrored at random.
    rate
        Learning rate of the first epoch.
    """

    images: NDArray[np.uint8]
    targets: Tensor
    batch: int
    epochs: int
    rate: float


def lower_resolution(pixels: NDArray[np.uint8], factor: int) -> NDArray[np.uint8]:
    """Return the means of squares of `factor` x `factor` px of images (n, h, w, 3), rounded; h and w are multiples of it."""
    count, height, width, channels = pixels.shape
    squares = pixels.reshape(count, height // factor, factor, width // factor, factor, channels)
    return squares.mean((2, 4), dtype=np.float32).round().astype(np.uint8) if factor > 1 else pixels


def input_tensor(pixels: NDArray[np.uint8]) -> Tensor:
    """Return the network's input float32 (n, 3, h, w), channels_last, for pixels (n, h, w, 3)."""
    return ((torch.from_numpy(np.ascontiguousarray(pixels)) / 255 - MEAN) / STD).permute(0, 3, 1, 2)


def train(
    network: nn.Module,
    stages: Sequence[Stage],
    loss: Callable[[Tensor, Tensor], Tensor],
    *,
    initialise: Literal["he", "lsuv"],
    decay: float,
    seed: int,
    tell: Callable[[str], None],
) -> None:
    """Train a network from scratch, in place, by Adam with weight decay 1e-6.

    Parameters
    ----------
    network
        Of images (n, 3, h, w); left in eval mode.
    stages
        In order.
    loss
        Of outputs and targets of a batch.
    initialise
        Weights to start from: He's, or those scaled to unit variance on ten batches of the first stage.
    decay
        Factor of the learning rate from epoch to epoch.
    seed
        Of weights and order.
    tell
        Called with a line per epoch.
    """
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)  # of dropout
    he_weights(network, torch.Generator().manual_seed(seed))
    if initialise == "lsuv":
        unit_variance(network.eval(), [input_tensor(images) for images, _ in islice(_batches(stages[0], rng), _INITIAL_BATCHES)])
    streamed = streamview.stream(network.train())
    optimiser = torch.optim.Adam(network.parameters(), weight_decay=1e-6)
    start = time.monotonic()
    for number, stage in enumerate(stages, 1):
        for epoch in range(stage.epochs):
            for group in optimiser.param_groups:
                group["lr"] = stage.rate * decay**epoch
            losses = []
            for images, targets in _batches(stage, rng):
                value = loss(streamed(input_tensor(images)), targets)
                optimiser.zero_grad()
                value.backward()
                optimiser.step()
                losses.append(value.item())
            progress = f"stage {number} of {len(stages)}, epoch {epoch + 1} of {stage.epochs}"
            tell(f"{progress}: loss {np.mean(losses):.3f} ({time.monotonic() - start:.0f} s)")
    network.eval()


def outputs(network: nn.Module, images: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return the outputs (n, K) for images uint8 (n, h, w, 3), by streaming."""
    streamed = streamview.stream(network)
    with torch.no_grad():
        parts = [streamed(input_tensor(images[start : start + _AT_ONCE])) for start in range(0, len(images), _AT_ONCE)]
    return torch.cat(parts).double().numpy()


def _batches(stage: Stage, rng: np.random.Generator) -> Iterator[tuple[NDArray[np.uint8], Tensor]]:
    """One epoch; the last, smaller batch is left out."""
    order = rng.permutation(len(stage.images))
    for start in range(0, len(order) - stage.batch + 1, stage.batch):
        chosen = np.sort(order[start : start + stage.batch])
        images = np.rot90(stage.images[chosen], rng.integers(4), (1, 2))
        yield images[:, :, ::-1] if rng.random() < 0.5 else images, stage.targets[torch.from_numpy(chosen)]
