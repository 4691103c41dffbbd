"""Arithmetic of fewer bits: how far it is from float32, and that what it cannot hold is scaled or refused."""

from __future__ import annotations

import copy
import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from streamview.cli import main
from streamview.cli.parser import build_parser
from streamview.errors import ModelError
from streamview.inference.compute import PRECISIONS, Compute
from streamview.inference.explain import explain, forecast, predict, saliency
from streamview.inference.passes import forward_pass, score_gradients
from streamview.inference.prepared import prepare
from streamview.inference.targets import find_target
from streamview.progress import Progress
from streamview.results import Precision, open_saliency
from streamview.streaming import stream
from streamview.streaming.graph import Sink
from streamview.streaming.run.run import Run
from tests.support.inference import MEAN, STD, distance, make_model, whole
from tests.support.networks import Excite, seed_network
from tests.support.slides import SyntheticSlide

HALVES = ("bf16", "fp16")
TILE = (48, 80)


@pytest.fixture(scope="module")
def pixels() -> NDArray[np.uint8]:
    """No two neighbours alike: in a flat region any rounding decides a maximum."""
    return np.random.default_rng(0).integers(0, 256, (170, 203, 3), np.uint8)


def relu_network(scale: float = 1.0) -> nn.Sequential:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 2),
    )
    network[-1].weight.data *= scale
    return network


def gated_network() -> nn.Sequential:
    torch.manual_seed(1)
    body = [nn.Conv2d(3, 8, 3, 2, 1), nn.SiLU(), Excite(8), nn.Conv2d(8, 8, 3, padding=1), nn.SiLU(), Excite(8)]
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))


class Shaped(nn.Module):
    """A head that takes a whole map, and a bridge: what is gathered has several kinds."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.body = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.GroupNorm(2, 8), nn.SiLU(), nn.Conv2d(8, 4, 8, 8))
        self.pool, self.last = nn.AdaptiveAvgPool2d(2), nn.Linear(16, 2)

    def forward(self, image: Tensor) -> Tensor:
        return self.last(self.pool(self.body(image)).flatten(1))


@pytest.mark.parametrize("precision", HALVES)
@pytest.mark.parametrize("network", [relu_network, gated_network, Shaped], ids=["relu", "gated", "shaped"])
def test_maps_and_logits_are_close_to_float32(network: Callable[[], nn.Module], pixels: NDArray[np.uint8], precision: Precision) -> None:
    model = make_model(network())
    exact, found = (saliency(model, pixels, target=1, compute=Compute(tile=TILE, precision=p)) for p in ("float32", precision))
    for method, saliency_map in exact.maps.items():
        values = found.maps[method].values
        assert values.dtype == np.float32
        assert np.corrcoef(values.ravel(), saliency_map.values.ravel())[0, 1] > (0.99 if precision == "bf16" else 0.995)
    bound = 0.02 if precision == "bf16" else 0.003
    logits = exact.prediction.logits
    assert np.abs(found.prediction.logits - logits).max() < bound * np.abs(logits).max()
    assert not np.array_equal(found.prediction.logits, logits)
    assert found.prediction.identity.precision == precision
    assert found.prediction.identity.key != exact.prediction.identity.key
    assert np.array_equal(predict(model, pixels, compute=Compute(tile=TILE, precision=precision)).logits, found.prediction.logits)


class Converting(nn.Module):
    """A network that computes in float32 whatever it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.network = seed_network(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x.float())


@pytest.mark.parametrize("precision", HALVES)
def test_a_network_that_converts_its_maps(pixels: NDArray[np.uint8], precision: Precision) -> None:
    torch.manual_seed(0)
    model = make_model(Converting())
    exact, half = (saliency(model, pixels, target=1, compute=Compute(tile=TILE, precision=p)) for p in ("float32", precision))
    assert np.abs(half.prediction.logits - exact.prediction.logits).max() < 0.05 * np.abs(exact.prediction.logits).max()
    assert distance(half.maps["absolute"].values, exact.maps["absolute"].values) < 0.2


@pytest.mark.parametrize("precision", HALVES)
def test_as_close_as_torch_itself(pixels: NDArray[np.uint8], precision: Precision) -> None:
    """Max-pooling decides near ties by rounding: a neighbour gets the gradient, in plain torch too."""
    torch.manual_seed(0)
    model = make_model(seed_network(8, 4))
    exact = whole(model, pixels, 1)[1]
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    plain = copy.deepcopy(model.module).to(dtype)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (MEAN, STD))
    image = ((torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255 - mean) / std).to(dtype).requires_grad_()
    grad = torch.autograd.grad(plain(image)[0, 1] * 2.0**10, image)[0].float() / 2.0**10
    theirs = distance(grad.abs().amax(1)[0].numpy(), exact)
    ours = distance(saliency(model, pixels, target=1, compute=Compute(tile=TILE, precision=precision)).maps["absolute"].values, exact)
    assert 1e-4 < ours < 1.2 * theirs


def test_gradients_below_fp16_are_not_flushed_to_zero(pixels: NDArray[np.uint8]) -> None:
    computes = [Compute(tile=TILE, precision=precision) for precision in ("float32", "fp16")]
    exact, found = (saliency(make_model(relu_network(1e-9)), pixels, target=1, compute=compute) for compute in computes)
    values = exact.maps["absolute"].values
    assert 0 < values.max() < 2.0**-24  # the least that fp16 holds
    assert distance(found.maps["absolute"].values, values) < 0.05
    assert distance(found.maps["signed"].values, exact.maps["signed"].values) < 0.05


def test_gradients_beyond_fp16_are_scaled_down(pixels: NDArray[np.uint8]) -> None:
    computes = [Compute(tile=TILE, precision=precision) for precision in ("float32", "fp16")]
    exact, found = (saliency(make_model(relu_network(1e9)), pixels, target=1, compute=compute) for compute in computes)
    assert distance(found.maps["absolute"].values, exact.maps["absolute"].values) < 0.05


@pytest.mark.parametrize("weight", [0.0, 1e-30, 1.0, 1e30])
def test_the_scale_is_a_power_of_two_that_brings_the_gradient_at_the_cut_into_range(pixels: NDArray[np.uint8], weight: float) -> None:
    network = relu_network()
    network[-1].weight.data.fill_(weight)
    model = make_model(network)
    for precision in ("float32", "fp16"):
        prepared = prepare(model, pixels, compute=Compute("cpu", tile=TILE, precision=precision))
        run = Run(prepared.both, prepared.plan(targets=1))
        with prepared.reader(run.call) as reader:
            result = forward_pass(run, reader, model.card, Progress("forward pass", run.steps, None))
        grads, scale = score_gradients(run, result, find_target(model, 1))
        ((key, grad),) = grads.items()
        assert isinstance(key, Sink)
        assert grad is not None
        if precision == "float32" or not weight:
            assert scale == 1
        else:
            assert np.log2(scale) == round(np.log2(scale))
            assert 4 <= float(grad.abs().max()) / np.prod(run.bound.sizes[key.value]) <= 16 or abs(np.log2(scale)) == 100
        assert torch.equal(grad / scale, torch.full_like(grad, weight)) == (weight in (0.0, 1.0) or abs(np.log2(scale)) <= 100)


def test_several_targets_and_files(pixels: NDArray[np.uint8], tmp_path: Path) -> None:
    model = make_model(relu_network())
    outs = [tmp_path / "a.ome.zarr", tmp_path / "b.ome.zarr"]
    kept = explain(model, pixels, targets=[0, 1], compute=Compute(tile=TILE, precision="bf16"))
    stored = explain(model, pixels, targets=[0, 1], outs=outs, compute=Compute(tile=TILE, precision="bf16"))
    for one, two, path in zip(kept, stored, outs, strict=True):
        assert np.array_equal(one.maps["signed"].values, two.maps["signed"].values)
        assert open_saliency(path).prediction.identity.precision == "bf16"


def test_the_network_and_the_bridges_stay_in_float32(pixels: NDArray[np.uint8]) -> None:
    model = make_model(Shaped())
    before = copy.deepcopy(model.module.state_dict())
    prepared = prepare(model, pixels, compute=Compute("cpu", tile=TILE, precision="bf16"))
    assert {w.dtype for w in prepared.forward.weights} == {torch.bfloat16}
    run = Run(prepared.forward, prepared.plan())
    with prepared.reader(run.call) as reader:
        forward_pass(run, reader, model.card, Progress("forward pass", run.steps, None))
    assert {t.dtype for t in run.tensors.values()} <= {torch.float32, torch.float64}
    after = model.module.state_dict()
    assert all(after[name].dtype == tensor.dtype and torch.equal(after[name], tensor) for name, tensor in before.items())


def test_less_memory_is_planned(pixels: NDArray[np.uint8]) -> None:
    model = make_model(relu_network())
    full, half = (Compute(memory="4GB", tile=(32, 203), precision=precision) for precision in ("float32", "bf16"))
    more, less = (forecast(model, pixels, targets=1, compute=compute) for compute in (full, half))
    assert less.plan.peak_bytes < 0.75 * more.plan.peak_bytes
    assert np.array_equal(
        prepare(model, pixels, compute=half).explain(plan=less.plan)[0].maps["signed"].values,
        saliency(model, pixels, compute=half).maps["signed"].values,
    )


def test_what_overflows_is_refused_with_the_remedy(pixels: NDArray[np.uint8]) -> None:
    network = relu_network()
    network[2].weight.data *= 1e6
    model = make_model(network)
    remedy = "fp16 ends at 65504: use bf16 or float32"
    found = r"answered \[.*\]: not finite; 2 is the first to give (NaN|infinity), in rows 0 to \d+ and columns 0 to \d+ of the region"
    with pytest.raises(ModelError, match=f"{found}; {remedy}"):
        predict(model, pixels, compute=Compute(tile=TILE, precision="fp16"))
    predict(model, pixels, compute=Compute(tile=TILE, precision="bf16"))

    steep = relu_network()
    for layer in (0, 2, 5):
        steep[layer].weight.data *= 2.0**6
    model = make_model(nn.Sequential(Shrunk(2.0**-13), *steep))
    predict(model, pixels, compute=Compute(tile=TILE, precision="fp16"))
    found = "gave a gradient of .*: not finite; the backward pass of [12] is the first to give (NaN|infinity), in rows"
    with pytest.raises(ModelError, match=f"{found} .*; {remedy}"):
        saliency(model, pixels, compute=Compute(tile=TILE, precision="fp16"))
    saliency(model, pixels, compute=Compute(tile=TILE, precision="bf16"))


class Shrunk(nn.Module):
    """Makes pixels small, so that a steep network answers with ordinary numbers."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, image: Tensor) -> Tensor:
        return image * self.factor


def test_unknown_precision(pixels: NDArray[np.uint8]) -> None:
    with pytest.raises(ModelError, match="precision 'int8' is unknown: expected float32, bf16, fp16"):
        predict(make_model(relu_network()), pixels, compute=Compute(precision="int8"))  # type: ignore[arg-type]


def test_on_the_command_line(synthetic_slide: SyntheticSlide, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = tmp_path / "job"
    command = ["-i", str(synthetic_slide.path), "-o", str(job), "-m", "demo", "--region", "700,400,320,300"]
    assert main(["saliency", *command, "--precision", "bf16"]) == 0
    assert "in bf16" in capsys.readouterr().out
    assert main(["predict", *command]) == 0
    (record,) = (json.loads(path.read_text()) for path in (job / "slides").glob("*.json"))
    assert [r["prediction"]["identity"]["precision"] for r in record["regions"]] == ["bf16", "float32"]
    assert [r["plan"]["precision"] for r in record["regions"]] == ["bf16", "float32"]
    with (job / "predictions.csv").open(newline="") as table:
        assert [row["precision"] for row in csv.DictReader(table)] == ["bf16", "bf16", "float32", "float32"]
    assert ", bf16 |" in (job / "summary.md").read_text()
    (stored,) = (job / "saliency" / "synthetic.svs").glob("*.ome.zarr")
    assert open_saliency(stored).prediction.identity.precision == "bf16"
    # maps of one precision never take the place of those of another
    assert main(["saliency", *command]) == 1
    assert "other weights, mpp, precision, padding or pixels" in capsys.readouterr().err


def test_the_choices_of_the_command_line_are_those_there_are() -> None:
    options = build_parser().parse_args(["predict", "-i", "a", "-o", "b", "-m", "c"])
    assert options.precision == "float32"
    for precision in get_args(Precision):
        assert build_parser().parse_args(["saliency", "-i", "a", "-o", "b", "-m", "c", "--precision", precision]).precision == precision
    assert set(PRECISIONS) == set(get_args(Precision))
    with pytest.raises(SystemExit):
        build_parser().parse_args(["predict", "-i", "a", "-o", "b", "-m", "c", "--precision", "int8"])


@pytest.mark.parametrize("width", [8, 16])
def test_kernels_of_torch_that_give_wrong_sums_in_bfloat16_are_not_used(width: int) -> None:
    """Where windows adjoin or the output is one column wide, torch's own sums on the CPU are off by their own size."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(16, 16, (5, 8), 8), nn.Conv2d(16, 16, 1)).to(memory_format=torch.channels_last)
    image = torch.randn(1, 16, 40, width).bfloat16()
    leaf = image.clone().requires_grad_()
    exact = image.float().requires_grad_()
    found, expected = stream(copy.deepcopy(network).bfloat16(), tile=(16, 8))(leaf), network(exact)
    assert (found - expected).norm() < 0.02 * expected.norm()
    cotangent = torch.randn_like(expected)
    ours, theirs = (torch.autograd.grad(out, x, cotangent.to(out.dtype))[0] for out, x in ((found, leaf), (expected, exact)))
    assert (ours - theirs).norm() < 0.02 * theirs.norm()
