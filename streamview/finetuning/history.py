"""The history of fine-tuning: losses of steps and epochs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from streamview.evaluation import Metrics

__all__ = ["Epoch", "History"]


@dataclass(frozen=True, slots=True, eq=False)
class Epoch:
    """One pass over the training regions.

    Parameters
    ----------
    number
        Counted from 1; 0 is the base before training.
    learning_rate
        Learning rate of its steps; 0 for the base.
    loss
        Mean training loss over its steps, each before its update; None for the base.
    validation_loss
        Loss on the validation regions after the epoch; None if there are none.
    validation
        Metrics on the validation regions after the epoch.
    seconds
        Duration.
    """

    number: int
    learning_rate: float
    loss: float | None
    validation_loss: float | None
    validation: Metrics | None
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain JSON values."""
        plain = asdict(replace(self, validation=None))
        return plain | {"validation": None if self.validation is None else self.validation.to_dict()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Epoch:
        """Inverse of `to_dict`."""
        metrics = values["validation"]
        return cls(**{**values, "validation": None if metrics is None else Metrics.from_dict(metrics)})


@dataclass(frozen=True, slots=True, eq=False)
class History:
    """Losses and epochs so far.

    Parameters
    ----------
    losses
        Training loss of every optimiser step.
    epochs
        The completed epochs; the first entry is the base.
    per_epoch
        Optimiser steps per epoch.
    """

    losses: tuple[float, ...]
    epochs: tuple[Epoch, ...]
    per_epoch: int

    @property
    def best(self) -> int:
        """Number of the epoch whose weights are kept: the first with the lowest validation loss; without validation the last."""
        validated = [epoch for epoch in self.epochs if epoch.validation_loss is not None]
        if not validated:
            return self.epochs[-1].number
        return min(validated, key=lambda epoch: epoch.validation_loss or 0.0).number
