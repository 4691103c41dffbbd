"""Slides and results as napari layer tuples; pure, so that everything here is tested without a window.

Layers are placed in micrometres in the slide's level-0 frame, the centre of pixel (0, 0) at the origin; in pixels where the mpp is unknown.
One layer in pixels would take the unit away from a whole viewer, so all layers of one call share one unit.
"""

from __future__ import annotations

import math
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from napari.utils.colormaps import Colormap
from numpy.typing import NDArray

from streamview.errors import StreamviewError
from streamview.export.omezarr import stored_recipe
from streamview.geometry import Region
from streamview.jobs import Job, RegionResult
from streamview.jobs.maps import slide_maps
from streamview.results import Saliency
from streamview.results.display import (
    OUTLINE_COLOUR,
    PALETTES,
    PRESETS,
    TITLES,
    Preset,
    Recipe,
    Shown,
    colours,
    default_preset,
    empty_reason,
)
from streamview.slides import as_slide, open_slide
from streamview.slides.thumbnail import thumbnail
from streamview_napari.records import MapLayer, SlideLayer
from streamview_napari.shown_map import FULL, ShownMap, window

if TYPE_CHECKING:
    from streamview.slides import Slide

__all__ = [
    "LayerTuple",
    "SlideLevel",
    "caption",
    "has_overview",
    "job_layers",
    "live_layer",
    "map_colormap",
    "map_layer",
    "mask_layer",
    "saliency_layers",
    "slide_layer",
    "thumbnail",
]

LayerTuple = tuple[Any, dict[str, Any], str]

_COARSEST = 2048  # px: a slide's pyramid is continued, by averaging on the fly, to a level of at most this
_OVERVIEW = 8192**2  # px of a slide's coarsest level up to which that level is averaged whole
_PART = 4096**2  # px that are averaged for a part of a slide whose coarsest level is larger; what needs more stays blank
_BLANK = 225  # grey level


class SlideLevel:
    """One level of a slide as a lazy uint8 (h, w, 3) array, read through `Slide.read`.

    Parameters
    ----------
    slide
        An open slide; it stays open as long as the layer lives.
    level
        Level of the slide.
    factor
        Pixels of that level averaged into one, along both axes: 1 for a level of the file.
    """

    def __init__(self, slide: Slide, level: int, factor: int = 1) -> None:
        self._slide, self._level, self._factor = slide, level, factor
        height, width = slide.levels[level].shape
        self.shape = (height // factor, width // factor, 3)
        self.dtype = np.dtype(np.uint8)
        self.ndim = 3
        self.size = int(np.prod(self.shape))

    def __getitem__(self, key: Any) -> NDArray[Any]:
        ((top, bottom), (left, right)), rest = window(key, self.shape)
        empty = top >= bottom or left >= right
        height, width = max(bottom - top, 0), max(right - left, 0)
        pixels: NDArray[np.uint8] = (np.empty((height, width, 3), np.uint8) if empty else self._read(top, left, height, width))[rest]
        return pixels

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.asarray(self[:, :], dtype)

    def _read(self, y: int, x: int, height: int, width: int) -> NDArray[Any]:
        if self._factor == 1:
            return self._slide.read(Region(y, x, height, width, self._level))
        if not has_overview(self._slide) and height * width * self._factor**2 > _PART:
            return np.full((height, width, 3), _BLANK, np.uint8)
        fy, fx = (self._factor * downsample for downsample in self._slide.levels[self._level].downsample)
        return thumbnail(self._slide, Region(round(y * fy), round(x * fx), round(height * fy), round(width * fx)), (height, width))


def has_overview(slide: Slide) -> bool:
    """Whether a slide's coarsest level is small enough to be seen at once; else it is blank until one zooms in, or converts it."""
    return math.prod(slide.levels[-1].shape) <= _OVERVIEW


def slide_layer(slide: Slide, mpp: tuple[float, float] | None = None, path: str | os.PathLike[str] | None = None) -> LayerTuple:
    """Return the image layer of a slide, all levels lazy.

    Parameters
    ----------
    slide
        An open slide.
    mpp
        ``(y, x)`` um/px of level 0, in place of the slide's own.
    path
        Where it was opened from for this layer: the dock closes it when the layer is removed. None where the caller does.
    """
    source = slide if mpp is None or slide.mpp is not None else as_slide(slide, mpp[0])
    mpp = mpp or slide.mpp
    levels = [SlideLevel(slide, level) for level in range(len(slide.levels))]
    last, factor = len(levels) - 1, 1
    while max(levels[-1].shape) > _COARSEST:
        factor *= 2
        levels.append(SlideLevel(slide, last, factor))
    place = None if path is None else os.fspath(path) if "://" in os.fspath(path) else os.path.abspath(path)
    metadata = {"streamview": SlideLayer(source, place)}
    options = {"name": slide.name, "multiscale": True, "rgb": True, "contrast_limits": (0, 255), "metadata": metadata}
    return levels, options | _placed(mpp), "image"


def saliency_layers(saliency: Saliency, *, visible: bool = True) -> list[LayerTuple]:
    """Return one image layer per map, that of the stored display, else the default preset's, on top and, with `visible`, alone visible."""
    stored = None if saliency.path is None else stored_recipe(saliency.path)
    stored = stored if stored is not None and stored.method in saliency.maps else None
    default = default_preset(saliency) if stored is None else next(p for p in PRESETS if PRESETS[p].method == stored.method)
    presets: list[Preset] = [preset for preset in ("patches", "paper", "detail", "evidence") if PRESETS[preset].method in saliency.maps]
    presets.sort(key=lambda preset: preset == default)
    recipes = [stored if stored is not None and preset == default else PRESETS[preset] for preset in presets]
    return [map_layer(saliency, recipe, visible=visible and preset == default) for preset, recipe in zip(presets, recipes, strict=True)]


def map_layer(saliency: Saliency, recipe: Recipe, *, visible: bool = True) -> LayerTuple:
    """Return the image layer of one map as a recipe shows it, all levels lazy and uint8.

    The layer's values are per cent of the cap; its record is a `MapLayer`.
    """
    shown = ShownMap(saliency, recipe)
    options = {
        "name": f"{TITLES[recipe.method]}: {saliency.target.name}",
        "colormap": map_colormap(shown.shown),
        "contrast_limits": (0, FULL),
        "opacity": recipe.opacity,
        "blending": "translucent_no_depth",
        "interpolation2d": "linear",
        "multiscale": len(shown.levels) > 1,
        "visible": visible,
        "metadata": {"streamview": MapLayer(saliency, shown, caption(saliency, shown.shown))},
    }
    data = list(shown.levels) if len(shown.levels) > 1 else shown.levels[0]
    return data, options | _placed(saliency.mpp, shown.map.step, shown.map.origin), "image"


def live_layer(
    kind: Literal["gradient", "evidence"],
    target: str,
    values: Any,
    mpp: tuple[float, float] | None,
    step: tuple[float, float],
    origin: tuple[float, float],
) -> LayerTuple:
    """Return the image layer of a map while it is computed: float32 (h, w), placed as a `SaliencyMap`."""
    recipe = PRESETS["evidence"] if kind == "evidence" else replace(PRESETS["detail"], colours=(OUTLINE_COLOUR, "#ffffff"))
    options = {
        "name": f"Being computed: {kind}, {target}",
        "colormap": _fading(recipe, recipe.threshold if kind == "evidence" else 0.05),
        "contrast_limits": (0.0, max(float(np.max(values)), 1e-12) if kind == "evidence" else 1.0),
        "opacity": recipe.opacity if kind == "evidence" else 1.0,
        "blending": "translucent_no_depth",
        "interpolation2d": "linear",
    }
    return values, options | _placed(mpp, step, origin), "image"


def mask_layer(mask: np.ndarray, name: str, mpp: tuple[float, float] | None, step: tuple[float, float] = (1.0, 1.0)) -> LayerTuple:
    """Return the labels layer of a bool (h, w) mask whose pixels cover `step` level-0 pixels each, from the slide's corner."""
    origin = (step[0] - 1) / 2, (step[1] - 1) / 2
    return mask.astype(np.uint8), {"name": name, "opacity": 0.5} | _placed(mpp, step, origin), "labels"


def job_layers(folder: str | os.PathLike[str], slide_id: str | None = None) -> list[LayerTuple]:
    """Return a job's slide with its maps in place.

    Of the targets of a region, the predicted class (else the first target) is on top, and alone visible.

    Parameters
    ----------
    folder
        The job folder.
    slide_id
        Which slide; the first that has maps (else the first whose file is known) when None.

    Raises
    ------
    StreamviewError
        When the job has nothing to show, or a map is damaged.
    """
    job = Job(folder)
    records = [record for record in job.slides() if slide_id in (None, record.slide_id)]
    records.sort(key=lambda record: (not any(result.maps for result in record.regions), not any(r.source for r in record.regions)))
    if not records or not records[0].regions:
        raise StreamviewError(
            f"{folder}: no result to show{f' for {slide_id}' if slide_id else ''}; expected a folder made by `streamview saliency`"
        )
    # of a slide that was replaced under its name, only what was answered for the pixels now shown
    regions = tuple(result for result in records[0].regions if records[0].superseded(result) is None) or records[0].regions
    maps = [[one.saliency for one in shown] for shown in slide_maps(job, replace(records[0], regions=regions))]
    mpp = maps[0][0].mpp if maps else None
    layers = [slide_layer(slide, mpp, path=path) for slide, path in _source(regions)]
    for saliencies in maps:
        top = next((saliency for saliency in saliencies if saliency.target.name == saliency.prediction.label), saliencies[0])
        for saliency in [*(other for other in reversed(saliencies) if other is not top), top]:
            layers += saliency_layers(saliency, visible=saliency is top)
    if not layers:
        raise StreamviewError(f"{folder}: the slide {records[0].slide_id} has no map and its file is gone; put it back where it was")
    return layers


def caption(saliency: Saliency, shown: Shown) -> str:
    """Name map and target, blur and threshold, and what the map is not for: three short lines for the canvas, and why it is empty."""
    recipe = shown.recipe
    blur = f"{shown.blur_px[0]:.3g} px" if saliency.mpp is None else f"{recipe.blur_um:g} µm ({shown.blur_px[0]:.3g} px)"
    note = "research use only" if saliency.prediction.trained else "untrained network | research use only"
    # looked for only where it can be: to blur the map once more takes time
    reason = empty_reason(saliency, shown) if shown.cap <= 0 or recipe.cap is not None else None
    empty = "" if reason is None else f"\n{reason}"
    return f"{TITLES[recipe.method]}: {saliency.target.name}\nblur {blur} | above {shown.threshold:.0%} of the cap\n{note}{empty}"


def _source(regions: tuple[RegionResult, ...]) -> list[tuple[Slide, str]]:
    """Open the slide the regions were read from, if its file is still there and still the same; with its path."""
    for path in dict.fromkeys(result.source for result in reversed(regions) if result.source):
        if Path(path).exists():
            slide = open_slide(path)
            if slide.identity in {result.prediction.identity.source for result in regions}:
                return [(slide, path)]
            slide.close()
    return []


def _placed(
    mpp: tuple[float, float] | None, step: tuple[float, float] = (1.0, 1.0), origin: tuple[float, float] = (0.0, 0.0)
) -> dict[str, Any]:
    """Return napari's placement of a layer whose pixel (i, j) is centred at the level-0 position ``origin + (i, j) * step``."""
    my, mx = mpp or (1.0, 1.0)
    unit = "pixel" if mpp is None else "um"
    return {
        "scale": (step[0] * my, step[1] * mx),
        "translate": (origin[0] * my, origin[1] * mx),
        "units": (unit, unit),
        "axis_labels": ("y", "x"),
    }


def map_colormap(shown: Shown) -> Colormap:
    """Transparent below the threshold, then the recipe's colours with an alpha from 0.55 to 1; transparent all over without heat."""
    return _fading(shown.recipe, shown.threshold)


def _fading(recipe: Recipe, threshold: float) -> Colormap:
    values = np.linspace(0, 1, 256, dtype=np.float32)
    rgb, alpha = colours(recipe, np.where(values >= threshold, values, np.float32(0)))
    name = next((name for name, palette in PALETTES.items() if palette == recipe.colours), "custom")
    return Colormap(np.column_stack([rgb, alpha * recipe.heat]), name=f"{name} (fading)")
