"""The comparison of modalities against the printed figures of a published example, and against what it must not depend on.

The example is the Van Dyke data (2 tests, 5 readers, 45 positive of 114 cases). Its ratings come with packages under the GPL and are not
copied here. The figures are those that the R package MRMCaov 0.3.0 (docs/jss/MRMCaov.tex) and the RJafroc book, chapter "Obuchowski
Rockette Applications", print: from the printed areas, variances and covariances a covariance matrix follows that has the same means.
"""

import json
import math
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamview.errors import ReviewError
from streamview.review.reads import Read
from streamview.review.statistics import analyse, compare_modalities, delong

# tests are rows, readers columns
PRINTED = ((0.9196457, 0.8587762, 0.9038647, 0.9731079, 0.8297907), (0.9478261, 0.9053140, 0.9217391, 0.9993559, 0.9299517))
# areas are whole numbers of half pairs, which gives their other digits
AREAS = np.round(np.array(PRINTED) * 2 * 45 * 69) / (2 * 45 * 69)
ERRORS = np.array(
    [
        [0.0301255164, 0.0363753335, 0.0282594118, 0.0173388332, 0.0417201720],
        [0.0221416887, 0.0298151099, 0.0297673065, 0.0007213348, 0.0262023046],
    ]
)
COV1_OF_READERS = (3.734661e-04, 7.601598e-04, 3.553224e-04, 1.083399e-06, 2.430368e-04)
# variance, Cov1, Cov2 of each test, Cov3
JACKKNIFE = (ERRORS**2, COV1_OF_READERS, (0.0004839618, 0.0002041879), 0.0002390284)
DELONG = (np.full((2, 5), 0.0007921325), np.full(5, 0.0003420090), (0.0004775239, 0.0002015292), 0.0002358497)


def covariances(variances, cov1, cov2, cov3):
    """A matrix (10, 10) of these variances and covariances."""
    blocks = np.full((2, 5, 2, 5), cov3)
    for test in (0, 1):
        blocks[test, :, test] = cov2[test]
        np.fill_diagonal(blocks[test, :, test], variances[test])
        np.fill_diagonal(blocks[test, :, 1 - test], cov1)
    return blocks.reshape(10, 10)


def check(mean, value, error, low, high, df=math.inf):
    assert (mean.value, mean.error, *mean.interval) == pytest.approx((value, error, low, high), rel=2e-6, abs=2e-7)
    assert mean.df == pytest.approx(df, rel=2e-6)


def test_random_readers_and_cases_with_the_jackknife_as_printed():
    result = analyse(AREAS, covariances(*JACKKNIFE))
    assert asdict(result.components) == pytest.approx(
        {
            "reader": 0.0015349993,
            "modality_reader": 0.0002004025,
            "error": 0.0008022883,
            "cov1": 0.0003466137,
            "cov2": 0.0003440748,
            "cov3": 0.0002390284,
        },
        rel=2e-6,
    )
    assert (result.statistic, result.df, result.p) == pytest.approx((4.456319, 15.25967, 0.05166569), rel=5e-6)
    # printed as the first test less the second
    check(result.change, 0.04380032, 0.02074862, -0.0003588544, 0.0879594986, 15.25967)
    check(result.unaided, 0.8970370, 0.03317360, 0.8252236, 0.9688505, 12.74465)
    check(result.aided, 0.9408374, 0.02156637, 0.8941378, 0.9875369, 12.71019)


def test_random_readers_and_cases_with_delong_as_printed():
    result = analyse(AREAS, covariances(*DELONG))
    assert asdict(result.components) == pytest.approx(
        {
            "reader": 0.0015364254,
            "modality_reader": 0.0002045840,
            "error": 0.0007921325,
            "cov1": 0.0003420090,
            "cov2": 0.0003395265,
            "cov3": 0.0002358497,
        },
        rel=2e-6,
    )
    assert (result.statistic, result.df, result.p) == pytest.approx((4.484854, 15.06611, 0.05123303), rel=5e-6)
    check(result.change, 0.04380032, 0.0206825, -0.0002665519, 0.0878671960, 15.06611)
    check(result.unaided, 0.8970370, 0.03307642, 0.8253461, 0.9687280, 12.59597)
    check(result.aided, 0.9408374, 0.02150464, 0.8942155, 0.9874592, 12.56530)


def test_fixed_readers_as_printed():
    result = analyse(AREAS, covariances(*JACKKNIFE), "cases")
    assert (result.statistic, result.df, result.p) == pytest.approx((5.475953, math.inf, 0.01927984), rel=5e-6)
    check(result.change, 0.04380032, 0.01871748, 0.00711473, 0.08048591)
    check(result.unaided, 0.8970370, 0.02428971, 0.8494301, 0.9446440)
    check(result.aided, 0.9408374, 0.01677632, 0.9079564, 0.9737183)


def test_fixed_cases_as_printed():
    result = analyse(AREAS, covariances(*JACKKNIFE), "readers")
    assert (result.statistic, result.df, result.p) == pytest.approx((8.704, 4, 0.04195875), rel=5e-6)
    check(result.change, 0.04380032, 0.01484629, 0.00258042, 0.08502022, 4)
    assert result.components is None


def study(seed=0, readers=4, cases=40, missing=()):
    """Reads with scores and verdicts, aided ones better, and the truth."""
    rng = np.random.default_rng(seed)
    truth = {f"c{n:02d}": "lesion" if n % 2 else "normal" for n in range(cases)}
    common = rng.normal(size=cases)
    reads = []
    for reader in (f"r{n}" for n in range(readers)):
        for modality, gain in (("unaided", 1.0), ("aided", 1.6)):
            for n, case in enumerate(truth):
                score = round(float(gain * (n % 2) + 0.5 * common[n] + rng.normal()), 1)
                if (reader, modality, case) not in missing:
                    reads.append(Read(reader, case, modality, "lesion" if score > 0.5 else "normal", score))
    return reads, truth


@pytest.mark.parametrize("method", ["delong", "jackknife"])
def test_the_comparison_of_reads_is_that_of_their_areas_and_covariances(method):
    reads, truth = study()
    result = compare_modalities(reads, truth, positive="lesion", method=method)
    scores = np.array([read.score for read in reads]).reshape(4, 2, 40).transpose(1, 0, 2).reshape(8, 40)
    positive = np.arange(40) % 2 > 0
    areas = delong.areas(scores, positive).reshape(2, 4)
    assert result.analysis == analyse(areas, delong.covariance(scores, positive, method))
    assert [(line.unaided, line.aided) for line in result.lines] == [tuple(pair) for pair in areas.T]
    assert (result.change.low, result.change.high) == result.analysis.change.interval
    assert (result.cases, result.positives, result.left_out) == (40, 20, ())
    assert json.loads(json.dumps(result.to_dict(), allow_nan=False)) == result.to_dict()
    # one reader's change is that of this reader alone
    alone = compare_modalities([r for r in reads if r.reader == "r2"], truth, positive="lesion", random="cases", method=method)
    assert (alone.change.low, alone.change.high) == pytest.approx((result.lines[2].change.low, result.lines[2].change.high))


@pytest.mark.parametrize("measure", ["accuracy", "sensitivity", "specificity"])
def test_shares_are_those_of_verdicts(measure):
    reads, truth = study()
    result = compare_modalities(reads, truth, positive="lesion", measure=measure, random="cases")
    chosen = {"accuracy": ("lesion", "normal"), "sensitivity": ("lesion",), "specificity": ("normal",)}[measure]
    for line in result.lines:
        for modality in ("unaided", "aided"):
            right = [
                r.verdict == truth[r.case] for r in reads if (r.reader, r.modality) == (line.reader, modality) and truth[r.case] in chosen
            ]
            assert getattr(line, modality) == pytest.approx(np.mean(right))
    rights = {m: np.zeros((4, 40)) for m in ("unaided", "aided")}
    for read in reads:
        rights[read.modality][int(read.reader[1:]), int(read.case[1:])] = read.verdict == truth[read.case]
    change = (rights["aided"] - rights["unaided"]).mean(0)[[name in chosen for name in truth.values()]]
    # with readers fixed the error is that of a mean over cases, where covariances are positive
    error = change.std(ddof=1) / math.sqrt(len(change))
    parts = result.analysis.components
    if parts.cov2 > parts.cov3 and min(parts.cov2, parts.cov3) > 0:
        assert result.analysis.change.error == pytest.approx(error)
    else:
        assert result.analysis.change.error >= error


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 1000), st.randoms(use_true_random=False), st.floats(0.5, 3), st.floats(-5, 5))
def test_order_of_reads_and_scale_of_scores_do_not_matter(seed, random, slope, shift):
    reads, truth = study(seed, readers=3, cases=24)
    expected = compare_modalities(reads, truth, positive="lesion").to_dict()
    other = [Read(r.reader, r.case, r.modality, r.verdict, slope * r.score + shift) for r in reads]
    random.shuffle(other)
    assert compare_modalities(other, truth, positive="lesion").to_dict() == expected


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 1000))
def test_exchanged_modalities_change_the_sign_alone(seed):
    reads, truth = study(seed, readers=3, cases=24)
    exchange = {"unaided": "aided", "aided": "unaided"}
    forth = compare_modalities(reads, truth, positive="lesion").analysis
    back = compare_modalities([Read(r.reader, r.case, exchange[r.modality], "", r.score) for r in reads], truth, positive="lesion").analysis
    assert back.change.value == pytest.approx(-forth.change.value)
    assert (back.p, back.df, back.change.error) == pytest.approx((forth.p, forth.df, forth.change.error))


def test_harmed_readers_are_marked():
    reads, truth = study()
    exchange = {"unaided": "aided", "aided": "unaided"}
    reads = [Read(r.reader, r.case, exchange[r.modality] if r.reader == "r1" else r.modality, r.verdict, r.score) for r in reads]
    result = compare_modalities(reads, truth, positive="lesion")
    assert result.harmed == ("r1",)
    assert [line.harmed for line in result.lines] == [False, True, False, False]


def test_cases_that_some_reader_did_not_read_are_left_out_and_named():
    reads, truth = study(missing={("r1", "aided", "c03"), ("r0", "unaided", "c10")})
    reads[0] = Read("r0", "c00", "unaided", "normal")
    result = compare_modalities(reads, {**truth, "c05": None}, positive="lesion")
    assert (result.cases, result.left_out) == (36, ("c00", "c03", "c05", "c10"))
    assert compare_modalities(reads, truth, measure="accuracy").left_out == ("c03", "c10")


def test_too_few_cases_or_readers_have_no_interval_and_no_test():
    reads, truth = study(cases=18)
    few = compare_modalities(reads, truth, positive="lesion")
    assert (few.analysis, few.change.low, few.change.note) == (None, None, "no interval: fewer than 10 cases of a class")
    assert few.change.value == pytest.approx(few.aided.value - few.unaided.value)
    assert compare_modalities(reads, truth, measure="accuracy").analysis is not None
    one = compare_modalities([r for r in study()[0] if r.reader == "r0"], study()[1], positive="lesion")
    assert (one.analysis, one.change.note) == (None, "no interval: one reader; random='cases' speaks of this reader alone")
    assert one.lines[0].change.low is not None
    same = [Read(r.reader, r.case, r.modality, truth[r.case]) for r in reads]
    perfect = compare_modalities(same, truth, measure="accuracy")
    assert (perfect.change.value, perfect.analysis, perfect.change.note) == (0, None, "no interval: the figures do not vary")
    tiny = compare_modalities([r for r in reads if r.case < "c02"], truth, positive="lesion")
    assert json.dumps(tiny.to_dict(), allow_nan=False)


def test_what_cannot_be_compared_is_refused():
    reads, truth = study()
    with pytest.raises(ReviewError, match="no positive class"):
        compare_modalities(reads, truth)
    with pytest.raises(ReviewError, match="of one class"):
        compare_modalities(reads, truth, positive="other")
    with pytest.raises(ReviewError, match="no case of known truth was read both ways by all 4 readers"):
        compare_modalities([r for r in reads if r.modality == "aided" or r.reader != "r3"], truth, positive="lesion")
    with pytest.raises(ReviewError, match="expected auc, accuracy"):
        compare_modalities(reads, truth, positive="lesion", measure="f1")
    with pytest.raises(ReviewError, match="1 readers are no sample"):
        analyse([[0.8], [0.9]], np.eye(2) / 1000)
