"""The model of Obuchowski and Rockette, as unified by Hillis: many readers, many cases, two modalities.

The figure of reader j in modality i is mu + modality_i + reader_j + (modality x reader)_ij + error_ij. Errors of one reader in both
modalities have covariance Cov1, those of two readers in one modality Cov2, and those of two readers in different modalities Cov3. After
Obuchowski and Rockette (1995, https://doi.org/10.1080/03610919508813243), Hillis and others (2005, https://doi.org/10.1002/sim.2024) and,
for the degrees of freedom, Hillis (2007, https://doi.org/10.1002/sim.2532).
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from streamview.errors import ReviewError
from streamview.evaluation.bootstrap import Floats
from streamview.evaluation.metrics import plain

__all__ = ["Analysis", "Components", "Mean", "Random", "analyse", "varies"]

Random = Literal["readers and cases", "cases", "readers"]
"""What the conclusions generalise to: other readers and cases, other cases read by these readers, or other readers of these cases."""


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
    if not varies(spread, *(mean.error**2 for mean in means)):
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


def varies(*variances: float) -> bool:
    """Whether variances are more than what rounding leaves of zero."""
    return min(variances) > 1e-20
