"""The settings of fine-tuning: the seven controls and the other hyperparameters."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, NoReturn, get_args

from streamview.errors import TrainingError

__all__ = ["PAPER", "PRESETS", "Augmentation", "Initialisation", "Optimiser", "Part", "Settings"]

Part = Literal["head", "last stage", "all"]
"""The trained part: everything after the streamed part; also every layer at the coarsest resolution; every weight."""

Optimiser = Literal["adam", "sgd"]

Initialisation = Literal["base", "he", "lsuv"]

TrainingPrecision = Literal["float32", "bf16"]
"""fp16 is left out: its small gradients vanish without a scale."""


@dataclass(frozen=True, slots=True)
class Augmentation:
    """How strongly training regions are augmented; every strength is drawn evenly up to its limit, anew for each region and epoch.

    Parameters
    ----------
    rotate
        Whether regions are turned by any angle around their middle; what comes in from outside is mirrored at the border.
    elastic
        Standard deviation of an elastic deformation, px of the network's grid, at most.
    contrast, saturation
        Each is scaled by up to ``1 - x`` to ``1 + x``.
    hue
        Largest turn of the hue, as a share of the full circle.
    cutout
        Largest side of the square that is cut out, as a share of the region's shorter side (DeVries and Taylor 2017,
        https://arxiv.org/abs/1708.04552).

    Raises
    ------
    TrainingError
        If a strength is negative, or a share 1 or more.
    """

    rotate: bool = False
    elastic: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    cutout: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.elastic < math.inf:
            raise TrainingError(f"elastic {self.elastic!r}: expected px, 0 or more")
        for name in ("contrast", "saturation", "hue", "cutout"):
            if not 0 <= getattr(self, name) < 1:
                raise TrainingError(f"{name} {getattr(self, name)!r}: expected a share of 0 or more, below 1")


PAPER = Augmentation(rotate=True, elastic=8.0, contrast=0.1, saturation=0.1, hue=0.02, cutout=0.25)
"""All of the paper's augmentations; it does not state their strengths."""


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
    initialise
        Weights to start from: those of the base (``"base"``), He's (``"he"``), or He's scaled to unit variance over ten batches of the
        training regions (``"lsuv"``). The latter two train from scratch, and need ``train="all"``.
    augmentation
        What else is done to training regions: free rotation, elastic deformation, contrast, saturation, hue, cutout; default nothing.
    precision
        Arithmetic of the streamed part while training: ``"float32"``, or ``"bf16"``, in which weights, their gradients, the head and every
        statistic stay in float32, as in torch's autocast. Validation is in float32.
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
    initialise: Initialisation = "base"
    augmentation: Augmentation = Augmentation()
    precision: TrainingPrecision = "float32"
    seed: int = 0

    def __post_init__(self) -> None:
        def refuse(name: str, expected: str) -> NoReturn:
            raise TrainingError(f"{name.replace('_', ' ')} {getattr(self, name)!r}: expected {expected}")

        for name, kinds in (
            ("train", get_args(Part)), ("optimiser", get_args(Optimiser)), ("initialise", get_args(Initialisation)),
            ("precision", get_args(TrainingPrecision)),
        ):  # fmt: skip
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
        if self.initialise != "base" and self.train != "all":
            refuse("train", f"all, as no weights of the base are kept (initialise {self.initialise!r})")
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
