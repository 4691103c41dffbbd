"""Slides and results as napari layer tuples; pure, so that everything here is tested without a window.

Layers are placed in micrometres in the slide's level-0 frame, the centre of pixel (0, 0) at the origin; in pixels where the mpp is unknown.
One layer in pixels would take the unit away from a whole viewer, so all layers of one call share one unit.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from napari.utils.colormaps import Colormap

from streamview.display import PRESETS, TITLES, Preset, Recipe, Shown, colours, default_preset, show
from streamview.errors import StreamviewError
from streamview.geometry import Region
from streamview.jobs import Job, RegionResult
from streamview.results import RESEARCH_USE, Saliency, open_saliency
from streamview.slides import open_slide
from streamview.thumbnail import thumbnail

if TYPE_CHECKING:
    import os

    from streamview.slides import Slide

__all__ = ["LayerTuple", "SlideLevel", "caption", "job_layers", "map_layer", "mask_layer", "saliency_layers", "slide_layer"]

LayerTuple = tuple[Any, dict[str, Any], str]

_COARSEST = 2048  # px: a slide's pyramid is continued, by averaging on the fly, to a level of at most this


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

    def __getitem__(self, key: Any) -> np.ndarray:
        key = key if isinstance(key, tuple) else (key,)
        if Ellipsis in key:
            at = key.index(Ellipsis)
            key = (*key[:at], *(slice(None),) * (4 - len(key)), *key[at + 1 :])
        key += (slice(None),) * (3 - len(key))
        windows, rest = [], []
        for part, size in zip(key[:2], self.shape[:2], strict=True):
            index = range(size)[part]
            low, high = (index, index + 1) if isinstance(index, int) else (min(index, default=0), max(index, default=-1) + 1)
            windows.append((low, high - low))
            rest.append(0 if isinstance(index, int) else slice(None, None, index.step))
        (y, height), (x, width) = windows
        if not height or not width:
            return np.empty((height, width, 3), np.uint8)[(*rest, key[2])]
        return self._read(y, x, height, width)[(*rest, key[2])]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[:, :], dtype)

    def _read(self, y: int, x: int, height: int, width: int) -> np.ndarray:
        if self._factor == 1:
            return self._slide.read(Region(y, x, height, width, self._level))
        fy, fx = (self._factor * downsample for downsample in self._slide.levels[self._level].downsample)
        return thumbnail(self._slide, Region(round(y * fy), round(x * fx), round(height * fy), round(width * fx)), (height, width))


def slide_layer(slide: Slide, mpp: tuple[float, float] | None = None) -> LayerTuple:
    """Return the image layer of a slide, all levels lazy.

    Parameters
    ----------
    slide
        An open slide.
    mpp
        ``(y, x)`` um/px of level 0, in place of the slide's own.
    """
    mpp = mpp or slide.mpp
    levels = [SlideLevel(slide, level) for level in range(len(slide.levels))]
    last, factor = len(levels) - 1, 1
    while max(levels[-1].shape) > _COARSEST:
        factor *= 2
        levels.append(SlideLevel(slide, last, factor))
    metadata = {"slide": slide.name, "identity": slide.identity, "mpp": mpp, "mpp_source": slide.mpp_source, "background": slide.background}
    options = {"name": slide.name, "multiscale": True, "rgb": True, "contrast_limits": (0, 255), "metadata": {"streamview": metadata}}
    return levels, options | _placed(mpp), "image"


def saliency_layers(saliency: Saliency, *, visible: bool = True) -> list[LayerTuple]:
    """Return one image layer per map, the default preset's on top and, with `visible`, alone visible."""
    default = default_preset(saliency)
    presets: list[Preset] = [preset for preset in ("paper", "detail", "evidence") if PRESETS[preset].method in saliency.maps]
    presets.sort(key=lambda preset: preset == default)
    return [map_layer(saliency, PRESETS[preset], visible=visible and preset == default) for preset in presets]


def map_layer(saliency: Saliency, recipe: Recipe, *, visible: bool = True) -> LayerTuple:
    """Return the image layer of one map as a recipe shows it.

    The layer's values are those shown, 0..1 of the cap; the raw values' path, cap and unit stand in ``metadata["streamview"]``.
    """
    shown = show(saliency, recipe)
    prediction, saliency_map = saliency.prediction, saliency.maps[recipe.method]
    metadata = {
        "identity": prediction.identity.key,
        "raw": None if saliency.path is None else str(saliency.path),
        "method": recipe.method,
        "reduction": saliency_map.reduction,
        "target": saliency.target.name,
        "probability": saliency.target_probability,
        "score": saliency.target_score,
        "trained": prediction.trained,
        "slide": prediction.slide_name,
        "region": str(prediction.region),
        "mpp": saliency.mpp,
        "recipe": recipe,
        "cap": shown.cap,
        "threshold": shown.threshold,
        "blur_px": shown.blur_px,
        "caption": caption(saliency, shown),
        "note": RESEARCH_USE,
    }
    options = {
        "name": f"{TITLES[recipe.method]}: {saliency.target.name}",
        "colormap": _colormap(recipe),
        "contrast_limits": (0.0, 1.0),
        "opacity": recipe.opacity,
        "blending": "translucent_no_depth",
        "interpolation2d": "linear",
        "multiscale": len(shown.levels) > 1,
        "visible": visible,
        "metadata": {"streamview": metadata},
    }
    data = list(shown.levels) if len(shown.levels) > 1 else np.asarray(shown.levels[0])
    return data, options | _placed(saliency.mpp, shown.steps[0], shown.origins[0]), "image"


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
    regions = records[0].regions
    maps = [[open_saliency(job.folder / stored.path) for stored in result.maps] for result in regions if result.maps]
    mpp = maps[0][0].mpp if maps else None
    layers = [slide_layer(slide, mpp) for slide in _source(regions)]
    for found in maps:
        top = next((saliency for saliency in found if saliency.target.name == saliency.prediction.label), found[0])
        for saliency in [*(other for other in reversed(found) if other is not top), top]:
            layers += saliency_layers(saliency, visible=saliency is top)
    if not layers:
        raise StreamviewError(f"{folder}: the slide {records[0].slide_id} has no map and its file is gone; put it back where it was")
    return layers


def caption(saliency: Saliency, shown: Shown) -> str:
    """Name map and target, blur and threshold, and what the map is not for: three short lines for the canvas."""
    recipe = shown.recipe
    blur = f"{shown.blur_px[0]:.3g} px" if saliency.mpp is None else f"{recipe.blur_um:g} um ({shown.blur_px[0]:.3g} px)"
    note = "research use only" if saliency.prediction.trained else "untrained network | research use only"
    return f"{TITLES[recipe.method]}: {saliency.target.name}\nblur {blur} | above {shown.threshold:.0%} of the cap\n{note}"


def _source(regions: tuple[RegionResult, ...]) -> list[Slide]:
    """Open the slide the regions were read from, if its file is still there and still the same."""
    for path in dict.fromkeys(result.source for result in reversed(regions) if result.source):
        if Path(path).exists():
            slide = open_slide(path)
            if slide.identity in {result.prediction.identity.source for result in regions}:
                return [slide]
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


def _colormap(recipe: Recipe) -> Colormap:
    """Transparent at 0, then the recipe's colours with an alpha from 0.55 to 1."""
    rgb, alpha = colours(recipe, np.linspace(0, 1, 256, dtype=np.float32))
    return Colormap(np.column_stack([rgb, alpha]), name="teal-lime (fading)")
