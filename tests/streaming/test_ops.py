"""Every operation in every form it is called: module, function, method, operator; each must stream and be exact."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from oracle import errors
from torch import Tensor, nn

from streamview.streaming.capture import capture

TILES = [(5, 60), (9, 11)]


class Call(nn.Module):
    """A call between two convolutions, with parameters and buffers at hand as `m`."""

    def __init__(self, call: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.before = nn.Conv2d(3, 6, 3, padding=1)
        self.kernel = nn.Parameter(torch.randn(4, 6, 3, 2))
        self.depthwise = nn.Parameter(torch.randn(6, 1, 3, 3))
        self.bias = nn.Parameter(torch.randn(4))
        self.slope = nn.Parameter(torch.rand(6))
        self.scale = nn.Parameter(torch.randn(1, 6, 1, 1))
        self.rows = nn.Parameter(torch.randn(21, 1))
        self.field = nn.Parameter(torch.randn(1, 1, 21, 25))
        self.register_buffer("mean", torch.randn(6))
        self.register_buffer("variance", torch.rand(6) + 0.5)
        self.call = call

    def forward(self, x: Tensor) -> Tensor:
        x = self.call(self, self.before(x))
        return x * 0.5


FORMS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "F.conv2d": lambda m, x: F.conv2d(x, m.kernel, m.bias, stride=(2, 1), padding=(1, 0), dilation=(1, 2)),
    "F.conv2d same": lambda m, x: F.conv2d(x, m.kernel, padding="same"),
    "F.conv2d valid": lambda m, x: F.conv2d(x, m.kernel, padding="valid"),
    "torch.conv2d depthwise": lambda m, x: torch.conv2d(x, m.depthwise, None, 1, 1, 1, 6),
    "conv2d of computed weights": lambda m, x: F.conv2d(x, m.kernel / m.kernel.norm(), m.bias.exp() - 1),
    "F.pad then conv2d": lambda m, x: F.conv2d(F.pad(x, (0, 2, 3, 1)), m.kernel),
    "F.pad value": lambda m, x: F.pad(x, (1, 2, 0, 3), value=0.3),
    "F.pad two": lambda m, x: F.pad(x, (2, 1), "constant", -1.0),
    "F.pad crop": lambda m, x: F.pad(x, (-1, 2, -3, -2)),
    "crop": lambda m, x: x[:, :, 2:-3, 1:],
    "channels": lambda m, x: torch.cat([x[:, 2:5], x[:, :2], x[:, -1:]], 1),
    "ellipsis": lambda m, x: x[..., 1:-1],
    "F.max_pool2d": lambda m, x: F.max_pool2d(x, 3, 2, 1, ceil_mode=True),
    "F.max_pool2d dilated": lambda m, x: F.max_pool2d(x, (2, 3), (2, 1), (0, 1), (3, 2)),
    "F.max_pool2d halves": lambda m, x: F.max_pool2d(x, 2),
    "F.avg_pool2d": lambda m, x: F.avg_pool2d(x, 3, 2, 1),
    "F.avg_pool2d edges": lambda m, x: F.avg_pool2d(x, (3, 2), 2, (1, 1), True, False),
    "F.avg_pool2d ceil": lambda m, x: F.avg_pool2d(x, 4, 3, 2, ceil_mode=True),
    "F.avg_pool2d divisor": lambda m, x: F.avg_pool2d(x, 3, divisor_override=2),
    "F.batch_norm": lambda m, x: F.batch_norm(x, m.mean, m.variance, m.slope, m.slope),
    "F.batch_norm plain": lambda m, x: F.batch_norm(x, m.mean, m.variance),
    "F.prelu": lambda m, x: F.prelu(x, m.slope),
    "torch.prelu": lambda m, x: torch.prelu(x, m.slope),
    "F.dropout": lambda m, x: F.dropout(x, 0.5, training=False),
    "softmax": lambda m, x: F.softmax(x, dim=1) + torch.log_softmax(x, 1) * x.softmax(-3),
    "F.relu": lambda m, x: F.relu(x),
    "F.relu inplace": lambda m, x: F.relu(x, inplace=True),
    "torch.relu": lambda m, x: torch.relu(x),
    "x.relu": lambda m, x: x.relu(),
    "x.relu_ and the changed x": lambda m, x: x.mul(2).relu_() + x,
    "F.relu6": lambda m, x: F.relu6(x),
    "F.leaky_relu": lambda m, x: F.leaky_relu(x, 0.2, inplace=True),
    "F.elu": lambda m, x: F.elu(x, alpha=0.7),
    "F.gelu tanh": lambda m, x: F.gelu(x, approximate="tanh"),
    "F.silu": lambda m, x: F.silu(x),
    "F.hardswish": lambda m, x: F.hardswish(x),
    "F.hardtanh": lambda m, x: F.hardtanh(x, -0.5, 0.4),
    "F.softplus": lambda m, x: F.softplus(x, beta=2),
    "torch.sigmoid": lambda m, x: torch.sigmoid(x) * x.tanh(),
    "clamp": lambda m, x: x.clamp(-0.5, 0.5) + torch.clamp(x, min=0.1),
    "x.abs sqrt": lambda m, x: (x.abs() + 0.1).sqrt(),
    "x ** 2": lambda m, x: x**2 - x.square() / 3,
    "exp log": lambda m, x: torch.log(x.exp() + 1),
    "scalars": lambda m, x: 2 - (3 * x + 1) / 4,
    "x / x": lambda m, x: x / (x.abs() + 1),
    "-x": lambda m, x: -x,
    "rsub": lambda m, x: torch.rsub(x, 2.0),
    "torch.add alpha": lambda m, x: torch.add(x, x.tanh(), alpha=0.3),
    "x.sub alpha": lambda m, x: x.sub(x.tanh(), alpha=0.3),
    "sub of a constant": lambda m, x: torch.sub(m.scale, x, alpha=2),
    "+=": lambda m, x: _augmented(x),
    "maximum": lambda m, x: torch.maximum(x, x.neg()),
    "parameter": lambda m, x: x * m.scale + m.scale.exp(),
    "parameter with rows": lambda m, x: x * m.rows,
    "parameter with a field": lambda m, x: m.field + x * m.field,
    "x + x": lambda m, x: x + x,
    "one channel to all": lambda m, x: x + x[:, :1],
    "cat of three": lambda m, x: torch.cat((x, x.relu(), x[:, :1]), dim=-3),
    "torch.concat": lambda m, x: torch.concat([x, x.tanh()], 1),
    "clone contiguous": lambda m, x: x.clone().contiguous(),
}


def _augmented(x: Tensor) -> Tensor:
    y = x + 1
    y += x
    y *= 0.5
    y -= 1
    return y


def check(network: nn.Module, sinks: str = "map") -> None:
    image = torch.randn(2, 3, 21, 25, dtype=torch.float64)
    graph = capture(network)
    assert [sink.kind for sink in graph.sinks] == [sinks]
    if sinks == "map":
        calls = [node for node in graph.head.module.graph.nodes if node.op.startswith("call")]
        assert not calls, f"{calls} were left to the head"
    for tile in TILES:
        assert max(errors(network, image, tile=tile)) < 1e-10


@pytest.mark.parametrize("form", FORMS)
def test_form(form: str) -> None:
    torch.manual_seed(0)
    check(Call(FORMS[form]).double().eval())


MODULES: dict[str, Callable[[], nn.Module]] = {
    repr(build()): build
    for build in (
        lambda: nn.Conv2d(6, 4, (5, 2), (2, 3), (4, 1), (1, 2)),
        lambda: nn.Conv2d(6, 6, 4, padding="same", groups=3),
        nn.ReLU,
        lambda: nn.ReLU(True),
        nn.ReLU6,
        nn.LeakyReLU,
        lambda: nn.PReLU(6),
        nn.PReLU,
        nn.ELU,
        nn.SELU,
        nn.CELU,
        nn.GELU,
        lambda: nn.SiLU(True),
        nn.Mish,
        nn.Hardswish,
        nn.Hardsigmoid,
        nn.Hardtanh,
        nn.Sigmoid,
        nn.Tanh,
        nn.Softplus,
        nn.Softsign,
        nn.Tanhshrink,
        nn.LogSigmoid,
        lambda: nn.Threshold(0.1, 20),
        nn.Hardshrink,
        nn.Softshrink,
        nn.RReLU,
        nn.Softmax2d,
        lambda: nn.Softmax(dim=1),
        lambda: nn.LogSoftmax(dim=1),
        lambda: nn.LocalResponseNorm(3),
        lambda: nn.MaxPool2d(3, 1, 1),
        lambda: nn.MaxPool2d(2),
        lambda: nn.MaxPool2d((3, 2), 2, 1, 2, ceil_mode=True),
        lambda: nn.AvgPool2d(3, 2, 1, True, False),
        lambda: nn.BatchNorm2d(6),
        lambda: nn.BatchNorm2d(6, affine=False),
        lambda: nn.ZeroPad2d((1, 0, 2, 3)),
        lambda: nn.ConstantPad2d(2, 0.7),
        nn.Dropout2d,
        nn.Identity,
    )
}


@pytest.mark.parametrize("module", MODULES)
def test_module(module: str) -> None:
    torch.manual_seed(0)
    check(nn.Sequential(nn.Conv2d(3, 6, 3), MODULES[module](), nn.Sigmoid()).double().eval())


REDUCTIONS: dict[str, tuple[str, Callable[[Tensor], Tensor]]] = {
    "F.adaptive_avg_pool2d": ("mean", lambda x: F.adaptive_avg_pool2d(x, 1)),
    "F.adaptive_avg_pool2d pair": ("mean", lambda x: F.adaptive_avg_pool2d(x, (1, 1)).flatten(1)),
    "F.adaptive_max_pool2d": ("max", lambda x: F.adaptive_max_pool2d(x, 1)),
    "x.mean": ("mean", lambda x: x.mean((2, 3))),
    "x.mean keepdim": ("mean", lambda x: x.mean([-1, -2], keepdim=True)),
    "torch.mean": ("mean", lambda x: torch.mean(x, dim=(-2, -1))),
    "x.sum": ("sum", lambda x: x.sum(dim=(2, 3))),
    "x.amax": ("map", lambda x: x.amax((2, 3))),
    "adaptive to 3 x 2": ("map", lambda x: F.adaptive_avg_pool2d(x, (3, 2))),
}


@pytest.mark.parametrize("form", REDUCTIONS)
def test_reduction(form: str) -> None:
    torch.manual_seed(0)
    kind, reduce = REDUCTIONS[form]

    class Reduced(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return reduce(self.conv(x).relu()).tanh()

    network = Reduced().double()
    assert [sink.kind for sink in capture(network).sinks] == [kind]
    for tile in TILES:
        assert max(errors(network, torch.randn(2, 3, 21, 25, dtype=torch.float64), tile=tile)) < 1e-10


def test_maximum_over_equal_values_takes_the_first_as_torch_does() -> None:
    network = nn.Sequential(nn.Conv2d(3, 2, 1), nn.AdaptiveMaxPool2d(1)).double()
    image = torch.ones(1, 3, 9, 9, dtype=torch.float64)
    for tile in ((2, 9), (4, 3), (9, 2)):
        assert max(errors(network, image, tile=tile)) < 1e-10


def test_shape_queries_cost_no_map() -> None:
    class Shaped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x)
            return F.adaptive_avg_pool2d(x, 1).view(x.size(0), -1) * x.shape[2]

    network = Shaped().double()
    assert sorted(sink.kind for sink in capture(network).sinks) == ["mean", "shape"]
    assert max(errors(network, torch.randn(2, 3, 21, 25, dtype=torch.float64), tile=(5, 7))) < 1e-10


def test_outputs_of_several_kinds() -> None:
    class Several(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.deep = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 3, 2)

        def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            a = self.conv(x)
            return a, {"deep": self.deep(a), "mean": a.mean((2, 3))}

    from streamview.streaming import stream

    torch.manual_seed(0)
    network = Several().double()
    image = torch.randn(1, 3, 21, 23, dtype=torch.float64, requires_grad=True)
    found, expected = stream(network, tile=(4, 5))(image), network(image)
    assert torch.allclose(found[0], expected[0], atol=1e-12)
    assert torch.allclose(found[1]["deep"], expected[1]["deep"], atol=1e-12)
    grads = [torch.autograd.grad(o[0].sum() + o[1]["deep"].square().sum() + o[1]["mean"].exp().sum(), image)[0] for o in (found, expected)]
    assert torch.allclose(*grads, atol=1e-12)
