"""What is checked and chosen before training: the split, the weights that change, and every refusal."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from streamview.errors import LabelError, MemoryBudgetError, ModelError, RegionError, SlideError, TrainingError
from streamview.finetuning import PRESETS, Settings, finetune, forecast_training
from streamview.finetuning.parts import choose_weights, head_dropout
from streamview.finetuning.preparation import prepare
from streamview.finetuning.split import Split, batches, divide, scarcity
from streamview.geometry import Region
from streamview.labels.regions import Example
from streamview.networks.heads import with_classes
from tests.support.finetuning import examples_of, model_of, picture, separable, small_network
from tests.support.zoo import import_torchvision

NOTHING = np.zeros((8, 8, 3), np.uint8)


@st.composite
def labelled(draw):
    """Regions of some patients, each with a label of its own or of its patient."""
    cases = draw(st.lists(st.tuples(st.integers(0, 12), st.sampled_from("abc")), min_size=2, max_size=40))
    return [Example(NOTHING, label, patient=f"p{case}", slide_id=f"s{i}") for i, (case, label) in enumerate(cases)]


@given(labelled(), st.floats(0.05, 0.5), st.integers(0, 5))
def test_a_patient_never_stands_on_both_sides(examples, share, seed):
    try:
        split = divide(examples, share, seed)
    except LabelError:
        mixes = {}
        for example in examples:
            mixes.setdefault(example.case, set()).add(example.label)
        assert len(set(map(frozenset, mixes.values()))) == len(mixes)  # no two patients are alike
        return
    assert sorted((*split.train, *split.validation)) == list(range(len(examples)))
    assert split.train
    assert split.validation
    assert {examples[i].case for i in split.train}.isdisjoint(examples[i].case for i in split.validation)
    assert divide(examples, share, seed) == split
    mirrored = divide(examples[::-1], share, seed)
    assert {examples[::-1][i].slide_id for i in mirrored.validation} == {examples[i].slide_id for i in split.validation}


def test_every_label_keeps_its_share():
    examples = [Example(NOTHING, "ab"[i % 5 == 0], patient=f"p{i}") for i in range(100)]
    split = divide(examples, 0.25, 0)
    assert [sum(examples[i].label == label for i in split.validation) for label in "ab"] == [20, 5]
    assert divide(examples, 0, 0) == Split(tuple(range(100)), ())
    assert divide(examples, 0.25, 1) != split


def test_values_and_rare_mixes_of_labels_are_divided_as_one():
    values = [Example(NOTHING, str(i), patient=f"p{i}") for i in range(12)]
    assert len(divide(values, 0.25, 0, "regression").validation) == 3
    assert len(divide(values, 0.25, 0, "multilabel").validation) == 3
    with pytest.raises(LabelError, match="12 patients cannot be split"):
        divide(values, 0.25, 0)


def test_a_stated_split_is_kept_and_checked():
    examples = [Example(NOTHING, "a", patient=f"p{i // 2}", split="train" if i < 4 else "validation") for i in range(6)]
    assert divide(examples, 0.5, 0) == Split((0, 1, 2, 3), (4, 5))
    with pytest.raises(LabelError, match="patient 'p1' is in both splits"):
        divide([replace(e, split="validation") if i == 3 else e for i, e in enumerate(examples)], 0.5, 0)
    with pytest.raises(LabelError, match="states no split, but others do"):
        divide([replace(e, split="") if i == 3 else e for i, e in enumerate(examples)], 0.5, 0)
    with pytest.raises(LabelError, match="no region is in the split train"):
        divide(examples[4:], 0.5, 0)


def test_every_region_comes_once_an_epoch_in_an_order_of_its_own():
    split = Split(tuple(range(0, 20, 2)), (1,))
    epochs = [batches(split, 4, 0, epoch) for epoch in (1, 2)]
    assert [len(batch) for batch in epochs[0]] == [4, 4, 2]
    assert all(sorted(i for batch in epoch for i in batch) == list(split.train) for epoch in epochs)
    assert epochs[0] != epochs[1]
    assert batches(split, 4, 0, 1) == epochs[0] != batches(split, 4, 1, 1)


def test_patients_are_counted_not_regions():
    examples = [Example(NOTHING, "a" if i else "b", patient=f"p{i % 11}") for i in range(60)]
    assert scarcity(examples, regression=False) == "patients: b has 1"
    assert scarcity(examples[1:], regression=False) is None
    assert scarcity([Example(NOTHING, "1", patient="p")], regression=True) == "patients: the table has 1"


LAST = {
    "resnet18": ("layer4.", "fc."),
    "densenet121": ("features.denseblock4.", "features.norm5.", "classifier."),
    "efficientnet_b0": ("features.6.", "features.7.", "features.8.", "classifier."),
    "inception_v3": ("Mixed_7", "fc."),
}


@pytest.mark.parametrize("name", LAST)
def test_the_last_stage_is_what_works_at_the_coarsest_resolution(name):
    module = import_torchvision().models.get_model(name, weights=None, **({"init_weights": False} if name == "inception_v3" else {})).eval()
    names = [key for key, _ in module.named_parameters()]
    before = [p.requires_grad for p in module.parameters()]
    # what a convolution of stride 2 gives is at the next resolution, so that a block's first layer may be at the one before
    found = set(choose_weights(module, "last stage", (256, 256)))
    assert found <= {key for key in names if key.startswith(LAST[name])}
    assert {key.split(".")[0] for key in found} == {key.split(".")[0] for key in names if key.startswith(LAST[name])}
    assert set(choose_weights(module, "head", (256, 256))) == {key for key in names if key.startswith(("fc.", "classifier."))}
    assert set(choose_weights(module, "all", (256, 256))) == {key for key in names if not key.startswith("AuxLogits")}
    assert [p.requires_grad for p in module.parameters()] == before
    assert len(head_dropout(module)) == (name in ("efficientnet_b0", "inception_v3"))


def test_a_head_without_weights_is_refused():
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    with pytest.raises(TrainingError, match="the head of Sequential has no weights to train; train the last stage or all"):
        choose_weights(module.eval(), "head", (32, 32))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"train": "body"}, "train 'body': expected head, last stage or all"),
        ({"learning_rate": 0}, "learning rate 0: expected a number above 0"),
        ({"learning_rate": float("nan")}, "learning rate nan"),
        ({"weight_decay": -1}, "weight decay -1: expected 0 or more"),
        ({"batch": 0}, "batch 0: expected a whole number of 1 or more"),
        ({"patience": -1}, "patience -1"),
        ({"validation": 0.6}, "validation 0.6: expected a share of the patients, 0 to 0.5"),
        ({"decay": 1.1}, "decay 1.1: expected a factor above 0, at most 1"),
        ({"jitter": 1}, "jitter 1: expected 0 or more, below 1"),
        ({"optimiser": "lion"}, "optimiser 'lion': expected adam or sgd"),
    ],
)
def test_settings_outside_their_range_are_named(changed, said):
    with pytest.raises(TrainingError, match=said):
        replace(PRESETS["all"], **changed)


def refused(error, said, examples, model=None, settings=Settings(), **how):  # noqa: B008
    with pytest.raises(error, match=said):
        finetune(model or model_of(small_network()), examples, settings, **how)


def test_examples_that_cannot_be_trained_with_are_refused(tmp_path):
    few = separable(8)
    refused(LabelError, "there are no labelled regions", [])
    refused(LabelError, r"patients: a has 4, b has 4 .*; expected 10 or more of each.*force=True", few)
    refused(LabelError, "all 3 regions are labelled 'a'; expected two or more different labels", examples_of("aaa"), force=True)
    refused(LabelError, r"the network's classes are a, b: .*new_head=True", examples_of("ac"), force=True)
    stated = [replace(e, split="validation" if e.label == "b" else "train") for e in examples_of("aab")]
    refused(LabelError, "the training split holds no region of 'b'", stated, force=True)
    refused(LabelError, "2 patients cannot be split so that one is left for validation", examples_of("ab"), force=True)
    refused(SlideError, "no such file", [Example(tmp_path / "gone.svs", "a"), *few], force=True)
    beyond = [replace(few[0], region=Region(0, 60, 99, 99)), *few[1:]]
    refused(RegionError, "s0 at 60,0,99,99: .*expected one inside level 0", beyond, force=True)
    small = [replace(few[0], region=Region(0, 0, 2, 64)), *few[1:]]
    deep = model_of(torch.nn.Sequential(torch.nn.Conv2d(3, 4, 5), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(4, 2)))
    refused(RegionError, "s0 at 0,0,64,2: image of 2 x 64 px .*too small for it at layer 0", small, deep, force=True)
    refused(LabelError, "a new head is for classes", examples_of("12"), model_of(small_network(1), ["x"], "regression"), new_head=True)
    least = "the process needs .* before the first step; give more memory, or train a smaller part"
    refused(MemoryBudgetError, least, few, force=True, memory="100MB")


def test_a_validation_without_a_class_is_told():
    stated = [replace(e, split="validation" if i > 2 else "train") for i, e in enumerate(examples_of("abab", 48, 48))]
    told = []
    finetune(model_of(small_network()), stated, replace(PRESETS["head"], epochs=1), force=True, tell=told.append)
    assert told == ["the validation split holds no region of a, so its metrics say little; label regions of more patients"]


def test_a_new_head_keeps_the_body():
    torch.manual_seed(0)
    model = model_of(small_network(dropout=0.1))
    new = with_classes(model, ("x", "y", "z"), seed=3)
    state, before = new.module.state_dict(), model.module.state_dict()
    changed = {key for key in state if state[key].shape != before[key].shape or not state[key].equal(before[key])}
    assert changed == {"15.weight", "15.bias"}
    assert new.card.class_names == ("x", "y", "z")
    assert (new.card.mean, new.card.task) == (model.card.mean, model.card.task)
    assert with_classes(model, ("x", "y", "z"), seed=3).module.state_dict()["15.weight"].equal(state["15.weight"])
    # as many classes as before: only the head is new
    same = with_classes(model, ("x", "y"), seed=3).module.state_dict()
    assert {key for key in same if not same[key].equal(before[key])} == {"15.weight", "15.bias"}
    with pytest.raises(ModelError, match="built by its name, is not this network"):
        with_classes(model_of(small_network(norm=True)), ("x", "y"))
    several = model_of(small_network(dropout=0.1), task="multilabel")
    parts = examples_of(["x", "y;x", "", "z ; y"], 48, 48)
    assert prepare(several, parts, PRESETS["head"], new_head=True, force=True).base.card.class_names == ("x", "y", "z")
    result = finetune(model, examples_of("xyzxyz", 48, 48), replace(PRESETS["head"], epochs=1), new_head=True, force=True)
    assert result.model.card.class_names == ("x", "y", "z")


def test_the_forecast_says_what_will_be_done():
    ahead = forecast_training(model_of(small_network()), separable(24), PRESETS["head"], force=True)
    assert (ahead.train, ahead.validation, ahead.parameters, ahead.cached) == ((18, 18), (6, 6), 26, True)
    assert "18 regions of 18 patients for training, 6 of 6 for validation; 26 weights are trained; up to 64 x 64 px" in str(ahead)
    whole = forecast_training(model_of(small_network()), separable(24), PRESETS["all"], force=True)
    assert whole.parameters > ahead.parameters
    assert whole.seconds == pytest.approx(50 * whole.epoch_seconds, rel=0.2)


def test_only_the_weights_that_are_trained_require_gradients():
    model = model_of(small_network())
    found = prepare(model, separable(20), PRESETS["careful"])
    assert {name for name, p in found.module.named_parameters() if p.requires_grad} == set(found.names)
    assert not any(p.requires_grad for p in model.module.parameters())
    assert not found.module.training


def test_networks_of_several_passes_train_too():
    """Squeeze-excitation in every stage: its weights stand between passes."""
    torch.manual_seed(0)
    module = import_torchvision().models.get_model("mobilenet_v3_small", weights=None, num_classes=2, width_mult=0.5)
    examples = [Example(picture(i, 96, 96), "ab"[i % 2], None, f"p{i}", f"s{i}") for i in range(4)]
    settings = Settings(train="all", learning_rate=1e-3, batch=2, epochs=1, validation=0)
    result = finetune(model_of(module), examples, settings, tile=(48, 96), force=True)
    after = dict(result.model.module.named_parameters())
    assert [name for name, p in module.named_parameters() if after[name].equal(p)] == []
