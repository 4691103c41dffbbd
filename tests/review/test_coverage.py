"""How often nominal 95 % intervals of agreement and of the comparison of modalities hold the true value."""

import numpy as np
import pytest

from streamview.review.statistics import analyse, cohen_kappa, delong, krippendorff_alpha


def kappa_coverage(repeats, seed, resamples):
    """Readers who know the class with probability 0.7 and guess otherwise, of two equal classes: kappa and alpha are 0.49."""
    rng = np.random.default_rng(seed)
    inside = np.zeros(2)
    for repeat in range(repeats):
        truth = rng.integers(0, 2, 60)
        columns = [np.where(rng.random(60) < 0.7, truth, rng.integers(0, 2, 60)) for _ in range(2)]
        readers = [{f"{case:02d}": "ab"[place] for case, place in enumerate(column)} for column in columns]
        results = cohen_kappa(*readers, resamples=resamples, seed=repeat), krippendorff_alpha(readers, resamples=resamples, seed=repeat)
        inside += [result.low <= 0.49 <= result.high for result in results]
    return inside / repeats


def roe_metz(rng, readers, cases, random):
    """Scores (2, J, N) with variances of cases, readers and both with modalities, after Roe and Metz (1997), without a difference."""
    positive = np.arange(cases) < cases // 2
    case = rng.normal(0, 0.3**0.5, cases) + rng.normal(0, 0.1**0.5, (2, 1, cases)) + rng.normal(0, 0.2**0.5, (readers, cases))
    error = rng.normal(0, 0.4**0.5, (2, readers, cases))
    shift = random.normal(0, 0.1, (readers, 1)) + random.normal(0, 0.1, (2, readers, 1))
    return case + error + (1.2 + shift) * positive, positive


def comparison_coverage(repeats, seed):
    rng = np.random.default_rng(seed)
    inside = 0
    for _ in range(repeats):
        scores, positive = roe_metz(rng, 5, 100, rng)
        rows = scores.reshape(10, 100)
        analysis = analyse(delong.areas(rows, positive).reshape(2, 5), delong.covariance(rows, positive))
        low, high = analysis.change.interval
        inside += low <= 0 <= high
    return inside / repeats


def test_intervals_of_kappa_and_alpha_cover():
    coverage = kappa_coverage(200, 0, 300)
    assert np.all((coverage >= 0.90) & (coverage <= 0.97)), coverage


def test_intervals_of_the_difference_cover():
    assert 0.90 <= comparison_coverage(300, 0) <= 0.97


@pytest.mark.slow
def test_intervals_of_kappa_and_alpha_cover_in_many_samples():
    coverage = kappa_coverage(4000, 1, 1000)
    assert np.all((coverage >= 0.92) & (coverage <= 0.97)), coverage


@pytest.mark.slow
def test_intervals_of_the_difference_cover_in_many_samples():
    assert 0.93 <= comparison_coverage(10000, 1) <= 0.97
