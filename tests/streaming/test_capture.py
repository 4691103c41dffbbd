"""What capturing a network must not change, forget or mistake."""

from __future__ import annotations

import copy
import gc
import time
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streamview.errors import NotStreamableError, RegionError
from streamview.streaming import stream
from streamview.streaming.capture.capture import capture
from tests.support.networks import seed_network
from tests.support.oracle import errors

TILE = (9, 13)


class Net(nn.Module):
    """Two convolutions, a linear layer, and a forward pass given from outside."""

    def __init__(self, run: Callable[[Net, Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, padding=1)
        self.relu, self.fc, self.fc2 = nn.ReLU(True), nn.Linear(4, 4), nn.Linear(4, 2)
        self.run = run

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


def head(m: Net, x: Tensor, act: Callable[[Tensor], object]) -> Tensor:
    y = m.fc(m.a(x).mean((2, 3)))
    act(y)
    return m.fc2(y)


EXACT: dict[str, Callable[[Net, Tensor], Tensor]] = {
    "module in place in the head": lambda m, x: head(m, x, m.relu),
    "method in place in the head": lambda m, x: head(m, x, lambda y: y.relu_()),
    "function in place in the head": lambda m, x: head(m, x, lambda y: F.relu(y, inplace=True)),
    "clone changed in place": lambda m, x: m.b(_clone_changed(m.a(x))),
    "unused branch": lambda m, x: (m.a(x).std(), m.b(m.a(x)).mean((2, 3)))[1],
    "kernel size as a number": lambda m, x: F.conv2d(m.a(x), m.b.weight, padding=m.b.weight.shape[-1] // 2) / m.b.weight.shape[0],
    "shared layer used twice": lambda m, x: m.b(m.b(m.a(x))),
    "one channel widened by a constant": lambda m, x: m.b(m.a(x)[:, :1] * m.fc.bias.view(1, 4, 1, 1)),
    "convolution read twice": lambda m, x: m.b(m.a(x)) + m.a(x).tanh(),
}


def _clone_changed(x: Tensor) -> Tensor:
    y = x.clone()
    y.relu_()
    return x + y


@pytest.mark.parametrize("form", EXACT)
def test_exact(form: str) -> None:
    torch.manual_seed(0)
    network, image = Net(EXACT[form]).double(), torch.randn(2, 3, 29, 31, dtype=torch.float64)
    for how in ({"tile": TILE}, {"memory": "1GB"}):
        assert max(errors(network, image, **how)) < 1e-10


def _gated(m: Net, x: Tensor) -> Tensor:
    y = m.a(x)
    gate = y.amax((2, 3), keepdim=True).sigmoid()
    y.mul_(gate)
    return m.b(y).mean((2, 3))


def _no_grad(m: Net, x: Tensor) -> Tensor:
    with torch.no_grad():
        y = m.a(x)
    return m.b(y)


def _autocast(m: Net, x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return m.b(m.a(x))


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (_gated, "mul_ changes a value in place that b reads"),
        (_no_grad, "switches gradients or autocast within itself"),
        (_autocast, "switches gradients or autocast within itself"),
    ],
)
def test_refused(run: Callable[[Net, Tensor], Tensor], message: str) -> None:
    with pytest.raises(NotStreamableError, match=message):
        stream(Net(run))


def test_default_arguments() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor, scale: float = 2.0) -> Tensor:
            return (self.conv(x) * scale).mean((2, 3)) * scale

    assert max(errors(Scaled().double(), torch.randn(1, 3, 20, 20, dtype=torch.float64), tile=TILE)) < 1e-10


def test_modes_of_submodules_stay() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(4), nn.Dropout())
    network.train()
    network[3].eval()
    before = [m.training for m in network.modules()]
    stream(network)(torch.rand(2, 3, 20, 20))
    assert [m.training for m in network.modules()] == before


def test_attributes_are_read_at_every_call() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.LeakyReLU(0.1), nn.MaxPool2d(2))
    streamed, image = stream(network, tile=TILE), torch.rand(1, 3, 20, 24)
    streamed(image)
    network[0].stride, network[1].negative_slope = (2, 1), 0.9
    assert torch.allclose(streamed(image), network(image))


@pytest.mark.parametrize("place", ["", "0", "1"])
def test_hooks_on_containers_raise(place: str) -> None:
    network = nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()))
    streamed = stream(network)
    network.get_submodule(place).register_forward_hook(lambda *_: None)
    with pytest.raises(NotStreamableError, match="has a hook"):
        streamed(torch.rand(1, 3, 9, 9))
    with pytest.raises(NotStreamableError, match="has a hook"):
        stream(network)


@pytest.mark.parametrize(
    ("first", "channels"),
    [(nn.ZeroPad2d(1), 1), (nn.AvgPool2d(2), 5), (nn.BatchNorm2d(1).eval(), 1), (nn.Sigmoid(), 7)],
    ids=["pad", "pool", "norm", "activation"],
)
def test_images_of_any_channels(first: nn.Module, channels: int) -> None:
    image = torch.randn(1, channels, 22, 20, dtype=torch.float64)
    network = nn.Sequential(first, nn.Conv2d(channels, 3, 3)).double()
    assert max(errors(network, image, tile=TILE)) < 1e-10
    assert max(errors(nn.Sequential(nn.MaxPool2d(2)).double(), image, tile=TILE)) < 1e-10
    with pytest.raises(RegionError, match="9 channels: the network takes"):
        stream(network)(torch.zeros(1, 9, 20, 20, dtype=torch.float64))


def test_constants_must_fit_the_map() -> None:
    class Field(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.field = nn.Parameter(torch.randn(1, 3, 64, 64))

        def forward(self, x: Tensor) -> Tensor:
            return x + self.field

    with pytest.raises(RegionError, match="does not fit a map of 32 x 32"):
        stream(Field())(torch.rand(1, 3, 32, 32))


def test_a_call_is_freed_with_its_output() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveMaxPool2d(1))
    streamed = stream(network, tile=TILE)
    gc.disable()
    try:
        out = streamed(torch.rand(1, 3, 40, 40, requires_grad=True))
        function = out.grad_fn.next_functions[0][0]  # behind the copy that the head gets
        call = weakref.ref(function.body.run)
        del out, function
        assert call() is None
    finally:
        gc.enable()


def test_half_precision() -> None:
    image = torch.full((1, 1, 64, 64), 100.0, dtype=torch.float16)
    assert torch.equal(stream(nn.Sequential(nn.AvgPool2d(32)), tile=TILE)(image), F.avg_pool2d(image, 32))
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1)).eval()
    half = copy.deepcopy(network)
    half[0].to(torch.bfloat16)  # the usual mixture: statistics stay in float32
    image = torch.rand(1, 3, 1024, 16)
    expected = torch.autograd.grad(network(image).sum(), network[0].weight)[0]
    found = torch.autograd.grad(stream(half, tile=(8, 16))(image.bfloat16()).sum(), half[0].weight)[0]
    assert found.dtype == torch.bfloat16
    assert (found - expected).norm() < 0.02 * expected.norm()


def test_threads_capture_and_run_networks_at_the_same_time() -> None:
    """As in a window that foresees one run while it computes another: torch.fx changes modules of all threads while it traces."""
    torch.manual_seed(0)
    network = seed_network(blocks=3).eval()
    other = seed_network(blocks=2).eval()
    image = torch.randn(1, 3, 32, 32)
    expected, count = other(image), len(capture(network).nodes)
    call, stop = nn.Module.__call__, time.monotonic() + 2

    def trace() -> int:
        found = 0
        while time.monotonic() < stop:
            assert len(capture(network).nodes) == count
            found += 1
        return found

    def run() -> int:
        found = 0
        while time.monotonic() < stop:
            assert other(image).equal(expected)
            assert all(isinstance(p, nn.Parameter) for p in network[0].parameters())
            assert isinstance(network[0].weight, nn.Parameter)
            found += 1
        return found

    with ThreadPoolExecutor(4) as pool:
        works = [pool.submit(work) for work in (trace, run, trace, run)]
        assert min(work.result() for work in works) > 3
    assert nn.Module.__call__ is call
