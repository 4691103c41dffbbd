"""Calibrate a network's answers on tissue that its like has not seen.

On the tiles it learned from, a network is surer than on any others. So another one learns by the same recipe from two thirds of the tiles,
and what it answers for regions of the last third says how its margins, and so those of the first, become probabilities (Platt 1999).
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits

from experiments.camelyon16_tiles.compose import Stock, Tiles, compose_training_region
from experiments.camelyon16_tiles.train import input_tensor

__all__ = ["margins_on", "platt_scaling", "scale_margin"]

_SIDE, _SHARES = 1024, (0.02, 0.2)


def margins_on(network: nn.Module, tiles: Tiles, count: int, seed: int) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return logit(tumour) - logit(normal) of composed regions of 1024 px, and which of them have a lesion (every other); each (count,)."""
    rng = np.random.default_rng(seed)
    normal, tumour = Stock(tiles.normal), Stock(tiles.tumour)
    labels = np.arange(count) % 2 == 1
    margins = []
    for lesion in labels:
        share = float(np.exp(rng.uniform(*np.log(_SHARES)))) if lesion else 0.0
        pixels, _ = compose_training_region(normal, tumour, _SIDE, share, rng)
        with torch.no_grad():
            (logits,) = network(input_tensor(pixels[None])).tolist()
        margins.append(logits[1] - logits[0])
    return np.array(margins), labels


def platt_scaling(margins: NDArray[np.float64], labels: NDArray[np.bool_]) -> tuple[float, float]:
    """Fit ``p(tumour) = sigmoid(factor * margin + shift)``, with Platt's targets, which stay finite where the classes do not overlap.

    Parameters
    ----------
    margins, labels
        As `margins_on` gives them.

    Returns
    -------
    tuple
        Factor and shift.
    """
    positives, negatives = labels.sum(), (~labels).sum()
    targets = torch.from_numpy(np.where(labels, (positives + 1) / (positives + 2), 1 / (negatives + 2)))
    values = torch.from_numpy(margins)
    parameters = torch.tensor([1.0, 0.0], dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([parameters], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimiser.zero_grad()
        value = binary_cross_entropy_with_logits(parameters[0] * values + parameters[1], targets)
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimiser.step(loss)
    factor, shift = parameters.tolist()
    return factor, shift


def scale_margin(linear: nn.Linear, factor: float, shift: float) -> None:
    """Change a linear layer of two outputs in place, so that the second minus the first is ``factor * margin + shift``."""
    with torch.no_grad():
        linear.weight *= factor
        linear.bias *= factor
        linear.bias += torch.tensor([-shift / 2, shift / 2])
