"""Agreement between readers: percent agreement, Cohen's and Fleiss' kappa, Krippendorff's alpha.

All intervals are bootstrap percentiles over cases: the reads of one case are alike, so single reads are never resampled.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from streamview.errors import ReviewError
from streamview.evaluation.bootstrap import Floats, Statistic, mean, ratio
from streamview.review.reads import Modality, Read, group_reads
from streamview.review.statistics.estimate import Estimate, Proportion, bootstrap

__all__ = [
    "Agreement",
    "Level",
    "PairAgreement",
    "Weights",
    "cohen_kappa",
    "fleiss_kappa",
    "krippendorff_alpha",
    "measure_agreement",
]

Weights = Literal["nominal", "linear", "quadratic"]
Level = Literal["nominal", "ordinal", "interval"]
Verdicts = Mapping[str, str]
"""One reader's verdicts, by case."""


@dataclass(frozen=True, slots=True)
class PairAgreement:
    """Agreement of two readers.

    Parameters
    ----------
    first, second
        The readers.
    agreed
        Cases with equal verdicts, out of those that both read.
    kappa
        Cohen's kappa.
    """

    first: str
    second: str
    agreed: Proportion
    kappa: Estimate

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain JSON values."""
        return {"first": self.first, "second": self.second, "agreed": self.agreed.to_dict(), "kappa": self.kappa.to_dict()}


@dataclass(frozen=True, slots=True)
class Agreement:
    """Agreement of all readers in one modality.

    Parameters
    ----------
    modality
        The modality.
    readers
        Their ids.
    cases
        Number of cases with at least one read.
    pairs
        Every pair of readers.
    agreed
        Percent agreement (0..1): the mean over cases read by all of the share of pairs of readers with equal verdicts.
    fleiss
        Fleiss' kappa, from the cases read by all.
    alpha
        Krippendorff's alpha, from the cases with two reads or more.
    """

    modality: Modality
    readers: tuple[str, ...]
    cases: int
    pairs: tuple[PairAgreement, ...]
    agreed: Estimate
    fleiss: Estimate
    alpha: Estimate

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain JSON values."""
        figures = {"agreed": self.agreed.to_dict(), "fleiss": self.fleiss.to_dict(), "alpha": self.alpha.to_dict()}
        return {
            "modality": self.modality,
            "readers": list(self.readers),
            "cases": self.cases,
            "pairs": [pair.to_dict() for pair in self.pairs],
            **figures,
        }


def measure_agreement(
    reads: Iterable[Read],
    modality: Modality,
    *,
    scale: Sequence[str] = (),
    weights: Weights = "nominal",
    resamples: int = 2000,
    seed: int = 0,
) -> Agreement:
    """Measure how well the readers agree in one modality.

    Parameters
    ----------
    reads
        Reads of any modality.
    modality
        The one that is measured.
    scale
        The classes in order, from the least to the most severe; required by weights other than ``"nominal"``.
    weights
        Of Cohen's kappa. With ``"linear"`` and ``"quadratic"`` alpha is ordinal.
    resamples, seed
        Of the bootstrap; 0 resamples: no intervals.

    Raises
    ------
    ReviewError
        If fewer than two readers read in the modality, or a verdict is not on the scale.

    Examples
    --------
    >>> from streamview.review.reads import Read
    >>> from streamview.review.statistics import measure_agreement
    >>> reads = [Read(reader, f"case-{n}", "aided", "ab"[n % 2]) for reader in ("r1", "r2") for n in range(12)]
    >>> measure_agreement(reads, "aided").alpha.value
    1.0
    """
    verdicts = {
        reader: {case: read.verdict for case, read in group.items()}
        for (reader, among), group in group_reads(reads).items()
        if among == modality
    }
    if len(verdicts) < 2:
        raise ReviewError(f"{len(verdicts)} readers have {modality} reads; expected two or more to compare")
    readers, answers = tuple(verdicts), list(verdicts.values())
    options: dict[str, Any] = {"resamples": resamples, "seed": seed}
    pairs = tuple(_pair(a, b, verdicts, scale, weights, options) for a, b in combinations(readers, 2))
    shared, counts = _counts(answers, scale, complete=True)
    return Agreement(
        modality,
        readers,
        len({case for group in answers for case in group}),
        pairs,
        bootstrap(shared, mean(_agreeing(counts)), **options),
        fleiss_kappa(answers, scale=scale, **options),
        krippendorff_alpha(answers, "nominal" if weights == "nominal" else "ordinal", scale=scale, **options),
    )


def cohen_kappa(
    first: Verdicts, second: Verdicts, *, scale: Sequence[str] = (), weights: Weights = "nominal", resamples: int = 2000, seed: int = 0
) -> Estimate:
    """Compute Cohen's kappa of two readers, over the cases that both read.

    1 - sum(w O) / sum(w E), with O the table of both readers' verdicts, E the table expected from its margins, and disagreement
    weights w: 1 off the diagonal, |i - j|, or (i - j)^2. After Cohen (1960, https://doi.org/10.1177/001316446002000104; 1968,
    https://doi.org/10.1037/h0026256).

    Parameters
    ----------
    first, second
        Each reader's verdicts by case.
    scale, weights, resamples, seed
        As for `measure_agreement`.

    Raises
    ------
    ReviewError
        If weights other than ``"nominal"`` have no scale, or a verdict is not on the scale.
    """
    if weights != "nominal" and not scale:
        raise ReviewError(f"{weights} weights have no scale; expected scale=, the classes in order")
    cases = sorted(set(first) & set(second))
    places = _places(scale, [verdicts[case] for verdicts in (first, second) for case in cases])
    count, steps = len(places), np.arange(len(places))
    pairs = np.zeros((len(cases), count**2))
    pairs[np.arange(len(cases)), [places[first[case]] * count + places[second[case]] for case in cases]] = 1
    power = {"nominal": 0, "linear": 1, "quadratic": 2}[weights]
    distance = np.where(steps[:, None] == steps, 0.0, np.abs(steps[:, None] - steps, dtype=np.float64) ** power)

    def kappa(drawn: Floats) -> Floats:
        table = (drawn @ pairs).reshape(-1, count, count)
        expected = table.sum(2)[:, :, None] * table.sum(1)[:, None, :]
        return 1 - ratio(drawn.sum(1) * (distance * table).sum((1, 2)), (distance * expected).sum((1, 2)))

    return bootstrap(cases, kappa, resamples, seed)


def fleiss_kappa(readers: Sequence[Verdicts], *, scale: Sequence[str] = (), resamples: int = 2000, seed: int = 0) -> Estimate:
    """Compute Fleiss' kappa, over the cases that every reader read.

    (P - E) / (1 - E), with P the mean over cases of the share of pairs of readers that agree, and E the sum of squares of the classes'
    shares of all verdicts. After Fleiss (1971, https://doi.org/10.1037/h0031619).

    Parameters
    ----------
    readers
        Each reader's verdicts by case; two readers or more.
    scale, resamples, seed
        As for `measure_agreement`.
    """
    cases, counts = _counts(readers, scale, complete=True)
    agreeing = _agreeing(counts)

    def kappa(drawn: Floats) -> Floats:
        observed = ratio(drawn @ agreeing, drawn.sum(1))
        shares = (drawn @ counts) / np.maximum(drawn @ counts.sum(1), 1)[:, None]
        # the largest share is 1 if and only if all verdicts are equal
        varied = np.where(shares.max(1) < 1, 1 - (shares**2).sum(1), 0.0)
        return 1 - ratio(1 - observed, varied)

    return bootstrap(cases, kappa, resamples, seed)


def krippendorff_alpha(
    readers: Sequence[Mapping[str, str | float]],
    level: Level = "nominal",
    *,
    scale: Sequence[str] = (),
    resamples: int = 2000,
    seed: int = 0,
) -> Estimate:
    """Compute Krippendorff's alpha; readers may have read different cases.

    1 - D_o / D_e, the mean squared difference of two values of one case over that of any two values. A squared difference is 1
    (nominal), that of the midranks (ordinal), or that of the values (interval). After Krippendorff (2011, Computing Krippendorff's
    alpha-reliability, https://repository.upenn.edu/handle/20.500.14332/2089).

    Parameters
    ----------
    readers
        Each reader's verdicts by case; numbers, such as scores, for ``"interval"``. Cases with one read do not count.
    level
        Level of measurement.
    scale, resamples, seed
        As for `measure_agreement`; ``"ordinal"`` verdicts require the scale.

    Raises
    ------
    ReviewError
        If ordinal verdicts have no scale, a verdict is not on the scale, or an interval value is not a number.
    """
    values = [value for verdicts in readers for value in verdicts.values()]
    numeric = all(isinstance(value, int | float) for value in values)
    if level == "interval" and not numeric:
        raise ReviewError("an interval value is not a number; expected numbers, such as scores, or level='ordinal' with scale=")
    if level == "ordinal" and not scale and not numeric:
        raise ReviewError("ordinal verdicts have no scale; expected scale=, the classes in order")
    cases, counts = _counts(readers, scale, complete=False)
    chosen = counts.sum(1) >= 2
    cases, counts = [case for case, used in zip(cases, chosen, strict=True) if used], counts[chosen]
    positions = np.array(sorted(set(map(float, values)))) if level == "interval" else None
    return bootstrap(cases, _alpha(counts, level, positions), resamples, seed)


def _alpha(counts: Floats, level: Level, positions: Floats | None) -> Statistic:
    """Alpha of counts (N, K) of each case's values; the positions (K,) are those of an interval level."""
    reads = counts.sum(1)

    def alpha(drawn: Floats) -> Floats:
        totals = drawn @ counts
        number = totals.sum(1)
        if level == "nominal":
            within = (drawn * (reads**2 - (counts**2).sum(1)) / (reads - 1)).sum(1)
            between = number**2 - (totals**2).sum(1)
        else:
            places = np.broadcast_to(positions, totals.shape) if positions is not None else np.cumsum(totals, 1) - totals / 2
            # a common shift leaves the differences and saves digits
            places = places - ratio((totals * places).sum(1), number)[:, None]
            squares, sums = places**2 @ counts.T, places @ counts.T
            within = (drawn * 2 * (reads * squares - sums**2) / (reads - 1)).sum(1)
            between = np.where((totals > 0).sum(1) > 1, 2 * number * (totals * places**2).sum(1), 0.0)
        return 1 - ratio((number - 1) * within, between)

    return alpha


def _pair(
    first: str, second: str, verdicts: Mapping[str, Verdicts], scale: Sequence[str], weights: Weights, options: Mapping[str, Any]
) -> PairAgreement:
    a, b = verdicts[first], verdicts[second]
    shared = sorted(set(a) & set(b))
    agreed = Proportion(sum(a[case] == b[case] for case in shared), len(shared))
    return PairAgreement(first, second, agreed, cohen_kappa(a, b, scale=scale, weights=weights, **options))


def _agreeing(counts: Floats) -> Floats:
    """Share of the pairs of readers that agree, for each case, (N,)."""
    reads = counts.sum(1)
    return ratio((counts**2).sum(1) - reads, reads * (reads - 1))


def _counts(readers: Sequence[Mapping[str, Any]], scale: Sequence[str], *, complete: bool) -> tuple[list[str], Floats]:
    """Cases in order, read by all or by any, and how many readers gave each class, (N, K)."""
    seen = [set(verdicts) for verdicts in readers]
    cases = sorted(set.intersection(*seen) if complete else set.union(*seen)) if seen else []
    places = _places(scale, [value for verdicts in readers for value in verdicts.values()])
    counts: NDArray[np.float64] = np.zeros((len(cases), len(places)))
    for row, case in enumerate(cases):
        for verdicts in readers:
            if case in verdicts:
                counts[row, places[verdicts[case]]] += 1
    return cases, counts


def _places(scale: Sequence[str], values: Iterable[Any]) -> dict[Any, int]:
    """Place of each class on the scale, or in sorted order without one."""
    found = set(values)
    outside = sorted(map(str, found - set(scale))) if scale else []
    if outside:
        raise ReviewError(f"verdict {outside[0]!r} is not on the scale {', '.join(scale)}")
    return {name: place for place, name in enumerate(scale or sorted(found))}
