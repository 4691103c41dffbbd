"""Explain slides with a known lesion by every method, and measure where each map lies."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from torch import nn

import streamview
from experiments.camelyon16_tiles.measure import shown_map
from experiments.resolution.data import Slides
from experiments.statistics import measure
from experiments.training import MEAN, STD, lower_resolution
from streamview import Compute, ExplanationMethod, Saliency
from streamview.evaluation.bootstrap import Figure, mean
from streamview.faithfulness.localisation import Localisation, localise
from streamview.networks import Model
from streamview.networks.cards import assumed_document, parse_card
from streamview.networks.hashing import hash_tensors
from streamview.results.display import Recipe

__all__ = ["BASELINES", "MAPS", "MEASURES", "Row", "explain_slide", "measure_maps", "model_of"]

_BLUR_UM = 6.0
_PATCHES = 8  # of an occlusion, down and across
_SMOOTHGRAD, _INTEGRATED = ExplanationMethod("smoothgrad", samples=8), ExplanationMethod("integrated-gradients", steps=16)


@dataclass(frozen=True, slots=True)
class _Map:
    """A map: the method that gives it, and its name in the result."""

    method: ExplanationMethod
    name: str


MAPS: Mapping[str, _Map] = {
    "class evidence": _Map(ExplanationMethod(), "evidence"),
    "largest gradient (the paper's)": _Map(ExplanationMethod(), "absolute"),
    "gradient x input": _Map(ExplanationMethod(), "signed"),
    "SmoothGrad, largest gradient": _Map(_SMOOTHGRAD, "absolute"),
    "SmoothGrad x input": _Map(_SMOOTHGRAD, "signed"),
    "integrated gradients": _Map(_INTEGRATED, "signed"),
    "Grad-CAM": _Map(ExplanationMethod("grad-cam"), "evidence"),
    "occlusion": _Map(ExplanationMethod("occlusion"), "signed"),
}
"""Every map, blurred by 6 um, and without what is negative."""
BASELINES = ("edges", "random")
MEASURES = ("pointing game", "energy, times the area", "average precision")
Row = tuple[Figure, Figure, Figure]
"""The `MEASURES` of a map over all slides."""


def model_of(network: nn.Module, mpp: float) -> Model:
    """Give a network of `experiments.resolution` its card."""
    document = assumed_document("camelyon17", ("negative", "metastasis"), mean=(MEAN,) * 3, std=(STD,) * 3)
    document["spacing_um_px"], document["patch_size_pixels"] = mpp, 128
    card = parse_card(document, name="resolution", file="card")
    return Model(network.eval().requires_grad_(False), card, hash_tensors(network.state_dict()))


def explain_slide(model: Model, pixels: NDArray[np.uint8], mpp: float) -> dict[str, tuple[Saliency, Recipe]]:
    """Explain a slide for the last class by every method.

    Parameters
    ----------
    model
        The network.
    pixels, mpp
        The slide, uint8 (H, W, 3), and um per pixel.

    Returns
    -------
    dict
        By name in `MAPS`: the result, and how its map is prepared.
    """
    methods = {entry.method for entry in MAPS.values()}
    results = {}
    for method in methods:
        sized = ExplanationMethod("occlusion", patch=min(pixels.shape[:2]) // _PATCHES) if method.name == "occlusion" else method
        results[method] = streamview.saliency(model, pixels, target=model.card.class_names[-1], mpp=mpp, compute=Compute(method=sized))
    maps = {}
    for name, entry in MAPS.items():
        recipe = Recipe(entry.name, blur_um=_BLUR_UM, cap_percentile=100.0, threshold=0.0)  # type: ignore[arg-type]
        maps[name] = results[entry.method], recipe
    return maps


def measure_maps(model: Model, slides: Slides, factor: int, mpp: float, *, tell: Callable[[str], None]) -> dict[str, Row]:
    """Measure every map and baseline over slides.

    Parameters
    ----------
    model
        The network.
    slides
        Slides with a lesion each, at the finest resolution.
    factor, mpp
        By which their resolution is lowered, and um per pixel then.
    tell
        Called with a line per slide.
    """
    results: dict[str, list[Localisation]] = {name: [] for name in (*MAPS, *BASELINES)}
    images = lower_resolution(slides.pixels, factor)
    for number, (pixels, lesion) in enumerate(zip(images, slides.lesions[:, ::factor, ::factor], strict=True), 1):
        for name, (saliency, recipe) in explain_slide(model, pixels, mpp).items():
            results[name].append(localise(*shown_map(saliency, recipe, lesion)))
        for name, values in _baselines(pixels, _BLUR_UM / mpp).items():
            results[name].append(localise(values, lesion))
        tell(f"{model.card.name} at {mpp:.3g} um/px: slide {number} of {len(images)}")
    return {name: _row(each) for name, each in results.items()}


def _baselines(pixels: NDArray[np.uint8], sigma: float) -> dict[str, NDArray[np.float64]]:
    grey = pixels.mean(-1)
    edges = ndimage.gaussian_filter(np.hypot(*(ndimage.sobel(grey, axis) for axis in (0, 1))), sigma)
    noise = ndimage.gaussian_filter(np.random.default_rng(0).random(grey.shape), sigma)
    return dict(zip(BASELINES, (edges, noise), strict=True))


def _row(results: Sequence[Localisation]) -> Row:
    columns = ([each.pointing for each in results], [each.ratio for each in results], [each.precision for each in results])
    first, second, third = (measure(mean(np.nan_to_num(np.array(column, np.float64))), len(results)) for column in columns)
    return first, second, third
