"""Train the network on composed regions: where a position shows lesion, and whether the region does.

The pooled answer is the maximum over all positions, which grows with the amount of tissue. As the maximum over a large region is that of
its parts, every region also learns as part of a larger one: with the maxima of negative regions seen lately.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from streamview_models import folder
from streamview_models.camelyon16_tiles import build
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, binary_cross_entropy_with_logits, cross_entropy
from torch.nn.utils.fusion import fuse_conv_bn_eval

from experiments.camelyon16_tiles.compose import Stock, Tiles, compose_training_region
from streamview.networks.cards import parse_card, read_document

__all__ = ["Recipe", "Stage", "input_tensor", "position_map", "train"]

_CARD = parse_card(read_document(folder("camelyon16-tiles") / "card.json"), name="camelyon16-tiles", file="card.json")
_STRIDE = 16  # of the last map, px


@dataclass(frozen=True, slots=True)
class Stage:
    """A part of the training.

    Parameters
    ----------
    epochs
        Number of epochs.
    batch
        Regions of a step, half of them with a lesion.
    sides
        Sides of regions, px of the network's grid.
    shares
        Smallest and largest share of a region that is lesion, about.
    """

    epochs: int
    batch: int
    sides: tuple[int, ...]
    shares: tuple[float, float]


@dataclass(frozen=True, slots=True)
class Recipe:
    """What determines the weights beside the tiles.

    Parameters
    ----------
    windows, regions
        The two stages: small windows, from which positions are learned, then regions, with their answers.
    steps
        Optimiser steps in an epoch.
    learning_rate, decay
        Of the first epoch, and its factor from epoch to epoch.
    weight_decay
        L2 penalty.
    parts
        Regions that make up the largest one that a region is part of.
    easiest
        Share of a lesion's positions that must show it: tumour tiles hold other tissue as well.
    seed
        Of weights and regions.
    """

    windows: Stage = Stage(epochs=16, batch=12, sides=(128, 192), shares=(0.2, 0.7))
    regions: Stage = Stage(epochs=36, batch=4, sides=(256, 384, 512), shares=(0.01, 0.6))
    steps: int = 16
    learning_rate: float = 3e-3
    decay: float = 0.95
    weight_decay: float = 1e-5
    parts: int = 16
    easiest: float = 0.75
    seed: int = 0


def input_tensor(pixels: NDArray[np.uint8]) -> Tensor:
    """Return the network's input (n, 3, h, w), channels_last, for pixels uint8 (n, h, w, 3)."""
    image = torch.from_numpy(np.ascontiguousarray(pixels)) / 255
    return ((image - torch.tensor(_CARD.mean)) / torch.tensor(_CARD.std)).permute(0, 3, 1, 2)


def position_map(network: nn.Module, image: Tensor) -> Tensor:
    """Return the map (n, h, w) before the global maximum."""
    evidence: Tensor = network.get_submodule("features")(image)
    return evidence[:, 0]


def train(tiles: Tiles, recipe: Recipe, *, tell: Callable[[str], None]) -> nn.Module:
    """Train the network from scratch.

    Parameters
    ----------
    tiles
        What regions are composed of.
    recipe
        The settings.
    tell
        Called with a line per epoch.

    Returns
    -------
    torch.nn.Module
        As `streamview_models.camelyon16_tiles.build` makes it, in eval mode.
    """
    rng = np.random.default_rng(recipe.seed)
    normal, tumour = Stock(tiles.normal), Stock(tiles.tumour)
    torch.manual_seed(recipe.seed)
    network = build()
    features = network.get_submodule("features")
    assert isinstance(features, nn.Sequential)
    normed = _normed(features).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    linear = network.get_submodule("head").get_submodule("2")
    assert isinstance(linear, nn.Linear)
    with torch.no_grad():  # the margin between the classes starts as the evidence itself
        linear.weight.copy_(torch.tensor([[-0.5], [0.5]]))
        linear.bias.zero_()
    optimiser = torch.optim.Adam([*normed.parameters(), *linear.parameters()], recipe.learning_rate, weight_decay=recipe.weight_decay)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimiser, recipe.decay)
    negatives: deque[float] = deque([-10.0], maxlen=recipe.parts)
    start = time.monotonic()
    stages = [recipe.windows] * recipe.windows.epochs + [recipe.regions] * recipe.regions.epochs
    for epoch, stage in enumerate(stages):
        losses = []
        for _ in range(recipe.steps):
            pixels, lesions = _batch(normal, tumour, stage, rng)
            evidence = normed(input_tensor(pixels))[:, 0]
            loss = _position_loss(evidence, _shares(lesions), recipe.easiest)
            if stage is recipe.regions:
                loss = loss + _region_loss(evidence.amax((1, 2)), linear, negatives, rng)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            losses.append(loss.item())
        schedule.step()
        tell(f"epoch {epoch + 1} of {len(stages)}: loss {np.mean(losses):.3f} ({time.monotonic() - start:.0f} s)")
    network.add_module("features", _folded(normed.eval()))
    return network.eval()


def _normed(features: nn.Sequential) -> nn.Sequential:
    """Put BatchNorm behind every convolution but the last: without it, four times as many steps learned less."""
    layers: list[nn.Module] = []
    for layer in features:
        norm = isinstance(layer, nn.Conv2d) and layer.out_channels > 1
        layers += [layer, nn.BatchNorm2d(layer.out_channels)] if norm else [layer]
    return nn.Sequential(*layers)


def _folded(normed: nn.Sequential) -> nn.Sequential:
    """Fold every BatchNorm into the convolution before it, which gives the same outputs."""
    layers: list[nn.Module] = []
    for layer in normed:
        if isinstance(layer, nn.BatchNorm2d):
            convolution = layers.pop()
            assert isinstance(convolution, nn.Conv2d)
            layers.append(fuse_conv_bn_eval(convolution, layer))
        else:
            layers.append(layer)
    return nn.Sequential(*layers)


def _region_loss(pooled: Tensor, linear: nn.Linear, negatives: deque[float], rng: np.random.Generator) -> Tensor:
    """Loss of regions, alone and as parts of larger ones; keeps what was pooled from those without a lesion."""
    labels = torch.arange(len(pooled)) % 2
    others = torch.tensor(max(list(negatives)[-int(rng.integers(1, len(negatives) + 1)) :]))
    negatives.extend(pooled[labels == 0].tolist())
    alone, within = (cross_entropy(linear(values[:, None]), labels) for values in (pooled, torch.maximum(pooled, others)))
    return alone + within


def _batch(normal: Stock, tumour: Stock, stage: Stage, rng: np.random.Generator) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    side = int(rng.choice(stage.sides))
    shares = [float(np.exp(rng.uniform(*np.log(stage.shares)))) if number % 2 else 0.0 for number in range(stage.batch)]
    pixels, lesions = zip(*(compose_training_region(normal, tumour, side, share, rng) for share in shares), strict=True)
    return np.stack(pixels), np.stack(lesions)


def _shares(lesions: NDArray[np.bool_]) -> Tensor:
    """Share of lesion (n, h, w) around every position of the map."""
    return avg_pool2d(torch.from_numpy(lesions[:, None].astype(np.float32)), 3 * _STRIDE, _STRIDE)[:, 0]


def _position_loss(evidence: Tensor, lesion: Tensor, easiest: float) -> Tensor:
    """Cross-entropy of positions: those without lesion, and the easiest of those within one."""
    within, without = evidence[lesion > 0.9], evidence[lesion == 0]
    total = binary_cross_entropy_with_logits(without, torch.zeros_like(without))
    if len(within):
        loss = binary_cross_entropy_with_logits(within, torch.ones_like(within), reduction="none")
        total = total + loss.topk(max(1, round(easiest * len(loss))), largest=False).values.mean()
    return total
