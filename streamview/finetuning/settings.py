"""The settings of fine-tuning: the seven controls and the other hyperparameters."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, NoReturn, get_args

from streamview.errors import TrainingError

__all__ = ["PRESETS", "Optimiser", "Part", "Settings"]

Part = Literal["head", "last stage", "all"]
"""The trained part: everything after the streamed part; also every layer at the coarsest resolution; every weight."""

Optimiser = Literal["adam", "sgd"]


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything besides the base and the labelled regions that determines the tuned weights.

    Parameters
    ----------
    train
        The weights that are trained.
    learning_rate
        Learning rate of the first epoch.
    weight_decay
        The optimiser's L2 penalty.
    batch
        Regions whose gradients are accumulated for one optimiser step. As the BatchNorm statistics are frozen, this equals a batch of
        that size exactly.
    epochs
        Maximum number of passes over the training regions.
    patience
        Stop after this many epochs without a lower validation loss; 0: never.
    validation
        Share of the patients used for validation, 0 to 0.5; 0: none, and the last epoch is kept. Ignored if the examples state a split.
    optimiser
        ``"adam"``, or ``"sgd"`` with momentum 0.9.
    decay
        Factor of the learning rate from one epoch to the next.
    class_weights
        Whether to weight the loss by inverse class frequency.
    flips
        Whether training regions are rotated by quarter turns and mirrored at random.
    jitter
        Colour jitter of training regions: brightness and every channel are scaled by random factors in ``1 - jitter`` to ``1 + jitter``.
    seed
        Seed of split, order, augmentation, dropout and a new head.

    Raises
    ------
    TrainingError
        If a value is outside its range; the message names it.
    """

    train: Part = "all"
    learning_rate: float = 1e-4
    weight_decay: float = 1e-6
    batch: int = 16
    epochs: int = 50
    patience: int = 10
    validation: float = 0.25
    optimiser: Optimiser = "adam"
    decay: float = 0.99
    class_weights: bool = True
    flips: bool = True
    jitter: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        def refuse(name: str, expected: str) -> NoReturn:
            raise TrainingError(f"{name.replace('_', ' ')} {getattr(self, name)!r}: expected {expected}")

        for name, kinds in (("train", get_args(Part)), ("optimiser", get_args(Optimiser))):
            if getattr(self, name) not in kinds:
                refuse(name, ", ".join(kinds[:-1]) + f" or {kinds[-1]}")
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            refuse("learning_rate", "a number above 0, such as 1e-4")
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            refuse("weight_decay", "0 or more, such as 1e-6")
        for name, least in (("batch", 1), ("epochs", 1), ("patience", 0), ("seed", 0)):
            if getattr(self, name) < least:
                refuse(name, f"a whole number of {least} or more")
        if not 0 <= self.validation <= 0.5:
            refuse("validation", "a share of the patients, 0 to 0.5")
        if not 0 < self.decay <= 1:
            refuse("decay", "a factor above 0, at most 1")
        if not 0 <= self.jitter < 1:
            refuse("jitter", "0 or more, below 1")

    def rate(self, epoch: int) -> float:
        """Learning rate of an epoch, counted from 1."""
        return self.learning_rate * self.decay ** (epoch - 1)


PRESETS: Mapping[str, Settings] = MappingProxyType(
    {
        "head": Settings("head", 1e-3, 1e-4, batch=8, epochs=100, patience=20, flips=False, jitter=0),
        "careful": Settings("last stage", 1e-4, 1e-5, batch=8, epochs=50),
        "all": Settings(),
    }
)
"""Starting points: only the head, on features computed once; the last stage, carefully; every layer, as in the paper."""
