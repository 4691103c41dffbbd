"""What a network answered for a region, what the answer is about, and the identity that decides its values."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from streamview.geometry import Region
from streamview.notebook import card, table

__all__ = ["RESEARCH_USE", "Identity", "Precision", "Prediction", "Target"]

Precision = Literal["float32", "bf16", "fp16"]
_SHOWN_OUTPUTS = 10
RESEARCH_USE = "Research use only. Not for diagnosis."


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
    parts_sha256
        Hash of the keys of the regions that a map was stitched of; None: it is of one region.
    glass
        "flat" where the slide's glass had its background colour (`streamview.slides.flat`); None: as it was scanned.
    method
        How the prediction was explained, as `ExplanationMethod` writes it; None: by the gradient, or not at all.

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
    parts_sha256: str | None = None
    method: str | None = None
    glass: str | None = None

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
        optional |= {
            name: getattr(self, name)
            for name in ("slide_mpp_source", "pixel_source", "sampling", "patch", "parts_sha256", "method", "glass")
        }
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
            parts_sha256=values.get("parts_sha256"),
            method=values.get("method"),
            glass=values.get("glass"),
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
    positive
        The classes of interest that the model's card names; empty: it names none.

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
    positive: tuple[str, ...] = ()

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

    @property
    def answer(self) -> str:
        """The answer in one line: ``"lesion (p = 0.980)"``, every present label of multilabel, or the values of a regression."""
        probabilities = self.probabilities
        if probabilities is None:
            return ", ".join(f"{name} = {logit:.4g}" for name, logit in zip(self.class_names, self.logits, strict=True))
        if self.task == "class":
            return f"{self.label} (p = {probabilities.max():.3f})"
        return self.label or "none of the classes"

    @property
    def usual_target(self) -> Target:
        """What maps explain unless another target is named.

        The class of interest with the largest logit; where the card names none, the output with the largest logit (regression: the first).
        """
        indices = [self.class_names.index(name) for name in self.positive] or list(
            range(1 if self.task == "regression" else len(self.logits))
        )
        index = max(indices, key=lambda index: float(self.logits[index]))
        return Target(self.class_names[index], index)

    def is_of_interest(self, target: Target) -> bool:
        """Whether a map of a target shows what is looked for: evidence for a class of interest, or for any class if the card names none."""
        return not self.positive or self.class_names[target.index] in self.positive

    def lacks(self, target: Target) -> float:
        """How far a target's logit is below the answer's (multilabel: below 0); 0 where it is the answer, and for regression."""
        if self.task == "regression":
            return 0.0
        needed = 0.0 if self.task == "multilabel" else float(self.logits.max() if target.against is None else 0)
        return max(0.0, needed - self.score_of(target))

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
            ``slide_name``, ``task``, ``class_names``, ``model_name``, ``trained``, ``warnings`` and ``positive`` as the attributes are;
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
            "positive": list(self.positive),
            "note": RESEARCH_USE,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Inverse of `to_dict`; what follows from the logits is recomputed."""
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
            positive=tuple(values.get("positive", ())),
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
        """The largest outputs as an HTML table, with their probabilities as bars."""
        probabilities = self.probabilities
        order = np.argsort(-self.logits, kind="stable") if self.task == "class" else np.arange(len(self.logits))
        rows = [
            (self.class_names[n], f"{self.logits[n]:.4g}", *(() if probabilities is None else (f"{probabilities[n]:.3f}",)))
            for n in order[:_SHOWN_OUTPUTS].tolist()
        ]
        if len(order) > _SHOWN_OUTPUTS:
            rows.append((f"... and {len(order) - _SHOWN_OUTPUTS} more", *("" for _ in rows[0][1:])))
        if probabilities is None:
            return table(rows, ("output", "value"))
        return table(rows, ("class", "logit", "probability", ""), probabilities[order[:_SHOWN_OUTPUTS]].tolist())


def _region_to_dict(region: Region) -> dict[str, int]:
    return {"y": region.y, "x": region.x, "height": region.height, "width": region.width, "level": region.level}


def _digest(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _pair(values: Any) -> tuple[float, float] | None:
    if values is None:
        return None
    y, x = values
    return float(y), float(x)
