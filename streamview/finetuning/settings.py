"""How to fine-tune: the seven controls, and what a recipe fixes besides."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, NoReturn, get_args

from streamview.errors import TrainingError

__all__ = ["PRESETS", "Optimiser", "Part", "Settings"]

Part = Literal["head", "last stage", "all"]
"""What is trained: what follows the streamed part; that and every layer at the coarsest resolution; every weight."""

Optimiser = Literal["adam", "sgd"]


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything, besides the base and the labelled regions, that decides the tuned weights.

    Parameters
    ----------
    train
        Which weights change.
    learning_rate
        Of the first epoch.
    weight_decay
        The optimiser's L2 penalty.
    batch
        Regions whose gradients are accumulated for one step of the optimiser. As the statistics of BatchNorm are frozen, that equals a
        batch of so many regions exactly.
    epochs
        At most so many passes over the training regions.
    patience
        End after so many epochs without a lower validation loss; 0: never.
    validation
        Share of the patients that validate, 0 to 0.5; 0: none, and the last epoch is kept. Ignored where the examples state a split.
    optimiser
        ``"adam"``, or ``"sgd"`` with momentum 0.9.
    decay
        Factor of the learning rate from one epoch to the next.
    class_weights
        Whether classes weigh the same in the loss, however many training regions they have.
    flips
        Whether training regions are turned by quarter turns and mirrored at random.
    jitter
        Colour jitter of training regions: brightness and every channel are scaled by random factors in ``1 - jitter`` to ``1 + jitter``.
    seed
        Of the split, the order, augmentation, dropout and a new head.

    Raises
    ------
    TrainingError
        When a value is outside its range; the message names it.
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
"""Starting points: the head alone on features that are computed once; the last stage, carefully; every layer, as in the paper."""
