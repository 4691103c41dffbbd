"""Changes by the network: counted by hand, and McNemar's test against statsmodels."""

import json

import pytest
from statsmodels.stats.contingency_tables import mcnemar

from streamview.errors import ReviewError
from streamview.review.reads import Read
from streamview.review.statistics import exact_mcnemar, measure_change, pool_changes

# case: truth, AI, unaided, aided
CASES = {
    "helped": ("b", "b", "a", "b"),
    "ignored a right network": ("b", "b", "a", "a"),
    "harmed": ("a", "b", "a", "b"),
    "ignored a wrong network": ("a", "b", "a", "a"),
    "agreed with a wrong network": ("a", "b", "b", "b"),
    "from wrong to wrong": ("a", "c", "b", "c"),
    "harmed, not by the network's answer": ("a", "b", "a", "c"),
    "unknown": (None, "b", "a", "b"),
    "without an answer of the network": ("a", None, "a", "a"),
}


def reads(reader="r1", cases=CASES):
    for case, (_, _, unaided, aided) in cases.items():
        yield Read(reader, case, "unaided", unaided)
        yield Read(reader, case, "aided", aided)


def column(place):
    return {case: values[place] for case, values in CASES.items()}


def test_every_kind_of_change_is_counted_once():
    (change,) = measure_change([*reads(), Read("r1", "unpaired", "aided", "a"), Read("r2", "helped", "aided", "a")], column(0), column(1))
    assert change.classes == ("a", "b", "c")
    assert change.matrix == ((3, 3, 1), (0, 1, 1), (0, 0, 0))
    assert (change.cases, change.changed, change.unknown) == (9, 5, 1)
    assert (change.helped, change.harmed, change.stayed_right, change.stayed_wrong) == (1, 2, 2, 3)
    assert (change.ai.followed_right, change.ai.ignored_right, change.ai.followed_wrong, change.ai.ignored_wrong) == (1, 1, 2, 2)
    assert (change.ai.automation_bias.value, change.ai.ignored.value) == (0.5, 0.5)
    assert change.p == 1.0
    assert json.loads(json.dumps(change.to_dict(), allow_nan=False)) == change.to_dict()


def test_readers_are_added_without_a_test():
    changes = measure_change([*reads("r1"), *reads("r2")], column(0), column(1), classes=("c", "b", "a"))
    total = pool_changes(changes)
    assert (total.reader, total.classes, total.p) == ("", ("c", "b", "a"), None)
    assert total.matrix == ((0, 0, 0), (2, 2, 0), (2, 6, 6))
    assert (total.cases, total.helped, total.harmed, total.ai.followed_wrong) == (18, 2, 4, 4)
    assert pool_changes(measure_change(reads(), column(0))).ai is None


@pytest.mark.parametrize(("helped", "harmed"), [(0, 0), (1, 0), (9, 2), (3, 14), (25, 25)])
def test_mcnemars_test_is_that_of_statsmodels(helped, harmed):
    oracle = mcnemar([[5, helped], [harmed, 7]], exact=True).pvalue if helped + harmed else 1.0
    assert exact_mcnemar(helped, harmed) == pytest.approx(oracle, abs=1e-12)


def test_without_a_pair_there_is_nothing_to_compare():
    with pytest.raises(ReviewError, match="both an unaided and an aided read"):
        measure_change([Read("r1", "c", "aided", "a"), Read("r2", "c", "unaided", "a")], {})
    (change,) = measure_change([Read("r1", "c", "aided", "a"), Read("r1", "c", "unaided", "a")], {})
    assert (change.unknown, change.p) == (1, None)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [("modality", "both", "expected unaided or aided"), ("score", float("nan"), "finite"), ("seconds", -1, "0 or more")],
)
def test_a_read_is_checked(field, value, message):
    values = {"reader": "r", "case": "c", "modality": "aided", "verdict": "a", field: value}
    with pytest.raises(ReviewError, match=f"reader r, case c: .*{message}"):
        Read(**values)
