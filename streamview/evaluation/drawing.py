"""What all charts of results share: colours, the page around the plots, and the file."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streamview.files import atomic
from streamview.results import RESEARCH_USE

if TYPE_CHECKING:
    from matplotlib import figure as mpl
    from matplotlib.axes import Axes

__all__ = ["BLUE", "FAINT", "FOOT", "GREY", "HEAD", "INK", "PALE", "RED", "SMALL", "TEXT", "frame", "page", "ramp", "short", "write_chart"]

INK, GREY, FAINT = "#1b1f24", "#57606a", "#e4e7eb"
BLUE, PALE, RED = "#2a6f97", "#a9cfe4", "#b3402a"
TEXT, SMALL = 10, 8.5  # points
HEAD, FOOT = 0.95, 0.34  # inches for title and footer
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


def ramp() -> Any:
    """A colour map from white to blue on which black or white numbers stay legible."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("white-blue", ["#f4f7f9", PALE, BLUE])
