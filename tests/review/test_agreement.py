"""Agreement against scikit-learn, statsmodels and krippendorff, small cases by hand, and what must not matter."""

import json

import krippendorff
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score
from statsmodels.stats.inter_rater import fleiss_kappa as fleiss_oracle

from streamview.errors import ReviewError
from streamview.review.reads import Read
from streamview.review.statistics import cohen_kappa, fleiss_kappa, krippendorff_alpha, measure_agreement

SCALE = ("benign", "atypical", "in situ", "invasive")


def columns(table, names=SCALE):
    """Verdicts by case of each column of a table of places; -1 is missing."""
    return [{f"{row:04d}": names[place] for row, place in enumerate(column) if place >= 0} for column in np.asarray(table).T]


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("weights", ["nominal", "linear", "quadratic"])
def test_cohens_kappa_is_that_of_scikit_learn(seed, weights):
    rng = np.random.default_rng(seed)
    table = rng.integers(0, rng.integers(2, 5), (rng.integers(10, 80), 2))
    result = cohen_kappa(*columns(table), scale=SCALE, weights=weights, resamples=0)
    oracle = cohen_kappa_score(*table.T, labels=range(4), weights=None if weights == "nominal" else weights)
    assert result.value == pytest.approx(oracle, abs=1e-9)


@pytest.mark.parametrize("seed", range(8))
def test_fleiss_kappa_is_that_of_statsmodels(seed):
    rng = np.random.default_rng(seed)
    table = rng.integers(0, 4, (rng.integers(10, 60), rng.integers(2, 7)))
    counts = np.stack([(table == place).sum(1) for place in range(4)], 1)
    assert fleiss_kappa(columns(table), resamples=0).value == pytest.approx(fleiss_oracle(counts), abs=1e-9)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("level", ["nominal", "ordinal", "interval"])
def test_alpha_is_that_of_krippendorff(seed, level):
    rng = np.random.default_rng(seed)
    table = np.where(rng.random((rng.integers(10, 60), 4)) < 0.3, -1, rng.integers(0, 4, (1,)))
    table = np.where(table < 0, -1, rng.integers(0, 4, table.shape))
    data = np.where(table < 0, np.nan, table).T
    numbers = [{case: float(SCALE.index(verdict)) for case, verdict in verdicts.items()} for verdicts in columns(table)]
    readers = numbers if level == "interval" else columns(table)
    result = krippendorff_alpha(readers, level, scale=SCALE if level == "ordinal" else (), resamples=0)
    assert result.value == pytest.approx(krippendorff.alpha(data, level_of_measurement=level), abs=1e-9)


def test_alpha_of_scores_is_that_of_krippendorff():
    values = np.random.default_rng(3).normal(1e4, 3, (40, 3))
    readers = [{str(case): value for case, value in enumerate(column)} for column in values.T]
    expected = krippendorff.alpha(values.T, level_of_measurement="interval")
    assert krippendorff_alpha(readers, "interval", resamples=0).value == pytest.approx(expected, abs=1e-9)


def test_small_tables_by_hand():
    # 20 and 15 agreements of 50 cases; expected by chance 0.5 (Cohen's textbook example)
    first = ["yes"] * 25 + ["no"] * 25
    second = ["yes"] * 20 + ["no"] * 5 + ["yes"] * 10 + ["no"] * 15
    a, b = ({str(n): verdict for n, verdict in enumerate(verdicts)} for verdicts in (first, second))
    assert cohen_kappa(a, b, resamples=0).value == pytest.approx((0.7 - 0.5) / 0.5)
    # Krippendorff (2011), two observers, ten binary units: 0.095
    first, second = "0100000010", "1110010000"
    a, b = (dict(enumerate(values)) for values in (first, second))
    assert krippendorff_alpha([{str(k): v for k, v in r.items()} for r in (a, b)], resamples=0).value == pytest.approx(0.095, abs=5e-4)


def test_an_interval_is_that_of_samples_drawn_out():
    rng = np.random.default_rng(0)
    table = rng.integers(0, 3, (30, 2))
    table[:15, 1] = table[:15, 0]
    result = cohen_kappa(*columns(table), resamples=100, seed=5)
    draws = np.random.default_rng(5).multinomial(30, np.full(30, 1 / 30), 100)
    values = [cohen_kappa_score(*np.repeat(table, draw, 0).T) for draw in draws]
    assert (result.low, result.high) == pytest.approx(tuple(np.quantile(values, (0.025, 0.975))), abs=1e-9)


tables = st.integers(12, 30).flatmap(
    lambda cases: st.lists(st.lists(st.integers(-1, 3), min_size=3, max_size=3), min_size=cases, max_size=cases)
)


@settings(deadline=None, max_examples=30)
@given(tables, st.permutations(range(3)), st.randoms(use_true_random=False))
def test_the_order_of_readers_and_cases_does_not_matter(table, order, random):
    readers = columns(table)
    shuffled = []
    for place in order:
        entries = list(readers[place].items())
        random.shuffle(entries)
        shuffled.append(dict(entries))
    for level in ("nominal", "ordinal"):
        one, other = (krippendorff_alpha(group, level, scale=SCALE, resamples=50) for group in (readers, shuffled))
        assert other.to_dict() == pytest.approx(one.to_dict(), abs=1e-9)
    assert fleiss_kappa(shuffled, resamples=0).to_dict() == pytest.approx(fleiss_kappa(readers, resamples=0).to_dict(), abs=1e-12)
    assert cohen_kappa(*readers[:2], resamples=50) == cohen_kappa(*readers[1::-1], resamples=50)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.sampled_from(SCALE), min_size=2, max_size=40))
def test_perfect_agreement_is_1_and_one_class_is_undefined(verdicts):
    reader = {str(case): verdict for case, verdict in enumerate(verdicts)}
    results = [
        *(cohen_kappa(reader, reader, scale=SCALE, weights=weights, resamples=20) for weights in ("nominal", "linear", "quadratic")),
        fleiss_kappa([reader] * 3, resamples=20),
        *(krippendorff_alpha([reader] * 3, level, scale=SCALE, resamples=20) for level in ("nominal", "ordinal")),
    ]
    for result in results:
        assert result.value == (None if len(set(verdicts)) == 1 else 1.0)
        # all resamples agree: an interval from 1 to 1 would promise too much
        assert result.low is None
        assert result.note


def test_the_agreement_of_reads_counts_cases_and_says_why_there_is_no_interval():
    rng = np.random.default_rng(1)
    reads = [Read(r, f"c{n}", "aided", SCALE[rng.integers(4)]) for r in ("r2", "r1", "r3") for n in range(14) if (r, n) != ("r3", 0)]
    reads += [Read("r4", "c0", "unaided", "benign")]
    result = measure_agreement(reads, "aided", scale=SCALE, weights="quadratic", resamples=200)
    assert (result.readers, result.cases, result.fleiss.cases, result.alpha.cases) == (("r1", "r2", "r3"), 14, 13, 14)
    assert [(pair.first, pair.second, pair.agreed.whole) for pair in result.pairs] == [("r1", "r2", 14), ("r1", "r3", 13), ("r2", "r3", 13)]
    assert result.alpha.low < result.alpha.value < result.alpha.high
    assert result.agreed.value == pytest.approx(np.mean([_share(reads, f"c{n}") for n in range(1, 14)]))
    assert json.loads(json.dumps(result.to_dict(), allow_nan=False)) == result.to_dict()
    few = measure_agreement([read for read in reads if int(read.case[1:]) < 9], "aided")
    assert (few.alpha.low, few.alpha.note) == (None, "no interval: fewer than 10 cases")
    assert str(few.pairs[0].agreed).endswith(" of 9; no interval: fewer than 10 cases")


def _share(reads, case):
    verdicts = [read.verdict for read in reads if read.case == case and read.modality == "aided"]
    pairs = [(a, b) for n, a in enumerate(verdicts) for b in verdicts[n + 1 :]]
    return sum(a == b for a, b in pairs) / len(pairs)


def test_what_cannot_be_measured_is_refused():
    reads = [Read("r1", "c1", "aided", "benign"), Read("r2", "c1", "aided", "odd")]
    with pytest.raises(ReviewError, match="'odd' is not on the scale benign, atypical"):
        measure_agreement(reads, "aided", scale=SCALE)
    with pytest.raises(ReviewError, match="linear weights have no scale"):
        measure_agreement(reads, "aided", weights="linear")
    with pytest.raises(ReviewError, match="0 readers have unaided reads"):
        measure_agreement(reads, "unaided")
    with pytest.raises(ReviewError, match="two aided reads"):
        measure_agreement([*reads, reads[0]], "aided")
    with pytest.raises(ReviewError, match="not a number"):
        krippendorff_alpha([{"c": "a"}, {"c": "b"}], "interval")
    assert cohen_kappa({"c1": "a"}, {"c2": "a"}).note == "undefined: no cases"
