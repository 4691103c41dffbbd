"""From regions to slides: the order does not matter, the formula is the one stated, and what may not be put together is not."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from streamview.geometry import Region
from streamview.jobs import Group, Job, RegionResult, SlideRecord, aggregate, by_policy
from streamview.results import Identity, Prediction

NAMES = ("normal", "lesion", "other")
IDENTITY = Identity(
    "ab", "cd", "pixels", Region(0, 0, 1, 1), (0.5, 0.5), "float32", None, (0.5, 0.5), "file", "tiff", (255,) * 3, (1.0, 1.0), 1
)  # fmt: skip
FINITE = st.floats(-30, 30, width=32)


def result(
    logits: tuple[float, ...],
    number: int = 0,
    *,
    task: str = "class",
    aggregation: str | None = None,
    tissue: float | None = 0.5,
    region: Region | None = None,
    **identity: Any,
) -> RegionResult:
    """An answer for the n-th of a row of regions that adjoin each other."""
    region = region or Region(0, 1000 * number, 1000, 1000)
    whole = replace(IDENTITY, region=region, **identity)
    prediction = Prediction(
        "a.svs", region, (1000, 1000), whole.mpp, task, NAMES[: len(logits)], np.array(logits, np.float32), whole, "demo", True
    )
    return RegionResult(prediction, "run", whole.slide_mpp, 0.1, source="/slides/a.svs", tissue_share=tissue, aggregation=aggregation)


def softmax(logits: np.ndarray) -> np.ndarray:
    shares = np.exp(logits - logits.max(-1, keepdims=True))
    return shares / shares.sum(-1, keepdims=True)


def direct(logits: np.ndarray, task: str, method: str) -> np.ndarray:
    """Probabilities (of a regression: values) of the slide, written as one would on paper."""
    sigmoid = 1 / (1 + np.exp(-logits))
    if method == "maximum of lesion":
        return softmax(logits)[np.argmax(softmax(logits)[:, 1])]
    if method == "maximum":
        return logits.max(0) if task == "regression" else sigmoid.max(0)
    if method == "mean of probabilities":
        return softmax(logits).mean(0) if task == "class" else sigmoid.mean(0)
    if method == "noisy-or of lesion":
        p = softmax(logits)
        mean = p.mean(0)
        any_lesion = 1 - np.prod(1 - p[:, 1])
        out = mean / (1 - mean[1]) * (1 - any_lesion)
        out[1] = any_lesion
        return out
    if method == "noisy-or":
        return 1 - np.prod(1 - sigmoid, axis=0)
    if method == "top-2 of lesion":
        return softmax(logits)[np.argsort(-softmax(logits)[:, 1], kind="stable")[:2]].mean(0)
    if method == "top-2":
        return -np.sort(-(logits if task == "regression" else sigmoid), axis=0)[:2].mean(0)
    mean = logits.mean(0)
    return mean if task == "regression" else softmax(mean) if task == "class" else 1 / (1 + np.exp(-mean))


METHODS = [
    ("class", "mean of logits"),
    ("class", "mean of probabilities"),
    ("class", "maximum of lesion"),
    ("multilabel", "mean of logits"),
    ("multilabel", "mean of probabilities"),
    ("multilabel", "maximum"),
    ("regression", "mean of outputs"),
    ("regression", "maximum"),
    ("class", "noisy-or of lesion"),
    ("multilabel", "noisy-or"),
    ("class", "top-2 of lesion"),
    ("multilabel", "top-2"),
    ("regression", "top-2"),
]


@settings(max_examples=80, deadline=None)
@given(data=st.data(), method=st.sampled_from(METHODS))
def test_any_order_gives_the_stated_formula(data: st.DataObject, method: tuple[str, str]) -> None:
    task, name = method
    count, classes = data.draw(st.integers(1, 6)), data.draw(st.integers(2, 3))
    rows = data.draw(st.lists(st.tuples(*[FINITE] * classes), min_size=count, max_size=count))
    glass = data.draw(st.lists(st.booleans(), min_size=count, max_size=count))
    results = [
        result(row, number, task=task, aggregation=name, tissue=0.0 if empty else 0.5)
        for number, (row, empty) in enumerate(zip(rows, glass, strict=True))
    ]
    whole = aggregate(Group(tuple(results)))
    counted = np.array([row for row, empty in zip(rows, glass, strict=True) if not empty], np.float32).astype(np.float64)
    if not len(counted):
        assert (whole.prediction, whole.reason) == (None, "no region contains tissue")
        return
    assert whole.prediction is not None
    values = whole.prediction.logits if task == "regression" else whole.prediction.probabilities
    assert values is not None
    np.testing.assert_allclose(values, direct(counted, task, name), rtol=1e-4, atol=1e-6)
    shuffled = aggregate(Group(tuple(data.draw(st.permutations(results)))))
    assert shuffled.prediction is not None
    np.testing.assert_array_equal(shuffled.prediction.logits, whole.prediction.logits)
    assert shuffled.method == whole.method
    assert len(whole.regions) == len(counted)
    assert whole.tissue_covered == pytest.approx(0.1 * len(counted))


SIDES = st.integers(1, 40)
REGIONS = st.builds(Region, st.integers(0, 60), st.integers(0, 60), SIDES, SIDES)


@settings(max_examples=120, deadline=None)
@given(regions=st.lists(REGIONS, min_size=2, max_size=5))
@example([Region(0, 0, 10, 10), Region(10, 0, 10, 10)])
@example([Region(0, 0, 10, 10), Region(0, 0, 10, 10)])
@example([Region(0, 0, 40, 40), Region(5, 5, 3, 3)])
def test_only_regions_that_share_no_pixel_are_put_together(regions: list[Region]) -> None:
    painted = np.zeros((100, 100), int)
    for region in regions:
        painted[region.y : region.y_stop, region.x : region.x_stop] += 1
    whole = aggregate(Group(tuple(result((0.0, 1.0), region=region) for region in regions)))
    assert (whole.prediction is None) == (painted.max() > 1)
    if whole.reason is not None:
        assert "overlap" in whole.reason
        assert "streamview jobs rm" in whole.reason
        assert whole.tissue_covered is None


CHANGES: list[dict[str, Any]] = [
    {"weights_sha256": "xx"},
    {"card_sha256": "xx"},
    {"precision": "bf16"},
    {"padded": (4096, 4096)},
    {"mpp": (1.0, 1.0)},
    {"slide_mpp": (0.25, 0.25)},
    {"slide_mpp_source": "given"},
    {"pixel_source": "openslide"},
    {"background": (240, 240, 240)},
    {"level": (2.0, 2.0)},
    {"sampling": 2},
]


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_answers_of_different_policies_are_never_put_together(data: st.DataObject) -> None:
    chosen = [data.draw(st.sampled_from([{}, *CHANGES])) for _ in range(data.draw(st.integers(1, 6)))]
    results = tuple(result((0.0, float(number)), number, **change) for number, change in enumerate(chosen))
    groups = by_policy(SlideRecord("a.svs", results, "run", identity="pixels"))
    assert sorted(id(member) for group in groups for member in group.results) == sorted(map(id, results))
    assert len(groups) == len({str(change) for change in chosen})
    for group in groups:
        assert len({replace(member.prediction.identity, region=IDENTITY.region) for member in group.results}) == 1


def rows(job: Job) -> list[dict[str, str]]:
    job.write_tables()
    with (job.folder / "predictions.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_glass_does_not_outvote_a_lesion(tmp_path: Path) -> None:
    job = Job(tmp_path)
    job.add(result((-4.0, 4.0), 0, tissue=0.6))
    for number in (1, 2, 3):
        job.add(result((9.0, -9.0), number, tissue=0.0))
    *regions, whole = rows(job)
    assert len(regions) == 4
    assert (whole["region_id"], whole["status"], whole["prediction"]) == ("aggregate", "ok", "lesion")
    assert whole["aggregation"] == "answer for the one region; 3 without tissue left out"
    assert whole["regions"] == "x0-y0-w1000-h1000"
    assert "3 without tissue left out" in (tmp_path / "summary.md").read_text()


@pytest.mark.parametrize(
    ("share", "side", "counts"),
    [(0.0, 100_000, False), (0.005, 1000, False), (0.02, 1000, True), (0.0005, 100_000, True), (0.00001, 100_000, False)],
)
def test_a_small_biopsy_on_a_large_slide_is_tissue(share: float, side: int, counts: bool) -> None:
    assert result((0.0, 1.0), tissue=share, region=Region(0, 0, side, side)).holds_tissue is counts


def test_regions_of_records_without_the_share_of_tissue() -> None:
    assert replace(result((0.0, 1.0), tissue=None), tissue_covered=None).holds_tissue
    assert replace(result((0.0, 1.0), tissue=None), tissue_covered=0.1).holds_tissue
    assert not replace(result((0.0, 1.0), tissue=None), tissue_covered=0.0).holds_tissue


def test_what_a_card_says_and_nobody_understands_is_not_guessed(tmp_path: Path) -> None:
    job = Job(tmp_path)
    job.add(result((0.0, 1.0), 0, aggregation="attention MIL"))
    assert rows(job)[-1]["status"] == "ok"  # one region needs no aggregation
    job.add(result((0.0, 1.0), 1, aggregation="attention MIL"))
    whole = rows(job)[-1]
    assert (whole["region_id"], whole["status"], whole["prediction"], whole["prob_lesion"]) == ("aggregate", "not aggregated", "", "")
    assert "'attention MIL', which is none of mean of logits" in whole["error"]
    assert "none: the card says" in (tmp_path / "summary.md").read_text()
    assert aggregate(Group(tuple(result((0.0, 1.0), n, aggregation="maximum") for n in (0, 1)))).prediction is None  # of which class?
    assert aggregate(Group(tuple(result((0.0, 1.0), n, aggregation="maximum of tumour") for n in (0, 1)))).prediction is None
