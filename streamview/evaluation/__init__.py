"""How good a network is on labelled regions: predicted one after the other, measured, and written with pictures."""

from streamview.evaluation.answers import Evaluation, evaluate
from streamview.evaluation.metrics import Figure, Metrics, measure
from streamview.evaluation.report import write_evaluation

__all__ = ["Evaluation", "Figure", "Metrics", "evaluate", "measure", "write_evaluation"]
