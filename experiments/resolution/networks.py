"""The networks of the paper's Table 2, one for each resolution, trained from the labels of whole regions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from streamview_models.camelyon17 import build
from torch import nn
from torch.nn.functional import cross_entropy

from experiments.camelyon16_tiles.compose import Tiles
from experiments.resolution.data import MPP, compose_regions, compose_windows
from experiments.training import Stage, lower_resolution, train

__all__ = ["LAYERS", "mpp_of", "trained_networks"]

LAYERS: Mapping[int, int] = {4: 13, 2: 16, 1: 19}
"""Layers by the factor of the resolution: a block more for each doubling, so that the last map covers the same field."""
_WIDTH = 8
_RATES, _BATCHES, _DECAY = (1e-3, 1e-4), (32, 16), 0.9


def mpp_of(factor: int) -> float:
    """Micrometres per pixel that a network sees."""
    return MPP * factor


def trained_networks(
    tiles: Tiles, folder: Path, counts: tuple[int, int], epochs: tuple[int, int], *, tell: Callable[[str], None]
) -> dict[int, nn.Module]:
    """Train a network for each resolution, or read it from the folder if it is there.

    Parameters
    ----------
    tiles
        Of the source slides for training.
    folder
        Where ``network-Nx.safetensors`` are kept.
    counts, epochs
        Of windows and regions.
    tell
        Called with a line per epoch.
    """
    files = {factor: folder / f"network-{factor}x.safetensors" for factor in LAYERS}
    if not all(file.exists() for file in files.values()):
        pixels = [compose(tiles, count, seed, tell=tell) for compose, count, seed in zip(_COMPOSERS, counts, (1, 2), strict=True)]
    networks = {}
    for factor, file in files.items():
        network = build(2, width=_WIDTH, layers=LAYERS[factor])
        if file.exists():
            network.load_state_dict(safetensors.torch.load_file(file))
        else:
            tell(f"{mpp_of(factor):.3g} um/px, {LAYERS[factor]} layers")
            train(network, _stages(pixels, epochs, factor), cross_entropy, initialise="lsuv", decay=_DECAY, seed=0, tell=tell)
            safetensors.torch.save_file({name: tensor.contiguous() for name, tensor in network.state_dict().items()}, file)
        networks[factor] = network.eval()
    return networks


_COMPOSERS = (compose_windows, compose_regions)


def _stages(pixels: Sequence[NDArray[np.uint8]], epochs: tuple[int, int], factor: int) -> list[Stage]:
    stages = []
    for images, count, batch, rate in zip(pixels, epochs, _BATCHES, _RATES, strict=True):
        stages.append(Stage(lower_resolution(images, factor), torch.arange(len(images)) % 2, batch, count, rate))
    return stages
