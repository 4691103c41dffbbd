"""Training in bfloat16 with float32 weights: as near to float32 as torch's autocast, and nothing else changes."""

import copy
from dataclasses import replace

import pytest
import torch
from streamview_models import camelyon17, resnet
from torch.nn.functional import cross_entropy

import streamview
from streamview.errors import TrainingError
from streamview.finetuning import Settings, finetune
from streamview.finetuning.trainer import Trainer
from tests.support.finetuning import model_of, separable, settle_norms, small_network


def gradients(module, image, weights) -> torch.Tensor:
    for weight in weights:
        weight.grad = None
    cross_entropy(module(image).float(), torch.tensor([0, 1])).backward()
    assert {weight.grad.dtype for weight in weights} == {torch.float32}
    return torch.cat([weight.grad.flatten().double() for weight in weights])


@pytest.mark.parametrize("tile", [(32, 128), (48, 40)])
@pytest.mark.parametrize(
    "build", [lambda: camelyon17.build(width=8, layers=13), pytest.param(lambda: resnet.build(2, layers=18), marks=pytest.mark.slow)]
)
def test_the_gradient_is_as_near_as_autocast(build, tile) -> None:
    torch.manual_seed(0)
    network = build().eval().requires_grad_(True)
    settle_norms(network)
    image, weights = torch.randn(2, 3, 128, 128), list(network.parameters())
    exact = gradients(network, image, weights)
    mixed = gradients(streamview.stream(network, tile=tile), image.bfloat16(), weights)
    with torch.autocast("cpu", torch.bfloat16):
        autocast = gradients(network, image, weights)
    error, usual = ((other - exact).norm() / exact.norm() for other in (mixed, autocast))
    assert 1e-4 < error < 1.2 * usual


def test_half_precision_weights_stay_what_they_were() -> None:
    network = small_network().bfloat16()
    output = streamview.stream(network, tile=(32, 32))(torch.randn(1, 3, 64, 64, dtype=torch.bfloat16))
    assert output.dtype == torch.bfloat16


@pytest.mark.slow
def test_training_comes_as_far_as_in_float32(monkeypatch) -> None:
    torch.manual_seed(5)
    module, settings = small_network(norm=True), Settings(batch=4, epochs=6, patience=0, learning_rate=3e-3)
    dtypes = []
    pixels = Trainer._pixels
    monkeypatch.setattr(Trainer, "_pixels", lambda *how: dtypes.append((image := pixels(*how)).dtype) or image)
    results = [
        finetune(model_of(copy.deepcopy(module)), separable(16), replace(settings, precision=precision), force=True, tile=(32, 32))
        for precision in ("float32", "bf16")
    ]
    assert set(dtypes) == {torch.float32, torch.bfloat16}  # the latter for training passes alone
    whole, mixed = (result.history for result in results)
    assert mixed.losses != whole.losses
    assert mixed.losses[-1] < 0.7 * mixed.losses[0]
    assert mixed.losses[-1] == pytest.approx(whole.losses[-1], rel=0.2)
    assert {p.dtype for p in results[1].model.module.parameters()} == {torch.float32}


def test_other_precisions_are_refused() -> None:
    with pytest.raises(TrainingError, match="precision 'fp16': expected float32 or bf16"):
        Settings(precision="fp16")
