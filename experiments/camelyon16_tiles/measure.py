"""Measure a network on slides composed of a source slide: how well it tells them, and how well each map finds the lesion.

Everything is what `streamview.saliency` gives for a whole slide at level 0. The energy of a map is measured as its preset shows it:
blurred, without negative values, capped, and with what is under the threshold hidden; pointing game and average precision take what is
blurred, as the cap makes many pixels equal.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from matplotlib.figure import Figure as Canvas
from numpy.typing import NDArray
from scipy import ndimage

import streamview
from experiments.camelyon16_tiles.compose import GLASS, MPP, Mask, Pixels, Tiles, compose_slide
from streamview.evaluation import Metrics, measure
from streamview.evaluation.bootstrap import Bootstrap, Figure, mean
from streamview.faithfulness.localisation import Localisation, localise
from streamview.networks import Model
from streamview.results import Saliency
from streamview.results.display import PRESETS, Recipe, show, usual_recipe
from streamview.results.overlay import overlay

__all__ = ["BASELINES", "MAPS", "Figures", "Slide", "compose_slides", "draw_slides", "measure_network", "shown_map"]

MAPS: Mapping[str, Recipe] = {
    "class evidence, as shown by default": PRESETS["evidence"],
    "gradient x input, preset detail": PRESETS["detail"],
    "largest gradient, blur 6 um": Recipe("absolute", blur_um=6.0, threshold=0.0),
    "largest gradient, preset paper": PRESETS["paper"],
}
BASELINES = ("class evidence of random weights", "edges, blur 6 um", "random")
_EXTENT = (8, 8)  # tiles


@dataclass(frozen=True, slots=True, eq=False)
class Slide:
    """A composed slide.

    Parameters
    ----------
    pixels, lesion
        As `compose_slide` gives them; the lesion is empty on every other slide.
    """

    pixels: Pixels
    lesion: Mask


@dataclass(frozen=True, slots=True, eq=False)
class Figures:
    """What a network is worth on composed slides.

    Parameters
    ----------
    metrics
        Of its answers.
    margins
        Logit of tumour minus that of normal, of every slide.
    maps
        Of every map: pointing game, energy as a multiple of the area, and average precision, over the slides with a lesion.
    energies
        Of every map: the energy of each slide with a lesion, as a multiple of the area.
    """

    metrics: Metrics
    margins: tuple[float, ...]
    maps: Mapping[str, tuple[Figure, Figure, Figure]]
    energies: Mapping[str, tuple[float, ...]]


def compose_slides(tiles: Tiles, count: int, seed: int) -> list[Slide]:
    """Compose slides of 2048 x 2048 px, half of them with a lesion on 2 to 20 % of the tissue, half of those along tiles."""
    rng = np.random.default_rng(seed)
    slides = []
    for number in range(count):
        share = float(np.exp(rng.uniform(*np.log((0.02, 0.2))))) if number % 2 else 0.0
        slides.append(Slide(*compose_slide(tiles, _EXTENT, share, rng, round_lesion=number % 4 == 1)))
    return slides


def measure_network(model: Model, untrained: Model, slides: Sequence[Slide], *, tell: Callable[[str], None]) -> Figures:
    """Answer and explain every slide.

    Parameters
    ----------
    model
        Of the classes normal and tumour.
    untrained
        The same network with random weights.
    slides
        Composed slides.
    tell
        Called with a line per slide.
    """
    logits, found = [], {name: [] for name in (*MAPS, *BASELINES)}
    for number, slide in enumerate(slides):
        saliency = streamview.saliency(model, slide.pixels, target="tumour", mpp=MPP)
        logits.append(saliency.prediction.logits)
        if slide.lesion.any():
            control = streamview.saliency(untrained, slide.pixels, target="tumour", mpp=MPP)
            results = _localise_maps(saliency, slide.lesion) | _localise_baselines(control, slide)
            for name, result in results.items():
                found[name].append(result)
        normal, tumour = saliency.prediction.logits
        tell(f"slide {number + 1} of {len(slides)}: lesion {slide.lesion.mean():.1%}, margin {tumour - normal:.2f}")
    names = [f"slide {number}" for number in range(len(slides))]
    labels = np.array([int(slide.lesion.any()) for slide in slides])
    metrics = measure(np.stack(logits), labels, names, model.card)
    bootstrap = Bootstrap([name for name, label in zip(names, labels, strict=True) if label], 2000, 0)
    maps = {name: _figures(results, bootstrap) for name, results in found.items()}
    energies = {name: tuple(result.ratio for result in results) for name, results in found.items()}
    return Figures(metrics, tuple(float(values[1] - values[0]) for values in logits), maps, energies)


def draw_slides(model: Model, slides: Sequence[Slide], rows: int = 4) -> Canvas:
    """Draw the first slides with a lesion: the slide and its lesion, then each preset's overlay."""
    chosen = [slide for slide in slides if slide.lesion.any()][:rows]
    canvas = Canvas(figsize=(12, 3 * len(chosen)), dpi=100, layout="constrained")
    axes = canvas.subplots(len(chosen), 4, squeeze=False)
    for row, slide in zip(axes, chosen, strict=True):
        saliency = streamview.saliency(model, slide.pixels, target="tumour", mpp=MPP)
        tissue = np.ascontiguousarray(slide.pixels[1::4, 1::4])
        pictures = {f"slide; p(tumour) = {saliency.prediction.probabilities[1]:.2f}": tissue}
        for title, recipe in (
            ("class evidence (default)", usual_recipe(saliency)),
            ("gradient x input", PRESETS["detail"]),
            ("paper", PRESETS["paper"]),
        ):
            pictures[title] = overlay(tissue, saliency, show(saliency, recipe), (GLASS,) * 3)[0]
        for ax, (title, picture) in zip(row, pictures.items(), strict=True):
            ax.imshow(picture)
            ax.contour(slide.lesion[1::4, 1::4], [0.5], colors="black", linewidths=1, linestyles="dashed")
            ax.set_title(title, fontsize=9)
            ax.axis("off")
    return canvas


def shown_map(saliency: Saliency, recipe: Recipe, lesion: Mask) -> tuple[NDArray[np.float32], Mask]:
    """Return a map as it is shown, and the lesion at its pixels.

    Parameters
    ----------
    saliency
        Maps of a whole slide.
    recipe
        Which, and how.
    lesion
        bool (H, W) of level 0.
    """
    shown = show(saliency, recipe)
    values = shown.levels[0][:, :]
    rows, columns = (
        (origin + step * np.arange(size)).round().astype(int).clip(0, side - 1)
        for origin, step, size, side in zip(shown.origins[0], shown.steps[0], values.shape, lesion.shape, strict=True)
    )
    return values, lesion[np.ix_(rows, columns)]


def _localise_maps(saliency: Saliency, lesion: Mask) -> dict[str, Localisation]:
    recipes = {name: usual_recipe(saliency) if recipe is PRESETS["evidence"] else recipe for name, recipe in MAPS.items()}
    return {name: _localise(saliency, recipe, lesion) for name, recipe in recipes.items()}


def _localise_baselines(control: Saliency, slide: Slide) -> dict[str, Localisation]:
    grey, lesion = slide.pixels[::2, ::2].mean(-1), slide.lesion[::2, ::2]
    edges = ndimage.gaussian_filter(np.hypot(*(ndimage.sobel(grey, axis) for axis in (0, 1))), 6.0 / (2 * MPP))
    noise = np.random.default_rng(0).random(grey.shape)
    results = _localise(control, PRESETS["evidence"], slide.lesion), localise(edges, lesion), localise(noise, lesion)
    return dict(zip(BASELINES, results, strict=True))


def _localise(saliency: Saliency, recipe: Recipe, lesion: Mask) -> Localisation:
    shown = localise(*shown_map(saliency, recipe, lesion))
    # many pixels reach the cap, one of them is the largest
    uncapped = replace(recipe, cap_percentile=100.0, threshold=0.0, floor_percentile=0.0, lacking=0.0)
    return replace(localise(*shown_map(saliency, uncapped, lesion)), energy=shown.energy)


def _figures(results: Sequence[Localisation], bootstrap: Bootstrap) -> tuple[Figure, Figure, Figure]:
    columns = ([result.pointing for result in results], [result.ratio for result in results], [result.precision for result in results])
    first, second, third = (bootstrap(mean(np.nan_to_num(np.array(column, np.float64)))) for column in columns)
    return first, second, third
