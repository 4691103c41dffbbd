"""Charts of an evaluation, drawn on matplotlib figures of the caller; pyplot and its global state are not used."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from streamview.evaluation.bootstrap import format_figure
from streamview.evaluation.drawing import (
    BLUE,
    FOOT,
    GREY,
    HEAD,
    INK,
    PALE,
    RED,
    SMALL,
    TEXT,
    draw_matrix,
    frame,
    matrix_size,
    page,
    short,
    write_chart,
)
from streamview.evaluation.metrics import Metrics

if TYPE_CHECKING:
    from matplotlib import figure as mpl

__all__ = ["chart_size", "draw_confusion", "draw_reliability", "draw_scatter", "write_chart"]

_ACROSS = 3  # scatter plots per row


def chart_size(metrics: Metrics, what: str) -> tuple[float, float]:
    """Width and height in inches at which ``"confusion"``, ``"reliability"`` or ``"scatter"`` is legible."""
    count = len(metrics.outputs)
    if what == "confusion":
        return matrix_size(count)
    if what == "scatter":
        return 4.4 * min(count, _ACROSS) + 0.4, 4.9 * math.ceil(count / _ACROSS) + HEAD + FOOT
    return 5.6, 5.5


def draw_confusion(figure: mpl.Figure, metrics: Metrics, name: str = "") -> None:
    """Draw the confusion matrix: counts, each cell shaded by its share of the row.

    Parameters
    ----------
    figure
        An empty matplotlib figure, drawn in place.
    metrics
        Metrics of a class task.
    name
        Name of the network, for the title.
    """
    page(figure, "Answers by true class", name, [_scope(metrics), _accuracy(metrics), f"balanced accuracy {metrics.balanced_accuracy}"])
    names = [output.name for output in metrics.outputs]
    draw_matrix(figure, metrics.confusion, names, ("true class", "answered class", "share of the true class"))


def draw_reliability(figure: mpl.Figure, metrics: Metrics, name: str = "") -> None:
    """Draw the accuracy of answers by confidence, and their number.

    Parameters
    ----------
    figure, name
        As for `draw_confusion`.
    metrics
        Metrics of a class or multilabel task.
    """
    bins = metrics.reliability
    edges = np.linspace(0, 1, len(bins) + 1)
    used = [entry for entry in bins if entry.count]
    page(
        figure,
        "Confidence and accuracy",
        name,
        [_scope(metrics), _accuracy(metrics), f"expected calibration error {format_figure(metrics.ece)}"],
    )
    axes, below = figure.subplots(2, height_ratios=(3.2, 1), sharex=True)
    axes.plot((0, 1), (0, 1), color=GREY, linewidth=1, linestyle=(0, (4, 3)), zorder=2)
    tilted: dict[str, Any] = {"rotation": 45, "rotation_mode": "anchor", "transform_rotates_text": True, "va": "bottom"}
    axes.text(0.08, 0.1, "as confident as right", fontsize=SMALL, color=GREY, **tilted)
    shares = [0.0 if math.isnan(entry.accuracy) else entry.accuracy for entry in bins]
    axes.bar(edges[:-1], shares, width=np.diff(edges), align="edge", color=PALE, edgecolor="white", zorder=1)
    confidences, accuracies = [entry.confidence for entry in used], [entry.accuracy for entry in used]
    axes.vlines(confidences, confidences, accuracies, color=RED, linewidth=1.5, zorder=3, label="gap to their confidence")
    axes.plot(confidences, accuracies, "o", color=BLUE, markersize=6, zorder=4, clip_on=False, label="answers of similar confidence")
    axes.set(xlim=(0, 1), ylim=(0, 1.02))
    axes.set_ylabel("share answered right", fontsize=TEXT, color=INK)
    axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1), ncols=2, fontsize=SMALL, frameon=False, labelcolor=INK)
    counts = [entry.count for entry in bins]
    bars = below.bar(edges[:-1], counts, width=np.diff(edges), align="edge", color=GREY, edgecolor="white")
    below.bar_label(bars, [str(count) if count else "" for count in counts], fontsize=SMALL, color=INK, padding=1)
    below.set(ylim=(0, 1.25 * max(counts)), yticks=[])
    below.set_xticks(edges[::2])
    below.set_xlabel("confidence of the answer (probability)", fontsize=TEXT, color=INK)
    below.set_ylabel("answers" if metrics.task == "class" else "answers\n(region, class)", fontsize=TEXT, color=INK)
    for part in (axes, below):
        frame(part)


def draw_scatter(
    figure: mpl.Figure, metrics: Metrics, truth: NDArray[np.float64], values: NDArray[np.floating[Any]], name: str = ""
) -> None:
    """Draw predicted values against the truth, one plot per output.

    Parameters
    ----------
    figure, name
        As for `draw_confusion`.
    metrics
        Metrics of a regression with K outputs.
    truth, values
        (N, K): true and predicted values.
    """
    count = len(metrics.outputs)
    page(figure, "Values and truth", name, [_scope(metrics)])
    plots = figure.subplots(math.ceil(count / _ACROSS), min(count, _ACROSS), squeeze=False).ravel()
    for axes in plots[count:]:
        axes.remove()
    for number, (axes, output) in enumerate(zip(plots[:count], metrics.outputs, strict=True)):
        x, y = truth[:, number], np.asarray(values[:, number], np.float64)
        low, high = min(x.min(), y.min()), max(x.max(), y.max())
        room = 0.05 * (high - low) or 1.0
        axes.plot((low - room, high + room), (low - room, high + room), color=GREY, linewidth=1, linestyle=(0, (4, 3)))
        axes.plot(x, y, "o", color=BLUE, markersize=5, alpha=0.65, markeredgewidth=0)
        axes.set(xlim=(low - room, high + room), ylim=(low - room, high + room), aspect="equal")
        text = f"Spearman's rho {output.spearman}\nmean absolute error {output.error}\nalways the median: {format_figure(output.baseline)}"
        axes.set_title(f"{short(output.name)}\n{text}", fontsize=SMALL, color=INK, loc="left")
        axes.set_xlabel("truth", fontsize=TEXT, color=INK)
        axes.set_ylabel("answered value", fontsize=TEXT, color=INK)
        frame(axes)


def _scope(metrics: Metrics) -> str:
    """The regions and patients measured."""
    return str(metrics).partition("\n")[0]


def _accuracy(metrics: Metrics) -> str:
    always = metrics.majority or "the more frequent"
    return f"accuracy {metrics.accuracy}; always answering {short(always)}: {format_figure(metrics.baseline)}"
