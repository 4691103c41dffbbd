"""Train a network conventionally and by streaming, from the same start on the same batches."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import streamview

__all__ = ["Comparison", "compare_trainings"]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Trainings from the same start.

    Parameters
    ----------
    precision
        Of weights, activations and gradients: ``"float64"`` or ``"float32"``.
    conventional, streamed, control
        The loss of every step. The control is conventional, too, but gets the images of every batch in reverse order, so that its sums
        are rounded otherwise: so much do two conventional trainings differ.
    weights, control_weights
        After the last step, the largest difference of a weight from the conventional one.
    moved
        From the first to the last step, the largest change of a weight.
    """

    precision: str
    conventional: tuple[float, ...]
    streamed: tuple[float, ...]
    control: tuple[float, ...]
    weights: float
    control_weights: float
    moved: float

    def loss_difference(self, losses: Sequence[float]) -> float:
        """The largest difference of a loss from the conventional one, as a share of it."""
        return max(abs(one - other) / one for one, other in zip(self.conventional, losses, strict=True))


def compare_trainings(
    network: nn.Module,
    batches: Iterator[tuple[Tensor, Tensor]],
    *,
    steps: int,
    tile: tuple[int, int],
    rate: float,
    tell: Callable[[str], None],
) -> Comparison:
    """Train three copies of a network by stochastic gradient descent (weight decay 1e-6), one of them by streaming.

    Parameters
    ----------
    network
        The start, which is not changed; its type is the precision of all.
    batches
        Images and classes; all copies see the same.
    steps
        Number of optimiser steps.
    tile
        Rows and columns of a step of the streaming engine, px.
    rate
        Learning rate.
    tell
        Called with a line every ten steps.
    """
    copies = [copy.deepcopy(network) for _ in range(3)]
    modules = copies[0], streamview.stream(copies[1], tile=tile), copies[2]
    optimisers = [torch.optim.SGD(module.parameters(), rate, weight_decay=1e-6) for module in copies]
    start = next(network.parameters())
    losses: list[tuple[float, ...]] = []
    for number, (images, classes) in enumerate(islice(batches, steps), 1):
        images, classes = images.to(start), classes.to(start.device)
        orders = (images, classes), (images, classes), (images.flip(0), classes.flip(0))
        losses.append(tuple(_step(*each, *order) for *each, order in zip(modules, optimisers, orders, strict=True)))
        if number % 10 == 0:
            tell(f"{str(start.dtype).removeprefix('torch.')}, step {number} of {steps}: loss {losses[-1][0]:.6f}, {losses[-1][1]:.6f}")
    precision = str(start.dtype).removeprefix("torch.")
    weights, control_weights, moved = (_difference(copies[0], other) for other in (copies[1], copies[2], network))
    return Comparison(precision, *zip(*losses, strict=True), weights, control_weights, moved)


def _step(module: nn.Module, optimiser: torch.optim.Optimizer, images: Tensor, classes: Tensor) -> float:
    loss = cross_entropy(module(images), classes)
    optimiser.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimiser.step()
    return loss.item()


def _difference(one: nn.Module, other: nn.Module) -> float:
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return max(float((first - second).abs().max()) for first, second in pairs)
