"""The loss curves of fine-tuning, drawn into a matplotlib figure: the same in a file and in a window."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np

from streamview.finetuning.history import History

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["DARK", "LIGHT", "draw_history"]

LIGHT: Mapping[str, str] = MappingProxyType(
    {"back": "#ffffff", "text": "#2b2e33", "grid": "#e3e5e8", "step": "#b9cdf2", "train": "#2f6fde", "validation": "#d9730d"}
)
"""Colours for pages."""

DARK: Mapping[str, str] = MappingProxyType(
    {"back": "#262930", "text": "#d6d8dc", "grid": "#3d414a", "step": "#3f557f", "train": "#6fa0ff", "validation": "#f0a04b"}
)
"""Colours for a dark window."""


def draw_history(figure: Figure, history: History, colours: Mapping[str, str] = LIGHT) -> None:
    """Draw training and validation loss against epochs, and mark the epoch whose weights are kept.

    Parameters
    ----------
    figure
        Cleared first.
    history
        May be empty.
    colours
        `LIGHT` or `DARK`.
    """
    from matplotlib.ticker import MaxNLocator

    figure.clear()
    figure.set_facecolor(colours["back"])
    axes = figure.add_subplot()
    axes.set_facecolor(colours["back"])
    x = (np.arange(len(history.losses)) + 0.5) / max(history.per_epoch, 1)
    if history.per_epoch > 1 and len(x) > 1:
        axes.plot(x, history.losses, color=colours["step"], linewidth=0.8, label="each step")
    epochs = [(epoch.number - 0.5, epoch.loss) for epoch in history.epochs if epoch.loss is not None]
    if epochs:
        axes.plot(*zip(*epochs, strict=True), color=colours["train"], marker="o", markersize=3, label="training")
    validated = [(epoch.number, epoch.validation_loss) for epoch in history.epochs if epoch.validation_loss is not None]
    if validated:
        colour, best = colours["validation"], history.best
        axes.plot(*zip(*validated, strict=True), color=colour, marker="o", markersize=3, label="validation")
        axes.plot([best], [dict(validated)[best]], "o", markersize=9, markerfacecolor="none", color=colour, label="kept")
    axes.set_xlabel("epoch", color=colours["text"])
    axes.set_ylabel("loss", color=colours["text"])
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    right = max(1.0, len(history.epochs) - 1.0, len(history.losses) / max(history.per_epoch, 1))
    axes.set_xlim(-0.02 * right, 1.02 * right)
    # outlying single steps are cut off rather than flattening the curves
    highest = max((loss for _, loss in (*epochs, *validated)), default=None)
    axes.set_ylim(0, None if highest is None else 1.25 * highest)
    axes.grid(color=colours["grid"], linewidth=0.6)
    axes.tick_params(colors=colours["text"], labelsize=8)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(colours["grid"])
    if axes.get_legend_handles_labels()[1]:
        axes.legend(frameon=False, labelcolor=colours["text"], fontsize=8)
