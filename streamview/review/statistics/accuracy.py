"""Accuracy and reading time of each reader, with and without the network."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from streamview.review.reads import Modality, Read, Truth, as_classes, group_reads
from streamview.review.statistics import delong
from streamview.review.statistics.estimate import FEWEST, NORMAL, Estimate, Proportion, few_cases

__all__ = ["ReaderAccuracy", "ReadingTime", "measure_accuracy", "measure_auc", "measure_times"]


@dataclass(frozen=True, slots=True)
class ReadingTime:
    """Reading times of one modality.

    Parameters
    ----------
    modality
        The modality.
    reads
        Number of reads with a time.
    median, lower, upper
        Median and quartiles in seconds; None without times.
    """

    modality: Modality
    reads: int
    median: float | None = None
    lower: float | None = None
    upper: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain JSON values; times in seconds."""
        return {"modality": self.modality, "reads": self.reads, "median": self.median, "lower": self.lower, "upper": self.upper}


@dataclass(frozen=True, slots=True)
class ReaderAccuracy:
    """Accuracy of one reader in one modality, over the read cases of known truth.

    Parameters
    ----------
    reader, modality
        Who, and how.
    sensitivity
        Positive cases with a positive verdict, out of the positive cases.
    specificity
        Negative cases without a positive verdict, out of the negative cases.
    auc
        Area under the ROC curve of the scores; undefined where a class or all scores are missing.
    time
        Reading times, also of cases of unknown truth.
    """

    reader: str
    modality: Modality
    sensitivity: Proportion
    specificity: Proportion
    auc: Estimate
    time: ReadingTime

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain JSON values."""
        figures = {name: getattr(self, name).to_dict() for name in ("sensitivity", "specificity", "auc", "time")}
        return {"reader": self.reader, "modality": self.modality, **figures}


def measure_accuracy(reads: Iterable[Read], truth: Truth, positive: str | Collection[str]) -> tuple[ReaderAccuracy, ...]:
    """Measure each reader's accuracy in each modality.

    Sensitivity and specificity have Wilson intervals, the AUC has DeLong's. A class with fewer than ten cases has counts instead.

    Parameters
    ----------
    reads
        One per reader, case and modality.
    truth
        True class of each case; cases without one do not count.
    positive
        The classes that count as positive. Every other verdict counts as negative, one such as "unsure" too.

    Examples
    --------
    >>> from streamview.review.reads import Read
    >>> from streamview.review.statistics import measure_accuracy
    >>> reads = [Read("r1", str(n), "unaided", "lesion" if n < 9 else "normal") for n in range(24)]
    >>> (result,) = measure_accuracy(reads, {str(n): "lesion" if n < 12 else "normal" for n in range(24)}, "lesion")
    >>> print(result.sensitivity)
    0.750 (0.468 to 0.911)
    """
    return tuple(_measure(reader, modality, group, truth, as_classes(positive)) for (reader, modality), group in group_reads(reads).items())


def measure_auc(scores: Mapping[str, float], truth: Truth, positive: str | Collection[str]) -> Estimate:
    """Area under the ROC curve with DeLong's interval: value +- 1.96 standard errors, cut at 0 and 1.

    Parameters
    ----------
    scores
        By case; higher means more likely positive.
    truth, positive
        As for `measure_accuracy`.
    """
    classes = as_classes(positive)
    cases = [case for case in sorted(scores) if truth.get(case) is not None]
    present = np.array([truth[case] in classes for case in cases], bool)
    few = min(int(present.sum()), int((~present).sum()))
    if not few:
        return Estimate(None, len(cases), note="undefined: no positive or no negative case has a score")
    values = np.array([[scores[case] for case in cases]], np.float64)
    area = float(delong.areas(values, present)[0])
    if few < FEWEST:
        return Estimate(area, len(cases), note=few_cases(few, "cases of a class"))
    error = float(delong.covariance(values, present)[0, 0]) ** 0.5
    if not error:
        return Estimate(area, len(cases), note="no interval: the scores separate the classes, or do not vary")
    return Estimate(area, len(cases), max(0.0, area - NORMAL * error), min(1.0, area + NORMAL * error))


def measure_times(reads: Iterable[Read]) -> tuple[ReadingTime, ...]:
    """Median and quartiles of the reading times of all readers, for each modality.

    Parameters
    ----------
    reads
        Reads; those without a time do not count.
    """
    by_modality: dict[Modality, list[Read]] = {"unaided": [], "aided": []}
    for read in reads:
        by_modality[read.modality].append(read)
    return tuple(_time(modality, group) for modality, group in by_modality.items())


def _measure(reader: str, modality: Modality, group: Mapping[str, Read], truth: Truth, positive: frozenset[str]) -> ReaderAccuracy:
    answers = [(truth[case] in positive, read.verdict in positive) for case, read in group.items() if truth.get(case) is not None]
    positives = [answered for present, answered in answers if present]
    negatives = [answered for present, answered in answers if not present]
    scores = {case: read.score for case, read in group.items() if read.score is not None}
    return ReaderAccuracy(
        reader,
        modality,
        Proportion(sum(positives), len(positives)),
        Proportion(len(negatives) - sum(negatives), len(negatives)),
        measure_auc(scores, truth, positive),
        _time(modality, group.values()),
    )


def _time(modality: Modality, reads: Iterable[Read]) -> ReadingTime:
    seconds = [read.seconds for read in reads if read.seconds is not None]
    if not seconds:
        return ReadingTime(modality, 0)
    lower, median, upper = map(float, np.quantile(seconds, (0.25, 0.5, 0.75)))
    return ReadingTime(modality, len(seconds), median, lower, upper)
