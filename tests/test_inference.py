"""From a source, a model and a region to a prediction and its maps, against whole-image autograd."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from streamview.errors import Cancelled, MemoryBudgetError, ModelError, RegionError, SlideError
from streamview.geometry import Region
from streamview.inference.compute import Compute
from streamview.inference.explain import explain, forecast, predict, saliency
from streamview.inference.prepared import prepare
from streamview.inference.targets import find_target, find_targets
from streamview.networks import Model
from streamview.progress import Step
from streamview.results import Target, open_saliency
from streamview.slides import as_slide
from streamview.slides.synthetic import synthetic_region
from streamview.streaming.plan.plan import Plan, make_plan
from tests.support.inference import MEAN, STD, Gated, distance, make_model, whole
from tests.support.networks import seed_network


@pytest.fixture(scope="module")
def pixels() -> NDArray[np.uint8]:
    return synthetic_region(250, 333, seed=3, lesion_share=0.2)[0]


@pytest.fixture
def model() -> Model:
    torch.manual_seed(0)
    return make_model(seed_network(8, 4))


@pytest.mark.parametrize("tile", [(32, 1000), (48, 80), None], ids=["strips", "tiles", "chosen"])
def test_maps_equal_whole_image_autograd(model: Model, pixels: NDArray[np.uint8], tile: tuple[int, int] | None) -> None:
    found = saliency(model, pixels, compute=Compute(tile=tile))
    logits, absolute, signed = whole(model, pixels, found.target.index)
    assert distance(found.prediction.logits, logits.numpy()) < 1e-5
    assert found.target.name == model.card.class_names[int(logits.argmax())]
    assert distance(found.maps["absolute"].values, absolute) < 1e-4
    assert distance(found.maps["signed"].values, signed) < 1e-4
    assert np.array_equal(predict(model, pixels, compute=Compute(tile=tile)).logits, found.prediction.logits)


def test_target_by_name_and_index(model: Model, pixels: NDArray[np.uint8]) -> None:
    named, indexed = saliency(model, pixels, target="tumour"), saliency(model, pixels, target=1)
    assert np.array_equal(named.maps["signed"].values, indexed.maps["signed"].values)
    assert not np.array_equal(named.maps["signed"].values, saliency(model, pixels, target=0).maps["signed"].values)
    with pytest.raises(ModelError, match=r"target 'cat'.*normal, tumour"):
        saliency(model, pixels, target="cat")


NAMES = ("normal", "grade-1", "grade-2")


def test_targets_in_words() -> None:
    model = make_model(seed_network(4, 3, 3), names=NAMES)
    assert find_target(model, "grade-1") == find_target(model, 1) == Target("grade-1", 1)
    assert find_target(model, "grade-1-grade-2") == Target("grade-1-grade-2", 1, 2)
    assert find_target(model, "normal - grade-2") == find_target(model, Target("normal-grade-2", 0, 2)) == Target("normal-grade-2", 0, 2)
    every = [Target(name, index) for index, name in enumerate(NAMES)]
    assert find_targets(model, ["grade-1", "all", "grade-1-normal"]) == [every[1], every[0], every[2], Target("grade-1-normal", 1, 0)]
    for wrong in ("grade", "grade-1-grade-1", "normal-", "-", "", 3, -1, True, Target("x", 0, 3)):
        with pytest.raises(ModelError, match=r"^target .*: the model test has normal, grade-1, grade-2; name one of them, or two as a-b"):
            find_target(model, wrong)
    many = make_model(seed_network(4, 3, 12), names=tuple(f"c{index}" for index in range(12)))
    with pytest.raises(ModelError, match="c8, c9 and 2 more; name"):
        find_target(many, "cat")


def test_hyphens_that_leave_it_open() -> None:
    model = make_model(seed_network(4, 3, 6), names=("a", "b-c", "a-b", "c", "all", "a-c"))
    with pytest.raises(ModelError, match=r'^target \'a-b-c\': may be "a - b-c" or "a-b - c"; write the one you mean'):
        find_target(model, "a-b-c")
    assert find_target(model, "a - b-c") == Target("a - b-c", 0, 1)
    assert find_target(model, "a-b - c") == Target("a-b - c", 2, 3)
    assert find_target(model, "a-c") == Target("a-c", 5)  # a class of that name comes first
    assert find_target(model, "a - c") == Target("a - c", 0, 3)
    assert find_targets(model, ["all"]) == [Target("all", 4)]


@pytest.mark.parametrize("to_disk", [pytest.param(False, marks=pytest.mark.slow), True], ids=["memory", "disk"])
def test_several_targets_from_one_forward_pass_equal_each_alone(pixels: NDArray[np.uint8], tmp_path: Path, to_disk: bool) -> None:
    torch.manual_seed(0)
    model, steps = make_model(seed_network(8, 4, 3), names=NAMES), []
    targets = ["grade-2", None, "normal", "grade-1-normal"]
    outs = [tmp_path / f"{number}.ome.zarr" for number in range(4)] if to_disk else None
    found = explain(model, pixels, targets=targets, outs=outs, compute=Compute(tile=(48, 80)), report=steps.append)
    count = -(-250 // 48) * -(-333 // 80)
    assert [step.done for step in steps if step.task == "forward pass"] == list(range(count + 1))
    assert [step.done for step in steps if step.task == "4 backward passes"] == list(range(4 * count + 1))
    assert len(steps) == 5 * count + 2
    if to_disk:
        assert sorted(tmp_path.iterdir()) == outs
        found = [open_saliency(out) for out in outs]
    for target, several in zip(targets, found, strict=True):
        alone = saliency(model, pixels, target=target, compute=Compute(tile=(48, 80)))
        assert several.target == alone.target
        assert np.array_equal(several.prediction.logits, alone.prediction.logits)
        for method, saliency_map in alone.maps.items():
            assert np.array_equal(np.asarray(several.maps[method].values), saliency_map.values)
            assert (several.maps[method].step, several.maps[method].origin) == (saliency_map.step, saliency_map.origin)


def test_a_difference_is_explained_by_the_gradient_of_the_difference(pixels: NDArray[np.uint8]) -> None:
    torch.manual_seed(0)
    model = make_model(seed_network(8, 4, 3), names=NAMES)
    difference, first, second = explain(model, pixels, targets=["grade-2-normal", "grade-2", "normal"], compute=Compute(tile=(40, 100)))
    assert difference.target == Target("grade-2-normal", 2, 0)
    logits, absolute, signed = whole(model, pixels, 2, 0)
    assert distance(difference.maps["absolute"].values, absolute) < 1e-4
    assert distance(difference.maps["signed"].values, signed) < 1e-4
    assert difference.target_score == pytest.approx(float(logits[2] - logits[0]), rel=1e-4)
    assert difference.target_probability is None
    assert first.target_probability is not None
    for method in ("signed", "evidence"):
        subtracted = np.asarray(first.maps[method].values) - np.asarray(second.maps[method].values)
        assert distance(difference.maps[method].values, subtracted) < 1e-5


def test_targets_that_make_no_sense(model: Model, pixels: NDArray[np.uint8], tmp_path: Path) -> None:
    for targets in ([], "normal"):
        with pytest.raises(ValueError, match="expected a list of one target or more"):
            explain(model, pixels, targets=targets)
    for outs in ([tmp_path / "a.ome.zarr"], [tmp_path / "a.ome.zarr"] * 2):
        with pytest.raises(ValueError, match=r"2 targets, but \d folders: give each a folder of its own"):
            explain(model, pixels, targets=["normal", "tumour"], outs=outs)
    steps: list[Step] = []
    with pytest.raises(ModelError, match="target 'cat'"):
        explain(model, pixels, targets=["normal", "cat"], report=steps.append)
    assert steps == []


def test_cancelled_in_the_last_of_several_passes_leaves_nothing(model: Model, pixels: NDArray[np.uint8], tmp_path: Path) -> None:
    def cancel(step: Step) -> None:
        if step.done == step.total - 1 and step.task == "2 backward passes":
            raise Cancelled("stop")

    outs = [tmp_path / "a.ome.zarr", tmp_path / "b.ome.zarr"]
    saliency(model, pixels, target="normal", out=outs[0])
    with pytest.raises(Cancelled):
        explain(model, pixels, targets=["tumour", "normal"], outs=outs, compute=Compute(tile=(64, 1000)), report=cancel)
    assert list(tmp_path.iterdir()) == outs[:1]
    assert open_saliency(outs[0]).target.name == "normal"


@pytest.mark.parametrize(
    ("tile", "barriers"),
    [
        pytest.param((40, 1000), "kept", id="strips-kept"),
        pytest.param((48, 90), "spilled", id="tiles-spilled"),
        pytest.param((40, 1000), "regenerated", id="strips-regenerated"),
        pytest.param((48, 90), "kept", id="tiles-kept", marks=pytest.mark.slow),
        pytest.param((40, 1000), "spilled", id="strips-spilled", marks=pytest.mark.slow),
        pytest.param((48, 90), "regenerated", id="tiles-regenerated", marks=pytest.mark.slow),
    ],
)
def test_networks_with_squeeze_excitation(pixels: NDArray[np.uint8], tmp_path: Path, tile: tuple[int, int], barriers: str) -> None:
    torch.manual_seed(1)
    model = make_model(Gated(3), names=NAMES)
    run = prepare(model, pixels)
    plan = make_plan(run.both, tile=tile, barriers=barriers)
    assert (len(plan.passes), plan.barriers) == (3, barriers)
    targets = ["grade-1", "grade-2", "grade-2-normal"]
    steps: list[Step] = []
    found = run.explain(targets, plan, report=steps.append)
    assert max(step.total for step in steps) == 3 * plan.steps
    assert steps[-1].done == 3 * plan.steps
    for several, (target, against) in zip(found, [(1, None), (2, None), (2, 0)], strict=True):
        logits, absolute, signed = whole(model, pixels, target, against)
        assert distance(several.prediction.logits, logits.numpy()) < 1e-5
        assert distance(several.maps["absolute"].values, absolute) < 1e-4
        assert distance(several.maps["signed"].values, signed) < 1e-4
    outs = [tmp_path / f"{number}.ome.zarr" for number in range(3)]
    for kept, stored in zip(found, run.explain(targets, plan, outs), strict=True):
        assert np.array_equal(stored.maps["absolute"].values, kept.maps["absolute"].values)
        assert np.array_equal(stored.maps["signed"].values, kept.maps["signed"].values)
    assert np.array_equal(run.predict(plan).logits, found[0].prediction.logits)


def test_squeeze_excitation_by_the_plan_that_is_chosen(pixels: NDArray[np.uint8]) -> None:
    torch.manual_seed(1)
    model = make_model(Gated(2))
    found = saliency(model, pixels, target=1)
    _, absolute, signed = whole(model, pixels, 1)
    assert distance(found.maps["absolute"].values, absolute) < 1e-4
    assert distance(found.maps["signed"].values, signed) < 1e-4
    planned = forecast(model, pixels, targets=1, compute=Compute(memory="4GB"))
    assert isinstance(planned.plan, Plan)
    assert planned.plan.barriers != "none"


def test_evidence_is_the_linear_layer_on_the_last_features(model: Model, pixels: NDArray[np.uint8]) -> None:
    found = saliency(model, pixels, target=1, compute=Compute(tile=(40, 90))).maps["evidence"]
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (MEAN, STD))
    image = (torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255 - mean) / std
    features = model.module[:-3](image)
    expected = torch.einsum("c,chw->hw", model.module[-1].weight[1], features[0])
    assert distance(found.values, expected.numpy()) < 1e-5
    assert found.step == (8.0, 8.0)
    assert found.origin == (3.5, 3.5)


def test_evidence_of_many_classes_and_of_mean_pooling(pixels: NDArray[np.uint8]) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 1, 4, 4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(), nn.Linear(1, 2))
    found = saliency(make_model(module), pixels, target=0)
    logit = np.mean(found.maps["evidence"].values) + module[-1].bias[0].item()
    assert abs(logit - found.prediction.logits[0]) < 1e-5


def test_no_evidence_where_the_head_is_more_than_pooling_and_a_linear_layer(pixels: NDArray[np.uint8]) -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 4, 4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    assert set(saliency(make_model(module), pixels).maps) == {"absolute", "signed"}


def test_written_equals_kept_in_memory(model: Model, pixels: NDArray[np.uint8], tmp_path: Path) -> None:
    for tile in ((32, 1000), (48, 80)):
        stored = saliency(model, pixels, out=tmp_path / "map.ome.zarr", compute=Compute(tile=tile))
        kept = saliency(model, pixels, compute=Compute(tile=tile))
        for method, saliency_map in kept.maps.items():
            assert np.array_equal(np.asarray(stored.maps[method].values), saliency_map.values)
            assert stored.maps[method].origin == saliency_map.origin
        assert stored.prediction.identity == kept.prediction.identity


def test_a_slide_and_its_pixels_agree(model: Model, synthetic_slide: Any) -> None:
    from streamview.slides import open_slide

    region = Region(200, 300, 256, 320)
    with open_slide(synthetic_slide.path) as slide:
        found = saliency(model, slide, region)
        part = saliency(model, slide.read(region))
    assert found.prediction.region == region
    assert np.array_equal(found.prediction.logits, part.prediction.logits)
    assert np.array_equal(found.maps["absolute"].values, part.maps["absolute"].values)
    assert found.maps["absolute"].origin == (200.0, 300.0)


def test_region_is_read_at_the_mpp_of_the_card(pixels: NDArray[np.uint8]) -> None:
    model = make_model(seed_network(4, 3), mpp=1.0)
    found = saliency(model, pixels, Region(10, 20, 200, 240), mpp=0.5)
    assert found.prediction.shape == (100, 120)
    assert found.prediction.mpp == (1.0, 1.0)
    assert found.maps["absolute"].step == (2.0, 2.0)
    assert found.maps["absolute"].origin == (10.5, 20.5)
    with pytest.raises(SlideError, match="mpp="):
        predict(model, pixels)
    with pytest.raises(SlideError, match=r"1\.5.*1"):
        predict(model, pixels, mpp=1.5)


def test_warnings_stay_with_the_result(pixels: NDArray[np.uint8]) -> None:
    model = make_model(seed_network(4, 3), mpp=0.5, trained=False, input_size=[512, 1024])
    found = predict(model, pixels, mpp=0.52).warnings
    assert any("random" in text for text in found)
    assert any("333 x 250 px" in text and "512 to 1024" in text for text in found)
    assert any("0.520 um/px" in text for text in found)
    assert predict(make_model(seed_network(4, 3), mpp=0.5), pixels, mpp=0.5).warnings == ()


def test_regression(pixels: NDArray[np.uint8]) -> None:
    torch.manual_seed(0)
    model = make_model(seed_network(4, 3), task="regression", names=("proliferation", "ki-67"))
    found = saliency(model, pixels)
    assert found.target == Target("proliferation", 0)
    assert found.prediction.probabilities is None
    assert found.target_probability is None
    assert found.target_score == found.prediction.logits[0]
    assert found.prediction.answer_for(found.target).startswith("score = ")
    _, _, signed = whole(model, pixels, 1)
    assert distance(saliency(model, pixels, target="ki-67").maps["signed"].values, signed) < 1e-4


def test_notes_of_the_model_stay_with_the_result(pixels: NDArray[np.uint8]) -> None:
    model = make_model(seed_network(4, 3), mpp=0.5)
    noted = Model(model.module, model.card, model.sha256, ("w.ckpt: 'model.' was taken off every name",))
    assert predict(noted, pixels, mpp=0.5).warnings == noted.notes


@pytest.mark.parametrize(
    ("network", "error", "message"),
    [
        (nn.Sequential(nn.Conv2d(1, 2, 3), nn.AdaptiveMaxPool2d(1), nn.Flatten()), ModelError, "takes images of 1 channels"),
        (nn.Sequential(nn.Conv2d(3, 2, 301), nn.AdaptiveMaxPool2d(1), nn.Flatten()), RegionError, "too small for it at layer 0"),
        (nn.Sequential(nn.Conv2d(3, 2, 3), nn.AvgPool2d(16), nn.Flatten(), nn.Linear(5, 2)), RegionError, "cannot answer for 333 x 250 px"),
        (nn.Sequential(nn.Conv2d(3, 5, 3), nn.AdaptiveMaxPool2d(1), nn.Flatten()), ModelError, "expected one logit"),
    ],
)
def test_models_that_do_not_fit(network: nn.Module, error: type[Exception], message: str, pixels: NDArray[np.uint8]) -> None:
    with pytest.raises(error, match=message):
        predict(make_model(network), pixels)


def test_not_finite(pixels: NDArray[np.uint8]) -> None:
    network = seed_network(4, 3)
    network[-1].bias.data[0] = torch.nan
    with pytest.raises(ModelError, match="not finite"):
        predict(make_model(network), pixels)


def test_budget_too_small(model: Model, pixels: NDArray[np.uint8]) -> None:
    with pytest.raises(MemoryBudgetError, match=r"memory 10 MB: the process needs .* give more"):
        predict(model, pixels, compute=Compute(memory="10MB"))
    with pytest.raises(MemoryBudgetError, match="expected an amount such as 2GB"):
        predict(model, pixels, compute=Compute(memory="lots"))


def test_cancelled_within_one_step_and_nothing_left(model: Model, pixels: NDArray[np.uint8], tmp_path: Path) -> None:
    steps: list[Step] = []
    state = {name: tensor.clone() for name, tensor in model.module.state_dict().items()}

    def cancel(step: Step) -> None:
        steps.append(step)
        if step.task == "backward pass" and step.done == 2:
            raise Cancelled("stop")

    with pytest.raises(Cancelled):
        saliency(model, pixels, out=tmp_path / "map.ome.zarr", compute=Compute(tile=(16, 1000)), report=cancel)
    assert steps[-1].done == 2
    assert list(tmp_path.iterdir()) == []
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.module.state_dict().items())
    assert not any(p.requires_grad for p in model.module.parameters())


def test_forecast_names_plan_and_memory(model: Model) -> None:
    pixels = np.full((1500, 1600, 3), 243, np.uint8)
    found = forecast(model, as_slide(pixels), targets=1, compute=Compute(tile=(64, 1600)))
    assert found.plan.tile == (64, 1600)
    assert found.plan.steps == 24
    assert found.seconds is not None
    assert "1600 x 1500 px in 24 steps of 64 x 1600 px on cpu: peak memory" in str(found)
    assert "targets" not in str(found)
    assert "writes" not in str(found)


def test_forecast_counts_the_maps(model: Model, tmp_path: Path) -> None:
    slide = as_slide(np.full((1500, 1600, 3), 243, np.uint8))
    one, four = (forecast(model, slide, targets=maps, out=tmp_path / "not" / "yet", compute=Compute(tile=(64, 1600))) for maps in (1, 4))
    assert (one.targets, four.targets) == (1, 4)
    assert one.disk_bytes == pytest.approx(1500 * 1600 * 4 * 4 / 3 * (2 + 1 / 64), rel=0.01)
    assert four.disk_bytes == pytest.approx(4 * one.disk_bytes, abs=4)
    assert one.seconds is not None
    assert four.seconds is not None
    assert four.seconds > one.seconds
    assert " for 4 targets; writes at most " in str(four)
    with pytest.raises(MemoryBudgetError, match="before the first step"):
        forecast(model, slide, targets=1000, compute=Compute(memory="4GB"))  # kept in memory
    forecast(model, slide, targets=1000, compute=Compute(memory="4GB"), out=tmp_path)
