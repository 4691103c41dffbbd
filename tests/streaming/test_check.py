"""What a trace does not see is found by comparing every capture once with the network itself, which stays as it was."""

from __future__ import annotations

import copy
import functools
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from streamview.errors import NotStreamableError
from streamview.streaming import stream
from streamview.streaming.capture.capture import capture
from tests.support.networks import Case, cases, seed_network

IMAGE = torch.randn(1, 3, 40, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
TILE = (16, 50)


class Network(nn.Module):
    """Two convolutions, and a forward pass given from outside."""

    def __init__(self, run: Callable[[Network, Tensor], Any]) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3, 2), nn.Conv2d(4, 4, 3)
        self.run = run

    def forward(self, x: Tensor) -> Any:
        return self.run(self, x)


def pooled(*layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()).double()


def close(streamed: nn.Module, network: nn.Module) -> bool:
    return bool((streamed(IMAGE) - network(IMAGE)).abs().max() < 1e-12)


# ------------------------------------------------------------------------------------------------------- code that was put in its place


class Standardised(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding)


class Helped(nn.Conv2d):
    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(input, 2 * weight, bias)


class Shifted(nn.GroupNorm):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) + 1


class Slope(nn.ReLU):
    def forward(self, input: Tensor) -> Tensor:
        return input.clamp(min=0) - 0.1 * input


def _weight_norm(layer: nn.Module) -> nn.Module:
    return parametrizations.weight_norm(layer)


def _patched(layer: nn.Module) -> nn.Module:
    plain = layer.forward
    layer.forward = lambda x: 3 * plain(x)
    return layer


def _hooked(layer: nn.Module) -> nn.Module:
    """As accelerate does: the names of what is wrapped, another call."""
    plain = layer.forward

    def forward(module: nn.Module, *args: Tensor) -> Any:
        return plain(*(arg + 1 for arg in args))

    layer.forward = functools.update_wrapper(functools.partial(forward, layer), plain)
    return layer


def _helper(layer: nn.Module) -> nn.Module:
    plain = layer._conv_forward
    layer._conv_forward = lambda x, weight, bias: plain(F.pad(x, (1, 1, 1, 1), value=2.0), weight, bias)
    return layer


@pytest.mark.parametrize(
    "layer",
    [
        lambda: _weight_norm(Standardised(3, 4, 3)),
        lambda: _weight_norm(Helped(3, 4, 3)),
        lambda: _patched(nn.Conv2d(3, 4, 3)),
        lambda: _patched(_weight_norm(nn.Conv2d(3, 4, 3))),
        lambda: _hooked(nn.Conv2d(3, 4, 3)),
        lambda: _helper(nn.Conv2d(3, 4, 3)),
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), _patched(nn.ReLU())),
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), Slope()),
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), Shifted(2, 4)),
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), _patched(nn.GroupNorm(2, 4))),
        lambda: _patched(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())),
        lambda: torch.fx.GraphModule(block := nn.Sequential(Standardised(3, 4, 3)), _whole(block)),
    ],
    ids=[
        "parametrised forward", "parametrised helper", "patched", "patched and parametrised", "accelerate", "patched helper",
        "patched activation", "subclass of an activation", "subclass of a norm", "patched norm", "patched container", "in a graph",
    ],
)  # fmt: skip
@pytest.mark.parametrize("check", [True, False])
def test_the_code_that_runs_is_what_is_captured(layer: Callable[[], nn.Module], check: bool) -> None:
    torch.manual_seed(0)
    network = pooled(layer())
    try:
        streamed = stream(network, tile=TILE, check=check)
    except NotStreamableError:
        return
    assert close(streamed, network)


def _whole(block: nn.Module) -> torch.fx.Graph:
    """A graph that calls the layer of a block as a whole."""
    graph = torch.fx.Graph()
    graph.output(graph.call_module("0", (graph.placeholder("x"),)))
    return graph


def test_a_forward_put_in_place_of_the_networks_own() -> None:
    network = pooled(nn.Conv2d(3, 4, 3), nn.ReLU())
    plain = network.forward
    network.forward = lambda x: 3 * plain(x + 1)
    streamed = stream(network, tile=TILE)
    assert close(streamed, network)
    leaf = IMAGE.clone().requires_grad_()
    grads = [torch.autograd.grad(m(leaf)[0, 1], network[0].weight)[0] for m in (streamed, network)]
    assert torch.allclose(*grads, rtol=1e-10)
    assert any(node.name == "0" for node in streamed.graph().lowered)


def test_code_replaced_in_a_class(monkeypatch: pytest.MonkeyPatch) -> None:
    network = pooled(nn.Conv2d(3, 4, 3), nn.ReLU())
    streamed = stream(network, tile=TILE)
    assert close(streamed, network)
    plain = nn.Conv2d.forward

    @functools.wraps(plain)
    def forward(self: nn.Conv2d, input: Tensor) -> Tensor:
        return 2 * plain(self, input)

    monkeypatch.setattr(nn.Conv2d, "forward", forward)
    assert close(stream(network, tile=TILE, check=False), network)
    assert close(streamed, network)


def test_networks_prepared_for_quantisation_are_refused() -> None:
    quantization = pytest.importorskip("torch.ao.quantization")

    class Rounded(nn.Conv2d):
        def __init__(self, *args: int) -> None:
            super().__init__(*args)
            self.weight_fake_quant = quantization.FakeQuantize()

        def forward(self, input: Tensor) -> Tensor:
            return self._conv_forward(input, self.weight_fake_quant(self.weight), self.bias)

    with pytest.raises(NotStreamableError, match="weight_fake_quant"):
        stream(pooled(Rounded(3, 4, 3)).float())


# ----------------------------------------------------------------------------------------------------------------------- the comparison


def _on_type(m: Network, x: Tensor) -> Tensor:
    if isinstance(x, Tensor):
        x = (x - 0.5) / 0.25
    return m.a(x).mean((2, 3))


def _deep(m: Network, x: Tensor) -> Tensor:
    y = m.a(x)
    if type(y) is Tensor:
        y = y * 2
    return m.b(y).mean((2, 3))


def _detached(m: Network, x: Tensor) -> Tensor:
    y = m.a(x)
    return m.b(y.detach() if isinstance(y, Tensor) else y).mean((2, 3))


def _named(m: Network, x: Tensor) -> dict[str, Any]:
    y = m.a(x)
    return {"map": y, "answers": (y.mean((2, 3)), [m.b(y).mean((2, 3)) * (2 if isinstance(y, Tensor) else 1)])}


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (_on_type, "its answer by .*, first at layer a;"),
        (_deep, "its answer by .*, first at layer b;"),
        (_detached, "the gradient of the image by "),
        (_named, "its answer by .*, in what follows the streamed layers;"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_branch_on_the_type_is_refused(run: Callable[[Network, Tensor], Any], message: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    network = Network(run).to(dtype)
    with pytest.raises(NotStreamableError, match=f"differs from the network itself on an image of 16 x 24 px, {message}"):
        stream(network)
    stream(network, check=False)


def test_the_network_and_random_states_stay_as_they_are() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
            self.head = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 2))
            self.register_buffer("used", torch.zeros(1))

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.body(x)) + 0 * self.used

    network = Counting().train()
    network.head[1].eval()
    network.head[1].train()
    network.body[0].weight.grad = torch.ones_like(network.body[0].weight)
    seen: list[int] = []
    network.head[0].register_forward_hook(lambda *_: seen.append(1))
    state = copy.deepcopy(network.state_dict())
    drawn = torch.get_rng_state(), random.getstate(), np.random.get_state()[2]  # noqa: NPY002
    modes = [m.training for m in network.modules()]
    with torch.no_grad():
        assert capture(network, check=True).unchecked == ""
    assert not seen
    assert modes == [m.training for m in network.modules()]
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in state.items())
    assert bool((network.body[0].weight.grad == 1).all())
    assert [p.grad is None for p in network.parameters()].count(False) == 1
    assert torch.equal(torch.get_rng_state(), drawn[0])
    assert random.getstate() == drawn[1]
    assert np.random.get_state()[2] == drawn[2]  # noqa: NPY002


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_networks_that_answer_nan_are_not_refused(value: float) -> None:
    network = pooled(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))
    with torch.no_grad():
        network[2].weight[0, 0, 0, 0] = value
    assert stream(network, tile=TILE)(IMAGE).isnan().equal(network(IMAGE).isnan())


def test_what_cannot_be_compared_says_why() -> None:
    assert "px" in capture(seed_network(2, 12), check=True).unchecked
    assert capture(nn.Sequential(nn.Conv2d(3, 4, 3)), check=False).unchecked == "not asked for"
    assert capture(nn.Sequential(nn.Conv2d(3, 4, 3)), check=True).unchecked == ""


def test_a_capture_is_compared_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from streamview.streaming.capture import capture as module

    calls = []
    compare = module.compare
    monkeypatch.setattr(module, "compare", lambda *args: calls.append(1) or compare(*args))
    network = pooled(nn.Conv2d(3, 4, 3), nn.ReLU())
    streamed = stream(network, tile=TILE)
    for _ in range(3):
        streamed(IMAGE)
        with torch.no_grad():
            network[0].weight.mul_(2)
    assert calls == [1]
    network.eval()
    streamed(IMAGE)
    assert calls == [1, 1]


@settings(max_examples=12, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
@given(cases())
def test_no_network_is_refused_by_the_comparison(case: Case) -> None:
    capture(case.network, check=True)


def test_parametrised_weights_of_a_norm_between_passes_are_read_at_every_call() -> None:
    class Squared(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return weight * weight

    network = pooled(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.ReLU())
    parametrize.register_parametrization(network[1], "weight", Squared())
    streamed = stream(network, tile=TILE)
    original = network[1].parametrizations.weight.original
    grads = [torch.autograd.grad(m(IMAGE)[0, 1], original)[0] for m in (streamed, network)]
    assert torch.allclose(*grads, rtol=1e-10)
    with torch.no_grad():
        original.mul_(3)
    assert close(streamed, network)
