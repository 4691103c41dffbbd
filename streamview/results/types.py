"""The results: predictions, saliency maps, and the identity they share."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, Self

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin
from numpy.typing import NDArray

from streamview.geometry import Region
from streamview.notebook import card, image, png, table

__all__ = [
    "REDUCTIONS",
    "RESEARCH_USE",
    "Identity",
    "Method",
    "Pixels",
    "Plane",
    "Precision",
    "Prediction",
    "Saliency",
    "SaliencyMap",
    "Target",
    "halve",
    "level0_mpp",
]

Method = Literal["absolute", "signed", "evidence", "patches"]
Precision = Literal["float32", "bf16", "fp16"]
_SHOWN_OUTPUTS = 10
RESEARCH_USE = "Research use only. Not for diagnosis."
REDUCTIONS: Mapping[Method, str] = {
    "absolute": "max over channels of |d logit / d normalised input|",
    "signed": "sum over channels of (d logit / d normalised input) * (normalised input - normalised glass)",
    "evidence": "the head's linear layer applied to the last features before pooling",
    "patches": "probability (of a regression: output) of each patch, an image of its own to the network; NaN where none was computed",
}


@dataclass(frozen=True, slots=True)
class Identity:
    """Everything that determines a result's values; plan, device and versions only change its rounding.

    Parameters
    ----------
    weights_sha256, card_sha256
        Hex digests of the network's weights and of its card.
    source
        `Slide.identity` of the source.
    region
        Region in level-0 pixels.
    mpp
        ``(y, x)`` um/px of the network's grid; None when unknown.
    precision
        Precision of the streamed part: "float32", "bf16" or "fp16".
    padded
        ``(height, width)`` of the grid to which the region was zero-padded, in px; None: it was not.
    patch
        Side in px of the patches that were predicted one by one; None: one prediction for the region.
    slide_mpp
        ``(y, x)`` um/px used for the slide's level 0; None if unknown.
    slide_mpp_source
        "given" by the user, of the "file", or "unknown".
    pixel_source
        `Slide.pixel_source`: how pixels were decoded.
    background
        RGB of glass, on which transparent pixels are composited; the reference of the signed map.
    level
        ``(y, x)`` downsample of the slide's level that the grid was sampled from.
    sampling
        `streamview.slides.sampling.SAMPLING_VERSION`.

    The fields from `slide_mpp` on are None in results of earlier versions, which did not record them.
    """

    weights_sha256: str
    card_sha256: str
    source: str
    region: Region
    mpp: tuple[float, float] | None
    precision: str
    padded: tuple[int, int] | None = None
    slide_mpp: tuple[float, float] | None = None
    slide_mpp_source: str | None = None
    pixel_source: str | None = None
    background: tuple[int, int, int] | None = None
    level: tuple[float, float] | None = None
    sampling: int | None = None
    patch: int | None = None

    @property
    def key(self) -> str:
        """Hex digest of all the fields: the name of this result in every export."""
        return _digest(self.to_dict())

    @property
    def policy(self) -> str:
        """Hex digest of all the fields but the region: answers of one policy may be aggregated."""
        return _digest({name: value for name, value in self.to_dict().items() if name != "region"})

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain JSON values."""
        pairs = {name: getattr(self, name) for name in ("padded", "slide_mpp", "background", "level")}
        optional: dict[str, Any] = {name: None if value is None else list(value) for name, value in pairs.items()}
        optional |= {name: getattr(self, name) for name in ("slide_mpp_source", "pixel_source", "sampling", "patch")}
        return {
            "weights_sha256": self.weights_sha256,
            "card_sha256": self.card_sha256,
            "source": self.source,
            "region": _region_to_dict(self.region),
            "mpp": None if self.mpp is None else list(self.mpp),
            "precision": self.precision,
            # left out if None, so that keys of earlier versions do not change
            **{name: value for name, value in optional.items() if value is not None},
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Inverse of `to_dict`."""
        padded, background = values.get("padded"), values.get("background")
        return cls(
            weights_sha256=values["weights_sha256"],
            card_sha256=values["card_sha256"],
            source=values["source"],
            region=Region(**values["region"]),
            mpp=_pair(values["mpp"]),
            precision=values["precision"],
            padded=None if padded is None else (padded[0], padded[1]),
            slide_mpp=_pair(values.get("slide_mpp")),
            slide_mpp_source=values.get("slide_mpp_source"),
            pixel_source=values.get("pixel_source"),
            background=None if background is None else (background[0], background[1], background[2]),
            level=_pair(values.get("level")),
            sampling=values.get("sampling"),
            patch=values.get("patch"),
        )


@dataclass(frozen=True, slots=True)
class Target:
    """The output that a map explains.

    Parameters
    ----------
    name
        Name of the class, or ``"a-b"``; ``"a - b"`` if hyphens in class names would make it ambiguous.
    index
        Index of its logit.
    against
        Index of the subtracted logit; None: none.
    """

    name: str
    index: int
    against: int | None = None

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True, eq=False)
class Prediction:
    """A network's prediction for one region of one slide.

    Parameters
    ----------
    slide_name
        File name of the slide, without folder.
    region
        Region in level-0 pixels.
    shape
        ``(height, width)`` of the region on the network's grid, in px, without padding.
    mpp
        ``(y, x)`` um/px of that grid; None when unknown.
    task
        "class", "multilabel" or "regression".
    class_names
        K names, one per logit.
    logits
        float32 (K,): raw outputs of the network.
    identity
        Everything that determined the values.
    model_name
        Name on the model's card.
    trained
        False if the weights are random; every output says so.
    warnings
        Warnings about the prediction, one sentence each.

    Examples
    --------
    >>> import streamview
    >>> with streamview.open_slide("slide.svs") as slide:
    ...     prediction = streamview.predict(streamview.load_model("demo"), slide)
    >>> isinstance(prediction, streamview.Prediction), prediction.label, prediction.logits.shape
    (True, 'lesion', (2,))
    >>> prediction.to_dict()["region"]
    {'y': 0, 'x': 0, 'height': 512, 'width': 768, 'level': 0}
    """

    slide_name: str
    region: Region
    shape: tuple[int, int]
    mpp: tuple[float, float] | None
    task: str
    class_names: tuple[str, ...]
    logits: NDArray[np.float32]
    identity: Identity
    model_name: str
    trained: bool
    warnings: tuple[str, ...] = ()

    @property
    def probabilities(self) -> NDArray[np.float32] | None:
        """float32 (K,): softmax of the logits for a class task, sigmoid for multilabel, None for regression."""
        logits = self.logits.astype(np.float64)
        if self.task == "class":
            shares = np.exp(logits - logits.max())
            return np.asarray(shares / shares.sum(), np.float32)
        if self.task == "multilabel":
            return np.asarray(0.5 * (1 + np.tanh(logits / 2)), np.float32)
        return None

    @property
    def label(self) -> str | None:
        """Predicted class; for multilabel those at 0.5 or above, joined by "; " ("" when none is); None for regression."""
        probabilities = self.probabilities
        if probabilities is None:
            return None
        if self.task == "class":
            return self.class_names[int(np.argmax(self.logits))]
        return "; ".join(name for name, p in zip(self.class_names, probabilities, strict=True) if p >= 0.5)

    def probability_of(self, target: Target) -> float | None:
        """Probability of a class; None for regression and for a difference of logits."""
        probabilities = self.probabilities
        return None if probabilities is None or target.against is not None else float(probabilities[target.index])

    def score_of(self, target: Target) -> float:
        """The logit, or difference of logits, of a target."""
        return float(self.logits[target.index] - (0 if target.against is None else self.logits[target.against]))

    def answer_for(self, target: Target) -> str:
        """Format the probability, ``"p = 0.980"``, or without one the score, ``"score = 3.1"``."""
        probability = self.probability_of(target)
        return f"score = {self.score_of(target):.3g}" if probability is None else f"p = {probability:.3f}"

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain JSON values: the record that job folders and stored maps keep.

        Returns
        -------
        dict
            ``slide_name``, ``task``, ``class_names``, ``model_name``, ``trained`` and ``warnings`` as the attributes are;
            ``region``: ``y``, ``x``, ``height``, ``width`` and ``level``, in px of that level;
            ``shape``: height and width in px of the network's grid; ``mpp``: y and x in um/px of it, or None;
            ``logits``: K numbers; ``probabilities``: K numbers, None for regression; ``label``: as the attribute, None for regression;
            ``identity``: the fields of `Identity` that are known, and its ``key``; ``note``: that this is for research only.
        """
        probabilities = self.probabilities
        return {
            "slide_name": self.slide_name,
            "region": _region_to_dict(self.region),
            "shape": list(self.shape),
            "mpp": None if self.mpp is None else list(self.mpp),
            "task": self.task,
            "class_names": list(self.class_names),
            "logits": self.logits.tolist(),
            "probabilities": None if probabilities is None else probabilities.tolist(),
            "label": self.label,
            "identity": {**self.identity.to_dict(), "key": self.identity.key},
            "model_name": self.model_name,
            "trained": self.trained,
            "warnings": list(self.warnings),
            "note": RESEARCH_USE,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Inverse of `to_dict`; what follows from the logits is computed again."""
        height, width = values["shape"]
        return cls(
            slide_name=values["slide_name"],
            region=Region(**values["region"]),
            shape=(height, width),
            mpp=_pair(values["mpp"]),
            task=values["task"],
            class_names=tuple(values["class_names"]),
            logits=np.asarray(values["logits"], np.float32),
            identity=Identity.from_dict(values["identity"]),
            model_name=values["model_name"],
            trained=values["trained"],
            warnings=tuple(values["warnings"]),
        )

    def _repr_html_(self) -> str:
        region, network_grid = self.region, f"{self.shape[1]} x {self.shape[0]} px for the network"
        facts = [("answer", self.label)] if self.label is not None else []
        facts += [
            ("network", self.model_name if self.trained else f"{self.model_name} (untrained: its weights are random)"),
            (
                "region",
                f"x {region.x}, y {region.y}, {region.width} x {region.height} px ({network_grid})",
            ),
        ]
        return card(self.slide_name, table(facts), self._outputs(), notes=(*self.warnings, RESEARCH_USE))

    def _outputs(self) -> str:
        """The largest outputs as an HTML table."""
        probabilities = self.probabilities
        order = np.argsort(-self.logits, kind="stable") if self.task == "class" else np.arange(len(self.logits))
        rows = [
            (self.class_names[n], f"{self.logits[n]:.4g}", *(() if probabilities is None else (f"{probabilities[n]:.3f}",)))
            for n in order[:_SHOWN_OUTPUTS].tolist()
        ]
        if len(order) > _SHOWN_OUTPUTS:
            rows.append((f"... and {len(order) - _SHOWN_OUTPUTS} more", *("" for _ in rows[0][1:])))
        header = ("output", "value") if probabilities is None else ("class", "logit", "probability")
        return table(rows, header)


class Pixels(Protocol):
    """A source of a `Plane`: it has a shape, and supports indexing by two slices with step 1."""

    @property
    def shape(self) -> tuple[int, ...]:
        """``(h, w)``."""
        ...

    def __getitem__(self, key: Any) -> Any: ...


class Plane(NDArrayOperatorsMixin):
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
    """

    method: Method
    values: Plane
    step: tuple[float, float]
    origin: tuple[float, float]
    coarser: tuple[Plane, ...] = ()

    def __post_init__(self) -> None:
        values, coarser = self.values, tuple(level if isinstance(level, Plane) else Plane(level) for level in self.coarser)
        object.__setattr__(self, "values", values if isinstance(values, Plane) else Plane(values))
        object.__setattr__(self, "coarser", coarser)

    @property
    def reduction(self) -> str:
        """How the values are computed from the gradient or the features; see `REDUCTIONS`."""
        return REDUCTIONS[self.method]

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

    @property
    def mpp(self) -> tuple[float, float] | None:
        """``(y, x)`` um/px of the slide's level 0; None when unknown."""
        steps = [saliency_map.step for method, saliency_map in self.maps.items() if method != "evidence"]
        return level0_mpp(self.prediction, steps[0])

    @property
    def target_probability(self) -> float | None:
        """Probability of the target; None for regression and for a difference of logits."""
        return self.prediction.probability_of(self.target)

    @property
    def target_score(self) -> float:
        """The logit, or difference of logits, whose gradient the maps show."""
        return self.prediction.score_of(self.target)

    def _repr_png_(self) -> bytes:
        from streamview.results.display import draw_map

        return png(draw_map(self))

    def _repr_html_(self) -> str:
        from streamview.results.display import PRESETS, TITLES, default_preset, draw_map, empty_reason, show

        recipe = PRESETS[default_preset(self)]
        reason = empty_reason(self, show(self, recipe))
        facts = [
            ("target", f"{self.target}, {self.prediction.answer_for(self.target)}"),
            ("shown", f"{TITLES[recipe.method]}, blurred by {recipe.blur_um:g} um"),
            ("maps", ", ".join(f"{method} {one.values.shape[1]} x {one.values.shape[0]} px" for method, one in self.maps.items())),
        ]
        notes = () if reason is None else (reason,)
        picture = image(draw_map(self), f"{TITLES[recipe.method]} for {self.target}", "png")
        return card(self.prediction.slide_name, table(facts), picture, notes=(*notes, *self.prediction.warnings, RESEARCH_USE))


def _region_to_dict(region: Region) -> dict[str, int]:
    return {"y": region.y, "x": region.x, "height": region.height, "width": region.width, "level": region.level}


def _digest(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _pair(values: Any) -> tuple[float, float] | None:
    if values is None:
        return None
    y, x = values
    return float(y), float(x)


def level0_mpp(prediction: Prediction, step: tuple[float, float]) -> tuple[float, float] | None:
    """Return ``(y, x)`` um/px of the slide's level 0, given the level-0 pixels per pixel of the prediction's grid; None when unknown."""
    return None if prediction.mpp is None else (prediction.mpp[0] / step[0], prediction.mpp[1] / step[1])


def halve(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return 2x block means, float32 (h, w) -> (ceil(h / 2), ceil(w / 2)); blocks at the edge average the pixels they have."""
    for axis in (0, 1):
        even, odd = (values[start::2] if axis == 0 else values[:, start::2] for start in (0, 1))
        mean = even.astype(np.float32)
        whole = mean[: odd.shape[0]] if axis == 0 else mean[:, : odd.shape[1]]
        whole += odd
        whole *= 0.5
        values = mean
    return values
