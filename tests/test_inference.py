"""From a source, a model and a region to a prediction and its maps, against whole-image autograd."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from networks import seed_network
from numpy.typing import NDArray
from torch import Tensor, nn

from streamview.cards import parse_card
from streamview.errors import Cancelled, MemoryBudgetError, ModelError, RegionError, SlideError
from streamview.forecasts import forecast
from streamview.geometry import Region
from streamview.inference import predict, saliency
from streamview.loading import Model
from streamview.progress import Step
from streamview.slides import as_slide
from streamview.synthetic import synthetic_region

MEAN, STD = (0.7, 0.5, 0.6), (0.2, 0.25, 0.3)


def make_model(module: nn.Module, *, mpp: float | None = None, task: str = "class", **extra: Any) -> Model:
    card = {
        "spec_version": "1.0",
        "architecture": "camelyon17-2048",
        "num_classes": 2,
        "class_names": ["normal", "tumour"],
        "patch_size_pixels": None,
        "spacing_um_px": mpp,
        "transform": [{"name": "ToTensor"}, {"name": "Normalize", "arguments": {"mean": list(MEAN), "std": list(STD)}}],
        "streamview": {"task": task, **extra},
    }
    return Model(
        module.eval().requires_grad_(False).to(memory_format=torch.channels_last), parse_card(card, name="test", file="card.json"), "0" * 64
    )


@pytest.fixture(scope="module")
def pixels() -> NDArray[np.uint8]:
    return synthetic_region(250, 333, seed=3, lesion_share=0.2)[0]


@pytest.fixture
def model() -> Model:
    torch.manual_seed(0)
    return make_model(seed_network(8, 4))


def whole(model: Model, pixels: NDArray[np.uint8], target: int) -> tuple[Tensor, NDArray[np.float32], NDArray[np.float32]]:
    """Logits, max over channels of the gradient, and gradient x (input - glass), by plain autograd in float64."""
    module = model.module.double()
    mean, std = (torch.tensor(v, dtype=torch.float64).view(1, 3, 1, 1) for v in (MEAN, STD))
    image = ((torch.from_numpy(pixels).permute(2, 0, 1)[None].double() / 255 - mean) / std).requires_grad_()
    logits = module(image)[0]
    grad = torch.autograd.grad(logits[target], image)[0]
    signed = (grad * (image - (1 - mean) / std)).sum(1)
    model.module.float()
    return logits.detach(), grad.abs().amax(1)[0].numpy(), signed[0].detach().numpy()


def distance(found: Any, expected: NDArray[np.float32]) -> float:
    return float(np.linalg.norm(np.asarray(found) - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize("tile", [(32, 1000), (48, 80), None], ids=["strips", "tiles", "chosen"])
def test_maps_equal_whole_image_autograd(model: Model, pixels: NDArray[np.uint8], tile: tuple[int, int] | None) -> None:
    found = saliency(model, pixels, tile=tile)
    logits, absolute, signed = whole(model, pixels, found.target.index)
    assert distance(found.prediction.logits, logits.numpy()) < 1e-5
    assert found.target.name == model.card.class_names[int(logits.argmax())]
    assert distance(found.maps["absolute"].values, absolute) < 1e-4
    assert distance(found.maps["signed"].values, signed) < 1e-4
    assert np.array_equal(predict(model, pixels, tile=tile).logits, found.prediction.logits)


def test_target_by_name_and_index(model: Model, pixels: NDArray[np.uint8]) -> None:
    named, indexed = saliency(model, pixels, target="tumour"), saliency(model, pixels, target=1)
    assert np.array_equal(named.maps["signed"].values, indexed.maps["signed"].values)
    assert not np.array_equal(named.maps["signed"].values, saliency(model, pixels, target=0).maps["signed"].values)
    with pytest.raises(ModelError, match=r"target 'cat'.*normal, tumour"):
        saliency(model, pixels, target="cat")


def test_evidence_is_the_linear_layer_on_the_last_features(model: Model, pixels: NDArray[np.uint8]) -> None:
    found = saliency(model, pixels, target=1, tile=(40, 90)).maps["evidence"]
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
        stored = saliency(model, pixels, out=tmp_path / "map.ome.zarr", tile=tile)
        kept = saliency(model, pixels, tile=tile)
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
    with pytest.raises(SlideError, match="--mpp"):
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
    found = saliency(make_model(seed_network(4, 3), task="regression"), pixels)
    assert found.target.index == 0
    assert found.prediction.probabilities is None


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
        predict(model, pixels, memory="10MB")
    with pytest.raises(MemoryBudgetError, match="expected an amount such as 2GB"):
        predict(model, pixels, memory="lots")


def test_cancelled_within_one_step_and_nothing_left(model: Model, pixels: NDArray[np.uint8], tmp_path: Path) -> None:
    steps: list[Step] = []
    state = {name: tensor.clone() for name, tensor in model.module.state_dict().items()}

    def cancel(step: Step) -> None:
        steps.append(step)
        if step.task == "backward pass" and step.done == 2:
            raise Cancelled("stop")

    with pytest.raises(Cancelled):
        saliency(model, pixels, out=tmp_path / "map.ome.zarr", tile=(16, 1000), report=cancel)
    assert steps[-1].done == 2
    assert list(tmp_path.iterdir()) == []
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.module.state_dict().items())
    assert not any(p.requires_grad for p in model.module.parameters())


def test_forecast_names_plan_and_memory(model: Model) -> None:
    pixels = np.full((1500, 1600, 3), 243, np.uint8)
    found = forecast(model, as_slide(pixels), explain=True, tile=(64, 1600))
    assert found.plan.tile == (64, 1600)
    assert found.plan.steps == 24
    assert found.seconds is not None
    assert "1600 x 1500 px in 24 steps of 64 x 1600 px on cpu: peak memory" in str(found)
