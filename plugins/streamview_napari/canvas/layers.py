"""Slides and results as napari layer tuples; pure, so that everything here is tested without a window.

Layers are placed in micrometres in the slide's level-0 frame, the centre of pixel (0, 0) at the origin; in pixels where the mpp is unknown.
One layer in pixels would take the unit away from a whole viewer, so all layers of one call share one unit.
"""

from __future__ import annotations

import math
import os
import textwrap
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
from streamview.results import Method, Saliency
from streamview.results.display import (
    OUTLINE_COLOUR,
    PALETTES,
    PRESETS,
    Preset,
    Recipe,
    Shown,
    colours,
    empty_reason,
    title_of,
    usual_recipe,
)
from streamview.results.shown_map import FULL, ShownMap, window
from streamview.slides import as_slide, open_slide
from streamview.slides.thumbnail import thumbnail
from streamview_napari.records import JobPlace, MapLayer, SlideLayer
from streamview_napari.requests.answers import describe_answer, describe_failures
from streamview_napari.tiles import TiledLevel, Tiles

if TYPE_CHECKING:
    from streamview.slides import Slide

__all__ = [
    "LayerTuple",
    "SlideLevel",
    "caption",
    "first_recipe",
    "has_overview",
    "job_layers",
    "layer_of",
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
_CAPTION = 60  # characters of a line of a caption


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
        (rows, columns), rest = window(key, self.shape)
        height, width = max(rows[1] - rows[0], 0), max(columns[1] - columns[0], 0)
        if not height or not width:
            return np.asarray(np.empty((height, width, 3), np.uint8)[rest])
        return np.asarray(self.read(rows[0], columns[0], height, width)[rest])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.asarray(self[:, :], dtype)

    def read(self, y: int, x: int, height: int, width: int) -> NDArray[Any]:
        """Read a part, uint8 (height, width, 3)."""
        if self._factor == 1:
            return self._slide.read(Region(y, x, height, width, self._level))
        if not has_overview(self._slide) and height * width * self._factor**2 > _PART:
            return np.full((height, width, 3), _BLANK, np.uint8)
        fy, fx = (self._factor * downsample for downsample in self._slide.levels[self._level].downsample)
        return thumbnail(self._slide, Region(round(y * fy), round(x * fx), round(height * fy), round(width * fx)), (height, width))


def has_overview(slide: Slide) -> bool:
    """Whether a slide's coarsest level is small enough to be seen at once; else it is blank until one zooms in, or converts it."""
    return math.prod(slide.levels[-1].shape) <= _OVERVIEW


def slide_layer(
    slide: Slide,
    mpp: tuple[float, float] | None = None,
    path: str | os.PathLike[str] | None = None,
    job: JobPlace | None = None,
) -> LayerTuple:
    """Return the image layer of a slide, all levels lazy.

    Parameters
    ----------
    slide
        An open slide.
    mpp
        ``(y, x)`` um/px of level 0, in place of the slide's own.
    path
        Where it was opened from for this layer: the dock closes it when the layer is removed. None where the caller does.
    job
        Its place in the job that it is of.
    """
    source = slide if mpp is None or slide.mpp is not None else as_slide(slide, mpp[0])
    mpp = mpp or slide.mpp
    levels = [SlideLevel(slide, level) for level in range(len(slide.levels))]
    last, factor = len(levels) - 1, 1
    while max(levels[-1].shape) > _COARSEST:
        factor *= 2
        levels.append(SlideLevel(slide, last, factor))
    tiles = Tiles(levels)
    place = None if path is None else os.fspath(path) if "://" in os.fspath(path) else os.path.abspath(path)
    metadata = {"streamview": SlideLayer(source, place, job=job, tiles=tiles)}
    options = {"name": slide.name, "multiscale": True, "rgb": True, "contrast_limits": (0, 255), "metadata": metadata}
    return [TiledLevel(tiles, number) for number in range(len(levels))], options | _placed(mpp), "image"


def first_recipe(saliency: Saliency, method: Method | None = None) -> Recipe:
    """Return how a map is shown at first: as its record says, else by the preset of its kind.

    Parameters
    ----------
    saliency
        The maps.
    method
        Which of them; None: the one of the stored display, else of the default preset.
    """
    stored = None if saliency.path is None else stored_recipe(saliency.path)
    if stored is not None and stored.method in saliency.maps and method in (None, stored.method):
        return stored
    return usual_recipe(saliency, next((preset for preset, recipe in PRESETS.items() if recipe.method == method), None))


def saliency_layers(saliency: Saliency, *, visible: bool = True, siblings: tuple[Saliency, ...] = ()) -> list[LayerTuple]:
    """Return one image layer per map, that of the stored display, else the default preset's, on top and, with `visible`, alone visible.

    The top one's record names `siblings`, other results that get no layer.
    """
    top = first_recipe(saliency)
    presets: list[Preset] = ["patches", "paper", "detail", "evidence"]
    methods = [PRESETS[preset].method for preset in presets if PRESETS[preset].method in saliency.maps]
    layers = [map_layer(saliency, first_recipe(saliency, method), visible=False) for method in methods if method != top.method]
    data, options, kind = map_layer(saliency, top, visible=visible)
    record = options["metadata"]["streamview"]
    return [*layers, (data, options | {"metadata": {"streamview": replace(record, siblings=siblings)}}, kind)]


def map_layer(saliency: Saliency, recipe: Recipe, *, visible: bool = True) -> LayerTuple:
    """Return the image layer of one map as a recipe shows it, all levels lazy and uint8.

    The layer's values are per cent of the cap; its record is a `MapLayer`.
    """
    levels, options, kind = layer_of(saliency, ShownMap(saliency, recipe))
    several = len(levels) > 1
    return levels if several else levels[0], options | {"visible": visible, "multiscale": several}, kind


def layer_of(saliency: Saliency, shown: ShownMap) -> LayerTuple:
    """Return the image layer of a map that is ready to be shown; always multiscale, so that another map can take it over."""
    recipe = shown.shown.recipe
    options = {
        "name": f"{title_of(saliency, recipe.method)}: {saliency.target.name}",
        "colormap": map_colormap(shown.shown),
        "contrast_limits": (0, FULL),
        "opacity": recipe.opacity,
        "blending": "translucent_no_depth",
        "interpolation2d": "linear",
        "multiscale": True,
        "metadata": {"streamview": MapLayer(saliency, shown, caption(saliency, shown.shown))},
    }
    return list(shown.levels), options | _placed(saliency.mpp, shown.map.step, shown.map.origin), "image"


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

    Of the targets of a region, the usual one (else the first) has layers; the others are named in its record. The slide's
    record names the job's slides.

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
    names = tuple(record.slide_id for record in job.slides() if record.regions)
    place = JobPlace(os.fspath(folder), records[0].slide_id, names)
    layers = [slide_layer(slide, mpp, path=path, job=place) for slide, path in _source(regions)]
    for saliencies in maps:
        top = next((saliency for saliency in saliencies if saliency.target.name == saliency.prediction.usual_target.name), saliencies[0])
        layers += saliency_layers(top, siblings=tuple(other for other in saliencies if other is not top))
    if not layers:
        raise StreamviewError(f"{folder}: the slide {records[0].slide_id} has no map and its file is gone; put it back where it was")
    return layers


def caption(saliency: Saliency, shown: Shown) -> str:
    """Say in short lines for the canvas: slide and network, the answer, map and target, how it is shown, failed checks, why it is empty."""
    recipe, prediction = shown.recipe, saliency.prediction
    blur = f"{shown.blur_px[0]:.3g} px" if saliency.mpp is None else f"{recipe.blur_um:g} µm ({shown.blur_px[0]:.3g} px)"
    untrained = "" if prediction.trained else " (untrained)"
    scale = f"100% = {shown.cap:.3g}"
    if recipe.cap is None and recipe.lacking and shown.cap > 0:
        scale += f", enough for {saliency.target.name} to be the answer"
    lines = [
        f"{prediction.slide_name} | {prediction.model_name}{untrained}: {describe_answer(prediction)}",
        f"{title_of(saliency, recipe.method)}: {saliency.target.name}",
        f"{scale} | blur {blur}",
        f"shown above {shown.threshold:.0%} | research use only",
    ]
    # looked for only where it can be: to blur the map once more takes time
    reason = empty_reason(saliency, shown) if shown.cap <= 0 or recipe.cap is not None else None
    remarks = (describe_failures(saliency, recipe.method), reason or "")
    return "\n".join([*lines, *(line for remark in remarks for line in textwrap.wrap(remark, _CAPTION))])


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
