"""Accuracy of readers: Wilson's interval against statsmodels, DeLong's against pairs counted one by one, and coverage."""

import json
import math

import numpy as np
import pytest
from scipy.stats import binom
from sklearn.metrics import roc_auc_score
from statsmodels.stats.proportion import proportion_confint

from streamview.review.reads import Read
from streamview.review.statistics import Proportion, delong, measure_accuracy, measure_auc, measure_times
from streamview.review.statistics.estimate import wilson


@pytest.mark.parametrize("whole", [1, 10, 37, 400])
def test_wilsons_interval_is_that_of_statsmodels(whole):
    for part in range(whole + 1):
        assert wilson(part, whole) == pytest.approx(proportion_confint(part, whole, method="wilson"), abs=1e-9)


def test_wilsons_interval_covers():
    # exact, from the probability of every count
    shares = np.linspace(0.05, 0.95, 91)
    for whole in (10, 20, 50, 200):
        ends = np.array([wilson(part, whole) for part in range(whole + 1)])
        inside = (ends[:, :1] <= shares) & (shares <= ends[:, 1:])
        coverage = (binom.pmf(np.arange(whole + 1)[:, None], whole, shares) * inside).sum(0)
        assert 0.94 < coverage.mean() < 0.97
        assert coverage.min() > 0.83


def kernel(positives, negatives):
    return (positives[:, None] > negatives).astype(float) + 0.5 * (positives[:, None] == negatives)


@pytest.mark.parametrize("seed", range(2))
def test_areas_and_covariances_are_those_of_pairs_counted_one_by_one(seed):
    rng = np.random.default_rng(seed)
    positive = rng.permutation(np.arange(40) < 15)
    scores = rng.integers(0, 6, (3, 40)).astype(float) + positive
    pairs = [kernel(row[positive], row[~positive]) for row in scores]
    assert delong.areas(scores, positive) == pytest.approx([roc_auc_score(positive, row) for row in scores], abs=1e-12)
    expected = np.cov([pair.mean(1) for pair in pairs]) / 15 + np.cov([pair.mean(0) for pair in pairs]) / 25
    assert delong.covariance(scores, positive) == pytest.approx(expected, abs=1e-12)
    left = np.array([[roc_auc_score(np.delete(positive, n), np.delete(row, n)) for n in range(40)] for row in scores])
    deviations = left - left.mean(1, keepdims=True)
    assert delong.covariance(scores, positive, "jackknife") == pytest.approx(39 / 40 * deviations @ deviations.T, abs=1e-12)


def reads(positives, negatives, modality="unaided"):
    for n in range(positives + negatives):
        present = n < positives
        yield Read("r1", f"c{n:03d}", modality, "lesion" if present == (n % 4 > 0) else "unsure", float(present + n % 3), 10.0 + n)


def truth(positives, negatives):
    return {f"c{n:03d}": "lesion" if n < positives else "normal" for n in range(positives + negatives)} | {"other": None}


def test_a_reader_is_measured_over_cases_of_known_truth():
    known = truth(12, 20)
    (result,) = measure_accuracy([*reads(12, 20), Read("r1", "other", "unaided", "lesion", 3.0)], known, "lesion")
    assert (result.sensitivity, result.specificity) == (Proportion(9, 12), Proportion(15, 20))
    scores = {read.case: read.score for read in reads(12, 20)}
    assert result.auc.value == pytest.approx(roc_auc_score([known[case] == "lesion" for case in scores], list(scores.values())))
    assert 0 < result.auc.low < result.auc.value < result.auc.high <= 1
    assert result.auc.cases == 32
    assert (result.time.reads, result.time.lower, result.time.median, result.time.upper) == (32, 17.75, 25.5, 33.25)
    assert json.loads(json.dumps(result.to_dict(), allow_nan=False)) == result.to_dict()


def test_below_ten_cases_of_a_class_there_are_counts():
    (result,) = measure_accuracy(reads(9, 20), truth(9, 20), {"lesion"})
    assert str(result.sensitivity) == "6 of 9; no interval: fewer than 10 cases"
    assert str(result.specificity).startswith("0.750 (")
    assert (result.auc.low, result.auc.note) == (None, "no interval: fewer than 10 cases of a class")
    assert result.sensitivity.to_dict()["low"] is None
    (none,) = measure_accuracy(reads(0, 20), truth(0, 20), "lesion")
    assert (none.sensitivity.value, none.auc.value) == (None, None)
    assert str(none.auc).startswith("undefined")


def test_separated_scores_have_no_interval():
    result = measure_auc({case: float(name == "lesion") for case, name in truth(12, 20).items()}, truth(12, 20), "lesion")
    assert (result.value, result.low) == (1.0, None)
    assert "separate" in result.note


def test_times_are_those_of_the_reads_that_have_one():
    times = measure_times([*reads(3, 2), Read("r2", "c1", "unaided", "a")])
    assert [(time.modality, time.reads, time.median) for time in times] == [("unaided", 5, 12.0), ("aided", 0, None)]


def delong_coverage(repeats, seed):
    rng = np.random.default_rng(seed)
    area, positive, inside = 0.5 * (1 + math.erf(0.5)), np.arange(80) < 35, 0
    for _ in range(repeats):
        scores = (rng.normal(size=80) + positive)[None]
        reach = 1.959964 * delong.covariance(scores, positive)[0, 0] ** 0.5
        inside += abs(delong.areas(scores, positive)[0] - area) <= reach
    return inside / repeats


def test_delongs_interval_covers():
    assert 0.90 <= delong_coverage(600, 0) <= 0.97


@pytest.mark.slow
def test_delongs_interval_covers_in_many_samples():
    assert 0.93 <= delong_coverage(20000, 1) <= 0.96
