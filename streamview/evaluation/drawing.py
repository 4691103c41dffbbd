"""What all charts of results share: colours, the page around the plots, and the file."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from streamview.files import atomic
from streamview.results import RESEARCH_USE

if TYPE_CHECKING:
    from matplotlib import figure as mpl
    from matplotlib.axes import Axes

__all__ = [
    "BLUE",
    "FAINT",
    "FOOT",
    "GREY",
    "HEAD",
    "INK",
    "PALE",
    "RED",
    "SMALL",
    "TEXT",
    "draw_matrix",
    "frame",
    "matrix_size",
    "page",
    "short",
    "write_chart",
]

INK, GREY, FAINT = "#1b1f24", "#57606a", "#e4e7eb"
BLUE, PALE, RED = "#2a6f97", "#a9cfe4", "#b3402a"
TEXT, SMALL = 10, 8.5  # points
HEAD, FOOT = 0.95, 0.34  # inches for title and footer
_FEW = 6  # classes up to which the cells of a matrix have room for a second number
_LONGEST = 28  # characters of a name


def write_chart(path: str | os.PathLike[str], draw: Callable[[mpl.Figure], None], size: tuple[float, float]) -> Path:
    """Write a chart as a PNG of 150 dots per inch, complete or not at all.

    Parameters
    ----------
    path
        The file.
    draw
        Draws on a figure.
    size
        Width and height in inches.

    Raises
    ------
    StreamviewError
        If the disk is full or the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Page

    path = Path(path)
    sheet = Page(figsize=size, dpi=150, facecolor="white")
    FigureCanvasAgg(sheet)
    draw(sheet)
    with atomic.replacing(path) as temporary:
        sheet.savefig(temporary, format="png", metadata={"Description": RESEARCH_USE})
    return path


def page(figure: mpl.Figure, title: str, name: str, lines: Sequence[str]) -> None:
    """Set title, scope and research-use line, and leave room for the plots between them."""
    height = figure.get_figheight()
    figure.set_layout_engine("compressed", rect=(0.01, FOOT / height, 0.98, 1 - (0.5 + 0.15 * len(lines) + FOOT) / height))
    shown = f"{title}: {short(name)}" if name else title
    figure.text(0.03, 1 - 0.14 / height, shown, fontsize=13, fontweight="bold", color=INK, va="top")
    figure.text(0.03, 1 - 0.4 / height, "\n".join(lines), fontsize=SMALL, color=GREY, va="top", linespacing=1.35)
    figure.text(0.97, 0.1 / height, RESEARCH_USE, fontsize=SMALL, color=INK, ha="right", va="bottom")


def matrix_size(classes: int) -> tuple[float, float]:
    """Width and height in inches at which a page with a matrix of so many classes is legible."""
    side = min(max(4.21, 0.62 * classes + 2.0), 14.0)
    return side + 1.9, side + HEAD + FOOT


def draw_matrix(figure: mpl.Figure, counts: ArrayLike, classes: Sequence[str], labels: tuple[str, str, str]) -> Axes:
    """Draw counts (K, K), each cell shaded by its share of the row, on a figure of `matrix_size`.

    Parameters
    ----------
    figure
        A page without plots.
    counts, classes
        The matrix, and the names of its rows and columns.
    labels
        What rows, columns and shares are.
    """
    counts = np.asarray(counts)
    rows = counts.sum(1, keepdims=True)
    shares = np.divide(counts, rows, out=np.zeros(counts.shape), where=rows > 0)
    names = [short(name) for name in classes]
    axes = figure.subplots()
    image = axes.imshow(shares, cmap=_ramp(), vmin=0, vmax=1)
    size = min(15.0, 20 * (matrix_size(len(names))[0] - 3.4) / len(names))
    for row, column in np.ndindex(*counts.shape):
        ink = "white" if shares[row, column] > 0.55 else INK if counts[row, column] else GREY
        axes.text(column, row, f"{counts[row, column]}", ha="center", va="center", fontsize=size, color=ink)
        if len(names) <= _FEW:
            axes.text(column, row + 0.3, f"{shares[row, column]:.0%}", ha="center", va="center", fontsize=min(SMALL, 0.6 * size), color=ink)
    across = len(names) > 4 or max(map(len, names)) * len(names) > 40
    ticks = range(len(names))
    axes.set_xticks(ticks, names, rotation=40 if across else 0, ha="right" if across else "center", rotation_mode="anchor")
    axes.set_yticks(ticks, [f"{name}  (n = {count})" for name, count in zip(names, rows.ravel(), strict=True)])
    axes.set_ylabel(labels[0], fontsize=TEXT, color=INK)
    axes.set_xlabel(labels[1], fontsize=TEXT, color=INK)
    axes.tick_params(length=0, labelsize=TEXT if len(names) <= _FEW else SMALL, colors=INK)
    for edge in range(1, len(names)):
        axes.axhline(edge - 0.5, color="white", linewidth=1.5)
        axes.axvline(edge - 0.5, color="white", linewidth=1.5)
    axes.spines[:].set_visible(False)
    bar = figure.colorbar(image, ax=axes, fraction=0.045, pad=0.03, format=lambda share, _: f"{share:.0%}")
    bar.set_label(labels[2], fontsize=SMALL, color=GREY)
    bar.ax.tick_params(labelsize=SMALL, colors=GREY, length=2)
    bar.outline.set_visible(False)
    return axes


def frame(axes: Axes) -> None:
    """Two spines, a faint grid and small ticks."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)
    axes.grid(color=FAINT, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=SMALL, colors=INK, length=3)


def short(name: str) -> str:
    """Shorten a name to 28 characters."""
    return (
        textwrap.shorten(name, _LONGEST, placeholder="…") if " " in name else name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…"
    )


def _ramp() -> Any:
    """A colour map from white to blue on which black or white numbers stay legible."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("white-blue", ["#f4f7f9", PALE, BLUE])
