"""The chart that the experiments share: a figure by resolution."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from streamview.evaluation.bootstrap import Figure
from streamview.evaluation.drawing import BLUE, GREY, INK, RED, TEXT, frame, page

if TYPE_CHECKING:
    from matplotlib import figure as mpl

__all__ = ["draw_trend"]


def draw_trend(
    figure: mpl.Figure, title: str, text: str, quantity: str, lines: Mapping[str, Mapping[float, Figure]], chance: float
) -> None:
    """Draw a quantity and its intervals by resolution, a line each.

    Parameters
    ----------
    figure
        An empty matplotlib figure, drawn in place.
    title, text
        Of the page: the question, and what was measured.
    quantity
        Name of the vertical axis.
    lines
        At most three, by name: figures by um per px, the lowest resolution first.
    chance
        Value of a network that knows nothing.
    """
    page(figure, title, "", [text])
    axes = figure.subplots()
    resolutions = list(next(iter(lines.values())))
    places = np.arange(len(resolutions))
    axes.axhline(chance, color=GREY, linewidth=1, linestyle=(0, (4, 3)))
    axes.text(-0.32, chance, "chance", fontsize=TEXT, color=GREY, ha="left", va="bottom")
    for number, ((name, points), colour) in enumerate(zip(lines.items(), (BLUE, INK, RED), strict=False)):
        values = np.array([point.value for point in points.values()])
        spread = np.abs(np.array([[point.low, point.high] for point in points.values()]).T - values)
        shift = 0.06 * (number - (len(lines) - 1) / 2)
        axes.errorbar(places + shift, values, spread, color=colour, marker="o", capsize=3, linewidth=1.5, label=name)
    axes.set_xticks(places, [f"{resolution:.3g}" for resolution in resolutions])
    axes.set_xlim(-0.35, len(resolutions) - 0.65)
    axes.set_ylim(top=1.02)
    axes.set_xlabel("resolution of network and slide, um per px", fontsize=TEXT, color=INK)
    axes.set_ylabel(quantity, fontsize=TEXT, color=INK)
    if len(lines) > 1:
        axes.legend(fontsize=TEXT, frameon=False, labelcolor=INK, loc="upper left")
    frame(axes)
