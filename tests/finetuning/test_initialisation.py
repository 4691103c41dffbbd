"""Initial weights: variance 1 after every layer, the same streamed and whole, and untouched networks after a refusal."""

import copy

import pytest
import torch
from streamview_models import camelyon16_tiles, camelyon17
from torch import Tensor, nn

from streamview.errors import TrainingError
from streamview.finetuning import Settings, finetune
from streamview.finetuning.initialisation import he_weights, unit_variance
from tests.support.finetuning import examples_of, model_of, small_network


def batches(count: int = 3, size: tuple[int, int] = (96, 128)) -> list[Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [2 * torch.randn(2, 3, *size, generator=generator) + 0.3 for _ in range(count)]


def outputs(module: nn.Module, images: list[Tensor]) -> dict[str, Tensor]:
    """What every layer with weights gives for whole images, float64 (C, positions), by plain torch."""
    seen: dict[str, list[Tensor]] = {}
    handles = [
        layer.register_forward_hook(lambda _, __, output, name=name: seen.setdefault(name, []).append(output.detach().clone()))
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Conv2d | nn.Linear)
    ]
    with torch.no_grad():
        for image in images:
            module(image)
    for handle in handles:
        handle.remove()
    return {name: torch.cat(pieces).double().transpose(0, 1).flatten(1) for name, pieces in seen.items()}


@pytest.mark.parametrize("build", [lambda: camelyon17.build(layers=22, width=4), camelyon16_tiles.build, lambda: small_network(norm=True)])
def test_every_channel_of_every_layer_has_variance_one(build) -> None:
    module, images = build().eval(), batches()
    he_weights(module, torch.Generator().manual_seed(0))
    layers = unit_variance(module, images, tile=(32, 48))
    whole = outputs(module, images)
    assert [layer.name for layer in layers] == list(whole)
    for layer in layers:
        expected = whole[layer.name]
        variance = expected.var(1, correction=0)
        alive = variance > 0  # a channel behind dead ones is constant whatever its weights
        assert alive.any()
        assert (variance[alive] - 1).abs().max() < 0.01
        assert (layer.variance[alive] - 1).abs().max() < 1e-9
        assert (layer.mean - expected.mean(1)).abs().max() < 1e-3


def test_streamed_equals_whole() -> None:
    """In float64 the weights of one step over whole images, and of steps of 24 x 40 px, are equal."""
    he_weights(base := camelyon17.build(layers=22, width=4).double().eval(), torch.Generator().manual_seed(1))
    images = [image.double() for image in batches(2)]
    whole, streamed = copy.deepcopy(base), copy.deepcopy(base)
    unit_variance(whole, images, tile=(96, 128))
    unit_variance(streamed, images, tile=(24, 40))
    for expected, actual in zip(whole.parameters(), streamed.parameters(), strict=True):
        assert (expected - actual).abs().max() <= 1e-12 * expected.abs().max().clamp(min=1)
    assert any((a != b).any() for a, b in zip(base.parameters(), whole.parameters(), strict=True))


def test_he_weights_follow_the_seed_and_the_fan_in() -> None:
    module = nn.Sequential(nn.Conv2d(3, 400, 5), nn.BatchNorm2d(400), nn.Linear(4000, 200))
    he_weights(module, torch.Generator().manual_seed(0))
    for layer, fan_in in ((module[0], 75), (module[2], 4000)):
        assert float(layer.weight.std()) == pytest.approx((2 / fan_in) ** 0.5, rel=0.03)
        assert not layer.bias.any()
    first = module[0].weight.clone()
    he_weights(module, torch.Generator().manual_seed(0))
    assert torch.equal(first, module[0].weight)
    he_weights(module, torch.Generator().manual_seed(1))
    assert not torch.equal(first, module[0].weight)


def test_a_refusal_leaves_the_network_as_it_was() -> None:
    module = small_network().eval()
    before = copy.deepcopy(module.state_dict())
    with pytest.raises(TrainingError, match="expected one mini-batch or more"):
        unit_variance(module, [])
    with pytest.raises(TrainingError, match="output of 0 is not finite"):
        unit_variance(module, [torch.full((1, 3, 64, 64), float("nan"))])
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())


def test_training_from_scratch_starts_from_neither_the_base_nor_its_scale() -> None:
    module = small_network()
    settings = Settings(learning_rate=1e-12, weight_decay=0.0, batch=2, epochs=1, validation=0, flips=False, jitter=0)
    modules = {}
    for start in ("base", "he", "lsuv"):
        how = Settings(**{name: getattr(settings, name) for name in settings.__slots__} | {"initialise": start})
        modules[start] = finetune(model_of(module), examples_of("abab"), how, tile=(32, 32), force=True).model.module
    expected = copy.deepcopy(module)
    he_weights(expected, torch.Generator().manual_seed(0))
    assert torch.allclose(modules["base"][0].weight, module[0].weight)
    assert torch.allclose(modules["he"][0].weight, expected[0].weight)
    ratio = modules["lsuv"][0].weight / expected[0].weight
    assert torch.allclose(ratio, ratio[:, :1, :1, :1].expand_as(ratio), rtol=1e-4)
    assert not torch.allclose(ratio, torch.ones(()))


def test_only_all_layers_start_from_scratch() -> None:
    with pytest.raises(TrainingError, match="expected all, as no weights of the base are kept"):
        Settings("head", initialise="lsuv")
    with pytest.raises(TrainingError, match="expected base, he or lsuv"):
        Settings(initialise="orthogonal")  # type: ignore[arg-type]
