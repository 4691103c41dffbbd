"""Verdicts on networks whose answer is known: the true map passes, a random one and an edge detector do not."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage

import streamview
from streamview.errors import Cancelled, RegionError, StreamviewError
from streamview.faithfulness import Faithfulness, measure_faithfulness
from streamview.faithfulness.localisation import Area
from streamview.faithfulness.measure import forward_passes
from streamview.faithfulness.parts import Parts
from streamview.faithfulness.runs import explain_again
from streamview.inference.prepared import PreparedRun
from streamview.results import Plane, Saliency, SaliencyMap
from tests.faithfulness.conftest import SETTINGS, SIDE, linear_network, tissue
from tests.support.inference import make_model
from tests.support.networks import seed_network


def with_map(saliency: Saliency, values: np.ndarray) -> Saliency:
    """A result whose only map is one."""
    one = saliency.maps["absolute"]
    return replace(saliency, maps={"absolute": SaliencyMap("absolute", Plane(values.astype(np.float32)), one.step, one.origin)})


def passed(measured: Faithfulness, method: str) -> dict[str, bool | None]:
    return {check.name: check.passed for check in measured.checks(method)}


@pytest.fixture(scope="module")
def measured(run: PreparedRun, saliency: Saliency) -> Faithfulness:
    return measure_faithfulness(run, saliency, SETTINGS)


def test_the_true_map_of_a_linear_network_passes_deletion_and_insertion(measured: Faithfulness) -> None:
    for method in ("signed", "evidence"):
        checks = passed(measured, method)
        assert (checks["deletion"], checks["insertion"], checks["stability"]) == (True, True, True), measured.details(method)
    assert measured.patches == (SIDE // 8) ** 2
    assert len(measured.random) == 5
    assert "same value on all patches" in measured.line("absolute")  # a linear network's gradient is


def test_the_curves_of_a_linear_network_are_the_sums_of_what_is_left(measured: Faithfulness, saliency: Saliency) -> None:
    """By arithmetic alone: the score is a sum over patches, of which the largest are erased first."""
    share = np.asarray(saliency.maps["signed"].values).reshape(SIDE // 8, 8, SIDE // 8, 8).sum((1, 3)).ravel()
    order = np.argsort(-np.maximum(share, 0), kind="stable")
    one = measured.of("signed")
    assert one is not None
    assert one.deletion is not None
    assert one.insertion is not None
    positive = int((share > 0).sum())
    for at, score in zip(one.deletion.shares, one.deletion.scores, strict=True):
        count = round(at * len(share))
        if count <= positive:  # what is not positive is in a random order
            assert score == pytest.approx(measured.full - share[order[:count]].sum(), abs=1e-4)
    assert one.deletion.scores[0] == one.insertion.scores[-1] == measured.full
    assert one.deletion.scores[-1] == one.insertion.scores[0] == measured.empty == pytest.approx(measured.full - share.sum(), abs=1e-4)


def test_a_random_map_fails_deletion(run: PreparedRun, saliency: Saliency) -> None:
    noise = np.kron(np.random.default_rng(5).random((SIDE // 8, SIDE // 8)), np.ones((8, 8)))
    result = measure_faithfulness(run, with_map(saliency, noise), replace(SETTINGS, rankings=20))
    assert passed(result, "absolute")["deletion"] is False
    assert "fails deletion" in result.line("absolute")


def edges(run: PreparedRun, saliency: Saliency, scratch: Any, report: Any) -> Saliency:
    """A map that any network would have."""
    again = explain_again(run, saliency, scratch, report)
    grey = run.sampler.read(0, SIDE, 0, SIDE).mean(-1)
    return with_map(again, np.hypot(*(ndimage.sobel(grey, axis) for axis in (0, 1))))


def test_an_edge_detector_fails_parameter_randomisation(run: PreparedRun, saliency: Saliency) -> None:
    result = measure_faithfulness(run, edges(run, saliency, None, None), SETTINGS, explain=edges)
    assert passed(result, "absolute")["parameter randomisation"] is False
    one = result.of("absolute")
    assert one is not None
    assert [similarity.rank for similarity in one.shuffled] == pytest.approx([1.0, 1.0])
    assert [similarity.structure for similarity in one.shuffled] == pytest.approx([1.0, 1.0])
    assert "fails parameter randomisation: it looks the same for a random network" in result.line("absolute")


def test_a_map_of_a_convolutional_network_passes_parameter_randomisation() -> None:
    torch.manual_seed(1)
    model = make_model(seed_network(width=6, blocks=3))
    pixels = np.random.default_rng(2).integers(0, 200, (SIDE, SIDE, 3), np.uint8)
    run = streamview.prepare(model, pixels)
    (result,) = run.explain(["tumour"])
    measured = measure_faithfulness(run, result, replace(SETTINGS, shuffles=3))
    assert passed(measured, "absolute")["parameter randomisation"] is True, measured.details("absolute")


def test_an_unstable_map_fails_and_a_network_that_is_unstable_itself_has_no_verdict(run: PreparedRun, saliency: Saliency) -> None:
    calls = 0

    def fickle(run: PreparedRun, saliency: Saliency, scratch: Any, report: Any) -> Saliency:
        nonlocal calls
        calls += 1
        return with_map(explain_again(run, saliency, scratch, report), np.random.default_rng(calls).random((SIDE, SIDE)))

    result = measure_faithfulness(run, fickle(run, saliency, None, None), SETTINGS, explain=fickle)
    assert passed(result, "absolute")["stability"] is False
    unsettled = replace(result, settings=replace(SETTINGS, unsettled=-1.0))
    assert passed(unsettled, "absolute")["stability"] is None


def test_a_map_that_cannot_be_computed_again_is_ranked_alone(run: PreparedRun, saliency: Saliency) -> None:
    """As maps of methods to come are, where nobody says how."""
    other: Any = {"smoothgrad": replace(saliency.maps["signed"])}
    result = measure_faithfulness(run, replace(saliency, maps=other), SETTINGS)
    assert passed(result, "smoothgrad") == {"deletion": True, "insertion": True, "parameter randomisation": None, "stability": None}
    assert result.line("smoothgrad") == "Faithfulness: passes 2 of 2"


@pytest.mark.parametrize(
    ("values", "flaw"),
    [
        (np.full((SIDE, SIDE), 3.0), "same value on all patches"),
        (np.zeros((SIDE, SIDE)), "positive nowhere"),
        (np.full((SIDE, SIDE), -1.0), "positive nowhere"),
        (np.where(np.arange(SIDE * SIDE).reshape(SIDE, SIDE) == 70, np.nan, 1.0), "not finite"),
    ],
)
def test_a_map_that_ranks_nothing_has_no_verdict_and_says_why(run, saliency, values, flaw) -> None:
    result = measure_faithfulness(run, with_map(saliency, values), SETTINGS)
    assert result.line("absolute").startswith("Faithfulness: no verdict")
    assert flaw in result.line("absolute")
    assert result.checks("absolute") == result.details("absolute") == ()
    assert Faithfulness.from_dict(json.loads(json.dumps(result.to_dict(), allow_nan=False))).line("absolute") == result.line("absolute")


def test_a_region_with_fewer_patches_than_four_is_refused(run, saliency) -> None:
    with pytest.raises(RegionError, match=r"1 of the patches of 96 px in 96 x 96 px hold tissue.*smaller patches with patch="):
        measure_faithfulness(run, saliency, replace(SETTINGS, patch=96))


def test_glass_is_neither_erased_nor_compared(model) -> None:
    pixels = tissue()
    pixels[:, 48:] = 250
    run = streamview.prepare(model, pixels)
    (saliency,) = run.explain(["tumour"])
    result = measure_faithfulness(run, saliency, SETTINGS)
    assert result.patches == (SIDE // 8) ** 2 // 2
    assert all(passed(result, "signed")[name] for name in ("deletion", "insertion"))


def test_all_glass_is_refused(model) -> None:
    run = streamview.prepare(model, np.full((SIDE, SIDE, 3), 250, np.uint8))
    with pytest.raises(RegionError, match="0 of the patches"):
        measure_faithfulness(run, run.explain(["tumour"])[0], SETTINGS)


def test_a_regression_and_a_difference_of_logits_are_scored_as_they_are() -> None:
    regression = make_model(linear_network(), task="regression", names=("grade", "age"))
    run = streamview.prepare(regression, tissue())
    result = measure_faithfulness(run, run.explain(["age"])[0], SETTINGS)
    assert result.full == pytest.approx(float(run.predict().logits[1]))
    run = streamview.prepare(make_model(linear_network()), tissue())
    result = measure_faithfulness(run, run.explain(["tumour-normal"])[0], SETTINGS)
    normal, tumour = run.predict().logits
    assert result.full == pytest.approx(float(tumour - normal), rel=1e-5)
    assert passed(result, "signed")["deletion"]


def test_a_score_that_tissue_does_not_change_has_no_verdict_by_curves(run, saliency) -> None:
    measured = measure_faithfulness(run, saliency, SETTINGS)
    one = measured.of("signed")
    flat = replace(one, deletion=replace(one.deletion, area=None), insertion=replace(one.insertion, area=None))
    still = replace(measured, full=1.0, empty=1.0, maps=(flat,))
    assert passed(still, "signed")["deletion"] is None
    assert "does not change the score" in still.checks("signed")[0].reason


def test_maps_of_another_run_and_answers_for_patches_are_refused(run, saliency, model) -> None:
    other = streamview.prepare(model, tissue(seed=1))
    with pytest.raises(StreamviewError, match="of another network, slide or region"):
        measure_faithfulness(other, saliency, SETTINGS)
    patches: Any = {"patches": saliency.maps["signed"]}
    with pytest.raises(StreamviewError, match="answers for patches"):
        measure_faithfulness(run, replace(saliency, maps=patches), SETTINGS)


def test_annotations_are_compared_and_a_whole_region_is_refused(run, saliency) -> None:
    values = np.asarray(saliency.maps["signed"].values)
    area = values > np.percentile(values, 90)
    result = measure_faithfulness(run, saliency, SETTINGS, annotated=("lesion.geojson", Area(area)))
    place = result.of("signed").localisation
    assert (place.pointing, place.precision) == (True, pytest.approx(1.0))
    assert place.energy == pytest.approx(values[area].sum() / values[values > 0].sum(), rel=1e-5)
    assert place.area == pytest.approx(0.1, abs=0.01)
    assert any(line.startswith("annotations: ") for line in result.details("signed"))
    with pytest.raises(RegionError, match="everywhere in the region"):
        measure_faithfulness(run, saliency, SETTINGS, annotated=("lesion.geojson", Area(np.ones_like(area))))


def test_the_record_comes_back_from_json_with_every_number(measured: Faithfulness) -> None:
    values = json.loads(json.dumps(measured.to_dict(), allow_nan=False))
    assert Faithfulness.from_dict(values) == measured
    assert values["key"] == measured.identity.key
    assert values["maps"][1]["verdict"] == measured.line("signed")
    assert [check["name"] for check in values["maps"][1]["checks"]] == ["deletion", "insertion", "parameter randomisation", "stability"]


def test_what_is_forecast_is_what_is_run(run, saliency, monkeypatch) -> None:
    runs = {"predict": 0, "explain": 0}
    predict, explain = PreparedRun.predict, PreparedRun.explain

    def counted(name: str, function: Any) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            runs[name] += 1
            return function(*args, **options)

        return call

    monkeypatch.setattr(PreparedRun, "predict", counted("predict", predict))
    monkeypatch.setattr(PreparedRun, "explain", counted("explain", explain))
    last = []
    measure_faithfulness(run, saliency, SETTINGS, report=lambda step: last.append((step.done, step.total)))
    assert runs["predict"] + 3 * runs["explain"] == forward_passes(SETTINGS, 2)  # the gradient is the same everywhere: no curves of it
    assert last[-1][0] == last[-1][1] == 100 * forward_passes(SETTINGS, 2)
    assert [done for done, _ in last] == sorted(done for done, _ in last)


@pytest.mark.parametrize("steps", [3, 40, 80])
def test_a_cancelled_measurement_stops_at_once_and_goes_on_from_what_was_finished(run, saliency, measured, steps) -> None:
    parts, calls = Parts(), 0

    def stop(step: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == steps:
            raise Cancelled("stopped")

    with pytest.raises(Cancelled):
        measure_faithfulness(run, saliency, SETTINGS, parts=parts, report=stop)
    assert calls == steps
    finished = set(parts._values)
    again: list[int] = []
    result = measure_faithfulness(run, saliency, SETTINGS, parts=parts, report=lambda step: again.append(step.total))
    assert replace(result, seconds=0.0) == replace(measured, seconds=0.0)
    if finished:
        assert again[-1] < 100 * forward_passes(SETTINGS, 2)


def test_seeds_decide(run, saliency, measured) -> None:
    other = measure_faithfulness(run, saliency, replace(SETTINGS, seed=1))
    assert [curve.scores for curve in other.random] != [curve.scores for curve in measured.random]
    assert [one.rank for one in other.of("signed").shuffled] != [one.rank for one in measured.of("signed").shuffled]


def test_large_maps_are_written_and_read_in_strips(run, saliency, measured, monkeypatch) -> None:
    monkeypatch.setattr("streamview.faithfulness.runs._IN_MEMORY", 0)
    result = measure_faithfulness(run, saliency, SETTINGS)
    assert [one.changes for one in result.maps] == [one.changes for one in measured.maps]
