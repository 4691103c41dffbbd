"""Fine-tuning through the streaming engine is conventional training: the same weights after the same steps."""

import copy
import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from streamview_models import camelyon17, resnet
from torch import Tensor, nn

from streamview.finetuning import Settings, finetune, preparation
from streamview.finetuning.preparation import Prepared, prepare
from streamview.finetuning.split import Split, batches
from streamview.finetuning.variation import PLAIN as PLAIN_VARIATION
from streamview.finetuning.variation import Variation, lazy_image, vary
from streamview.labels.regions import find_targets
from streamview.slides.sampling import Sampler
from tests.support.finetuning import MEAN, STD, examples_of, model_of, pixels, settle_norms, small_network

PLAIN = Settings(learning_rate=1e-3, weight_decay=1e-2, epochs=1, validation=0, class_weights=False, flips=False, jitter=0)


def conventional(module: nn.Module, settings: Settings, epochs: list[list[tuple[Tensor, Tensor]]], loss) -> nn.Module:
    """Train a copy on batches of whole images, epoch by epoch, with torch alone."""
    module = copy.deepcopy(module).eval().requires_grad_(True)
    kind = {"adam": torch.optim.Adam, "sgd": lambda p, **how: torch.optim.SGD(p, momentum=0.9, **how)}[settings.optimiser]
    optimiser = kind(module.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
    for number, epoch in enumerate(epochs):
        optimiser.param_groups[0]["lr"] = settings.learning_rate * settings.decay**number
        for images, targets in epoch:
            optimiser.zero_grad()
            loss(module(images), targets).backward()
            optimiser.step()
    return module.requires_grad_(False)


def worst(base: nn.Module, found: nn.Module, expected: nn.Module) -> float:
    """Largest difference between two trainings, relative to the largest change of each parameter."""
    triples = zip(base.parameters(), found.parameters(), expected.parameters(), strict=True)
    return max(float((f - e).abs().max() / (e - b).abs().max().clamp(min=1e-30)) for b, f, e in triples)


def difference(found: nn.Module, expected: nn.Module) -> float:
    """Largest difference between two networks' weights."""
    return max(float((f - e).abs().max()) for f, e in zip(found.parameters(), expected.parameters(), strict=True))


def whole(examples) -> Tensor:
    return torch.cat([pixels(example) for example in examples])


def paper(outputs: int = 2) -> nn.Module:
    return camelyon17.build(outputs, layers=22)


def resnet18(outputs: int = 2) -> nn.Module:
    module = resnet.build(outputs, layers=18)
    settle_norms(module)
    return module


@pytest.mark.parametrize(
    ("build", "optimiser"),
    [
        pytest.param(paper, "sgd", marks=pytest.mark.slow),
        (resnet18, "adam"),
        pytest.param(paper, "adam", marks=pytest.mark.slow),
        pytest.param(resnet18, "sgd", marks=pytest.mark.slow),
    ],
)
def test_one_step_equals_the_conventional_one(build, optimiser):
    torch.manual_seed(0)
    module = build().double()
    examples = examples_of("ab", 128, 96)
    settings = replace(PLAIN, optimiser=optimiser, batch=2)
    tuned = finetune(model_of(module), examples, settings, tile=(32, 48), force=True)
    expected = conventional(module, settings, [[(whole(examples), torch.tensor([0, 1]))]], nn.CrossEntropyLoss())
    assert len(tuned.history.losses) == 1
    assert difference(tuned.model.module, expected) <= 1e-10
    # Adam divides a gradient by its size + 1e-8, so that rounding in those as small as that becomes a larger part of their step
    assert worst(module, tuned.model.module, expected) <= (1e-10 if optimiser == "sgd" else 1e-7)


@pytest.mark.parametrize("task", ["class", "multilabel", "regression"])
def test_accumulating_four_regions_equals_a_batch_of_four(task):
    """With frozen BatchNorm, class weights, and an epoch that ends in a smaller batch."""
    torch.manual_seed(1)
    module = small_network(norm=True).double()
    settle_norms(module)
    labels = {
        "class": "aabbba",
        "multilabel": ["a", "b", "a;b", "", "b", "b"],
        "regression": ["1;2", "0;5", "-1;3", "2;2", "0.5;1", "9;-4"],
    }
    model = model_of(module, task=task)
    examples = examples_of(labels[task])
    settings = replace(PLAIN, batch=4, epochs=2, class_weights=True, decay=0.5)
    targets = torch.from_numpy(find_targets(examples, model.card))
    counts = np.bincount(targets.numpy(), minlength=2) if task == "class" else targets.sum(0).numpy()
    weights = torch.tensor(6 / (2 * counts) if task == "class" else (6 - counts) / counts)
    loss = {
        "class": nn.CrossEntropyLoss(weights),
        "multilabel": nn.BCEWithLogitsLoss(pos_weight=weights),
        "regression": nn.HuberLoss(),
    }[task]
    tuned = finetune(model, examples, settings, tile=(16, 24), force=True)
    images = whole(examples)
    drawn = [[list(batch) for batch in batches(Split(tuple(range(6)), ()), 4, settings.seed, epoch)] for epoch in (1, 2)]
    expected = conventional(module, settings, [[(images[b], targets[b]) for b in epoch] for epoch in drawn], loss)
    assert [len(batch) for epoch in drawn for batch in epoch] == [4, 2, 4, 2]
    assert difference(tuned.model.module, expected) <= 1e-10


@pytest.mark.parametrize("part", ["head", "last stage"])
def test_what_is_frozen_stays(part):
    torch.manual_seed(2)
    module = small_network(norm=True)
    settle_norms(module)
    tuned = finetune(model_of(module), examples_of("abab"), replace(PLAIN, train=part), tile=(32, 32), force=True)
    before, after = module.state_dict(), tuned.model.module.state_dict()
    changed = {name for name in before if not before[name].equal(after[name])}
    last = {f"{layer}.{kind}" for layer in (10, 11, 13) for kind in ("weight", "bias")}
    assert changed == {"18.weight", "18.bias"} | (last if part == "last stage" else set())


def test_cached_features_change_nothing(monkeypatch):
    torch.manual_seed(3)
    module = small_network(dropout=0.5)
    settings = replace(PLAIN, train="head", batch=2, epochs=3, flips=True)
    examples = examples_of("abab", 48, 80)
    found = []
    for cached in (True, False):
        with monkeypatch.context() as patch:
            if not cached:
                patch.setattr(preparation, "free_memory_of", lambda device: 0)
                patch.setattr(Prepared, "budget", lambda self: 2**30)
            seen = prepare(model_of(module), examples, settings, force=True)
            assert seen.cached is cached
            patch.setattr(Prepared, "budget", lambda self: 2**30)
            found.append(finetune(model_of(module), examples, settings, force=True))
    assert found[0].history.losses == found[1].history.losses
    assert found[0].model.sha256 == found[1].model.sha256 != model_of(module).sha256


def test_a_turned_region_is_the_turned_image():
    """All eight ways, in pieces that meet nowhere near the middle, with a tint."""
    example = examples_of("a", 40, 56)[0]
    with example.open() as slide:
        sampler = Sampler(slide, example.region)
        plain = sampler.read(0, 40, 0, 56)
        for turns, mirrored in itertools.product(range(4), (False, True)):
            variation = Variation(turns, mirrored, (0.5, 1.0, 1.5))
            image = lazy_image(sampler, model_of(small_network()).card, variation, torch.float64, torch.device("cpu"))
            expected = np.rot90(plain, turns)[:, :: -1 if mirrored else 1] * np.array([0.5, 1.0, 1.5])
            expected = (expected.clip(0, 255) / 255 - MEAN) / STD
            height, width = image.shape[2:]
            assert (height, width) == expected.shape[:2]
            rows, cols = [(0, 13), (13, height)], [(0, 30), (30, width)]
            found = torch.cat([torch.cat([image.read(r, c) for c in cols], 3) for r in rows], 2)
            assert np.abs(found[0].permute(1, 2, 0).numpy() - expected).max() < 1e-12


def test_variations_are_drawn_by_seed_epoch_and_region():
    settings = Settings(jitter=0.2, seed=4)
    drawn = [vary(settings, epoch, index, (64, 64)) for epoch in range(1, 9) for index in range(8)]
    assert drawn == [vary(settings, epoch, index, (64, 64)) for epoch in range(1, 9) for index in range(8)]
    assert {(v.turns, v.mirrored) for v in drawn} == set(itertools.product(range(4), (False, True)))
    assert len({v.tint for v in drawn}) == len(drawn)
    assert all(0.8**2 <= factor <= 1.2**2 for v in drawn for factor in v.tint)
    assert vary(replace(settings, flips=False, jitter=0), 1, 1, (64, 64)) == PLAIN_VARIATION
