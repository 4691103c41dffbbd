"""Evaluate a network on labelled regions: predictions, metrics with intervals, and files with charts.

Names are imported on first use, so that statistics, which need no network, load none.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from streamview.evaluation.answers import Evaluation, evaluate
    from streamview.evaluation.metrics import Figure, Metrics, measure
    from streamview.evaluation.report import write_evaluation

__all__ = ["Evaluation", "Figure", "Metrics", "evaluate", "measure", "write_evaluation"]

_HOMES = {
    "Evaluation": "answers",
    "Figure": "metrics",
    "Metrics": "metrics",
    "evaluate": "answers",
    "measure": "metrics",
    "write_evaluation": "report",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'streamview.evaluation' has no attribute {name!r}")
    return getattr(importlib.import_module(f"streamview.evaluation.{_HOMES[name]}"), name)
