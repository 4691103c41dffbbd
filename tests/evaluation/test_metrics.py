"""Figures against oracles that know nothing of ranks or weights: pairs counted one by one, samples drawn out in full, scipy, torch."""

import json
import math
import time
from dataclasses import replace
from functools import partial
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import rankdata, spearmanr

from streamview.evaluation import Figure, Metrics, measure
from streamview.networks import load_card
from streamview.networks.cards import ModelCard


def card(task, count) -> ModelCard:
    return replace(load_card("demo"), task=task, class_names=tuple("abcdefgh"[:count]))


def count_area(scores, positive, chosen=...):
    """The area under the ROC curve as its definition has it, of the regions chosen."""
    scores, positive = scores[chosen], positive[chosen]
    pairs = list(product(scores[positive], scores[~positive]))
    return sum(1.0 if p > n else 0.5 if p == n else 0.0 for p, n in pairs) / len(pairs) if pairs else math.nan


def draw_out(patients, resamples, seed):
    """Indices of the regions of every resample, each region as often as its patient was drawn."""
    names = sorted(set(patients))
    draws = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)), resamples)
    of = [names.index(name) for name in patients]
    return [np.repeat(np.arange(len(of)), draw[of]) for draw in draws]


def interval(values):
    kept = [value for value in values if not math.isnan(value)]
    return *np.quantile(kept, (0.025, 0.975)), len(kept) / len(values)


def same(figure, value, low, high, defined=1.0):
    assert (figure.value, figure.low, figure.high, figure.defined) == pytest.approx((value, low, high, defined), abs=1e-12)


@st.composite
def cases(draw, most=4):
    """Logits with ties, targets and patients of up to 24 regions."""
    count, regions = draw(st.integers(2, most)), draw(st.integers(2, 24))
    logits = draw(st.lists(st.lists(st.integers(-3, 3), min_size=count, max_size=count), min_size=regions, max_size=regions))
    targets = draw(st.lists(st.integers(0, count - 1), min_size=regions, max_size=regions))
    patients = draw(st.lists(st.sampled_from("pqrstu"), min_size=regions, max_size=regions))
    return np.array(logits, float), np.array(targets), patients


@settings(deadline=None, max_examples=60)
@given(cases())
def test_classes_equal_a_count_of_every_pair_and_every_sample(case):
    logits, targets, patients = case
    count = logits.shape[1]
    found = measure(logits, targets, patients, card("class", count), resamples=40, seed=3)
    samples = draw_out(patients, 40, 3) if len(set(patients)) > 1 else []
    answers = logits.argmax(1)
    assert found.confusion == tuple(tuple(int(((targets == t) & (answers == a)).sum()) for a in range(count)) for t in range(count))
    assert found.loss == pytest.approx(torch.nn.functional.cross_entropy(torch.tensor(logits), torch.tensor(targets)).item())
    assert [output.regions for output in found.outputs] == np.bincount(targets, minlength=count).tolist()
    assert found.outputs[0].auc is None or count > 2

    def balanced(chosen):
        recalls = [(answers[chosen] == c)[targets[chosen] == c] for c in np.unique(targets)]
        return float(np.mean([recall.mean() for recall in recalls])) if all(map(len, recalls)) else math.nan

    everything = np.arange(len(targets))
    judges = [(found.accuracy, lambda chosen: float((answers == targets)[chosen].mean())), (found.balanced_accuracy, balanced)]
    for index in range(count) if count > 2 else [1]:
        others = torch.logsumexp(torch.tensor(np.delete(logits, index, 1)), 1).numpy()
        pairs = partial(count_area, (logits[:, index] - others).round(9), targets == index)
        judges.append((found.outputs[index].auc, pairs))
    for figure, judge in judges:
        value = judge(everything)
        assert figure.value == pytest.approx(value, nan_ok=True)
        if samples and not math.isnan(value):
            values = [judge(chosen) for chosen in samples]
            if not all(map(math.isnan, values)):
                same(figure, value, *interval(values))
                assert figure.low <= figure.high


def test_the_area_is_that_of_midranks_as_scipy_gives_them():
    rng = np.random.default_rng(0)
    scores, positive = rng.integers(0, 12, 80).astype(float), rng.integers(0, 2, 80)
    found = measure(np.stack([np.zeros(80), scores], 1), positive, ["p"] * 80, card("class", 2)).outputs[1].auc
    ones = positive.sum()
    expected = (rankdata(scores)[positive == 1].sum() - ones * (ones + 1) / 2) / (ones * (80 - ones))
    assert found == Figure(pytest.approx(expected), pytest.approx(math.nan, nan_ok=True), pytest.approx(math.nan, nan_ok=True))


@settings(deadline=None, max_examples=40)
@given(cases(2), st.floats(0.1, 5), st.floats(-5, 5))
def test_the_area_depends_on_the_order_of_scores_alone(case, slope, shift):
    logits, targets, patients = case
    before = measure(logits, targets, patients, card("class", 2), resamples=30).outputs[1].auc
    odds = logits[:, 1] - logits[:, 0]
    curved = np.stack([np.zeros(len(odds)), slope * odds**3 + odds + shift], 1)
    after = measure(curved, targets, patients, card("class", 2), resamples=30).outputs[1].auc
    assert repr(after) == repr(before)
    opposite = measure(-logits, targets, patients, card("class", 2), resamples=0).outputs[1].auc
    assert opposite.value == pytest.approx(1 - before.value, nan_ok=True)


@settings(deadline=None, max_examples=40)
@given(cases(), st.randoms(use_true_random=False))
def test_the_order_of_regions_does_not_matter(case, random):
    logits, targets, patients = case
    order = list(range(len(targets)))
    random.shuffle(order)
    ours = card("class", logits.shape[1])
    first = measure(logits, targets, patients, ours, resamples=30).to_dict()
    second = measure(logits[order], targets[order], [patients[n] for n in order], ours, resamples=30).to_dict()
    assert flat(second) == pytest.approx(flat(first), abs=1e-12)


def flat(values):
    """The numbers of a JSON document in order."""
    if isinstance(values, dict):
        values = list(values.values())
    if isinstance(values, list):
        return [number for value in values for number in flat(value)]
    return [values] if isinstance(values, int | float) else []


def test_multilabel_figures_equal_those_of_each_class_alone():
    rng = np.random.default_rng(1)
    targets = (rng.random((60, 3)) < (0.2, 0.5, 0.8)).astype(float)
    logits = rng.normal(size=(60, 3)).round(1) + targets
    patients = [f"p{n // 4}" for n in range(60)]
    found = measure(logits, targets, patients, card("multilabel", 3), resamples=50, seed=2)
    samples = draw_out(patients, 50, 2)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(torch.tensor(logits), torch.tensor(targets)).item()
    assert found.loss == pytest.approx(expected)
    for k, output in enumerate(found.outputs):
        right = (logits[:, k] >= 0) == (targets[:, k] == 1)
        same(output.accuracy, right.mean(), *interval([right[chosen].mean() for chosen in samples]))
        areas = [count_area(logits[:, k], targets[:, k] == 1, chosen) for chosen in samples]
        same(output.auc, count_area(logits[:, k], targets[:, k] == 1), *interval(areas))
        assert output.baseline == pytest.approx(max(targets[:, k].mean(), 1 - targets[:, k].mean()))
        assert output.regions == targets[:, k].sum()
    assert found.accuracy.value == pytest.approx(np.mean([output.accuracy.value for output in found.outputs]))
    assert sum(entry.count for entry in found.reliability) == 180
    assert found.confusion == ()


def test_regression_figures_equal_scipy_on_samples_drawn_out():
    rng = np.random.default_rng(2)
    truth = rng.integers(0, 6, (40, 2)).astype(float)
    values = truth + rng.normal(size=(40, 2)).round(1)
    patients = [f"p{n // 4}" for n in range(40)]
    found = measure(values, truth, patients, card("regression", 2), resamples=50, seed=5, reference=[[1.0, 2.0], [3.0, 4.0], [9.0, 9.0]])
    samples = draw_out(patients, 50, 5)
    assert found.loss == pytest.approx(torch.nn.functional.huber_loss(torch.tensor(values), torch.tensor(truth)).item())
    for k, output in enumerate(found.outputs):
        correlations = [spearmanr(values[chosen, k], truth[chosen, k]).statistic for chosen in samples]
        same(output.spearman, spearmanr(values[:, k], truth[:, k]).statistic, *interval(correlations))
        errors = np.abs(values - truth)[:, k]
        same(output.error, errors.mean(), *interval([errors[chosen].mean() for chosen in samples]))
        assert output.baseline == pytest.approx(np.abs(truth[:, k] - (3.0, 4.0)[k]).mean())
    assert found.accuracy is None
    assert found.ece is None


def test_regions_of_one_patient_stay_together():
    """Nine copies of a region are no more evidence than one: the interval is that of the patients, not a third of it."""
    rng = np.random.default_rng(3)
    targets = rng.integers(0, 2, 30)
    logits = np.stack([np.zeros(30), rng.normal(size=30) + targets], 1)
    names = [f"p{n}" for n in range(30)]
    once = measure(logits, targets, names, card("class", 2))
    copied = measure(logits.repeat(9, 0), targets.repeat(9), np.repeat(names, 9).tolist(), card("class", 2))
    apart = measure(logits.repeat(9, 0), targets.repeat(9), [str(n) for n in range(270)], card("class", 2))
    for figure in ("accuracy", "balanced_accuracy"):
        assert repr(getattr(copied, figure)) == repr(getattr(once, figure))
        kept, split = getattr(copied, figure), getattr(apart, figure)
        assert (kept.high - kept.low) / (split.high - split.low) == pytest.approx(3, rel=0.25)
    assert copied.outputs[1].auc == once.outputs[1].auc


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    rng = np.random.default_rng(4)
    held = 0
    for _ in range(150):
        skill = np.repeat(rng.beta(7, 3, 40), 5)  # patients differ; the accuracy of the population is 0.7
        right = rng.random(200) < skill
        logits = np.stack([right, ~right], 1).astype(float)
        figure = measure(logits, np.zeros(200, int), [f"p{n // 5}" for n in range(200)], card("class", 2), resamples=300).accuracy
        assert figure.low <= figure.value <= figure.high
        held += figure.low <= 0.7 <= figure.high
    assert 0.89 <= held / 150 <= 0.99


def test_the_majority_is_that_of_the_reference():
    logits, targets = np.eye(2)[[0, 0, 1, 1, 1]], np.array([0, 1, 1, 1, 1])
    own = measure(logits, targets, list("abcde"), card("class", 2), resamples=0)
    assert (own.majority, own.baseline, own.accuracy.value) == ("b", 0.8, 0.8)
    given_one = measure(logits, targets, list("abcde"), card("class", 2), reference=[0, 0, 1], resamples=0)
    assert (given_one.majority, given_one.baseline) == ("a", 0.2)
    assert "always answering a: 0.2" in str(given_one)


def test_calibration_by_hand():
    """Four answers: 0.6 right, 0.6 wrong, 0.95 right, 0.95 right."""
    odds = np.log([0.6 / 0.4, 0.6 / 0.4, 0.95 / 0.05, 0.95 / 0.05])
    found = measure(np.stack([odds, np.zeros(4)], 1), [0, 1, 0, 0], list("abcd"), card("class", 2), resamples=0)
    assert [entry.count for entry in found.reliability] == [0, 0, 0, 0, 0, 2, 0, 0, 0, 2]
    assert found.reliability[5].accuracy == 0.5
    assert found.reliability[9].confidence == pytest.approx(0.95)
    assert found.ece == pytest.approx((2 * 0.1 + 2 * 0.05) / 4)
    undecided = measure(np.zeros((3, 2)), [0, 1, 1], list("abc"), card("class", 2), resamples=0)
    assert undecided.reliability[4].count == 3  # a bin holds its upper edge


def test_a_class_that_is_never_there_leaves_figures_undefined_and_the_rest_whole():
    found = measure(np.eye(3)[[0, 1, 1, 0]], [0, 1, 0, 1], list("abcd"), card("class", 3))
    assert math.isnan(found.outputs[2].auc.value)
    assert str(found.outputs[2].auc) == "undefined"
    assert found.balanced_accuracy.value == 0.5
    assert found.accuracy.low < 0.5 < found.accuracy.high
    # two patients: half of the resamples hold one of them alone, and with it one class
    alone = measure(np.eye(2)[[0, 1]], [0, 1], ["p", "q"], card("class", 2)).outputs[1].auc
    assert alone.defined == pytest.approx(0.5, abs=0.05)
    assert f"from {alone.defined:.0%} of the resamples" in str(alone)
    one = measure(np.eye(2)[[0, 1]], [0, 1], ["p", "p"], card("class", 2))
    assert math.isnan(one.accuracy.low)
    assert "interval" not in str(one)


@pytest.mark.parametrize(("task", "count"), [("class", 2), ("class", 4), ("multilabel", 3), ("regression", 2)])
def test_json_keeps_everything_and_no_nan(task, count):
    rng = np.random.default_rng(6)
    targets = rng.integers(0, 2, 12) if task == "class" else rng.integers(0, 2, (12, count)).astype(float)
    found = measure(rng.normal(size=(12, count)), targets, list("aabbccddeeff"), card(task, count))
    text = json.dumps(found.to_dict(), allow_nan=False)
    assert repr(Metrics.from_dict(json.loads(text))) == repr(found)
    assert str(found).startswith("12 regions of 6 patients (95 % intervals, resampled by patient)\nloss ")


def test_two_thousand_resamples_are_quick():
    rng = np.random.default_rng(7)
    start = time.perf_counter()
    measure(rng.normal(size=(200, 5)), rng.integers(0, 5, 200), [f"p{n // 4}" for n in range(200)], card("class", 5))
    assert time.perf_counter() - start < 2


def test_many_regions_are_resampled_in_parts(monkeypatch):
    rng = np.random.default_rng(8)
    arguments = rng.normal(size=(50, 2)), rng.integers(0, 2, 50), [f"p{n // 4}" for n in range(50)], card("class", 2)
    whole = measure(*arguments)
    monkeypatch.setattr("streamview.evaluation.bootstrap._AT_ONCE", 333)
    assert repr(measure(*arguments)) == repr(whole)


@pytest.mark.parametrize(
    ("logits", "targets", "patients", "said"),
    [
        (np.zeros((0, 2)), [], [], "one region or more"),
        (np.zeros((2, 3)), [0, 1], ["p", "q"], r"logits \(2, 3\).*expected \(2, 2\)"),
        (np.zeros((2, 2)), [[0, 1]], ["p", "q"], r"targets \(1, 2\)"),
        (np.zeros((2, 2)), [0, 1], ["p"], "1 patients"),
        ([[0, math.nan]], [0], ["p"], "NaN"),
    ],
)
def test_what_does_not_fit_is_refused(logits, targets, patients, said):
    with pytest.raises(ValueError, match=said):
        measure(logits, targets, patients, card("class", 2))
