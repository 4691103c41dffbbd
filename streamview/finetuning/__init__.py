"""Fine-tune a trained network on labelled regions through the streaming engine.

`finetune` runs it, `forecast_training` forecasts memory and time. ``preparation`` checks the inputs, ``trainer`` runs steps and epochs,
``checkpoint`` and ``publication`` write the results. Names are imported on first use, so that a window can show the settings before
torch is loaded.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from streamview.finetuning.forecast import TrainingForecast, forecast_training
    from streamview.finetuning.history import Epoch, History
    from streamview.finetuning.publication import Compared
    from streamview.finetuning.settings import PAPER, PRESETS, Augmentation, Optimiser, Part, Settings
    from streamview.finetuning.training import FinetuneResult, Watch, finetune

__all__ = [
    "PAPER",
    "PRESETS",
    "Augmentation",
    "Compared",
    "Epoch",
    "FinetuneResult",
    "History",
    "Optimiser",
    "Part",
    "Settings",
    "TrainingForecast",
    "Watch",
    "finetune",
    "forecast_training",
]

_HOMES = {
    "PAPER": "settings",
    "PRESETS": "settings",
    "Augmentation": "settings",
    "Compared": "publication",
    "Epoch": "history",
    "FinetuneResult": "training",
    "History": "history",
    "Optimiser": "settings",
    "Part": "settings",
    "Settings": "settings",
    "TrainingForecast": "forecast",
    "Watch": "training",
    "finetune": "training",
    "forecast_training": "forecast",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'streamview.finetuning' has no attribute {name!r}")
    return getattr(importlib.import_module(f"streamview.finetuning.{_HOMES[name]}"), name)
