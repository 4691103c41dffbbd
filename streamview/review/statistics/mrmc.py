"""The comparison of unaided and aided reading over several readers; the model behind it is in `model.py`."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from streamview.errors import ReviewError
from streamview.evaluation.bootstrap import Floats
from streamview.evaluation.metrics import plain
from streamview.review.reads import Modality, Read, Truth, as_classes, group_reads
from streamview.review.statistics import delong
from streamview.review.statistics.delong import Method
from streamview.review.statistics.estimate import FEWEST, Estimate, few_cases
from streamview.review.statistics.model import Analysis, Mean, Random, analyse, varies

__all__ = ["Comparison", "Measure", "ReaderLine", "compare_modalities"]

Measure = Literal["auc", "accuracy", "sensitivity", "specificity"]
_ORDER: tuple[Modality, Modality] = ("unaided", "aided")


@dataclass(frozen=True, slots=True)
class ReaderLine:
    """One reader's figure without and with the network.

    Parameters
    ----------
    reader
        The id.
    unaided, aided
        The figures (0..1).
    change
        aided - unaided; the interval speaks of this reader and other cases. It has none with fixed cases.
    """

    reader: str
    unaided: float
    aided: float
    change: Estimate

    @property
    def harmed(self) -> bool:
        """Whether the figure is lower with the network."""
        return self.aided < self.unaided

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain JSON values."""
        fields = {"reader": self.reader, "unaided": self.unaided, "aided": self.aided}
        return {**fields, "change": self.change.to_dict(), "harmed": self.harmed}


@dataclass(frozen=True, slots=True)
class Comparison:
    """Unaided and aided reading compared over several readers.

    Parameters
    ----------
    measure
        What is compared.
    random
        What the intervals generalise to.
    method
        How covariances of errors were estimated.
    cases, positives
        Number of cases that every reader read both ways, and of the positive ones among them.
    left_out
        Ids of read cases that were left out: of unknown truth, or not read by all both ways (for the AUC: with a score).
    lines
        One per reader.
    unaided, aided, change
        Means over readers with intervals; the change is aided - unaided.
    analysis
        Test, degrees of freedom and variance components; None where there is no interval.
    """

    measure: Measure
    random: Random
    method: Method
    cases: int
    positives: int
    left_out: tuple[str, ...]
    lines: tuple[ReaderLine, ...]
    unaided: Estimate
    aided: Estimate
    change: Estimate
    analysis: Analysis | None

    @property
    def harmed(self) -> tuple[str, ...]:
        """Readers whose figure is lower with the network."""
        return tuple(line.reader for line in self.lines if line.harmed)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain JSON values."""
        fields = {name: getattr(self, name) for name in ("measure", "random", "method", "cases", "positives", "left_out", "harmed")}
        means = {name: getattr(self, name).to_dict() for name in ("unaided", "aided", "change")}
        analysis = None if self.analysis is None else self.analysis.to_dict()
        return dict(plain({**fields, "lines": [line.to_dict() for line in self.lines], **means, "analysis": analysis}))


def compare_modalities(
    reads: Iterable[Read],
    truth: Truth,
    *,
    positive: str | Collection[str] = (),
    measure: Measure = "auc",
    random: Random = "readers and cases",
    method: Method = "delong",
) -> Comparison:
    """Compare unaided and aided reading over the cases that every reader read both ways.

    Parameters
    ----------
    reads
        One per reader, case and modality.
    truth
        True class of each case.
    positive
        The classes that count as positive; required by all measures but ``"accuracy"``.
    measure
        ``"auc"``: of the scores. ``"accuracy"``: share of verdicts that are the true class. ``"sensitivity"``, ``"specificity"``: share
        of positive verdicts of positive cases, and of other verdicts of negative cases.
    random
        What the intervals generalise to.
    method
        Estimator of the covariances of AUCs. For the shares both are the sample covariances of right answers over the number of cases.

    Raises
    ------
    ReviewError
        If no case was read both ways by all readers, a class has no case, or `positive` is missing.

    Examples
    --------
    >>> from streamview.review.reads import Read
    >>> from streamview.review.statistics import compare_modalities
    >>> truth = {f"{n:02d}": "ab"[n % 2] for n in range(40)}
    >>> reads = [
    ...     Read(reader, case, how, "ab"[(n * step) % 7 < 3 or (how == "aided" and n % 2)])
    ...     for step, reader in enumerate(("r1", "r2", "r3"), 3) for how in ("unaided", "aided") for n, case in enumerate(truth)
    ... ]
    >>> comparison = compare_modalities(reads, truth, measure="accuracy")
    >>> comparison.cases, comparison.harmed
    (40, ())
    """
    if measure != "auc" and measure not in ("accuracy", "sensitivity", "specificity"):
        raise ReviewError(f"measure {measure!r}; expected auc, accuracy, sensitivity or specificity")
    classes = as_classes(positive)
    if measure != "accuracy" and not classes:
        raise ReviewError(f"{measure} has no positive class; expected positive=, the class or classes that count as positive")
    groups = group_reads(reads)
    readers = sorted({reader for reader, _ in groups})
    columns = [groups.get((reader, modality), {}) for modality in _ORDER for reader in readers]
    cases = _complete(columns, truth, scored=measure == "auc")
    left_out = tuple(sorted({case for column in columns for case in column} - set(cases)))
    if not cases:
        raise ReviewError(f"no case of known truth was read both ways by all {len(readers)} readers; expected some")
    present = np.array([truth[case] in classes for case in cases], bool)
    figures, errors, few = _figures(columns, cases, truth, present, classes, measure, method)
    table = figures.reshape(2, len(readers))
    note = few_cases(few, "cases" if measure == "accuracy" else "cases of a class")
    if not note and random != "cases" and len(readers) < 2:
        note = "no interval: one reader; random='cases' speaks of this reader alone"
    analysis = None if note else analyse(table, errors, random)
    if analysis is None:
        note = note or "no interval: the figures do not vary"
    lines = tuple(
        _line(reader, table[:, place], errors[place :: len(readers), place :: len(readers)], len(cases), random, few)
        for place, reader in enumerate(readers)
    )
    unaided, aided, change = _estimates(analysis, table, len(cases), note)
    return Comparison(measure, random, method, len(cases), int(present.sum()), left_out, lines, unaided, aided, change, analysis)


def _complete(columns: Sequence[Mapping[str, Read]], truth: Truth, *, scored: bool) -> list[str]:
    """Cases of known truth that are in every column, with a score if required."""
    shared = sorted(set.intersection(*map(set, columns))) if columns else []
    return [
        case for case in shared if truth.get(case) is not None and not (scored and any(column[case].score is None for column in columns))
    ]


def _figures(
    columns: Sequence[Mapping[str, Read]],
    cases: Sequence[str],
    truth: Truth,
    present: NDArray[np.bool_],
    classes: frozenset[str],
    measure: Measure,
    method: Method,
) -> tuple[Floats, Floats, int]:
    """Figures (2J,) of the columns, covariances of their errors, and the number of cases of the class with the fewest."""
    if measure == "auc":
        few = min(int(present.sum()), int((~present).sum()))
        if not few:
            raise ReviewError("the cases read by all are of one class; the AUC requires positive and negative cases")
        scores = np.array([[column[case].score for case in cases] for column in columns], np.float64)
        # one case of a class has no variance
        return delong.areas(scores, present), delong.covariance(scores, present, method) if few > 1 else _unknown(columns), few
    if measure == "accuracy":
        right = np.array([[column[case].verdict == truth[case] for case in cases] for column in columns], np.float64)
    else:
        wanted = measure == "sensitivity"
        chosen = [case for case, positive in zip(cases, present, strict=True) if positive == wanted]
        if not chosen:
            raise ReviewError(f"{measure} has no {'positive' if wanted else 'negative'} case among those read by all")
        right = np.array([[(column[case].verdict in classes) == wanted for case in chosen] for column in columns], np.float64)
    count = right.shape[1]
    return right.mean(1), np.cov(right) / count if count > 1 else _unknown(columns), count


def _unknown(columns: Sequence[Mapping[str, Read]]) -> Floats:
    return np.full((len(columns), len(columns)), np.nan)


def _line(reader: str, figures: Floats, errors: Floats, cases: int, random: Random, few: int) -> ReaderLine:
    """From the figures (2,) of one reader and their covariances (2, 2)."""
    unaided, aided = map(float, figures)
    if few < FEWEST:
        change = Estimate(aided - unaided, cases, note=few_cases(few))
    elif random == "readers" or not varies(variance := float(errors[0, 0] + errors[1, 1] - 2 * errors[0, 1])):
        note = "no interval: cases are fixed" if random == "readers" else "no interval: the figures do not vary"
        change = Estimate(aided - unaided, cases, note=note)
    else:
        low, high = Mean(aided - unaided, math.sqrt(variance), math.inf).interval
        change = Estimate(aided - unaided, cases, low, high)
    return ReaderLine(reader, unaided, aided, change)


def _estimates(analysis: Analysis | None, table: Floats, cases: int, note: str) -> tuple[Estimate, Estimate, Estimate]:
    """Unaided, aided and change with their intervals, those of the means cut at 0 and 1."""
    if analysis is None:
        unaided, aided = map(float, table.mean(1))
        first, second, third = (Estimate(value, cases, note=note) for value in (unaided, aided, aided - unaided))
        return first, second, third
    low, high = analysis.change.interval
    means = [Estimate(mean.value, cases, *np.clip(mean.interval, 0, 1).tolist()) for mean in (analysis.unaided, analysis.aided)]
    return means[0], means[1], Estimate(analysis.change.value, cases, low, high)
