"""The loss of a task, normalised over a batch whose regions are computed one at a time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, huber_loss

from streamview.networks.cards import Task

__all__ = ["Objective", "make_objective"]


@dataclass(frozen=True, slots=True, eq=False)
class Objective:
    """Cross-entropy for classes, binary cross-entropy for multiple labels, or the Huber loss (delta 1) for values.

    The loss of a batch is ``sum(loss(i)) / sum(share(i))`` over its regions, as torch's losses compute it for the whole batch. With
    class weights it is not the mean of the regions' losses.

    Parameters
    ----------
    task
        Task of the card.
    weights
        (K,): weights of the classes; for multiple labels, of presence against absence. None: all 1.
    """

    task: Task
    weights: Tensor | None

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Weighted loss of one region, a scalar, from logits (1, K) and a target () (class) or (K,)."""
        weights = None if self.weights is None else self.weights.to(logits)
        if self.task == "class":
            return cross_entropy(logits, target[None], weights, reduction="sum")
        if self.task == "multilabel":
            return binary_cross_entropy_with_logits(logits[0], target.to(logits), pos_weight=weights)
        return huber_loss(logits[0], target.to(logits))

    def share(self, target: Tensor) -> float:
        """A region's term in the denominator of its batch."""
        return float(self.weights[target]) if self.task == "class" and self.weights is not None else 1.0


def make_objective(task: Task, targets: NDArray[np.float64] | NDArray[np.int64], classes: int, *, balanced: bool) -> Objective:
    """Make the loss for training regions with these targets.

    Parameters
    ----------
    task, classes
        Task and number K of classes of the card.
    targets
        Targets of the training regions, as returned by `streamview.labels.regions.find_targets`.
    balanced
        Whether to weight classes by inverse frequency, ``N / (K n_k)``; for multiple labels, presence by ``(N - n_k) / n_k``.
        A class without regions has weight 1.
    """
    if not balanced or task == "regression":
        return Objective(task, None)
    if task == "class":
        counts = np.bincount(targets.astype(np.intp), minlength=classes)
        weights = np.where(counts, len(targets) / (classes * np.maximum(counts, 1)), 1.0)
    else:
        present = targets.sum(0)
        weights = np.where((present > 0) & (present < len(targets)), (len(targets) - present) / np.maximum(present, 1), 1.0)
    return Objective(task, torch.from_numpy(weights))
