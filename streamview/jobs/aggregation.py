"""Aggregate the answers for a slide's regions into one for the slide.

Only answers of one policy are aggregated (`streamview.results.Identity.policy`: everything equal but the region), of regions that contain
tissue and do not overlap. The card's ``aggregation`` states the method:

- ``mean of logits``, for regression the mean of the outputs: the default;
- ``mean of probabilities``;
- ``maximum`` of each output, for multilabel and regression;
- ``maximum of CLASS``, for classes: the answer for the region where that class is likeliest.

Every region has the same weight, whatever its size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from streamview.geometry import Region
from streamview.jobs.records import RegionResult, SlideRecord
from streamview.results import Prediction

__all__ = ["Aggregate", "aggregate", "by_policy"]

_DEFAULT = "mean of logits"
_Logits = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Aggregate:
    """The aggregated answer of one policy for a slide.

    Parameters
    ----------
    prediction
        The slide's answer; None if it cannot be aggregated.
    method
        The method, in words; empty if there is no answer.
    reason
        Why there is no answer; None if there is one.
    regions
        Results that count.
    without_tissue
        Results left out for lack of tissue.
    tissue_covered
        Share (0..1) of the slide's tissue inside the regions that count; None if not measured.
    """

    prediction: Prediction | None
    method: str
    reason: str | None
    regions: tuple[RegionResult, ...]
    without_tissue: tuple[RegionResult, ...]
    tissue_covered: float | None


def by_policy(record: SlideRecord) -> list[tuple[RegionResult, ...]]:
    """Group a slide's answers that are not superseded by policy, oldest first."""
    groups: dict[tuple[object, ...], list[RegionResult]] = {}
    for result in record.regions:
        if record.superseded(result) is None:
            # the identity of earlier versions does not contain the slide's mpp
            groups.setdefault((result.prediction.identity.policy, result.mpp), []).append(result)
    return [tuple(results) for results in groups.values()]


def aggregate(results: Sequence[RegionResult]) -> Aggregate:
    """Aggregate the answers of one policy; their order does not matter.

    Parameters
    ----------
    results
        One or more, of one slide and one policy.
    """
    counted = tuple(result for result in results if result.holds_tissue)
    left_out = tuple(result for result in results if not result.holds_tissue)
    shares = [result.tissue_covered for result in counted or left_out]
    measured = [share for share in shares if share is not None]
    overlap = _overlap([result.prediction.region for result in counted])
    covered = min(1.0, math.fsum(measured)) if len(measured) == len(shares) and overlap is None else None
    stated = results[-1].aggregation
    parsed = _parse(stated, results[-1].prediction)
    reason = None
    if not counted:
        reason = "no region contains tissue"
    elif overlap is not None:
        first, second = overlap
        reason = (
            f"the regions {first} and {second} (X,Y,WIDTH,HEIGHT) overlap: remove one with "
            "streamview jobs rm JOB --slide NAME --region X,Y,WIDTH,HEIGHT"
        )
    elif parsed is None and len(counted) > 1:
        known_methods = "mean of logits, mean of probabilities, maximum, maximum of CLASS"
        reason = f"the card says {stated!r}, which is none of {known_methods} that fits {results[-1].prediction.task}"
    if reason is not None:
        return Aggregate(None, "", reason, counted, left_out, covered)
    if len(counted) == 1:
        method, prediction = "answer for the one region", counted[0].prediction
    else:
        assert parsed is not None
        name, combine = parsed
        ordered = sorted(counted, key=lambda result: result.prediction.region)
        logits = combine(np.array([result.prediction.logits for result in ordered], np.float64))
        method = f"{name} over {len(counted)} regions, unweighted"
        prediction = replace(counted[-1].prediction, logits=np.asarray(logits, np.float32))
    if left_out:
        method += f"; {len(left_out)} without tissue left out"
    return Aggregate(prediction, method, None, counted, left_out, covered)


def _parse(stated: str | None, prediction: Prediction) -> tuple[str, Callable[[_Logits], _Logits]] | None:
    """Name and function, from logits (n, K) to (K,), of a card's aggregation; None if it is unknown."""
    text = " ".join((stated or _DEFAULT).split())
    words = text.lower()
    if words in ("mean", _DEFAULT, "mean of the logits", "mean of outputs"):
        return "mean of outputs" if prediction.task == "regression" else _DEFAULT, _mean
    if words in ("mean of probabilities", "mean of the probabilities") and prediction.task != "regression":
        return "mean of probabilities", _mean_softmax if prediction.task == "class" else _mean_sigmoid
    if words in ("maximum", "max") and prediction.task != "class":
        return "maximum of each output", lambda logits: logits.max(axis=0)
    names = [" ".join(name.split()) for name in prediction.class_names]
    index = names.index(text[len("maximum of ") :]) if text[len("maximum of ") :] in names else None
    if words.startswith("maximum of ") and index is not None and prediction.task == "class":
        return f"maximum of {prediction.class_names[index]}", lambda logits: _likeliest(logits, index)
    return None


def _mean(logits: _Logits) -> _Logits:
    return np.array([math.fsum(column) / len(column) for column in logits.T])


def _mean_softmax(logits: _Logits) -> _Logits:
    """Logits whose softmax is the mean of the softmaxes."""
    mean: _Logits = np.logaddexp.reduce(logits - np.logaddexp.reduce(logits, axis=1, keepdims=True), axis=0) - math.log(len(logits))
    return mean


def _mean_sigmoid(logits: _Logits) -> _Logits:
    """Logits whose sigmoid is the mean of the sigmoids."""
    present, absent = -np.logaddexp(0, -logits), -np.logaddexp(0, logits)
    mean: _Logits = np.logaddexp.reduce(present, axis=0) - np.logaddexp.reduce(absent, axis=0)
    return mean


def _likeliest(logits: _Logits, index: int) -> _Logits:
    """The row with the highest odds of a class."""
    others = np.delete(logits, index, axis=1)
    odds = logits[:, index] - (np.logaddexp.reduce(others, axis=1) if others.shape[1] else 0)
    row: _Logits = logits[int(np.argmax(odds))]
    return row


def _overlap(regions: Sequence[Region]) -> tuple[Region, Region] | None:
    """The first two regions that share a pixel."""
    ordered = sorted(regions)
    tops, lefts, bottoms, rights = (np.array([getattr(region, key) for region in ordered]) for key in ("y", "x", "y_stop", "x_stop"))
    for number, region in enumerate(ordered):
        later = slice(number + 1, int(np.searchsorted(tops, region.y_stop)))
        shared = (bottoms[later] > region.y) & (lefts[later] < region.x_stop) & (rights[later] > region.x)
        if shared.any():
            return region, ordered[number + 1 + int(np.argmax(shared))]
    return None
