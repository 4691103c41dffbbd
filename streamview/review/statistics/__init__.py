"""Statistics of review sessions: pure functions over reads and the truth.

Every result is a frozen value with `to_dict`, plain JSON. Intervals are of 95 %; with fewer than ten cases there are counts instead.
"""

from streamview.review.statistics.accuracy import ReaderAccuracy, ReadingTime, measure_accuracy, measure_auc, measure_times
from streamview.review.statistics.agreement import (
    Agreement,
    PairAgreement,
    cohen_kappa,
    fleiss_kappa,
    krippendorff_alpha,
    measure_agreement,
)
from streamview.review.statistics.change import AiUse, Change, exact_mcnemar, measure_change, pool_changes
from streamview.review.statistics.estimate import Estimate, Proportion
from streamview.review.statistics.imrmc import format_imrmc, parse_imrmc
from streamview.review.statistics.model import Analysis, analyse
from streamview.review.statistics.mrmc import Comparison, ReaderLine, compare_modalities

__all__ = [
    "Agreement",
    "AiUse",
    "Analysis",
    "Change",
    "Comparison",
    "Estimate",
    "PairAgreement",
    "Proportion",
    "ReaderAccuracy",
    "ReaderLine",
    "ReadingTime",
    "analyse",
    "cohen_kappa",
    "compare_modalities",
    "exact_mcnemar",
    "fleiss_kappa",
    "format_imrmc",
    "krippendorff_alpha",
    "measure_accuracy",
    "measure_agreement",
    "measure_auc",
    "measure_change",
    "measure_times",
    "parse_imrmc",
    "pool_changes",
]
