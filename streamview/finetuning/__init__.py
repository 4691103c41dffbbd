"""Fine-tuning: a trained network changed to answer labelled regions better, through the streaming engine.

`finetune` is the way in, `forecast_training` says beforehand what it takes. ``preparation`` checks, ``trainer`` moves the state on,
``checkpoint`` and ``publication`` write it.
"""

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
