"""Aggregate the answers for a slide's regions into one for the slide, and those for a patient's slides into one for the patient.

Only answers of one network and one way of choosing regions are aggregated, of regions that contain tissue. Regions named one by one must
not overlap; those of a grid may, where the user asked for it. The user or the card states the method:

- ``mean of logits``, for regression the mean of the outputs: the default;
- ``mean of probabilities``;
- ``maximum`` of each output, for multilabel and regression;
- ``maximum of CLASS``, for classes: the answer for the region where that class is likeliest;
- ``noisy-or`` of each output, for multilabel; ``noisy-or of CLASS``, for classes: ``1 - prod(1 - p)``, the probability that at least one
  region has the class if regions were independent; the other classes share the rest as in the mean of their probabilities;
- ``top-K``, for multilabel and regression: the mean of the K highest probabilities (outputs) of each output; ``top-K of CLASS``, for
  classes: the mean of the probabilities over the K regions where that class is likeliest.

Every region has the same weight, whatever its size, and so has every slide of a patient.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from streamview.errors import ModelError
from streamview.geometry import Region
from streamview.jobs.records import RegionResult, SlideRecord, SlideWork
from streamview.results import Prediction

__all__ = ["Aggregate", "Group", "aggregate", "aggregate_slides", "by_policy", "find_aggregation"]

_DEFAULT = "mean of logits"
_METHODS = "mean of logits, mean of probabilities, maximum [of CLASS], noisy-or [of CLASS], top-K [of CLASS]"
_Logits = NDArray[np.float64]
_Combine = Callable[[_Logits], _Logits]


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """Answers for a slide that are aggregated together.

    Parameters
    ----------
    results
        Of one network and one way of choosing regions.
    work
        The run's work that they are the answer of; None for regions named one by one.
    """

    results: tuple[RegionResult, ...]
    work: SlideWork | None = None

    @property
    def policy(self) -> str:
        """How the regions were chosen, in words."""
        return "regions named by the user" if self.work is None or self.work.policy is None else self.work.policy


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


def by_policy(record: SlideRecord) -> list[Group]:
    """Group a slide's answers that are not superseded, oldest first: those of one work, and the others by network and settings."""
    valid = {result.prediction.identity.key: result for result in record.regions if record.superseded(result) is None}
    works = {
        (work.regions, work.policy, work.aggregation): work for work in record.completed if work.policy is not None
    }  # predicted, then explained
    groups = [Group(tuple(valid[key] for key in work.regions), work) for work in works.values() if valid.keys() >= set(work.regions)]
    grouped = {result.prediction.identity.key for group in groups for result in group.results}
    named: dict[tuple[object, ...], list[RegionResult]] = {}
    for key, result in valid.items():
        if key not in grouped:
            # the identity of earlier versions does not contain the slide's mpp
            named.setdefault((result.prediction.identity.policy, result.mpp), []).append(result)
    order = {id(result): number for number, result in enumerate(record.regions)}
    groups += [Group(tuple(results)) for results in named.values()]
    return sorted(groups, key=lambda group: min(order[id(result)] for result in group.results))


def aggregate(group: Group) -> Aggregate:
    """Aggregate the answers of a group; their order does not matter.

    Parameters
    ----------
    group
        Of one answer or more.
    """
    results, work = group.results, group.work
    counted = tuple(result for result in results if result.holds_tissue)
    left_out = tuple(result for result in results if not result.holds_tissue)
    overlap = None if work is not None and work.overlapping else _overlap([result.prediction.region for result in counted])
    covered = _covered(counted or left_out) if overlap is None else None
    if work is not None and work.tissue_covered is not None:
        covered = work.tissue_covered
    stated = results[-1].aggregation if work is None else work.aggregation
    method = _parse(stated, results[-1].prediction)
    reason = None
    if not counted:
        reason = "no region contains tissue"
    elif overlap is not None:
        first, second = overlap
        reason = (
            f"the regions {first} and {second} (X,Y,WIDTH,HEIGHT) overlap: remove one with "
            "streamview jobs rm JOB --slide NAME --region X,Y,WIDTH,HEIGHT"
        )
    elif method is None and len(counted) > 1:
        reason = f"the card says {stated!r}, which is none of {_METHODS} that fits {results[-1].prediction.task}"
    if reason is not None:
        return Aggregate(None, "", reason, counted, left_out, covered)
    if len(counted) == 1:
        words, prediction = "answer for the one region", counted[0].prediction
    else:
        assert method is not None
        name, combine = method
        ordered = sorted(counted, key=lambda result: result.prediction.region)
        logits = combine(np.array([result.prediction.logits for result in ordered], np.float64))
        words = f"{name} over {len(counted)} regions, unweighted"
        prediction = replace(counted[-1].prediction, logits=np.asarray(logits, np.float32))
    if left_out:
        words += f"; {len(left_out)} without tissue left out"
    return Aggregate(prediction, words, None, counted, left_out, covered)


def aggregate_slides(predictions: Sequence[Prediction], stated: str | None) -> tuple[Prediction | None, str]:
    """Aggregate the answers for a patient's slides by the method of the regions; their order does not matter.

    Parameters
    ----------
    predictions
        One per slide, of one network.
    stated
        The method; None for the default.

    Returns
    -------
    tuple
        The patient's answer and the method in words; None and why there is none.
    """
    if len(predictions) == 1:
        return predictions[0], "answer for the one slide"
    if len({(prediction.model_name, prediction.class_names, prediction.task) for prediction in predictions}) > 1:
        return None, "the slides were answered by different networks"
    method = _parse(stated, predictions[0])
    if method is None:
        return None, f"the card says {stated!r}, which is none of {_METHODS} that fits {predictions[0].task}"
    rows = sorted(prediction.logits.tolist() for prediction in predictions)
    logits = method[1](np.array(rows, np.float64))
    return replace(predictions[-1], logits=np.asarray(logits, np.float32)), f"{method[0]} over {len(predictions)} slides, unweighted"


def find_aggregation(stated: str, task: str, class_names: Sequence[str]) -> str:
    """Return the method that the user states, as it is recorded.

    Raises
    ------
    ModelError
        If there is none of this name for such a network.
    """
    if _method(stated, task, class_names) is None:
        named = f"; for classes name the one that counts, such as 'maximum of {class_names[-1]}'" if task == "class" else ""
        raise ModelError(f"--aggregation {stated}: is none of {_METHODS} that fits a network of the task {task}{named}")
    return " ".join(stated.split())


def _covered(results: Sequence[RegionResult]) -> float | None:
    """Share of the tissue inside regions that do not overlap; None if it was not measured for one of them."""
    measured = [result.tissue_covered for result in results if result.tissue_covered is not None]
    return min(1.0, math.fsum(measured)) if len(measured) == len(results) else None


def _parse(stated: str | None, prediction: Prediction) -> tuple[str, _Combine] | None:
    return _method(stated or _DEFAULT, prediction.task, prediction.class_names)


def _method(stated: str, task: str, class_names: Sequence[str]) -> tuple[str, _Combine] | None:
    """Name and function, from logits (n, K) to (K,), of an aggregation; None if it is unknown or does not fit."""
    text = " ".join(stated.split())
    words = text.lower()
    if words in ("mean", _DEFAULT, "mean of the logits", "mean of outputs"):
        return "mean of outputs" if task == "regression" else _DEFAULT, _mean
    if words in ("mean of probabilities", "mean of the probabilities") and task != "regression":
        return "mean of probabilities", _mean_softmax if task == "class" else _mean_sigmoid
    parts = re.fullmatch(r"(maximum|max|noisy-or|top-([1-9][0-9]{0,5}))(?: of (.+))?", text, re.IGNORECASE)
    names = [" ".join(name.split()) for name in class_names]
    if parts is None or (task == "class") != (parts[3] is not None) or (parts[3] is not None and parts[3] not in names):
        return None
    kind, count, index = parts[1].lower(), int(parts[2] or 0), names.index(parts[3]) if parts[3] else 0
    if kind in ("maximum", "max"):
        if task == "class":
            return f"maximum of {class_names[index]}", lambda logits: _likeliest(logits, index)
        return "maximum of each output", lambda logits: logits.max(axis=0)
    if kind == "noisy-or":
        if task == "class":
            return f"noisy-or of {class_names[index]}", lambda logits: _noisy_or_class(logits, index)
        return None if task == "regression" else ("noisy-or of each output", _noisy_or)
    if task == "class":
        return f"{kind} of {class_names[index]}: mean of probabilities where it is likeliest", lambda logits: _top_class(
            logits, count, index
        )
    mean = _mean if task == "regression" else _mean_sigmoid
    return f"{kind}: mean of the highest of each output", lambda logits: mean(-np.sort(-logits, axis=0)[:count])


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


def _odds(logits: _Logits, index: int) -> _Logits:
    """Log odds (n,) of a class."""
    others = np.delete(logits, index, axis=1)
    odds: _Logits = logits[:, index] - (np.logaddexp.reduce(others, axis=1) if others.shape[1] else 0)
    return odds


def _likeliest(logits: _Logits, index: int) -> _Logits:
    """The row with the highest odds of a class."""
    row: _Logits = logits[int(np.argmax(_odds(logits, index)))]
    return row


def _top_class(logits: _Logits, count: int, index: int) -> _Logits:
    """Logits of the mean softmax of the rows with the highest odds of a class."""
    return _mean_softmax(logits[np.argsort(-_odds(logits, index), kind="stable")[:count]])


def _noisy_or(logits: _Logits) -> _Logits:
    """Logits of ``1 - prod(1 - sigmoid)`` of each column."""
    return _logit_of_any(np.array([math.fsum(column) for column in -np.logaddexp(0, logits).T]))


def _noisy_or_class(logits: _Logits, index: int) -> _Logits:
    """Logits whose softmax gives a class the probability of at least one; the other classes share the rest as in their mean."""
    absent = np.array([math.fsum(-np.logaddexp(0, _odds(logits, index)))])
    combined = _mean_softmax(logits)
    if len(combined) > 1:
        combined -= np.logaddexp.reduce(np.delete(combined, index))
    combined[index] = _logit_of_any(absent)[0]
    return combined


def _logit_of_any(absent: _Logits) -> _Logits:
    """Log odds of at least one, given the logarithm of the probability of none."""
    safe = np.minimum(absent, -1e-300)
    present: _Logits = np.where(safe > -math.log(2), np.log(-np.expm1(safe)), np.log1p(-np.exp(safe)))
    return present - absent


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
