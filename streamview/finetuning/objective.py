"""The loss of a task, normalised over a batch whose regions are computed one after the other."""

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
    """Cross-entropy of classes, binary cross-entropy of labels, or the Huber loss (delta 1) of values.

    The loss of a batch is ``sum(loss(i)) / sum(share(i))`` over its regions: what torch's losses give for the whole batch at once. It is
    not the mean of the regions' own means where classes have weights.

    Parameters
    ----------
    task
        Of the card.
    weights
        (K,): of the classes; of labels, of their presence against their absence. None: all 1.
    """

    task: Task
    weights: Tensor | None

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Weighted loss of one region, a scalar; logits (1, K), target () of a class or (K,)."""
        weights = None if self.weights is None else self.weights.to(logits)
        if self.task == "class":
            return cross_entropy(logits, target[None], weights, reduction="sum")
        if self.task == "multilabel":
            return binary_cross_entropy_with_logits(logits[0], target.to(logits), pos_weight=weights)
        return huber_loss(logits[0], target.to(logits))

    def share(self, target: Tensor) -> float:
        """How much a region counts in the denominator of its batch."""
        return float(self.weights[target]) if self.task == "class" and self.weights is not None else 1.0


def make_objective(task: Task, targets: NDArray[np.float64] | NDArray[np.int64], classes: int, *, balanced: bool) -> Objective:
    """Make the loss for training regions with these targets.

    Parameters
    ----------
    task, classes
        Of the card; K.
    targets
        Of the training regions, as `streamview.labels.regions.find_targets` gives them.
    balanced
        Whether classes weigh the same however many regions they have: ``N / (K n_k)``; of labels, presence weighs ``(N - n_k) / n_k``.
        A class without a region has the weight 1.
    """
    if not balanced or task == "regression":
        return Objective(task, None)
    if task == "class":
        counts = np.bincount(targets.astype(np.intp), minlength=classes)
        found = np.where(counts, len(targets) / (classes * np.maximum(counts, 1)), 1.0)
    else:
        present = targets.sum(0)
        found = np.where((present > 0) & (present < len(targets)), (len(targets) - present) / np.maximum(present, 1), 1.0)
    return Objective(task, torch.from_numpy(found))
