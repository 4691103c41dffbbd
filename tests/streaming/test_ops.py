"""Every operation in every form it is called: module, function, method, operator; each must stream and be exact."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streamview.errors import NotStreamableError, RegionError
from streamview.streaming import stream
from streamview.streaming.capture.capture import capture
from tests.support.oracle import errors

pytestmark = pytest.mark.usefixtures("fine_rows")

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
        self.spread = nn.Parameter(torch.randn(6, 2, 3, 2))
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
    "asinh": lambda m, x: torch.asinh(3 * x) * x.asinh(),
    "torch.special": lambda m, x: torch.special.expm1(x) * torch.special.sinc(x) + torch.special.expit(x),
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


def _spread(kernel: int, stride: int, **how: Any) -> Callable[[Any, Tensor], Tensor]:
    return lambda m, x: F.conv_transpose2d(
        x, m.spread[:, :, :1, :1].expand(-1, -1, kernel, kernel + 1) * m.bias[:2, None, None], m.bias[:2], stride, **how
    )


FORMS |= {
    **{f"conv_transpose2d kernel {k} stride {s}": _spread(k, s) for k in (1, 2, 3, 4) for s in (1, 2, 3, 4)},
    "conv_transpose2d padding": _spread(4, 2, padding=(1, 2), output_padding=1),
    "conv_transpose2d dilation": _spread(3, 3, padding=2, output_padding=(2, 0), dilation=(2, 3)),
    "conv_transpose2d cropped below its kernel": _spread(1, 3, padding=1),
    "torch.conv_transpose2d groups": lambda m, x: torch.conv_transpose2d(x, m.spread, None, (1, 3), (1, 0), 0, 3, 2),
    "F.interpolate": lambda m, x: F.interpolate(x, scale_factor=2),
    "F.interpolate pair": lambda m, x: F.interpolate(x, scale_factor=(2, 1.5), mode="nearest"),
    "F.upsample": lambda m, x: F.interpolate(x, None, 3.0, "bilinear", True),
    **{
        f"F.interpolate {mode} {factor} {corners} {recompute}": lambda m, x, how=(mode, factor, corners, recompute): F.interpolate(
            x, scale_factor=how[1], mode=how[0], align_corners=how[2], recompute_scale_factor=how[3]
        )
        for mode, choices in (("nearest", (None,)), ("nearest-exact", (None,)), ("bilinear", (None, True)))
        # torch's own gradient of nearest-exact by 3.7 in float64 is that of other pixels than its output shows
        for factor in (2, 1.5, 0.5, 2.6 if mode == "nearest-exact" else 3.7)
        for corners in choices
        for recompute in (None, True)
    },
    "F.interpolate to a size": lambda m, x: F.interpolate(x, (37, 11), mode="bilinear"),
    "F.interpolate to a side": lambda m, x: F.interpolate(x, 30),
    "F.interpolate to one row": lambda m, x: F.interpolate(x, (1, 9), mode="bilinear", align_corners=True),
    "F.interpolate to its own size": lambda m, x: F.interpolate(x, x.shape[-2:], mode="bilinear", align_corners=False),
    "F.interpolate to another's size": lambda m, x: x + F.interpolate(F.avg_pool2d(x, 3, 2), size=x.shape[2:], mode="nearest-exact"),
    "F.interpolate to another's sides": lambda m, x: F.interpolate(F.max_pool2d(x, 2), size=(x.size(2), x.size(-1)), mode="bilinear"),
    "F.interpolate to twice its sides": lambda m, x: F.interpolate(x, size=(x.size(2) * 2, 2 * x.shape[3] - 1)),
    "F.interpolate to a part of its sides": lambda m, x: F.interpolate(x, size=(x.shape[2] // 2 + 1, -(-x.shape[3] // 3))),
    "F.pixel_shuffle": lambda m, x: F.pixel_shuffle(torch.cat([x, x[:, :2].tanh()], 1), 2),
    "F.pixel_unshuffle": lambda m, x: F.pixel_unshuffle(F.pad(x, (0, 2, 0, 0)), 3),
    "F.pad reflect": lambda m, x: F.pad(x, (3, 0, 1, 4), mode="reflect"),
    "F.pad reflect all it can": lambda m, x: F.pad(x, (24, 24, 20, 20), mode="reflect"),
    "F.pad replicate": lambda m, x: F.pad(x, (2, 30, 0, 1), "replicate"),
    "F.pad by sizes": lambda m, x: F.pad(x, [x.size(3) % 4, 0, 0, 3 - x.size(2) % 4]) * 2,
    "F.pad by a difference": lambda m, x: _padded_to(F.avg_pool2d(x, 4, 3), F.max_pool2d(x, 2)),
    "F.pad reflect by a difference": lambda m, x: _padded_to(F.avg_pool2d(x, 3, 2), x[:, :, 2:-3, 3:-1], mode="reflect"),
}


def _padded_to(x: Tensor, like: Tensor, mode: str = "constant") -> Tensor:
    """The idiom of U-Nets."""
    dy, dx = like.size(2) - x.size(2), like.size(3) - x.size(3)
    return torch.cat([like, F.pad(x, [dx // 2, dx - dx // 2, dy // 2, dy - dy // 2], mode)], 1)


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
        lambda: nn.ConvTranspose2d(6, 4, 2, 2),
        lambda: nn.ConvTranspose2d(6, 4, (5, 3), (2, 3), (1, 2), (1, 0), 2, False, (1, 2)),
        lambda: nn.ConvTranspose2d(6, 6, 4, 2, 1, groups=6),
        lambda: nn.Upsample(scale_factor=2),
        lambda: nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True),
        lambda: nn.Upsample((40, 13), mode="nearest-exact"),
        lambda: nn.UpsamplingNearest2d(scale_factor=3),
        lambda: nn.UpsamplingBilinear2d(size=(33, 50)),
        lambda: nn.Sequential(nn.Conv2d(6, 18, 1), nn.PixelShuffle(3)),
        lambda: nn.Sequential(nn.Upsample(scale_factor=2), nn.PixelUnshuffle(2)),
        lambda: nn.ReflectionPad2d((1, 0, 2, 3)),
        lambda: nn.ReplicationPad2d(3),
        lambda: nn.Conv2d(6, 4, (5, 2), 2, (2, 1), padding_mode="reflect"),
        lambda: nn.Conv2d(6, 4, 3, 1, "same", 2, padding_mode="replicate"),
        lambda: nn.ChannelShuffle(3),
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


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (lambda x: F.pad(x, (1, 1, 1, 1), mode="circular"), "read at the other"),
        (lambda x: F.interpolate(x, scale_factor=2, mode="bicubic"), "mode='bicubic'"),
        (lambda x: F.interpolate(x, scale_factor=0.5, mode="bilinear", antialias=True), "antialias"),
        (lambda x: x * (x.shape[2] * x.shape[3]), "depends on the size"),
        (lambda x: x * x.flatten(2).size(2), "depends on the size"),
        (lambda x: x * x.size(0), "depends on the size|number of images"),
        (lambda x: x / x.numel(), "numel"),
        (lambda x: x * x.mean((2, 3)).size(0), "depends on the size"),
        (lambda x: x * x.max(1, keepdim=True)[1], "tuple index out of range"),
    ],
)  # fmt: skip
def test_refused(call: Callable[[Tensor], Tensor], reason: str) -> None:
    """Silently wrong numbers would be the alternative."""

    class Refused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(call(self.a(x)))

    with pytest.raises(NotStreamableError, match=reason):
        capture(Refused())


def test_blocks_must_divide_the_map() -> None:
    with pytest.raises(RegionError, match="21 x 24"):
        stream(nn.Sequential(nn.Conv2d(3, 3, 1), nn.PixelUnshuffle(2)))(torch.zeros(1, 3, 21, 24))


@pytest.mark.parametrize("mode", ["nearest", "nearest-exact"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_nearest_is_that_of_torch_in_every_precision(mode: str, dtype: torch.dtype) -> None:
    """Torch computes the index in float32 or float64, and rounding decides it: for a factor of 3.7 at every size from 35 on."""
    for size, how in [
        ((61, 20), {"scale_factor": 3.7}),
        ((20, 12), {"size": (148, 141)}),
        ((41, 45), {"scale_factor": (1.3, 0.7)}),
    ]:
        network = nn.Sequential(nn.MaxPool2d(1), nn.Upsample(**how, mode=mode))
        image = torch.arange(size[0] * size[1]).remainder(251).view(1, 1, *size).to(dtype)
        assert torch.equal(stream(network, tile=(7, 31))(image), network(image))


def test_gradients_do_not_share_memory() -> None:
    """A constant as large as the whole map has the very gradient that the map has, which what lies before changes in place."""

    class Field(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.field = nn.Conv2d(3, 4, 3, padding=1), nn.Parameter(torch.randn(1, 4, 9, 11))

        def forward(self, x: Tensor) -> Tensor:
            return (self.conv(x).relu() + self.field) * 3

    torch.manual_seed(0)
    network, image = Field().double(), torch.randn(1, 3, 9, 11, dtype=torch.float64)
    for tile in ((99, 99), (3, 4)):
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

    torch.manual_seed(0)
    network = Several().double()
    image = torch.randn(1, 3, 21, 23, dtype=torch.float64, requires_grad=True)
    found, expected = stream(network, tile=(4, 5))(image), network(image)
    assert torch.allclose(found[0], expected[0], atol=1e-12)
    assert torch.allclose(found[1]["deep"], expected[1]["deep"], atol=1e-12)
    grads = [torch.autograd.grad(o[0].sum() + o[1]["deep"].square().sum() + o[1]["mean"].exp().sum(), image)[0] for o in (found, expected)]
    assert torch.allclose(*grads, atol=1e-12)
