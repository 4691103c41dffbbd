"""A capture is used again only while nothing that it depends on has changed; what has changed is seen at the next call."""

from __future__ import annotations

import functools
import gc
import pickle
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from streamview.errors import NotStreamableError
from streamview.networks import load_model
from streamview.streaming import stream
from streamview.streaming.capture.capture import Captures

IMAGE = torch.randn(1, 3, 24, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
SCALES = {"a": 2.0}
NINE = {"temperature": torch.tensor(9.0)}


def double(x: Tensor) -> Tensor:
    return 2 * x


class Frozen(nn.Module):
    """A network whose code reads numbers, functions, lists and dicts of its own."""

    offset = 0.5

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.norm, self.act = nn.Conv2d(3, 6, 3, 2), nn.GroupNorm(2, 6), torch.tanh
        self.register_buffer("temperature", torch.tensor(2.0))
        self.register_buffer("table", torch.tensor([1.0, 2.0, 3.0]))
        self.register_buffer("flag", torch.tensor(True))
        self.scales, self.settings, self.nested = [1.0, 2.0], {"scale": 3.0, "deep": [{"x": 1.0}]}, (1.0, [2.0])
        self.record, self.partial = SimpleNamespace(scale=2.0), functools.partial(torch.mul, other=2.0)
        self.extra = nn.ModuleList([nn.Identity()])
        self.constant = torch.tensor(1.5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.partial(self.act(self.norm(self.convolution(x)))) / float(self.temperature) + self.offset
        y = y * self.table.tolist()[1] + self.table[2].item() + (self.table * 2)[0]
        if self.flag:
            y = y * 3
        y = y * self.scales[1] * self.settings["scale"] + self.settings["deep"][0]["x"] + self.nested[1][0]
        y = y * self.record.scale * SCALES["a"] + self.constant * 2
        for part in self.extra:
            y = part(y)
        return y.mean((2, 3))


def _load(m: Frozen) -> None:
    m.load_state_dict({k: ~v if v.dtype == torch.bool else 2 * v for k, v in m.state_dict().items()})


def _replace_twice(m: Frozen) -> None:
    """The address of what was let go of is given out again."""
    for factor in (3.0, 4.0):
        del m.act
        gc.collect()
        m.act = lambda x, factor=factor: factor * x


CHANGES: dict[str, Callable[[Frozen], Any]] = {
    "load_state_dict": _load,
    "load_state_dict by assignment": lambda m: m.load_state_dict({k: v.clone() for k, v in m.state_dict().items()} | NINE, assign=True),
    "buffer in place": lambda m: m.temperature.mul_(3),
    "buffer through data": lambda m: m.temperature.data.mul_(3),
    "element of a buffer": lambda m: m.table.__setitem__(1, 7.0),
    "buffer replaced": lambda m: setattr(m, "table", 5 * m.table),
    "flag": lambda m: m.flag.fill_(False),
    "function": lambda m: setattr(m, "act", torch.sigmoid),
    "function replaced twice": _replace_twice,
    "partial": lambda m: setattr(m, "partial", functools.partial(torch.mul, other=5.0)),
    "list": lambda m: m.scales.__setitem__(1, 7.0),
    "dict": lambda m: m.settings.update(scale=7.0),
    "dict in a list in a dict": lambda m: m.settings["deep"][0].update(x=7.0),
    "list in a tuple": lambda m: m.nested[1].__setitem__(0, 7.0),
    "record": lambda m: setattr(m.record, "scale", 7.0),
    "attribute of the class": lambda m: setattr(Frozen, "offset", Frozen.offset + 1),
    "global dict": lambda m: SCALES.update(a=SCALES["a"] + 1),
    "tensor attribute in place": lambda m: m.constant.mul_(3),
    "submodule": lambda m: setattr(m, "convolution", nn.Conv2d(3, 6, 5, 1).double()),
    "list of modules": lambda m: m.extra.append(nn.Tanh()),
    "number of a module": lambda m: setattr(m.norm, "eps", 3.0),
    "requires_grad": lambda m: m.norm.requires_grad_(False),
    "parametrization": lambda m: parametrizations.weight_norm(m.convolution, "weight"),
    "forward": lambda m: setattr(m.convolution, "forward", lambda x: F.conv2d(x, m.convolution.weight * 2)),
    "forward of the network": lambda m: setattr(m, "forward", lambda x: double(Frozen.forward(m, x))),
    "method": lambda m: setattr(Frozen, "forward", functools.wraps(_forward)(lambda self, x: 2 * _forward(self, x))),
}  # fmt: skip
_forward = Frozen.forward


@pytest.fixture
def network() -> Any:
    torch.manual_seed(0)
    yield Frozen().double()
    Frozen.offset, Frozen.forward = 0.5, _forward
    SCALES["a"] = 2.0


@pytest.mark.parametrize("change", CHANGES)
def test_changes_are_seen_at_the_next_call(change: str, network: Frozen) -> None:
    streamed = stream(network, tile=(9, 30), check=False)
    before = streamed(IMAGE)
    assert torch.allclose(before, network(IMAGE), rtol=1e-12)
    CHANGES[change](network)
    expected = network(IMAGE)
    assert torch.allclose(streamed(IMAGE), expected, rtol=1e-12)
    assert change in ("requires_grad", "parametrization") or not torch.allclose(before, expected)
    parameters = [p for p in network.parameters() if p.requires_grad]
    grads = [torch.autograd.grad(m(IMAGE).sum(), parameters, allow_unused=True) for m in (streamed, network)]
    assert all(b is None or torch.allclose(a, b, rtol=1e-9, atol=1e-12) for a, b in zip(*grads, strict=True))


def test_nothing_is_captured_anew_without_need(network: Frozen) -> None:
    streamed = stream(network, check=False)
    graph = streamed.graph()
    for _ in range(2):
        network(IMAGE)
        streamed(IMAGE)
        with torch.no_grad():
            network.convolution.weight.mul_(2)
        network.load_state_dict({name: value.clone() for name, value in network.state_dict().items()})
        assert streamed.graph() is graph


def test_a_nan_that_the_code_reads_is_not_a_change(network: Frozen) -> None:
    network.temperature.fill_(float("nan"))
    streamed = stream(network)
    assert streamed.graph() is streamed.graph()


def test_a_model_is_captured_and_compared_once() -> None:
    model = load_model("demo")
    graph = model.captures.graph(model.module, channels=3)
    assert model.captures.graph(model.module, channels=3) is graph
    copied = pickle.loads(pickle.dumps(model.captures))
    assert isinstance(copied, Captures)
    assert copied.graph(model.module, channels=3) is not graph


# ----------------------------------------------------------------------------------------------------------------- streamed modules inside


def _inner() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).double()


class Twice(nn.Module):
    """Needs torch.export, since its code asks for the number of dimensions in a condition."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] != 3:
            raise ValueError("channels")
        return 2 * self.inner(x)


@pytest.mark.parametrize("outer", [lambda inner: nn.Sequential(inner, nn.Linear(4, 2).double()), Twice, lambda inner: stream(inner)])
def test_a_streamed_module_inside_another_one(outer: Callable[[nn.Module], nn.Module]) -> None:
    inner = stream(_inner(), tile=(9, 30))
    network = outer(inner)
    for context in (torch.enable_grad, torch.no_grad):
        with context():
            assert torch.allclose(stream(network, tile=(9, 30))(IMAGE), network(IMAGE), rtol=1e-12)
    inner.cut.register_forward_hook(lambda *_: None)
    with pytest.raises(NotStreamableError, match="cut"):
        stream(network, tile=(9, 30))


def test_a_network_that_streams_within_its_own_code_is_refused_at_once() -> None:
    class Within(nn.Module):
        def __init__(self, features: bool) -> None:
            super().__init__()
            self.inner, self.features = _inner(), features
            self.streamed = stream(self.inner)

        def forward(self, x: Tensor) -> Tensor:
            return self.streamed.features(x)[0] if self.features else stream(self.inner)(x)

    with pytest.raises(NotStreamableError, match="stream the outer one alone"):
        stream(Within(False))
    with pytest.raises(NotStreamableError, match="stream the outer one alone"):
        stream(Within(True))
