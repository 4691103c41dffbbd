"""Map layers of a view: how a map is shown, as live traits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import traitlets

from streamview.results import Saliency
from streamview.results.display import PALETTES, Recipe, title_of
from streamview.results.glass import Glass
from streamview_jupyter.sources import LiveMap, MapValues

__all__ = ["LiveLayer", "MapLayer"]

_UNITS = {"evidence": "logit", "signed": "gradient x input", "absolute": "gradient", "patches": "probability"}


class MapLayer(traitlets.HasTraits):
    """One map over the slide. Set an attribute, and every view shows it; only another blur has tiles sent again.

    Made by `View.add_saliency`.

    Attributes
    ----------
    visible, heat, outline
        Whether it is shown at all, as colours, and as an outline of what lies above the threshold.
    opacity
        Of the colours, 0 to 1.
    threshold
        Share of the cap (0..1) below which nothing is shown.
    cap
        Raw value shown at full strength.
    colormap
        One of `streamview.results.display.PALETTES`.
    blur_um
        Standard deviation of the Gaussian blur in um.
    """

    visible = traitlets.Bool(True)
    heat = traitlets.Bool(True)
    outline = traitlets.Bool(True)
    opacity = traitlets.Float(0.45, min=0, max=1)
    threshold = traitlets.Float(0.15, min=0, max=1)
    cap = traitlets.Float(1.0, min=0)
    colormap = traitlets.Enum(list(PALETTES), default_value="teal-lime")
    blur_um = traitlets.Float(6.0, min=0, max=1000)

    def __init__(
        self, number: int, saliency: Saliency, changed: Callable[[MapLayer, bool], None], recipe: Recipe, glass: Glass | None = None
    ) -> None:
        self.number, self.saliency, self.epoch = number, saliency, 0
        self.source = MapValues(saliency, recipe, glass)
        shown = self.source.shown.shown
        super().__init__(
            heat=recipe.heat,
            outline=recipe.outline,
            opacity=recipe.opacity,
            threshold=shown.threshold,
            cap=shown.cap,
            colormap=next((name for name, colours in PALETTES.items() if colours == recipe.colours), "teal-lime"),
            blur_um=recipe.blur_um,
        )
        self._recipe, self._changed = recipe, changed
        self.observe(self._follow, list(self.trait_names()))

    @property
    def recipe(self) -> Recipe:
        """How it is shown now, for exports and pictures."""
        return replace(
            self._recipe,
            blur_um=self.blur_um,
            threshold=self.threshold,
            floor_percentile=0.0,
            outline=self.outline,
            opacity=self.opacity,
            colours=PALETTES[self.colormap],
            heat=self.heat,
            cap=self.cap,
        )

    @property
    def description(self) -> dict[str, Any]:
        """What the browser has to know of it."""
        saliency, prediction = self.saliency, self.saliency.prediction
        warnings = list(prediction.warnings)
        if not prediction.trained and not warnings:
            warnings.append("The weights are random: the map says nothing about the tissue.")
        return {
            "number": self.number,
            "epoch": self.epoch,
            "title": f"{title_of(saliency, self._recipe.method)}: {saliency.target.name}",
            "answer": f"{prediction.model_name}: {prediction.answer}",
            "source": prediction.slide_name,
            "unit": _UNITS[self._recipe.method],
            "warnings": warnings,
            "levels": self.source.placement,
            "colours": list(PALETTES[self.colormap]),
            **{name: getattr(self, name) for name in self.trait_names()},
        }

    def _follow(self, change: traitlets.Bunch) -> None:
        blurred = change.name == "blur_um"
        if blurred:
            # another blur has another cap, by the percentile of the recipe
            self.source.set(replace(self._recipe, blur_um=self.blur_um))
            self.epoch += 1
            with self.hold_trait_notifications():
                self.set_trait("cap", self.source.shown.shown.cap)
        self._changed(self, blurred)


class LiveLayer:
    """The rows of a map that are finished, while the rest is computed.

    Parameters
    ----------
    number
        Among the layers of the view.
    source
        The rows.
    target
        What the map explains.
    """

    def __init__(self, number: int, source: LiveMap, target: str) -> None:
        self.number, self.source, self.target, self.epoch = number, source, target, 0

    @property
    def description(self) -> dict[str, Any]:
        """What the browser has to know of it."""
        return {
            "number": self.number,
            "epoch": self.epoch,
            "title": f"Being computed: {self.target}",
            "answer": "",
            "source": "",
            "unit": _UNITS["signed"],
            "warnings": [],
            "levels": self.source.placement,
            "colours": ["#ffe14a", "#ffffff"],
            "visible": True,
            "heat": True,
            "outline": False,
            "opacity": 1.0,
            "threshold": 0.05,
            "cap": self.source.top,
            "colormap": "",
            "blur_um": 0.0,
        }
