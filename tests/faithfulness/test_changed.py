"""Changed regions and shuffled networks: what the network is given is what was meant, in whatever steps."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import streamview
from streamview.faithfulness.changed import ErasedSampler, NoisySampler, ShiftedSampler, with_sampler
from streamview.faithfulness.shuffling import shuffled
from streamview.inference.compute import Compute
from tests.support.inference import make_model
from tests.support.networks import seed_network

SIZE = (75, 101)  # no multiple of steps and squares, so that some are cut
ERASED = np.random.default_rng(3).random((5, 7)) < 0.5
GLASS = (255, 255, 255)


def images() -> dict[str, np.ndarray]:
    """Noise, and even tissue, which the engine would skip if it looked at the slide instead of at what it is given."""
    return {
        "noise": np.random.default_rng(0).integers(0, 256, (*SIZE, 3), np.uint8),
        "even": np.full((*SIZE, 3), 180, np.uint8),
    }


def expected(kind: str, pixels: np.ndarray) -> np.ndarray:
    if kind == "erased":
        mask = np.kron(ERASED, np.ones((16, 16), bool))[: SIZE[0], : SIZE[1]]
        return np.where(mask[..., None], np.uint8(255), pixels)
    padded = np.pad(pixels, ((0, 2), (0, 3), (0, 0)), mode="edge")
    return padded[2:, 3:]


def changed(kind: str, run: streamview.PreparedRun) -> streamview.PreparedRun:
    sampler = (
        ErasedSampler(run.sampler, run.inside, 16, ERASED, GLASS) if kind == "erased" else ShiftedSampler(run.sampler, run.inside, (2, 3))
    )
    return with_sampler(run, sampler)


@pytest.mark.parametrize("name", ["noise", "even"])
@pytest.mark.parametrize("kind", ["erased", "shifted"])
@pytest.mark.parametrize("padded", [None, 128])
def test_the_network_answers_for_the_changed_pixels_in_small_steps(name, kind, padded) -> None:
    torch.manual_seed(0)
    model, pixels = make_model(seed_network(blocks=3)), images()[name]
    compute = Compute(tile=(16, 16))
    run = changed(kind, streamview.prepare(model, pixels, compute=compute, pad_to=padded))
    result = run.explain(["tumour"])[0]
    whole = streamview.prepare(model, expected(kind, pixels), compute=compute, pad_to=padded).explain(["tumour"])[0]
    assert np.allclose(result.prediction.logits, whole.prediction.logits, atol=1e-6)
    assert np.allclose(result.maps["signed"].values, whole.maps["signed"].values, atol=1e-7)
    assert not np.allclose(
        result.prediction.logits, streamview.prepare(model, pixels, compute=compute, pad_to=padded).predict().logits
    ) or (name == "even" and kind == "shifted")


def test_noise_is_the_same_in_pieces_and_of_the_deviation() -> None:
    pixels = np.full((*SIZE, 3), 100, np.uint8)
    run = streamview.prepare(make_model(seed_network(blocks=3)), pixels)
    sampler = NoisySampler(run.sampler, run.inside, 1.0, seed=4)
    whole = sampler.read(0, SIZE[0], 0, SIZE[1])
    assert np.array_equal(sampler.read(10, 50, 20, 90), whole[10:50, 20:90])
    noise = whole.astype(int) - 100
    assert noise.std() == pytest.approx(np.hypot(1, 12**-0.5), rel=0.05)
    assert abs(noise.mean()) < 0.05
    assert not np.array_equal(whole, NoisySampler(run.sampler, run.inside, 1.0, seed=5).read(0, SIZE[0], 0, SIZE[1]))


def test_noise_stays_within_the_grey_levels() -> None:
    pixels = np.zeros((*SIZE, 3), np.uint8)
    pixels[40:] = 255
    run = streamview.prepare(make_model(seed_network(blocks=3)), pixels)
    whole = NoisySampler(run.sampler, run.inside, 2.0, seed=0).read(0, SIZE[0], 0, SIZE[1])
    assert whole[:40].max() < 20
    assert whole[40:].min() > 235


def test_a_shuffled_network_has_the_same_weights_in_another_order_and_the_model_keeps_its_own() -> None:
    torch.manual_seed(0)
    model = make_model(seed_network(blocks=3))
    before = {name: tensor.clone() for name, tensor in model.module.state_dict().items()}
    other = shuffled(model, seed=1)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.module.state_dict().items())
    for name, tensor in other.module.state_dict().items():
        assert torch.equal(tensor.flatten().sort().values, before[name].flatten().sort().values)
    weights = other.module.get_submodule("0").weight
    assert not torch.equal(weights, before["0.weight"])
    assert torch.equal(weights, shuffled(model, seed=1).module.get_submodule("0").weight)
    assert not torch.equal(weights, shuffled(model, seed=2).module.get_submodule("0").weight)


def test_the_cascade_shuffles_from_the_last_layer() -> None:
    torch.manual_seed(0)
    model = make_model(seed_network(blocks=3))
    names = [name for name, layer in model.module.named_modules() if list(layer.parameters(recurse=False))]

    def changed_layers(share: float) -> list[str]:
        other = shuffled(model, 0, share)
        return [name for name in names if not torch.equal(model.module.get_submodule(name).weight, other.module.get_submodule(name).weight)]

    assert changed_layers(0.0) == names[-1:]
    assert changed_layers(0.5) == names[-round(len(names) / 2) :]
    assert changed_layers(1.0) == names
