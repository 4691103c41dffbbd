"""Fine-tuning: a trained network changed to answer labelled regions better, through the streaming engine.

`finetune` is the way in, `forecast_training` says beforehand what it takes. ``preparation`` checks, ``trainer`` moves the state on,
``checkpoint`` and ``publication`` write it. Names are imported on first use: a window shows the settings before torch is loaded.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from streamview.finetuning.forecast import TrainingForecast, forecast_training
    from streamview.finetuning.history import Epoch, History
    from streamview.finetuning.publication import Compared
    from streamview.finetuning.settings import PRESETS, Optimiser, Part, Settings
    from streamview.finetuning.training import FinetuneResult, Watch, finetune

__all__ = [
    "PRESETS",
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
    "PRESETS": "settings",
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
