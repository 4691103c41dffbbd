"""Metrics of a network's predictions, each beside the baseline reached without a network."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, logsumexp, softmax

from streamview.evaluation.bootstrap import (
    Bootstrap,
    Figure,
    Floats,
    area_under_curve,
    balanced_mean,
    format_figure,
    mean,
    rank_correlation,
    ratio,
)

if TYPE_CHECKING:
    from streamview.networks.cards import ModelCard, Task

__all__ = ["Bin", "Figure", "Metrics", "Output", "measure", "plain"]

_BINS = 10


@dataclass(frozen=True, slots=True)
class Bin:
    """Answers of similar confidence.

    Parameters
    ----------
    count
        Number of answers.
    confidence, accuracy
        Mean confidence, and share of right answers; NaN in an empty bin.
    """

    count: int
    confidence: float
    accuracy: float


@dataclass(frozen=True, slots=True)
class Output:
    """Metrics of one output of a network.

    Parameters
    ----------
    name
        Name of the class or value.
    regions
        Number of regions of the class; for regression, of all regions.
    auc
        Area under the ROC curve of this class against all others; None for regression, and for the first of two classes, whose area
        equals that of the second.
    accuracy
        Multilabel: share of regions that are right at a probability threshold of 0.5.
    spearman
        Regression: rank correlation of values and truth.
    error
        Regression: mean absolute error, in the unit of the value.
    baseline
        Multilabel: accuracy of always answering present, or always absent, whichever is more frequent. Regression: error of always
        answering the median.
    """

    name: str
    regions: int
    auc: Figure | None = None
    accuracy: Figure | None = None
    spearman: Figure | None = None
    error: Figure | None = None
    baseline: float | None = None


@dataclass(frozen=True, slots=True)
class Metrics:
    """Metrics of the predictions for some regions. Fields that do not apply to the task are None or empty.

    Parameters
    ----------
    task
        Task of the network.
    regions, patients
        Number of regions and patients.
    resamples
        Bootstrap resamples; 0: no intervals.
    loss
        Mean over regions (and outputs) of the cross-entropy, of the binary cross-entropy, or of Huber's loss with delta 1; unweighted.
    outputs
        One per output of the network.
    accuracy
        Share of right regions; multilabel: of right pairs of region and class, at 0.5.
    baseline
        Accuracy of always answering the most frequent class; multilabel: mean over the outputs.
    majority
        That class; None for multilabel.
    balanced_accuracy
        Mean over the classes that occur of the share of their regions that is right.
    confusion
        (K, K) counts: rows are true classes, columns predicted classes.
    reliability
        Ten bins of equal width over the confidence of the answer, each (low, high].
    ece
        Expected calibration error (0..1): mean over answers of the gap between their bin's confidence and accuracy.
    """

    task: Task
    regions: int
    patients: int
    resamples: int
    loss: float
    outputs: tuple[Output, ...]
    accuracy: Figure | None = None
    baseline: float | None = None
    majority: str | None = None
    balanced_accuracy: Figure | None = None
    confusion: tuple[tuple[int, ...], ...] = ()
    reliability: tuple[Bin, ...] = ()
    ece: float | None = None

    def __str__(self) -> str:
        """The metrics, one per line."""
        unit = " (95 % intervals, resampled by patient)" if self.resamples and self.patients > 1 else ""
        lines = [f"{_count(self.regions, 'region')} of {_count(self.patients, 'patient')}{unit}", f"loss {format_figure(self.loss)}"]
        if self.accuracy is not None:
            always = "the more frequent state of every class" if self.majority is None else self.majority
            lines.append(f"accuracy {self.accuracy}; always answering {always}: {format_figure(self.baseline)}")
        if self.balanced_accuracy is not None:
            lines.append(f"balanced accuracy {self.balanced_accuracy}")
        for output in self.outputs:
            if output.accuracy is not None:
                lines.append(
                    f"accuracy for {output.name} {output.accuracy}; always answering the more frequent: {format_figure(output.baseline)}"
                )
            if output.auc is not None:
                lines.append(f"AUC of {output.name} {output.auc}")
            if output.error is not None:
                lines.append(f"Spearman's rho of {output.name} {output.spearman}")
                lines.append(
                    f"mean absolute error of {output.name} {output.error}; always answering the median: {format_figure(output.baseline)}"
                )
        if self.ece is not None:
            lines.append(f"expected calibration error {format_figure(self.ece)}")
        return "\n".join(lines)

    @property
    def brief(self) -> str:
        """The main metric with its baseline, in a few words."""
        if self.accuracy is not None:
            return f"accuracy {format_figure(self.accuracy.value)} (majority {format_figure(self.baseline)})"
        errors = [f"{format_figure(o.error.value)} ({format_figure(o.baseline)})" for o in self.outputs if o.error is not None]
        return f"mean absolute error {', '.join(errors)} (of the median)"

    @property
    def shortfall(self) -> str:
        """Where the predictions are no better than the baseline, in words; empty if nowhere."""
        parts = []
        if self.accuracy is not None and self.baseline is not None and self.accuracy.value <= self.baseline:
            always = "the more frequent state of every class" if self.majority is None else self.majority
            comparison = "worse than" if self.accuracy.value < self.baseline else "no better than"
            accuracy = f"accuracy {format_figure(self.accuracy.value)}"
            parts.append(f"{accuracy}, {comparison} always answering {always} ({format_figure(self.baseline)})")
        for output in self.outputs:
            if output.error is not None and output.baseline is not None and output.error.value >= output.baseline:
                comparison = "worse than" if output.error.value > output.baseline else "no better than"
                error = f"mean absolute error of {output.name} {format_figure(output.error.value)}"
                parts.append(f"{error}, {comparison} always answering the median ({format_figure(output.baseline)})")
        return "; ".join(parts)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain JSON values; NaN becomes None."""
        return dict(plain(asdict(self)))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Inverse of `to_dict`."""
        return cls(
            **{
                **values,
                "loss": _number(values["loss"]),
                "outputs": tuple(map(_output, values["outputs"])),
                "accuracy": _figure_or_none(values["accuracy"]),
                "balanced_accuracy": _figure_or_none(values["balanced_accuracy"]),
                "confusion": tuple(map(tuple, values["confusion"])),
                "reliability": tuple(Bin(**_numbers(entry)) for entry in values["reliability"]),
            }
        )


def measure(
    logits: ArrayLike,
    targets: ArrayLike,
    patients: Sequence[str],
    card: ModelCard,
    *,
    reference: ArrayLike | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> Metrics:
    """Measure the predictions of a network.

    Parameters
    ----------
    logits
        (N, K): raw outputs for N regions.
    targets
        True classes or values, as returned by `streamview.labels.regions.find_targets`.
    patients
        N names; regions of one patient stay together in every resample.
    card
        The network's card: its task and the names of its K outputs.
    reference
        Targets of the training, from which majority and median are computed; default `targets`.
    resamples
        Bootstrap resamples; 0: no intervals.
    seed
        Seed of the bootstrap.

    Raises
    ------
    ValueError
        If there is no region, the shapes do not match, or a logit or target is not finite.
    """
    values, truth = np.asarray(logits, np.float64), np.asarray(targets)
    reference_targets = truth if reference is None else np.asarray(reference)
    names = card.class_names
    count = len(values)
    shape = (count,) if card.task == "class" else (count, len(names))
    if not count or values.shape != (count, len(names)) or truth.shape != shape or len(patients) != count:
        shapes = f"logits {values.shape}, targets {truth.shape}, {len(patients)} patients"
        raise ValueError(f"{shapes}: expected ({count or 'N'}, {len(names)}), {shape}, {count or 'N'}, of one region or more")
    if reference_targets.shape[1:] != truth.shape[1:] or not len(reference_targets):
        raise ValueError(f"reference {reference_targets.shape}: expected targets of one region or more, such as {truth.shape}")
    if not (np.isfinite(values).all() and np.isfinite(truth).all()):
        raise ValueError("logits or targets contain NaN or infinity; expected finite numbers")
    figure = Bootstrap(patients, resamples, seed)
    measure_task = {"class": _measure_classes, "multilabel": _measure_labels, "regression": _measure_values}[card.task]
    metrics = measure_task(values, truth, reference_targets, names, figure)
    return Metrics(card.task, count, figure.patients, resamples, **metrics)


def _measure_classes(
    logits: Floats, targets: NDArray[Any], reference: NDArray[Any], names: Sequence[str], figure: Bootstrap
) -> dict[str, Any]:
    count = len(names)
    answers = logits.argmax(1)
    right = answers == targets
    counts = np.bincount(targets, minlength=count)
    # two classes share one AUC, listed for the second
    scored = range(count) if count > 2 else range(1, count)
    # log-odds do not saturate as probabilities do; rounded so that equal ones tie whatever the order of summation
    odds = {index: (logits[:, index] - logsumexp(np.delete(logits, index, 1), axis=1)).round(12) for index in scored}
    areas = {index: figure(area_under_curve(score, targets == index)) for index, score in odds.items()}
    majority = int(np.bincount(reference, minlength=count).argmax())
    return {
        "loss": float((logsumexp(logits, axis=1) - logits[np.arange(len(logits)), targets]).mean()),
        "outputs": tuple(Output(name, int(counts[index]), areas.get(index)) for index, name in enumerate(names)),
        "accuracy": figure(mean(right)),
        "baseline": float((targets == majority).mean()),
        "majority": names[majority],
        "balanced_accuracy": figure(balanced_mean(right, targets)),
        "confusion": tuple(map(tuple, np.bincount(targets * count + answers, minlength=count**2).reshape(count, count).tolist())),
        **_calibration(softmax(logits, axis=1).max(1), right),
    }


def _measure_labels(
    logits: Floats, targets: NDArray[Any], reference: NDArray[Any], names: Sequence[str], figure: Bootstrap
) -> dict[str, Any]:
    present = targets > 0.5
    right = (logits >= 0) == present
    frequent = (reference > 0.5).mean(0) > 0.5
    baselines = (present == frequent).mean(0)
    outputs = [
        Output(
            name,
            int(present[:, k].sum()),
            figure(area_under_curve(logits[:, k], present[:, k])),
            figure(mean(right[:, k])),
            baseline=float(base),
        )
        for k, (name, base) in enumerate(zip(names, baselines, strict=True))
    ]
    return {
        # softplus of the logit, with the sign chosen so that right answers are negative
        "loss": float(np.logaddexp(0, np.where(present, -logits, logits)).mean()),
        "outputs": tuple(outputs),
        "accuracy": figure(mean(right.mean(1))),
        "baseline": float(baselines.mean()),
        **_calibration(expit(np.abs(logits)).ravel(), right.ravel()),
    }


def _measure_values(
    values: Floats, targets: NDArray[Any], reference: NDArray[Any], names: Sequence[str], figure: Bootstrap
) -> dict[str, Any]:
    errors = np.abs(values - targets)
    baselines = np.abs(targets - np.median(reference, 0)).mean(0)
    outputs = [
        Output(
            name,
            len(values),
            spearman=figure(rank_correlation(values[:, k], targets[:, k])),
            error=figure(mean(errors[:, k])),
            baseline=float(baselines[k]),
        )
        for k, name in enumerate(names)
    ]
    return {"loss": float(np.where(errors <= 1, errors**2 / 2, errors - 0.5).mean()), "outputs": tuple(outputs)}


def _calibration(confidence: Floats, right: NDArray[np.bool_]) -> dict[str, Any]:
    """Reliability and expected calibration error, binned (low, high] as by Guo et al. (2017, https://arxiv.org/abs/1706.04599)."""
    places = np.digitize(confidence, np.linspace(0, 1, _BINS + 1)[1:-1], right=True)
    counts = np.bincount(places, minlength=_BINS).astype(np.float64)
    confidences, shares = (ratio(np.bincount(places, values, _BINS), counts) for values in (confidence, right))
    bins = tuple(Bin(int(n), float(confident), float(share)) for n, confident, share in zip(counts, confidences, shares, strict=True))
    return {"reliability": bins, "ece": float(np.nansum(counts * np.abs(confidences - shares)) / len(right))}


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def plain(value: Any) -> Any:
    """Return a value as plain JSON: tuples become lists, numbers that are not finite None."""
    if isinstance(value, Mapping):
        return {key: plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _output(values: Mapping[str, Any]) -> Output:
    figures = {key: _figure_or_none(values[key]) for key in ("auc", "accuracy", "spearman", "error")}
    return Output(values["name"], values["regions"], **figures, baseline=values["baseline"])


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _numbers(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _number(value) for key, value in values.items()}


def _figure_or_none(values: Mapping[str, Any] | None) -> Figure | None:
    return None if values is None else Figure(**_numbers(values))
