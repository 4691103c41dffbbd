"""A map as a figure of a paper, drawn on matplotlib's axes: pixels for tissue and colours, vectors for all else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from streamview.errors import StreamviewError
from streamview.results.display import HALO_COLOUR, OUTLINE_COLOUR, Preset, Shown, colours, show, title_of, usual_recipe
from streamview.results.glass import Glass
from streamview.results.legend import scale_bar, unit
from streamview.results.maps import Saliency
from streamview.results.overlay import MapLayer, blend, glass_on, mean_colour
from streamview.results.prediction import RESEARCH_USE
from streamview.slides.thumbnail import thumbnail

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from streamview.slides import Slide

__all__ = ["plot_saliency"]

_SIDE = 1600  # px of the pictures' longer side: 480 dots per inch on a column of 85 mm
_COLUMN_MM, _MM_PER_INCH = 85.0, 25.4
_BAR_MM, _BELOW_MM = 20.0, 5.0  # room for the colour bar at the right, and for the scale bar below
_TEXT, _SMALL = 7.0, 5.5  # points
_INK = "#1b1f24"


def plot_saliency(saliency: Saliency, ax: Axes | None, preset: Preset | None, slide: Slide | None) -> Axes:
    """Draw a map; see `Saliency.plot`."""
    region, recipe = saliency.prediction.region, usual_recipe(saliency, preset)
    if slide is not None and slide.identity != saliency.prediction.identity.source:
        raise StreamviewError(f"{slide.name}: is not the slide that the map explains; pass that slide, or none")
    shown = show(saliency, recipe)
    factor = min(1.0, _SIDE / max(region.shape))
    shape = max(round(region.height * factor), 1), max(round(region.width * factor), 1)
    ax = _own_axes(region.width / region.height) if ax is None else ax
    extent = (region.x, region.x_stop, region.y_stop, region.y)  # level-0 pixels, so that annotations can be drawn on the same axes
    behind, glass = (255, 255, 255), None
    if slide is not None:
        tissue = thumbnail(slide, region, shape)
        clear = glass_on(tissue, slide.background)
        behind, glass = mean_colour(tissue, clear, slide.background), Glass.over_region(clear, region)
        ax.imshow(tissue, extent=extent, interpolation="antialiased")
    layer = MapLayer.prepare(saliency, shown, glass)
    rgb, alpha = colours(recipe, layer.values(region, shape))
    opacity = recipe.opacity if slide is not None else 1.0
    ax.imshow(np.dstack([rgb, alpha * np.float32(opacity * recipe.heat)]), extent=extent, interpolation="antialiased")
    _outline(ax, layer)
    ax.set(xticks=[], yticks=[], xlim=extent[:2], ylim=extent[2:], aspect="equal")
    for spine in ax.spines.values():
        spine.set(linewidth=0.5, color=_INK)
    _colour_bar(ax, saliency, shown, behind, opacity)
    _below(ax, saliency)
    return ax


def _own_axes(aspect: float) -> Axes:
    """Axes on a figure as wide as a column of a paper, without pyplot and its global state."""
    from matplotlib.figure import Figure

    height = (_COLUMN_MM - _BAR_MM) / aspect + _BELOW_MM + 2
    figure = Figure(figsize=(_COLUMN_MM / _MM_PER_INCH, height / _MM_PER_INCH), layout="constrained")
    figure.get_layout_engine().set(w_pad=1 / _MM_PER_INCH, h_pad=1 / _MM_PER_INCH)  # type: ignore[union-attr, call-arg]
    return figure.subplots()


def _outline(ax: Axes, layer: MapLayer) -> None:
    from matplotlib.collections import LineCollection

    lines = [line[:, ::-1] for line in layer.lines]
    for colour, width in ((HALO_COLOUR, 1.6), (OUTLINE_COLOUR, 0.8)):
        ax.add_collection(LineCollection(lines, colors=colour, linewidths=width, capstyle="round", joinstyle="round"), autolim=False)


def _colour_bar(ax: Axes, saliency: Saliency, shown: Shown, behind: tuple[int, int, int], opacity: float) -> None:
    """Draw the colours as they look over the tissue's mean colour, with raw values."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap, Normalize
    from matplotlib.ticker import ScalarFormatter

    recipe, cap = shown.recipe, shown.cap or 1.0
    shares = np.linspace(0, 1, 128, dtype=np.float32)[None]
    rgb, alpha = colours(recipe, np.where(shares >= shown.threshold, shares, np.float32(0)))
    seen = blend(np.broadcast_to(np.array(behind, np.uint8), rgb.shape), rgb * 255, alpha * np.float32(opacity))[0] / 255
    mappable = ScalarMappable(Normalize(0, cap), ListedColormap(np.clip(seen, 0, 1)))
    above: Any = "neither" if recipe.method == "patches" else "max"  # what exceeds the cap has its colour
    figure = ax.get_figure()
    assert figure is not None
    bar = figure.colorbar(mappable, ax=ax, extend=above, fraction=0.05, pad=0.03, aspect=25)
    bar.ax.tick_params(labelsize=_TEXT, length=2, width=0.5, colors=_INK)
    bar.outline.set(linewidth=0.5)
    bar.formatter = ScalarFormatter()
    bar.formatter.set_powerlimits((-2, 3))
    bar.ax.yaxis.get_offset_text().set(size=_TEXT, color=_INK)
    if recipe.outline:
        bar.ax.axhline(shown.threshold * cap, color=_INK, linewidth=0.8)
    name = title_of(saliency, recipe.method)
    name = name.partition(" (")[0] if saliency.prediction.identity.method is None else name
    bar.set_label(f"{name} for {saliency.target} ({unit(saliency, recipe.method)})", size=_TEXT, color=_INK, parse_math=False)


def _below(ax: Axes, saliency: Saliency) -> None:
    """Draw the scale bar and the note below the picture: positions across in level-0 pixels, down in points."""
    from matplotlib.lines import Line2D
    from matplotlib.transforms import ScaledTranslation, blended_transform_factory

    region, mpp = saliency.prediction.region, saliency.mpp
    length, text = scale_bar(region.width, None if mpp is None else mpp[1])
    figure = ax.get_figure(root=True)
    assert figure is not None
    edge = blended_transform_factory(ax.transData, ax.transAxes) + ScaledTranslation(0, -6 / 72, figure.dpi_scale_trans)
    bar = Line2D((region.x, region.x + length), (0, 0), color=_INK, linewidth=1.6, solid_capstyle="butt", transform=edge, clip_on=False)
    ax.add_artist(bar)
    after = edge + ScaledTranslation(3 / 72, 0, figure.dpi_scale_trans)
    ax.text(region.x + length, 0, text, size=_TEXT, color=_INK, va="center", transform=after, parse_math=False)
    note = ax.transAxes + ScaledTranslation(0, -6 / 72, figure.dpi_scale_trans)
    ax.text(1, 0, RESEARCH_USE, size=_SMALL, color=_INK, ha="right", va="center", transform=note)
