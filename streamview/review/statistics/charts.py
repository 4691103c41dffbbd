"""Charts of a review, drawn on matplotlib figures of the caller; pyplot and its global state are not used."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from streamview.evaluation.bootstrap import format_figure
from streamview.evaluation.drawing import BLUE, FOOT, GREY, HEAD, INK, RED, SMALL, TEXT, draw_matrix, frame, matrix_size, page, short
from streamview.review.statistics.change import Change
from streamview.review.statistics.estimate import Estimate
from streamview.review.statistics.mrmc import Comparison

if TYPE_CHECKING:
    from matplotlib import figure as mpl
    from matplotlib.axes import Axes

__all__ = ["change_size", "draw_change", "draw_lines", "lines_size"]

_LABELS = {"auc": "AUC", "accuracy": "accuracy", "sensitivity": "sensitivity", "specificity": "specificity"}
_SCOPES = {
    "readers and cases": "other readers and cases",
    "cases": "these readers and other cases",
    "readers": "other readers of these cases",
}
_MEAN = (-0.16, 1.16)  # where the mean stands beside the lines


def lines_size(comparison: Comparison) -> tuple[float, float]:
    """Width and height in inches at which `draw_lines` is legible."""
    return 6.4, max(4.6, 0.2 * len(comparison.lines) + 2.0) + HEAD + FOOT


def draw_lines(figure: mpl.Figure, comparison: Comparison, name: str = "") -> None:
    """Draw one line a reader from unaided to aided, harmed readers marked, and the mean with its interval.

    Parameters
    ----------
    figure
        An empty matplotlib figure, drawn in place.
    comparison
        From `compare_modalities`.
    name
        Name of the network, for the title.
    """
    label = _LABELS[comparison.measure]
    page(figure, f"{label[0].upper()}{label[1:]} without and with the network", name, _texts(comparison))
    axes = figure.subplots()
    for line in comparison.lines:
        colour, marker = (RED, "v") if line.harmed else (GREY, "o")
        axes.plot((0, 1), (line.unaided, line.aided), color=colour, marker=marker, markersize=4.5, linewidth=1.2, alpha=0.9, clip_on=False)
    means = comparison.unaided, comparison.aided
    axes.plot(
        _MEAN,
        [mean.value if mean.value is not None else np.nan for mean in means],
        color=BLUE,
        linewidth=2.6,
        marker="s",
        markersize=6,
        zorder=4,
    )
    for place, mean in zip(_MEAN, means, strict=True):
        if mean.low is not None and mean.high is not None:
            axes.vlines(place, mean.low, mean.high, color=BLUE, linewidth=1.6, zorder=4)
    low, high = _limits(comparison)
    axes.set(xlim=(-0.3, 1.75), ylim=(low, high))
    _name_readers(axes, comparison, 0.17 * (high - low) / (lines_size(comparison)[1] - 2.1))
    axes.set_xticks((0, 1), ("unaided", "aided"))
    axes.set_ylabel(label, fontsize=TEXT, color=INK)
    frame(axes)
    axes.grid(False, axis="x")
    axes.tick_params(axis="x", labelsize=TEXT)
    axes.spines["bottom"].set_bounds(-0.3, 1.3)
    _legend(axes, comparison)


def change_size(change: Change) -> tuple[float, float]:
    """Width and height in inches at which `draw_change` is legible."""
    return matrix_size(len(change.classes))


def draw_change(figure: mpl.Figure, change: Change, name: str = "") -> None:
    """Draw the change matrix: counts, each cell shaded by its share of the row; changed verdicts are off the framed diagonal.

    Parameters
    ----------
    figure, name
        As for `draw_lines`.
    change
        From `measure_change` or `pool_changes`.
    """
    from matplotlib.patches import Rectangle

    page(figure, "Verdicts before and after the network", name, _change_texts(change))
    axes = draw_matrix(figure, change.matrix, change.classes, ("unaided verdict", "aided verdict", "share of the unaided verdict"))
    for place in range(len(change.classes)):
        axes.add_patch(Rectangle((place - 0.48, place - 0.48), 0.96, 0.96, fill=False, edgecolor=GREY, linewidth=1.2))


def _texts(comparison: Comparison) -> list[str]:
    """Scope, mean change and left-out cases, one line each."""
    readers, cases = len(comparison.lines), comparison.cases
    scope = f"{readers} reader{'' if readers == 1 else 's'}, {cases} case{'' if cases == 1 else 's'}"
    if comparison.measure != "accuracy":
        scope += f" ({comparison.positives} positive)"
    if comparison.left_out:
        scope += f"; {len(comparison.left_out)} left out: of unknown truth, or not read by all both ways"
    p = "" if comparison.analysis is None else f", p = {format_figure(comparison.analysis.p)}"
    texts = [scope, f"mean change {_signed(comparison.change)}{p}"]
    return texts if comparison.analysis is None else [*texts, f"95 % intervals, for {_SCOPES[comparison.random]}"]


def _signed(estimate: Estimate) -> str:
    if estimate.value is None or estimate.low is None or estimate.high is None:
        return f"{estimate.value:+.3f}; {estimate.note}" if estimate.value is not None else estimate.note
    return f"{estimate.value:+.3f} ({estimate.low:+.3f} to {estimate.high:+.3f})"


def _limits(comparison: Comparison) -> tuple[float, float]:
    """Ends of the vertical axis, with some room, within 0 and 1."""
    values = [value for line in comparison.lines for value in (line.unaided, line.aided)]
    values += [end for mean in (comparison.unaided, comparison.aided) for end in (mean.low, mean.high) if end is not None]
    room = max(0.1 * (max(values) - min(values)), 0.02)
    return max(0.0, min(values) - room), min(1.0, max(values) + room)


def _name_readers(axes: Axes, comparison: Comparison, apart: float) -> None:
    """Write each reader's name beside the aided end, names at least `apart` from each other."""
    lines = sorted(comparison.lines, key=lambda line: line.aided)
    places = _spread([line.aided for line in lines], apart, axes.get_ylim()[0])
    for line, place in zip(lines, places, strict=True):
        colour = RED if line.harmed else INK
        text = f"{short(line.reader)}  {line.change.value:+.3f}"
        axes.annotate(
            text,
            (1, line.aided),
            (1.3, place),
            fontsize=SMALL,
            color=colour,
            va="center",
            annotation_clip=False,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.5, "alpha": 0.5, "shrinkA": 1, "shrinkB": 3, "relpos": (0, 0.5)},
        )


def _spread(values: Sequence[float], apart: float, lowest: float) -> list[float]:
    """Move sorted values down as far as needed for neighbours to be apart, and up again where they fell below the lowest place."""
    places = list(values)
    for index in range(len(places) - 2, -1, -1):
        places[index] = min(places[index], places[index + 1] - apart)
    for index in range(len(places)):
        places[index] = max(places[index], places[index - 1] + apart if index else lowest)
    return places


def _legend(axes: Axes, comparison: Comparison) -> None:
    from matplotlib.lines import Line2D

    entries = [
        Line2D([], [], color=BLUE, linewidth=2.6, marker="s", label="mean"),
        Line2D([], [], color=GREY, marker="o", label="a reader"),
    ]
    if comparison.harmed:
        entries.append(Line2D([], [], color=RED, marker="v", label=f"lower with the network ({len(comparison.harmed)})"))
    axes.legend(
        handles=entries,
        loc="lower left",
        bbox_to_anchor=(-0.02, 1),
        ncols=3,
        fontsize=SMALL,
        frameon=False,
        labelcolor=INK,
        markerscale=0.8,
    )


def _change_texts(change: Change) -> list[str]:
    who = f"reader {short(change.reader)}" if change.reader else "all readers"
    texts = [f"{who}: {change.changed} of {change.cases} verdicts changed"]
    test = "" if change.p is None else f" (McNemar, exact: p = {format_figure(change.p)})"
    texts.append(f"{change.helped} became right, {change.harmed} became wrong{test}")
    if change.ai is not None:
        bias, ignored = change.ai.automation_bias, change.ai.ignored
        followed = f"a contradicting network was followed where wrong in {bias.part} of {bias.whole}"
        texts.append(f"{followed}, ignored where right in {ignored.part} of {ignored.whole}")
    return texts
