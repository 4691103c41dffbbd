"""Evaluate a network on labelled regions: predictions, metrics with intervals, and files with charts."""

from streamview.evaluation.answers import Evaluation, evaluate
from streamview.evaluation.metrics import Figure, Metrics, measure
from streamview.evaluation.report import write_evaluation

__all__ = ["Evaluation", "Figure", "Metrics", "evaluate", "measure", "write_evaluation"]
