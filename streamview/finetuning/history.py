"""What happened during fine-tuning, epoch by epoch."""

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
        From 1; 0 is the base before any training.
    learning_rate
        Of its steps; 0 for the base.
    loss
        Mean of the training loss over its steps, as each was before it; None for the base.
    validation_loss
        The same loss on the validation regions after it; None where there are none.
    validation
        Figures on the validation regions after it.
    seconds
        What it took.
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
        found = values["validation"]
        return cls(**{**values, "validation": None if found is None else Metrics.from_dict(found)})


@dataclass(frozen=True, slots=True, eq=False)
class History:
    """How fine-tuning went so far.

    Parameters
    ----------
    losses
        Training loss of every step of the optimiser.
    epochs
        Those that are over; the first is the base.
    per_epoch
        Steps of the optimiser in an epoch.
    """

    losses: tuple[float, ...]
    epochs: tuple[Epoch, ...]
    per_epoch: int

    @property
    def best(self) -> int:
        """Number of the epoch whose weights are kept: that of the lowest validation loss, the earliest of equals; else the last one."""
        judged = [epoch for epoch in self.epochs if epoch.validation_loss is not None]
        if not judged:
            return self.epochs[-1].number
        return min(judged, key=lambda epoch: epoch.validation_loss or 0.0).number
