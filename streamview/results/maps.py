"""Saliency maps: raw float32 values that are read lazily, placed on the slide."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin
from numpy.typing import NDArray

from streamview.errors import SlideError
from streamview.notebook import card, image, png, svg_image, table
from streamview.results.methods import ExplanationMethod, MethodName
from streamview.results.prediction import RESEARCH_USE, Prediction, Target

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from streamview.results.display import Preset
    from streamview.slides import Slide

__all__ = ["REDUCTIONS", "LazyPlane", "Method", "Pixels", "Plane", "Saliency", "SaliencyMap", "halve", "level0_mpp", "reduction_of"]

Method = Literal["absolute", "signed", "evidence", "patches"]
REDUCTIONS: Mapping[Method, str] = {
    "absolute": "max over channels of |d logit / d normalised input|",
    "signed": "sum over channels of (d logit / d normalised input) * (normalised input - normalised glass)",
    "evidence": "the head's linear layer applied to the last features before pooling",
    "patches": "probability (of a regression: output) of each patch, an image of its own to the network; NaN where none was computed",
}
_REDUCTIONS_BY: Mapping[MethodName, Mapping[Method, str]] = {
    "smoothgrad": {
        "absolute": "mean over noisy copies of the max over channels of |d logit / d normalised input|",
        "signed": "sum over channels of the mean gradient of noisy copies * (normalised input - normalised glass)",
    },
    "integrated-gradients": {
        "absolute": "max over channels of |attribution|, the integral of the gradient on the path from the baseline * (input - baseline)",
        "signed": "sum over channels of the attributions, the integral of the gradient on the path from the baseline * (input - baseline)",
    },
    "occlusion": {
        "absolute": "|mean difference of the score that the patches of glass over a pixel make|",
        "signed": "mean over the patches of glass that hide a pixel of the score without them minus the score with them",
    },
    "grad-cam": {"evidence": "positive part of the last features' sum, weighted by the mean over positions of d logit / d feature"},
}

_SMALL_PICTURE = 512  # px a side of a picture in a notebook


class Pixels(Protocol):
    """A source of a `Plane`: it has a shape, and supports indexing by two slices with step 1."""

    @property
    def shape(self) -> tuple[int, ...]:
        """``(h, w)``."""
        ...

    def __getitem__(self, key: Any) -> Any: ...


class LazyPlane:
    """What an array of float32 (h, w) that is read lazily says of itself; its `shape` is the subclass's."""

    __slots__ = ()

    @property
    def shape(self) -> tuple[int, int]:
        """``(h, w)`` in px."""
        raise NotImplementedError

    @property
    def dtype(self) -> np.dtype[np.float32]:
        """Always float32."""
        return np.dtype(np.float32)

    @property
    def ndim(self) -> int:
        """Always 2."""
        return 2

    @property
    def size(self) -> int:
        """Number of px."""
        return self.shape[0] * self.shape[1]


class Plane(LazyPlane, NDArrayOperatorsMixin):
    """A read-only float32 (h, w) array that is read lazily.

    It supports numpy's functions, operators, indexing and array methods; these read all of it, whereas basic slices read only their part,
    and `strips` reads one strip at a time. It behaves the same in memory and on disk.

    Parameters
    ----------
    source
        An array, or an object that reads parts of one.
    """

    __slots__ = ("_source",)

    def __init__(self, source: Pixels) -> None:
        self._source = source

    @property
    def shape(self) -> tuple[int, int]:
        """``(h, w)`` in px."""
        height, width = self._source.shape
        return height, width

    @property
    def nbytes(self) -> int:
        """Bytes of all px."""
        return 4 * self.size

    def strips(self, rows: int = 512) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Yield the first row and the values (at most `rows`, w) of each strip, from top to bottom."""
        for y in range(0, self.shape[0], rows):
            yield y, self[y : y + rows]

    def __getitem__(self, key: Any) -> Any:
        parts = key if isinstance(key, tuple) else (key,)
        if any(part is Ellipsis for part in parts):
            at = next(n for n, part in enumerate(parts) if part is Ellipsis)
            parts = (*parts[:at], *(slice(None),) * (3 - len(parts)), *parts[at + 1 :])
        parts += (slice(None),) * (2 - len(parts))
        if len(parts) != 2 or not all(isinstance(part, slice) or _is_index(part) for part in parts):
            return np.asarray(self)[key]  # masks, lists of indices, new axes
        window, rest = [], []
        for part, size in zip(parts, self.shape, strict=True):
            index = range(size)[part]
            low, high = (index, index + 1) if isinstance(index, int) else (min(index, default=0), max(index, default=-1) + 1)
            window.append(slice(low, high))
            rest.append(0 if isinstance(index, int) else slice(None, None, index.step))
        values = np.asarray(self._source[tuple(window)], np.float32)[tuple(rest)]
        if isinstance(values, np.ndarray):
            values.flags.writeable = False
        return values

    def __len__(self) -> int:
        return self.shape[0]

    def __iter__(self) -> Iterator[NDArray[np.float32]]:
        for _, strip in self.strips():
            yield from strip

    def __bool__(self) -> bool:
        return bool(np.asarray(self))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        if copy is False and not isinstance(self._source, np.ndarray):
            raise ValueError("the values are read lazily: expected copy=None or copy=True")
        return np.array(self[:, :], dtype) if copy else np.asarray(self[:, :], dtype)

    def __array_ufunc__(self, function: np.ufunc, method: str, *inputs: Any, **options: Any) -> Any:
        if any(isinstance(out, Plane) for out in options.get("out", ())):
            return NotImplemented  # read-only
        return getattr(function, method)(*(np.asarray(value) if isinstance(value, Plane) else value for value in inputs), **options)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or not hasattr(np.ndarray, name):
            raise AttributeError(f"a Plane has no attribute {name!r}")
        return getattr(np.asarray(self), name)

    def __repr__(self) -> str:
        return f"Plane({self.shape[0]} x {self.shape[1]} px, float32)"


def _is_index(part: Any) -> bool:
    return isinstance(part, int | np.integer) and not isinstance(part, bool)


@dataclass(frozen=True, slots=True, eq=False)
class SaliencyMap:
    """Raw values of one map and their positions on the slide.

    Pixel ``(i, j)`` of `values` is centred at the level-0 position ``origin + (i, j) * step``, where level-0 pixel k has its centre at k.

    Parameters
    ----------
    method
        Kind of the values; see `REDUCTIONS`.
    values
        float32 (h, w); arrays are wrapped as a `Plane`, so that maps in memory and on disk have the same type.
    step, origin
        ``(y, x)`` in level-0 pixels.
    coarser
        Block means of `values`, each half the size (rounded up) of the one before; empty for maps in memory.
    explained_by
        As `Identity.method`.
    """

    method: Method
    values: Plane
    step: tuple[float, float]
    origin: tuple[float, float]
    coarser: tuple[Plane, ...] = ()
    explained_by: str | None = None

    def __post_init__(self) -> None:
        values, coarser = self.values, tuple(level if isinstance(level, Plane) else Plane(level) for level in self.coarser)
        object.__setattr__(self, "values", values if isinstance(values, Plane) else Plane(values))
        object.__setattr__(self, "coarser", coarser)

    @property
    def reduction(self) -> str:
        """How the values are computed from the gradient or the features; see `REDUCTIONS`."""
        return reduction_of(self.method, self.explained_by)

    @property
    def levels(self) -> tuple[Plane, ...]:
        """`values` and its coarser levels, finest first."""
        return (self.values, *self.coarser)

    def placed(self, level: int) -> tuple[tuple[float, float], tuple[float, float]]:
        """Return ``(step, origin)`` of a level, both ``(y, x)`` in level-0 pixels."""
        factor = 2**level
        (sy, sx), (oy, ox) = self.step, self.origin
        return (sy * factor, sx * factor), (oy + sy * (factor - 1) / 2, ox + sx * (factor - 1) / 2)


@dataclass(frozen=True, slots=True, eq=False)
class Saliency:
    """Raw saliency maps of a prediction for one target, on the network's grid.

    Parameters
    ----------
    prediction
        The prediction.
    target
        The explained output.
    std
        The card's standard deviations, for pixels scaled to 0..1: a map divided by them is per unit of pixel value.
    glass
        RGB of empty glass, the reference of the signed map.
    maps
        Maps by method.
    path
        The stored file; None in memory.
    slide
        The slide that was read, for pictures while it is open; None in results from files, and not part of copies.
    completeness
        By integrated gradients: how far the sum of the attributions is from the difference of the scores of region and baseline.

    Examples
    --------
    >>> import streamview
    >>> with streamview.open_slide("slide.svs") as slide:
    ...     result = streamview.saliency(streamview.load_model("demo"), slide, target="lesion")
    >>> isinstance(result, streamview.Saliency), str(result.target)
    (True, 'lesion')
    >>> {method: one.values.shape for method, one in result.maps.items()}
    {'absolute': (512, 768), 'signed': (512, 768), 'evidence': (16, 24)}
    """

    prediction: Prediction
    target: Target
    std: tuple[float, ...]
    glass: tuple[int, int, int]
    maps: dict[Method, SaliencyMap]
    path: Path | None = None
    slide: Slide | None = field(default=None, repr=False)
    completeness: float | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return Saliency, (self.prediction, self.target, self.std, self.glass, self.maps, self.path, None, self.completeness)

    @property
    def mpp(self) -> tuple[float, float] | None:
        """``(y, x)`` um/px of the slide's level 0; None when unknown."""
        return level0_mpp(self.prediction, self.grid_step)

    @property
    def grid_step(self) -> tuple[float, float]:
        """``(y, x)`` of the network's grid in level-0 pixels."""
        steps = [saliency_map.step for method, saliency_map in self.maps.items() if method != "evidence"]
        region, shape = self.prediction.region, self.prediction.shape
        return steps[0] if steps else (region.height / shape[0], region.width / shape[1])

    @property
    def target_probability(self) -> float | None:
        """Probability of the target; None for regression and for a difference of logits."""
        return self.prediction.probability_of(self.target)

    @property
    def target_score(self) -> float:
        """The logit, or difference of logits, whose gradient the maps show."""
        return self.prediction.score_of(self.target)

    def plot(self, ax: Axes | None = None, preset: Preset | None = None, slide: Slide | None = None) -> Axes:
        """Draw a map for a paper: tissue and colours as pixels, outlines, colour bar, scale bar and text as vectors.

        The axes are in level-0 pixels and keep their size: the colour bar takes its room from them.

        Parameters
        ----------
        ax
            Axes to draw on; None: new ones, on a figure 85 mm wide.
        preset
            "evidence", "detail", "paper" or "patches"; None: the usual one for the network.
        slide
            Drawn under the map; None: the map alone.

        Returns
        -------
        matplotlib.axes.Axes

        Raises
        ------
        StreamviewError
            If the saliency has no such map, or `slide` is not the slide that it explains.
        SlideError
            If the slide cannot be read.

        Examples
        --------
        >>> import streamview
        >>> with streamview.open_slide("slide.svs") as slide:
        ...     result = streamview.saliency(streamview.load_model("demo"), slide)
        ...     axes = result.plot(slide=slide)
        >>> axes.figure.savefig("figure.pdf", dpi=300)
        """
        from streamview.results.plot import plot_saliency

        return plot_saliency(self, ax, preset, slide)

    def _repr_png_(self) -> bytes:
        from streamview.results.display import draw_map

        overlaid = self._overlaid()
        return png(draw_map(self) if overlaid is None else overlaid[0])

    def _repr_html_(self) -> str:
        from streamview.results.display import draw_map, empty_reason, show, title_of, usual_recipe
        from streamview.results.legend import colour_bar

        recipe = usual_recipe(self)
        shown = show(self, recipe)
        reason = empty_reason(self, shown)
        facts = [
            ("target", f"{self.target}, {self.prediction.answer_for(self.target)}"),
            ("shown", f"{title_of(self, recipe.method)}, blurred by {recipe.blur_um:g} um"),
            ("maps", ", ".join(f"{method} {one.values.shape[1]} x {one.values.shape[0]} px" for method, one in self.maps.items())),
        ]
        title, overlaid = f"{title_of(self, recipe.method)} for {self.target}", self._overlaid()
        if overlaid is None:
            parts = [image(draw_map(self), title, "png")]
        else:
            legend = colour_bar(self, shown, overlaid[1], "colours", ink="#57606a")
            parts = [
                image(overlaid[0], f"{title} over the slide", "jpeg"),
                f"<div>{svg_image(legend, 'Colour bar: share of the cap')}</div>",
            ]
        notes = () if reason is None else (reason,)
        return card(self.prediction.slide_name, table(facts), *parts, notes=(*notes, *self.prediction.warnings, RESEARCH_USE))

    def _overlaid(self) -> tuple[NDArray[np.uint8], tuple[int, int, int]] | None:
        """The map over its slide and the tissue's mean colour, where the slide is still open and little has to be read."""
        from streamview.results.display import show, usual_recipe
        from streamview.results.overlay import overlay
        from streamview.slides.notebook import MOST_READ
        from streamview.slides.thumbnail import pixels_read, thumbnail

        region = self.prediction.region
        factor = min(1.0, _SMALL_PICTURE / max(region.shape))
        shape = max(1, round(region.height * factor)), max(1, round(region.width * factor))
        if self.slide is None or pixels_read(self.slide, region, shape) > MOST_READ:
            return None
        try:
            tissue = thumbnail(self.slide, region, shape)
        except SlideError:  # closed
            return None
        return overlay(tissue, self, show(self, usual_recipe(self)), self.slide.background)


def reduction_of(kind: Method, explained_by: str | None) -> str:
    """How the values of a kind of map are computed, given `Identity.method`."""
    by = "gradient" if explained_by is None else ExplanationMethod.parse(explained_by).name
    return _REDUCTIONS_BY.get(by, {}).get(kind, REDUCTIONS[kind])


def level0_mpp(prediction: Prediction, step: tuple[float, float]) -> tuple[float, float] | None:
    """Return ``(y, x)`` um/px of the slide's level 0, given the level-0 pixels per pixel of the prediction's grid; None when unknown."""
    return None if prediction.mpp is None else (prediction.mpp[0] / step[0], prediction.mpp[1] / step[1])


def halve(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return 2x block means, float32 (h, w) -> (ceil(h / 2), ceil(w / 2)).

    Blocks at the edge average the pixels they have, and blocks that hold NaN those that are known.
    """
    absent = np.isnan(values)
    if absent.any():
        known = halve((~absent).astype(np.float32))
        with np.errstate(divide="ignore", invalid="ignore"):
            return halve(np.where(absent, np.float32(0), values)) / known
    for axis in (0, 1):
        even, odd = (values[start::2] if axis == 0 else values[:, start::2] for start in (0, 1))
        mean = even.astype(np.float32)
        whole = mean[: odd.shape[0]] if axis == 0 else mean[:, : odd.shape[1]]
        whole += odd
        whole *= 0.5
        values = mean
    return values
