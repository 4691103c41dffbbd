"""How a raw map is displayed: blur, cap, threshold, colour and outline. Pure functions, shared by PNG, napari and reports.

A recipe never changes the stored map.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from streamview.errors import StreamviewError
from streamview.results.blurring import blur, blurs_of, resolving, um_per_px
from streamview.results.maps import LazyPlane, Method, Plane, Saliency
from streamview.results.methods import ExplanationMethod, MethodName

__all__ = [
    "DisplayChoice",
    "HALO_COLOUR",
    "OUTLINE_COLOUR",
    "PALETTES",
    "PRESETS",
    "Overview",
    "TEAL_LIME",
    "TITLES",
    "Preset",
    "Recipe",
    "Shown",
    "ShownLevel",
    "apply_recipe",
    "blurred_overview",
    "colours",
    "default_preset",
    "draw_map",
    "empty_reason",
    "kind_title",
    "show",
    "title_of",
    "usual_recipe",
]

Preset = Literal["evidence", "detail", "paper", "patches"]
TEAL_LIME = ("#0a7f8c", "#18c28c", "#d7ff3e")
PALETTES: Mapping[str, tuple[str, ...]] = {
    "teal-lime": TEAL_LIME,
    "viridis": ("#440154", "#3b528b", "#21918c", "#5ec962", "#fde725"),
    "turbo": ("#30123b", "#4686fb", "#1be5b5", "#a4fc3c", "#fbb938", "#e3440a", "#7a0403"),
    "sky": ("#1b3fae", "#3f8cff", "#c8e6ff"),
}
OTHERS_COLOURS = PALETTES["sky"]  # of evidence for classes that are not of interest
OUTLINE_COLOUR, HALO_COLOUR = "#ffe14a", "#000000"
TITLES: Mapping[Method, str] = {
    "evidence": "Class evidence (extent)",
    "signed": "Gradient x input (detail)",
    "absolute": "Largest |gradient| (paper)",
    "patches": "Patches (an answer each)",
}
_TITLES_BY_METHOD: Mapping[MethodName, Mapping[Method, str]] = {
    "smoothgrad": {"signed": "mean gradient x input (detail)", "absolute": "mean largest |gradient|"},
    "integrated-gradients": {"signed": "attributions (detail)", "absolute": "largest |attribution|"},
    "occlusion": {"signed": "score lost", "absolute": "|score lost|"},
    "grad-cam": {"evidence": "Grad-CAM"},
}

_SMALL_PICTURE = 512  # px a side of a picture in a notebook
_OVERVIEW = 2048  # px: the cap comes from the finest level no larger than this
_COARSE, _MEASURED = 1024, 1.0  # px: the cap comes from a level no larger than _COARSE if the blur is at least _MEASURED there


@dataclass(frozen=True, slots=True)
class Recipe:
    """How one map is displayed.

    Parameters
    ----------
    method
        The map.
    blur_um
        Standard deviation of the Gaussian blur in um; negative values are then set to zero.
    cap_percentile
        The cap: this percentile of the blurred map's positive values and everything above it is shown at full strength.
    threshold
        Fraction of the cap (0..1) below which nothing is shown.
    floor_percentile
        Percentile of the blurred map's positive values below which nothing is shown; 0 hides nothing.
    heat, outline
        Whether to colour the areas above the threshold; whether to outline them.
    opacity
        Opacity of the heat.
    colours
        Hex colours from 0 to the cap, such as those of `PALETTES`.
    glass
        Whether to hide the map on empty glass.
    lacking
        Raw value added to the percentile: what the class lacks to be the answer, so that weak evidence has weak colours.
    cap
        Raw value shown at full strength, overriding percentile and `lacking`: one scale for several maps.
    """

    method: Method
    blur_um: float
    cap_percentile: float = 99.9
    threshold: float = 0.15
    floor_percentile: float = 0.0
    outline: bool = True
    opacity: float = 0.45
    colours: tuple[str, ...] = TEAL_LIME
    heat: bool = True
    glass: bool = True
    lacking: float = 0.0
    cap: float | None = None


PRESETS: Mapping[Preset, Recipe] = {
    "evidence": Recipe("evidence", blur_um=6.0),
    "detail": Recipe("signed", blur_um=3.0),
    "paper": Recipe("absolute", blur_um=100.0, cap_percentile=99.0, threshold=0.0, floor_percentile=50.0, outline=False),
    "patches": Recipe("patches", blur_um=0.0, threshold=0.0, outline=False, glass=False, cap=1.0),
}


@dataclass(frozen=True, slots=True)
class DisplayChoice:
    """How a user wants maps to be shown, whichever they are.

    Parameters
    ----------
    preset
        None: the usual one for the network.
    blur_um
        In place of the preset's blur.
    threshold
        In place of the preset's threshold: a share (0..1) of the cap.

    Raises
    ------
    StreamviewError
        When blur or threshold are out of range.
    """

    preset: Preset | None = None
    blur_um: float | None = None
    threshold: float | None = None

    def __post_init__(self) -> None:
        if self.blur_um is not None and not 0 <= self.blur_um < math.inf:
            raise StreamviewError(f"a blur of {self.blur_um:g} um: expected 0 or more")
        if self.threshold is not None and not 0 <= self.threshold <= 1:
            raise StreamviewError(f"a threshold of {self.threshold:g}: expected a share of the cap, 0 to 1")

    def recipe(self, saliency: Saliency) -> tuple[Preset, Recipe]:
        """The preset and the recipe for the maps of one target."""
        preset = self.preset or default_preset(saliency)
        recipe = usual_recipe(saliency, preset)
        if self.blur_um is not None:
            recipe = replace(recipe, blur_um=self.blur_um)
        if self.threshold is not None:  # the user's threshold is the only one
            recipe = replace(recipe, threshold=self.threshold, floor_percentile=0.0)
        return preset, recipe


def default_preset(saliency: Saliency) -> Preset:
    """Return "patches" for predictions per patch, "evidence" where that map exists, else "paper"; "detail" by methods that refine it."""
    if "patches" in saliency.maps or "evidence" in saliency.maps:
        return "patches" if "patches" in saliency.maps else "evidence"
    return "paper" if saliency.prediction.identity.method is None else "detail"


def title_of(saliency: Saliency, kind: Method) -> str:
    """What a map is called in pictures, exports and windows; the method is named unless it is the gradient."""
    written = saliency.prediction.identity.method
    if written is None:
        return TITLES[kind]
    method = ExplanationMethod.parse(written)
    return method.described if method.name == "grad-cam" else f"{method.described}: {kind_title(saliency, kind)}"


def kind_title(saliency: Saliency, kind: Method) -> str:
    """What a map is called among those of one result."""
    written = saliency.prediction.identity.method
    by = "gradient" if written is None else ExplanationMethod.parse(written).name
    return _TITLES_BY_METHOD.get(by, {}).get(kind, TITLES[kind])


def usual_recipe(saliency: Saliency, preset: Preset | None = None) -> Recipe:
    """Return how a map is shown unless a user says otherwise.

    Evidence for a class that is not of interest, where the card names those that are, is blue and has no outline, so that the normal parts
    of a slide never look like findings. Evidence for a class of interest that is not the answer gets its full colour only where it would be
    enough to make it the answer. Patches of a regression have no fixed cap.

    Parameters
    ----------
    saliency
        The maps of one target.
    preset
        None: `default_preset`.
    """
    recipe = PRESETS[preset or default_preset(saliency)]
    if recipe.method == "patches" and saliency.prediction.task == "regression":
        recipe = replace(recipe, cap=None)
    if saliency.prediction.is_of_interest(saliency.target):
        named = recipe.method == "evidence" and saliency.prediction.positive
        return replace(recipe, lacking=saliency.prediction.lacks(saliency.target)) if named else recipe
    return replace(recipe, colours=OTHERS_COLOURS, outline=False)


@dataclass(frozen=True, slots=True, eq=False)
class ShownLevel(LazyPlane):
    """One level of a map as displayed: a lazy float32 (h, w) array of 0 (hidden) and threshold..1 (the cap).

    Reading a part blurs only that part with its halo; parts equal the same pixels of the whole.

    Parameters
    ----------
    raw
        float32 (h, w) values of this level.
    sigma
        ``(y, x)`` standard deviation of the blur in px of this level.
    cap
        Raw value shown as 1; 0 hides everything.
    threshold
        Fraction of the cap below which values are hidden.
    """

    raw: NDArray[np.float32] | Plane
    sigma: tuple[float, float]
    cap: float
    threshold: float

    @property
    def shape(self) -> tuple[int, int]:
        """``(h, w)`` in px."""
        height, width = self.raw.shape
        return height, width

    def __getitem__(self, key: Any) -> NDArray[np.float32]:
        key = key if isinstance(key, tuple) else (key,)
        key = tuple(slice(None) if part is Ellipsis else part for part in key) + (slice(None),) * (2 - len(key))
        window, halo, rest = [], [], []
        for part, size, sigma in zip(key, self.shape, self.sigma, strict=True):
            index = range(size)[part]
            low, high = (index, index + 1) if isinstance(index, int) else (min(index, default=0), max(index, default=-1) + 1)
            reach = int(4 * sigma + 0.5)
            window.append(slice(max(low - reach, 0), min(high + reach, size)))
            halo.append(slice(low - window[-1].start, high - window[-1].start))
            rest.append(0 if isinstance(index, int) else slice(None, None, index.step))
        blurred = blur(np.asarray(self.raw[window[0], window[1]], np.float32), self.sigma)
        return apply_recipe(blurred[halo[0], halo[1]][tuple(rest)], self.cap, self.threshold)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.asarray(self[:, :], dtype)

    def without_threshold(self) -> ShownLevel:
        """Return this level without a threshold, to be resampled before one is applied."""
        return replace(self, threshold=0.0)


@dataclass(frozen=True, slots=True, eq=False)
class Shown:
    """A map ready to be displayed.

    Parameters
    ----------
    recipe
        The recipe it was made with.
    levels
        Finest first, each half the size of the one before. Where the blur allows, the finest is coarser than that of the raw map.
    steps, origins
        ``(y, x)`` of each level in level-0 pixels; see `SaliencyMap`.
    cap
        Raw value shown at full strength; 0 for a map without positive values.
    threshold
        Fraction of the cap below which nothing is shown; the recipe's floor percentile is included.
    blur_px
        ``(y, x)`` standard deviation of the blur in px of the network's grid.
    """

    recipe: Recipe
    levels: tuple[ShownLevel, ...]
    steps: tuple[tuple[float, float], ...]
    origins: tuple[tuple[float, float], ...]
    cap: float
    threshold: float
    blur_px: tuple[float, float]

    @property
    def overview(self) -> int:
        """Index of the finest level of at most 2048 px a side, or of the last."""
        return self.fitting(_OVERVIEW)

    def fitting(self, side: int) -> int:
        """Index of the finest level of at most `side` px a side, or of the last."""
        return next((i for i, level in enumerate(self.levels) if max(level.shape) <= side), len(self.levels) - 1)


@dataclass(frozen=True, slots=True, eq=False)
class Overview:
    """One blurred level of a map, from which cap and floor are computed.

    Parameters
    ----------
    method, blur_um
        The map, and the standard deviation of the blur in um.
    level
        Index in `SaliencyMap.levels`.
    values
        float32 (h, w), raw.
    """

    method: Method
    blur_um: float
    level: int
    values: NDArray[np.float32]


def blurred_overview(saliency: Saliency, method: Method, blur_um: float) -> Overview:
    """Blur the finest level of at most 2048 px a side, or of at most 1024 px where the blur is still at least a pixel wide there.

    Raises
    ------
    StreamviewError
        If the saliency has no such map.
    """
    raws, sigmas = blurs_of(saliency, method, blur_um)
    fitting, coarse = (next((n for n, raw in enumerate(raws) if max(raw.shape) <= side), len(raws) - 1) for side in (_OVERVIEW, _COARSE))
    level = max(resolving(sigmas), coarse if min(sigmas[coarse]) >= _MEASURED else fitting)
    return Overview(method, blur_um, level, blur(np.asarray(raws[level][:, :], np.float32), sigmas[level]))


def show(saliency: Saliency, recipe: Recipe, overview: Overview | None = None) -> Shown:
    """Prepare a map for display by a recipe.

    Cap and floor are computed from a blurred overview (at most 2048 px a side), so they are cheap on any map. Where the slide's
    mpp is unknown, the region's longer side is assumed to be the paper's 16.4 mm: 100 um are then 50 px at 8192 px.

    Parameters
    ----------
    saliency, recipe
        The map and how to show it.
    overview
        Result of `blurred_overview` for the same map and blur, if already computed.

    Raises
    ------
    StreamviewError
        If the saliency has no such map.
    """
    raws, sigmas = blurs_of(saliency, recipe.method, recipe.blur_um)
    saliency_map, unit = saliency.maps[recipe.method], um_per_px(saliency)
    first = resolving(sigmas)
    placed = [saliency_map.placed(level) for level in range(first, len(raws))]
    values = (overview or blurred_overview(saliency, recipe.method, recipe.blur_um)).values
    # positive values only: the gradient through a maximum is zero nearly everywhere, and so would be the percentiles of all values
    positive = values[values > 0]
    top = _percentile(positive, recipe.cap_percentile)
    cap = recipe.cap if recipe.cap is not None else top + recipe.lacking if top > 0 else 0.0
    floor = _percentile(positive, recipe.floor_percentile) / cap if cap > 0 and recipe.floor_percentile else 0.0
    grid = saliency.prediction.region.height / saliency.prediction.shape[0], saliency.prediction.region.width / saliency.prediction.shape[1]
    threshold = max(recipe.threshold, floor)
    return Shown(
        recipe=recipe,
        levels=tuple(ShownLevel(raw, sigma, cap, threshold) for raw, sigma in zip(raws[first:], sigmas[first:], strict=True)),
        steps=tuple(step for step, _ in placed),
        origins=tuple(origin for _, origin in placed),
        cap=cap,
        threshold=threshold,
        blur_px=(recipe.blur_um / (grid[0] * unit[0]), recipe.blur_um / (grid[1] * unit[1])),
    )


def empty_reason(saliency: Saliency, shown: Shown) -> str | None:
    """Return a sentence saying why a recipe shows nothing of a map; None where it shows something (which glass may still hide)."""
    level, target = shown.levels[shown.overview], saliency.target.name
    if level[:, :].any():
        return None
    raw = np.nan_to_num(np.asarray(level.raw[:, :]))
    if not raw.any():
        return f"Nothing is shown: the map is zero everywhere, so no pixel of the region changes the output for {target}."
    if not (raw > 0).any():
        return f"Nothing is shown: the map has no positive value, so nothing in the region supports {target}."
    if shown.cap <= 0:
        blur_um = shown.recipe.blur_um
        return f"Nothing is shown: after a blur of {blur_um:g} um the map has no positive value for {target}; use a smaller blur."
    threshold = f"{shown.threshold:.3g} of the cap of {shown.cap:.3g}"
    return f"Nothing is shown: no value of the map reaches the threshold, {threshold}; use a lower threshold or cap."


def apply_recipe(blurred: NDArray[np.float32], cap: float, threshold: float) -> NDArray[np.float32]:
    """Return ``min(value / cap, 1)``, float32 of the same shape; values below `threshold` or not positive become 0."""
    if cap <= 0:
        return np.zeros(np.shape(blurred), np.float32)
    shown = np.clip(np.divide(blurred, cap, dtype=np.float32), 0, 1)
    return np.where(shown >= threshold, shown, np.float32(0))


def colours(recipe: Recipe, shown: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Colour displayed values.

    Parameters
    ----------
    recipe
        The recipe with the colours.
    shown
        float32 (h, w) in 0..1.

    Returns
    -------
    rgb
        float32 (h, w, 3) in 0..1.
    alpha
        float32 (h, w): 0 where the value is 0, else from 0.55 to 1, before the recipe's opacity.
    """
    stops = np.array([[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in recipe.colours], np.float32) / 255
    position = np.linspace(0, 1, len(stops))
    rgb = np.stack([np.interp(shown, position, stops[:, c]).astype(np.float32) for c in range(3)], axis=-1)
    alpha = np.where(shown > 0, 0.55 + 0.45 * shown, 0).astype(np.float32)
    return rgb, alpha


def draw_map(saliency: Saliency) -> NDArray[np.uint8]:
    """Draw a map by its usual recipe on white, without its slide, as uint8 (h, w, 3) of at most 512 px a side."""
    recipe = usual_recipe(saliency)
    shown = show(saliency, recipe)
    values = shown.levels[shown.fitting(_SMALL_PICTURE)][:, :]
    enlarged = max(1, _SMALL_PICTURE // (2 * max(values.shape)))  # maps of features have few pixels
    rgb, alpha = colours(recipe, values.repeat(enlarged, 0).repeat(enlarged, 1))
    return np.asarray(np.rint(255 * (1 - alpha[..., None] * (1 - rgb))), np.uint8)


def _percentile(values: NDArray[np.float32], percentile: float) -> float:
    """The percentile by selection: the smallest value with at least that share of the values at or below it."""
    if not values.size:
        return 0.0
    flat = values.ravel()
    rank = max(math.ceil(percentile / 100 * flat.size) - 1, 0)
    return float(np.partition(flat, rank)[rank])
