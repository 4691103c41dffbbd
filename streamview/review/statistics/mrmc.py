"""Many readers, many cases, two modalities: the comparison of unaided and aided reading by Obuchowski and Rockette, as unified by Hillis.

The figure of reader j in modality i is mu + modality_i + reader_j + (modality x reader)_ij + error_ij. Errors of one reader in both
modalities have covariance Cov1, those of two readers in one modality Cov2, and those of two readers in different modalities Cov3. After
Obuchowski and Rockette (1995, https://doi.org/10.1080/03610919508813243), Hillis and others (2005, https://doi.org/10.1002/sim.2024) and,
for the degrees of freedom, Hillis (2007, https://doi.org/10.1002/sim.2532).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from streamview.errors import ReviewError
from streamview.evaluation.bootstrap import Floats
from streamview.evaluation.metrics import plain
from streamview.review.reads import Modality, Read, Truth, as_classes, group_reads
from streamview.review.statistics import delong
from streamview.review.statistics.delong import Method
from streamview.review.statistics.estimate import FEWEST, Estimate, few_cases

__all__ = ["Analysis", "Comparison", "Components", "Mean", "Measure", "Random", "ReaderLine", "analyse", "compare_modalities"]

Measure = Literal["auc", "accuracy", "sensitivity", "specificity"]
Random = Literal["readers and cases", "cases", "readers"]
"""What the conclusions generalise to: other readers and cases, other cases read by these readers, or other readers of these cases."""
_ORDER: tuple[Modality, Modality] = ("unaided", "aided")


@dataclass(frozen=True, slots=True)
class Components:
    """Variance components of the model.

    Parameters
    ----------
    reader, modality_reader
        Variance of readers, and of readers' changes between modalities; an estimate may be negative.
    error
        Mean variance of a figure's error.
    cov1, cov2, cov3
        Mean covariance of errors: same reader, same modality, neither.
    """

    reader: float
    modality_reader: float
    error: float
    cov1: float
    cov2: float
    cov3: float


@dataclass(frozen=True, slots=True)
class Mean:
    """A mean over readers with its 95 % interval.

    Parameters
    ----------
    value
        The mean.
    error
        Its standard error.
    df
        Degrees of freedom of Student's t; infinite for the normal distribution.
    """

    value: float
    error: float
    df: float

    @property
    def interval(self) -> tuple[float, float]:
        """Ends of the 95 % interval."""
        reach = float(stats.t.ppf(0.975, self.df)) * self.error
        return self.value - reach, self.value + reach


@dataclass(frozen=True, slots=True)
class Analysis:
    """Test and means of the model.

    Parameters
    ----------
    unaided, aided, change
        Means over readers; the change is aided - unaided.
    statistic
        F with 1 and `df` degrees of freedom; with fixed readers chi-squared with one.
    df
        Denominator degrees of freedom; infinite with fixed readers.
    p
        P value of no difference.
    components
        None with fixed cases, which need none.
    """

    unaided: Mean
    aided: Mean
    change: Mean
    statistic: float
    df: float
    p: float
    components: Components | None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain JSON values; infinite degrees of freedom are None."""
        return dict(plain(asdict(self)))


@dataclass(frozen=True, slots=True)
class ReaderLine:
    """One reader's figure without and with the AI.

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
        """Whether the figure is lower with the AI."""
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
        """Readers whose figure is lower with the AI."""
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


def analyse(figures: ArrayLike, errors: ArrayLike, random: Random = "readers and cases") -> Analysis | None:
    """Test the difference of two modalities by Obuchowski, Rockette and Hillis.

    With J readers and mean squares MS(T) of modalities and MS(TR) of modalities by readers, the test is MS(T) / D:

    - random readers and cases: D = MS(TR) + J max(Cov2 - Cov3, 0), F with 1 and D^2 / (MS(TR)^2 / (J - 1)) degrees of freedom;
    - random cases, fixed readers: D = Var - Cov1 + (J - 1) max(Cov2 - Cov3, 0), chi-squared with one degree of freedom;
    - random readers, fixed cases: D = MS(TR), F with 1 and J - 1 degrees of freedom.

    The variance of the mean change is 2 D / J. That of a modality's mean is, with the mean square MS(R), variance and Cov2 of this modality
    alone, (MS(R) + J max(Cov2, 0)) / J, (Var + (J - 1) max(Cov2, 0)) / J, and MS(R) / J.

    Parameters
    ----------
    figures
        (2, J): rows are unaided and aided.
    errors
        (2J, 2J) covariances of the figures' errors, in the order of ``figures.ravel()``. Not used with fixed cases.
    random
        What the intervals generalise to. Random readers require two readers or more.

    Returns
    -------
    Analysis or None
        None if a standard error is 0, which tells nothing of other readers or cases.
    """
    table = np.asarray(figures, np.float64)
    count = table.shape[1]
    if count < 2 and random != "cases":
        raise ReviewError(f"{count} readers are no sample of readers; expected two or more, or random='cases'")
    blocks = np.asarray(errors, np.float64).reshape(2, count, 2, count)
    readers = table.mean(0)
    square_modality = count * float(((table.mean(1) - table.mean()) ** 2).sum())
    square_both = float(((table - table.mean(1, keepdims=True) - readers + table.mean()) ** 2).sum()) / max(count - 1, 1)
    square_reader = 2 * float(((readers - table.mean()) ** 2).sum()) / max(count - 1, 1)
    parts = _components(blocks, square_reader, square_both)
    excess = max(parts.cov2 - parts.cov3, 0.0)
    if random == "readers and cases":
        spread, df = square_both + count * excess, _freedom(square_both + count * excess, square_both, count)
    elif random == "cases":
        spread, df = parts.error - parts.cov1 + (count - 1) * excess, math.inf
    else:
        spread, df = square_both, count - 1.0
    means = [_modality_mean(table[place], blocks[place, :, place], random) for place in (0, 1)]
    if not _enough(spread, *(mean.error**2 for mean in means)):
        return None
    statistic = square_modality / spread
    change = Mean(means[1].value - means[0].value, math.sqrt(2 * spread / count), df)
    p = float(stats.chi2.sf(statistic, 1) if math.isinf(df) else stats.f.sf(statistic, 1, df))
    return Analysis(means[0], means[1], change, statistic, df, p, None if random == "readers" else parts)


def _components(blocks: Floats, square_reader: float, square_both: float) -> Components:
    """From covariances (2, J, 2, J) and the mean squares."""
    count = blocks.shape[1]
    same = np.eye(count, dtype=bool)
    within = (blocks[0, :, 0] + blocks[1, :, 1]) / 2
    across = (blocks[0, :, 1] + blocks[1, :, 0]) / 2
    error, cov1 = float(within[same].mean()), float(across[same].mean())
    cov2, cov3 = (float(part[~same].mean()) if count > 1 else 0.0 for part in (within, across))
    both = square_both - error + cov1 + max(cov2 - cov3, 0.0)
    return Components((square_reader - square_both) / 2 - cov1 + cov3, both, error, cov1, cov2, cov3)


def _modality_mean(figures: Floats, errors: Floats, random: Random) -> Mean:
    """Mean of one modality from its figures (J,) and their covariances (J, J) alone."""
    count = len(figures)
    square = float(figures.var(ddof=1)) if count > 1 else 0.0
    covariance = max(float(errors[~np.eye(count, dtype=bool)].mean()), 0.0) if count > 1 else 0.0
    if random == "readers and cases":
        spread, df = square + count * covariance, _freedom(square + count * covariance, square, count)
    elif random == "cases":
        spread, df = float(np.diag(errors).mean()) + (count - 1) * covariance, math.inf
    else:
        spread, df = square, count - 1.0
    return Mean(float(figures.mean()), math.sqrt(max(spread, 0.0) / count), df)


def _freedom(spread: float, square: float, count: int) -> float:
    """Degrees of freedom after Hillis (2007)."""
    return (count - 1) * (spread / square) ** 2 if square > 0 else math.inf


def _enough(*variances: float) -> bool:
    """Whether variances are more than what rounding leaves of zero."""
    return min(variances) > 1e-20


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
    elif random == "readers" or not _enough(variance := float(errors[0, 0] + errors[1, 1] - 2 * errors[0, 1])):
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
