"""How good a network is on labelled regions: predicted one after the other, measured, and written with pictures."""

from streamview.evaluation.metrics import Figure, Metrics, measure

__all__ = ["Figure", "Metrics", "measure"]
